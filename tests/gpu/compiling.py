"""Is there something to gain? A training step on one batch: as it is, cuDNN's search, `torch.compile`, CUDA graphs."""

import statistics
import time

import material as m
import torch
from torch.nn import functional as F

import xray_utils as xu
from xray_utils._support.device import choose_precision
from xray_utils.models import logits_of

NETWORKS = {"resnet18": lambda quick: xu.baseline_cnn() if quick else xu.resnet18(), "vit_base": m.vit_base}
WAYS = ("as it is", "cudnn.benchmark", "CUDA graph", "torch.compile", "torch.compile, reduce-overhead")


def stepper(model, device, size, batch, precision, capturable=False):
    """A function that trains one step, and the images in it."""
    images = torch.rand(batch, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)
    labels = torch.arange(batch, device=device) % 3
    options = dict(lr=1e-4, fused=True, capturable=capturable)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], **options)
    kind = torch.float16 if precision == "fp16" else torch.bfloat16

    def step():
        with torch.autocast(device.type, kind, enabled=precision != "fp32", cache_enabled=not capturable):
            logits = logits_of(model, images)
        loss = F.cross_entropy(logits.float(), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def milliseconds(step, device, steps, rounds=3):
    """The median of `rounds` of a step, after three to warm up."""
    for _ in range(3):
        step()
    times = []
    for _ in range(rounds):
        m.synchronise(device)
        start = time.perf_counter()
        for _ in range(steps):
            step()
        m.synchronise(device)
        times.append(1000 * (time.perf_counter() - start) / steps)
    return statistics.median(times)


def captured(step):
    """The step as a CUDA graph; warmed up on a stream of its own, as the documentation of PyTorch asks."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def compiling(stage, names=tuple(NETWORKS), ways=WAYS):
    """Stage d."""
    size, batch, steps = (32, 2, 2) if stage.quick else (224, 32, 30)
    precision = choose_precision() if stage.device.type == "cuda" else "fp32"
    for way in ways:
        for name in names:
            if way == "CUDA graph" and stage.device.type != "cuda":
                continue
            if way.startswith("torch.compile") and stage.quick and (name, way) != (names[0], "torch.compile"):
                continue  # to compile takes a minute on a CPU
            with stage.part(f"{name}: {way}") as found:
                model = NETWORKS[name](stage.quick).to(stage.device, memory_format=torch.channels_last).train()
                torch.backends.cudnn.benchmark = way == "cudnn.benchmark"
                start = time.perf_counter()
                if way.startswith("torch.compile"):
                    torch._dynamo.reset()
                    model = torch.compile(model, mode="reduce-overhead" if "," in way else None)
                step = stepper(model, stage.device, size, batch, precision, capturable=way == "CUDA graph")
                step = captured(step) if way == "CUDA graph" else step
                step()
                m.synchronise(stage.device)
                found["seconds to the first step"] = round(time.perf_counter() - start, 2)
                found["milliseconds a step"] = round(milliseconds(step, stage.device, steps), 3)
                torch.backends.cudnn.benchmark = False
