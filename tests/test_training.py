"""The training loop: what it counts, that it repeats and resumes bit for bit, and what it says when it cannot."""

import inspect
import itertools
import json
import math
import os
import platform
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

import xray_utils as xu
from xray_utils import augment as augment_module
from xray_utils import training
from xray_utils._support import device as device_module
from xray_utils._support import files, memory, runs, session
from xray_utils.lab import saliency
from xray_utils.prepared import PreparedData, Split

CLOCK = ["seconds", "images_per_second"]
# The mean of 21 losses, added in another order: each sum differs by a few units in the last place (1.2e-7 in float32).
ROUNDING = 100 * float(np.finfo(np.float32).eps)
LABELS = {"train": (9, 7, 5), "val": (4, 3, 3), "test": (3, 3, 3)}  # 21 images: no whole number of batches of 8


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    """The bit-for-bit promises are those of one processor; on a GPU some sums have no fixed order."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


# ---------------------------------------------------------------- small data, small networks


def make_split(counts, seed, size=8):
    """Noise that is brighter from class to class; every third row is mirrored."""
    label = np.repeat(np.arange(3), counts)
    rng = np.random.default_rng(seed)
    pixels = np.clip(rng.normal(70 + 50 * label[:, None, None, None], 60, (len(label), size, size, 3)), 0, 255)
    rows = pd.DataFrame(
        {
            "file": [f"{seed}-{i}.png" for i in range(len(label))],
            "label": np.array(xu.CLASSES)[label],
            "group": [f"patient {i // 2}" for i in range(len(label))],
            "mirrored": np.arange(len(label)) % 3 == 0,
            "source": "noise",
        }
    )
    return Split(rows, pixels.astype(np.uint8), np.arange(len(label)))


def make_data(seed=0, size=8, **counts):
    sides = {side: make_split(n, 10 * seed + i, size) for i, (side, n) in enumerate({**LABELS, **counts}.items())}
    return PreparedData(**sides, settings={"protocol": "grouped", "seed": seed, "mirror": True, "size": size})


@pytest.fixture
def data():
    return make_data()


def linear(seed=0, size=8):
    """A network without state but its weights: what it answers does not depend on the batch."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Flatten(), nn.Linear(3 * size * size, 3))
    model.input_mean, model.input_std = [0.4, 0.5, 0.6], [0.5, 0.25, 0.2]
    return model


def forgetful():
    """A network with dropout, which draws from the global random numbers."""
    model = linear()
    model.insert(1, nn.Dropout(0.5))
    return model


def blind():
    """A network that sees next to nothing, so that its loss stays at ln 3 at any rate."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 3, bias=False))
    nn.init.zeros_(model[1].weight)
    model.input_mean, model.input_std = [0.5] * 3, [1e9] * 3
    return model


def tiny_vit(folder):
    import transformers

    config = transformers.ViTConfig(
        image_size=32, patch_size=8, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformers.ViTForImageClassification(config).save_pretrained(folder)
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return xu.vit(weights=folder)


def fit(model, data, name="run", **options):
    return xu.fit(model, data, name, **{"epochs": 3, "batch_size": 8, "precision": "fp32", **options})


def logits_by_hand(model, split):
    """Logits of the rows of `split` in order, each image alone, without any function of the package."""
    with torch.no_grad():
        images = []
        for i in range(len(split)):
            image = split.pixels[split.positions[i]].astype(np.float64) / 255
            image = image[:, ::-1] if split.rows.mirrored[i] else image
            images.append((image - model.input_mean) / model.input_std)
        images = torch.tensor(np.array(images), dtype=torch.float32).permute(0, 3, 1, 2)
        output = [model.eval()(image[None]) for image in images]
        return torch.cat([getattr(o, "logits", o) for o in output])


def labels_of(split):
    return torch.tensor([xu.CLASSES.index(label) for label in split.rows.label])


def loss_by_hand(model, split):
    return F.cross_entropy(logits_by_hand(model, split), labels_of(split)).item()


def same_history(one, other):
    return one.drop(columns=CLOCK).equals(other.drop(columns=CLOCK))


def same_weights(one, other):
    one, other = (m.state_dict() if isinstance(m, nn.Module) else m for m in (one, other))
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def checkpoint(run, name="last.pt"):
    return torch.load(run.folder / name, weights_only=True)


# ---------------------------------------------------------------- batches and input


def test_batches_hold_each_index_once(data):
    plain = session.batches(data.train, 8)
    assert [len(b) for b in plain] == [8, 8, 5] and np.array_equal(np.concatenate(plain), np.arange(21))
    mixed = np.concatenate(session.batches(data.train, 8, np.random.default_rng(0)))
    assert sorted(mixed) == list(range(21)) and list(mixed) != list(range(21))


def test_mirrored_rows_are_mirrored_in_their_batch(data):
    before = data.train.pixels.copy()
    batch = data.train.take(np.array([1, 3, 2, 6]))
    pixels = data.train.pixels
    for image, wanted in zip(batch, [pixels[1], pixels[3][:, ::-1], pixels[2], pixels[6][:, ::-1]], strict=True):
        assert np.array_equal(image, wanted)
    assert np.array_equal(pixels, before), "the pixels themselves were changed"


def test_input_is_normalised_channel_by_channel(data):
    model, pixels = linear(), data.train.take(np.arange(4))
    images = session.to_input(pixels, model, "cpu")
    wanted = (pixels / 255 - model.input_mean) / model.input_std
    assert images.shape == (4, 3, 8, 8) and images.dtype == torch.float32
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert np.allclose(images.permute(0, 2, 3, 1), wanted, atol=1e-5)


# ---------------------------------------------------------------- memory, and the order of things in it


KEPT = """
import ctypes, os, sys
from contextlib import contextmanager

def layer():
    b"x" * 2**27

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**27

before = resident()
with memory_kept():
    layer()
    print(resident() - before)
print(resident() - before)
layer()
print(resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another library hands out the memory")
def test_freed_memory_is_kept_for_the_next_layer_and_handed_back_at_the_end():
    """In a process of its own: here a test that ran out of memory may have changed where memory comes from."""
    script = KEPT.replace("def layer", inspect.getsource(memory.memory_kept) + "\ndef layer")
    command = [sys.executable, "-c", script]
    found = subprocess.run(command, env={}, capture_output=True, text=True, check=True).stdout.split()
    inside, after, again = map(float, found)
    assert inside > 0.9 and after < 0.1 and again < 0.1


@pytest.mark.parametrize("system", ["linux", "darwin", "win32"])
def test_where_another_library_hands_out_memory_nothing_changes(system, monkeypatch):
    monkeypatch.setattr(memory.sys, "platform", system)
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: {"linux": SimpleNamespace()}[system])
    with pytest.raises(ZeroDivisionError), memory.memory_kept():
        1 / 0  # noqa: B018


