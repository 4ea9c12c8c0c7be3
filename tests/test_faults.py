"""What goes wrong around a course: kills, full disks, two notebooks at once, altered files. Nothing may be lost."""

import contextlib
import ctypes
import errno
import functools
import hashlib
import importlib.util
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from torch import nn
from tqdm.std import tqdm

import xray_utils as xu
from xray_utils import prepared as prepared_module
from xray_utils._support import datasets, files, runs, session
from xray_utils._support import device as device_module
from xray_utils._support.files import whole_file
from xray_utils._support.paths import repository_dir
from xray_utils.models import build

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "reliability"))
sys.path.insert(0, str(HERE))
import kills  # noqa: E402
import suite  # noqa: E402
from test_training import linear, make_data  # noqa: E402

needs_limits = pytest.mark.skipif(sys.platform == "win32", reason="no limits of file size there")
needs_fork = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs fork")


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a fork has no thread but its own
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    torch.set_num_threads(threads)


@pytest.fixture
def table(tmp_path):
    """A split of 24 of the sample's images, copied into a folder of the user's."""
    images = xu.find_images(repository_dir() / "data" / "sample").groupby("label").head(8)
    for file in images.file:
        (tmp_path / "user" / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(repository_dir() / "data" / "sample" / file, tmp_path / "user" / file)
    return xu.split_images(xu.audit_images(xu.find_images(tmp_path / "user")))


def tiny(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 3))
    model.input_mean, model.input_std = [0.5] * 3, [0.5] * 3
    return model


def fit(data, name="run", **options):
    return xu.fit(tiny(), data, name, **{"epochs": 2, "batch_size": 8, "precision": "fp32", **options})


