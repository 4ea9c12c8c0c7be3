"""Train the network of `lung_fields` on synthetic radiographs and write its weights: about a minute of one core.

    .venv/bin/python results/scripts/lung_network.py

They are far more varied than those of the tests (domain randomisation, Tobin et al. 2017, arXiv:1703.06907): bent,
cropped, opaque, with wires, bars, gas and large hearts, in any contrast.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save
from scipy import ndimage
from torch.nn import functional as F

from xray_utils._support.files import progress, whole_file
from xray_utils.lab.lungs import SIZE, WEIGHTS, LungNet, _standardised

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
from phantoms import LABELS, _anatomy, _disease, _edge


def _bumps(rng, size, cells):
    """Smooth noise [size, size] with about `cells` features across."""
    grid, at = rng.standard_normal([cells + 3] * 2), np.linspace(0.5, cells + 1.5, size)
    return 1.3 * ndimage.map_coordinates(grid, np.meshgrid(at, at, indexing="ij"), order=3, mode="mirror")


def _blob(x, y, centre, radii, width, turn=0.0, ragged=0.0):
    """A soft ellipse [H, W]: 1 inside, 0 outside."""
    u, v = x - centre[0], y - centre[1]
    u, v = u * np.cos(turn) + v * np.sin(turn), v * np.cos(turn) - u * np.sin(turn)
    return _edge(1 - np.hypot(u / radii[0], v / radii[1]) - ragged, width)


def draw_varied(seed, size=SIZE):
    """The shadow [size, size] of a phantom that is bent, cropped and ill at random, and its lung mask (bool)."""
    rng = np.random.default_rng([seed, 6])

    def sometimes(share):
        return float(rng.random() < share)

    high, wide = rng.uniform(0.98, 1.75), rng.uniform(0.92, 1.9)  # of the view, in lung heights
    y, x = np.mgrid[-0.5 : 0.5 : size * 1j, -0.5 : 0.5 : size * 1j]
    y = y * high + rng.uniform(-1, 1) * max(0.03, (high - 1.05) / 2)
    x = x * wide + rng.uniform(-1, 1) * max(0.03, (wide - 1) / 2.5)
    turn, bend = rng.normal(0, 0.06), rng.uniform(0, 0.035)
    x, y = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
    x, y = x + bend * _bumps(rng, size, rng.integers(2, 5)), y + bend * _bumps(rng, size, rng.integers(2, 5))

    # Coordinates are bent, so that everything drawn there is: taper, mediastinum, apices, domes, costophrenic angles.
    x = x * (1 + rng.normal(0, 0.12) * np.clip(y, -0.7, 0.7))
    x = x * (1 - rng.uniform(-0.2, 0.55) * np.exp(-((x / 0.15) ** 2)))
    x = x * (1 + rng.uniform(-0.1, 0.8) * _edge(-y - rng.uniform(0.33, 0.4), 0.05))
    left = 1 / (1 + np.exp(-x / 0.06))
    y = y + np.exp(-(((y - 0.42) / 0.22) ** 2)) * (rng.normal(0.03, 0.05) * left + rng.normal(0.03, 0.05) * (1 - left))
    y = y - rng.uniform(0, 0.2) * np.clip((np.abs(x) - 0.25) / 0.2, 0, 1.2) ** 2 * _edge(y - 0.2, 0.08)

    patient, label = int(rng.integers(1 << 30)), LABELS[rng.integers(3)]
    shadow, place = _anatomy(patient, x, y)
    lung = place["lung"]
    shadow = shadow + rng.uniform(0.5, 1.6) * _disease(label, patient, x, y, place)
    shadow = shadow + rng.uniform(0, 0.35) * lung * _edge(-y - rng.uniform(0.28, 0.36), 0.04)  # bone over the apices
    haze = np.zeros_like(x)
    for _ in range(int(rng.integers(1, 7) * sometimes(0.6))):
        centre, radii = (rng.uniform(-0.45, 0.45), rng.uniform(-0.4, 0.5)), rng.uniform(0.06, 0.25, 2)
        ragged = 0.25 * _bumps(rng, size, 10)
        haze = np.maximum(haze, rng.uniform(0.2, 1) * _blob(x, y, centre, radii, rng.uniform(0.1, 0.4), 0, ragged))
    shadow = shadow + rng.uniform(0.3, 0.8) * haze * lung
    base = _edge(y - rng.uniform(0, 0.45), 0.12) * rng.choice([left, 1 - left, np.ones_like(left)])
    shadow = shadow + sometimes(0.15) * rng.uniform(0.1, 0.6) * base * lung
    for _ in range(rng.integers(0, 4)):  # gas below
        centre, radii = (rng.uniform(-0.1, 0.4), rng.uniform(0.45, 0.7)), rng.uniform([0.03, 0.03], [0.12, 0.08])
        shadow = shadow - rng.uniform(0.1, 0.5) * _blob(x, y, centre, radii, 0.15) * (1 - lung) * _edge(y - 0.38, 0.03)
    breast = _blob(np.abs(x), y, rng.uniform(0.2, [0.32, 0.4]), [rng.uniform(0.2, 0.32)] * 2, 0.06)
    shadow = shadow + sometimes(0.3) * rng.uniform(0.05, 0.25) * breast

    # A larger heart and higher domes: solid where air was.
    centre, radii = rng.uniform([0.03, 0.2], [0.12, 0.36]), rng.uniform([0.2, 0.13], [0.4, 0.24])
    solid = sometimes(0.75) * _blob(x, y, centre, radii, 0.06, rng.uniform(0.45, 1))
    for side in (-1, 1):
        top = 0.5 - rng.uniform(-0.05, 0.3) + rng.uniform(1.5, 5) * (side * x - rng.uniform(0.16, 0.26)) ** 2
        solid = np.maximum(solid, sometimes(0.7) * _edge(y - top, rng.uniform(0.006, 0.02)) * (side * x > 0))
    solid = solid * np.clip(1.3 * lung, 0, 1)
    shadow = shadow * (1 - solid) + (rng.uniform(0.6, 1.15) + 0.05 * _bumps(rng, size, 6)) * solid
    return shadow.astype(np.float32), lung * (1 - solid) > 0.5


def develop_varied(shadow, lung, generator):
    """Shadows and masks [B, S, S] to random images, standardised, and their masks, both float [B, S, S]."""
    count, size, x = len(shadow), shadow.shape[-1], shadow

    def draw(low, high, share=1.0):  # a number for each image, 0 for those that chance leaves out
        number, chance = torch.rand(2, count, 1, 1, generator=generator)
        return (low + (high - low) * number) * (chance < share)

    def blurred(x, sigma):
        at = torch.arange(-int(3 * sigma), int(3 * sigma) + 1)
        kernel = torch.exp(-(at**2) / (2 * sigma**2))
        kernel = (kernel / kernel.sum()).view(1, 1, 1, -1)
        x = F.pad(x[:, None], [len(at) // 2] * 4, mode="reflect")
        return F.conv2d(F.conv2d(x, kernel), kernel.mT)[:, 0]

    outside = (shadow <= 0.02) & ~lung
    x = 1 - torch.exp(-draw(0.6, 2.4) * x.clamp(min=0))
    x = (x / x.amax((1, 2), keepdim=True)) ** (1 + draw(-0.5, 1, 0.5))
    shading = F.interpolate(torch.randn(count, 1, 3, 3, generator=generator), size=(size, size), mode="bicubic")[:, 0]
    x = x * (1 + draw(0, 0.25) * shading)
    x = x + draw(-0.3, 1.2, 0.5) * (x - blurred(x, 5.0))  # local contrast
    low, high = draw(0, 0.35, 0.4), 1 - draw(0, 0.35, 0.4)
    x = ((x - low) / (high - low)).clamp(0, 1.1)
    x = torch.where(outside & (draw(1, 1, 0.25) > 0), draw(0, 1), x)  # not black beside the body
    down, across = torch.meshgrid(torch.linspace(0, 1, size), torch.linspace(0, 1, size), indexing="ij")
    for _ in range(3):  # wires, plates and letters
        turn, u, v = draw(0, 6.3), across - draw(0, 1), down - draw(0, 1)
        along, aside = u * turn.sin() - v * turn.cos(), u * turn.cos() + v * turn.sin()
        wire = torch.exp(-(((aside + draw(-1, 1) * along**2) / 0.009) ** 2))
        x = x + draw(0.1, 0.5, 0.2) * wire
        plate = torch.maximum(
            (across - draw(0, 1)).abs() / draw(0.01, 0.07), (down - draw(0, 1)).abs() / draw(0.01, 0.04)
        )
        x = torch.where((plate < 1) & (draw(1, 1, 0.3) > 0), draw(0, 1.1), x)
    x = torch.where(draw(1, 1, 0.5) > 0, blurred(x, 0.5), x)
    x = x + draw(0, 0.05) * torch.randn(count, size, size, generator=generator)
    x = torch.where(draw(1, 1, 0.04) > 0, 1 - x, x)

    # Bars: the image squeezed into a part of the frame; half of them mirrored.
    some = draw(1, 1, 0.35)
    before, after, above, below = (draw(-0.1, 0.16).clamp(min=0) * some for _ in range(4))
    u, v = 2 * (across - before) / (1 - before - after) - 1, 2 * (down - above) / (1 - above - below) - 1
    grid = torch.stack([u * (1 - 2 * draw(1, 1, 0.5)), v], dim=-1)
    x, lung = F.grid_sample(torch.stack([x, lung.float()], dim=1), grid, align_corners=True).unbind(1)
    x = torch.where((u.abs() > 1) | (v.abs() > 1), draw(1, 1, 0.2), x)
    return _standardised(x), lung


def train(phantoms=1600, steps=300, batch=32, seed=0):
    """The network, trained on `phantoms` drawings for `steps` batches: the same bits on the same machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    drawn = [draw_varied(seed + i) for i in progress(range(phantoms), "draw")]
    shadows, lungs = (torch.from_numpy(np.stack(part)) for part in zip(*drawn, strict=True))
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = LungNet().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps, pct_start=0.2)
    for _ in progress(range(steps), "train"):
        chosen = torch.randint(phantoms, (batch,), generator=generator)
        x, true = develop_varied(shadows[chosen], lungs[chosen], generator)
        logits = network(x[:, None])
        lung = logits.sigmoid()
        dice = (2 * (lung * true).sum((1, 2)) + 1) / (lung.sum((1, 2)) + true.sum((1, 2)) + 1)
        loss = F.binary_cross_entropy_with_logits(logits, true) + 1 - dice.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    torch.set_num_threads(threads)
    return network.eval()


def save_weights(network, path=WEIGHTS):
    """Write the weights in half precision: 0.2 MB."""
    state = {name: tensor.half().contiguous() if tensor.is_floating_point() else tensor
             for name, tensor in network.state_dict().items()}  # fmt: skip
    with whole_file(path) as temporary:
        temporary.write_bytes(save(state))


if __name__ == "__main__":
    save_weights(train())
    print(WEIGHTS)
