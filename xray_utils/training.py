"""`fit`: one training loop for all three networks. `predict`: one way to use them."""

import copy
import ctypes
import hashlib
import io
import json
import math
import os
import pickle
import sys
import textwrap
import time
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import set_seed
from safetensors.torch import save
from torch.nn import functional as F

from .data import (
    CLASSES,
    check_choice,
    check_data,
    check_flag,
    check_number,
    check_path,
    check_split,
    check_whole,
    outputs_dir,
    progress,
    whole_file,
)
from .environment import report_requirements
from .models import build, check_model, count_parameters, load_weights, logits_of

SCHEDULES = ("plateau", "cosine", "constant")
OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
PRECISIONS = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}


@dataclass
class Run:
    """A trained network: `model` has the weights of the best epoch on validation, `history` a row an epoch."""

    name: str
    folder: Path
    model: torch.nn.Module
    history: pd.DataFrame
    config: dict

    @property
    def best_epoch(self):
        """The epoch with the lowest validation loss, whose weights `model` has."""
        return int(self.history.epoch[self.history.val_loss.idxmin()])


# ---------------------------------------------------------------- batches


def batches(split, batch_size, rng=None):
    """Index arrays of at most `batch_size`, in random order if a numpy generator is given."""
    order = np.arange(len(split)) if rng is None else rng.permutation(len(split))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


@contextmanager
def memory_for(batch_size):
    """Where memory runs out on a batch of so many images: RuntimeError, with the batch size to try."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        full = isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)
        if not full:  # torch on a CPU says the latter
            raise
        way_out = f"try {batch_size // 2}" if batch_size > 1 else "take smaller images or a smaller network"
        raise RuntimeError(
            f"batch_size: {batch_size} is too large for the memory of this device; {way_out}."
        ) from error


@contextmanager
def memory_kept():
    """Keep what a layer frees for the next one; else glibc hands it back, and the system clears it each time anew.

    At the end what is free is handed back; an inner use ends the outer one. glibc's settings for this, those of
    the environment too, are replaced. Elsewhere than on Linux nothing changes. Source: man 3 mallopt.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if not hasattr(libc, "malloc_trim"):  # another library than glibc
        yield
        return
    trim_threshold, mmap_threshold, mmap_max = -1, -3, -4  # malloc.h
    libc.mallopt(mmap_max, 0)
    libc.mallopt(trim_threshold, -1)
    try:
        yield
    finally:  # to where glibc itself comes in a process that frees large blocks
        for option, value in ((mmap_threshold, 2**25), (trim_threshold, 2**26), (mmap_max, 2**16)):
            libc.mallopt(option, value)
        libc.malloc_trim(0)


class _Layout(torch.autograd.Function):
    """A copy of images [B, C, H, W] in the memory format `wanted`; their gradients come back in `before`."""

    @staticmethod
    def forward(ctx, images, wanted, before):
        ctx.before = before
        return images.clone(memory_format=wanted)  # never the images themselves: a layer behind may change them

    @staticmethod
    def backward(ctx, gradients):
        return gradients.contiguous(memory_format=ctx.before), None, None


def channels_first_for_few(model, device):
    """Hooks, to be removed, by which BatchNorm on a CPU gets few channels first in memory, not last.

    Where they are last PyTorch is slow on channels that do not fill registers of 16 numbers: on eight, with AVX-512,
    two (fp32) to ten times (bf16) as slow as where they are first; on 16 or many it is not. The numbers stay, but for
    rounding.
    """
    hooks, orders = [], (torch.contiguous_format, torch.channels_last)
    for layer in model.modules() if device.type == "cpu" else ():
        if type(layer) is torch.nn.BatchNorm2d and layer.num_features < 32 and layer.num_features % 16:
            first = layer.register_forward_pre_hook(lambda _, given: _Layout.apply(*given, *orders) if given else None)
            last = layer.register_forward_hook(lambda _, given, output: _Layout.apply(output, *orders[::-1]))
            hooks += [first, last]
    return hooks


def check_use(model, split, batch_size):
    """Raise ValueError unless `model` is a network, and `split` a side with images, that can be put through it."""
    check_model(model, use=True)
    check_split(split)
    check_whole("batch_size", batch_size, 1)


