"""Training configurations against the shortcut: train each, choose on internal data, then evaluate once externally.

With the images of `XRAY_DATA` and the ViT of `XRAY_VIT_WEIGHTS`, in this order (a run that is there is not repeated):

    .venv/bin/python results/scripts/configurations.py train resnet18 vit features   # any of them; --seeds 0 1 2
    .venv/bin/python results/scripts/configurations.py internal  # tables/configurations_internal.csv; names the chosen
    XRAY_EXTERNAL=... .venv/bin/python results/scripts/configurations.py external  # tables/configurations_external.csv

The choice was fixed before any external evaluation: of each kind of network the configuration with the highest AUC of
pneumonia against normal on the validation images of sources that hold both, each image seen through two draws of
`augment_strong` (which favours what was trained on such images, and is meant to); and the ensemble of these. The
external question was fixed as well: covid against normal, by p_covid / (p_covid + p_normal). (The adversary came
later: it is shown, and not chosen.)
"""

import argparse
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from scipy.special import softmax
from sklearn.base import BaseEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits
from torch import nn

import xray_utils as xu
from xray_utils._support.files import whole_file
from xray_utils.augment import augment_strong
from xray_utils.constants import PROBABILITIES
from xray_utils.prepared import Split

TABLES = Path(__file__).resolve().parents[1] / "tables"
WEIGHTS = os.environ.get("XRAY_VIT_WEIGHTS", xu.VIT_NAME)
DRAWS = 2


def as_it_is(pixels):
    """No change."""
    return pixels


def lungs_equalised(pixels):
    """The lungs alone, on black, in the box around them, standardised."""
    masks = xu.lung_fields(pixels).masks[..., None]
    return xu.crop_lungs(np.where(masks, xu.equalise(pixels), 0).astype(np.uint8))


CONFIGURATIONS = {  # name: what is done to every image, and how training images are varied
    "as it is": (as_it_is, False),  # of fixed features
    "mild augmentation": (as_it_is, "mild"),
    "strong augmentation": (as_it_is, "strong"),
    "equalised": (xu.equalise, "mild"),
    "lung box, equalised": (xu.lung_box, "mild"),
    "lung box, equalised, strong": (xu.lung_box, "strong"),
    "only the lungs, equalised": (lungs_equalised, "mild"),
    "equal weight for each source": (as_it_is, "mild"),
    "strong augmentation, 224 px": (as_it_is, "strong"),
}
OF_RESNET = tuple(configuration for configuration in CONFIGURATIONS if configuration != "as it is")
OF_VIT = ("mild augmentation", "strong augmentation", "lung box, equalised, strong")
OF_FEATURES = ("as it is", "strong augmentation", "equalised", "lung box, equalised", "lung box, equalised, strong",
               "only the lungs, equalised", "equal weight for each source",
               "sources erased", "adversary for the source")  # fmt: skip
LATER = "adversary for the source"  # tried after the others had been evaluated: not to be chosen
KINDS = {"resnet18": OF_RESNET, "vit": OF_VIT, "features": OF_FEATURES}


def equal_sources(split, seed):
    """`split` drawn again, as many rows, so that within each class every source comes up equally often."""
    size = split.rows.groupby(["label", "source"]).file.transform("count")
    sources = split.rows.groupby("label").source.transform("nunique")
    share = (split.rows.groupby("label").file.transform("count") / size / sources).to_numpy()
    chosen = np.sort(np.random.default_rng(seed).choice(len(split), len(split), p=share / share.sum()))
    return Split(split.rows.iloc[chosen].reset_index(drop=True), split.pixels, split.positions[chosen])


def smaller(change, size):
    """`change`, and then `size` x `size` pixels."""
    return lambda pixels: np.stack([xu.resize(Image.fromarray(one), size) for one in change(pixels)])


def side_of(kind, configuration, split):
    """`split` as the networks of that configuration see it."""
    change = CONFIGURATIONS.get(configuration, (as_it_is,))[0]
    return xu.change_split(split, smaller(change, 112) if kind == "resnet18" and "224" not in configuration else change)


def run_name(kind, configuration, seed):
    """The folder of a configuration."""
    return f"configuration_{kind}_{configuration.replace(', ', '_').replace(' ', '_')}_seed{seed}"