def files_in(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def prepared(table):
    """The data, its folder, and all bytes of its array."""
    data = xu.prepare(table, size=16)
    (folder,) = xu.outputs_dir("prepared").iterdir()
    return data, folder, (folder / "images.npy").read_bytes()


def in_children(*acts):
    """Each in a forked child, at once; the exit codes (1 with the traceback on stderr), in order."""
    children = []
    for act in acts:
        child = os.fork()
        if child == 0:
            code = 1
            signal.alarm(600)  # a child that waits for ever fails
            try:
                act()
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


# ---------------------------------------------------------------- kills


@needs_fork
def test_killed_and_started_again_it_comes_to_the_same_end():
    """A short seeded selection; `python tests/reliability` does the whole."""
    figures = kills.run(kills=6, seed=1, epochs=2)
    assert figures["kills_by_network"] == {"baseline_cnn": 3, "vit": 2, "resnet18": 0}
    assert figures["kills_of_prepare"] == 1 and len(figures["kills_by_moment"]) == 5
    assert figures["runs_compared"] >= 2 and figures["bytes_compared"] > 5e6
    assert figures["bytes_lost"] == 0, figures
    assert figures["epochs_lost_to_one_kill_at_most"] <= 1 and figures["epochs_saved_twice"] == 0


@needs_fork
def test_a_process_killed_while_it_draws_a_bar_stops_no_other(monkeypatch):
    monkeypatch.setattr(tqdm, "_lock", tqdm.get_lock())  # put back afterwards
    kills.no_lock_across_forks()
    if (child := os.fork()) == 0:
        tqdm.get_lock().acquire()
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert tqdm.get_lock().acquire(timeout=1) and not tqdm.monitor_interval
    tqdm.get_lock().release()


def test_the_comparison_of_the_kills_sees_a_single_byte():
    parts = {"history": b"0123", "best": b"ab"}
    assert kills.lost(parts, dict(parts)) == 0
    assert kills.lost(parts, {**parts, "history": b"0124"}) == 1
    assert kills.lost(parts, {**parts, "history": b"01"}) == 2
    assert kills.lost(parts, {"history": b"0123"}) == 2
    assert kills.lost(parts, {**parts, "more": b"x"}) == 1


def test_what_a_kill_left_is_removed_after_an_hour(tmp_path):
    old, young, of_the_user = tmp_path / ".a.csv.x1.part", tmp_path / ".a.csv.x2.part", tmp_path / ".a.csv.bak"
    other, file = tmp_path / ".b.csv.x1.part", tmp_path / ".a.csv.x3.part"
    for path in (old, young, of_the_user, other):
        path.mkdir()
    file.write_text("of an earlier version")
    for path in (old, of_the_user, other, file):
        os.utime(path, (time.time() - 4000,) * 2)
    with whole_file(tmp_path / "a.csv") as path:
        path.write_text("whole")
    assert sorted(tmp_path.iterdir()) == sorted([young, of_the_user, other, tmp_path / "a.csv"])


def test_what_a_kill_left_of_a_prepared_set_is_removed_after_an_hour(table):
    _, folder, _ = prepared(table)
    shutil.rmtree(folder)
    left = [folder.parent / f".{folder.name}.{name}.part" for name in ("old", "young")]
    for path in left:
        (path / "set").mkdir(parents=True)
        (path / "set" / "images.npy").write_bytes(b"half")
    for path in (left[0], left[0] / "set", left[0] / "set" / "images.npy", left[1]):
        os.utime(path, (time.time() - 4000,) * 2)
    xu.prepare(table, size=16)
    assert sorted(folder.parent.iterdir()) == [left[1], folder], "a set that is being written was removed, or none"


def test_a_resumed_run_writes_the_best_weights_of_its_checkpoint(table, monkeypatch):
    """A kill between last.pt and best.safetensors: the weights belong to the checkpoint, not to a second try."""
    data = xu.prepare(table, size=16)
    whole = fit(data, "whole")
    with monkeypatch.context() as patch:
        patch.setattr(runs, "_save_best", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            fit(data)
    folder = xu.outputs_dir("runs", "run")
    assert files_in(folder) == ["config.json", "last.pt"]
    with monkeypatch.context() as patch:
        patch.setattr(session, "set_seed", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))  # no second epoch
        with pytest.raises(KeyboardInterrupt):
            fit(data)
    assert len(xu.load_run("run", tiny()).history) == 1
    last = torch.load(folder / "last.pt", weights_only=True)["model"]
    assert all(torch.equal(last[name], tensor) for name, tensor in load_file(folder / "best.safetensors").items())
    assert fit(data).history.val_loss.equals(whole.history.val_loss)


def test_interrupted_by_hand_it_says_what_is_there(table, monkeypatch, capsys):
    data, calls, batches = xu.prepare(table, size=16), [], session.batches
    monkeypatch.setattr(session, "batches", lambda *a: calls.append(1) or (stop() if len(calls) == 5 else batches(*a)))
    with pytest.raises(KeyboardInterrupt):
        fit(data, epochs=4)
    said = capsys.readouterr().out
    assert "run: interrupted in epoch 3. The checkpoint of epoch 2 is kept in run, and xu.load_run('run') has" in said
    assert xu.load_run("run", tiny()).history.epoch.to_list() == [1, 2]
    calls[:] = [1] * 4
    with pytest.raises(KeyboardInterrupt):
        fit(data, "first")
    assert "first: interrupted in epoch 1. No epoch is complete yet." in capsys.readouterr().out


def stop():
    """What the stop button of a notebook does."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # pytest-xdist lets its workers ignore it
    try:
        signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("keep", [0, 100, -1000])
def test_a_broken_checkpoint_is_named_and_left_alone(keep, table):
    data = xu.prepare(table, size=16)
    folder = fit(data).folder
    (folder / "finished.json").unlink()
    broken = (folder / "last.pt").read_bytes()[:keep]
    (folder / "last.pt").write_bytes(broken)
    with pytest.raises(ValueError, match=r"name: the checkpoint .*run.last\.pt is broken .* another name"):
        fit(data)
    assert (folder / "last.pt").read_bytes() == broken
    assert len(fit(data, "another").history) == 2


def test_a_checkpoint_with_code_is_not_run(table, tmp_path):
    data = xu.prepare(table, size=16)
    folder = fit(data).folder
    (folder / "finished.json").unlink()
    torch.save({"model": Code(str(tmp_path / "it ran"))}, folder / "last.pt")
    with pytest.raises(ValueError, match="is broken"):
        fit(data)
    assert not (tmp_path / "it ran").exists()


class Code:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


# ---------------------------------------------------------------- the scaler of fp16, on the CPU


def test_the_scaler_is_resumed_with_the_rest(table, monkeypatch):
    """fp16 needs a GPU; torch's scaler works on a CPU, too, and grows here with every second step."""

    def with_scaler(**options):
        accelerator = Accelerator(**options)
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0, growth_interval=2)
        return accelerator

    Accelerator = device_module.Accelerator
    monkeypatch.setattr(device_module, "Accelerator", with_scaler)
    data = xu.prepare(table, size=16)
    state = {}
    for name in ("whole", "resumed"):
        with monkeypatch.context() as patch:
            if name == "resumed":
                seeds = iter([1, None])
                patch.setattr(session, "set_seed", lambda _, seeds=seeds: next(seeds) or stop())
                with pytest.raises(KeyboardInterrupt):
                    fit(data, name, epochs=3)
        fit(data, name, epochs=3)
        last = torch.load(xu.outputs_dir("runs", name, "last.pt"), weights_only=True)
        state[name] = last["scaler"]
        assert len(last["history"]) == 3
    assert state["whole"]["scale"] > 4.0
    assert state["resumed"] == state["whole"]