def to_input(pixels, model, device):
    """uint8 [B, H, W, 3] to the normalised float [B, 3, H, W] (channels last in memory) that `model` expects."""
    pixels = torch.as_tensor(pixels).to(device)
    mean, std = (  # of a whole line: three numbers at a time take five times as long
        torch.tensor(values, device=device).repeat(pixels.shape[2]) for values in (model.input_mean, model.input_std)
    )
    lines = pixels.flatten(2).float()  # [B, H, W * 3]
    lines.div_(255).sub_(mean).div_(std)  # in place: new memory costs more than the arithmetic
    return lines.view(pixels.shape).permute(0, 3, 1, 2)


def room_for_pixels(device):
    """Bytes of a GPU's free memory that prepared images may fill: a quarter. 0 on other devices."""
    return torch.cuda.mem_get_info(device)[0] // 4 if device.type == "cuda" else 0


def pixels_of(split, device):
    """`split.take` as a function to call; where there is room, all images lie on the GPU from now on."""
    if len(split) * math.prod(split.pixels.shape[1:]) > room_for_pixels(device):
        return split.take
    everything = torch.from_numpy(split.take(np.arange(len(split)))).to(device)
    return lambda indices: everything[torch.from_numpy(indices).to(device)]


def augment_mild(images, generator, of=None):
    """Mirror half of the images; turn up to 10 degrees, shift 5 %, zoom 10 %, contrast and brightness 10 %.

    images: normalised [B, 3, H, W]; the same generator state gives the same result. of: the size of the batch that
    several processes share, and where in it these images stand.
    """
    n, mine = of or (len(images), slice(None))
    turn, zoom, right, down, contrast, brightness, flip = (
        torch.rand(7, n, generator=generator)[:, mine] * 2 - 1  # each in -1..1; drawn on the CPU, the same everywhere
    ).to(images.device)
    angle, scale = turn * math.radians(10), 1 + 0.1 * zoom
    sign = torch.where(flip > 0, 1.0, -1.0)
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    affine = torch.stack(  # [B, 2, 3]; shifts are in half image widths
        [torch.stack([cos * sign, -sin, 0.1 * right], 1), torch.stack([sin * sign, cos, 0.1 * down], 1)], 1
    )
    grid = F.affine_grid(affine, images.shape, align_corners=False)
    images = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    return images * (1 + 0.1 * contrast).view(-1, 1, 1, 1) + 0.1 * brightness.view(-1, 1, 1, 1)


def augment_strong(images, generator, of=None):
    """Another scanner, another hospital: what a lung keeps and a source does not (domain randomisation, as in `lungs`).

    Mirror half of the images; turn up to 15 degrees, shift 12 %, zoom by up to 1.4, aspect by up to 1.2, what comes
    from outside in one random tone; gamma 1/2 to 2, contrast 0.6 to 1.4, brightness 30 % of the range; blurred or
    sharpened; noise; and a rectangle in a random tone at a random place, as a marker or a cable would hide something.

    A marker lies on half of the pictures. Normalised by the statistics of another set (ResNet18, ViT) grey pictures get
    a slight tint too, since the range is that of all three channels. Source: ours.

    images: normalised [B, 3, H, W]; the same generator state gives the same result. of: as for `augment_mild`.
    """
    (n, mine), (height, width) = of or (len(images), slice(None)), images.shape[2:]
    noise = torch.randn(n, 1, height, width, generator=generator)[mine].to(images.device)
    draws = (torch.rand(18, n, 1, 1, 1, generator=generator)[:, mine] * 2 - 1).to(images.device)  # each in -1..1
    turn, zoom, aspect, right, down, flip, tone, gamma, contrast, brightness, blur, grain, *mark = draws
    low, high = images.amin(dim=(1, 2, 3), keepdim=True), images.amax(dim=(1, 2, 3), keepdim=True)
    images = (images - low) / (high - low).clamp(min=1e-6)  # 0..1 whatever the normalisation was
    angle, zoom, aspect = (v.flatten() for v in (turn * math.radians(15), 1.4**zoom, 1.2 ** (aspect / 2)))
    cos, sin, sign = angle.cos() * zoom, angle.sin() * zoom, flip.flatten().sign()
    affine = torch.stack(  # [B, 2, 3]; shifts are in half image widths
        [
            torch.stack([cos * aspect * sign, -sin / aspect, 0.24 * right.flatten()], 1),
            torch.stack([sin * aspect * sign, cos / aspect, 0.24 * down.flatten()], 1),
        ],
        1,
    )
    grid = F.affine_grid(affine, images.shape, align_corners=False)
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


