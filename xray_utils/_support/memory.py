"""Memory of the device and of the allocator."""

import ctypes
import math
import sys
from contextlib import contextmanager

import numpy as np
import torch

from ..batches import to_device


@contextmanager
def memory_for(batch_size):
    """Raise RuntimeError with a batch size to try when memory runs out on a batch of `batch_size` images."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        on_cpu = "can't allocate memory" in str(error)  # the message of torch
        if not on_cpu and not isinstance(error, (torch.OutOfMemoryError, MemoryError)):
            raise
        remedy = f"try {batch_size // 2}" if batch_size > 1 else "take smaller images or a smaller network"
        raise RuntimeError(f"batch_size: {batch_size} is too large for the memory of this device; {remedy}.") from error


@contextmanager
def memory_kept():
    """Reuse memory freed by a layer; otherwise glibc returns it and the system clears it again each time.

    At the end free memory is returned; an inner use ends the outer one. glibc's settings for this, those of
    the environment too, are replaced. Only on Linux; no effect on other systems. Source: man 3 mallopt.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if not hasattr(libc, "malloc_trim"):  # not glibc
        yield
        return
    trim_threshold, mmap_threshold, mmap_max = -1, -3, -4  # malloc.h
    libc.mallopt(mmap_max, 0)
    libc.mallopt(trim_threshold, -1)
    try:
        yield
    finally:  # glibc's own values in a process that frees large blocks
        for option, value in ((mmap_threshold, 2**25), (trim_threshold, 2**26), (mmap_max, 2**16)):
            libc.mallopt(option, value)
        libc.malloc_trim(0)


def _in_format(images, wanted, before):
    """A copy of images [B, C, H, W] in the memory format `wanted`; their gradients come back in `before`."""
    if images.requires_grad:
        images.register_hook(lambda gradients: gradients.contiguous(memory_format=before))
    return images.clone(memory_format=wanted)  # a copy, since a later layer may change it in place


def channels_first_for_few(model, device):
    """Hooks that pass few channels to BatchNorm on a CPU in channels-first memory; the caller removes them.

    With channels last, PyTorch is slow on channels that do not fill registers of 16 numbers: two (fp32) to ten times
    (bf16) slower on eight channels with AVX-512, not on 16 or many. The results are equal but for rounding.
    """
    hooks, orders = [], (torch.contiguous_format, torch.channels_last)
    for layer in model.modules() if device.type == "cpu" else ():
        if type(layer) is torch.nn.BatchNorm2d and layer.num_features < 32 and layer.num_features % 16:
            first = layer.register_forward_pre_hook(lambda _, given: _in_format(*given, *orders) if given else None)
            last = layer.register_forward_hook(lambda _, given, output: _in_format(output, *orders[::-1]))
            hooks += [first, last]
    return hooks


def room_for_pixels(device):
    """Bytes of a GPU's free memory that prepared images may fill: a quarter. 0 on other devices."""
    return torch.cuda.mem_get_info(device)[0] // 4 if device.type == "cuda" else 0


def pixels_of(split, device):
    """`split.take`, or the same from a copy of all images on the GPU if there is room."""
    if len(split) * math.prod(split.pixels.shape[1:]) > room_for_pixels(device):
        return split.take
    everything = torch.from_numpy(split.take(np.arange(len(split)))).to(device)
    return lambda indices: everything[to_device(indices, device)]