def test_checkpoints_from_before_the_scaler_are_resumed(table):
    data = xu.prepare(table, size=16)
    whole = fit(data, epochs=3)
    last = torch.load(whole.folder / "last.pt", weights_only=True)
    del last["scaler"]
    torch.save(last, whole.folder / "last.pt")
    (whole.folder / "finished.json").unlink()
    assert fit(data, epochs=3).history.equals(whole.history)


# ---------------------------------------------------------------- several processes


def free_port():
    """Below those that systems give out themselves (from 32768 on), so that nobody gets it before it is used."""
    for port in range(10_000 + os.getpid() % 10_000, 32_768):
        with socket.socket() as free, contextlib.suppress(OSError):
            free.bind(("127.0.0.1", port))
            return str(port)


def together(act):
    """`act` in two forked processes that know each other, as `torchrun --nproc_per_node 2` makes them."""
    port = free_port()

    def one(rank):
        os.environ |= dict(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
        del os.environ["ACCELERATE_USE_CPU"]  # nobody sets it
        torch.cuda.is_available = lambda: False  # in this child
        act()
        assert device_module.accelerator_of().num_processes == 2  # not two who do the same
        torch.distributed.destroy_process_group()

    return in_children(lambda: one("0"), lambda: one("1"))


@pytest.mark.parametrize("said", [dict(MASTER_ADDR="10.0.0.1"), dict(MASTER_ADDR="10.0.0.1", WORLD_SIZE="2")])
def test_a_process_that_should_not_be_alone_does_not_train(said, monkeypatch):
    """As `accelerate launch --num_machines 2` leaves hosts without a GPU; in a process that has trained before."""
    device_module.accelerator_of()
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RuntimeError, match="started with others and finds none.*--multi_gpu"):
        xu.fit(linear(), make_data(), "alone", epochs=1, batch_size=5)
    assert not xu.outputs_dir("runs", "alone").exists()


LOSSES = ("train_loss", "val_loss")
# One process adds up a batch in another order than two: each sum differs by a few units in the last place (1.2e-7).
# Adam divides a gradient by its own size, so where a gradient is near zero rounding alone decides the step. Plain
# momentum does not amplify it: a loss, the end of sums of at most a thousand terms, stays within a hundred units.
ROUNDING = 100 * np.finfo(np.float32).eps
MOMENTUM = functools.partial(torch.optim.SGD, momentum=0.9)


