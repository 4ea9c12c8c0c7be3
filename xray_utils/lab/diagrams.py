"""Diagrams of networks, drawn from their modules and shapes."""

import operator
import re
from contextlib import ExitStack
from itertools import groupby

import torch
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle
from matplotlib.ticker import EngFormatter
from torch import fx, nn

from .._support.checks import check_kind, check_size
from .._support.style import OTHER_COLOURS, _figure
from ..models import check_model, count_parameters, evaluating

INK, SKIP, SUM, PALE = OTHER_COLOURS[0], OTHER_COLOURS[2], "#FFFFFF", "#E8E8E8"


def _stages(model, images):
    """The modules of a network in the order they finish: [(name, module, output shape, parameters)].

    A module is opened when it has no forward of its own, holds most of the network, or has parameters of its own beside
    its children; so no parameter is counted twice and none is left out.
    """
    shown, opened, shapes = {}, set(), {}
    for name, module in model.named_modules():  # a module before those in it
        inside, _, last = name.rpartition(".")
        if name and inside not in opened:
            continue
        own = list(module.parameters(recurse=False))
        most = count_parameters(module) > 0.6 * count_parameters(model) and not isinstance(module, nn.Sequential)
        if not name or most or isinstance(module, nn.ModuleList | nn.ModuleDict) or own and list(module.children()):
            opened.add(name)
        if own or name not in opened:
            counted = own if name in opened else module.parameters()
            shown[module] = last or type(model).__name__, sum(p.numel() for p in counted)

    def note(module, _, output):
        tensor = output if isinstance(output, torch.Tensor) else output[0]
        shapes[module] = tuple(tensor.shape[1:])

    with evaluating(model) as device, torch.no_grad(), ExitStack() as hooks:
        for module in shown:
            hooks.enter_context(module.register_forward_hook(note))
        model(images.to(device))
    changing = (module for module in shapes if not isinstance(module, nn.Dropout | nn.Identity))
    return [(shown[module][0], module, shapes[module], shown[module][1]) for module in changing]


def plot_network(model: torch.nn.Module, size: int = 224) -> Figure:
    """A network from left to right: the shape that leaves each part, and where its parameters are.

    Parts are the modules that an image [1, 3, size, size] passes; equal ones in a row are drawn once. The height of a
    box stands for the resolution (of a vector: 1; of patches: their number along a side), its width for the channels.
    Raises ValueError for anything but a network, and for one that cannot take such an image.
    """
    check_model(model)
    check_size(size)
    parts = [("image", 1, (3, size, size), 0)]
    try:
        stages = _stages(model, torch.zeros(1, 3, size, size))
    except RuntimeError as error:
        raise ValueError(f"model: an image [1, 3, {size}, {size}] cannot pass it ({str(error)[:200]}).") from error
    for (kind, shape, each), run in groupby(stages, key=lambda stage: (type(stage[1]), *stage[2:])):
        names = [stage[0] for stage in run]
        name = names[0] if len(names) == 1 and not names[0].isdigit() else kind.__name__
        parts.append((name, len(names), shape, each * len(names)))
    total = sum(part[3] for part in parts)
    with _figure(2, 1, 10.5, 4.1, height_ratios=[2.3, 1]) as (figure, axes):
        boxes, bars = axes[:, 0]
        for x, (name, times, shape, parameters) in enumerate(parts):
            channels, side = (shape[0], shape[-1]) if len(shape) == 3 else (shape[-1], 1)
            if len(shape) == 2:  # tokens: [patches, channels]
                side = shape[0] ** 0.5
            width = 0.16 + 0.065 * min(11, channels).bit_length() + 0.04 * channels.bit_length()
            height = (side / size) ** 0.5
            for copy in range(min(times, 3) - 1, -1, -1):
                shift = 0.05 * copy
                boxes.add_patch(Rectangle((x - width / 2 + shift, -height / 2 + shift), width, height,
                                          fc=PALE if x else "0.85", ec=INK if x else "0.4", lw=1.3))  # fmt: skip
            words = (" x\n" if len(shape) == 3 else " x ").join(map(str, shape))
            boxes.text(x, -0.58, words, ha="center", va="top", fontsize=12)
            name = re.sub(r"_|(?<=[A-Za-z]{3})(?=[A-Z][a-z])", "\n", name)  # in narrow lines
            boxes.text(x, 0.62, f"{times} x\n{name}" if times > 1 else name, ha="center", va="bottom", fontsize=12)
            bars.bar(x, parameters, 0.7, color=INK)
            if parameters:
                words = EngFormatter(places=1)(parameters) if parameters >= 1000 else str(parameters)  # 1.5 k
                bars.text(x, parameters, words, ha="center", va="bottom", fontsize=12)
        boxes.set(xlim=(-0.6, len(parts) - 0.4), ylim=(-1, 1.05))
        boxes.axis("off")
        most, times, _, largest = max(parts, key=lambda part: part[3])
        most = f"{times} x {most}" if times > 1 else f"one part, {most}"
        bars.set(xlim=boxes.get_xlim(), xticks=[], ylabel="parameters", yticks=[])
        bars.margins(y=0.25)
        bars.set_title(f"{largest / max(total, 1):.0%} of the {total:,} parameters are in {most}")
        return figure


