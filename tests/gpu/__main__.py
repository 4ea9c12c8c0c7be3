"""The course on a GPU: `python tests/gpu` takes at most six minutes and writes results/gpu.json.

a: losses, gradients, kills, predictions, maps, export against the CPU; e: two processes; b: images per second and
memory; c: waits for the GPU, and profiles; d: torch.compile and CUDA graphs. Each stage runs in a process of its own
with its own time; what it has found by then is kept. Without a GPU, and with --quick, all sizes are small.
"""

import argparse
import os
import platform
import signal
import subprocess
import sys
import time
from datetime import date
from importlib import import_module
from pathlib import Path
from shutil import which

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(Path(__file__).resolve().parent), str(ROOT / "tests"), str(ROOT)]
os.environ |= {"TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1", "XRAY_DATA": str(ROOT / "data" / "sample")}

import figures as figures_module  # noqa: E402
import material as m  # noqa: E402

STAGES = {  # name: module, function, seconds
    "a": ("agreement", "agreement", 100),
    "b": ("throughput", "throughput", 165),
    "c": ("waits", "waits", 35),
    "e": ("agreement", "processes", 40),
    "d": ("compiling", "compiling", 60),
}
TOTAL = 350
WANTED = {"resnet18": 0.95, "vit_base": 0.95, "baseline_cnn": 0.8}  # share of the bound, batches of 32
USUAL, FIRST_STEP = 5, 10
PACKAGES = ("lightning", *figures_module.PACKAGES)


def machine():
    import torch

    found = {"processor": figures_module.processor(), "cores": os.cpu_count(), "system": platform.system()}
    found |= {"versions": {"python": platform.python_version(), **figures_module.versions(PACKAGES)}}
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        driver = subprocess.run(query, capture_output=True, text=True).stdout.split()[:1] if which(query[0]) else None
        found |= {"GPU": properties.name, "GPUs": torch.cuda.device_count(), "memory": properties.total_memory}
        found |= {"driver": driver, "CUDA": torch.version.cuda, "cuDNN": torch.backends.cudnn.version()}
    return found


def judge(stages):
    """What was wanted, found, and whether it was met: rows of (what, wanted, found, met)."""
    rows = []
    parts = {name: stage.get("parts", {}) for name, stage in stages.items()}
    for stage in ("a", "e"):
        for part, found in parts.get(stage, {}).items():
            met = "error" not in found and found.get("on the device", True)
            met = met and all(one["within"] for one in within(found))
            rows.append((part, "within the tolerance", found.get("error", met), met))
    throughput = parts.get("b", {})
    for part, found in throughput.items():
        name, _, what = part.partition(": ")
        if what.startswith("fit and bound") and "error" not in found:
            share, first = found["share of the bound"], found["first step"]
            rows.append((f"{name}, share of the bound,{what[14:]}", WANTED[name], share, share >= WANTED[name]))
            rows.append((f"{name}, seconds to the first step", FIRST_STEP, round(first, 2), first <= FIRST_STEP))
            fits = found["fits 15 GB"] and found.get("trained in 15 GB", True) is True
            rows.append((f"{name}, batches of 32 fit 15 GB", True, fits, fits))
        if "fit is faster by" in found:
            least, ratio = USUAL if "usual" in part else 1, found["fit is faster by"]
            rows.append((f"{part}: fit is faster by", least, ratio, ratio >= least))
        if "error" in found:
            rows.append((part, "no error", found["error"], False))
    for part, found in parts.get("c", {}).items():
        calls = {name: n for name, n in found.get("calls", {}).items() if n and name != "cudaDeviceSynchronize"}
        seen = found.get("error") or found["warned of"] | calls  # the profiler itself waits for the device once
        rows.append((f"{part}: waits in {found.get('steps')} steps", 0, seen or 0, not seen))
    for name, stage in stages.items():
        if stage["ended"] != "whole":
            rows.append((f"stage {name}", "whole", stage["ended"], False))
    return [dict(zip(("what", "wanted", "found", "met"), row, strict=True)) for row in rows]


def run(words, seconds):
    """How a stage ended; all its processes are stopped when its time is over."""
    process = subprocess.Popen(words, start_new_session=True)
    try:
        code = process.wait(seconds)
        return "whole" if code == 0 else f"exit {code}"
    except subprocess.TimeoutExpired:
        return f"out of time after {seconds:.0f} s"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def within(found):
    """All verdicts in a part, at any depth."""
    if "within" in found:
        yield found
    for value in found.values():
        if isinstance(value, dict):
            yield from within(value)


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python tests/gpu", description=__doc__)
    parser.add_argument("--stage", choices=STAGES, action="append", help="this stage alone; can be given again")
    parser.add_argument("--quick", action="store_true", help="small sizes, as without a GPU")
    parser.add_argument("--to", type=Path, default=ROOT / "results" / "gpu.json", help="the file of results")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    import torch

    quick = options.quick or not torch.cuda.is_available()
    if options.inside:
        (name,) = options.stage
        module, function, _ = STAGES[name]
        getattr(import_module(module), function)(m.Stage(name, options.to, quick))
        return
    start = time.monotonic()
    found = m.read(options.to)
    command = "python tests/gpu" + " --quick" * options.quick + "".join(f" --stage {s}" for s in options.stage or ())
    found |= {"command": command, "date": date.today().isoformat(), "machine": machine(), "small sizes": quick}
    m.write(options.to, found)
    for name in options.stage or STAGES:
        found = m.read(options.to)
        found.setdefault("stages", {})[name] = {"ended": "killed", "parts": {}}
        m.write(options.to, found)
        left = min(STAGES[name][2], TOTAL - (time.monotonic() - start))
        words = [sys.executable, __file__, "--stage", name, "--to", str(options.to), "--inside"]
        began = time.monotonic()
        ended = run(words + ["--quick"] * quick, None if quick else max(1, left))
        found = m.read(options.to)
        found["stages"][name] |= {"ended": ended, "seconds": round(time.monotonic() - began, 1)}
        found["wanted"] = judge(found["stages"])
        m.write(options.to, found)
    for row in found["wanted"]:
        print(f"{'met    ' if row['met'] else 'NOT MET'}  {row['what']}: wanted {row['wanted']}, found {row['found']}")
    print(f"{time.monotonic() - start:.0f} s" + ", small sizes: the times mean nothing" * quick)


if __name__ == "__main__":
    main()
