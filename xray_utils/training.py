"""`fit`: one training loop for all three networks. `predict`: one way to use them."""

import copy
import time

import numpy as np
import pandas as pd
import torch
from torch.nn import functional as F

from ._support.checks import check_whole
from ._support.device import _count, _device_name, accelerator_of, choose_precision
from ._support.memory import channels_first_for_few, memory_for, memory_kept
from ._support.runs import Run, load_run
from ._support.session import Counters, Session, check_material
from .batches import batches, to_input
from .constants import CLASSES, PROBABILITIES
from .models import check_model, evaluating, logits_of
from .prepared import PreparedData, Split, check_split


def check_use(model, split, batch_size):
    """Raise ValueError unless `model` is a network and `split` a side with images."""
    check_model(model, use=True)
    check_split(split)
    check_whole("batch_size", batch_size, 1)


@memory_kept()
def estimate_time(
    model: torch.nn.Module, data: PreparedData, epochs: int, batch_size: int = 32, precision: str = "auto"
) -> float | None:
    """Print how long `fit` will take on this CPU, measured on one batch; return the seconds.

    The fastest of up to three trainings of a batch counts; after ten seconds no further one starts. On the bundled
    sample and on a GPU it prints nothing and returns None. `model` and the random state are not changed. Raises
    ValueError for arguments that `fit` rejects, RuntimeError when memory runs out.
    """
    check_material(model, data, epochs, batch_size)
    precision, device = choose_precision(precision), accelerator_of().device
    if data.is_sample or device.type != "cpu":
        return None
    network = copy.deepcopy(model).to(memory_format=torch.channels_last).train()
    channels_first_for_few(network, device)
    optimizer = torch.optim.Adam([p for p in network.parameters() if p.requires_grad])
    indices, timings = np.arange(batch_size), []  # pairs: seconds of training, of the forward pass
    with torch.random.fork_rng(devices=[]), memory_for(batch_size):
        while not timings or len(timings) < 3 and sum(t[0] for t in timings) < 10:
            start = time.perf_counter()
            images = to_input(data.train.take(indices), model, device)
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                logits = logits_of(network, images).float()
            forward = time.perf_counter() - start
            F.cross_entropy(logits, torch.from_numpy(data.train.labels[indices])).backward()
            optimizer.step()
            timings.append((time.perf_counter() - start, forward))
    training, forward = min(timings)
    seconds = epochs * (len(data.train) * training + len(data.val) * forward) / batch_size
    minutes = max(1, round(seconds / 60))
    print(
        f"Training for {_count(epochs, 'epoch')} on this {_device_name(device)}, in {precision}, takes about "
        f"{_count(minutes, 'minute') if minutes < 90 else f'{seconds / 3600:.1f} hours'}, measured on one batch.\n"
        "A complete run is loaded, not repeated. A GPU is faster. Colab: Runtime, Change runtime type, T4 GPU. Kaggle: "
        "Settings,\nAccelerator. Your own computer: an NVIDIA card and its build of torch, see https://pytorch.org."
    )
    return float(seconds)


