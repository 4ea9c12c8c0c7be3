"""The test command of the README again and again, in a clean clone of this commit, under many conditions."""

import getpass
import hashlib
import os
import re
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PASSED_ON = ("PATH", "SYSTEMROOT", "LD_LIBRARY_PATH")  # of the caller's environment, beside what a condition sets
# Options of pytest, and variables of the environment, by condition; {new} is a folder that does not exist.
CONDITIONS = {
    "idle": ([], {}),
    "beside a full load": ([], {}),
    "random order": (["-p", "randomly"], {}),
    "one thread": ([], {"OMP_NUM_THREADS": "1"}),
    "two threads": ([], {"OMP_NUM_THREADS": "2"}),
    "eight threads": ([], {"OMP_NUM_THREADS": "8"}),
    "AVX2 only": ([], {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}),
    "odd TZ, LANG, HOME": ([], {"TZ": "Pacific/Kiritimati", "LANG": "tr_TR.UTF-8", "HOME": "{new}"}),
    "read-only checkout": ([], {}),
    "path with spaces and accents": ([], {}),
}
TIMES = {"idle": 10, "beside a full load": 10, "random order": 10}  # once otherwise


def code(folder):
    """A digest of everything that a run depends on: earlier runs of the same code are kept."""
    digest = hashlib.sha256()
    for part in ("xray_utils", "tests", "notebooks", "data", "requirements.txt", "pyproject.toml"):
        part = folder / part
        for path in sorted(part.rglob("*")) if part.is_dir() else [part]:
            if path.is_file() and "__pycache__" not in path.parts:
                digest.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def copy_to(clone):
    """A clean clone of the commit that is checked out."""
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)


@contextmanager
def full_load():
    """A process for each core that does nothing but keep it busy."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count())]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def read_only(command, folder):
    """`command`, with `folder` read-only; for root, whom permissions do not stop, by a mount of its own."""
    if os.geteuid():
        subprocess.run(["chmod", "-R", "a-w", folder], check=True)
        return command
    mount = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && cd "$0" && exec "$@"'
    return ["unshare", "--mount", "sh", "-c", mount, str(folder), *command]


def one_run(condition, clone, again):
    """One run of the suite in `clone`: is it green, counts, seconds, the longest cell or test, the processor."""
    from figures import processor  # of tests/, which the caller has on its path

    options, variables = CONDITIONS[condition]
    command = [sys.executable, "-m", "pytest", "--nbval-lax", *options]
    command += [f"--randomly-seed={again}"] if "randomly" in options else []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        environment |= {"HOME": str(Path.home()), "USER": getpass.getuser(), "PYTHONPATH": str(clone)}
        environment |= {name: value.format(new=folder / "no such home") for name, value in variables.items()}
        if condition == "beside a full load":
            stack.enter_context(full_load())
        if condition == "read-only checkout":
            command = read_only(command, clone)
            stack.callback(subprocess.run, ["chmod", "-R", "u+w", clone], check=True)
        start = time.perf_counter()
        done = subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True)
        seconds = time.perf_counter() - start
    counts = {word: int(n) for n, word in re.findall(r"(\d+) (passed|failed|error|skipped)", done.stdout[-300:])}
    slowest = max(
        ((float(s), name) for s, name in re.findall(r"^([\d.]+)s \w+ +(\S.*)$", done.stdout, re.M)), default=()
    )
    green = done.returncode == 0 and "passed" in counts
    found = {"green": green, **counts, "seconds": round(seconds), "slowest": list(slowest)}
    found["processor"] = processor()
    if not green:
        lines = re.findall(r"^(?:FAILED|ERROR) (.+?)(?: - |$)", done.stdout, re.M)
        found["failures"] = lines or [(done.stdout + done.stderr)[-500:]]
    return found


def summary(figures):
    """How many runs there were, and how many of them were green, in all and by condition."""
    runs = figures["runs"]
    each = {
        name: {
            "runs": len(of_one),
            "green": sum(one["green"] for one in of_one),
            "seconds": [min(one["seconds"] for one in of_one), max(one["seconds"] for one in of_one)],
        }
        for name, of_one in runs.items()
        if of_one
    }
    return {
        "code": figures["code"],
        "runs_in_all": sum(one["runs"] for one in each.values()),
        "green_in_all": sum(one["green"] for one in each.values()),
        "conditions": each,
        "runs": runs,
    }


def run(earlier=None, save=lambda figures: None, only=None, times=TIMES) -> dict:
    """The figures of all runs that are left; `save` gets them after each. `only`: names of conditions."""
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder, "course")
        copy_to(clone)
        figures = {"code": code(clone), "runs": {}}
        if earlier and earlier.get("code") == figures["code"]:
            figures["runs"] = earlier["runs"]
        for condition in only or CONDITIONS:
            runs = figures["runs"].setdefault(condition, [])
            here = clone.rename(clone.with_name("à la plage, été")) if condition.startswith("path") else clone
            while len(runs) < times.get(condition, 1):
                runs.append(one_run(condition, here, len(runs)))
                print(condition, runs[-1], flush=True)
                save(summary(figures))
            if here != clone:
                here.rename(clone)
        return summary(figures)
