"""Notebook tests (`pytest --nbval-lax`) use the bundled sample and outputs of their own."""

import os
import shutil
import tempfile
from pathlib import Path

SAMPLE = Path(__file__).resolve().parents[1] / "data" / "sample"
OUTPUTS = tempfile.mkdtemp(prefix="xray-notebooks-")
os.environ.update(
    XRAY_DATA=str(SAMPLE), XRAY_OUTPUTS=OUTPUTS, TQDM_DISABLE="1", HF_HUB_OFFLINE="1"
)


def pytest_unconfigure(config):
    shutil.rmtree(OUTPUTS, ignore_errors=True)
