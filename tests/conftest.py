"""Every test reads the bundled sample and writes under its own temporary folder, never in the user's."""

import os
import random
import sys
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

os.environ["TQDM_DISABLE"] = "1"  # tqdm reads it once, when it is imported
os.environ.setdefault("OMP_NUM_THREADS", "1")  # two workers on two cores


def pytest_configure(config):
    """No thread of tqdm's: it may hold the lock of all bars while a test forks, and the child would wait for ever."""
    from tqdm import tqdm

    tqdm.monitor_interval = 0


@pytest.fixture(scope="session")
def phantom_folder(tmp_path_factory):
    """A synthetic set, and a second hospital beside it, drawn once for all workers: where the truth must be known."""
    from phantoms import draw_external, draw_sample

    shared = tmp_path_factory.getbasetemp()
    shared = shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared
    folder = shared / "phantoms" / "sample"
    with FileLock(shared / "phantoms.lock"):
        if not (shared / "phantoms" / "drawn").exists():
            draw_sample(folder)
            draw_external(folder.with_name("sample_external"))
            (shared / "phantoms" / "drawn").touch()
    return folder


@pytest.fixture(autouse=True)
def same_draws():
    """The global random states, whatever ran before: what is drawn without a seed is the same each time."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)


@pytest.fixture(autouse=True)
def apart(tmp_path, monkeypatch):
    """`XRAY_OUTPUTS` in the test's folder, `XRAY_DATA` the bundled sample, whatever the user has set."""
    monkeypatch.setenv("XRAY_OUTPUTS", str(tmp_path / "outputs"))
    monkeypatch.delenv("XRAY_EXTERNAL", raising=False)
    monkeypatch.setenv("XRAY_DATA", str(Path(__file__).resolve().parents[1] / "data" / "sample"))
