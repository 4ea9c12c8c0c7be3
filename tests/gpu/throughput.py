"""Images per second of whole epochs on generated images of 224 px: `fit`, the bound, the usual loop, other libraries.

An epoch of `fit` is its second: training and validation, as in history.csv; against the bound without its checkpoint,
against the others with it. The bound does as many steps on one batch in memory. Of the usual loop and the peers the
whole call counts; they decode files.
"""

import contextlib
import functools
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from unittest import mock

import material as m
import torch

import xray_utils as xu
from xray_utils._support import memory
from xray_utils._support.device import choose_precision

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
import contestants

ROUNDS = 2
T4 = 15e9  # bytes of a T4 that a program can use
# part: network, images, {contestant: (function, workers, images)}
USUAL = {f"usual loop, {n} workers": (contestants.usual_with_workers, n, 1000 * max(2, n)) for n in (0, 2, 8)}
LIGHTNING = {"Lightning, 8 workers": (contestants.lightning, 8, 8000)}
TRAINER = {"HF Trainer, 8 workers": (contestants.trainer, 8, 4000)}
ENTRIES = {
    "resnet18": (lambda quick: xu.resnet18(), 10_000, USUAL | LIGHTNING),
    "baseline_cnn": (lambda quick: xu.baseline_cnn(), 10_000, USUAL | LIGHTNING),
    "vit_base": (m.vit_base, 2_560, USUAL | TRAINER),
}


def epoch_of_fit(course, precision, kept, epochs=2):
    """Seconds of the second epoch and of its checkpoint, seconds to the first step, peak memory in bytes."""
    marks, first, device = [], [], torch.device(course.device)

    def second_batch(session, number):
        if number == 1 and not first:
            m.synchronise(device)
            first.append(time.perf_counter())

    room = contextlib.nullcontext() if kept else mock.patch.object(memory, "room_for_pixels", lambda device: 0)
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    with room, m.quiet(), m.watched(lambda _: marks.append(time.perf_counter()), second_batch):
        run = xu.fit(course.make(), course.data, "run", epochs, course.lr, course.batch_size, precision=precision)
    seconds = float(run.history.seconds.iloc[-1])
    peak = torch.cuda.max_memory_reserved() if device.type == "cuda" else 0
    return {"seconds": seconds, "seconds with checkpoint": marks[-1] - marks[-2], "first step": first[0] - start,
            "peak memory": peak, "fits 15 GB": peak < T4}  # fmt: skip


def timed(run, course, precision):
    m.synchronise(torch.device(course.device))
    start = time.perf_counter()
    run(course, precision)
    m.synchronise(torch.device(course.device))
    return time.perf_counter() - start


def course_of(stage, make, images, workers=2):
    folder = Path(tempfile.mkdtemp(dir=xu.outputs_dir()))
    data = m.generated(folder / "images", images, 32 if stage.quick else 224)
    files = contestants.folders(data, folder / "files")
    return contestants.Course(files, data, make, 1e-4, 16 if stage.quick else 32, stage.device.type, workers)


def throughput(stage, names=tuple(ENTRIES), rounds=ROUNDS):
    """Stage b: of all networks first `fit` and the bound, then the others."""
    precision = choose_precision() if stage.device.type == "cuda" else "fp32"
    courses, rates = {}, {}
    with m.quiet() as folder:
        folder.mkdir(exist_ok=True)
        for name in names:
            with stage.part(f"{name}: fit and bound, {precision}") as found:
                make, images, _ = ENTRIES[name]
                images = 48 if stage.quick else images
                courses[name] = course_of(stage, m.maker(functools.partial(make, stage.quick)), images)
                found |= {"images": images, "precision": precision}
                found |= against_bound(courses[name], precision, rounds)
                rates[name] = images / found["seconds with checkpoint"]
                if name == "vit_base" and stage.device.type == "cuda":
                    limited(found, courses[name], precision)
        for name in rates:
            course, peers = courses[name], ENTRIES[name][2]
            images = len(course.data.train)
            with stage.part(f"{name}: fit, images not kept on the GPU, {precision}") as found:
                found |= epoch_of_fit(course, precision, kept=False)
                found["images per second"] = round(images / found["seconds with checkpoint"], 1)
            for peer, (run, workers, most) in peers.items():
                library = {"Lightning": "lightning.pytorch", "HF Trainer": "transformers.trainer"}
                library = library.get(peer.partition(",")[0], "torch")
                if not find_spec(library.partition(".")[0]):
                    continue
                with stage.part(f"{name}: {peer}, {precision}") as found:
                    import_module(library)  # before the clock starts
                    few = course_of(stage, course.make, min(most, images), min(workers, 2) if stage.quick else workers)
                    found["images"] = len(few.data.train)
                    rate = found["images"] / timed(run, few, precision)
                    found |= {"images per second": round(rate, 1), "fit is faster by": round(rates[name] / rate, 2)}
        for other in [one for one in stage.precisions if one != precision and "resnet18" in rates]:
            with stage.part(f"resnet18: fit and bound, {other}") as found:
                few = course_of(stage, courses["resnet18"].make, 48 if stage.quick else 2_560)
                found |= {"images": len(few.data.train)} | against_bound(few, other, 1)


def against_bound(course, precision, rounds):
    """`fit` and the bound in turn: the figures of the last `fit`, and of all rounds images per second and shares."""
    timed(contestants.bound, smaller(course), precision)  # warm
    ours, bounds, images = [], [], len(course.data.train)
    for _ in range(rounds):
        ours.append(epoch_of_fit(course, precision, kept=True))
        bounds.append(timed(contestants.bound, course, precision))

    def share(key):
        return round(statistics.median(bound / one[key] for bound, one in zip(bounds, ours, strict=True)), 3)

    return ours[-1] | {
        "first step": ours[0]["first step"],
        "images per second": [round(images / one["seconds"], 1) for one in ours],
        "bound, images per second": [round(images / one, 1) for one in bounds],
        "share of the bound": share("seconds"),
        "share of the bound, checkpoint counted": share("seconds with checkpoint"),
    }


def smaller(course):
    """The same with two batches."""
    count, train = 2 * course.batch_size, course.data.train
    few = replace(train, rows=train.rows.iloc[:count], positions=train.positions[:count])
    return replace(course, data=replace(course.data, train=few))


def limited(found, course, precision):
    """Two batches with no more memory than a T4 has: an error where they do not fit."""
    share = T4 / torch.cuda.get_device_properties(0).total_memory
    if share < 1:
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(share)
        try:
            epoch_of_fit(smaller(course), precision, kept=True, epochs=2)
            found["trained in 15 GB"] = True
        except RuntimeError as error:
            found["trained in 15 GB"] = str(error)
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
