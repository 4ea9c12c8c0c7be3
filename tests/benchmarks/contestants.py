"""One epoch with validation, as several libraries do it: the same files, images, batch, network and optimiser.

Every contestant is a function of a `Course` and a precision; what it returns is not looked at, its time is. What it
needs once (importing, listing files, our prepared set) is made before the clock starts.
"""

import logging
import os
import shutil
import tempfile
import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode
from torchvision import transforms
from torchvision.datasets import ImageFolder

import xray_utils as xu
from xray_utils._support.memory import channels_first_for_few, memory_kept
from xray_utils.batches import to_input
from xray_utils.models import logits_of
from xray_utils.prepared import PreparedData

os.environ |= {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
    logging.getLogger(name).setLevel(logging.ERROR)
warnings.filterwarnings("ignore", module="lightning|fastai|transformers|torch.utils.data")

MATRIX = 2048  # rows and columns of `products`


@dataclass
class Course:
    """What all contestants share: `folder` has train/<class> and val/<class>, `data` the same images prepared."""

    folder: Path
    data: PreparedData
    make: object  # the network, anew
    lr: float
    batch_size: int = 32
    device: str = "cpu"  # or "cuda"
    workers: int = 2  # processes that decode, where a contestant has some

    def network(self):
        return self.make().to(self.device)

    def autocast(self, precision):
        kind = torch.float16 if precision == "fp16" else torch.bfloat16
        return torch.autocast(self.device, kind, enabled=precision != "fp32")

    @cached_property
    def operations(self):
        """Floating point operations of its products and convolutions in an epoch; to multiply and add are two."""
        model, total = self.make(), 0
        image = to_input(self.data.train.take([0]), model, torch.device("cpu"))
        for side in (self.data.train, self.data.val):
            training = side is self.data.train
            with FlopCounterMode(display=False) as counter, torch.autocast("cpu", torch.bfloat16):
                with torch.set_grad_enabled(training):
                    logits = logits_of(model.train(training), image)
                if training:
                    logits.sum().backward()
            total += len(side) * counter.get_total_flops()
        return total


def folders(data, root):
    """`train/<class>/<file>` and `val/<class>/<file>` as links to the files of `data`, in a new folder."""
    for side in ("train", "val"):
        rows = getattr(data, side).rows
        for number, (file, label) in enumerate(zip(rows.file, rows.label, strict=True)):
            link = root / side / label / f"{number}{Path(file).suffix.replace('.jfif', '.jpg')}"
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(Path(data.train.rows.attrs["root"]) / file)
    return root


def image_folders(course, model):
    """The data sets of the usual loop: each image is decoded, resized and normalised when its turn comes."""
    steps = [transforms.Resize((224, 224)), transforms.ToTensor()]
    steps = transforms.Compose([*steps, transforms.Normalize(model.input_mean, model.input_std)])
    return [ImageFolder(course.folder / side, steps) for side in ("train", "val")]


def usual(course, precision, workers=0):
    """The loop of most notebooks: ImageFolder, DataLoader, forward, backward, step, and `.item()` for the curves."""
    model = course.network()
    train, val = image_folders(course, model)
    train = DataLoader(train, course.batch_size, shuffle=True, num_workers=workers)
    val = DataLoader(val, course.batch_size, num_workers=workers)
    optimizer = torch.optim.Adam(model.parameters(), lr=course.lr)
    autocast = course.autocast(precision)
    model.train()
    losses = 0
    for images, labels in train:
        images, labels = images.to(course.device), labels.to(course.device)
        optimizer.zero_grad()
        with autocast:
            loss = F.cross_entropy(logits_of(model, images), labels)
        loss.backward()
        optimizer.step()
        losses += loss.item()
    model.eval()
    right = 0
    with torch.no_grad():
        for images, labels in val:
            images, labels = images.to(course.device), labels.to(course.device)
            with autocast:
                right += (logits_of(model, images).argmax(dim=1) == labels).sum().item()


def usual_with_workers(course, precision):
    """The same with worker processes that decode."""
    usual(course, precision, course.workers)


def lightning(course, precision):
    """PyTorch Lightning's Trainer with its defaults, and workers."""
    from lightning import pytorch as pl

    class Module(pl.LightningModule):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def training_step(self, batch, _):
            return F.cross_entropy(logits_of(self.model, batch[0]), batch[1])

        def validation_step(self, batch, _):
            right = logits_of(self.model, batch[0]).argmax(dim=1) == batch[1]
            self.log("accuracy", right.float().mean())

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=course.lr)

    model = course.make()
    train, val = image_folders(course, model)
    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            max_epochs=1, accelerator=course.device, logger=False, enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder, precision={"bf16": "bf16-mixed", "fp16": "16-mixed", "fp32": "32-true"}[precision],
        )  # fmt: skip
        trainer.fit(
            Module(model),
            DataLoader(train, course.batch_size, shuffle=True, num_workers=course.workers),
            DataLoader(val, course.batch_size, num_workers=course.workers),
        )


