"""Nothing here needs a GPU: PyTorch's fake tensors say what a step would do on one; `python tests/gpu` measures it."""

import csv
import importlib.util
import json
import os
import re
import sys
from pathlib import Path

import pytest
import torch
from test_training import linear, make_data, make_split
from torch._subclasses import FakeTensorMode
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import xray_utils as xu
from xray_utils import augment, batches
from xray_utils._support import memory, runs
from xray_utils._support.session import Counters
from xray_utils.models import logits_of

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "gpu"))

import agreement  # noqa: E402
import cards  # noqa: E402
import compiling  # noqa: E402
import material  # noqa: E402
import throughput  # noqa: E402
import waits  # noqa: E402

GPU = torch.device("cuda:0")


class Waits(TorchDispatchMode):
    """What a program waits for: a copy between GPU and CPU that it did not start as a copy in the background."""

    def __init__(self):
        super().__init__()
        self.seen, self.copies = [], 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = str(operator)
        devices = {str(args[0].device), str(kwargs.get("device"))} if name.startswith("aten._to_copy") else set()
        if {"cpu", "cuda:0"} <= devices:
            self.copies += 1
            if not kwargs.get("non_blocking"):
                self.seen.append(name)
        if "_local_scalar_dense" in name or "nonzero" in name:
            self.seen.append(name)
        return operator(*args, **kwargs)


@pytest.mark.parametrize("change", ["none", "mild", "strong"])
@pytest.mark.parametrize("room", [0, 10**9], ids=["images in main memory", "images on the GPU"])
def test_no_step_of_a_training_waits_for_the_gpu(room, change, monkeypatch):
    split, pinned = make_split((5, 4, 3), 0), []
    monkeypatch.setattr(memory, "room_for_pixels", lambda device: room)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(1) or tensor)
    batches._line.cache_clear()
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), Waits() as waits:
            with GPU:
                model, counters = linear(), Counters(GPU)
            pixels = memory.pixels_of(split, GPU)
            for indices in batches.batches(split, 6):  # the first step fills caches
                waits.seen, waits.copies = [], 0
                pinned.clear()
                images = batches.to_input(pixels(indices), model, GPU)
                labels = batches.to_device(split.labels[indices], GPU)
                if change != "none":
                    images = augment.AUGMENTATIONS[change](images, torch.Generator(), (6, slice(None)))
                logits = logits_of(model, images)
                loss = F.cross_entropy(logits.float(), labels)
                counters.add(loss * len(labels), logits, labels)
                assert images.device == GPU
    finally:
        batches._line.cache_clear()  # of fake tensors
    assert waits.seen == [] and waits.copies == len(pinned) > 0


@pytest.mark.filterwarnings("ignore:for .* meta parameter")  # "meta" stands for a GPU; weights cannot be copied to it
def test_a_run_that_is_loaded_is_on_the_device_of_the_training(monkeypatch):
    model, data = xu.baseline_cnn(), make_data()
    xu.fit(model, data, "run", epochs=1, batch_size=8)
    monkeypatch.setattr(runs, "accelerator_of", lambda: type("Accelerator", (), {"device": torch.device("meta")}))
    assert next(xu.load_run("run").model.parameters()).device.type == "meta"
    assert next(xu.load_run("run", model).model.parameters()).device.type == "cpu"


# ---------------------------------------------------------------- the program, small


@pytest.fixture
def stage(tmp_path, monkeypatch):
    """A stage that runs on the CPU whatever this computer has, and the parts that it has written."""
    monkeypatch.setattr(material.Stage, "device", torch.device("cpu"))
    monkeypatch.setattr(material.Stage, "precisions", ("fp32", "bf16"))
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    stage = material.Stage("x", tmp_path / "gpu.json", quick=True)
    return stage, lambda: material.read(stage.path)["stages"]["x"]["parts"]


