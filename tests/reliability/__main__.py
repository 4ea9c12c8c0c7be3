"""All figures of reliability, into results/reliability.json: `python tests/reliability` (hours).

`--only bootstrap`, `kills`, `images`, `soak` or `suite` does one part again and keeps the others. `suite` runs the test
command of the README in a clean clone of this commit, 37 times under ten conditions; when interrupted (Ctrl-C), it goes
on after the last complete run if the code is still the same. `--condition idle` (or another) does one condition.
"""

import argparse
import importlib
import json
import sys
from pathlib import Path

PARTS = ("bootstrap", "kills", "images", "soak", "suite")
ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(Path(__file__).resolve().parent), str(ROOT / "tests"), str(ROOT)]


def main(arguments=None, path=ROOT / "results" / "reliability.json"):
    """Run the parts asked for, one after the other; the file is written after each, whole or not at all."""
    parser = argparse.ArgumentParser(prog="python tests/reliability", description=__doc__)
    parser.add_argument("--only", choices=PARTS, action="append", help="do this part alone; can be given again")
    conditions = list(importlib.import_module("suite").CONDITIONS)
    parser.add_argument(
        "--condition", choices=conditions, action="append", help="of the part suite; can be given again"
    )
    options = parser.parse_args(arguments)
    import figures

    earlier = json.loads(path.read_text()) if path.is_file() else {}

    def save(part, found):
        figures.write(path, part, f"python tests/reliability --only {part}", found, PARTS)

    for part in options.only or PARTS:
        print(f"{part} ...", flush=True)
        more = {}
        if part == "suite":
            more = {"earlier": earlier.get(part, {}).get("figures"), "save": lambda found: save("suite", found)}
            more["only"] = options.condition
        found = importlib.import_module(part).run(**more)
        save(part, found)
        print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