@needs_fork
def test_two_processes_share_batches_and_come_to_the_same_loss(monkeypatch):
    """21 images in batches of 10: the last has one image, and the second process none of it."""
    monkeypatch.setitem(session.OPTIMIZERS, "adam", MOMENTUM)
    data = make_data(train=(9, 7, 5), val=(5, 4, 2))
    options = dict(epochs=2, batch_size=10, precision="fp32", lr=0.01)
    broken = make_data(train=(9, 7, 5), val=(5, 4, 2))
    broken.train.pixels = broken.train.pixels.astype(np.float32)
    broken.train.pixels[11] = np.nan  # one process meets it; the other must not wait for it

    def act():
        xu.fit(linear(), data, "linear", **options)
        xu.fit(xu.baseline_cnn(), data, "baseline", **options)  # running statistics, which are sent around
        with pytest.raises(FloatingPointError, match="epoch 1, batch .* No epoch is complete yet"):
            xu.fit(linear(), broken, "broken", **options)

    assert together(act) == [0, 0]
    alone, two = xu.fit(linear(), data, "alone", **options), xu.load_run("linear", linear())
    for column in LOSSES:
        assert np.allclose(two.history[column], alone.history[column], rtol=ROUNDING), column
    baseline = pd.read_csv(xu.outputs_dir("runs", "baseline", "history.csv"))
    assert np.isfinite(baseline.to_numpy()).all() and len(baseline) == 2


@needs_fork
@pytest.mark.parametrize("augment", ["mild", "strong"])
def test_a_vit_begun_by_two_processes_is_finished_by_one_with_the_same_losses(augment, monkeypatch):
    """21 images in batches of 9: no batch parts evenly."""
    monkeypatch.setitem(session.OPTIMIZERS, "adamw", MOMENTUM)
    data = make_data(size=32, train=(9, 7, 5), val=(5, 4, 2))
    spec = xu.vit(None).spec
    spec["config"]["image_size"] = 32
    model = build(spec, [0.5] * 3, [0.5] * 3)
    options = dict(epochs=2, batch_size=9, precision="fp32", lr=0.05, optimizer="adamw", schedule="cosine", warmup=0.1)
    options["augment"] = augment
    seeds = iter([1, None])

    def begin():
        monkeypatch.setattr(session, "set_seed", lambda _: next(seeds) or stop())
        with pytest.raises(KeyboardInterrupt):
            xu.fit(model, data, "two", **options)

    assert together(begin) == [0, 0]
    assert len(pd.read_csv(xu.outputs_dir("runs", "two", "history.csv"))) == 1
    two, alone = (xu.fit(model, data, name, **options) for name in ("two", "alone"))
    assert two.folder.name == "two" and len(two.history) == 2
    for column in LOSSES:
        assert np.allclose(two.history[column], alone.history[column], rtol=ROUNDING), column


def test_batchnorm_is_synchronised_on_several_gpus_alone():
    for processes, device, wanted in (
        (2, "cuda", nn.SyncBatchNorm),
        (2, "cpu", nn.BatchNorm2d),
        (1, "cuda", nn.BatchNorm2d),
    ):
        model = xu.baseline_cnn()
        there = device_module.synchronised(model, SimpleNamespace(num_processes=processes, device=torch.device(device)))
        assert type(there[1]) is wanted and type(model[1]) is nn.BatchNorm2d
        assert there.state_dict().keys() == model.state_dict().keys()


# ---------------------------------------------------------------- prepared sets that were changed


def flip(folder):
    with open(folder / "images.npy", "r+b") as file:
        file.seek(-1, os.SEEK_END)
        byte = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([byte[0] ^ 1]))


def flip_and_hide(folder):
    """The disk's own fault: nobody wrote, so the time says nothing."""
    before = os.stat(folder / "images.npy")
    flip(folder)
    os.utime(folder / "images.npy", ns=(before.st_atime_ns, before.st_mtime_ns))


def flip_in_a_map(folder):
    pixels = np.load(folder / "images.npy", mmap_mode="r+")
    pixels[3, 2, 1] ^= 1
    pixels.flush()


def same_bytes_again(folder):
    """Written once more: only its time has changed, and that cannot be told apart."""
    before = os.stat(folder / "images.npy")
    (folder / "images.npy").write_bytes((folder / "images.npy").read_bytes())
    later = before.st_mtime_ns + 2 * 10**9  # two seconds, the coarsest clock of a file system
    os.utime(folder / "images.npy", ns=(before.st_atime_ns, later))


