"""Kill a training process again and again, start it again, and compare with one that was never killed, bit for bit.

`run(kills, seed)` works in a process of its own: it imports everything once, and each life is a fork of it that calls
`prepare` or `fit` as a notebook would and is ended with SIGKILL at a random moment, or at one that is aimed at: the
child stops itself there (in the middle of a file, between two files) and waits to be killed.
"""

import json
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CLOCK = ["seconds", "images_per_second"]
NETWORKS = ("baseline_cnn", "vit", "resnet18")  # a short selection takes the first
OPTIONS = (
    dict(schedule="plateau", precision="fp32", class_weights=True),
    dict(schedule="cosine", precision="bf16", warmup=0.2, optimizer="adamw", weight_decay=0.05),
)
MOMENTS = {  # what is said of the moment: the file and the stage at which the child stops, or None for a random time
    "during an epoch": None,
    "at any time": None,
    "in the middle of writing last.pt": ("last.pt", "half"),
    "last.pt written, not renamed": ("last.pt", "written"),
    "between last.pt and best.safetensors": ("last.pt", "after"),
    "in the middle of writing best.safetensors": ("best.safetensors", "half"),
    "between best.safetensors and history.csv": ("best.safetensors", "after"),
    "in the middle of writing history.csv": ("history.csv", "half"),
    "between two epochs": ("history.csv", "after"),
    "in the middle of writing config.json": ("config.json", "half"),
    "in the middle of writing finished.json": ("finished.json", "half"),
}


def run(kills=60, seed=0, epochs=3):
    """The figures of `kills` kills: how many of what, how many bytes were compared, and how many were lost."""
    environment = dict(os.environ, OMP_NUM_THREADS="1", TQDM_DISABLE="1", CUDA_VISIBLE_DEVICES="")
    environment["ACCELERATE_USE_CPU"] = "true"
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), environment.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, __file__, str(kills), str(seed), str(epochs)], env=environment, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"kills: {done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.splitlines()[-1])


# ---------------------------------------------------------------- one life