def program(monkeypatch):
    """`python tests/gpu` as a module."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in ("TQDM_DISABLE", "HF_HUB_OFFLINE", "XRAY_DATA"):  # which it sets
        monkeypatch.setenv(name, os.environ.get(name, ""))
    spec = importlib.util.spec_from_file_location("gpu_main", ROOT / "tests" / "gpu" / "__main__.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_agreement_is_judged_by_derived_tolerances(stage, monkeypatch):
    """A kill and its end on another device included; a network that computes something else is found."""
    stage, parts = stage
    monkeypatch.setattr(agreement, "EPOCHS", 2)
    monkeypatch.setattr(agreement, "killed", lambda *_: None)  # processes of their own take long: the next test
    agreement.agreement(stage, ("baseline_cnn",))
    found = parts()
    assert len(found) == 4 and not any("error" in part for part in found.values())
    assert all(verdict["within"] for part in found.values() for verdict in program(monkeypatch).within(part))
    reference = agreement.step(xu.baseline_cnn(), make_data(size=32), "fp32", torch.device("cpu"))
    other = agreement.step(xu.baseline_cnn(seed=1), make_data(size=32), "fp32", torch.device("cpu"))
    assert (
        not any(agreement.off(reference, reference).values()) and min(agreement.off(other, reference).values()) > 0.01
    )


def test_a_killed_child_leaves_its_epoch(stage, tmp_path):
    agreement.child(stage[0], "baseline_cnn", "fp32", 1, XRAY_OUTPUTS=str(tmp_path / "child"))
    assert len((tmp_path / "child" / "runs" / "run" / "history.csv").read_text().splitlines()) == 2


def test_throughput_waits_and_ways_to_compile(stage, monkeypatch):
    stage, parts = stage
    monkeypatch.setattr(throughput, "USUAL", {})
    monkeypatch.setitem(throughput.ENTRIES, "baseline_cnn", (lambda quick: xu.baseline_cnn(), 48, {
        "usual loop, 0 workers": (throughput.contestants.usual_with_workers, 0, 6)}))  # fmt: skip
    throughput.throughput(stage, ("baseline_cnn",), rounds=1)
    waits.waits(stage, ("baseline_cnn",))
    compiling.compiling(stage, ("resnet18",), ("as it is",))
    found = parts()
    assert not any("error" in part for part in found.values()) and len(found) == 6
    fit = found["baseline_cnn: fit and bound, fp32"]
    assert fit["images"] == 48 and 0 < fit["seconds"] < fit["seconds with checkpoint"] and fit["first step"] > 0
    assert fit["images per second"] == [round(48 / fit["seconds"], 1)] and fit["share of the bound"] > 0
    waiting = found["baseline_cnn, augment strong"]
    convolutions = [row for row in waiting["top host operations"] if "convolution" in row[0]]
    assert waiting["steps"] == 4 and waiting["warned of"] == {} and all(row[1] % 4 == 0 for row in convolutions)
    assert found["resnet18: as it is"]["milliseconds a step"] > 0


def test_a_part_that_fails_is_recorded_and_the_next_goes_on(stage):
    stage, parts = stage
    for number, value in enumerate((0, 2)):
        with stage.part(f"part {number}") as found:
            found["value"] = 4 / value
    assert parts()["part 0"]["error"].startswith("ZeroDivisionError") and parts()["part 1"]["value"] == 2


def test_a_stage_that_dies_or_hangs_is_recorded_and_the_next_goes_on(tmp_path, monkeypatch, capsys):
    gpu = program(monkeypatch)
    sleep, leave = ([sys.executable, "-c", f"import sys, time; {what}"] for what in ("time.sleep(60)", "sys.exit(3)"))
    ways = iter([(sleep, 0.1), (leave, 60)])
    run = gpu.run
    monkeypatch.setattr(gpu, "run", lambda *_: run(*next(ways)))
    monkeypatch.setattr(gpu, "machine", dict)
    gpu.main(["--stage", "d", "--stage", "c", "--quick", "--to", str(tmp_path / "gpu.json")])
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["stages"]["d"]["ended"].startswith("out of time")
    assert [row["met"] for row in found["wanted"]] == [False, False] and "NOT MET" in capsys.readouterr().out


FIT = {"share of the bound": 0.9, "first step": 3.0, "fits 15 GB": True}
SLOW = FIT | {"first step": 11, "trained in 15 GB": "out of memory"}


@pytest.mark.parametrize(
    ("stage", "part", "found", "met"),
    [
        ("a", "training", {"fp32": {"within": True}, "bf16": {"within": False}}, [False]),
        ("a", "use", {"on the device": False, "predict": {"within": True}}, [False]),
        ("b", "resnet18: fit and bound, bf16", FIT, [False, True, True]),
        ("b", "baseline_cnn: fit and bound, bf16", SLOW, [True, False, False]),
        ("b", "vit_base: usual loop, 2 workers, bf16", {"fit is faster by": 4.9}, [False]),
        ("b", "vit_base: HF Trainer, 8 workers, bf16", {"fit is faster by": 1.1}, [True]),
        ("c", "resnet18", {"steps": 16, "warned of": {}, "calls": {"cudaDeviceSynchronize": 1}}, [True]),
        ("c", "resnet18", {"steps": 16, "warned of": {}, "calls": {"cudaStreamSynchronize": 1}}, [False]),
        ("c", "resnet18", {"steps": 16, "warned of": {"a.py:1": 2}, "calls": {}}, [False]),
    ],
)  # fmt: skip
def test_what_was_wanted_is_judged(stage, part, found, met, monkeypatch):
    stages = {stage: {"ended": "whole", "parts": {part: found}}}
    assert [row["met"] for row in program(monkeypatch).judge(stages)] == met


def test_the_page_says_what_is_derived():
    derived = cards.estimate()
    written = list(csv.reader((ROOT / "results" / "tables" / "gpu_estimate.csv").open()))[1:]
    page = re.findall(r"^\| (\d) \(.*?\) \|(.*)\|$", (ROOT / "results" / "gpu.md").read_text(), re.M)
    assert len(page) == len(written) == len(derived) == 3
    for (_, *file), (_, cells), (_, row) in zip(written, page, derived.iterrows(), strict=True):
        assert [float(value) for value in file] == pytest.approx(row.tolist(), rel=1e-4)
        for cell, (column, value) in zip(cells.split("|"), row.items(), strict=True):  # an estimate: two digits
            assert float(cell.replace(",", "")) == float(f"{value:.{3 if 'GFLOPs' in column else 2}g}")
