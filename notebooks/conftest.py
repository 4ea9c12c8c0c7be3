"""Notebook tests (`pytest --nbval-lax`): the bundled sample, one folder of outputs for all."""

import os
import re
import shutil
import tempfile
import time
from pathlib import Path

from xdist.scheduler import LoadScopeScheduling

SAMPLE = Path(__file__).resolve().parents[1] / "data" / "sample"
FIRST = (
    "04",
    "05",
    "03",
    "01",
    "02",
    "07",
    "06",
)  # the longest first; 6 and 7 use the runs of 3 to 5
TRAINED = ("03", "04", "05")
WORKER = "PYTEST_XDIST_WORKER" in os.environ
if not WORKER:  # workers inherit it
    os.environ["XRAY_OUTPUTS"] = tempfile.mkdtemp(prefix="xray-notebooks-")
OUTPUTS = os.environ["XRAY_OUTPUTS"]
os.environ.pop("XRAY_EXTERNAL", None)
os.environ.update(XRAY_DATA=str(SAMPLE), TQDM_DISABLE="1", HF_HUB_OFFLINE="1")
if WORKER:  # several workers share the cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def number_of(item):
    """The two digits of a notebook's cell, "" for other tests."""
    return item.path.stem[:2] if hasattr(item, "cell_num") else ""


class ByFile(LoadScopeScheduling):
    """A notebook is done by one worker: its cells share a kernel. So is a file of tests."""

    def _split_scope(self, nodeid):
        return nodeid.split("::")[0]


def pytest_xdist_make_scheduler(config, log):
    """Files are handed out in the order of collection."""
    return ByFile(config, log)


def pytest_collection_modifyitems(items):
    """Notebooks come first, in the order of `FIRST`, however tests are shuffled."""
    numbers = {item: number_of(item) for item in items}
    items.sort(
        key=lambda item: (
            (FIRST.index(numbers[item]), item.cell_num) if numbers[item] else (len(FIRST), 0)
        )
    )


def pytest_runtest_setup(item):
    """Before notebooks 6 and 7, another worker finishes those of 3 to 5 that it has begun."""
    if number_of(item) not in ("06", "07") or item.cell_num:
        return
    awaited = {other.path.stem for other in item.session.items if number_of(other) in TRAINED}
    end = time.monotonic() + 1800  # after that what is missing is made
    while (
        any(not Path(OUTPUTS, f"{stem}.done").exists() for stem in awaited)
        and time.monotonic() < end
    ):
        time.sleep(0.5)


def pytest_runtest_teardown(item, nextitem):
    """Say that a notebook is done, whether or not its cells passed."""
    if re.fullmatch("0[3-5]", number_of(item)) and (
        nextitem is None or nextitem.path != item.path
    ):
        Path(OUTPUTS, f"{item.path.stem}.done").touch()


def pytest_unconfigure(config):
    """The workers' folder is removed once, at the end."""
    if not WORKER:
        shutil.rmtree(OUTPUTS, ignore_errors=True)
