"""Make the small ViT of this folder again: distilled from a large one on X-rays of patients who are in neither sample.

    .venv/bin/python data/vit_tiny/distil.py IMAGES TEACHER [FOLDER]

IMAGES: a folder with manifest.csv whose column licence names Kermany et al., CC BY 4.0; other rows, patients of
data/sample and data/sample_external, and near-duplicates of their images are left out. TEACHER: a pretrained ViT-S/14
in Hugging Face format. FOLDER: where to write; this one if none is given. About 13 minutes on two idle CPU cores;
the same machine gives the same bits. No label is used.

The student learns to predict what the teacher makes of an image (Hinton et al. 2015, arXiv:1503.02531): its class
token, the mean of its patch tokens, and the patch tokens themselves, averaged two by two, since the student sees half
as many pixels a side.
"""

import argparse
import math
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers import ViTConfig, ViTImageProcessor, ViTModel

import xray_utils as xu
from xray_utils._support.memory import memory_kept
from xray_utils.prepared import Split

HERE = Path(__file__).resolve().parent
CONFIG = dict(image_size=112, patch_size=14, hidden_size=128, num_hidden_layers=5, num_attention_heads=4)
CONFIG |= dict(intermediate_size=512)
VIEWS, STEPS, BATCH, LR, SEED, THREADS = 8, 2500, 64, 1e-3, 0, 2


def open_images(folder):
    """The images of `folder` that may be used, as one `Split` at 224 pixels."""
    split = None
    for name in ("sample", "sample_external"):
        known = xu.audit_images(xu.find_images(HERE.parent / name))
        left = xu.load_external(folder, known, size=224)  # without the patients and the images of the sample
        allowed = left.rows.licence.str.startswith("CC BY 4.0 (Kermany").to_numpy()
        if split is not None:
            allowed = allowed & left.rows.file.isin(split.rows.file).to_numpy()
        split = Split(left.rows[allowed].reset_index(drop=True), left.pixels, left.positions[allowed])
    print(f"{len(split)} images of {split.rows.group.nunique()} patients")
    return split


def random_view(images, generator):
    """Turn, zoom, shift, mirror and relight images [B, 1, H, W] in 0..1, each in its own way."""
    draws = torch.rand(9, len(images), generator=generator) * 2 - 1  # each in -1..1
    turn, size, right, down, aspect, flip, gamma, contrast, brightness = draws
    zoom, aspect, mirror = 0.825 + 0.225 * size, 1.15**aspect, flip.sign()  # a crop of 0.6 to 1.05 of a side
    cos, sin, room = (0.2 * turn).cos() * zoom, (0.2 * turn).sin() * zoom, (1 - zoom).clamp(min=0.03)
    rows = [torch.stack([cos * aspect * mirror, -sin, right * room], 1)]
    rows += [torch.stack([sin * mirror, cos / aspect, down * room], 1)]
    grid = F.affine_grid(torch.stack(rows, 1), images.shape, align_corners=False)
    images = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    gamma, contrast, brightness = (v.view(-1, 1, 1, 1) for v in (gamma, contrast, brightness))
    images = images.clamp(1e-4, 1) ** (0.4 * gamma).exp()
    return ((images - 0.5) * (1 + 0.2 * contrast) + 0.5 + 0.1 * brightness).clamp(0, 1)


@torch.no_grad()
def teach(split, teacher):
    """Views [N, 1, 112, 112]; what the teacher says of each, as a whole [N, 768] and by place [N, 64, 384]."""
    generator = torch.Generator().manual_seed(SEED)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (teacher.input_mean, teacher.input_std))
    views, wholes, places = [], [], []
    for view in range(VIEWS):
        for start in range(0, len(split), 32):
            pixels = split.take(np.arange(start, min(start + 32, len(split))))
            images = torch.from_numpy(pixels).float().mean(dim=-1)[:, None] / 255
            images = random_view(images, generator) if view else images  # the first view is the image itself
            tokens = teacher.eval().vit((images.expand(-1, 3, -1, -1) - mean) / std).last_hidden_state
            patches = tokens[:, 1:].transpose(1, 2).unflatten(2, (16, 16))
            places.append(F.avg_pool2d(patches, 2).flatten(2).transpose(1, 2))
            wholes.append(torch.cat([tokens[:, 0], patches.mean(dim=(2, 3))], 1))
            views.append(F.avg_pool2d(images, 2))
        print(f"view {view + 1} of {VIEWS}", flush=True)
    return torch.cat(views), torch.cat(wholes), torch.cat(places)


def learn(views, wholes, places):
    """The student that predicts both kinds of tokens, each number of them brought to mean 0 and deviation 1."""
    torch.manual_seed(SEED)
    student = ViTModel(ViTConfig(**CONFIG), add_pooling_layer=False)
    heads = nn.ModuleList(nn.Linear(CONFIG["hidden_size"], size) for size in (wholes.shape[-1], places.shape[-1]))
    optimizer = torch.optim.AdamW([*student.parameters(), *heads.parameters()], lr=LR, weight_decay=0.05)
    wholes = (wholes - wholes.mean(0)) / wholes.std(0)
    places = (places - places.mean((0, 1))) / places.std((0, 1))
    rng = np.random.default_rng(SEED)
    for step in range(STEPS):
        rate = LR * min(1, (step + 1) / 100) * (0.5 + 0.5 * math.cos(math.pi * step / STEPS))
        optimizer.param_groups[0]["lr"] = rate
        some = torch.from_numpy(rng.integers(0, len(views), BATCH))
        tokens = student((2 * views[some] - 1).expand(-1, 3, -1, -1)).last_hidden_state
        loss = F.mse_loss(heads[0](tokens[:, 0]), wholes[some]) + F.mse_loss(heads[1](tokens[:, 1:]), places[some])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (step + 1) % 250 == 0:
            print(f"step {step + 1} of {STEPS}: loss {loss.item():.3f}", flush=True)
    return student


def main():
    """Images, teacher, student, files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path)
    parser.add_argument("teacher")
    parser.add_argument("folder", type=Path, nargs="?", default=HERE)
    options = parser.parse_args()
    torch.set_num_threads(THREADS)  # sums depend on it in the last bit
    with memory_kept():
        split = open_images(options.images)
        student = learn(*teach(split, xu.vit(options.teacher)))
    student.half().save_pretrained(options.folder)
    size = {"height": CONFIG["image_size"], "width": CONFIG["image_size"]}
    ViTImageProcessor(size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3).save_pretrained(options.folder)
    used = split.rows[["file", "group"]].rename(columns={"group": "patient_id"})
    used.to_csv(options.folder / "images.csv", index=False)


if __name__ == "__main__":
    main()