@memory_kept()
def fit(
    model: torch.nn.Module,
    data: PreparedData,
    name: str,
    epochs: int = 30,
    lr: float = 1e-3,
    batch_size: int = 32,
    seed: int = 0,
    *,
    optimizer: str = "adam",
    weight_decay: float = 0.0,
    schedule: str = "plateau",
    warmup: float = 0.0,
    class_weights: bool = False,
    early_stopping: int | None = None,
    augment: bool | str = False,
    precision: str = "auto",
) -> Run:
    """Train `model` on `data.train`, watch `data.val`, and return a `Run` with the weights best on validation.

    The run folder `outputs/runs/<name>/` gets config.json, and last.pt, best.safetensors and history.csv after every
    epoch. The same call again resumes an unfinished run and loads a finished one; with other settings, data or
    network it prints so and starts a new folder `<name>-2`. If only `epochs` is larger, the new folder continues the
    shorter run, with the result of one long run, unless the learning rate depends on `epochs` (cosine, warmup).

    schedule: "plateau" (ReduceLROnPlateau on the validation loss: after more than 3 epochs without gain lr * 0.3),
    "cosine" to zero, or "constant"; warmup: share of all steps in which a cosine or constant rate rises from zero.
    class_weights: weigh the loss by the inverse frequency of the class. early_stopping: epochs without a lower
    validation loss before it stops. augment: "mild" (or True) or "strong", on the training images alone, see
    `augment_mild` and `augment_strong`. precision: "auto", "fp32", "bf16" or "fp16" (mixed). Loss and accuracy are
    per image, the training loss with its class weights; seconds and images per second (of training) include the
    validation.

    A copy of `model` is trained; `model` is not changed. Processes started by `accelerate launch --multi_gpu`,
    `torchrun` or `notebook_launcher`, on GPUs or CPUs, share each batch: `batch_size` is the total, one process writes
    the run folder, and any number of processes can resume it. BatchNorm uses the whole batch on GPUs, and on CPUs the
    part of its own process.

    Raises ValueError naming the argument for bad input, FloatingPointError when the loss is no longer finite,
    RuntimeError when memory runs out (with a batch size to try) or when a process of several finds no others,
    OSError when the run folder cannot be written.
    """
    settings = {key: value for key, value in locals().items() if key not in ("model", "data", "name")}
    session = Session(model, data, name, settings)
    if session.finished:
        return load_run(session.folder, session.result)
    network, optimizer, accelerator = session.network, session.optimizer, session.accelerator
    with session.guarded():
        for _ in session.epochs():
            training, validation = Counters(session.device), Counters(session.device)
            network.train()
            for images, labels, share in session.training_batches():
                logits = logits_of(network, images)
                loss = F.cross_entropy(logits.float(), labels, session.class_weights)
                session.watch(loss, images, training)  # every so often: progress, and is the loss finite?
                optimizer.zero_grad()
                accelerator.backward(share * loss)
                optimizer.step()
                if share:
                    training.add(loss * len(labels), logits, labels)
            network.eval()
            with torch.no_grad():
                for images, labels, counted in session.validation_batches():
                    logits = logits_of(network, images).float()
                    if counted:
                        validation.add(F.cross_entropy(logits, labels, reduction="sum"), logits, labels)
            session.end_epoch(training, validation)
    return load_run(session.folder, session.result.to(session.device))


@memory_kept()
@torch.no_grad()
def predict(model: torch.nn.Module, split: Split, batch_size: int = 64) -> pd.DataFrame:
    """Predictions of the network for each image, in fp32: `file, label, predicted, p_covid, p_normal, p_virus, ...`.

    Further columns: `group`, `mirrored`, `source` and `view`, where known. Raises ValueError for an empty split or a
    model with another number of classes, FloatingPointError for outputs that are not finite, RuntimeError when memory
    runs out (with a batch size to try).
    """
    check_use(model, split, batch_size)
    parts = []
    with evaluating(model) as device:
        for indices in batches(split, batch_size):
            with memory_for(len(indices)):
                parts.append(logits_of(model, to_input(split.take(indices), model, device)).float())
    probabilities = torch.cat(parts).cpu().double().softmax(dim=1).numpy()
    if (found := probabilities.shape[1]) != len(CLASSES):
        raise ValueError(f"model: it has {found} classes; needed: {len(CLASSES)}, {', '.join(CLASSES)}.")
    if not np.isfinite(probabilities).all():
        raise FloatingPointError("model: its outputs are not finite; its weights are broken. Train it again.")
    table = split.rows[["file", "label"]].assign(predicted=np.array(CLASSES)[probabilities.argmax(axis=1)])
    table[PROBABILITIES] = probabilities
    extra = [column for column in ("group", "mirrored", "source", "view") if column in split.rows]
    table = pd.concat([table, split.rows[extra]], axis=1)
    table.attrs = {"fingerprint": split.fingerprint(), "images": len(split)}  # checked by save_results
    return table