# ---------------------------------------------------------------- precision


def choose_precision(precision="auto", device=None):
    """ "fp32", "bf16" or "fp16": as asked, or what this processor or GPU is good at for "auto"."""
    check_choice("precision", precision, ("auto", *PRECISIONS))
    if precision != "auto":
        return precision
    kind = torch.device(device).type if device else "cuda" if torch.cuda.is_available() else "cpu"
    if kind == "cuda":  # bf16 from Ampere on; a T4 only emulates it, slowly
        return "bf16" if torch.cuda.get_device_capability()[0] >= 8 else "fp16"
    return "bf16" if kind == "cpu" and bf16_is_faster() else "fp32"


@cache
def bf16_is_faster():
    """Whether this CPU multiplies matrices in bf16 at least 1.2 times as fast as in fp32: measured once, in 20 ms.

    Asking the processor is not enough: some that know bf16 take twice as long in it (AVX512_BF16 without AMX), or may
    not use it (ONEDNN_MAX_CPU_ISA). On such as do well it is twice as fast or more, so that noise does not decide.
    """
    fastest = {}
    for kind in (torch.float32, torch.bfloat16):
        matrix, timings = torch.ones(512, 512, dtype=kind), []
        for _ in range(8):
            start = time.perf_counter()
            matrix @ matrix
            timings.append(time.perf_counter() - start)
        fastest[kind] = min(timings)
    return fastest[torch.float32] > 1.2 * fastest[torch.bfloat16]


def check_environment():
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


@memory_kept()
def estimate_time(model, data, epochs, batch_size=32, precision="auto"):
    """Say how long `fit` will take on this CPU with these real images, measured on one batch; return the seconds.

    A batch is trained up to three times, and the fastest counts, if that takes less than ten seconds. On the bundled
    sample and on a GPU nothing is said and None returned: there is no need. `model`, and the random numbers that come
    after, stay as they are. Raises ValueError for what `fit` would not take, RuntimeError when memory runs out.
    """
    _check_material(model, data, epochs, batch_size)
    precision, device = choose_precision(precision), accelerator_of().device
    if data.is_sample or device.type != "cpu":
        return None
    network = copy.deepcopy(model).to(memory_format=torch.channels_last).train()
    channels_first_for_few(network, device)
    optimizer = torch.optim.Adam([p for p in network.parameters() if p.requires_grad])
    indices, timings = np.arange(batch_size), []  # of each: seconds of training, and of them of the answer alone
    with torch.random.fork_rng(devices=[]), memory_for(batch_size):
        while not timings or len(timings) < 3 and sum(t[0] for t in timings) < 10:
            start = time.perf_counter()
            images = to_input(data.train.take(indices), model, device)
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                logits = logits_of(network, images).float()
            answered = time.perf_counter() - start
            F.cross_entropy(logits, torch.from_numpy(data.train.labels[indices])).backward()
            optimizer.step()
            timings.append((time.perf_counter() - start, answered))
    training, answering = min(timings)
    seconds = epochs * (len(data.train) * training + len(data.val) * answering) / batch_size
    minutes = max(1, round(seconds / 60))
    print(
        f"Training for {_count(epochs, 'epoch')} on this {_device_name(device)}, in {precision}, takes about "
        f"{_count(minutes, 'minute') if minutes < 90 else f'{seconds / 3600:.1f} hours'}, going by one batch.\n"
        "A complete run is loaded, not repeated. A GPU is faster. Colab: Runtime, Change runtime type, T4 GPU. Kaggle: "
        "Settings,\nAccelerator. At home: an NVIDIA card, and the torch made for it, see https://pytorch.org."
    )
    return float(seconds)