@pytest.mark.parametrize("use", ["fit", "predict", "estimate_time"])
def test_memory_is_kept_while_a_network_works_and_handed_back_whatever_happens(use, data, monkeypatch):
    said = []
    glibc = SimpleNamespace(mallopt=lambda *option: said.append(option), malloc_trim=lambda pad: said.append("back"))
    monkeypatch.setattr(memory.sys, "platform", "linux")
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: glibc)
    model = linear()
    model.register_forward_hook(lambda *_: said.append("works") or 1 / 0)
    arguments = {"fit": (data, "kept", 1, 1e-3, 8), "predict": (data.val,), "estimate_time": (data, 1, 8)}
    with pytest.raises(ZeroDivisionError):
        getattr(training, use)(model, *arguments[use])
    assert (said[0], said[2], said[-1]) == ((-4, 0), "works", "back")


@pytest.fixture
def first(monkeypatch):
    """Whether BatchNorm got the channels first, each time."""
    came, batch_norm = [], F.batch_norm

    def watched(images, *rest):
        came.append(images.is_contiguous())
        output = batch_norm(images, *rest)
        if output.requires_grad:
            output.grad_fn.register_prehook(lambda gradients: came.append(gradients[0].is_contiguous()))
        return output

    monkeypatch.setattr(F, "batch_norm", watched)
    return came


@pytest.mark.parametrize(("channels", "few"), [(8, True), (16, False), (24, True), (40, False)])
def test_few_channels_go_first_through_batchnorm_and_the_numbers_stay(channels, few, first):
    found = {}
    images = torch.randn(6, channels, 5, 5, generator=torch.Generator().manual_seed(0))
    images = images.contiguous(memory_format=torch.channels_last).requires_grad_()
    factors = torch.randn_like(images)  # as they lie in memory
    for device in ("cuda", "cpu"):  # the first without hooks
        layer = nn.BatchNorm2d(channels)
        hooks = memory.channels_first_for_few(nn.Sequential(layer), torch.device(device))
        output = layer(images)
        gradients = torch.autograd.grad((output * factors).sum(), [images, *layer.parameters()])
        assert all(t.is_contiguous(memory_format=torch.channels_last) for t in (output, gradients[0]))
        found[device] = [output, *gradients, layer.running_mean, layer.running_var]
    assert first == [False, False, few, few] and len(hooks) == 2 * few
    for with_hooks, without in zip(found["cpu"], found["cuda"], strict=True):
        assert torch.allclose(with_hooks, without, atol=1e-5)


def test_a_layer_behind_few_channels_may_work_in_place():
    """Of 1 x 1 pixels both orders are one: nothing had to be copied."""
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
    memory.channels_first_for_few(model, torch.device("cpu"))
    model(torch.randn(4, 3, 1, 1)).sum().backward()
    assert model[0].weight.grad.isfinite().all()
    assert model[1](input=torch.randn(4, 8, 2, 2)).shape == (4, 8, 2, 2)  # given by its name it stays as it lies


def test_fit_leaves_no_hook_behind(data, first):
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(512, 3))
    model.input_mean = model.input_std = [0.5] * 3
    run = xu.fit(model, data, "few", epochs=1, batch_size=8)
    assert len(first) > 1 and all(first[1:])  # of the first the logits are counted, before the hooks are there
    xu.predict(run.model, data.test)
    assert not first[-1] and not run.model[1]._forward_hooks and not run.model[1]._forward_pre_hooks


# ---------------------------------------------------------------- augmentation


def blob(n, x, y, size=65):
    """A smooth spot at (x, y) in -1..1 on [n, 3, size, size], and the coordinates of the pixels."""
    axis = torch.linspace(-1 + 1 / size, 1 - 1 / size, size)
    spot = torch.exp(-((axis[None, :] - x) ** 2 + (axis[:, None] - y) ** 2) / (2 * 0.06**2))
    return spot.expand(n, 3, size, size).clone(), axis


def centres(images, axis):
    weight = images[:, 0] - images[:, 0].amin(dim=(1, 2), keepdim=True)
    total = weight.sum(dim=(1, 2))
    return torch.stack([(weight.sum(1) * axis).sum(1) / total, (weight.sum(2) * axis).sum(1) / total], 1)


@pytest.mark.parametrize("augment", augment_module.AUGMENTATIONS.values(), ids=augment_module.AUGMENTATIONS)
def test_augmentation_repeats_with_its_generator(augment):
    images = torch.rand(5, 3, 16, 12, generator=torch.Generator().manual_seed(0))
    kept = images.clone()
    torch.manual_seed(1)
    one = augment(images, torch.Generator().manual_seed(3))
    torch.manual_seed(2)
    state = torch.random.get_rng_state()
    two = augment(images, torch.Generator().manual_seed(3))
    assert torch.equal(one, two) and one.shape == images.shape and one.dtype == images.dtype
    assert torch.equal(images, kept) and torch.equal(state, torch.random.get_rng_state())
    generator = torch.Generator().manual_seed(3)
    assert torch.equal(augment(images, generator), one)
    assert not torch.equal(augment(images, generator), one), "each batch is to differ"
    assert not torch.equal(one[0], one[1])


def test_augmentation_changes_brightness_and_contrast_mildly():
    flat = torch.ones(1000, 3, 8, 8)
    level = {
        c: augment_module.augment_mild(c * flat, torch.Generator().manual_seed(0)).mean(dim=(1, 2, 3)) for c in (0, 1)
    }
    for change in (level[0], level[1] - level[0] - 1):  # brightness, contrast: uniform in -0.1..0.1
        assert abs(change.mean()) < 4 * 0.1 / math.sqrt(3 * 1000)
        assert 0.095 < change.abs().max() <= 0.1 + 1e-6
        assert change.std() == pytest.approx(0.1 / math.sqrt(3), rel=0.1)


def test_augmentation_moves_and_turns_mildly_and_mirrors_half():
    middle, axis = blob(400, 0, 0)
    above, _ = blob(400, 0, -0.5)
    right, _ = blob(400, 0.5, 0)
    c, a, r = (
        centres(augment_module.augment_mild(i, torch.Generator().manual_seed(5)), axis) for i in (middle, above, right)
    )
    shift, turn10 = c / 2, math.radians(10)  # from half image widths to image widths
    assert (
        shift.abs().max() < 0.05 * 1.1 * (math.cos(turn10) + math.sin(turn10))
        and (shift.mean(0).abs() < 4 * 0.03 / math.sqrt(400)).all()
    )
    assert (shift.abs().amax(0) > 0.04).all(), "no shift to speak of"
    up, side = a - c, r - c
    turn = torch.rad2deg(torch.atan2(up[:, 0], -up[:, 1]))
    assert 9 < turn.abs().max() < 10.5 and abs(turn.mean()) < 4 * 5.8 / math.sqrt(400)
    zoom = up.norm(dim=1) / 0.5
    assert 1 / 1.12 < zoom.min() < 0.93 and 1.08 < zoom.max() < 1.13
    mirrored = (side[:, 0] < 0).sum().item()
    assert abs(mirrored - 200) < 4 * math.sqrt(400) / 2


