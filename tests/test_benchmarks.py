"""The contestants of tests/benchmarks do the same work; what they take is for `python tests/benchmarks` to say."""

import importlib.util
import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import xray_utils as xu

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "benchmarks"))

import contestants  # noqa: E402
import preparing  # noqa: E402


class ForTrainer(nn.Module):
    """A network as Hugging Face's Trainer wants it: by the name of its input, with a loss."""

    def __init__(self, model):
        super().__init__()
        self.model, self.config = model, SimpleNamespace(_attn_implementation="own")
        self.input_mean, self.input_std = model.input_mean, model.input_std

    def forward(self, pixel_values, labels):
        assert self.config._attn_implementation == "sdpa"
        logits = self.model(pixel_values)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


PEERS = {"lightning": contestants.lightning, "fastai": contestants.fastai}


@pytest.fixture
def course(tmp_path):
    """24 images of the sample, and a network that counts the images it sees, in training and after."""
    data = preparing.some(xu.data_dir(), tmp_path / "images", limit=8)
    seen = {True: 0, False: 0}

    def make():
        model = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(48, 3))
        model.input_mean = model.input_std = [0.5] * 3
        model.register_forward_hook(
            lambda model, _, logits: seen.update({model.training: seen[model.training] + len(logits)})
        )
        return model

    course = contestants.Course(contestants.folders(data, tmp_path / "files"), data, make, 1e-3, batch_size=5)
    return course, seen


@pytest.mark.parametrize(
    "run", ["usual", "usual_with_workers", "ours", "bound", "bound_with_memory_kept", "trainer", *PEERS]
)
def test_every_contestant_trains_on_all_images_once_and_validates(run, course):
    if run in PEERS:
        pytest.importorskip(run)
    course, seen = course
    if run == "trainer":
        course.make = lambda make=course.make: ForTrainer(make())
    getattr(contestants, run)(course, "fp32")
    assert seen[True] == len(course.data.train) > 5
    assert seen[False] >= len(course.data.val) > 0  # Lightning tries two batches before it begins
    assert run in PEERS or seen[False] == len(course.data.val) + (run == "ours")  # whose fit tries one image first


def test_operations_are_counted_once_and_done_again_as_products(course, monkeypatch):
    course, seen = course
    layer = 2 * 48 * 3  # the one product: for the logits, for the gradient of its weights, for that of its input
    assert course.operations == (3 * len(course.data.train) + len(course.data.val)) * layer
    monkeypatch.setattr(contestants, "MATRIX", 8)
    with FlopCounterMode(display=False) as counter:
        contestants.products(course, "fp32")
    assert abs(counter.get_total_flops() - course.operations) <= 8**3
    assert seen == {True: 1, False: 1}


def test_the_figures_are_ratios_of_neighbours_and_are_kept_beside_the_others(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "path", [*sys.path])
    spec = importlib.util.spec_from_file_location("benchmarks_main", HERE / "benchmarks" / "__main__.py")
    benchmarks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmarks)
    seconds = {"ours, fp32": [1.0, 2.0, 4.0], "ours, bf16": [1.0, 1.0, 1.0], "usual loop, fp32": [2.0, 8.0, 4.0]}
    monkeypatch.setattr(benchmarks, "measure", lambda course, field, rounds: seconds)
    monkeypatch.setattr(benchmarks, "choose_precision", lambda *_: "bf16")
    path = tmp_path / "benchmarks.json"
    path.write_text('{"vit": {"figures": "kept"}}')
    benchmarks.main(["--only", "baseline_cnn", "--images", "8"], path)
    found = json.loads(path.read_text())
    assert found["vit"] == {"figures": "kept"} and list(found) == ["baseline_cnn", "vit"]
    figures = found["baseline_cnn"]["figures"]
    usual = figures["contestants"]["usual loop, fp32"]
    assert usual["ours_is_faster_by"] == [4.0, 2.0, 8.0]
    assert usual["ours_is_faster_by_at_its_precision"] == [2.0, 1.0, 4.0]
    images = figures["train_images"]
    assert usual["images_per_second"] == [round(images / t, 3) for t in (4.0, 8.0, 2.0)]
    assert "usual loop, fp32" in capsys.readouterr().out


def test_what_preparing_is_measured_on(tmp_path, monkeypatch):
    """Small: the numbers themselves are for a quiet machine."""
    monkeypatch.setattr(preparing, "LONG_SIDE", 1000)
    monkeypatch.setattr(preparing, "MANY", (6, 12))
    found = preparing.against_pillow(rounds=1, limit=7)
    assert found["images"] == 21 and len(found["times_as_fast_as_a_plain_loop"]) == 3
    off = found["grey_levels_off_a_full_decode"]
    assert 0 < off["mean"] <= off["99.9 %"] <= off["greatest"] < 20
    many = preparing.many(1, None)
    assert [*many] == ["6 images", "12 images"] and all(50 < one["peak_memory_MB"] < 5000 for one in many.values())


def test_the_table_of_speed_is_what_was_measured():
    """Each cell of results/speed.md: images a second, and in brackets how many times as fast `fit` is."""
    root = HERE.parent / "results"
    parts = json.loads((root / "benchmarks.json").read_text())
    parts = [
        parts[part]["figures"]["contestants"] for part in parts if part.startswith(("resnet18", "baseline", "vit"))
    ]
    table = re.search(r"\| \| ResNet18 .*?\n\n", (root / "speed.md").read_text(encoding="utf-8"), re.S)[0]
    names = {
        "`fit`": "ours",
        "the arithmetic alone": "bound",
        "the arithmetic alone, memory kept": "bound, memory kept",
        "as many operations in products of 2048 x 2048": "matrix products",
    }
    seen, above, rows = 0, "", set()
    for line in table.strip().splitlines()[2:]:
        label, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        precision = re.search("fp32|bf16", label)[0]
        name = re.sub(r", (fp32|bf16)|\*\*|;.*| \(.*?\)", "", label)
        name = above = above if name == "the same" else names.get(name, name)
        rows.add(f"{name}, {precision}")
        for cell, figures in zip(cells, parts, strict=True):
            assert bool(cell) == (f"{name}, {precision}" in figures), line
            if cell:
                found = figures[f"{name}, {precision}"]
                wanted = found["images_per_second"][:1] + found["ours_is_faster_by"]
                for number, value in zip(re.findall(r"[\d.]+", cell), wanted, strict=False):
                    assert abs(float(number) - value) <= 0.5001 * 10 ** -len(number.partition(".")[2]), line
                    seen += 1
    assert seen > 90 and rows == set().union(*parts)
