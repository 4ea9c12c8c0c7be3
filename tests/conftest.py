"""Every test reads the bundled sample and writes under its own temporary folder, never in the user's."""

import os
from pathlib import Path

import pytest

os.environ["TQDM_DISABLE"] = "1"  # tqdm reads it once, when it is imported
os.environ.setdefault("OMP_NUM_THREADS", "1")  # two workers on two cores


@pytest.fixture(scope="session")
def phantom_folder(tmp_path_factory):
    """A synthetic set, and a second hospital beside it, drawn once for each worker: where the truth must be known."""
    from phantoms import draw_external, draw_sample

    folder = tmp_path_factory.mktemp("phantoms") / "sample"
    draw_sample(folder)
    draw_external(folder.with_name("sample_external"))
    return folder


@pytest.fixture(autouse=True)
def apart(tmp_path, monkeypatch):
    """`XRAY_OUTPUTS` in the test's folder, `XRAY_DATA` the bundled sample, whatever the user has set."""
    monkeypatch.setenv("XRAY_OUTPUTS", str(tmp_path / "outputs"))
    monkeypatch.delenv("XRAY_EXTERNAL", raising=False)
    monkeypatch.setenv("XRAY_DATA", str(Path(__file__).resolve().parents[1] / "data" / "sample"))
