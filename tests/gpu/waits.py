"""How often does a step of `fit` wait for the GPU, and what takes its time? Twice the same steps, between two looks."""

import collections
import warnings

import material as m
import torch
from torch.profiler import ProfilerActivity, profile

import xray_utils as xu
from xray_utils._support.device import choose_precision

WAITS = ("cudaStreamSynchronize", "cudaEventSynchronize", "cudaDeviceSynchronize", "aten::item",
         "aten::_local_scalar_dense")  # fmt: skip
NETWORKS = {"baseline_cnn": lambda quick: xu.baseline_cnn(), "resnet18": lambda quick: xu.resnet18(),
            "vit_base": m.vit_base}  # fmt: skip


def steps(stage, data, make, window, start, stop, augment):
    """One epoch of `fit`; `start` before the first step of the window, `stop` before the one behind it."""

    def at(session, number):
        if number == window[0]:
            start()
        if number == window[1]:
            stop()

    precision = choose_precision() if stage.device.type == "cuda" else "fp32"
    batch_size = 2 if stage.quick else 32
    with m.quiet(), m.watched(step=at):
        xu.fit(make(), data, "run", 1, 1e-4, batch_size, precision=precision, augment=augment)


def warned(stage, data, make, window, augment):
    """The waits that PyTorch itself warns of, by place; on a CPU there are none."""
    gpu, marks = stage.device.type == "cuda", []
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        mark = lambda: marks.append(len(seen))  # noqa: E731
        if gpu:
            torch.cuda.set_sync_debug_mode("warn")
        try:
            steps(stage, data, make, window, mark, mark, augment)
        finally:
            if gpu:
                torch.cuda.set_sync_debug_mode("default")
    places = [f"{one.filename.rpartition('/')[2]}:{one.lineno}" for one in seen[slice(*marks)]
              if "synchronizing" in str(one.message)]  # fmt: skip
    return dict(collections.Counter(places))


def table(events, key, count=10):
    """The `count` rows that take most time: name, calls, milliseconds."""
    events = sorted(events, key=lambda event: -getattr(event, key))[:count]
    return [[event.key[:90], event.count, round(getattr(event, key) / 1000, 3)] for event in events]


def waits(stage, names=tuple(NETWORKS)):
    """Stage c."""
    window = (2, 6) if stage.quick else (21, 37)  # the loop looks at its counters in step 19 and 39
    with m.quiet() as folder:
        data = m.generated(folder / "images", 16 if stage.quick else 32 * 42, 32 if stage.quick else 224)
        for name in names:
            make = m.maker(lambda name=name: NETWORKS[name](stage.quick))
            for augment in (False, "strong") if name == names[0] else (False,):
                with stage.part(f"{name}, augment {augment}") as found:
                    found["steps"] = window[1] - window[0]
                    found["warned of"] = warned(stage, data, make, window, augment)
                    kinds = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (stage.device.type == "cuda")
                    profiler = profile(activities=kinds, acc_events=True)
                    steps(stage, data, make, window, profiler.start, profiler.stop, augment)
                    events = profiler.key_averages()
                    gpu = stage.device.type == "cuda"  # a CPU waits for nothing: there `item` is a plain read
                    found["calls"] = {key: sum(e.count for e in events if e.key == key) for key in WAITS} if gpu else {}
                    found["copies"] = {e.key: e.count for e in events if e.key.startswith("Memcpy")}
                    found["top kernels"] = table(events, "self_device_time_total")
                    found["top host operations"] = table(events, "self_cpu_time_total")
