"""Batches of a split, as the input of a network."""

from functools import lru_cache

import numpy as np
import torch


def batches(split, batch_size, rng=None):
    """Index arrays of at most `batch_size`, in random order if a numpy generator is given."""
    order = np.arange(len(split)) if rng is None else rng.permutation(len(split))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def to_device(array, device):
    """A numpy array or tensor on the device; copied to a GPU from pinned memory, so that the program does not wait."""
    tensor = torch.as_tensor(array)
    if torch.device(device).type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


@lru_cache(maxsize=32)  # a new tensor on a GPU is a copy that the program waits for
def _line(values, width, device):
    return torch.tensor(values, dtype=torch.float32, device=device).repeat(width)


def to_input(pixels, model, device):
    """uint8 [B, H, W, 3] to the normalised float [B, 3, H, W] (channels last in memory) that `model` expects."""
    pixels = to_device(pixels, device)
    width = pixels.shape[2]  # statistics of a whole line: three numbers at a time take five times as long
    mean, std = (_line(tuple(values), width, device) for values in (model.input_mean, model.input_std))
    lines = pixels.flatten(2).float()  # [B, H, W * 3]
    lines.div_(255).sub_(mean).div_(std)  # in place: new memory costs more than the arithmetic
    return lines.view(pixels.shape).permute(0, 3, 1, 2)