# ---------------------------------------------------------------- fit


@memory_kept()
def fit(
    model,
    data,
    name,
    epochs=30,
    lr=1e-3,
    batch_size=32,
    seed=0,
    *,
    optimizer="adam",
    weight_decay=0.0,
    schedule="plateau",
    warmup=0.0,
    class_weights=False,
    early_stopping=None,
    augment=False,
    precision="auto",
):
    """Train `model` on `data.train`, watch `data.val`, and return a `Run` with the weights best on validation.

    The run folder `outputs/runs/<name>/` gets config.json, and last.pt, best.safetensors and history.csv after every
    epoch. The same call again resumes an unfinished run and loads a finished one; with other settings, data or
    network it starts a new folder `<name>-2` and says so.

    schedule: "plateau" (ReduceLROnPlateau on the validation loss: after more than 3 epochs without gain lr * 0.3),
    "cosine" to zero, or "constant"; warmup: share of all steps in which a cosine or constant rate rises from zero.
    class_weights: weigh the loss by the inverse frequency of the class. early_stopping: epochs without a lower
    validation loss before it stops. augment: "mild" (or True) or "strong", on the training images alone, see
    `augment_mild` and `augment_strong`. precision: "auto", "fp32", "bf16" or "fp16" (mixed). Loss and accuracy are
    per image, the training loss with its class weights; seconds and images per second (of training) are those of the
    whole epoch, validation included.

    `model` itself is left as it is: a copy of it is trained. Processes started by `accelerate launch --multi_gpu`,
    `torchrun` or `notebook_launcher`, on GPUs or CPUs, share each batch: `batch_size` is that of all of them, one
    writes, and any number of them resumes.
    BatchNorm sees all of the batch on GPUs, and on CPUs the part of its own process.

    Raises ValueError naming the argument for bad input, FloatingPointError when the loss is no longer finite,
    RuntimeError when memory runs out, with a batch size to try, or when a process that was started with others finds
    none, and OSError when the run folder cannot be written.
    """
    precision = choose_precision(precision)
    settings = dict(
        epochs=epochs, lr=lr, batch_size=batch_size, seed=seed, optimizer=optimizer, weight_decay=weight_decay
    )
    settings |= dict(schedule=schedule, warmup=warmup, class_weights=class_weights, early_stopping=early_stopping)
    settings |= dict(augment=augment)
    _check_settings(name, **settings)
    _check_material(model, data, epochs, batch_size)
    settings["precision"] = precision
    accelerator = accelerator_of(precision)
    if precision == "fp16" and accelerator.device.type == "cpu":  # accelerate would go on in fp32 without a word
        raise ValueError("precision: 'fp16' is not possible without a GPU. Try 'auto'.")
    config = _config(model, data, name, settings)
    folder = _run_folder(name, config, write=accelerator.is_main_process)
    if (folder / "finished.json").is_file():
        print(f"{folder.name}: this run is complete and is loaded, not repeated.")
        return load_run(folder, copy.deepcopy(model))

    device = accelerator.device
    result = copy.deepcopy(model)  # the caller's keeps its first weights, so that the same call finds this run again
    model = synchronised(result, accelerator).to(device=device, memory_format=torch.channels_last)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = OPTIMIZERS[optimizer](trained, lr=lr, weight_decay=weight_decay, fused=True)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.3, patience=3)
    weights = _class_weights(data.train).to(device) if class_weights else None
    steps = math.ceil(len(data.train) / batch_size)
    train_pixels, val_pixels = pixels_of(data.train, device), pixels_of(data.val, device)
    history = _resume(folder, model, optimizer, plateau, accelerator)
    hooks = channels_first_for_few(model, device)
    network = accelerator.prepare(model)
    optimizer = accelerator.prepare(optimizer)
    accelerator.print(
        f"{folder.name}: {count_parameters(model, trainable=True):,} trained parameters, {len(data.train)} training "
        f"images, {device.type} in {precision}"
        + (f", {accelerator.num_processes} processes" if accelerator.num_processes > 1 else "")
        + (f", resumed after epoch {len(history)}" if history else "")
    )
    advice = f"Try a lower lr than {lr}, or precision='fp32'."
    try:
        for epoch in range(len(history) + 1, epochs + 1):
            if history and _is_over(history, early_stopping):
                break
            start = time.perf_counter()
            set_seed(seed * 1000 + epoch)  # order and augmentation depend on seed and epoch alone
            rng, generator = (
                np.random.default_rng([seed, epoch]),
                torch.Generator().manual_seed(seed * 1000 + epoch),
            )
            sums = torch.zeros(3, dtype=torch.float64)  # loss, correct, images
            network.train()
            bar = progress(batches(data.train, batch_size, rng), f"{name} {epoch}/{epochs}")
            for step, batch in enumerate(bar):
                if schedule != "plateau":
                    rate = _rate(lr, schedule, warmup, (epoch - 1) * steps + step, epochs * steps)
                    optimizer.param_groups[0]["lr"] = rate
                mine, counted = _part(batch, accelerator)
                indices = batch[mine]
                share = accelerator.num_processes * counted / len(batch)  # gradients are averaged over processes
                images = to_input(train_pixels(indices), model, device)
                labels = torch.from_numpy(data.train.labels[indices]).to(device)
                if augment:
                    images = AUGMENTATIONS["mild" if augment is True else augment](
                        images, generator, (len(batch), mine)
                    )
                logits = logits_of(network, images)
                loss = F.cross_entropy(logits.float(), labels, weights)
                if accelerator.reduce((~loss.isfinite()).float()):  # of any process: none may wait for one that stops
                    value = "not finite in another process" if loss.isfinite() else loss.item()
                    broken = ~images.flatten(1).isfinite().all(dim=1).cpu().numpy()
                    if broken.any():
                        file = data.train.rows.file.iloc[indices[broken][0]]
                        advice = f"The pixels of {file!r} are no numbers: prepare the images again."
                    raise FloatingPointError(
                        f"{name}: the loss is {value} in epoch {epoch}, batch {step + 1}. "
                        f"{_kept(folder, history)} {advice}"
                    )
                optimizer.zero_grad()
                accelerator.backward(share * loss)
                optimizer.step()
                if counted:
                    sums += _sums(loss.detach() * len(labels), logits, labels)
                bar.set_postfix(loss=f"{sums[0] / sums[2]:.3f}", accuracy=f"{sums[1] / sums[2]:.3f}")
            train = accelerator.reduce(sums.to(device, torch.float32)).tolist()
            val = _validate(network, model, data.val, val_pixels, accelerator, batch_size)
            if not math.isfinite(val[0]):
                raise FloatingPointError(
                    f"{name}: the validation loss is {val[0]} after epoch {epoch}. {_kept(folder, history)} {advice}"
                )
            seconds = time.perf_counter() - start
            row = dict(epoch=epoch, lr=optimizer.param_groups[0]["lr"])
            row |= dict(train_loss=train[0] / train[2], train_accuracy=train[1] / train[2])
            row |= dict(val_loss=val[0] / val[2], val_accuracy=val[1] / val[2], seconds=seconds)
            row["images_per_second"] = train[2] / seconds
            if schedule == "plateau":
                plateau.step(row["val_loss"])
            if accelerator.is_main_process:
                _save(folder, model, optimizer, plateau, accelerator.scaler, [*history, row])
            history.append(row)
            accelerator.wait_for_everyone()
    except KeyboardInterrupt:
        kept = _kept(folder, history)
        print(f"{folder.name}: interrupted in epoch {len(history) + 1}. {kept} The same call goes on.")
        raise  # so that "run all" stops here, and nothing is tested half-trained
    except (RuntimeError, MemoryError):
        with memory_for(batch_size):
            raise
    else:
        if accelerator.is_main_process:
            with whole_file(folder / "finished.json") as path:
                path.write_text(json.dumps({"epochs": len(history)}))
        accelerator.wait_for_everyone()
    finally:
        for hook in hooks:
            hook.remove()
        accelerator.unwrap_model(network, keep_fp32_wrapper=False)
    return load_run(folder, result.to(device))


