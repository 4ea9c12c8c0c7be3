"""Two trainings on the same cores: `python tests/benchmarks/shared_cores.py` (six minutes), results/shared_cores.json.

Each training of the sample runs alone, and two at the same time, as two open notebooks do; seconds an epoch, as the
course has it, without its turns, without its setting for waiting threads too, and with one thread for each training.
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
sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]
WAYS = {
    "threads spin, no turns": {"GOMP_SPINCOUNT": "300000", "NO_TURNS": "1"},  # as the system has it
    "threads sleep, no turns": {"NO_TURNS": "1"},
    "the course: threads sleep, turns": {},
    "one thread each": {"OMP_NUM_THREADS": "1"},
}
EPOCHS = {"baseline_cnn": 21, "resnet18": 3, "vit": 7}


def measure():
    """Seconds an epoch of each network, in this process: the median, the first epoch left out."""
    import xray_utils as xu
    from xray_utils._support import session, turns

    if "NO_TURNS" in os.environ:
        session.Turns = lambda wanted: turns.Turns(False)
    found = {}
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        os.environ["XRAY_OUTPUTS"] = folder
        data = xu.load_data("grouped", mirror=False)
        models = {"baseline_cnn": xu.baseline_cnn(), "resnet18": xu.resnet18(), "vit": xu.vit(xu.vit_weights(True))}
        for name, model in models.items():
            run = xu.fit(model, data, name, epochs=EPOCHS[name], batch_size=8)
            found[name] = float(run.history.seconds[1:].median())
    print(json.dumps(found))


def together(way, count):
    """`count` processes at once; of each network the mean of what they took."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}
    environment |= dict(XRAY_DATA=str(ROOT / "data" / "sample"), TQDM_DISABLE="1") | way
    command = [sys.executable, __file__, "measure"]
    started = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(count)]
    answers = [json.loads(process.communicate()[0]) for process in started]
    return {name: sum(answer[name] for answer in answers) / count for name in EPOCHS}


def main():
    """All ways, in pairs and alone; alone three times in turns, of which the median counts, since the cost is small."""
    import figures

    found = {name: {"two": together(way, 2)} for name, way in WAYS.items()}
    rounds = [{name: together(way, 1) for name, way in WAYS.items()} for _ in range(3)]
    for name in WAYS:
        found[name]["alone"] = {net: median(one[name][net] for one in rounds) for net in EPOCHS}
    path, command = ROOT / "results" / "shared_cores.json", "python tests/benchmarks/shared_cores.py"
    figures.write(path, "seconds an epoch", command, found, ["seconds an epoch"])
    print(path.read_text())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="?", choices=["measure"], help="one process; left out: all of them")
    measure() if parser.parse_args().part else main()
