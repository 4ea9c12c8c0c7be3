"""The same seed gives the same bits: in another process, after other work, in any order of the notebooks."""

import hashlib
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from test_training import forgetful, linear, make_data, on_the_cpu  # noqa: F401 (a fixture that holds here too)

import xray_utils as xu

ROOT = Path(__file__).resolve().parents[1]

NOTEBOOK = """
import hashlib, torch, xray_utils as xu
torch.set_num_threads(1)
data = xu.load_data(seed=3, size=32)
model = xu.baseline_cnn(seed=3)
run = xu.fit(model, data, "run", epochs=2, seed=3, augment=True, precision="fp32")
predictions = xu.predict(run.model, data.test)
xu.save_results(run, predictions)
for file in ("best.safetensors", "predictions.csv", "metrics.json", "config.json"):
    print(file, hashlib.sha256((run.folder / file).read_bytes()).hexdigest())
print(run.history.drop(columns=["seconds", "images_per_second"]).to_csv(float_format="%.17g"))
"""


LIGHT = """
import os, sys, xray_utils as xu
slow = ("torch", "transformers", "torchvision", "kagglehub", "seaborn", "sklearn", "scipy.ndimage", "scipy.stats")
print(hash("a set"), xu.CLASSES, [name for name in slow if name in sys.modules], os.listdir())
"""


START = """
import multiprocessing
from work import work

if __name__ == "__main__":
    process = multiprocessing.get_context("spawn").Process(target=work)
    process.start()
    process.join()
    raise SystemExit(process.exitcode)
"""


def test_two_processes_give_the_same_bits_and_one_is_light(tmp_path, capsys, monkeypatch):
    """One spawned, as Windows and macOS do, and this one, in folders with spaces; no order may come from a set."""
    folder = tmp_path / "my images ü"
    shutil.copytree(xu.data_dir(), folder)
    monkeypatch.setenv("XRAY_DATA", str(folder))
    monkeypatch.setenv("XRAY_OUTPUTS", str(tmp_path / "all runs"))
    (tmp_path / "empty").mkdir()
    (tmp_path / "start.py").write_text(START)
    (tmp_path / "work.py").write_text(f"def work():\n    exec({LIGHT + NOTEBOOK!r}, {{}})\n")
    own = {
        "XRAY_OUTPUTS": str(tmp_path / "other runs"),
        "PYTHONHASHSEED": str(1 + (os.environ.get("PYTHONHASHSEED") == "1")),
        "ACCELERATE_USE_CPU": "true",
    }
    own |= {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(
        [sys.executable, str(tmp_path / "start.py")], cwd=tmp_path / "empty", env={**os.environ, **own},
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    disturb(4)
    exec(LIGHT + NOTEBOOK, {})
    (first, *there), (other, *here) = done.stdout.splitlines(), capsys.readouterr().out.splitlines()
    assert there == here and "best.safetensors" in done.stdout
    assert first.endswith(" ('covid', 'normal', 'virus') [] []"), "the import loads or leaves too much"
    assert first.split()[0] != other.split()[0], "they hash alike"


def test_nothing_of_ours_starts_a_process():
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "xray_utils").glob("*.py")]
    assert not any(word in source for source in sources for word in ("DataLoader", "num_workers", "multiprocessing"))


def disturb(seed):
    """Use the global random numbers as a notebook may do before it calls anything of ours."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)
    torch.rand(seed)


def fit_both(order, prefix):
    """Two networks, each of its own data; the digest of what each run leaves, whatever was fitted before it."""
    digests = {}
    for number, name in enumerate(order):
        disturb(17 * number + len(prefix))
        make, data = {"plain": (linear, make_data(0)), "dropout": (forgetful, make_data(1))}[name]
        run = xu.fit(make(), data, f"{prefix}{name}", epochs=2, seed=5, batch_size=8, augment=True, precision="fp32")
        table = run.history.drop(columns=["seconds", "images_per_second"]).to_csv()
        table += xu.predict(run.model, data.test).to_csv()
        digests[name] = hashlib.sha256(table.encode() + (run.folder / "best.safetensors").read_bytes()).hexdigest()
    return digests


@pytest.mark.parametrize("order", [["dropout", "plain"], ["dropout"], ["plain"]])
def test_what_was_done_before_does_not_matter(order):
    wanted, found = fit_both(["plain", "dropout"], "a_"), fit_both(order, "other_")
    assert found == {name: wanted[name] for name in order}


def test_splits_and_networks_do_not_depend_on_what_was_done_before():
    images = xu.find_images(xu.data_dir())
    both = []
    for seed in (1, 2):
        disturb(seed)
        splits = [xu.split_images(images, protocol, seed=4) for protocol in ("grouped", "slides")]
        states = [xu.baseline_cnn(seed=4).state_dict(), xu.vit(None, seed=4).state_dict()]
        both.append([table.to_csv() for table in splits] + [t.numpy().tobytes() for s in states for t in s.values()])
    assert both[0] == both[1]
