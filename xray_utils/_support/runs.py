"""Run folders: the configuration, checkpoints, resuming and loading."""

import copy
import hashlib
import io
import json
import math
import pickle
import shutil
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import save

from ..models import NETWORKS, build, check_model, count_parameters, load_weights, tensors_of
from .checks import check_path
from .device import accelerator_of
from .files import whole_file
from .paths import outputs_dir


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


def _config(model, data, name, settings):
    digest = hashlib.sha256()
    for key, tensor in model.state_dict().items():
        digest.update(key.encode() + tensor.cpu().numpy().tobytes())
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


def _run_folder(name, config, write):
    """The folder that holds this run, else the next free one with a message; and the folder it starts from, or None.

    A run starts from one that differs in fewer `epochs` alone, if its learning rates do not depend on their number.
    Of several processes only one may `write`; the others find the same folder with or without its config.
    """
    settings, shorter = config["settings"], (0, None)  # the epochs of that run, and its folder
    for number in range(1, 10_000):
        folder = outputs_dir("runs", name if number == 1 else f"{name}-{number}")
        if not (folder / "config.json").is_file():
            break
        other = json.loads((folder / "config.json").read_text())
        if other == config:
            return folder, shorter[1]
        before = other["settings"]
        differs = [f"{key} {before.get(key)} -> {new}" for key, new in settings.items() if before.get(key) != new]
        differs += [key for key in config if key not in ("settings", "name") and other.get(key) != config[key]]
        print(f"{folder.name}: another run ({', '.join(differs)}); it is kept.")
        epochs, longer = before.get("epochs", math.inf), {**before, "epochs": settings["epochs"]}
        if epochs < settings["epochs"] and {**other, "settings": longer} == config:
            missing = [file for file in ("last.pt", "best.safetensors") if not (folder / file).is_file()]
            if settings["schedule"] == "cosine" or settings["warmup"]:
                missing = ["rate that is independent of epochs (schedule 'plateau', or 'constant' without warmup)"]
            if missing:
                print(f"{folder.name}: it has no {missing[0]}, so the longer run starts at epoch 1.")
            else:
                shorter = max(shorter, (epochs, folder))
    if write:
        with whole_file(folder / "config.json") as path:
            path.write_text(json.dumps(config, indent=1))
    return folder, shorter[1]


def _kept(folder, history):
    """Message: what is kept when training stops early."""
    if not history:
        return "No epoch is complete yet."
    done, name = len(history), folder.name
    return f"The checkpoint of epoch {done} is kept in {name}, and xu.load_run({name!r}) has the history so far."


def _save(folder, model, optimizer, plateau, scaler, history):
    """The checkpoint first, atomically; after a kill `_resume` writes the other files again."""
    state = tensors_of(model)
    last = {
        "model": state,
        "optimizer": optimizer.state_dict(),
        "plateau": plateau.state_dict(),
        "scaler": scaler.state_dict() if scaler else None,  # for fp16 only
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


def _resume(folder, shorter, model, optimizer, plateau, accelerator):
    """The history so far; weights, optimizer, schedule and the scaler of fp16 are restored.

    A run without a completed epoch takes them from the run `shorter`, whose folder is not changed.
    """
    source = folder if (folder / "last.pt").is_file() or not shorter else shorter
    if not (source / "last.pt").is_file():
        return []
    try:
        last = torch.load(source / "last.pt", map_location="cpu", weights_only=True)
        model.load_state_dict(last["model"])
        optimizer.load_state_dict(last["optimizer"])
        plateau.load_state_dict(last["plateau"])
        if accelerator.scaler and last.get("scaler"):
            accelerator.scaler.load_state_dict(last["scaler"])
        history = last["history"]
    except (OSError, RuntimeError, ValueError, LookupError, TypeError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(
            f"name: the checkpoint {source / 'last.pt'} is broken ({str(error)[:200]}). Move its folder away, or give "
            "another name, to train again."
        ) from error
    if accelerator.is_main_process:
        if source != folder:
            print(f"{folder.name}: continues {source.name}, which keeps its own results.")
            for file in ("best.safetensors", "last.pt"):  # the checkpoint last: after a kill before it, all is repeated
                with whole_file(folder / file) as path:
                    shutil.copyfile(source / file, path)
        _save_best(folder, last["model"], history)
    return history


def load_run(run: str | Path, model: torch.nn.Module | None = None) -> Run:
    """A run from its name or folder, with the weights that were best on validation.

    It is on the GPU, if there is one. model: for a network of your own, one with the same layers; the weights go into a
    copy of it, on its device. Raises FileNotFoundError for a missing run or one without a completed epoch, ValueError
    for a `model` that is missing or not the one of the run.
    """
    check_path("run", run, "the name or folder of one")
    if model is not None:
        check_model(model)
        model = copy.deepcopy(model)
    folder = run if isinstance(run, Path) else outputs_dir("runs", run)
    for file in ("config.json", "history.csv", "best.safetensors"):
        if not (folder / file).is_file():
            trained = sorted(path.parent.name for path in outputs_dir("runs").glob("*/best.safetensors"))
            raise FileNotFoundError(
                f"run: {folder.name!r} has no {file}. Train it first: run its notebook. "
                f"Trained here: {', '.join(trained) or 'none'}."
            )
    config = json.loads((folder / "config.json").read_text())
    if model is None:
        kind = config["network"]["network"]
        if kind not in NETWORKS:
            raise ValueError(f"model: {folder.name!r} is of a network of your own, {kind}: pass it to load_run.")
        model = build(config["network"], config["input_mean"], config["input_std"]).to(accelerator_of().device)
    try:
        model.load_state_dict(load_weights(folder / "best.safetensors"))
    except RuntimeError as error:
        raise ValueError(f"model: it is not the network of {folder.name!r} ({str(error)[:200]}).") from error
    model.input_mean, model.input_std = config["input_mean"], config["input_std"]
    history = pd.read_csv(folder / "history.csv", float_precision="round_trip")
    return Run(folder.name, folder, model.eval(), history, config)
