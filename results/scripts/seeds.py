"""ResNet18 and the fine-tuned ViT over several seeds: what the leak is worth, and what the precision costs. Two tables.

A short training each, so that a machine without a GPU can do it: ResNet18 at 112 px for 15 epochs, otherwise as the
original (Adam, plateau, no augmentation); the ViT of `XRAY_VIT_WEIGHTS` at 112 px (its position embeddings
interpolated) for 6 epochs, unmirrored. A run that is there is not repeated. It takes its row in the table, and others
stay:

    XRAY_DATA=... XRAY_VIT_WEIGHTS=... .venv/bin/python results/scripts/seeds.py resnet18 vit  # --seeds 0 1

With `XRAY_EXTERNAL` the runs under "grouped" in bf16 keep their answers in the other hospital, too
(`runs/<name>/external.csv`).
"""

import argparse
import os
from pathlib import Path

import pandas as pd
import torch
import transformers
from scipy import stats

import xray_utils as xu
from xray_utils._support.device import choose_precision
from xray_utils._support.files import whole_file

TABLE = Path(__file__).resolve().parents[1] / "tables" / "seeds_and_precision.csv"
WEIGHTS = os.environ.get("XRAY_VIT_WEIGHTS", xu.VIT_NAME)


def small_vit(seed, size=112):
    """The ViT of `XRAY_VIT_WEIGHTS` for images of `size` pixels: a quarter of the patches, a quarter of the time."""
    folder = xu.outputs_dir("weights", f"{Path(WEIGHTS).name}_{size}")
    if not (folder / "model.safetensors").is_file():
        whole = xu.vit(WEIGHTS)
        embeddings, patch = whole.vit.embeddings, whole.config.patch_size
        tokens = torch.zeros(1, 1 + (size // patch) ** 2, whole.config.hidden_size)
        positions = embeddings.interpolate_pos_encoding(tokens, size, size).detach()
        whole.config.image_size, embeddings.position_embeddings = size, torch.nn.Parameter(positions)
        processor = dict(do_resize=True, size={"height": size, "width": size}, image_mean=whole.input_mean)
        transformers.ViTImageProcessor(**processor, image_std=whole.input_std).save_pretrained(folder)
        whole.save_pretrained(folder)
    return xu.vit(folder, seed=seed)


SHORT = {  # network: how it is made, the size of its images, the settings of its training
    "baseline_cnn": (xu.baseline_cnn, 224, dict(epochs=10)),
    "resnet18": (xu.resnet18, 112, dict(epochs=15)),
    "vit": (small_vit, 112,
            dict(epochs=6, lr=5e-5, optimizer="adamw", weight_decay=0.05, schedule="cosine", warmup=0.1)),
}  # fmt: skip


def name_of(network, protocol, seed, precision):
    """The name of that run."""
    return f"short_{network}_{protocol}_{precision}_seed{seed}"


def train(network, protocol, seed, precision):
    """Train, or load, one run, and put its answers beside it: tested once."""
    make, size, settings = SHORT[network]
    data = xu.load_data(protocol, seed=seed, mirror=network != "vit", size=size)
    name = name_of(network, protocol, seed, precision)
    run = xu.fit(make(seed=seed), data, name, seed=seed, precision=precision, **settings)
    if not (run.folder / "metrics.json").is_file():
        xu.save_results(run, xu.predict(run.model, data.test))
    if xu.external_dir() and protocol == "grouped" and precision != "fp32":  # for the table by source and view
        away = xu.load_external(xu.external_dir(), xu.audit_images(xu.find_images(xu.data_dir())), size=size)
        with whole_file(TABLE.parents[1] / "runs" / name / "external.csv") as path:
            xu.predict(run.model, away).to_csv(path, index=False)


def table():
    """A row a run that is there: the validation of its best epoch, and its test."""
    rows = []
    for network in SHORT:
        for protocol in ("slides", "grouped"):
            for precision in ("fp32", "bf16"):
                for seed in range(100):
                    name = name_of(network, protocol, seed, precision)
                    if not xu.outputs_dir("runs", name, "metrics.json").is_file():
                        continue
                    result = xu.load_results([name])[name]
                    best = result.history.loc[result.history.val_loss.idxmin()]
                    rows.append(dict(network=network, protocol=protocol, precision=precision, seed=seed,
                                     epochs=len(result.history), best_epoch=int(best.epoch),
                                     val_loss=round(best.val_loss, 4), val_accuracy=round(best.val_accuracy, 4),
                                     images=len(result.predictions),
                                     accuracy=round(result.metrics["accuracy"], 4)))  # fmt: skip
    return pd.DataFrame(rows)


def precisions(rows):
    """bf16 minus fp32 of the same seed under "grouped": mean and 95 % interval of a paired t-test, for each network."""
    found = []
    for network, runs in rows[rows.protocol.eq("grouped")].groupby("network"):
        row = {"network": network}
        for number in ("val_accuracy", "accuracy", "val_loss"):
            wide = runs.pivot(index="seed", columns="precision", values=number).dropna()
            gap = (wide.bf16 - wide.fp32).to_numpy()
            low, high = stats.t.interval(0.95, len(gap) - 1, gap.mean(), stats.sem(gap))
            row |= {"seeds": len(gap), number: f"{gap.mean():+.3f} [{low:+.3f}, {high:+.3f}]"}
        found.append(row)
    return pd.DataFrame(found)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", choices=[*SHORT, []], help="to be trained; none: the table alone")
    parser.add_argument("--protocols", nargs="+", default=["grouped", "slides"], choices=["grouped", "slides"])
    parser.add_argument("--precision", nargs="+", default=[choose_precision()], choices=["fp32", "bf16"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    options = parser.parse_args()
    for seed in options.seeds:
        for network in options.networks:
            for protocol in options.protocols:
                for precision in options.precision:
                    train(network, protocol, seed, precision)
    done, keys = table(), ["network", "protocol", "precision", "seed"]
    if len(done):
        if TABLE.is_file():  # rows whose runs are not here stay
            done = pd.concat([pd.read_csv(TABLE), done]).drop_duplicates(keys, keep="last").sort_values(keys)
        with whole_file(TABLE) as path:
            done.to_csv(path, index=False)
        with whole_file(TABLE.with_name("precision.csv")) as path:
            precisions(done).to_csv(path, index=False)
        print(done.to_string(index=False))
        print(precisions(done).to_string(index=False))


if __name__ == "__main__":
    main()
