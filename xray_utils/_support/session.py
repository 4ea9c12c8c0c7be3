"""One call of `fit` behind its loop: settings, run folder, device, batches, checkpoints, errors."""

import copy
import json
import math
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import set_seed

from ..augment import AUGMENTATIONS
from ..batches import batches, to_device, to_input
from ..constants import CLASSES
from ..models import check_model, count_parameters, logits_of
from ..prepared import check_data
from .checks import check_choice, check_flag, check_number, check_whole
from .device import _part, accelerator_of, choose_precision, synchronised
from .files import progress, whole_file
from .memory import channels_first_for_few, memory_for, pixels_of
from .runs import _config, _kept, _resume, _run_folder, _save
from .turns import Turns
from .typical import save_typical

SCHEDULES = ("plateau", "cosine", "constant")
OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
LOOK_EVERY = 20  # steps on a GPU between two readings of the counters: each one waits for the GPU


class Counters:
    """Sums of loss, right predictions and images, kept on the device to avoid synchronisation."""

    def __init__(self, device):
        self.sums = torch.zeros(3, dtype=torch.float32 if device.type == "mps" else torch.float64, device=device)

    def add(self, loss, logits, labels):
        """loss: summed over the images [B] of `logits` [B, classes] and `labels` [B]."""
        self.sums[0] += loss.detach()
        self.sums[1] += (logits.argmax(dim=1) == labels).sum()
        self.sums[2] += len(labels)

    def means(self, accelerator):
        """Loss and accuracy per image, and the number of images, over all processes."""
        loss, right, images = accelerator.reduce(self.sums.float()).tolist()
        return loss / images, right / images, images