def accelerator_of(precision=None):
    """Accelerate's object for this process: the device, the precision, and the other processes, on CPUs too.

    Raises RuntimeError for a process that was started with others and finds none: each would write the same run.
    """
    if precision:  # a notebook fits many times, now at this one, now at that
        AcceleratorState._reset_state(reset_partial_state=False)
    several, mixed = int(os.environ.get("WORLD_SIZE", 1)) > 1, PRECISIONS[precision] if precision else None
    no_gpu = not (torch.cuda.is_available() or torch.xpu.is_available())
    accelerator = Accelerator(mixed_precision=mixed, cpu=several and no_gpu)  # else it would not look for others
    others = several or ("MASTER_ADDR" in os.environ and "WORLD_SIZE" not in os.environ)
    if others and accelerator.num_processes == 1:
        raise RuntimeError(
            "fit: this process was started with others and finds none. Start them with torchrun or with "
            "accelerate launch --multi_gpu (on CPUs, too), or unset WORLD_SIZE and MASTER_ADDR."
        )
    return accelerator


def synchronised(model, accelerator):
    """`model`; on several GPUs a copy whose BatchNorm sees the parts of all processes (torch has none for CPUs)."""
    if accelerator.num_processes > 1 and accelerator.device.type == "cuda":
        return torch.nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model))
    return model