def strong(images, seed=0):
    return augment_module.augment_strong(images, torch.Generator().manual_seed(seed))


def test_strong_augmentation_varies_tone_contrast_and_sharpness_but_not_the_normalisation():
    ramp = torch.linspace(0, 1, 32).expand(300, 3, 32, 32)
    seen = strong(ramp)
    assert seen.isfinite().all() and seen.min() > -1.5 and seen.max() < 2.5
    assert seen.mean(dim=(1, 2, 3)).std() > 0.1 and seen.std(dim=(1, 2, 3)).std() > 0.05
    for low, high in ((-1, 1), (-2.1, 2.6)):  # the same images, whatever the network expects of its pixels
        other = strong(ramp * (high - low) + low)
        assert torch.allclose((other - low) / (high - low), seen, atol=1e-4)
    noise = torch.rand(300, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    rough = (strong(noise)[..., 1:] - strong(noise)[..., :-1]).abs().mean(dim=(1, 2, 3))
    assert rough.quantile(0.9) > 2 * rough.quantile(0.1), "some are blurred, some sharpened"


def test_strong_augmentation_moves_further_than_the_mild_one_and_mirrors_half():
    moved = {}
    for name, augment in augment_module.AUGMENTATIONS.items():
        above, right = (augment(blob(400, *at)[0], torch.Generator().manual_seed(5)) for at in ((0, -0.5), (0.5, 0)))
        ups, sides = ([int(one[0].argmax()) for one in images] for images in (above, right))
        rows, columns = np.array(ups) // 65, np.array(sides) % 65
        moved[name] = rows.std()
        assert abs((columns < 32).sum() - 200) < 60, name
    assert moved["strong"] > 1.5 * moved["mild"]


def test_strong_augmentation_fills_and_marks_with_a_single_tone():
    black = torch.zeros(200, 3, 48, 48)
    black[:, :, 24, 24] = 1.0  # so that there is a range of grey
    seen = strong(black)
    flat = (seen[:, :, 1:-1, 1:-1] - seen[:, :, 1:-1, :-2]).abs().amax(dim=1) == 0  # no noise: a marker
    marked = flat.flatten(1).sum(dim=1) > 4
    assert 60 < marked.sum() < 140, "about half of the images get one"


def test_training_uses_augmentation_when_asked(data):
    mild, wanted = fit(linear(), data, "named", augment="mild"), fit(linear(), data, "true", augment=True)
    assert same_weights(mild.model, wanted.model)
    assert not same_weights(mild.model, fit(linear(), data, "strong", augment="strong").model)
    plain, augmented = fit(linear(), data, "plain"), fit(linear(), data, "augmented", augment=True)
    assert not same_weights(plain.model, augmented.model)
    kept = fit(linear(), data, "still", epochs=1, lr=1e-12, augment=True)
    assert kept.history.val_loss[0] == pytest.approx(loss_by_hand(linear(), data.val), rel=ROUNDING), (
        "val is not to change"
    )


# ---------------------------------------------------------------- precision


def test_precision_as_asked_or_named():
    assert [device_module.choose_precision(p) for p in ("fp32", "bf16", "fp16")] == ["fp32", "bf16", "fp16"]
    with pytest.raises(ValueError, match="precision: 'fp8' is unknown. Allowed: 'auto', 'fp32', 'bf16', 'fp16'"):
        device_module.choose_precision("fp8")


@pytest.mark.parametrize(("native", "wanted"), [(True, "bf16"), (False, "fp32")])
def test_automatic_precision_on_a_processor(native, wanted, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(device_module, "bf16_is_faster", lambda: native)
    assert device_module.choose_precision() == wanted


@pytest.mark.parametrize(("milliseconds", "wanted"), [(0.5, True), (0.9, False), (2.0, False)])
def test_bf16_is_taken_where_it_is_measured_to_be_faster(milliseconds, wanted, monkeypatch):
    def repeat(multiply, **_):  # fp32 takes a millisecond
        return [(milliseconds if multiply().dtype == torch.bfloat16 else 1.0) / 1000]

    monkeypatch.setattr(device_module.timeit, "repeat", repeat)
    assert device_module.bf16_is_faster.__wrapped__() is wanted


@pytest.mark.skipif(os.name == "nt", reason="CPU time has steps of 16 ms on Windows")
def test_other_programs_on_the_cores_do_not_choose_the_precision(monkeypatch):
    """fp32 has to wait for a core, bf16 computes: the waiting does not count."""

    def multiply(matrix, _):
        if matrix.dtype == torch.float32:
            return time.sleep(0.02)
        end = time.process_time() + 0.003
        while time.process_time() < end:
            pass

    monkeypatch.setattr(torch.Tensor, "__matmul__", multiply)
    assert device_module.bf16_is_faster.__wrapped__() is False


@pytest.mark.parametrize(("capability", "wanted"), [((7, 5), "fp16"), ((8, 0), "bf16"), ((9, 0), "bf16")])
def test_automatic_precision_on_a_gpu(capability, wanted, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    assert device_module.choose_precision() == wanted


def test_a_precision_that_this_device_lacks_is_named(data):
    with pytest.raises(ValueError, match="precision: 'fp16' is not possible without a GPU"):
        fit(linear(), data, precision="fp16")
    assert not xu.outputs_dir("runs", "run").exists()


def test_bf16_is_close_to_fp32_and_leaves_a_plain_network(data):
    full, mixed = fit(linear(), data, "full"), fit(linear(), data, "mixed", precision="bf16")
    assert np.allclose(mixed.history.val_loss, full.history.val_loss, rtol=0.05)
    assert not same_history(full.history, mixed.history), "nothing was done in bf16"
    assert all(p.dtype == torch.float32 for p in mixed.model.parameters())
    assert loss_by_hand(mixed.model, data.val) == pytest.approx(
        loss_by_hand(models_with(mixed.folder / "best.safetensors"), data.val), rel=ROUNDING
    )


def models_with(file):
    model = linear()
    model.load_state_dict(load_file(file))
    return model


# ---------------------------------------------------------------- history: every image once


def test_history_has_a_row_an_epoch(data):
    run = fit(linear(), data)
    columns = ["epoch", "lr", "train_loss", "train_accuracy", "val_loss", "val_accuracy", *CLOCK]
    assert list(run.history.columns) == columns and run.history.epoch.to_list() == [1, 2, 3]
    assert np.allclose(run.history.images_per_second * run.history.seconds, 21)
    assert list(pd.read_csv(run.folder / "history.csv").columns) == columns
    assert {f.name for f in run.folder.iterdir()} == {
        *("config.json", "history.csv", "last.pt", "best.safetensors", "finished.json")
    }


@pytest.mark.parametrize("batch_size", [8, 20, 21])
def test_train_loss_and_accuracy_are_per_image(batch_size, data):
    run = fit(linear(), data, epochs=1, lr=1e-12, batch_size=batch_size)  # the weights stay as they are
    logits, labels = logits_by_hand(linear(), data.train), labels_of(data.train)
    assert run.history.train_loss[0] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=ROUNDING)
    assert run.history.train_accuracy[0] == pytest.approx((logits.argmax(1) == labels).double().mean().item(), abs=1e-7)


@pytest.mark.parametrize("make", [linear, xu.baseline_cnn])
def test_validation_is_per_image_with_the_weights_of_the_epoch(make, data, monkeypatch):
    after, save = [], runs._save

    def remember(folder, *others):
        save(folder, *others)
        after.append(torch.load(folder / "last.pt", weights_only=True)["model"])

    monkeypatch.setattr(session, "_save", remember)
    run = fit(make(), data, batch_size=7, lr=0.01)  # 10 validation images: batches of 7 and 3
    assert len(after) == 3
    for row, state in zip(run.history.itertuples(), after, strict=True):
        model = make()
        model.load_state_dict(state)
        assert row.val_loss == pytest.approx(loss_by_hand(model, data.val), rel=1e-5)
        right = logits_by_hand(model, data.val).argmax(1) == labels_of(data.val)
        assert row.val_accuracy == pytest.approx(right.double().mean().item(), abs=1e-7)


def test_the_weights_best_on_validation_are_returned(data):
    six = make_data(train=(2, 2, 2))  # soon overfitted
    run = fit(linear(), six, batch_size=6, epochs=40, lr=0.01, schedule="constant")
    best = run.history.val_loss.idxmin()
    assert 0 < best < 39, "the best epoch is to lie in between, or the test proves nothing"
    assert run.best_epoch == best + 1
    assert loss_by_hand(run.model, data.val) == pytest.approx(run.history.val_loss[best], rel=1e-5)
    table = xu.predict(run.model, data.val)
    chosen = table[[f"p_{name}" for name in xu.CLASSES]].to_numpy()[np.arange(10), labels_of(data.val)]
    assert -np.log(chosen).mean() == pytest.approx(run.history.val_loss.min(), rel=1e-5)
    assert not same_weights(run.model, checkpoint(run)["model"])
    assert not run.model.training


def test_the_network_of_the_caller_stays_as_it_was(data):
    model = linear()
    run = fit(model, data)
    assert same_weights(model, linear()) and not same_weights(run.model, model)


# ---------------------------------------------------------------- the same again


@pytest.mark.parametrize("make", [xu.baseline_cnn, forgetful])
@pytest.mark.parametrize("options", [{}, {"augment": True, "schedule": "cosine", "class_weights": True}])
def test_the_same_seed_gives_the_same_history(make, options, data):
    torch.manual_seed(1)
    one = fit(make(), data, "one", **options)
    torch.manual_seed(2)
    two = fit(make(), data, "two", **options)
    assert same_history(one.history, two.history) and same_weights(one.model, two.model)
    other = fit(make(), data, "other", seed=1, **options)
    assert not same_history(one.history, other.history)


class PowerCut(Exception):
    pass


def fail_at(monkeypatch, call, error, function="logits_of"):
    """Let the `call`-th call of a function of the loop raise `error`; later calls work again."""
    original, count = getattr(training, function), itertools.count(1)

    def sometimes(*args):
        if next(count) == call:
            raise error
        return original(*args)

    monkeypatch.setattr(training, function, sometimes)


RESUMED = {
    "plateau": (blind, dict(lr=0.1, epochs=7)),  # no gain: the rate is to fall after epoch 5
    "cosine": (linear, dict(lr=0.01, schedule="cosine", warmup=0.3, epochs=5)),
    "augmented": (xu.baseline_cnn, dict(lr=0.01, augment=True, optimizer="adamw", weight_decay=0.1, epochs=5)),
    "dropout": (forgetful, dict(lr=0.01, epochs=5)),
    "early stopping": (linear, dict(lr=1e-12, early_stopping=4, epochs=9)),
}


@pytest.mark.parametrize("error", [PowerCut, KeyboardInterrupt])
@pytest.mark.parametrize("call", [7, 18], ids=["in epoch 2", "in epoch 4"])  # an epoch: 3 training and 2 val batches
@pytest.mark.parametrize("case", RESUMED)
def test_a_killed_run_goes_on_to_the_same_end(case, call, error, data, monkeypatch, capsys):
    make, options = RESUMED[case]
    whole = fit(make(), data, "whole", **options)
    model = make()
    with monkeypatch.context() as patch:
        fail_at(patch, call, error)
        with pytest.raises(error):
            fit(model, data, "killed", **options)
    if error is KeyboardInterrupt:  # stopped by hand: the history so far is at hand
        assert "interrupted in epoch" in capsys.readouterr().out
        assert len(xu.load_run("killed", make()).history) == call // 5
    assert not xu.outputs_dir("runs", "killed", "finished.json").exists()
    resumed = fit(model, data, "killed", **options)  # the same call, as when the same cell is run again
    assert f"resumed after epoch {call // 5}" in capsys.readouterr().out
    assert resumed.folder.name == "killed"
    assert same_history(whole.history, resumed.history) and same_weights(whole.model, resumed.model)
    one, two = checkpoint(whole), checkpoint(resumed)
    assert same_weights(one["model"], two["model"]) and one["plateau"] == two["plateau"]
    assert str(one["optimizer"]) == str(two["optimizer"])


@pytest.mark.parametrize("file", ["history.csv", "best.safetensors", "last.pt", "finished.json"])
@pytest.mark.parametrize("epoch", [1, 3])
def test_a_kill_before_any_file_is_written_is_mended(file, epoch, data, monkeypatch):
    whole, write = fit(linear(), data, "whole", lr=0.01), session.whole_file
    seen = itertools.count(1)

    def cut(path):
        if path.name == file and next(seen) == (1 if file == "finished.json" else epoch):
            raise PowerCut
        return write(path)

    with monkeypatch.context() as patch:
        for module in (session, runs):
            patch.setattr(module, "whole_file", cut)
        with pytest.raises(PowerCut):
            fit(linear(), data, "killed", lr=0.01)
    resumed = fit(linear(), data, "killed", lr=0.01)
    assert same_history(whole.history, resumed.history) and same_weights(whole.model, resumed.model)
    assert (resumed.folder / "finished.json").is_file()


@pytest.mark.parametrize("call", [2, 5])
def test_interrupted_in_the_first_epoch_there_is_no_run(call, data, monkeypatch):
    fail_at(monkeypatch, call, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        fit(linear(), data)
    with pytest.raises(FileNotFoundError, match="run: 'run' has no history.csv"):
        xu.load_run("run")


def test_a_finished_run_is_loaded_not_repeated(data, monkeypatch, capsys):
    model = linear()
    first = fit(model, data)
    capsys.readouterr()
    monkeypatch.setattr(training, "logits_of", None)  # a training step would fail
    again = fit(model, data)
    assert capsys.readouterr().out == "run: this run is complete and is loaded, not repeated.\n"
    assert first.history.equals(again.history) and same_weights(first.model, again.model)
    assert again.folder == first.folder == xu.outputs_dir("runs", "run")


CHANGES = {
    "lr": (lambda: (linear(), make_data(), {"lr": 0.002}), "lr 0.001 -> 0.002"),
    "augment": (lambda: (linear(), make_data(), {"augment": True}), "augment False -> True"),
    "data": (lambda: (linear(), make_data(seed=1), {}), "data"),
    "weights": (lambda: (linear(seed=1), make_data(), {}), "initial_weights"),
    "network": (
        lambda: (xu.baseline_cnn(), make_data(), {}),
        "network, input_mean, input_std, parameters, trained_parameters, initial_weights",
    ),
    "statistics": (lambda: (with_other_mean(), make_data(), {}), "input_mean"),
}


def with_other_mean():
    model = linear()
    model.input_mean = [0.5] * 3
    return model


@pytest.mark.parametrize("what", CHANGES)
def test_a_changed_run_gets_a_new_folder(what, capsys):
    first = fit(linear(), make_data())
    before = {file.name: file.read_bytes() for file in first.folder.iterdir()}
    change, said = CHANGES[what]
    model, data, options = change()
    capsys.readouterr()
    second = fit(model, data, **options)
    assert second.folder == xu.outputs_dir("runs", "run-2") and second.name == "run-2"
    assert f"run: another run ({said}); it is kept.\n" in capsys.readouterr().out
    assert {file.name: file.read_bytes() for file in first.folder.iterdir()} == before
    assert fit(model, data, **options).folder == second.folder, "the third call is the second again"
    assert fit(linear(), make_data()).folder == first.folder


def test_one_changed_pixel_is_other_data(data):
    fit(linear(), data)
    data.test.pixels[0, 0, 0, 0] ^= 1
    assert fit(linear(), data).folder.name == "run-2"


LONGER = {
    **{name: case for name, case in RESUMED.items() if name != "cosine"},
    "constant": (xu.baseline_cnn, dict(lr=0.05, schedule="constant", epochs=6)),
    "best before the break": (linear, dict(lr=0.3, epochs=5)),
    "stopped before the break": (linear, dict(lr=1e-12, early_stopping=1, epochs=9)),
}


@pytest.mark.parametrize("killed", ["", "epoch", "best.safetensors", "last.pt"])
@pytest.mark.parametrize("case", LONGER)
def test_more_epochs_continue_the_shorter_run_to_the_end_of_one_long_run(case, killed, data, monkeypatch, capsys):
    make, options = LONGER[case]
    whole = fit(make(), data, "whole", **options)
    for epochs in (2, 3, 1):
        fit(make(), data, "run", **options | {"epochs": epochs})
    before = {file: file.read_bytes() for file in xu.outputs_dir("runs").glob("run*/*")}
    capsys.readouterr()
    if killed and case != "stopped before the break":
        with monkeypatch.context() as patch:
            if killed == "epoch":
                fail_at(patch, 2, PowerCut)
            else:
                patch.setattr(runs, "whole_file", lambda path: 1 / 0 if path.name == killed else files.whole_file(path))
            with pytest.raises((PowerCut, ZeroDivisionError)):
                fit(make(), data, "run", **options)
    resumed = fit(make(), data, "run", **options)
    said = capsys.readouterr().out
    assert "run-4: continues run-2, which keeps its own results.\n" in said
    assert f"resumed after epoch {min(3, len(whole.history))}\n" in said
    assert resumed.folder.name == "run-4" and all(file.read_bytes() == content for file, content in before.items())
    assert same_history(whole.history, resumed.history) and same_weights(whole.model, resumed.model)
    one, two = checkpoint(whole), checkpoint(resumed)
    assert same_weights(one["model"], two["model"]) and one["plateau"] == two["plateau"]
    assert str(one["optimizer"]) == str(two["optimizer"])


NOT_CONTINUED = {
    "cosine": (dict(schedule="cosine"), dict(schedule="cosine", epochs=5), "no rate that is independent of epochs"),
    "warmup": (dict(schedule="constant", warmup=0.1), dict(schedule="constant", warmup=0.1, epochs=5), "no rate that"),
    "fewer epochs": ({}, dict(epochs=2), ""),
    "another rate": ({}, dict(epochs=5, lr=0.01), ""),
}


@pytest.mark.parametrize("case", NOT_CONTINUED)
def test_a_run_that_cannot_be_continued_starts_at_epoch_1_and_says_why(case, data, capsys):
    first, second, why = NOT_CONTINUED[case]
    whole = fit(linear(), data, "whole", **second)
    fit(linear(), data, **first)
    capsys.readouterr()
    run, said = fit(linear(), data, **second), capsys.readouterr().out
    assert run.folder.name == "run-2" and "continues" not in said and "resumed" not in said
    assert why in said and ("starts at epoch 1" in said) is bool(why)
    assert same_history(whole.history, run.history)


def test_a_shorter_run_without_its_checkpoint_is_not_continued(data, capsys):
    (fit(linear(), data).folder / "last.pt").unlink()
    fit(linear(), data, epochs=4)
    said = capsys.readouterr().out
    assert "run: it has no last.pt, so the longer run starts at epoch 1.\n" in said and "continues" not in said


# ---------------------------------------------------------------- rates, weights, stopping


def test_plateau_lowers_the_rate_after_three_epochs_without_gain(data):
    run = fit(blind(), data, lr=0.1, epochs=10)
    assert np.allclose(run.history.lr, 0.1 * np.array([1] * 5 + [0.3] * 4 + [0.09]))


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_rate_at_every_step(schedule):
    rates = [session.rate(step, 100, lr=0.5, schedule=schedule, warmup=0.2) for step in range(100)]
    assert np.allclose(rates[:20], 0.5 * np.arange(1, 21) / 20)  # a straight line up, the full rate after 20 steps
    after = 0.5 * (1 + np.cos(np.pi * np.arange(80) / 80)) / 2 if schedule == "cosine" else np.full(80, 0.5)
    assert np.allclose(rates[20:], after)
    assert session.rate(0, 100, lr=0.5, schedule=schedule, warmup=0.0) == 0.5


@pytest.mark.parametrize(("schedule", "wanted"), [("constant", [0.1] * 4), ("cosine", None)])
def test_history_holds_the_rate_of_the_last_step(schedule, wanted, data):
    run = fit(linear(), data, lr=0.1, epochs=4, schedule=schedule)  # 3 steps an epoch
    wanted = wanted or [0.05 * (1 + math.cos(math.pi * step / 12)) for step in (2, 5, 8, 11)]
    assert np.allclose(run.history.lr, wanted)


def test_warm_up_slows_the_first_steps(data):
    def moved(name, **options):
        run = fit(linear(), data, name, lr=1e-3, epochs=1, schedule="constant", **options)
        return (run.model[1].weight - linear()[1].weight).abs().max().item()

    # Adam moves a weight by about its rate a step: 3 steps of 1e-3, or 1/3 of that rate for the first, and so on
    assert moved("cold") == pytest.approx(3e-3, rel=0.1)
    assert moved("warm", warmup=0.99) == pytest.approx((1 + 2 + 3) / 2.97 * 1e-3, rel=0.1)


def test_early_stopping_stops(data):
    run = fit(linear(), data, lr=1e-12, epochs=10, early_stopping=2)
    assert len(run.history) == 3 and run.best_epoch == 1
    assert json.loads((run.folder / "finished.json").read_text()) == {"epochs": 3}
    patient = fit(linear(), data, "gains", lr=1e-3, epochs=6, early_stopping=2)
    assert patient.history.val_loss.is_monotonic_decreasing and len(patient.history) == 6


def test_class_weights_are_inverse_frequencies(data):
    weights = session.class_weights(data.train)
    assert weights.tolist() == pytest.approx([21 / (3 * n) for n in LABELS["train"]])
    assert (weights * torch.tensor(LABELS["train"])).sum() == pytest.approx(21)  # of mean 1 over the images


def test_class_weights_change_the_loss_of_training_alone(data):
    options = dict(epochs=1, lr=1e-12, batch_size=21)
    plain, weighted = fit(linear(), data, "plain", **options), fit(linear(), data, "w", class_weights=True, **options)
    logits, weights = logits_by_hand(linear(), data.train), torch.tensor([21 / 27, 21 / 21, 21 / 15])
    wanted = F.cross_entropy(logits, labels_of(data.train), weights).item()
    assert weighted.history.train_loss[0] == pytest.approx(wanted, rel=ROUNDING)
    assert abs(wanted - plain.history.train_loss[0]) > 1e-3
    assert weighted.history.val_loss[0] == plain.history.val_loss[0]


# ---------------------------------------------------------------- faults


@pytest.mark.parametrize(("call", "place"), [(7, "epoch 2, batch 2"), (9, "validation loss is nan after epoch 2")])
def test_a_loss_that_is_no_number_stops_and_keeps_the_checkpoint(call, place, data, monkeypatch):
    whole, seen, count, model = fit(linear(), data, "whole"), [], itertools.count(1), linear()
    plain = training.logits_of

    def broken(network, images):
        seen.append(network)
        return plain(network, images) * (math.nan if next(count) == call else 1)

    with monkeypatch.context() as patch:
        patch.setattr(training, "logits_of", broken)
        with pytest.raises(FloatingPointError, match=f"{place}.*checkpoint of.*epoch 1 .*is kept.*lower lr than 0.001"):
            fit(model, data)
    folder = xu.outputs_dir("runs", "run")
    assert [row["epoch"] for row in torch.load(folder / "last.pt", weights_only=True)["history"]] == [1]
    assert not (folder / "finished.json").exists()
    assert same_weights(model, linear())
    assert same_history(fit(model, data).history, whole.history)


def test_a_rate_much_too_high_is_caught_by_itself(data):
    with pytest.raises(FloatingPointError, match="run: the (validation )?loss is (nan|inf)"):
        fit(linear(), data, lr=1e36)


def test_after_an_error_no_network_is_left_wrapped(data, monkeypatch):
    seen, plain = [], training.logits_of

    def broken(network, images):
        seen.append(network)
        return plain(network, images) * math.nan

    model = linear()
    monkeypatch.setattr(training, "logits_of", broken)
    with pytest.raises(FloatingPointError):
        fit(model, data, precision="bf16")
    images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for network in (model, seen[0]):
            wanted = F.linear(images.flatten(1), network[1].weight, network[1].bias)
            assert torch.equal(network(images), wanted), "the network still computes in bf16"


def test_too_little_memory_says_which_batch_size_to_try(data, monkeypatch):
    fail_at(monkeypatch, 1, torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(RuntimeError, match="batch_size: 8 is too large .* try 4"):
        fit(linear(), data)
    fail_at(monkeypatch, 1, torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(RuntimeError, match="batch_size: 1 is too large .*smaller images or a smaller network"):
        fit(linear(), data, batch_size=1)
    fail_at(monkeypatch, 1, RuntimeError("something else"))
    with pytest.raises(RuntimeError, match="^something else$"):
        fit(linear(), data)


class Greedy(nn.Module):
    """Asks for 4 PB as soon as it gets an image."""

    def __init__(self):
        super().__init__()
        self.input_mean, self.input_std = [0.5] * 3, [0.5] * 3
        self.layer, self.spec = nn.Linear(3, 3), {"network": "vit"}
        self.config = SimpleNamespace(model_type="vit", _attn_implementation="sdpa")

    def forward(self, pixel_values, **_):
        return self.layer(pixel_values.flatten(1)[:, :3]) + torch.empty(10**15)


@pytest.mark.parametrize(
    ("name", "use"),
    {
        "fit": lambda model, data: fit(model, data),
        "estimate_time": lambda model, data: xu.estimate_time(model, data, 1, batch_size=8),
        "predict": lambda model, data: xu.predict(model, data.train, batch_size=8),
        "features": lambda model, data: xu.features(model, data.train, batch_size=8),
        "grad_cam": lambda model, data: xu.grad_cam(model, data.train, layer="layer", batch_size=8),
        "attention_rollout": lambda model, data: xu.attention_rollout(model, data.train, batch_size=8),
        "saliency_maps": lambda model, data: xu.saliency_maps(model, data.train, batch_size=8),
        "sanity_check": lambda model, data: xu.sanity_check(model, data.train, batch_size=8),
    }.items(),
)
def test_too_little_memory_on_a_cpu_says_which_batch_to_try(name, use, data, monkeypatch):
    monkeypatch.setattr(saliency, "randomised", lambda model, seed: model)
    model = Greedy().train()
    with pytest.raises(RuntimeError, match="^batch_size: 8 is too large .* try 4.$"):
        use(model, data)
    assert model.training and model.config._attn_implementation == "sdpa" and not model.layer._forward_hooks


def test_too_little_memory_for_few_images_speaks_of_those(data):
    with pytest.raises(
        RuntimeError, match=f"^batch_size: {len(data.test)} is too large .* try {len(data.test) // 2}.$"
    ):
        xu.predict(Greedy(), data.test)


def test_pixels_that_are_no_numbers_stop_at_their_batch(data):
    with_nan = make_data()
    with_nan.train.pixels = with_nan.train.pixels.astype(np.float32)
    with_nan.train.pixels[11, 3, 4, 1] = math.nan
    order = np.random.default_rng([0, 1]).permutation(21)  # of seed 0, epoch 1
    batch = int(np.flatnonzero(order == 11)[0]) // 8 + 1
    with pytest.raises(FloatingPointError, match=f"loss is nan in epoch 1, batch {batch}.*pixels of '0-11.png' are no"):
        fit(linear(), with_nan)
    assert [file.name for file in xu.outputs_dir("runs", "run").iterdir()] == ["config.json"]


@pytest.mark.parametrize("classes", [2, 5])
def test_a_network_of_another_number_of_classes_is_refused(classes, data):
    with pytest.raises(ValueError, match=f"model: num_classes {classes} must be 3, for covid, normal, virus"):
        fit(xu.baseline_cnn(num_classes=classes), data)
    assert not xu.outputs_dir("runs").exists()
    with pytest.raises(ValueError, match=f"model: it has {classes} classes; needed: 3"):
        xu.predict(xu.baseline_cnn(num_classes=classes), data.test)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        *[("epochs", value) for value in (0, -1, 2.5, "3")],
        *[("batch_size", value) for value in (0, -8, 8.0, None)],
        *[("batch_size", 22)],
        *[("lr", value) for value in (0, -0.1, math.nan, math.inf, "0.1", None)],
        *[("seed", value) for value in (-1, 1.5, "0", 5_000_000)],
        *[("weight_decay", value) for value in (-0.1, math.nan, math.inf, None)],
        *[("early_stopping", value) for value in (0, -2)],
        *[("warmup", value) for value in (-0.1, 1, 2, math.nan)],
        *[("optimizer", value) for value in ("sgd", "Adam", None)],
        *[("schedule", value) for value in ("linear", None)],
        *[("precision", value) for value in ("fp8", "float32")],
        *[("name", value) for value in ("", "a/b", "../up", "/root", ".", "..", ".hidden")],
    ],
)
def test_bad_arguments_are_named(argument, value, data):
    options = {"name": "run", argument: value}
    with pytest.raises(ValueError) as caught:
        fit(linear(), data, **options)
    assert str(caught.value).startswith(f"{argument}: {value!r} ")
    assert not xu.outputs_dir("runs").exists(), "a refused call is to leave nothing behind"


@pytest.mark.parametrize("side", ["train", "val"])
def test_bad_data_is_named(side, data):
    split = getattr(data, side)
    split.rows.loc[2, "label"] = "flu"
    with pytest.raises(ValueError, match=f"data: label 'flu' in {side} is none of the classes covid, normal, virus"):
        fit(linear(), data)
    split.rows = split.rows[:0]
    with pytest.raises(ValueError, match=f"data: {side} is empty"):
        fit(linear(), data)


# ---------------------------------------------------------------- use


@pytest.mark.parametrize("network", ["baseline_cnn", "vit"])
def test_a_run_is_loaded_by_its_name_alone(network, tmp_path):
    data = make_data(size=32, train=(2, 2, 2), val=(1, 1, 1))
    run = fit(tiny_vit(tmp_path) if network == "vit" else xu.baseline_cnn(), data, epochs=1, batch_size=6)
    again = xu.load_run("run")
    assert (again.name, again.folder, again.config) == (run.name, run.folder, run.config)
    assert again.history.equals(run.history) and not again.model.training
    pd.testing.assert_frame_equal(xu.predict(again.model, data.test), xu.predict(run.model, data.test))


def test_a_run_that_is_not_there_is_named(data):
    with pytest.raises(FileNotFoundError, match="run: 'nothing' has no config.json. Train it first"):
        xu.load_run("nothing")


def test_predictions_keep_the_rows(data):
    model = linear()
    table = xu.predict(model, data.test)
    probabilities = [f"p_{name}" for name in xu.CLASSES]
    assert list(table.columns) == ["file", "label", "predicted", *probabilities, "group", "mirrored", "source"]
    for column in ("file", "label", "group", "mirrored", "source"):
        assert table[column].to_list() == data.test.rows[column].to_list()
    assert np.allclose(table[probabilities].sum(axis=1), 1, atol=1e-12)
    assert np.allclose(table[probabilities], logits_by_hand(model, data.test).softmax(1), atol=1e-5)
    assert table.predicted.to_list() == [xu.CLASSES[i] for i in table[probabilities].to_numpy().argmax(1)]
    assert table.predicted.nunique() > 1, "a constant answer would prove nothing"


def test_predictions_without_extra_columns(data):
    data.test.rows = data.test.rows.drop(columns=["group", "source"])
    assert list(xu.predict(linear(), data.test).columns)[-1] == "mirrored"


@pytest.mark.parametrize("training_mode", [True, False])
def test_predictions_do_not_depend_on_batches_or_mode(training_mode, data):
    model = xu.baseline_cnn()
    model(torch.randn(8, 3, 8, 8))  # running statistics unlike those of a batch
    model.train(training_mode)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    tables = [xu.predict(model, data.train, batch_size=n) for n in (1, 8, 64)]
    for table in tables[1:]:
        pd.testing.assert_frame_equal(table, tables[0], check_exact=False, atol=1e-5, rtol=0)
    wanted = logits_by_hand(xu_with(before), data.train).softmax(1)
    model[1].train(not training_mode)  # a layer of its own mode, such as a frozen batch norm
    xu.predict(model, data.train)
    assert model[1].training is not training_mode
    assert np.allclose(tables[0][[f"p_{name}" for name in xu.CLASSES]], wanted, atol=1e-5)
    assert model.training is training_mode and same_weights(model, before)


def xu_with(state):
    model = xu.baseline_cnn()
    model.load_state_dict(state)
    return model


def test_predicting_nothing_or_with_broken_weights_is_refused(data):
    model = linear().train()
    with torch.no_grad():
        model[1].weight.fill_(math.nan)
    with pytest.raises(FloatingPointError, match="model: its outputs are not finite"):
        xu.predict(model, data.test)
    assert model.training
    data.test.rows = data.test.rows[:0]
    with pytest.raises(ValueError, match="split: there are no images in it"):
        xu.predict(linear(), data.test)


# ---------------------------------------------------------------- does it learn, and only what is there?


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    """A function from a table with the columns `split` and `mirrored` to prepared phantoms, kept for the module."""
    folder = tmp_path_factory.mktemp("outputs")

    def prepare(images, size):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("XRAY_OUTPUTS", str(folder))
            return xu.prepare(images, size=size)

    return prepare


@pytest.fixture(scope="module")
def images(phantom_folder):
    return xu.audit_images(xu.find_images(phantom_folder))


@pytest.mark.parametrize("network", ["baseline_cnn", "resnet18", "vit"])
def test_each_network_can_overfit_ten_phantoms(network, images, phantoms, tmp_path):
    wanted = {"covid": 4, "normal": 3, "virus": 3}
    ten = pd.concat([images[images.label.eq(name)].drop_duplicates("group")[:n] for name, n in wanted.items()])
    ten = ten.assign(mirrored=False)
    repeats = 20 if network == "resnet18" else 32  # as many steps an epoch
    table = pd.concat([ten.assign(split=side) for side in ["train"] * repeats + ["val", "test"]])
    table.attrs = images.attrs
    data = phantoms(table, 32)
    make, options = {
        "baseline_cnn": (xu.baseline_cnn, dict(lr=0.02, epochs=4)),
        "resnet18": (xu.resnet18, dict(lr=1e-3, epochs=1)),
        "vit": (lambda: tiny_vit(tmp_path), dict(lr=1e-3, epochs=7)),
    }[network]
    model = make()
    run = fit(model, data, batch_size=10, schedule="cosine", **options)
    before, after = xu.predict(model, data.train), xu.predict(run.model, data.train)
    assert after.file.nunique() == 10 and after.label.nunique() == 3
    assert (after.label == after.predicted).mean() == 1 > (before.label == before.predicted).mean()


def accuracy_on_held_out_groups(images, prepare):
    """Three folds of whole groups; each image is answered once, by a network that saw no image of its group."""
    groups, tables = np.random.default_rng(0).permutation(images.group.unique()), []
    for fold in range(3):
        rest = [group for i, group in enumerate(groups) if i % 3 != fold]
        side = {**dict.fromkeys(groups, "test"), **dict.fromkeys(rest, "train"), **dict.fromkeys(rest[::8], "val")}
        rows = images.assign(split=images.group.map(side), mirrored=False)
        train = rows[rows.split.eq("train")]
        rows = pd.concat([rows, train, train] + 3 * [train.assign(mirrored=True)], ignore_index=True)
        rows.attrs = images.attrs
        data = prepare(rows, 16)
        run = fit(xu.baseline_cnn(), data, f"fold {fold}", epochs=6, lr=0.02, batch_size=16, schedule="cosine")
        tables.append(xu.predict(run.model, data.test))
    answers = pd.concat(tables)
    assert sorted(answers.file) == sorted(images.file)
    return (answers.label == answers.predicted).groupby(answers.group).mean().mean()


def test_true_labels_are_learnt_and_shuffled_labels_give_chance(images, phantoms):
    label = images.groupby("group").label.first()
    shuffled = pd.Series(np.random.default_rng(1).permutation(label), label.index)
    # A group is one trial (its images go together): three standard deviations of a mean of 84 trials at 1/3.
    bound = 3 * math.sqrt(1 / 3 * 2 / 3 / len(label))
    assert len(label) == 84 and bound < 0.16
    learnt = accuracy_on_held_out_groups(images, phantoms)
    guessed = accuracy_on_held_out_groups(images.assign(label=images.group.map(shuffled)), phantoms)
    print(f"accuracy on held-out groups: true labels {learnt:.3f}, shuffled {guessed:.3f}")
    assert abs(guessed - 1 / 3) < bound
    assert learnt > 1 / 3 + bound


# ---------------------------------------------------------------- where the pixels lie


def test_images_that_lie_on_the_device_give_the_same_run(data, monkeypatch):
    """On a GPU with room they do; here the room is made up."""
    takes = []
    take = type(data.train).take
    monkeypatch.setattr(
        type(data.train), "take", lambda split, indices: takes.append(len(indices)) or take(split, indices)
    )
    here = xu.fit(linear(), data, "here", epochs=2, batch_size=4, precision="fp32")
    assert len(takes) > 6
    takes.clear()
    monkeypatch.setattr(memory, "room_for_pixels", lambda device: 10**9)
    there = xu.fit(linear(), data, "there", epochs=2, batch_size=4, precision="fp32")
    assert sorted(takes) == sorted([1, len(data.train), len(data.val)]), "each image is brought once, but for a try"
    measured = ["seconds", "images_per_second"]
    assert there.history.drop(columns=measured).equals(here.history.drop(columns=measured))


def test_a_run_of_a_network_of_ones_own_is_loaded_with_it(data):
    class Small(nn.Sequential):
        pass

    own = Small(nn.Flatten(), nn.Linear(3 * 8 * 8, 3))
    own.input_mean, own.input_std = [0.5] * 3, [0.5] * 3
    run = fit(own, data, "own", epochs=1)
    with pytest.raises(ValueError, match="model: 'own' is of a network of your own, Small: pass it"):
        xu.load_run("own")
    first, other = own[1].weight.clone(), Small(nn.Flatten(), nn.Linear(3 * 8 * 8, 3))
    for network in (own, other):
        loaded = xu.load_run("own", network).model
        assert same_weights(loaded, run.model) and loaded.input_mean == [0.5] * 3
    assert torch.equal(own[1].weight, first) and not hasattr(other, "input_mean"), "the network passed was changed"


def test_a_network_whose_layers_share_weights_is_kept_and_exported(data):
    shared = nn.Linear(3 * 8 * 8, 3 * 8 * 8)
    own = nn.Sequential(nn.Flatten(), shared, nn.ReLU(), shared, nn.Linear(3 * 8 * 8, 3))
    own.input_mean, own.input_std = [0.5] * 3, [0.5] * 3
    run = fit(own, data, "own", epochs=1)
    loaded = xu.load_run("own", own).model
    assert same_weights(loaded, run.model) and loaded[1] is loaded[3]
    weights = load_file(xu.export_model(run) / "model.safetensors")
    own.load_state_dict(weights)
    assert same_weights(own, run.model)
    with pytest.raises(ValueError, match="^model: none of its layers gives maps or tokens"):
        xu.saliency_maps(run.model, data.val)


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        (nn.Linear(3 * 8 * 8, 1000), r"\(1, 1000\); needed: logits \[B, 3\], for covid, normal, virus"),
        (nn.Sequential(nn.Linear(3 * 8 * 8, 6), nn.Unflatten(1, (2, 3))), r"\(1, 2, 3\); needed"),
        (nn.LSTM(3 * 8 * 8, 3), r"\('tuple',\); needed"),
        (nn.Linear(5, 3), r"images of 8 x 8 pixels do not pass \(.*mat1 and mat2.*\); needed"),
    ],
)
def test_a_network_of_ones_own_with_other_outputs_is_refused_before_it_trains(layer, said, data):
    own = nn.Sequential(nn.Flatten(), nn.Dropout(), layer)
    own.input_mean, own.input_std = [0.5] * 3, [0.5] * 3
    state = torch.random.get_rng_state()
    for use in (lambda: fit(own, data), lambda: xu.estimate_time(own, data, 1, batch_size=8)):
        with pytest.raises(ValueError, match=f"^model: .*{said}"):
            use()
    assert torch.equal(torch.random.get_rng_state(), state) and not xu.outputs_dir("runs").exists()
