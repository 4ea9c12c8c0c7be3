"""One training of the sample, and its answers. What was trained once is read again, not repeated."""

import contextlib
import hashlib
import io
import json
import shutil
from dataclasses import replace
from functools import cache

import pandas as pd

import xray_utils as xu
from xray_utils._support.device import choose_precision
from xray_utils._support.files import whole_file
from xray_utils._support.runs import _config

SEEDS = range(5)  # of the split, the first weights and the order of the images
SIDES = ("train", "val", "test")


@cache
def sample(protocol, seed, mirror):
    """The prepared sample of one split."""
    with contextlib.redirect_stdout(io.StringIO()):
        return xu.load_data(protocol, seed, mirror)


@cache
def other_hospitals():
    """The external images of the sample, of its size."""
    with contextlib.redirect_stdout(io.StringIO()):
        images = xu.audit_images(xu.find_images(xu.data_dir()))
        return xu.load_external(xu.external_dir(), images, size=xu.default_size(images))


def marked(data):
    """`data` with a planted marker that goes with the class, on all three sides."""
    return replace(data, **{side: xu.plant_marker(getattr(data, side)) for side in SIDES})


def train(make, seed, protocol="grouped", mirror=False, marker=False, **settings):
    """Train `make(seed=seed)` on one split; returns its history, and its answers by side: tables made by `predict`.

    Sides are val, test, and external; with a marker they are val, test (the marker tells the truth) and lie.
    settings: those of `xu.fit`.
    """
    model, data = make(seed=seed), sample(protocol, seed, mirror)
    data = marked(data) if marker else data
    settings = {"precision": choose_precision()} | settings | {"seed": seed}
    key = hashlib.sha256(json.dumps(_config(model, data, "lesson", settings)).encode()).hexdigest()[:16]
    folder = xu.outputs_dir("lessons", key)
    if not (folder / "answers.pkl").is_file():
        with contextlib.redirect_stdout(io.StringIO()):
            run = xu.fit(model, data, f"lesson_{key}", **settings)
        sides = {"val": data.val, "test": data.test}
        sides |= {"lie": xu.plant_marker(sample(protocol, seed, mirror).test, shift=1)} if marker else {}
        sides |= {} if marker else {"external": other_hospitals()}
        found = run.history, {side: xu.predict(run.model, split) for side, split in sides.items()}
        with whole_file(folder / "answers.pkl") as path:
            pd.to_pickle(found, path)
        shutil.rmtree(run.folder)  # a ResNet18 takes 180 MB
    return pd.read_pickle(folder / "answers.pkl")
