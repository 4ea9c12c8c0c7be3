"""Device, precision and processes."""

import copy
import os
import textwrap
import time
import timeit
from functools import cache

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from .checks import check_choice
from .environment import report_requirements

PRECISIONS = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}


def choose_precision(precision="auto"):
    """ "fp32", "bf16" or "fp16": the given one, or for "auto" the faster one on this device."""
    check_choice("precision", precision, ("auto", *PRECISIONS))
    if precision != "auto":
        return precision
    if torch.cuda.is_available():  # bf16 from Ampere on; a T4 only emulates it, slowly
        return "bf16" if torch.cuda.get_device_capability()[0] >= 8 else "fp16"
    return "bf16" if bf16_is_faster() else "fp32"


@cache
def bf16_is_faster():
    """Whether this CPU multiplies matrices in bf16 at least 1.2 times as fast as in fp32: measured once, in 20 ms.

    CPU flags are not enough: with AVX512_BF16 but without AMX bf16 may take twice as long, and ONEDNN_MAX_CPU_ISA may
    turn it off. CPU time is measured, so other programs on the same cores do not change the answer.
    """
    clock = time.perf_counter if os.name == "nt" else time.process_time  # the latter has steps of 16 ms on Windows
    matrix = torch.ones(512, 512)
    both = (timeit.repeat(lambda m=m: m @ m, timer=clock, repeat=8, number=1) for m in (matrix, matrix.bfloat16()))
    fp32, bf16 = map(min, both)
    return fp32 > 1.2 * bf16


def check_environment() -> None:
    """Print OK, or what to do, for Python and each line of requirements.txt; then the device and the precision."""
    for line in report_requirements():
        print(textwrap.fill(line, 96, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False))
    print(f"Device: {_device_name(accelerator_of().device)}; precision: {choose_precision()}")


def _device_name(device):
    if device.type == "cuda":
        return torch.cuda.get_device_name()
    return f"CPU, {_count(torch.get_num_threads(), 'thread')}" if device.type == "cpu" else device.type


def _count(number, what):
    return f"{number} {what}{'s' if number != 1 else ''}"


def accelerator_of(precision=None):
    """Accelerate's object for this process: the device, the precision, and the other processes, on CPUs too.

    Raises RuntimeError for a process that was started with others and finds none: each would write the same run.
    """
    if precision:  # a notebook may call fit with several precisions
        AcceleratorState._reset_state(reset_partial_state=False)
    several, mixed = int(os.environ.get("WORLD_SIZE", 1)) > 1, PRECISIONS[precision] if precision else None
    no_gpu = not (torch.cuda.is_available() or torch.xpu.is_available())
    accelerator = Accelerator(mixed_precision=mixed, cpu=several and no_gpu)  # otherwise it ignores other processes
    others = several or ("MASTER_ADDR" in os.environ and "WORLD_SIZE" not in os.environ)
    if others and accelerator.num_processes == 1:
        raise RuntimeError(
            "fit: this process was started with others and finds none. Start them with torchrun or with "
            "accelerate launch --multi_gpu (on CPUs, too), or unset WORLD_SIZE and MASTER_ADDR."
        )
    return accelerator


def synchronised(model, accelerator):
    """`model`; on several GPUs a copy whose BatchNorm sees the parts of all processes (torch: not on CPUs)."""
    if accelerator.num_processes > 1 and accelerator.device.type == "cuda":
        return torch.nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model))
    return model


def _part(batch, accelerator):
    """Positions of this process in `batch`, and how many count: a process without images takes one that does not."""
    mine = np.arange(len(batch))[accelerator.process_index :: accelerator.num_processes]
    return (mine, len(mine)) if len(mine) else (np.arange(1), 0)
