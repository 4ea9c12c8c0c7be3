"""Notebook tests (`pytest --nbval-lax`) use the bundled sample, and outputs of each process."""

import os
import shutil
import tempfile
from pathlib import Path

SAMPLE = Path(__file__).resolve().parents[1] / "data" / "sample"
os.environ.pop("XRAY_EXTERNAL", None)
OUTPUTS = tempfile.mkdtemp(prefix="xray-notebooks-")
os.environ.update(
    XRAY_DATA=str(SAMPLE), XRAY_OUTPUTS=OUTPUTS, TQDM_DISABLE="1", HF_HUB_OFFLINE="1"
)


def pytest_configure(config):
    """Cells of a notebook share a kernel: with `-n`, tests are dealt out file by file."""
    if getattr(config.option, "dist", "no") != "no":
        config.option.dist = "loadfile"


def pytest_collection_modifyitems(items):
    """Notebooks come first and in order, however tests are shuffled: they use earlier runs."""
    items.sort(
        key=lambda item: (
            (0, str(item.path), item.cell_num) if hasattr(item, "cell_num") else (1, "", 0)
        )
    )


def pytest_unconfigure(config):
    shutil.rmtree(OUTPUTS, ignore_errors=True)