def _check_settings(
    name, lr, seed, optimizer, weight_decay, schedule, warmup, class_weights, early_stopping, augment, **_
):
    check_number("lr", lr, lambda x: 0 < x < math.inf, "a positive number")
    check_whole("seed", seed, 0, 4_000_000)  # seed * 1000 + epoch is to fit in 32 bits
    check_choice("optimizer", optimizer, OPTIMIZERS)
    check_number("weight_decay", weight_decay, lambda x: 0 <= x < math.inf, "0 or a positive number")
    check_choice("schedule", schedule, SCHEDULES)
    check_number("warmup", warmup, lambda x: 0 <= x < 1, "a share of all steps, from 0 to below 1")
    if warmup and schedule == "plateau":
        raise ValueError(f"warmup: {warmup!r} goes with schedule 'cosine' or 'constant', not with 'plateau'.")
    check_flag("class_weights", class_weights)
    if early_stopping is not None:
        check_whole("early_stopping", early_stopping, 1, more=", or None")
    if not isinstance(augment, bool):
        check_choice("augment", augment, tuple(AUGMENTATIONS), ", True or False")
    if not isinstance(name, str) or Path(name).name != name or not name.isprintable() or name[:1] in ("", "."):
        raise ValueError(f"name: {name!r} must be a plain folder name, such as 'baseline_cnn'.")


def _check_material(model, data, epochs, batch_size):
    check_model(model, use=True)
    check_data(data)
    check_whole("epochs", epochs, 1)
    check_whole("batch_size", batch_size, 1)
    for side in ("train", "val"):
        rows = getattr(data, side).rows
        if rows.empty:
            raise ValueError(f"data: {side} is empty.")
        if wrong := sorted(set(rows.label) - set(CLASSES)):
            raise ValueError(f"data: label {wrong[0]!r} in {side} is none of the classes {', '.join(CLASSES)}.")
    if batch_size > len(data.train):
        raise ValueError(f"batch_size: {batch_size} is larger than the data; at most the {len(data.train)} of train.")
    classes = getattr(model, "spec", {}).get("num_classes", len(CLASSES))
    if classes != len(CLASSES):
        raise ValueError(f"model: num_classes {classes} must be {len(CLASSES)}, for {', '.join(CLASSES)}.")


