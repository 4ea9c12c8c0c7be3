"""How fast is an epoch? Ours, the usual loop, other libraries and the arithmetic alone: `python tests/benchmarks`.

Into results/benchmarks.json, on the images of `XRAY_DATA` and, for the ViT, the weights of `XRAY_VIT_WEIGHTS`. All
contestants run in one process, in turn (A B C A B C); a ratio is one of neighbours, of the same round. Lightning and
fastai are left out where they are not installed: `pip install -e ".[benchmarks]"`. `--only` does some parts again and
keeps the others. Let nothing else run meanwhile.
"""

import argparse
import contextlib
import io
import json
import os
import statistics
import sys
import tempfile
import time
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(Path(__file__).resolve().parent), str(ROOT / "tests"), str(ROOT)]

import contestants as c  # noqa: E402
import figures  # noqa: E402
import preparing  # noqa: E402
import torch  # noqa: E402

import xray_utils as xu  # noqa: E402
from xray_utils._support.device import choose_precision  # noqa: E402

TWO = ("fp32", "bf16")
FIELD = [("ours", c.ours, TWO), ("bound", c.bound, TWO),
         ("bound, memory kept", c.bound_with_memory_kept, TWO), ("usual loop, 0 workers", c.usual, TWO),
         ("usual loop, 2 workers", c.usual_with_workers, TWO), ("Lightning", c.lightning, TWO),
         ("fastai", c.fastai, TWO[:1])]  # fmt: skip
PRODUCTS = ("matrix products", c.products, TWO)
ENTRIES = {  # part: network, learning rate, pixels of the longer side of the files (None: as they are), contestants
    "resnet18": (xu.resnet18, 1e-3, None, [*FIELD, PRODUCTS]),
    "baseline_cnn": (xu.baseline_cnn, 1e-3, None, FIELD),
    "baseline_cnn, files of 1500 px": (xu.baseline_cnn, 1e-3, 1500, FIELD[:5]),
    "vit": (lambda: xu.vit(os.environ.get("XRAY_VIT_WEIGHTS", xu.VIT_NAME)), 5e-5, None,
            [*FIELD[:3], PRODUCTS, ("HF Trainer", c.trainer, TWO)]),
}  # fmt: skip
PARTS = [*ENTRIES, *preparing.PARTS]
PACKAGES = ("lightning", "fastai", *figures.PACKAGES)


def spread(values):
    """Median, least and greatest, rounded."""
    return [round(float(f(values)), 3) for f in (statistics.median, min, max)]


def measure(course, field, rounds):
    """Seconds of each contestant in each round, `{"name, precision": [...]}`."""
    runs = [(f"{name}, {precision}", run, precision) for name, run, precisions in field for precision in precisions]
    seconds = {name: [] for name, *_ in runs}
    for number in range(rounds):
        for name, run, precision in runs:
            start = time.perf_counter()
            with contextlib.redirect_stdout(io.StringIO()):
                run(course, precision)
            seconds[name].append(time.perf_counter() - start)
            print(f"round {number + 1}, {name}: {seconds[name][-1]:.1f} s", flush=True)
    return seconds


def network(part, rounds, limit):
    """Images per second of each contestant, and how many times as fast as it, and as the bound, ours is."""
    make, lr, side, field = ENTRIES[part]
    for peer in ("lightning", "fastai"):
        if find_spec(peer):
            import_module("fastai.vision.all" if peer == "fastai" else peer)  # before the clock starts
        else:
            field = [entry for entry in field if entry[0].lower() != peer]
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XRAY_OUTPUTS"] = f"{folder}/outputs"
        data = preparing.some(xu.data_dir(), Path(folder) / "images", limit, side)
        course = c.Course(c.folders(data, Path(folder) / "files"), data, make, lr)
        print(f"{course.operations / 1e12:.1f} trillion operations an epoch")  # counted before the clock starts
        seconds = measure(course, field, rounds)
    default = choose_precision()
    images = len(data.train)
    rows = {}
    for name, times in seconds.items():
        precision = name.rpartition(", ")[2]
        rows[name] = {"images_per_second": spread([images / t for t in times])}
        for key, mine in (("ours_is_faster_by", default), ("ours_is_faster_by_at_its_precision", precision)):
            rows[name][key] = spread([a / b for a, b in zip(times, seconds[f"ours, {mine}"], strict=True)])
    table = [f"{name:32} {row['images_per_second'][0]:8.1f} images/s   ours is faster by "
             f"{row['ours_is_faster_by'][0]:.2f}, at its precision {row['ours_is_faster_by_at_its_precision'][0]:.2f}"
             for name, row in rows.items()]  # fmt: skip
    print("\n".join(table))
    return dict(rounds=rounds, train_images=images, val_images=len(data.val), batch_size=course.batch_size,
                default_precision=default, threads=torch.get_num_threads(),
                values="median, least and greatest over the rounds", contestants=rows)  # fmt: skip


def main(arguments=None, path=ROOT / "results" / "benchmarks.json"):
    """Run the parts asked for; the file is written after each, whole or not at all."""
    parser = argparse.ArgumentParser(prog="python tests/benchmarks", description=__doc__)
    parser.add_argument("--only", choices=PARTS, action="append", help="do this part alone; can be given again")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, help="take this many images of each class at most")
    options = parser.parse_args(arguments)
    for part in options.only or PARTS:
        print(f"{part} ...", flush=True)
        if part in ENTRIES:
            found = network(part, options.rounds, options.images)
        else:
            found = preparing.PARTS[part](options.rounds, options.images)
            print(json.dumps(found, indent=1))
        command = f'python tests/benchmarks --only "{part}" --rounds {options.rounds}'
        command += f" --images {options.images}" if options.images else ""
        figures.write(path, part, command, found, PARTS, PACKAGES)


if __name__ == "__main__":
    main()
