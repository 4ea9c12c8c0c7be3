"""Shortcut experiments: does a classifier use the disease, or the source of the image?

The simple baselines are logistic regressions on the metadata, the border or a thumbnail, cross-validated over patients.
"""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pandas as pd
from PIL import Image, ImageFilter
from threadpoolctl import threadpool_limits

from .._support.checks import (
    check_array,
    check_choice,
    check_kind,
    check_number,
    check_predictions,
    check_table,
    check_tables,
    check_whole,
)
from ..batches import batches
from ..constants import CLASSES, PROBABILITIES, SPLITS
from ..images import resize
from ..metrics import compare_two, compute_metrics
from ..prepared import PreparedData, Split, check_data, check_split
from .lungs import lung_fields

CENTRE = (0.12, 0.88)  # shares of height and width: the box around the lungs on most radiographs


def hide_centre(pixels):
    """Only the border: the box around the lungs is black (Maguolo & Nanni 2021, PMC8086233). [B, H, W, 3]."""
    low, high = (round(share * pixels.shape[1]) for share in CENTRE)
    pixels = pixels.copy()
    pixels[:, low:high, low:high] = 0
    return pixels


def hide_border(pixels):
    """Only the box around the lungs; the border is black. [B, H, W, 3]."""
    return pixels - hide_centre(pixels)


def blur(pixels, radius=8):
    """A heavy Gaussian blur of `radius` pixels: removes the texture of the lungs, keeps brightness and outline."""
    return np.stack([np.asarray(Image.fromarray(one).filter(ImageFilter.GaussianBlur(radius))) for one in pixels])


def grey(pixels):
    """Without colour: each channel is the mean of the three."""
    return np.repeat(pixels.mean(axis=-1, keepdims=True).round().astype(np.uint8), 3, axis=-1)


def hide_lungs(pixels):
    """The lung fields (see `lung_fields`) black; the rest unchanged. [B, H, W, 3]."""
    return np.where(lung_fields(pixels).masks[..., None], 0, pixels).astype(np.uint8)


def only_lungs(pixels):
    """The lung fields (see `lung_fields`) on black. [B, H, W, 3]."""
    return np.where(lung_fields(pixels).masks[..., None], pixels, 0).astype(np.uint8)


CHANGES = {
    **{"grey": grey, "heavy blur": blur, "only the centre": hide_border, "only the border": hide_centre},
    **{"only the lungs": only_lungs, "without the lungs": hide_lungs},
}
ROOM = 2**28  # bytes of changed images that a split keeps in memory


@dataclass(repr=False)
class ChangedSplit(Split):
    """One side of a prepared set whose pixels pass through `change`."""

    change: Callable

    def take(self, indices):
        """The changed images at `indices`, uint8 [B, H, W, 3]; all are changed once and kept if they fit in `ROOM`."""
        if len(self) * math.prod(self.pixels.shape[1:]) > ROOM:
            return self.change(super().take(indices))
        return self.changed[np.arange(len(self))[indices]]

    @cached_property
    def changed(self):
        return np.concatenate([self.change(Split.take(self, indices)) for indices in batches(self, 256)])

    def fingerprint(self):
        """sha256 over rows and changed pixels, so that `fit` starts another run."""
        digest = hashlib.sha256(self.rows[["file", "label", "mirrored"]].to_csv(index=False).encode())
        for indices in batches(self, 256):
            digest.update(self.take(indices).tobytes())
        return digest.hexdigest()


def change_split(split: Split, change: str | Callable) -> Split:
    """`split`, its pixels changed by one of `CHANGES` (else ValueError) or by a function of uint8 [B, H, W, 3]."""
    check_kind("split", split, Split, "side of a prepared set", "data.test, say")
    if not callable(change):
        check_choice("change", change, CHANGES, ", or a function")
        change = CHANGES[change]
    return ChangedSplit(split.rows, split.pixels, split.positions, change)


def change_data(data: PreparedData, change: str | Callable) -> PreparedData:
    """`change_split` of all three sides, to train on changed images too."""
    check_data(data)
    return replace(data, **{name: change_split(getattr(data, name), change) for name in SPLITS})


def plant_marker(split: Split, shift: int = 0, share: float = 0.07) -> Split:
    """A copy of `split`, in memory, with a marker for its class in the upper left corner.

    Stripes for covid, columns for normal, a chessboard for virus; `shift=1` gives each class the marker of the next.
    share: width of the marker as a share of the image width.
    """
    check_split(split)
    check_whole("shift", shift)
    check_number("share", share, lambda s: 0 < s <= 0.5, "above 0 and at most 0.5 of the width")
    pixels = split.take(np.arange(len(split)))
    width = max(4, round(share * pixels.shape[1]))
    y, x = np.indices((width, width)) // 2 % 2
    markers = np.stack([y, x, y ^ x]).astype(np.uint8)[..., None] * 255  # [classes, width, width, 1]
    pixels[:, 2 : 2 + width, 2 : 2 + width] = markers[(split.labels + shift) % len(CLASSES)]
    return Split(split.rows.assign(mirrored=False), pixels, np.arange(len(split)))