def _text(node, modules):
    """What one step of a block is called, with the numbers of its module."""
    module = modules.get(node.target) if node.op == "call_module" else None
    if isinstance(module, nn.Conv2d):
        size, stride = "x".join(map(str, module.kernel_size)), module.stride[0]
        text = f"conv {size}\n{module.in_channels} to {module.out_channels}"
        return text + (f"\nstride {stride}" if stride > 1 else "")
    if isinstance(module, nn.BatchNorm2d):
        return "batch\nnorm"
    name = type(module).__name__ if module is not None else getattr(node.target, "__name__", str(node.target))
    return {"relu": "ReLU", "relu_": "ReLU"}.get(name, name)


def _paths(block):
    """The steps of a block: on the main path to the sum, on the skip path to the sum, and after the sum."""
    try:
        graph = fx.symbolic_trace(block).graph
    except Exception as error:  # a network may do anything
        raise ValueError(f"block: its steps cannot be followed ({str(error).splitlines()[0][:100]}).") from error
    steps = [node for node in graph.nodes if node.op not in ("placeholder", "output")]
    sums = [node for node in steps if node.target in (operator.add, operator.iadd, torch.add)]
    if len(sums) != 1 or len(sums[0].all_input_nodes) != 2:
        raise ValueError(f"block: it holds {len(sums)} sums of two paths, not one; pass one such as model.layer1[0].")

    def way(node):
        return [] if node.op == "placeholder" else way(node.all_input_nodes[0]) + [node]

    skip, change = sorted(map(way, sums[0].all_input_nodes), key=len)
    return change, skip, steps[steps.index(sums[0]) + 1 :]


def plot_residual_block(block: torch.nn.Module) -> Figure:
    """A residual block (He et al. 2016), step by step: main path, skip path, and their sum.

    Raises ValueError for a module whose steps cannot be traced, or that does not add two paths once.
    """
    check_kind("block", block, nn.Module, "network", "a block such as resnet18().layer1[0]")
    modules = dict(block.named_modules())
    change, skip, after = ([_text(node, modules) for node in path] for path in _paths(block))
    with _figure(width=9.6, height=2.9) as (figure, axes):
        axis, end = axes[0, 0], len(change) + len(after) + 1.75
        axis.set(xlim=(-0.3, end + 0.3), ylim=(-0.55, 2.05))
        axis.axis("off")

        def arrow(start, stop, colour="0.3"):
            style = dict(arrowstyle="-|>", mutation_scale=14, color=colour, shrinkA=0, shrinkB=0, lw=1.6)
            axis.add_patch(FancyArrowPatch(start, stop, **style))

        def box(x, y, text, colour, half=0.36):
            axis.add_patch(FancyBboxPatch((x - half, y - 0.36), 2 * half, 0.72, "round,pad=0.04", fc=colour, ec="0.3"))
            axis.text(x, y, text, ha="center", va="center", fontsize=11)

        steps, plus = [*change, "+", *after], len(change) + 1
        halves = [0.16 if text == "+" else 0.4 for text in steps]  # of the widths
        starts = [0.05, *(x + half for x, half in enumerate(halves, start=1))]
        for x, (text, half, start) in enumerate(zip(steps, halves, starts, strict=False), start=1):
            box(x, 0, text, SUM if text == "+" else PALE, half - 0.04)
            arrow((start, 0), (x - half, 0))
        arrow((starts[-1], 0), (end, 0))
        axis.plot([0.3, 0.3, plus], [0, 1.4, 1.4], color=SKIP, lw=2.5, zorder=0)
        arrow((plus, 1.4), (plus, 0.42), SKIP)
        for x, text in enumerate(skip, start=1):
            box(plus / 2 + (x - (len(skip) + 1) / 2) * 1.1, 1.4, text, "#E4DEFF")
        name = "skip: x, brought to the new shape" if skip else "skip: x as it is"
        axis.text(plus / 2, 1.86 if skip else 1.5, name, ha="center", va="bottom", fontsize=12)
        axis.text(0, 0, "x ", ha="right", va="center", fontsize=15, fontweight="bold")
        axis.text(end, 0, " y", ha="left", va="center", fontsize=15, fontweight="bold")
        return figure
