"""Lung segmentation by a small U-Net trained on synthetic radiographs only; no download needed.

`results/scripts/lung_network.py` draws the radiographs and trains the network.
"""

from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from scipy import ndimage
from torch import nn
from torch.nn import functional as F

from .._support.checks import check_number
from ..models import load_weights

WEIGHTS = Path(__file__).with_name("lungs.safetensors")
SIZE = 64  # pixels along a side of the network's input
TRUSTED = 0.9  # the lowest score of a trusted estimate


class LungNet(nn.Module):
    """Standardised grey images [B, 1, 64, 64] to logits of lung [B, 64, 64]; 105,956 parameters.

    A U-Net (Ronneberger et al. 2015, arXiv:1505.04597) whose first step halves the resolution, for speed.
    """

    def __init__(self, widths=(16, 24, 32, 48)):
        super().__init__()

        def conv(inputs, filters, size=3, stride=1):
            layer = nn.Conv2d(inputs, filters, size, stride, padding=size // 2, bias=False)
            return nn.Sequential(layer, nn.BatchNorm2d(filters), nn.ReLU())

        first = widths[0]
        self.stem = conv(1, first, size=5, stride=2)
        pairs = list(zip(widths, widths[1:], strict=False))
        self.down = nn.ModuleList(nn.Sequential(conv(a, b), conv(b, b)) for a, b in [(first, first), *pairs])
        self.up = nn.ModuleList(conv(a + b, a) for a, b in pairs)
        self.head = nn.Conv2d(first, 4, 1)  # 2 x 2 pixels for each that the stem halved

    def forward(self, x):
        x, kept = self.stem(x), []
        for i, block in enumerate(self.down):
            x = block(F.max_pool2d(x, 2) if i else x)
            kept.append(x)
        for block, skip in zip(reversed(self.up), reversed(kept[:-1]), strict=True):
            x = block(torch.cat([skip, F.interpolate(x, scale_factor=2.0)], dim=1))
        return F.pixel_shuffle(self.head(x), 2)[:, 0]


@cache
def _network():
    network = LungNet()
    network.load_state_dict({name: tensor.float() for name, tensor in load_weights(WEIGHTS).items()})
    return network.eval()


def _standardised(x):
    return (x - x.mean((-1, -2), keepdim=True)) / (x.std((-1, -2), keepdim=True) + 1e-3)


class LungFields(NamedTuple):
    """What `lung_fields` returns: `masks` bool [B, H, W], `score` [B] in 0..1, and `trusted` bool [B]."""

    masks: np.ndarray
    score: np.ndarray
    trusted: np.ndarray


def check_pixels(pixels):
    """Raise ValueError for anything but images, uint8 [B, H, W, 3]."""
    shape, dtype = getattr(pixels, "shape", ()), getattr(pixels, "dtype", type(pixels).__name__)
    if dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or 0 in shape:
        raise ValueError(f"pixels: {dtype} {shape} must be uint8 [B, H, W, 3], at least one image; see data.test.take.")


@torch.no_grad()
def lung_fields(pixels: np.ndarray) -> LungFields:
    """An estimate of the lung fields of uint8 pixels [B, H, W, 3], without heart and mediastinum, as `LungFields`.

    score: the Dice expected from the probabilities, in 0..1. trusted: the score is at least `TRUSTED`, and there are
    two lungs, one in each half of the image. results/saliency.md has the Dice on test sets; on images that are not
    frontal chest X-rays the estimate is meaningless. Raises ValueError for anything but such pixels.
    """
    check_pixels(pixels)
    network, parts = _network(), []
    for images in torch.from_numpy(pixels).split(64):
        grey = images.float().mean(dim=3)[:, None]
        small = F.interpolate(grey, size=(SIZE, SIZE), mode="bilinear", antialias=True)
        x = _standardised(small / 255)
        lung = (network(x).sigmoid() + network(x.flip(-1)).sigmoid().flip(-1)) / 2  # of the image and its mirror image
        lung = F.interpolate(lung[:, None], size=pixels.shape[1:3], mode="bilinear")[:, 0]
        parts += [_two_lungs(one) for one in lung.numpy()]
    masks, score, paired = (np.array(part) for part in zip(*parts, strict=True))
    return LungFields(masks, score, paired & (score >= TRUSTED))


def _two_lungs(lung):
    """From probabilities [H, W]: the mask of the two largest parts, its score, and whether they look like two lungs."""
    parts, _ = ndimage.label(lung > 0.5)
    sizes = np.bincount(parts.ravel())[1:]
    largest = 1 + np.argsort(-sizes, kind="stable")[:2]
    mask = ndimage.binary_fill_holes(np.isin(parts, largest))
    score = 2 * lung[mask].sum() / max(lung.sum() + mask.sum(), 1e-6)
    middle = [ndimage.center_of_mass(parts == i)[1] / lung.shape[1] for i in largest]
    large = len(largest) == 2 and sizes[largest - 1].min() >= 0.03 * lung.size
    return mask, float(score), bool(large and min(middle) < 0.5 < max(middle))


def equalise(pixels: np.ndarray) -> np.ndarray:
    """Histogram equalisation of the whole grey image (Pizer et al. 1987), uint8 [B, H, W, 3]. For `change_data`.

    Raises ValueError for anything but such pixels.
    """
    check_pixels(pixels)
    flat = [ImageOps.equalize(Image.fromarray(one).convert("L")).convert("RGB") for one in pixels]
    return np.stack([np.asarray(one) for one in flat])


def crop_lungs(pixels: np.ndarray, margin: float = 0.05) -> np.ndarray:
    """The box around the lung fields, stretched to the full image: removes most of border, marks and shoulders.

    pixels and result: uint8 [B, H, W, 3]. margin: around the lungs, a share of the image width. Untrusted estimates
    are used too; an image without a lung field is not changed. For `change_data`. Raises ValueError for anything but
    such pixels, or a bad margin.
    """
    check_number("margin", margin, lambda m: 0 <= m <= 1, "a share of the width, from 0 to 1")
    masks, (height, width), out = lung_fields(pixels).masks, pixels.shape[1:3], []
    for one, mask in zip(pixels, masks, strict=True):
        left, top, right, bottom = Image.fromarray(mask).getbbox() or (0, 0, width, height)
        space = margin * width
        box = np.clip([left - space, top - space, right + space, bottom + space], 0, [width, height] * 2)
        resized = Image.fromarray(one).resize((width, height), Image.Resampling.BILINEAR, tuple(box.tolist()))
        out.append(np.asarray(resized))
    return np.stack(out)


def lung_box(pixels: np.ndarray) -> np.ndarray:
    """The box of the lungs in standardised intensity: `crop_lungs`, then `equalise`. For `change_data`."""
    return equalise(crop_lungs(pixels))