class Session:
    """Everything `fit` needs around its loop; a `with` block ends with a finished run or a report of what is kept."""

    def __init__(self, model, data, name, settings):
        settings = {**settings, "precision": choose_precision(settings["precision"])}
        check_settings(name, **settings)
        check_material(model, data, settings["epochs"], settings["batch_size"])
        self.accelerator = accelerator = accelerator_of(settings["precision"])
        self.device = device = accelerator.device
        if settings["precision"] == "fp16" and device.type == "cpu":  # accelerate would silently use fp32
            raise ValueError("precision: 'fp16' is not possible without a GPU. Try 'auto'.")
        self.data, self.name, self.settings = data, name, settings
        config = _config(model, data, name, settings)
        self.folder, shorter = _run_folder(name, config, write=accelerator.is_main_process)
        if accelerator.is_main_process:
            save_typical(self.folder, data)
        self.finished = (self.folder / "finished.json").is_file()
        self.result = copy.deepcopy(model)  # the caller's model keeps its weights: the same call finds this run again
        if self.finished:
            print(f"{self.folder.name}: this run is complete and is loaded, not repeated.")
            self.result.to(device)
            return
        self.model = synchronised(self.result, accelerator).to(device=device, memory_format=torch.channels_last)
        trained = [p for p in self.model.parameters() if p.requires_grad]
        options = dict(lr=settings["lr"], weight_decay=settings["weight_decay"], fused=True)
        optimizer = OPTIMIZERS[settings["optimizer"]](trained, **options)
        self.plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.3, patience=3)
        self.class_weights = class_weights(data.train).to(device) if settings["class_weights"] else None
        self.pixels = {"train": pixels_of(data.train, device), "val": pixels_of(data.val, device)}
        self.history = _resume(self.folder, shorter, self.model, optimizer, self.plateau, accelerator)
        self.hooks = channels_first_for_few(self.model, device)
        self.network = accelerator.prepare(self.model)  # and the optimizer for fp16 alone: its wrapper is slow
        self.optimizer = accelerator.prepare(optimizer) if accelerator.scaler else optimizer
        self.steps = math.ceil(len(data.train) / settings["batch_size"])  # of an epoch
        several = accelerator.num_processes > 1  # they wait for each other within a step
        self.turns = Turns(device.type == "cpu" and torch.get_num_threads() > 1 and not several)
        accelerator.print(
            f"{self.folder.name}: {count_parameters(self.model, trainable=True):,} trained parameters, "
            f"{len(data.train)} training images, {device.type} in {settings['precision']}"
            + (f", {accelerator.num_processes} processes" if accelerator.num_processes > 1 else "")
            + (f", resumed after epoch {len(self.history)}" if self.history else "")
        )

    def epochs(self):
        """The epochs that are left, until early stopping ends them."""
        for epoch in range(len(self.history) + 1, self.settings["epochs"] + 1):
            if self.history and is_over(self.history, self.settings["early_stopping"]):
                return
            self.start, self.epoch = time.perf_counter(), epoch
            yield epoch

    def training_batches(self):
        """Images [B, 3, H, W] and labels [B] of each batch, shuffled and augmented by seed and epoch alone.

        Sets the learning rate of a cosine or constant schedule. The third value is what this process's loss counts:
        1, or with several processes its part of the batch times their number (0 where none is left for it).
        """
        seed, augment = self.settings["seed"], self.settings["augment"]
        set_seed(seed * 1000 + self.epoch)
        rng = np.random.default_rng([seed, self.epoch])
        generator = torch.Generator().manual_seed(seed * 1000 + self.epoch)
        everything = batches(self.data.train, self.settings["batch_size"], rng)
        self.bar = progress(everything, f"{self.name} {self.epoch}/{self.settings['epochs']}")
        for step, batch in enumerate(self.bar):
            self.step = step
            self.turns.take()
            if self.settings["schedule"] != "plateau":
                done = (self.epoch - 1) * self.steps + self.step
                self.optimizer.param_groups[0]["lr"] = rate(done, self.settings["epochs"] * self.steps, **self.settings)
            mine, counted = _part(batch, self.accelerator)
            self.indices = batch[mine]
            images, labels = self.load("train", self.indices)
            if augment:
                images = AUGMENTATIONS["mild" if augment is True else augment](images, generator, (len(batch), mine))
            yield images, labels, self.accelerator.num_processes * counted / len(batch)
            self.turns.give()

    def validation_batches(self):
        """Images, labels, and whether they count, as above; each validation image counts once."""
        for batch in batches(self.data.val, self.settings["batch_size"]):
            mine, counted = _part(batch, self.accelerator)
            self.turns.take()
            yield *self.load("val", batch[mine]), counted
            self.turns.give()

    def load(self, side, indices):
        """Normalised images [B, 3, H, W] and labels [B] on the device."""
        labels = to_device(getattr(self.data, side).labels[indices], self.device)
        return to_input(self.pixels[side](indices), self.model, self.device), labels

    def watch(self, loss, images, counters):
        """Show the progress, and raise FloatingPointError for a loss that is not finite; on a GPU every 20 steps."""
        last = self.step + 1 == self.steps
        if self.device.type != "cpu" and not last and (self.step + 1) % LOOK_EVERY:
            return
        finite = loss.isfinite() & counters.sums[0].isfinite()
        if self.accelerator.reduce((~finite).float()):  # of any process: none may wait for one that stops
            value = "not finite in another process" if finite else (loss * counters.sums[0]).item()
            broken = ~images.flatten(1).isfinite().all(dim=1).cpu().numpy()
            files = self.data.train.rows.file.iloc[self.indices[broken]]
            advice = f"The pixels of {files.iloc[0]!r} are no numbers: prepare the images again." if len(files) else ""
            raise self.not_finite(f"the loss is {value} in epoch {self.epoch}, batch {self.step + 1}", advice)
        loss_sum, right, n = counters.sums.tolist()
        self.bar.set_postfix(loss=f"{loss_sum / max(1, n):.3f}", accuracy=f"{right / max(1, n):.3f}")

    def end_epoch(self, training, validation):
        """The epoch's row of the history, the adaptive rate, the checkpoint."""
        self.turns.give(seconds=0)  # to write the checkpoint takes no cores
        train_loss, train_accuracy, images = training.means(self.accelerator)
        val_loss, val_accuracy, _ = validation.means(self.accelerator)
        if not math.isfinite(val_loss):
            raise self.not_finite(f"the validation loss is {val_loss} after epoch {self.epoch}")
        seconds = time.perf_counter() - self.start
        row = dict(epoch=self.epoch, lr=self.optimizer.param_groups[0]["lr"], train_loss=train_loss)
        row |= dict(train_accuracy=train_accuracy, val_loss=val_loss, val_accuracy=val_accuracy, seconds=seconds)
        row["images_per_second"] = images / seconds
        if self.settings["schedule"] == "plateau":
            self.plateau.step(val_loss)
        if self.accelerator.is_main_process:
            scaler = self.accelerator.scaler
            _save(self.folder, self.model, self.optimizer, self.plateau, scaler, [*self.history, row])
        self.history.append(row)
        self.accelerator.wait_for_everyone()

    @contextmanager
    def guarded(self):
        """Context of the loop: finish the run at its end; on an error, report what is kept."""
        try:
            yield
        except KeyboardInterrupt:
            kept = _kept(self.folder, self.history)
            print(f"{self.folder.name}: interrupted in epoch {len(self.history) + 1}. {kept} The same call resumes.")
            raise  # so that "run all" stops here, and nothing is tested half-trained
        except (RuntimeError, MemoryError):
            with memory_for(self.settings["batch_size"]):
                raise
        else:
            if self.accelerator.is_main_process:
                with whole_file(self.folder / "finished.json") as path:
                    path.write_text(json.dumps({"epochs": len(self.history)}))
            self.accelerator.wait_for_everyone()
        finally:
            self.turns.close()
            for hook in self.hooks:
                hook.remove()
            self.accelerator.unwrap_model(self.network, keep_fp32_wrapper=False)

    def not_finite(self, what, advice=""):
        """FloatingPointError with what is not finite, what is kept, and what to do."""
        advice = advice or f"Try a lower lr than {self.settings['lr']}, or precision='fp32'."
        return FloatingPointError(f"{self.name}: {what}. {_kept(self.folder, self.history)} {advice}")


