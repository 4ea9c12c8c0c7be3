"""Notebook tests (`pytest --nbval-lax`) use the bundled sample, and outputs of each process."""

import os
import re
import shutil
import tempfile
from pathlib import Path

from xdist.scheduler import LoadScopeScheduling

SAMPLE = Path(__file__).resolve().parents[1] / "data" / "sample"
os.environ.pop("XRAY_EXTERNAL", None)
OUTPUTS = tempfile.mkdtemp(prefix="xray-notebooks-")
os.environ.update(
    XRAY_DATA=str(SAMPLE), XRAY_OUTPUTS=OUTPUTS, TQDM_DISABLE="1", HF_HUB_OFFLINE="1"
)
if "PYTEST_XDIST_WORKER" in os.environ:  # several workers share the cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")


class ByFile(LoadScopeScheduling):
    """Notebooks 3 to 7 share runs: one worker does them, in order. Other files as they come."""

    def _split_scope(self, nodeid):
        file = nodeid.split("::")[0]
        return "notebooks" if re.match("notebooks/0[3-7]", file) else file


def pytest_xdist_make_scheduler(config, log):
    """Cells of a notebook share a kernel, and notebooks their runs."""
    return ByFile(config, log)


def pytest_collection_modifyitems(items):
    """Notebooks come first and in order, however tests are shuffled: they use earlier runs."""
    items.sort(
        key=lambda item: (
            (0, str(item.path), item.cell_num) if hasattr(item, "cell_num") else (1, "", 0)
        )
    )


def pytest_unconfigure(config):
    shutil.rmtree(OUTPUTS, ignore_errors=True)