def train(kind, configuration, data, seed):
    """The run of a configuration, trained or loaded."""
    change, augment = CONFIGURATIONS[configuration]
    if "source" in configuration:
        data = replace(data, train=equal_sources(data.train, seed))
    data = replace(
        data, **{side: side_of(kind, configuration, getattr(data, side)) for side in ("train", "val", "test")}
    )
    name = run_name(kind, configuration, seed)
    if kind == "vit":
        return xu.fit(xu.vit(WEIGHTS, seed=seed), data, name, epochs=4, lr=5e-5, optimizer="adamw", weight_decay=0.05,
                      schedule="cosine", warmup=0.1, augment=augment, seed=seed)  # fmt: skip
    return xu.fit(xu.resnet18(seed=seed), data, name, epochs=20, schedule="cosine", warmup=0.05, augment=augment,
                  seed=seed)  # fmt: skip


def varied(split, draw):
    """`split` through `augment_strong`, the same images for every configuration."""
    parts = []
    for start in range(0, len(split), 64):
        pixels = torch.from_numpy(split.take(np.arange(start, min(start + 64, len(split))))).permute(0, 3, 1, 2)
        generator = torch.Generator().manual_seed(1000 * draw + start)
        parts.append((augment_strong(pixels.float() / 255, generator).clamp(0, 1) * 255).round().byte())
    return Split(split.rows.assign(mirrored=False), torch.cat(parts).permute(0, 2, 3, 1).numpy(), np.arange(len(split)))


class Probe:
    """A logistic regression on fixed features, with the face of a network: `answers(split)` is a predictions table."""

    def __init__(self, configuration, data, seed):
        self.configuration, self.backbone = configuration, xu.vit(WEIGHTS, seed=seed)
        train = equal_sources(data.train, seed) if "equal weight" in configuration else data.train
        copies = [train] + [varied(train, 100 + i) for i in range(1 if "strong" in configuration else 0)]
        seen = np.concatenate([self._see(copy) for copy in copies])
        rows = pd.concat([train.rows] * len(copies), ignore_index=True)
        self.away = np.zeros((seen.shape[1], 0))
        if configuration == "sources erased":
            self.away = source_directions(seen, rows)
        with threadpool_limits(1):
            if configuration == LATER:
                self.model = make_pipeline(StandardScaler(), Adversary(rows.source.to_numpy(), seed))
            else:
                self.model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000))
            self.model.fit(self._erase(seen), rows.label)

    def _see(self, split):
        seen = side_of("features", self.configuration, split)
        path = xu.outputs_dir("features", f"{Path(WEIGHTS).name}_{seen.fingerprint()}.npy")
        if not path.is_file():
            seen = Split(split.rows.assign(mirrored=False), seen.take(np.arange(len(seen))), np.arange(len(seen)))
            with torch.autocast("cpu", torch.bfloat16), whole_file(path) as temporary, open(temporary, "wb") as file:
                np.save(file, xu.features(self.backbone, seen))
        return np.load(path)

    def _erase(self, seen):
        return seen - seen @ self.away @ self.away.T

    def answers(self, split):
        """The predictions table of `split`."""
        found = softmax(self.model.decision_function(self._erase(self._see(split))), axis=1)
        table = split.rows[[c for c in ("file", "label", "group", "source", "view") if c in split.rows]].copy()
        table["predicted"] = self.model.classes_[found.argmax(axis=1)]
        return table.assign(**dict(zip(PROBABILITIES, found.T, strict=True)))


