"""Nothing here needs a GPU: PyTorch's fake tensors say what a step would do on one; `python tests/gpu` measures it."""

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


def test_a_run_that_is_loaded_is_on_the_device_of_the_training(monkeypatch):
    model, data = xu.baseline_cnn(), make_data()
    xu.fit(model, data, "run", epochs=1, batch_size=8)
    monkeypatch.setattr(runs, "accelerator_of", lambda: type("Accelerator", (), {"device": torch.device("meta")}))
    assert next(xu.load_run("run").model.parameters()).device.type == "meta"
    assert next(xu.load_run("run", model).model.parameters()).device.type == "cpu"
