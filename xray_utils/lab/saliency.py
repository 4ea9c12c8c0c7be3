"""Saliency maps: Grad-CAM, attention rollout, the share of a map inside the lungs, and a sanity check."""

import copy
import math
from contextlib import ExitStack

import numpy as np
import pandas as pd
import scipy
import torch
from torch import nn
from torch.nn import functional as F

from .._support.checks import check_whole
from .._support.memory import memory_for
from ..batches import batches, to_input
from ..constants import CLASSES
from ..models import build, evaluating, logits_of
from ..prepared import Split
from ..training import check_use, predict


def _is_hugging_face_vit(model):
    return getattr(getattr(model, "config", None), "model_type", None) == "vit"


def _last_stage(model, image):
    """The name of the module that Grad-CAM uses, found by a forward pass of one normalised `image` [1, 3, H, W].

    CNN: the last module with maps [1, C, h, w] of more than a pixel. Tokens [1, T, C]: the last layer normalisation
    whose patches change the logits (with a class token, the one before the last attention).
    """
    outputs = {}
    with ExitStack() as hooks:
        for name, module in list(model.named_modules())[1:]:
            keep = lambda module, inputs, output, name=name: outputs.update({name: (module, output)})  # noqa: E731
            hooks.enter_context(module.register_forward_hook(keep))
        logits = logits_of(model, image)
    tensors = [(n, m, o) for n, (m, o) in outputs.items() if isinstance(o, torch.Tensor) and o.requires_grad]
    tokens = {n: o for n, m, o in tensors if isinstance(m, nn.LayerNorm) and o.ndim == 3 and o.shape[1] > 3}
    gradients = torch.autograd.grad(logits.max(), list(tokens.values()), allow_unused=True) if tokens else ()
    names = [n for n, g in zip(tokens, gradients, strict=True) if g is not None and _as_maps(g).any()]
    maps = [name for name, _, output in tensors if output.ndim == 4 and output[0, 0].numel() > 1]
    return next(reversed(names or list(tokens) or maps), None)


def _as_maps(stage):
    """Tokens [B, T, C] as maps [B, C, side, side], without the tokens before the patches."""
    side = math.isqrt(stage.shape[1])
    return stage[:, stage.shape[1] - side**2 :].mT.unflatten(2, (side, side)) if stage.ndim == 3 else stage


def _indices(target, split):
    """`target` as class indices, one an image; None (the predicted class) stays None."""
    if target is None:
        return None
    wanted = [target] * len(split) if isinstance(target, str) else list(target) if np.iterable(target) else []
    if len(wanted) != len(split) or not set(wanted) <= set(CLASSES):
        raise ValueError(
            f"target: {target!r} must be None (the predicted class), one of {', '.join(CLASSES)}, or a list of them, "
            f"one for each of the {len(split)} images."
        )
    return np.array([CLASSES.index(name) for name in wanted])


def _to_image(maps, size):
    """Coarse maps [B, h, w] to numpy [B, H, W], each with a maximum of 1; an all-zero map stays 0."""
    maps = F.interpolate(maps[:, None].float(), size=size, mode="bilinear", align_corners=False)[:, 0]
    return (maps / maps.amax((1, 2), keepdim=True).clamp(min=1e-12)).cpu().numpy()


def grad_cam(
    model: torch.nn.Module, split: Split, target: str | None = None, layer: str | None = None, batch_size: int = 32
) -> np.ndarray:
    """Grad-CAM: evidence for a class in the last convolutions, float32 [B, H, W] in 0..1 (Selvaraju et al. 2017).

    target: None for the predicted class, a class, or a list with one class an image (arXiv:1610.02391). layer: name
    of the module whose output [B, C, h, w] or [B, T, C] is used; None for the last such module. A map is all 0 if
    nothing supports the class. The model is not changed. Raises ValueError for a network without such a layer, or a
    `layer` with another output.
    """
    check_use(model, split, batch_size)
    target = _indices(target, split)
    modules, maps, kept = dict(model.named_modules()), [], []
    with evaluating(model) as device, torch.enable_grad():  # of the input: weights may be frozen
        if layer is None:
            with memory_for(1):
                layer = _last_stage(model, to_input(split.take([0]), model, device).requires_grad_())
            if layer is None:
                raise ValueError("model: none of its layers gives maps or tokens, so Grad-CAM has nothing to show.")
        if not isinstance(layer, str) or layer not in modules:
            raise ValueError(f"layer: {layer!r} is no module of this network; give the name of its last convolution.")
        with modules[layer].register_forward_hook(lambda module, inputs, output: kept.append(output)):
            for indices in batches(split, batch_size):
                with memory_for(len(indices)):
                    images = to_input(split.take(indices), model, device).requires_grad_()
                    logits, stage = logits_of(model, images), kept.pop()
                    square = images.shape[2] == images.shape[3]  # then its maps [h, w] are square, too
                    if stage.ndim not in (3, 4) or stage.ndim == 4 and square and stage.shape[2] != stage.shape[3]:
                        raise ValueError(f"layer: {layer!r} gives {tuple(stage.shape)}, no [B, C, h, w] and no tokens.")
                    classes = logits.argmax(1) if target is None else torch.from_numpy(target[indices]).to(device)
                    (gradient,) = torch.autograd.grad(logits.gather(1, classes[:, None]).sum(), stage)
                    weights = _as_maps(gradient).mean((2, 3), keepdim=True)
                    weighted = (weights * _as_maps(stage)).sum(1).relu().detach()
                    maps.append(_to_image(weighted, split.pixels.shape[1:3]))
    return np.concatenate(maps)