class Reverse(torch.autograd.Function):
    """What goes through it comes back with its gradient turned round."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return -gradient


class Adversary(BaseEstimator):
    """A layer from which the class can be told and the source not: domain-adversarial training, Ganin et al. 2016.

    (arXiv:1505.07818.) A second head guesses the source from the same 64 numbers, and the layer learns to make it
    fail. It chooses among the sources of the true class alone: else it would have to forget the class, too.
    """

    def __init__(self, sources, seed=0, steps=400):
        self.sources, self.seed, self.steps = sources, seed, steps

    def fit(self, x, y):
        """x: features [N, F], standardised; y: labels [N]."""
        (self.classes_, label), (_, source) = (np.unique(one, return_inverse=True) for one in (y, self.sources))
        possible = np.zeros((len(self.classes_), source.max() + 1))
        possible[label, source] = 1
        torch.manual_seed(self.seed)
        self.layer = nn.Sequential(nn.Linear(x.shape[1], 64), nn.ReLU(), nn.Dropout(0.5))
        self.head, cross_validate = nn.Linear(64, len(self.classes_)), nn.Linear(64, source.max() + 1)
        x, label, source = torch.tensor(x, dtype=torch.float32), torch.tensor(label), torch.tensor(source)
        closed = torch.tensor(np.where(possible, 0, -np.inf), dtype=torch.float32)[label]  # to sources of other classes
        parts = [*self.layer.parameters(), *self.head.parameters(), *cross_validate.parameters()]
        optimizer = torch.optim.AdamW(parts, lr=1e-3, weight_decay=0.05)
        for _ in range(self.steps):
            optimizer.zero_grad()
            seen = self.layer(x)
            loss = nn.functional.cross_entropy(self.head(seen), label)
            loss = loss + nn.functional.cross_entropy(cross_validate(Reverse.apply(seen)) + closed, source)
            loss.backward()
            optimizer.step()
        self.layer.eval()
        return self

    def decision_function(self, x):
        """Logits [N, classes]."""
        with torch.no_grad():
            return self.head(self.layer(torch.tensor(x, dtype=torch.float32))).numpy()


def source_directions(seen, rows, rounds=20):
    """Orthonormal directions [features, d] that tell the sources of one class apart, found one after the other.

    (In the manner of iterative nullspace projection, Ravfogel et al. 2020, arXiv:2004.07667, the linear relative of
    adversarial training; but the directions are found in standardised features and taken out of the raw ones.)
    """
    away = np.zeros((seen.shape[1], 0))
    for _ in range(rounds):
        for label in sorted(rows.label.unique()):
            of = rows.label.eq(label).to_numpy()
            if rows.source[of].nunique() < 2:
                continue
            x = StandardScaler().fit_transform(seen[of] - seen[of] @ away @ away.T)
            with threadpool_limits(1):
                found = LogisticRegression(C=0.1, max_iter=2000).fit(x, rows.source[of]).coef_
            away = np.linalg.qr(np.hstack([away, found.T / np.linalg.norm(found)]))[0]
    return away


def answers_of(kind, configuration, data, seed):
    """A function from a split to the answers of the trained configuration."""
    if kind == "features":
        return Probe(configuration, data, seed).answers
    model = train(kind, configuration, data, seed).model
    return lambda split: xu.predict(model, side_of(kind, configuration, split))


def pneumonia_auc(table):
    """AUC of pneumonia against normal within the sources that hold both."""
    inside = table[xu.within_sources(table) & table.label.ne("covid")]
    pneumonia = xu.covid_vs_normal(inside.assign(label=inside.label.replace("virus", "covid")), "virus")
    return xu.compute_metrics(pneumonia, resamples=200)["auc_covid"]


def internal(data, seeds, only=None):
    """What each configuration is worth internal, on validation alone; the chosen ones are marked."""
    hidden = {how: xu.change_split(data.val, how) for how in ("without the lungs", "only the border")}
    hidden = {how: Split(data.val.rows, split.take(np.arange(len(split))), np.arange(len(split)))
              for how, split in hidden.items()}  # fmt: skip
    shifted = [varied(data.val, draw) for draw in range(DRAWS)]
    rows = []
    for kind, configurations in KINDS.items():
        for configuration in (
            configuration for configuration in configurations if only is None or configuration in only
        ):
            for seed in seeds if kind != "features" else (0,):
                if kind != "features" and not trained(kind, configuration, seed):
                    continue
                answers = answers_of(kind, configuration, data, seed)
                row = {"network": kind, "configuration": configuration, "seed": seed}
                row["accuracy"] = xu.compute_metrics(answers(data.val), resamples=1)["accuracy"]
                row["pneumonia : normal"] = pneumonia_auc(answers(data.val))
                row["pneumonia : normal, other scanners"] = np.mean(
                    [pneumonia_auc(answers(split)) for split in shifted]
                )
                for how, split in hidden.items():
                    row[how] = xu.compute_metrics(answers(split), resamples=1)["accuracy"]
                rows.append(row)
                print({key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()},
                      flush=True)  # fmt: skip
    table = pd.DataFrame(rows)
    mean = table.groupby(["network", "configuration"])["pneumonia : normal, other scanners"].transform("mean")
    mean = mean.where(table.configuration.ne(LATER))
    table["chosen"] = mean.eq(mean.groupby(table.network).transform("max"))
    return table.round(4)


def trained(kind, configuration, seed):
    """True if the run of a configuration is complete."""
    return xu.outputs_dir("runs", run_name(kind, configuration, seed), "finished.json").is_file()


def external(data, table):
    """Every configuration evaluated once: AUC of covid against normal, internal, external, and in one external place.

    One place: the sources external that hold both classes. The answers are kept beside the runs.
    """
    away = xu.load_external(xu.external_dir(), xu.audit_images(xu.find_images(xu.data_dir())))
    sides, found = {"internal": data.test, "external": away}, {}
    for kind, configuration, seed, _ in table[["network", "configuration", "seed", "chosen"]].itertuples(index=False):
        answers = answers_of(kind, configuration, data, seed)
        found[kind, configuration, seed] = {where: answers(split) for where, split in sides.items()}
    chosen = [tuple(row) for row in table[table.chosen][["network", "configuration", "seed"]].itertuples(index=False)]
    for (kind, configuration, seed), tables in found.items():
        for where, file in {"internal": "predictions.csv", "external": "external.csv"}.items():
            with whole_file(TABLES.parent / "runs" / run_name(kind, configuration, seed) / file) as path:
                tables[where].to_csv(path, index=False)
    first = [key for key in found if key[1] != LATER]
    for name, keys in {"chosen configurations together": chosen, "all but the later one together": first}.items():
        means = {where: together([found[key][where] for key in keys]) for where in sides}
        found["ensemble", name, ""] = means
    rows, plain = [], found["resnet18", "mild augmentation", 0]["external"]
    for (kind, configuration, seed), tables in found.items():
        tables["one place"] = tables["external"][xu.within_sources(tables["external"])]
        row = {
            "network": kind,
            "configuration": configuration,
            "seed": seed,
            "chosen": (kind, configuration, seed) in chosen,
        }
        row["accuracy internal"] = xu.with_interval(xu.compute_metrics(tables["internal"]), "accuracy")
        for question, positive in (("covid : normal", "covid"), ("p of covid", None), ("virus : normal", "virus")):
            for where in tables:
                metrics = xu.compute_metrics(xu.covid_vs_normal(tables[where], positive))
                row[f"{question}, {where}"] = xu.with_interval(metrics, "auc_covid")
        two = xu.compare_two(xu.covid_vs_normal(plain), xu.covid_vs_normal(tables["external"]), "auc_covid")
        row["more than mild augmentation"] = xu.with_interval(two, "difference")
        normal = tables["external"][tables["external"].label.eq("normal")]
        row["normal called covid"] = normal.predicted.eq("covid").mean().round(3)
        rows.append(row)
    return pd.DataFrame(rows)


def together(tables):
    """The mean of the probabilities of several answers to the same images."""
    mean = np.mean([table[list(PROBABILITIES)].to_numpy() for table in tables], axis=0)
    table = tables[0].assign(**dict(zip(PROBABILITIES, mean.T, strict=True)))
    return table.assign(predicted=np.array(xu.CLASSES)[mean.argmax(axis=1)])


def main():
    """Train, choose, or ask."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=["train", "internal", "external"])
    parser.add_argument("kinds", nargs="*", choices=[[], *KINDS])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--configurations", nargs="+", choices=list(dict.fromkeys(OF_RESNET + OF_VIT + OF_FEATURES)))
    options = parser.parse_args()
    if (
        options.step == "train"
        and options.configurations
        and any(set(options.configurations) - set(KINDS[kind]) for kind in options.kinds or KINDS)
    ):
        parser.error(
            "name the kind, and configurations of that kind alone: " + "; ".join(f"{k}: {v}" for k, v in KINDS.items())
        )
    if options.step == "external" and (
        xu.external_dir() is None or not (TABLES / "configurations_internal.csv").is_file()
    ):
        parser.error("set XRAY_EXTERNAL to the folder of another hospital, and run the step `internal` first.")
    data = xu.load_data(protocol="grouped", seed=0, mirror=False)
    if options.step == "train":
        for seed in options.seeds:
            for kind in options.kinds or KINDS:
                for configuration in options.configurations or KINDS[kind]:
                    answers_of(kind, configuration, data, seed)(data.val)
        return
    path = TABLES / f"configurations_{options.step}.csv"
    if options.step == "internal":
        table = internal(data, options.seeds, options.configurations)
    else:
        table = external(data, pd.read_csv(TABLES / "configurations_internal.csv"))
    with whole_file(path) as temporary:
        table.to_csv(temporary, index=False)
    print(table.to_string(index=False))


if __name__ == "__main__":
    main()
