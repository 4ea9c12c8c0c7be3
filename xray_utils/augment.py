"""Random changes of training images: mild, and strong."""

from math import radians

import torch
from torch.nn import functional as F

from .batches import to_device


def _grid(images, angle, zoom, right, down, mirror, aspect=1.0):
    """The sampling grid [B, H, W, 2] that turns, scales, shifts and (where `mirror` is above 0) mirrors images.

    One number an image: the angle in radians, the shifts in half image widths.
    """
    cos, sin, sign = angle.cos() * zoom, angle.sin() * zoom, (mirror > 0) * 2.0 - 1
    rows = (cos * aspect * sign, -sin / aspect, right), (sin * aspect * sign, cos / aspect, down)
    affine = torch.stack([torch.stack(row, 1) for row in rows], 1)  # [B, 2, 3]
    return F.affine_grid(affine, images.shape, align_corners=False)


def augment_mild(images, generator, of=None):
    """Mirror half of the images; turn up to 10 degrees, shift 5 %, zoom 10 %, contrast and brightness 10 %.

    images: normalised [B, 3, H, W]; the same generator state gives the same result. of: the size of the batch that
    several processes share, and the positions of these images in it.
    """
    n, mine = of or (len(images), slice(None))
    draws = torch.rand(7, n, generator=generator)[:, mine] * 2 - 1  # in -1..1; drawn on the CPU, the same everywhere
    turn, zoom, right, down, contrast, brightness, flip = to_device(draws, images.device)
    grid = _grid(images, turn * radians(10), 1 + 0.1 * zoom, 0.1 * right, 0.1 * down, flip)
    images = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    return images * (1 + 0.1 * contrast).view(-1, 1, 1, 1) + 0.1 * brightness.view(-1, 1, 1, 1)


def augment_strong(images, generator, of=None):
    """Simulate another scanner: change what depends on the source and keep the lungs (domain randomisation).

    Mirror half of the images; turn up to 15 degrees, shift 12 %, zoom by up to 1.4, aspect by up to 1.2, the area
    outside in one random tone; gamma 1/2 to 2, contrast 0.6 to 1.4, brightness 30 % of the range; blur or
    sharpening; noise; and, on half of the images, a rectangle in a random tone at a random place, like a marker.
    With ImageNet statistics grey images also get a slight tint, since the range is that of all three channels.

    images: normalised [B, 3, H, W]; the same generator state gives the same result. of: as for `augment_mild`.
    """
    (n, mine), (height, width) = of or (len(images), slice(None)), images.shape[2:]
    noise = to_device(torch.randn(n, 1, height, width, generator=generator)[mine], images.device)
    draws = to_device(torch.rand(18, n, 1, 1, 1, generator=generator)[:, mine] * 2 - 1, images.device)  # in -1..1
    turn, zoom, aspect, right, down, flip, tone, gamma, contrast, brightness, blur, grain, *mark = draws
    low, high = images.amin(dim=(1, 2, 3), keepdim=True), images.amax(dim=(1, 2, 3), keepdim=True)
    images = (images - low) / (high - low).clamp(min=1e-6)  # 0..1 whatever the normalisation was
    moves = turn * radians(15), 1.4**zoom, 0.24 * right, 0.24 * down, flip, 1.2 ** (aspect / 2)
    grid = _grid(images, *(move.flatten() for move in moves))
    inside = F.grid_sample(torch.ones_like(images[:, :1]), grid, align_corners=False)
    images = F.grid_sample(images, grid, align_corners=False) + (1 - inside) * (tone + 1) / 2
    soft = F.avg_pool2d(images, 5, stride=1, padding=2, count_include_pad=False)
    images = images + (0.25 + 0.75 * blur) * (soft - images)  # from sharpened by half to blurred
    images = images.clamp(1e-4, 1) ** (2**gamma)
    images = (images - 0.5) * (1 + 0.4 * contrast) + 0.5 + 0.3 * brightness + 0.04 * (grain + 1) * noise
    y = torch.linspace(-1, 1, height, device=images.device).view(1, 1, -1, 1)
    x = torch.linspace(-1, 1, width, device=images.device).view(1, 1, 1, -1)
    top, left, tall, wide, shade, present = mark
    marked = ((y - top).abs() < 0.02 + 0.15 * tall.abs()) & ((x - left).abs() < 0.02 + 0.15 * wide.abs())
    images = torch.where(marked & (present > 0), (shade + 1) / 2, images)
    return images * (high - low) + low


AUGMENTATIONS = {"mild": augment_mild, "strong": augment_strong}