def fastai(course, precision):
    """fastai's Learner on its own ImageDataLoaders, two workers; it has no mixed precision on a CPU."""
    from fastai.data.transforms import Normalize
    from fastai.vision import all as vision

    model = course.make()
    loaders = vision.ImageDataLoaders.from_folder(
        course.folder, train="train", valid="val", bs=course.batch_size, num_workers=2, device=torch.device("cpu"),
        item_tfms=vision.Resize(224, method="squish"),
        batch_tfms=Normalize.from_stats(model.input_mean, model.input_std),
    )  # fmt: skip
    learner = vision.Learner(loaders, model, loss_func=nn.CrossEntropyLoss(), metrics=vision.accuracy)
    with learner.no_bar(), learner.no_logging():
        learner.fit(1, course.lr)


def trainer(course, precision):
    """Hugging Face's Trainer with its defaults, evaluated every epoch."""
    from transformers import Trainer, TrainingArguments

    model = course.make()
    model.config._attn_implementation = "sdpa"  # what transformers itself gives a ViT
    train, val = image_folders(course, model)
    with tempfile.TemporaryDirectory() as folder:
        options = TrainingArguments(
            output_dir=folder, num_train_epochs=1, per_device_train_batch_size=course.batch_size,
            per_device_eval_batch_size=course.batch_size, learning_rate=course.lr, eval_strategy="epoch",
            report_to="none", disable_tqdm=True, use_cpu=course.device == "cpu", bf16=precision == "bf16",
            fp16=precision == "fp16", dataloader_num_workers=0 if course.device == "cpu" else course.workers,
        )  # fmt: skip

        def collate(items):
            images, labels = zip(*items, strict=True)
            return {"pixel_values": torch.stack(images), "labels": torch.tensor(labels)}

        Trainer(model, options, train_dataset=train, eval_dataset=val, data_collator=collate,
                compute_metrics=lambda found: {"accuracy": (found.predictions.argmax(1) == found.label_ids).mean()}
                ).train()  # fmt: skip


def ours(course, precision):
    """`xu.fit`: the whole call, with its checks, the hashes of the data and the checkpoint."""
    name = f"benchmark_{os.getpid()}"
    xu.fit(course.make(), course.data, name, epochs=1, lr=course.lr, batch_size=course.batch_size, precision=precision)
    shutil.rmtree(xu.outputs_dir("runs", name))


def bound(course, precision, prepare=lambda model: None):
    """The arithmetic alone: as many steps, and answers, on one batch that lies in memory as the network wants it."""
    model = course.network().to(memory_format=torch.channels_last)
    prepare(model)
    pixels = course.data.train.take(range(course.batch_size))
    images = to_input(pixels, model, torch.device(course.device)).contiguous(memory_format=torch.channels_last)
    labels = torch.tensor(course.data.train.labels[: course.batch_size], device=course.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=course.lr, fused=True)
    autocast = course.autocast(precision)
    steps, rest = divmod(len(course.data.train), course.batch_size)
    model.train()
    for size in [course.batch_size] * steps + [rest] * (rest > 0):
        with autocast:
            loss = F.cross_entropy(logits_of(model, images[:size]).float(), labels[:size])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    steps, rest = divmod(len(course.data.val), course.batch_size)
    with torch.no_grad(), autocast:
        for size in [course.batch_size] * steps + [rest] * (rest > 0):
            logits_of(model, images[:size])
    if course.device == "cuda":
        torch.cuda.synchronize()


def bound_with_memory_kept(course, precision):
    """The same, with memory kept and few channels first, as in `fit`: what these give, and what `fit` costs beside."""
    with memory_kept():
        bound(course, precision, lambda model: channels_first_for_few(model, torch.device("cpu")))


def products(course, precision):
    """As many operations in products of two large matrices, which no cache and no layout holds up."""
    left, right = torch.randn(2, MATRIX, MATRIX, dtype={"bf16": torch.bfloat16, "fp32": torch.float32}[precision])
    for _ in range(max(1, round(course.operations / (2 * MATRIX**3)))):
        left @ right