def watch(send, aim):
    """Let `fit` say where it is: E an epoch starts, W its checkpoint is written, S it is there; stop at `aim`."""

    from xray_utils._support import runs, session

    set_seed, whole_file = session.set_seed, session.whole_file

    def stop_at(path, stage):
        if aim == (path.name, stage):
            send(b"P")
            while True:
                signal.pause()

    def seeded(number):
        send(b"E")
        set_seed(number)

    @contextmanager
    def watched(path):
        if path.name == "last.pt":
            send(b"W")
        with whole_file(path) as temporary:
            yield temporary
            if aim == (path.name, "half"):
                os.truncate(temporary, temporary.stat().st_size // 2)
            stop_at(path, "half")
            stop_at(path, "written")
        if path.name == "last.pt":
            send(b"S")
        stop_at(path, "after")

    session.set_seed, session.whole_file, runs.whole_file = seeded, watched, watched


def live(act, aim=None, delay=None, after=b"G"):
    """Fork, `act`, and kill at `aim` or `delay` seconds after the message `after`. Was it killed, and the messages."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reader)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            watch(lambda message: os.write(writer, message), aim)
            os.write(writer, b"G")
            act()
            os.write(writer, b"D")
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    os.close(writer)
    messages, times, kill_at = b"", [], None
    while True:
        wait = None if kill_at is None else max(0, kill_at - time.monotonic())
        if not select.select([reader], [], [], wait)[0]:
            break
        message = os.read(reader, 1)
        if message in (b"P", b""):
            break
        messages += message
        times.append(time.monotonic())
        if message == after and delay is not None and kill_at is None:
            kill_at = time.monotonic() + delay
    os.close(reader)
    if message != b"":
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    if status == 0 or (b"D" in messages and os.WIFSIGNALED(status)):
        return False, messages, times
    if not (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL):
        raise RuntimeError(f"a life ended by itself with status {status}")
    return True, messages, times


# ---------------------------------------------------------------- what is compared


def contents(folder):
    """All that a run promises to repeat, as bytes by name: history without its clock, weights, state, predictions."""
    import pandas as pd
    import torch
    from safetensors.torch import load_file

    last = torch.load(folder / "last.pt", weights_only=True)
    parts = {
        "history": pd.read_csv(folder / "history.csv", dtype=str).drop(columns=CLOCK).to_csv().encode(),
        "predictions": (folder / "predictions.csv").read_bytes(),
        "finished": (folder / "finished.json").read_bytes(),
        "config": (folder / "config.json").read_bytes(),
        "plateau": repr(last["plateau"]).encode(),
        "groups": repr(last["optimizer"]["param_groups"]).encode(),
        "rows": repr([{k: v for k, v in row.items() if k not in CLOCK} for row in last["history"]]).encode(),
    }
    tensors = {f"best {name}": t for name, t in load_file(folder / "best.safetensors").items()}
    tensors |= {f"last {name}": t for name, t in last["model"].items()}
    for number, state in last["optimizer"]["state"].items():
        tensors |= {f"optimizer {number} {name}": t for name, t in state.items()}
    return parts | {name: t.contiguous().numpy().tobytes() for name, t in tensors.items()}


def lost(wanted, found):
    """The number of bytes of `wanted` that are not in `found`, or more than `wanted` has."""
    import numpy as np

    count = 0
    for name in wanted.keys() | found.keys():
        one, other = (np.frombuffer(parts.get(name, b""), np.uint8) for parts in (wanted, found))
        shared = min(len(one), len(other))
        count += int((one[:shared] != other[:shared]).sum()) + max(len(one), len(other)) - shared
    return count


# ---------------------------------------------------------------- the whole


def handful(size):
    """Prepared phantoms, sides by hand: 12 to train, 5 to watch, 6 to test."""
    import xray_utils as xu

    images = xu.find_images(ROOT / "data" / "sample")
    few = images.groupby("label").head(8).sort_values("file", ignore_index=True)
    sides = (["train"] * 4 + ["val", "test"] * 2) * 3
    few = few.assign(split=sides, mirrored=[i % 5 == 0 for i in range(len(few))])
    few = few.drop(few.index[few.split.eq("val")][:1])  # 5: no whole number of batches
    few.attrs = images.attrs
    return few, lambda: xu.prepare(few, size=size)


def kill_runs(network, options, kills, moments, rng, base, figures, epochs):
    import xray_utils as xu

    make = {"baseline_cnn": xu.baseline_cnn, "resnet18": xu.resnet18, "vit": lambda: xu.vit(weights=None)}[network]
    data = handful(224 if network == "vit" else 32)[1]()
    options = dict(epochs=epochs, lr=1e-3, batch_size=5, augment=True, **options)

    def act(outputs):
        def whole_cell():
            os.environ["XRAY_OUTPUTS"] = str(outputs)
            run = xu.fit(make(), data, network, **options)
            xu.predict(run.model, data.test).to_csv(run.folder / "predictions.csv", index=False)

        return whole_cell

    outputs = [base / "never killed", base / "killed"]
    folders = [folder / "runs" / network for folder in outputs]
    _, messages, times = live(act(outputs[0]))
    starts, writes = ([t for m, t in zip(messages, times, strict=True) if m == ord(k)] for k in "EW")
    epoch, life = writes[0] - starts[0], times[-1] - times[0]
    wanted = contents(folders[0])
    left = kills
    while True:
        shutil.rmtree(outputs[1], ignore_errors=True)
        saved, killed = 0, True
        while killed:
            if not moments:  # each in its turn, the order by chance
                moments += rng.sample(list(MOMENTS), len(MOMENTS))
            moment = moments.pop()
            aim, delay = MOMENTS[moment], None
            if aim is None:
                delay = rng.uniform(0, epoch if moment == "during an epoch" else life / 2)
            if left == 0:
                aim = delay = None
            killed, messages, _ = live(act(outputs[1]), aim, delay, b"E" if moment == "during an epoch" else b"G")
            saved += messages.count(b"S")
            if killed:
                left -= 1
                figures["kills_by_network"][network] += 1
                figures["kills_by_moment"][moment] = figures["kills_by_moment"].get(moment, 0) + 1
                figures["epochs_lost_to_one_kill_at_most"] = max(
                    figures["epochs_lost_to_one_kill_at_most"], messages.count(b"E") - messages.count(b"S")
                )
        found = contents(folders[1])
        figures["runs_compared"] += 1
        figures["epochs_saved_twice"] += max(0, saved - epochs)
        figures["bytes_compared"] += sum(map(len, wanted.values()))
        figures["bytes_lost"] += lost(wanted, found)
        if left == 0:
            break
    shutil.rmtree(base)


def kill_prepares(kills, rng, base, figures):
    few, prepare = handful(224)

    def act(outputs):
        def cell():
            os.environ["XRAY_OUTPUTS"] = str(outputs)
            prepare()

        return cell

    _, _, times = live(act(base / "never killed"))
    (folder,) = (base / "never killed" / "prepared").iterdir()
    wanted = {name: (folder / name).read_bytes() for name in ("images.npy", "index.csv")}
    while kills:
        killed = live(act(base / "killed"), delay=rng.uniform(0, times[-1] - times[0]))[0]
        if not killed:
            shutil.rmtree(base / "killed")
            continue
        kills -= 1
        figures["kills_of_prepare"] += 1
        if rng.random() < 0.5 or not kills:  # else killed once more
            live(act(base / "killed"))
            found = {name: (base / "killed" / "prepared" / folder.name / name).read_bytes() for name in wanted}
            figures["sets_compared"] += 1
            figures["bytes_compared"] += sum(map(len, wanted.values()))
            figures["bytes_lost"] += lost(wanted, found)
            shutil.rmtree(base / "killed")


def no_lock_across_forks():
    """tqdm: no thread that watches, and a lock for each process; one killed with a lock held would stop all others."""
    from tqdm.std import tqdm

    tqdm.monitor_interval = 0
    tqdm.set_lock(threading.RLock())


def main(kills, seed, epochs):
    import torch

    import xray_utils as xu

    no_lock_across_forks()
    torch.set_num_threads(1)  # before any fork: no thread of the parent may be missed by its children
    xu.vit(weights=None), xu.resnet18()  # what they import is imported once
    start, rng = time.monotonic(), random.Random(seed)
    cases = [(network, OPTIONS[(i + turn + 1) % 2]) for turn in range(2) for i, network in enumerate(NETWORKS)]
    prepares = max(1, kills // 10)
    cases = cases[: max(1, (kills - prepares) // 2)]  # at least two kills each
    figures = dict(kills=kills, seed=seed, kills_by_network=dict.fromkeys(NETWORKS, 0), kills_by_moment={})
    figures |= dict(kills_of_prepare=0, runs_compared=0, sets_compared=0, epochs_lost_to_one_kill_at_most=0)
    figures |= dict(epochs_saved_twice=0, bytes_compared=0, bytes_lost=0)
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # a kill loses no more there than on a disk
    moments = []
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        os.environ["XRAY_OUTPUTS"] = str(Path(folder, "outputs"))
        kill_prepares(prepares, rng, Path(folder, "prepare"), figures)
        for i, (network, options) in enumerate(cases):
            share = (kills - prepares) // len(cases) + (i < (kills - prepares) % len(cases))
            kill_runs(network, options, share, moments, rng, Path(folder, str(i)), figures, epochs)
    return {**figures, "seconds": round(time.monotonic() - start)}


if __name__ == "__main__":
    print(json.dumps(main(*map(int, sys.argv[1:]))))