def cross_validate(features: np.ndarray, rows: pd.DataFrame, seed: int = 0, folds: int = 5) -> pd.DataFrame:
    """Predictions of a logistic regression on `features` [images, d], as a predictions table.

    Cross-validated over groups: no image is predicted by a model trained on its patient. `rows` needs the columns
    file, label and group. Raises ValueError when a class has fewer groups than there are folds.
    """
    from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict

    check_table("rows", rows, ["file", "label", "group"], "audit_images")
    check_array("features", features, (len(rows), None), f"features of the {len(rows)} rows")
    check_whole("seed", seed)
    check_whole("folds", folds, 2)
    groups = rows.groupby("label").group.nunique()
    if groups.min() < folds:
        raise ValueError(f"folds: {folds} are more than the {groups.min()} groups of class {groups.idxmin()!r}.")
    split = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    options = dict(groups=rows.group.to_numpy(), cv=split, method="predict_proba")
    with threadpool_limits(1):  # the same bits on any number of cores
        found = cross_val_predict(logistic_regression(), features, rows.label.to_numpy(), **options)
    return as_predictions(rows[["file", "label", "group"]], found, sorted(rows.label.unique()))


def logistic_regression():
    """Standardised features, then a logistic regression with ten times the default regularisation."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))


def as_predictions(rows, probabilities, classes):
    """`rows` with the columns predicted and p_..., from probabilities [images, classes] of these classes."""
    p = pd.DataFrame(probabilities, columns=classes)
    table = rows.reset_index(drop=True).assign(predicted=p.idxmax(axis=1))
    table[PROBABILITIES] = p.reindex(columns=CLASSES, fill_value=0.0).to_numpy()
    return table


def metadata_features(images):
    """Columns of `audit_images` as features: width, height, aspect, tint and mode. [images, d]."""
    check_table("images", images, ["width", "height", "mode", "tint"], "audit_images")
    columns = images[["width", "height", "tint", "mode"]].assign(aspect=np.log(images.width / images.height))
    return pd.get_dummies(columns, columns=["mode"]).to_numpy(float)


def thumbnail_features(split, size=16):
    """Each image of `split` resized to `size` x `size` pixels, flattened: [images, size * size * 3]."""
    small = [resize(Image.fromarray(split.take([i])[0]), size) for i in range(len(split))]
    return np.stack(small).reshape(len(small), -1).astype(float)


def all_images(data):
    """All images of a prepared set once, unmirrored, as one `Split`."""
    check_data(data)
    rows = pd.concat([getattr(data, name).rows.assign(position=getattr(data, name).positions) for name in SPLITS])
    rows = rows[~rows.mirrored].sort_values("file").drop_duplicates("file").reset_index(drop=True)
    return Split(rows.drop(columns=["position", "split"]), data.train.pixels, rows.position.to_numpy())


def shortcut_baselines(data: PreparedData, seed: int = 0) -> dict:
    """Out-of-fold predictions of four baselines for every image of `data`: `{"name": predictions}`.

    Logistic regressions (`cross_validate`) on the metadata of the files, on the border of the image, on the whole image
    shrunk to 16 x 16 pixels, and on that with shuffled labels (one label a group: chance).
    """
    check_whole("seed", seed)
    split = all_images(data)
    rows, whole = split.rows, thumbnail_features(split)
    one = rows.groupby("group").label.first()
    shuffled = pd.Series(np.random.default_rng(seed).permutation(one), one.index)
    return {
        "metadata only": cross_validate(metadata_features(rows), rows, seed),
        "only the border": cross_validate(thumbnail_features(change_split(split, "only the border")), rows, seed),
        "16 x 16 pixels": cross_validate(whole, rows, seed),
        "16 x 16, shuffled labels": cross_validate(whole, rows.assign(label=rows.group.map(shuffled)), seed),
    }


AT_CHANCE = ("metadata only", "only the border")  # at chance in a data set without a shortcut


def shortcut_table(experiments: dict) -> pd.DataFrame:
    """Balanced accuracy of `shortcut_baselines` with its interval, and what is expected without a shortcut."""
    check_tables("experiments", experiments, hint="what shortcut_baselines returned")
    rows = {}
    for name, predictions in experiments.items():
        metrics, at_chance = compute_metrics(predictions), name in (*AT_CHANCE, "16 x 16, shuffled labels")
        rows[name] = {"balanced accuracy": metrics["balanced_accuracy"], "images": metrics["images"]}
        rows[name]["low"], rows[name]["high"] = metrics["balanced_accuracy_interval"] or (np.nan, np.nan)
        rows[name]["expected"] = 1 / predictions.label.nunique() if at_chance else np.nan
    return pd.DataFrame.from_dict(rows, orient="index")


def verdict(table: pd.DataFrame) -> str:
    """One sentence on the data set from the numbers of `shortcut_table`: a shortcut was found, or none."""
    if not isinstance(table, pd.DataFrame) or not set(AT_CHANCE) <= set(table.index):
        raise ValueError(f"table: it lacks {' or '.join(map(repr, AT_CHANCE))}; pass the table made by shortcut_table.")
    found = table.loc[list(AT_CHANCE)]
    beyond = found[found.low > found.expected]
    if beyond.empty:
        return (
            "NO SHORTCUT FOUND: neither metadata nor the border of the image separates the classes "
            f"(balanced accuracy {', '.join(f'{v:.2f}' for v in found['balanced accuracy'])}; "
            f"{found.expected.iloc[0]:.2f} is chance). Other shortcuts were not tested."
        )
    row = beyond.loc[beyond["balanced accuracy"].idxmax()]
    return (
        f"SHORTCUT FOUND: with {row.name}, a logistic regression reaches a balanced accuracy of "
        f"{row['balanced accuracy']:.0%} [{row.low:.0%}, {row.high:.0%}]; {row.expected:.0%} is expected without a "
        "shortcut. A network on these data may recognise where an image comes from, not the disease."
    )


KEEPS = ("grey", "only the lungs")  # the lungs are still visible
HIDES = ("only the border", "without the lungs")


def summarise(
    baselines: pd.DataFrame,
    answers: dict,
    retrained: dict | None = None,
    marked: tuple | None = None,
    internal_external: tuple | None = None,
) -> pd.DataFrame:
    """All experiments in one table for `plot_experiments`: `score, low, high, expected, beyond`, one row each.

    baselines: the table of `shortcut_table`. answers, retrained: `{"as it is": predictions, "grey": ...}`, keys as in
    `CHANGES`, of the trained network and of one retrained on such images. marked: predictions where the planted
    marker agrees with the class, and where it contradicts it. internal_external: two tables of `covid_vs_normal`.
    score: balanced accuracy, or AUC. expected: the score of a network that uses the lungs alone: chance where they are
    hidden, no loss where they are visible. beyond: the whole interval lies beyond it (where no loss is expected, the
    interval of the paired difference, see `compare_two`).
    """
    check_table("baselines", baselines, ["balanced accuracy", "low", "high"], "shortcut_table")
    complete = baselines.assign(expected=baselines.get("expected")).dropna()
    check_table("baselines", complete, ["expected"], "shortcut_table")
    for argument, tables in (("answers", answers), ("retrained", retrained)):
        if argument == "retrained" and (tables is None or isinstance(tables, dict) and not tables):
            continue
        check_tables(argument, tables, PROBABILITIES)
        if "as it is" not in tables:
            raise ValueError(f"{argument}: 'as it is' is missing; found {', '.join(map(repr, tables))}.")
    for argument, pair in (("marked", marked), ("internal_external", internal_external)):
        if pair is not None and (not isinstance(pair, list | tuple) or len(pair) != 2):
            raise ValueError(f"{argument}: a {type(pair).__name__} is no pair; pass two tables made by predict.")
        for i, table in enumerate(pair or ()):
            check_predictions(table, f"{argument}[{i}]", PROBABILITIES)
    rows = baselines.rename(columns={"balanced accuracy": "score"})[["score", "low", "high", "expected"]]
    rows = rows.assign(beyond=rows.low > rows.expected)

    def add(name, table, chance=np.nan, than=None, key="balanced_accuracy"):
        metrics, expected, beyond = compute_metrics(table), chance, False
        low, high = metrics[f"{key}_interval"] or (np.nan, np.nan)
        if than is not None:  # no loss is expected: the interval of the paired difference
            expected = compute_metrics(than, resamples=1)[key]
            beyond = (compare_two(than, table, key)["difference_interval"] or [0, 0])[1] < 0
        rows.loc[name] = [metrics[key], low, high, expected, beyond or low > chance]

    for who, tables in (("", answers), (", retrained", retrained or {})):
        for how, table in tables.items():
            if how in HIDES:
                add(f"{how}{who or ', network'}", table, 1 / table.label.nunique())
            else:
                add(f"{how}{who}", table, than=tables["as it is"] if how in KEEPS else None)
    if marked is not None:
        add("marker agrees", marked[0])
        add("marker contradicts", marked[1], than=marked[0])
    if internal_external is not None:
        add("AUC internal", internal_external[0], key="auc_covid")
        add("AUC external", internal_external[1], than=internal_external[0], key="auc_covid")
    return rows