def check_settings(
    name, lr, seed, optimizer, weight_decay, schedule, warmup, class_weights, early_stopping, augment, **_
):
    check_number("lr", lr, lambda x: 0 < x < math.inf, "a positive number")
    check_whole("seed", seed, 0, 4_000_000)  # seed * 1000 + epoch is to fit in 32 bits
    check_choice("optimizer", optimizer, OPTIMIZERS)
    check_number("weight_decay", weight_decay, lambda x: 0 <= x < math.inf, "0 or a positive number")
    check_choice("schedule", schedule, SCHEDULES)
    check_number("warmup", warmup, lambda x: 0 <= x < 1, "a share of all steps, from 0 to below 1")
    if warmup and schedule == "plateau":
        raise ValueError(f"warmup: {warmup!r} needs schedule 'cosine' or 'constant', not 'plateau'.")
    check_flag("class_weights", class_weights)
    if early_stopping is not None:
        check_whole("early_stopping", early_stopping, 1, more=", or None")
    if not isinstance(augment, bool):
        check_choice("augment", augment, tuple(AUGMENTATIONS), ", True or False")
    if not isinstance(name, str) or Path(name).name != name or not name.isprintable() or name[:1] in ("", "."):
        raise ValueError(f"name: {name!r} must be a plain folder name, such as 'baseline_cnn'.")


def check_material(model, data, epochs, batch_size):
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
    if not hasattr(model, "spec"):
        check_own_network(model, data.train.take(np.arange(1)))


def check_own_network(model, pixels):
    """Raise ValueError unless a network that is not of the course turns images like `pixels` into logits."""
    needed = f"needed: logits [B, {len(CLASSES)}], for {', '.join(CLASSES)}"
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            network, device = copy.deepcopy(model).eval(), next(model.parameters()).device
            output = logits_of(network, to_input(pixels, model, device))
    except (AssertionError, IndexError, RuntimeError, TypeError, ValueError) as error:
        size = " x ".join(map(str, pixels.shape[1:3]))
        raise ValueError(f"model: images of {size} pixels do not pass ({error}); {needed}.") from error
    shape = tuple(getattr(output, "shape", [type(output).__name__]))
    if shape != (1, len(CLASSES)):
        raise ValueError(f"model: it turns an image [1, 3, H, W] into {shape}; {needed}. Give it another last layer.")


def class_weights(split):
    counts = np.bincount(split.labels, minlength=len(CLASSES)).clip(min=1)
    return torch.tensor(len(split) / (len(CLASSES) * counts), dtype=torch.float32)


def rate(step, steps, *, lr, schedule, warmup, **_):
    """The learning rate at one of `steps` steps: linear warm-up, then constant or half a cosine to zero."""
    if step < warmup * steps:
        return lr * (step + 1) / (warmup * steps)
    done = (step - warmup * steps) / max(1, steps - warmup * steps)
    return lr * (0.5 + 0.5 * math.cos(math.pi * done)) if schedule == "cosine" else lr


def is_over(history, patience):
    losses = [row["val_loss"] for row in history]
    return patience is not None and len(losses) - 1 - int(np.argmin(losses)) >= patience
