"""Every test reads the bundled sample and writes under its own temporary folder, never in the user's."""

import os
from pathlib import Path

import pytest

os.environ["TQDM_DISABLE"] = "1"  # tqdm reads it once, when it is imported
os.environ.setdefault("OMP_NUM_THREADS", "1")  # two workers on two cores


@pytest.fixture(autouse=True)
def apart(tmp_path, monkeypatch):
    """`XRAY_OUTPUTS` in the test's folder, `XRAY_DATA` the bundled sample, whatever the user has set."""
    monkeypatch.setenv("XRAY_OUTPUTS", str(tmp_path / "outputs"))
    monkeypatch.delenv("XRAY_EXTERNAL", raising=False)
    monkeypatch.setenv("XRAY_DATA", str(Path(__file__).resolve().parents[1] / "data" / "sample"))