CHANGES = {
    "one byte": flip,
    "one byte, without its time": flip_and_hide,
    "one pixel, memory-mapped": flip_in_a_map,
    "written again": same_bytes_again,
    "truncated": lambda folder: os.truncate(folder / "images.npy", 1000),
    "emptied": lambda folder: os.truncate(folder / "images.npy", 0),
    "longer": lambda folder: os.truncate(folder / "images.npy", 10**6),
    "array gone": lambda folder: (folder / "images.npy").unlink(),
    "note gone": lambda folder: (folder / "meta.json").unlink(),
    "note cut": lambda folder: os.truncate(folder / "meta.json", 10),
    "note of an earlier version": lambda folder: (folder / "meta.json").write_text('{"images": 24, "size": 16}'),
    "note of something else": lambda folder: (folder / "meta.json").write_text("[]"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_changed_prepared_set_is_found_made_again_and_said(what, table, capsys):
    before, folder, pixels = prepared(table)
    wanted = before.train.fingerprint()
    (folder / "notes.txt").write_text("mine")  # of the user
    assert xu.prepare(table, size=16).train.fingerprint() == wanted
    assert "made again" not in capsys.readouterr().out
    CHANGES[what](folder)
    assert xu.prepare(table, size=16).train.fingerprint() == wanted
    said = capsys.readouterr().out
    assert said == f"prepare: the set in {folder} is incomplete or was changed; it is made again.\n"
    assert (folder / "images.npy").read_bytes() == pixels
    assert files_in(folder.parent) == [
        f"{folder.name}/{name}" for name in ("images.npy", "index.csv", "meta.json", "notes.txt")
    ]
    assert (folder / "notes.txt").read_text() == "mine"
    xu.prepare(table, size=16)
    assert "made again" not in capsys.readouterr().out, "the mended set is taken for a changed one"


def test_a_large_set_that_changed_without_its_time_is_other_data(table, monkeypatch, capsys):
    """It is never summed, which would bring all of it into memory; `fit` finds out."""
    monkeypatch.setattr(prepared_module, "SUMMED", 1000)
    monkeypatch.setattr(files, "_crc32", lambda path: pytest.fail("a large set was summed"))
    _, folder, _ = prepared(table)
    fit(xu.prepare(table, size=16))
    flip_and_hide(folder)
    assert fit(xu.prepare(table, size=16)).name == "run-2"
    assert "run: another run (data); it is kept." in capsys.readouterr().out


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_a_kill_while_a_changed_set_is_replaced_is_mended(cut, table, monkeypatch):
    before, folder, pixels = prepared(table)
    flip(folder)
    replace, calls = os.replace, []

    def killed(source, target):
        if Path(target).parent == folder:  # one of the three files
            calls.append(target)
            if len(calls) == cut:
                raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            xu.prepare(table, size=16)
    assert not prepared_module._is_whole(folder), "half of it passes for whole"
    xu.prepare(table, size=16)
    assert prepared_module._is_whole(folder) and (folder / "images.npy").read_bytes() == pixels


def test_whether_a_large_set_is_whole_is_asked_in_no_time(tmp_path):
    """The check does not depend on the size: 15 GB (sparse), as of 100,000 images."""
    with open(tmp_path / "images.npy", "wb") as file:
        try:
            file.truncate(15 * 10**9)
        except OSError:
            pytest.skip("no sparse files of this size here")
    stat = os.stat(tmp_path / "images.npy")
    (tmp_path / "meta.json").write_text(json.dumps({"bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns}))
    start = time.process_time()  # a file that is read costs seconds; waiting costs none
    assert prepared_module._is_whole(tmp_path)
    assert time.process_time() - start < 0.1


@needs_fork
def test_two_notebooks_prepare_the_same_set_at_once(table, tmp_path):
    """Each holds back its rename until the other has all its pixels, too: on a new set, and on a changed one."""

    def both():
        gate = [os.pipe() for _ in range(2)]
        replace = os.replace

        def wait_for_the_other(me, source, target):
            if Path(source).name == "set":
                os.write(gate[me][1], b"x")
                os.read(gate[1 - me][0], 1)
            replace(source, target)

        def act(me):
            os.replace = lambda source, target: wait_for_the_other(me, source, target)
            assert xu.prepare(table, size=16).train.fingerprint() == wanted

        return in_children(lambda: act(0), lambda: act(1))

    data, folder, _ = prepared(table)
    wanted = data.train.fingerprint()
    shutil.rmtree(folder)
    assert both() == [0, 0] and prepared_module._is_whole(folder)
    flip(folder)
    assert both() == [0, 0]
    assert xu.prepare(table, size=16).train.fingerprint() == wanted
    assert list(xu.outputs_dir("prepared").iterdir()) == [folder], "something was left behind"


# ---------------------------------------------------------------- full, not to be written


@contextmanager
def files_of_at_most(size):
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@needs_limits
def test_no_room_for_the_prepared_set_names_the_folder(table, capsys):
    folder = xu.outputs_dir("prepared")
    with files_of_at_most(10_000), pytest.raises(OSError, match="outputs: cannot write to") as caught:
        xu.prepare(table, size=16)
    assert str(folder) in str(caught.value) and "XRAY_OUTPUTS" in str(caught.value)
    assert list(folder.iterdir()) == []
    assert len(xu.prepare(table, size=16).train)


@needs_limits
def test_no_room_for_an_archive_names_the_folder_and_leaves_nothing(table, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "repository_dir", lambda: tmp_path / "course")
    monkeypatch.delenv("XRAY_DATA")
    archive = shutil.make_archive(tmp_path / "mine", "zip", tmp_path / "user")
    with files_of_at_most(1000), pytest.raises(OSError, match="folder: cannot write to .*/course/data .File too large"):
        xu.use_images(archive)
    assert list((tmp_path / "course" / "data").iterdir()) == [] and not xu.outputs_dir("data_dir.txt").exists()
    killed = tmp_path / "course" / "data" / ".xray.abc.part"  # two hours ago
    (killed / "images").mkdir(parents=True)
    for path in (killed / "images", killed):
        os.utime(path, (time.time() - 7200,) * 2)
    xu.use_images(archive)
    assert [path.name for path in (tmp_path / "course" / "data").iterdir()] == ["xray"]
    assert len(xu.find_images(tmp_path / "course" / "data" / "xray")) == 24


@needs_limits
def test_no_room_for_a_checkpoint_names_the_folder_and_keeps_the_last(table, monkeypatch, capsys):
    data = xu.prepare(table, size=16)
    whole, folder = fit(data, "whole"), xu.outputs_dir("runs", "run")
    for limit, left in ((5000, ["config.json"]), (None, ["best.safetensors", "config.json", "history.csv", "last.pt"])):
        seed = session.set_seed  # the disk is full from the start, or from the second epoch on

        def fill(number, limit=limit, seed=seed):
            seed(number)
            if limit is None and number % 1000 == 2:
                import resource

                resource.setrlimit(resource.RLIMIT_FSIZE, (5000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

        with monkeypatch.context() as patch, files_of_at_most(limit or 10**8):
            patch.setattr(session, "set_seed", fill)
            with pytest.raises(OSError, match="outputs: cannot write to") as caught:
                fit(data)
        assert str(folder) in str(caught.value)
        assert files_in(folder) == left
    assert len(torch.load(folder / "last.pt", weights_only=True)["history"]) == 1
    again = fit(data)
    assert again.history.val_loss.equals(whole.history.val_loss) and torch.equal(
        again.model[1].weight, whole.model[1].weight
    )


def mount_a_full_disk(folder, size):
    """A file system in memory, seen by this process alone and gone with it. Was it allowed?"""
    libc = ctypes.CDLL(None)
    if libc.unshare(0x20000 | (0 if os.geteuid() == 0 else 0x10000000)):  # CLONE_NEWNS, CLONE_NEWUSER
        return False
    private = libc.mount(None, b"/", None, 0x44000, None)  # MS_REC | MS_PRIVATE: nobody else sees the next one
    return not private and not libc.mount(b"tmpfs", str(folder).encode(), b"tmpfs", 0, f"size={size}".encode())


@needs_fork
def test_a_disk_that_is_full_is_an_error_and_no_crash(table, tmp_path, monkeypatch):
    """A real one of 64 kB, where the system lets us mount it: a memory map would end in a bus error."""
    monkeypatch.setenv("XRAY_OUTPUTS", str(tmp_path / "disk"))
    (tmp_path / "disk").mkdir()

    def act():
        if not mount_a_full_disk(tmp_path / "disk", 65536):
            os._exit(77)
        with pytest.raises(OSError, match="cannot write to .*/disk/prepared .No space left on device"):
            xu.prepare(table, size=64)
        with pytest.raises(OSError, match="cannot write to .*/disk/runs/run .No space left on device"):
            runs._save(xu.outputs_dir("runs", "run"), *checkpoint, [{"val_loss": 1.0}])
        assert files_in(tmp_path / "disk") == []
        assert len(xu.prepare(table, size=8).train)  # there is room for less

    model = tiny()
    optimizer = torch.optim.Adam(model.parameters())
    model.more = nn.Parameter(torch.zeros(50_000))
    checkpoint = (model, optimizer, torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer), None)
    (code,) = in_children(act)
    if code == 77:
        pytest.skip("mounting is not allowed here")
    assert code == 0


def test_a_file_in_the_place_of_the_folder_is_named(table, tmp_path, monkeypatch):
    data = xu.prepare(table, size=16)
    (tmp_path / "taken").write_text("a file")
    monkeypatch.setenv("XRAY_OUTPUTS", str(tmp_path / "taken"))
    for act in (lambda: xu.prepare(table, size=16), lambda: fit(data)):
        with pytest.raises(OSError, match=f"outputs: cannot write to {tmp_path}/taken/.*XRAY_OUTPUTS"):
            act()
    assert (tmp_path / "taken").read_text() == "a file"


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="no such rights there")
def test_a_folder_without_the_right_to_write_is_named(table, monkeypatch):
    data = xu.prepare(table, size=16)
    folder = Path(tempfile.mkdtemp())  # that of pytest is closed to all others
    try:
        folder.chmod(0o555)
        with monkeypatch.context() as patch:
            patch.setenv("XRAY_OUTPUTS", str(folder))
            root = os.geteuid() == 0  # whom no rights stop
            if root:
                os.seteuid(65534)
            try:
                with pytest.raises(OSError, match=f"outputs: cannot write to {folder}/runs/run .Permission denied"):
                    fit(data)
            finally:
                if root:
                    os.seteuid(0)
        assert list(folder.iterdir()) == []
    finally:
        folder.chmod(0o755)
        shutil.rmtree(folder)


def test_results_are_collected_whole_or_not_at_all(tmp_path):
    spec = importlib.util.spec_from_file_location("collect", repository_dir() / "results" / "scripts" / "collect.py")
    collect = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(collect)
    (tmp_path / "curves.png").write_text("before")

    class Half:
        def savefig(self, path, **_):
            Path(path).write_text("half")
            raise OSError("in our words")

    with pytest.raises(OSError, match="^in our words$"):
        collect.put(tmp_path / "curves.png", Half())
    collect.put(tmp_path / "new" / "a.csv", pd.DataFrame({"a": [1.0]}))
    collect.put(tmp_path / "b.csv", tmp_path / "new" / "a.csv")
    assert files_in(tmp_path) == ["b.csv", "curves.png", "new/a.csv"]
    assert (tmp_path / "curves.png").read_text() == "before"
    assert (tmp_path / "b.csv").read_text() == (tmp_path / "new" / "a.csv").read_text() == ",a\n0,1.0000\n"


def test_an_interrupted_proof_goes_on_after_its_last_run(tmp_path, monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location("reliability_main", HERE / "reliability" / "__main__.py")
    reliability = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reliability)
    path, done = tmp_path / "reliability.json", []
    path.write_text('{"kills": {"figures": "kept"}, "suite": {"figures": {"code": "other", "runs": {"idle": [1]}}}}')

    def one_run(condition, clone, again):
        assert (clone / "tests" / "reliability").is_dir() and ("été" in clone.name) == condition.startswith("path")
        if len(done) == 12 and done[-1] != "stopped":
            done.append("stopped")
            raise KeyboardInterrupt
        done.append((condition, again))
        return {"green": again != 5, "seconds": again}

    monkeypatch.setattr(suite, "copy_to", lambda clone: (clone / "tests" / "reliability").mkdir(parents=True))
    monkeypatch.setattr(suite, "one_run", one_run)
    monkeypatch.setattr(suite, "code", lambda folder: "this")
    with pytest.raises(KeyboardInterrupt):
        reliability.main(["--only", "suite"], path)
    left = json.loads(path.read_text())
    assert left["kills"] == {"figures": "kept"} and left["suite"]["figures"]["runs_in_all"] == 12
    reliability.main(["--only", "suite"], path)
    done.remove("stopped")
    assert done == [(name, i) for name in suite.CONDITIONS for i in range(suite.TIMES.get(name, 1))]
    found = json.loads(path.read_text())["suite"]["figures"]
    assert (found["runs_in_all"], found["green_in_all"]) == (37, 34)
    assert found["conditions"]["idle"] == {"runs": 10, "green": 9, "seconds": [0, 9]}
    reliability.main(["--only", "suite", "--condition", "idle"], path)  # nothing is left to do
    assert len(done) == 37


def test_a_run_of_the_proof_says_what_failed(tmp_path, monkeypatch):
    (tmp_path / "test_a.py").write_text("def test_a():\n    pass\n\ndef test_b():\n    assert 0\n")
    monkeypatch.setitem(suite.CONDITIONS, "idle", (["--durations=1", "-vv"], {"TZ": "{new}"}))
    found = suite.one_run("idle", tmp_path, 0)
    assert found.pop("seconds") >= 0 and found.pop("slowest") and found.pop("processor")
    assert found == {"green": False, "passed": 1, "failed": 1, "failures": ["test_a.py::test_b"]}


def test_errors_of_ours_are_passed_on_as_they_are(tmp_path):
    with pytest.raises(OSError, match="^in our words$"), whole_file(tmp_path / "a"):
        raise OSError("in our words")
    with pytest.raises(OSError, match="No space left on device") as caught, whole_file(tmp_path / "a"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert isinstance(caught.value.__cause__, OSError) and files_in(tmp_path) == []


# ---------------------------------------------------------------- what is the user's


def test_the_images_of_the_user_stay_as_they_are(table, tmp_path, monkeypatch):
    def state():
        return {
            path: (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns, path.stat().st_mode)
            if path.is_file()
            else path.stat().st_mtime_ns
            for path in sorted((tmp_path / "user").rglob("*"))
        }

    before = state()
    images = xu.audit_images(xu.find_images(tmp_path / "user"))
    for protocol in ("grouped", "slides"):
        data = xu.prepare(xu.split_images(images, protocol), size=16)
        run = fit(data, protocol, augment=True)
        xu.save_results(run, xu.predict(run.model, data.test), xu.predict(run.model, data.val))
    cnn = xu.fit(xu.baseline_cnn(), data, "cnn", epochs=1, batch_size=8)
    for plot in (xu.plot_examples, xu.plot_mean_images, xu.plot_class_balance, xu.plot_sizes, xu.plot_colour):
        plot(images)
    xu.plot_preparation(images, data)
    xu.classify(tmp_path / "user" / images.file[0], cnn)
    xu.export_model(cnn)
    xu.change_data(data, "without the lungs").test.fingerprint()
    xu.sanity_check(cnn.model, xu.plant_marker(data.test))
    with pytest.raises(ValueError, match="no image that training does not know"):
        xu.load_external(tmp_path / "user", images)
    monkeypatch.delenv("XRAY_DATA")
    xu.use_images(tmp_path / "user")
    xu.load_data(size=8)
    assert len(before) == 24 + 3 and state() == before
    assert {path.name for path in tmp_path.iterdir()} == {"user", "outputs"}