def _config(model, data, name, settings):
    digest = hashlib.sha256()
    for key, tensor in model.state_dict().items():
        digest.update(key.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    sides = {side: getattr(data, side).fingerprint() for side in ("train", "val", "test")}
    config = {
        "name": name,
        "network": getattr(model, "spec", {"network": type(model).__name__}),
        "input_mean": model.input_mean,
        "input_std": model.input_std,
        "parameters": count_parameters(model),
        "trained_parameters": count_parameters(model, trainable=True),
        "initial_weights": digest.hexdigest(),
        "data": {**data.settings, **sides, "train_images": len(data.train), "val_images": len(data.val)},
        "settings": settings,
    }
    return json.loads(json.dumps(config, default=str))


def _run_folder(name, config, write=True):
    """The newest folder of this name if it holds this very run; else the next free one, said aloud.

    Of several processes one may `write`: the others come to the same folder, whether its config is there yet or not.
    """
    for number in range(1, 10_000):
        folder = outputs_dir("runs", name if number == 1 else f"{name}-{number}")
        if not (folder / "config.json").is_file():
            break
        other = json.loads((folder / "config.json").read_text())
        if other == config:
            return folder
        differs = [
            f"{key} {other['settings'].get(key)} -> {value}"
            for key, value in config["settings"].items()
            if other["settings"].get(key) != value
        ] + [key for key in config if key not in ("settings", "name") and other.get(key) != config[key]]
        print(f"{folder.name}: another run ({', '.join(differs)}); it is kept.")
    if write:
        with whole_file(folder / "config.json") as path:
            path.write_text(json.dumps(config, indent=1))
    return folder


def _kept(folder, history):
    """What there is to go on with when training stops early."""
    if not history:
        return "No epoch is complete yet."
    return (
        f"The checkpoint of epoch {len(history)} is kept in {folder.name}, and xu.load_run({folder.name!r}) has the "
        "history so far."
    )


def _class_weights(split):
    counts = np.bincount(split.labels, minlength=len(CLASSES)).clip(min=1)
    return torch.tensor(len(split) / (len(CLASSES) * counts), dtype=torch.float32)


def _rate(lr, schedule, warmup, step, steps):
    """The rate at one step: linear warm-up, then constant or half a cosine to zero."""
    if step < warmup * steps:
        return lr * (step + 1) / (warmup * steps)
    done = (step - warmup * steps) / max(1, steps - warmup * steps)
    return lr * (0.5 + 0.5 * math.cos(math.pi * done)) if schedule == "cosine" else lr


def _is_over(history, patience):
    losses = [row["val_loss"] for row in history]
    return patience is not None and len(losses) - 1 - int(np.argmin(losses)) >= patience


def _part(batch, accelerator):
    """The places of this process in `batch`, and how many count: where none is left it goes along with one, for 0."""
    mine = np.arange(len(batch))[accelerator.process_index :: accelerator.num_processes]
    return (mine, len(mine)) if len(mine) else (np.arange(1), 0)


def _sums(loss, logits, labels):
    correct = (logits.argmax(dim=1) == labels).sum()
    return torch.tensor([loss.item(), correct.item(), len(labels)], dtype=torch.float64)


@torch.no_grad()
def _validate(network, model, split, take, accelerator, batch_size):
    """Sums of loss, correct answers and images over all of `split`, every image counted once."""
    network.eval()
    sums = torch.zeros(3, dtype=torch.float64)
    for batch in batches(split, batch_size):
        mine, counted = _part(batch, accelerator)
        indices = batch[mine]
        labels = torch.from_numpy(split.labels[indices]).to(accelerator.device)
        logits = logits_of(network, to_input(take(indices), model, accelerator.device)).float()
        if counted:
            sums += _sums(F.cross_entropy(logits, labels, reduction="sum"), logits, labels)
    return accelerator.reduce(sums.to(accelerator.device, torch.float32)).tolist()


def _save(folder, model, optimizer, plateau, scaler, history):
    """The checkpoint first, in one piece; a kill after it costs nothing, since `_resume` writes the rest again."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    last = {
        "model": state,
        "optimizer": optimizer.state_dict(),
        "plateau": plateau.state_dict(),
        "scaler": scaler.state_dict() if scaler else None,  # of fp16 alone
        "history": history,
    }
    buffer = io.BytesIO()  # torch.save hides why it could not write to a file
    torch.save(last, buffer)
    with whole_file(folder / "last.pt") as path:
        path.write_bytes(buffer.getbuffer())
    _save_best(folder, state, history)


def _save_best(folder, state, history):
    """The weights `state` of the last epoch, if it is the best so far, and the history."""
    if history[-1]["val_loss"] < min((row["val_loss"] for row in history[:-1]), default=math.inf):
        with whole_file(folder / "best.safetensors") as path:
            path.write_bytes(save(state, metadata={"epoch": str(len(history))}))
    with whole_file(folder / "history.csv") as path:
        pd.DataFrame(history).to_csv(path, index=False)


def _resume(folder, model, optimizer, plateau, accelerator):
    """The history so far; weights, optimizer, schedule and the scaler of fp16 are put back as they were."""
    if not (folder / "last.pt").is_file():
        return []
    try:
        last = torch.load(folder / "last.pt", map_location="cpu", weights_only=True)
        model.load_state_dict(last["model"])
        optimizer.load_state_dict(last["optimizer"])
        plateau.load_state_dict(last["plateau"])
        if accelerator.scaler and last.get("scaler"):
            accelerator.scaler.load_state_dict(last["scaler"])
        history = last["history"]
    except (OSError, RuntimeError, ValueError, LookupError, TypeError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(
            f"name: the checkpoint {folder / 'last.pt'} is broken ({str(error)[:200]}). Move its folder away, or give "
            "another name, to train again."
        ) from error
    if accelerator.is_main_process:
        _save_best(folder, last["model"], history)
    return history


# ---------------------------------------------------------------- use


def load_run(run, model=None):
    """A run from its name or folder, with the weights that were best on validation.

    Raises FileNotFoundError when there is no such run, or none of its epochs is complete, ValueError for a `model`
    that is not the one of the run.
    """
    check_path("run", run, "the name or folder of one")
    if model is not None:
        check_model(model)
    folder = run if isinstance(run, Path) else outputs_dir("runs", run)
    for file in ("config.json", "history.csv", "best.safetensors"):
        if not (folder / file).is_file():
            here = (
                ", ".join(sorted(path.parent.name for path in outputs_dir("runs").glob("*/best.safetensors"))) or "none"
            )
            raise FileNotFoundError(
                f"run: {folder.name!r} has no {file}. Train it first: run its notebook. Trained here: {here}."
            )
    config = json.loads((folder / "config.json").read_text())
    if model is None:
        model = build(config["network"], config["input_mean"], config["input_std"])
    try:
        model.load_state_dict(load_weights(folder / "best.safetensors"))
    except RuntimeError as error:
        raise ValueError(f"model: it is not the network of {folder.name!r} ({str(error)[:200]}).") from error
    history = pd.read_csv(folder / "history.csv", float_precision="round_trip")
    return Run(folder.name, folder, model.eval(), history, config)


@memory_kept()
@torch.no_grad()
def predict(model, split, batch_size=64):
    """The network's answer to each image, in fp32: `file, label, predicted, p_covid, p_normal, p_virus, ...`.

    `group`, `mirrored`, `source` and `view` of the images stand behind, where known. Raises ValueError for an empty
    split or a model with another number of classes, RuntimeError when memory runs out, with a batch size to try.
    """
    check_use(model, split, batch_size)
    device, was_training, parts = next(model.parameters()).device, model.training, []
    model.eval()
    try:
        for indices in batches(split, batch_size):
            with memory_for(len(indices)):
                parts.append(logits_of(model, to_input(split.take(indices), model, device)).float())
    finally:
        model.train(was_training)
    probabilities = torch.cat(parts).cpu().double().softmax(dim=1).numpy()
    if probabilities.shape[1] != len(CLASSES):
        raise ValueError(
            f"model: it has {probabilities.shape[1]} classes; needed: {len(CLASSES)}, {', '.join(CLASSES)}."
        )
    if not np.isfinite(probabilities).all():
        raise FloatingPointError("model: its outputs are not finite; its weights are broken. Train it again.")
    table = split.rows[["file", "label"]].assign(predicted=np.array(CLASSES)[probabilities.argmax(axis=1)])
    table[[f"p_{name}" for name in CLASSES]] = probabilities
    extra = [column for column in ("group", "mirrored", "source", "view") if column in split.rows]
    table = pd.concat([table, split.rows[extra]], axis=1)
    table.attrs = {
        "fingerprint": split.fingerprint(),
        "images": len(split),
    }  # save_results asks whose answers these are
    return table
