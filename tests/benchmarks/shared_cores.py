"""What waiting threads cost: `python tests/benchmarks/shared_cores.py` (six minutes) writes results/shared_cores.json.

Each training of the sample runs alone, and two at the same time, as two open notebooks do; seconds an epoch, for three
ways to wait: as the system has it (spin), to sleep at once (OMP_WAIT_POLICY=passive), and that of the course.
"""

import argparse
import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
WAYS = {
    "spin, the system's default": {"OMP_WAIT_POLICY": "active", "GOMP_SPINCOUNT": "300000"},
    "sleep at once": {"OMP_WAIT_POLICY": "passive"},
    "the course": {},
}
EPOCHS = {"baseline_cnn": 6, "resnet18": 2, "vit": 4}


def measure():
    """Seconds an epoch of each network, in this process: the median, the first epoch left out."""
    import xray_utils as xu

    found = {}
    with contextlib.redirect_stdout(io.StringIO()):
        data = xu.load_data("grouped", mirror=False)
        models = {"baseline_cnn": xu.baseline_cnn(), "resnet18": xu.resnet18(), "vit": xu.vit(xu.vit_weights(True))}
        for name, model in models.items():
            run = xu.fit(model, data, name, epochs=EPOCHS[name], batch_size=8, precision="fp32")
            found[name] = float(run.history.seconds[1:].median())
    print(json.dumps(found))


def together(way, count):
    """`count` processes at once; of each network the mean of what they took."""
    with tempfile.TemporaryDirectory() as folder:
        own = dict(XRAY_DATA=str(ROOT / "data" / "sample"), TQDM_DISABLE="1")
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}
        started = [
            subprocess.Popen(
                [sys.executable, __file__, "measure"],
                env=environment | own | way | {"XRAY_OUTPUTS": f"{folder}/{i}"},
                stdout=subprocess.PIPE,
                text=True,
            )
            for i in range(count)
        ]
        answers = [json.loads(process.communicate()[0]) for process in started]
    return {name: sum(answer[name] for answer in answers) / count for name in EPOCHS}


def main():
    """All ways, in pairs and alone; alone three times in turns, of which the median counts, since the cost is small."""
    found = {name: {"two": together(way, 2)} for name, way in WAYS.items()}
    rounds = [{name: together(way, 1) for name, way in WAYS.items()} for _ in range(3)]
    for name in WAYS:
        found[name]["alone"] = {net: median(one[name][net] for one in rounds) for net in EPOCHS}
    result = {"command": "python tests/benchmarks/shared_cores.py", "cores": os.cpu_count(), "seconds an epoch": found}
    (ROOT / "results" / "shared_cores.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="?", choices=["measure"], help="one process; left out: all of them")
    measure() if parser.parse_args().part else main()
