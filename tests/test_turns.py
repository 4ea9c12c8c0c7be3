"""Trainings on the same cores take turns."""

import errno
import tempfile
import threading
import time

import numpy as np
import pytest
import torch
from test_training import linear, make_data, on_the_cpu  # noqa: F401

import xray_utils as xu
from xray_utils._support import turns

fcntl = pytest.importorskip("fcntl")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Of the locks: this test's own."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def is_taken(folder, name="step"):
    (path,) = folder.glob(f"*-{name}.lock")
    with open(path, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def test_who_has_had_a_turn_comes_last(folder):
    first, second, order = turns.Turns(), turns.Turns(), []

    def other():
        second.take()
        order.append("second")
        second.give(seconds=0)

    first.take()
    waiting = threading.Thread(target=other)
    waiting.start()
    end = time.monotonic() + 60
    while not is_taken(folder, "queue"):  # until it waits
        assert time.monotonic() < end
    assert order == []
    first.give(seconds=0)
    first.take()
    order.append("first")
    waiting.join()
    assert order == ["second", "first"]
    first.close()
    assert not is_taken(folder) and not is_taken(folder, "queue")


def test_short_steps_share_a_turn(folder, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(turns.time, "monotonic", lambda: now[0])
    mine = turns.Turns()
    for step, taken in enumerate([True, True, False, True]):  # steps of 40 ms, turns of at least 100
        mine.take()
        now[0] += 0.04
        mine.give()
        assert is_taken(folder) == taken, step


class Probe(torch.nn.Module):
    """A network that notes at each batch whether it has the turn."""

    input_mean = input_std = [0.5] * 3

    def __init__(self, folder):
        super().__init__()
        self.last = torch.nn.Linear(3, 3)
        self.look = lambda: is_taken(folder) if [*folder.glob("*.lock")] else False
        self.seen = []

    def __deepcopy__(self, memo):
        copy = Probe.__new__(Probe)
        torch.nn.Module.__init__(copy)
        copy.last, copy.look, copy.seen = torch.nn.Linear(3, 3), self.look, self.seen
        return copy

    def forward(self, images):
        self.seen.append(self.look())
        return self.last(images.mean((2, 3)))


@pytest.mark.parametrize("threads", [1, 2])
def test_a_training_of_several_threads_has_the_turn_in_each_step(threads, folder, two_threads):
    torch.set_num_threads(threads)
    model = Probe(folder)
    xu.fit(model, make_data(), "probe", epochs=2, batch_size=8, precision="fp32")
    assert sum(model.seen) == (2 * (3 + 2) if threads == 2 else 0)  # 21 images for training, 10 for validation
    assert threads == 1 or not is_taken(folder)


def test_a_training_that_fails_gives_its_turn_back(folder, two_threads):
    data = make_data()
    data.train.pixels = data.train.pixels.astype(np.float32)
    data.train.pixels[:] = np.nan
    with pytest.raises(FloatingPointError) as error:  # which keeps the frames of `fit` alive
        xu.fit(linear(), data, "broken", epochs=1, batch_size=8, precision="fp32")
    assert error and not is_taken(folder)


def test_where_files_cannot_be_locked_a_training_runs_without_turns(folder, two_threads, monkeypatch):
    def flock(file, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(turns.fcntl, "flock", flock)
    run = xu.fit(linear(), make_data(), "probe", epochs=2, batch_size=8, precision="fp32")
    assert len(run.history) == 2 and [*folder.glob("*.lock")]
