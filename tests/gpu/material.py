"""What all stages share: the file of results, generated images, the networks, and hooks into the loop of `fit`."""

import contextlib
import copy
import io
import json
import os
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
import torch
from accelerate.state import AcceleratorState
from PIL import Image

import xray_utils as xu
from xray_utils._support.files import whole_file
from xray_utils._support.session import Session
from xray_utils.models import SMALL_VIT, build
from xray_utils.prepared import PreparedData, Split

DISTINCT = 256  # generated images; the others repeat them


@dataclass
class Stage:
    """One stage in its own process; each part is in the file as soon as it is there."""

    name: str
    path: Path
    quick: bool

    @cached_property
    def device(self):
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    @property
    def precisions(self):
        return ("fp32", "bf16", "fp16") if self.device.type == "cuda" else ("fp32", "bf16")

    @contextlib.contextmanager
    def part(self, name):
        """A dict to be filled. An error is recorded in it, and the next part goes on."""
        found, start = {}, time.perf_counter()
        print(f"{self.name}: {name} ...", file=sys.stderr, flush=True)  # fit's words are caught
        try:
            yield found
        except Exception as error:
            found["error"] = f"{type(error).__name__}: {error}"[:600]
            found["traceback"] = traceback.format_exc()[-1500:]
        found["seconds of this part"] = round(time.perf_counter() - start, 2)
        figures = read(self.path)
        figures.setdefault("stages", {}).setdefault(self.name, {}).setdefault("parts", {})[name] = found
        write(self.path, figures)


def read(path):
    return json.loads(path.read_text()) if path.is_file() else {}


def write(path, figures):
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(figures, indent=1) + "\n")


# ---------------------------------------------------------------- images and networks


def less(split, every):
    """Each `every`-th row of a side."""
    return Split(split.rows.iloc[::every].reset_index(drop=True), split.pixels, split.positions[::every])


def sample(quick):
    """The bundled sample, under "grouped" without mirroring; a sixth of it where it is to be quick."""
    with contextlib.redirect_stdout(io.StringIO()):
        data = xu.load_data("grouped", mirror=False)
    return replace(data, **{side: less(getattr(data, side), 6) for side in ("train", "val", "test")}) if quick else data


def generated(folder, images, size):
    """`images` training images and a tenth as many of validation: smooth noise, as JPEG files and prepared."""
    rng, folder = np.random.default_rng(0), Path(folder)
    folder.mkdir(parents=True)
    pixels = np.empty((min(images, DISTINCT), size, size, 3), np.uint8)
    for i in range(len(pixels)):
        grey = Image.fromarray(rng.integers(0, 256, (28, 28), dtype=np.uint8)).resize((size, size))
        grey.convert("RGB").save(folder / f"{i}.jpg", quality=90)
        pixels[i] = np.asarray(grey)[..., None]

    def side(count):
        which = np.arange(count) % len(pixels)
        label = np.array(xu.CLASSES)[np.arange(count) % len(xu.CLASSES)]
        rows = pd.DataFrame({"file": [f"{i}.jpg" for i in which], "label": label, "group": which, "mirrored": False})
        rows.attrs["root"] = str(folder)
        return Split(rows, everything, np.arange(count))

    everything = np.concatenate([pixels] * (images // len(pixels) + 1))[:images]  # in memory, each image its own
    settings = {"protocol": "generated", "seed": 0, "mirror": False, "size": size}
    return PreparedData(side(images), side(max(3, images // 10)), side(3), settings)


def vit_base(quick):
    """The network of google/vit-base-patch16-224-in21k with random weights; a small one where it is to be quick."""
    config = SMALL_VIT if quick else {}
    labels = {"id2label": dict(enumerate(xu.CLASSES)), "label2id": {name: i for i, name in enumerate(xu.CLASSES)}}
    spec = {"network": "vit", "num_classes": 3, "freeze": False, "config": {**config, **labels}}
    return build(spec, [0.5] * 3, [0.5] * 3)


def maker(make):
    """A function that gives a copy of one network: to draw 86 million weights takes seconds."""
    first = make()
    return lambda: copy.deepcopy(first)


# ---------------------------------------------------------------- the loop of fit


def synchronise(device):
    if device.type == "cuda":
        torch.cuda.synchronize()


@contextlib.contextmanager
def quiet():
    """Output folders of its own, and no word of `fit`."""
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, XRAY_OUTPUTS=folder):
        with contextlib.redirect_stdout(io.StringIO()):
            yield Path(folder)


@contextlib.contextmanager
def on_the_cpu():
    """`fit` trains on the CPU in this process; before and after on the GPU, where there is one."""
    AcceleratorState._reset_state(reset_partial_state=True)
    with mock.patch.dict(os.environ, ACCELERATE_USE_CPU="true"):
        yield
    AcceleratorState._reset_state(reset_partial_state=True)


@contextlib.contextmanager
def watched(epoch=None, step=None):
    """Call `epoch(session)` before each epoch and after the last, `step(session, number)` before each batch."""
    epochs, batches = Session.epochs, Session.training_batches

    def all_epochs(self):
        for number in epochs(self):
            if epoch:
                epoch(self)
            yield number
        if epoch:
            epoch(self)

    def all_batches(self):
        for number, batch in enumerate(batches(self)):
            if step:
                step(self, number)
            yield batch

    with mock.patch.multiple(Session, epochs=all_epochs, training_batches=all_batches):
        yield
