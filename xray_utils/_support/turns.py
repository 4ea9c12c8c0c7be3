"""Trainings on the same cores, as in two open notebooks, take turns."""

import os
import tempfile
import time
from contextlib import suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

SECONDS = 0.1  # of a turn, at least: then trainings with short and long steps share the time equally


class Turns:
    """For one or more steps a training has all cores for itself; then the next training has its turn.

    Threads of one training wait for each other many times in a step. If another training holds a core meanwhile, all
    threads lose their time (results/speed.md). There are two locks, so that who has had a turn comes last; the system
    frees them when a process ends. No effect if not `wanted`, and where files cannot be locked.
    """

    def __init__(self, wanted=True):
        self.files, self.start = [], None  # `start` of its turn
        if wanted and fcntl:
            stem = Path(tempfile.gettempdir(), f"xray_utils-{os.getuid()}")
            with suppress(OSError):
                self.files = [open(f"{stem}-{name}.lock", "a") for name in ("queue", "step")]

    def take(self):
        """Wait for this training's turn, or go on with it."""
        if self.files and self.start is None:
            queue, step = self.files
            try:
                fcntl.flock(queue, fcntl.LOCK_EX)
                fcntl.flock(step, fcntl.LOCK_EX)
                fcntl.flock(queue, fcntl.LOCK_UN)
                self.start = time.monotonic()
            except OSError:  # some network folders have no locks
                self.close()

    def give(self, seconds=SECONDS):
        """End the turn after a step, if it took at least so long."""
        if self.start is not None and time.monotonic() - self.start >= seconds:
            fcntl.flock(self.files[1], fcntl.LOCK_UN)
            self.start = None

    def close(self):
        """Give everything back."""
        for file in self.files:
            file.close()
        self.files, self.start = [], None
