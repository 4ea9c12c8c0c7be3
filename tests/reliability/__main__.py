"""All figures of reliability, into results/reliability.json: `python tests/reliability` (hours).

`--only bootstrap`, `--only kills`, `--only images` or `--only soak` does one part again and keeps the others. A soak
that was interrupted (Ctrl-C) goes on after the last round that was complete, if the code is still the same.
"""

import argparse
import importlib
import json
import os
import platform
import sys
from datetime import date
from importlib.metadata import version
from pathlib import Path

PARTS = ("bootstrap", "kills", "images", "soak")
PACKAGES = ("torch", "transformers", "accelerate", "numpy", "pandas", "pillow", "scikit-learn", "pytest")
ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(Path(__file__).resolve().parent), str(ROOT)]


def processor():
    """The model of the processor; no name of the machine."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def main(arguments=None, path=ROOT / "results" / "reliability.json"):
    """Run the parts asked for, one after the other; the file is written after each, whole or not at all."""
    parser = argparse.ArgumentParser(prog="python tests/reliability", description=__doc__)
    parser.add_argument("--only", choices=PARTS, action="append", help="do this part alone; can be given again")
    options = parser.parse_args(arguments)
    from xray_utils.data import whole_file

    figures = json.loads(path.read_text()) if path.is_file() else {}

    def save(part, found):
        figures[part] = {
            "command": f"python tests/reliability --only {part}",
            "date": date.today().isoformat(),
            "machine": {"processor": processor(), "cores": os.cpu_count(), "system": platform.system()},
            "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
            "figures": found,
        }
        whole = {name: figures[name] for name in PARTS if name in figures}
        with whole_file(path) as temporary:
            temporary.write_text(json.dumps(whole, indent=1) + "\n")

    for part in options.only or PARTS:
        print(f"{part} ...", flush=True)
        more = {}
        if part == "soak":
            more = {"earlier": figures.get(part, {}).get("figures"), "save": lambda found: save("soak", found)}
        found = importlib.import_module(part).run(**more)
        save(part, found)
        print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
