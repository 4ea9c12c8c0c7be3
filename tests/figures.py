"""A part of a file of measured figures, with the command, the machine and the versions behind it."""

import json
import os
import platform
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("torch", "torchvision", "transformers", "accelerate", "numpy", "pandas", "pillow", "scikit-learn", "pytest")


def processor():
    """The model of the processor; no name of the machine."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def versions(packages):
    """The version of each package that is installed."""
    found = {}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def write(path, part, command, found, order, packages=PACKAGES):
    """Put `found` into the file as `part`, the others kept, in `order`; whole or not at all."""
    from xray_utils._support.files import whole_file

    figures = json.loads(path.read_text()) if path.is_file() else {}
    figures[part] = {
        "command": command,
        "date": date.today().isoformat(),
        "machine": {"processor": processor(), "cores": os.cpu_count(), "system": platform.system()},
        "versions": {"python": platform.python_version(), **versions(packages)},
        "figures": found,
    }
    whole = {name: figures[name] for name in order if name in figures}
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(whole, indent=1) + "\n")