@torch.no_grad()
def attention_rollout(model: torch.nn.Module, split: Split, batch_size: int = 16) -> np.ndarray:
    """Attention rollout to the class token of a ViT, float32 [B, H, W] in 0..1 (Abnar & Zuidema 2020).

    Attention of the heads averaged, half of it the skip connection, multiplied layer by layer (arXiv:2005.00928). It
    is the same for every class. The model is not changed. Raises ValueError for anything but a Hugging Face ViT.
    """
    check_use(model, split, batch_size)
    if not _is_hugging_face_vit(model):
        raise ValueError(f"model: a {type(model).__name__} is no Hugging Face ViT; use grad_cam for a CNN.")
    config, maps = model.config, []
    before = config._attn_implementation
    try:
        config._attn_implementation = "eager"  # the only implementation that returns attention
        with evaluating(model) as device:
            for indices in batches(split, batch_size):
                with memory_for(len(indices)):
                    images = to_input(split.take(indices), model, device)
                    attentions = model(pixel_values=images, output_attentions=True).attentions  # [B, heads, T, T] each
                    rollout = skip = torch.eye(attentions[0].shape[-1], device=device)
                    for attention in attentions:
                        rollout = (attention.float().mean(1) + skip) / 2 @ rollout
                side = [length // config.patch_size for length in images.shape[2:]]
                maps.append(_to_image(rollout[:, 0, 1:].unflatten(1, side), split.pixels.shape[1:3]))
    finally:
        config._attn_implementation = before
    return np.concatenate(maps)


def saliency_maps(model: torch.nn.Module, split: Split, target: str | None = None, batch_size: int = 16) -> np.ndarray:
    """The map of each image, float32 [B, H, W] in 0..1: `attention_rollout` of a Hugging Face ViT, else `grad_cam`.

    target: see `grad_cam`. Raises ValueError for a target with a ViT: its rollout does not depend on the class.
    """
    if not _is_hugging_face_vit(model):
        return grad_cam(model, split, target, batch_size=batch_size)
    if target is not None:
        raise ValueError(f"target: {target!r} has no meaning for a ViT: its rollout is the same for every class.")
    return attention_rollout(model, split, batch_size)


def share_in_lungs(maps: np.ndarray, masks: np.ndarray) -> pd.DataFrame:
    """Share of each map [B, H, W] inside the mask, and the share of a uniform map: a row for each image.

    Columns `share` (of the sum of the map; NaN where the map is all 0), `area` (of the image) and their
    `difference`. Raises ValueError where maps and masks do not fit together.
    """
    maps, masks = np.asarray(maps), np.asarray(masks)
    if maps.ndim != 3 or maps.shape[0] == 0 or not np.isfinite(maps).all() or maps.min() < 0:
        raise ValueError(f"maps: {maps.dtype} {maps.shape} must be [B, H, W] of numbers from 0 on; see saliency_maps.")
    if masks.dtype != bool or masks.shape != maps.shape:
        raise ValueError(f"masks: {masks.dtype} {masks.shape} must be bool {maps.shape}, as the maps; see lung_fields.")
    mass = maps.sum(axis=(1, 2), dtype=float)
    with np.errstate(invalid="ignore"):
        share = (maps * masks).sum(axis=(1, 2), dtype=float) / mass
    table = pd.DataFrame({"share": share, "area": masks.mean(axis=(1, 2))})
    return table.assign(difference=table.share - table.area)


def randomised(model, seed=0):
    """The same network with new random weights, other than the initial weights of the training."""
    device, spec = next(model.parameters()).device, getattr(model, "spec", None)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed((seed + 0x5EED5EED) % 2**32)  # unlike the seeds of trainings
        if spec:
            other = build(spec, model.input_mean, model.input_std)  # a ViT gets new weights, a CNN always the same
        else:  # of your own: parameters that no layer resets, such as position embeddings, are shuffled
            other = copy.deepcopy(model).cpu()
            for tensor in other.parameters():
                tensor.copy_(tensor.flatten()[torch.randperm(tensor.numel())].view_as(tensor))
        for module in () if spec and spec["network"] == "vit" else other.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
    return other.to(device).eval()


def sanity_check(model: torch.nn.Module, split: Split, seed: int = 0, batch_size: int = 16) -> np.ndarray:
    """Rank correlation of each map with that of the same network with random weights, [B] (Adebayo et al. 2018).

    A map that hardly changes shows the image or the architecture, not what was learned (arXiv:1810.03292): near 0 is
    good, near 1 disqualifies the map. Both maps are of the class that the trained network predicts. NaN if one is
    constant.
    """
    check_use(model, split, batch_size)
    check_whole("seed", seed)
    target = None if _is_hugging_face_vit(model) else predict(model, split, batch_size).predicted.to_list()
    maps = (saliency_maps(one, split, target, batch_size) for one in (model, randomised(model, seed)))
    first, second = (pd.DataFrame(scipy.stats.rankdata(one.reshape(len(one), -1), axis=1)) for one in maps)
    return first.corrwith(second, axis=1).to_numpy()
