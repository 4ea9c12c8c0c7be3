"""How long should a notebook train on a T4 and on an H100? Derived, not measured: `python tests/gpu/cards.py`.

Every operation of a step on a batch of 32 is counted, without computing it (meta device). An operation takes
max(FLOPs / (half the published rate), bytes of its tensors, 2 each / published bandwidth); a step takes
max(their sum, operations x 20 microseconds), the time in which PyTorch starts them. The factors 1/2 and 20 are
assumptions; overhead is left out: a lower limit. Writes results/tables/gpu_estimate.csv.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(Path(__file__).resolve().parent), str(ROOT)]

import material as m  # noqa: E402
import pandas as pd  # noqa: E402
import torch  # noqa: E402
from torch.nn import functional as F  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils.flop_counter import flop_registry  # noqa: E402

import xray_utils as xu  # noqa: E402
from xray_utils.models import logits_of  # noqa: E402

BATCH, SHARE, START, LOOP = 32, 0.5, 20e-6, 25  # LOOP: operations of `fit` beside the network
# Published: dense FLOP/s in fp16 or bf16, bytes/s (T4: NVIDIA data sheet 2019; H100 SXM: data sheet 2023)
CARDS = {"T4": (65e12, 320e9), "H100": (989e12, 3.35e12)}
IMAGES = {True: (1672, 181), False: (836, 181)}  # training (mirrored, or not) and validation, of the 1,196 images
# notebook: network, mirrored, epochs of training, epochs of the head alone
NOTEBOOKS = {
    "3": (xu.baseline_cnn, True, 30 + 4 * 10 + 30, 0),
    "4": (xu.resnet18, True, 30 + 30, 0),
    "5": (lambda: m.vit_base(False), False, 10 + 2, 10),
}


class Operations(TorchDispatchMode):
    """FLOPs and bytes of each operation that computes something."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        result = operator(*args, **(kwargs or {}))
        tensors = [one for one in torch.utils._pytree.tree_leaves((args, kwargs, result)) if torch.is_tensor(one)]
        if not operator.is_view and "detach" not in str(operator):
            count = flop_registry.get(operator.overloadpacket)
            flops = count(*args, **(kwargs or {}), out_val=result) if count else 0
            self.seen.append((flops, 2 * sum(one.numel() for one in tensors)))
        return result


def operations(model, size=224, backward=True):
    """(FLOPs, bytes) of each operation of one step, or of the forward pass."""
    model, images = model.to("meta").train(), torch.empty(BATCH, 3, size, size, device="meta")
    with Operations() as forward, torch.set_grad_enabled(backward):
        loss = F.cross_entropy(logits_of(model, images), torch.zeros(BATCH, dtype=torch.long, device="meta"))
        if backward:
            loss.backward()
    step = (
        [(0, 4 * 7 * sum(p.numel() for p in model.parameters()))] if backward else []
    )  # Adam in fp32: 4 read, 3 written
    return forward.seen + step


def seconds(found, card):
    """Of one step on this card."""
    rate, bandwidth = CARDS[card]
    return max(sum(max(flops / (SHARE * rate), size / bandwidth) for flops, size in found), (len(found) + LOOP) * START)


def estimate():
    """A row a notebook: of each card images per second, and minutes of all trainings on 1,196 images."""
    rows = []
    for notebook, (make, mirrored, epochs, frozen) in NOTEBOOKS.items():
        model, (train, val) = make(), IMAGES[mirrored]
        whole, forward = operations(model), operations(model, backward=False)
        row = {"notebook": notebook, "GFLOPs an image": sum(flops for flops, _ in whole) / BATCH / 1e9}
        for card in CARDS:
            step, answer = seconds(whole, card), seconds(forward, card)
            row[f"{card}, images per second"] = BATCH / step
            passes = epochs * (train * step + val * answer) + frozen * (train + val) * answer
            row[f"{card}, minutes"] = passes / BATCH / 60
        rows.append(row)
    return pd.DataFrame(rows).set_index("notebook")


if __name__ == "__main__":
    table = estimate()
    table.to_csv(ROOT / "results" / "tables" / "gpu_estimate.csv", float_format="%.6g", lineterminator="\n")
    print(table.to_string(float_format="%.3g"))
