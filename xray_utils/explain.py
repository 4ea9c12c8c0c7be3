"""Does a classifier read the disease, or where the image comes from? Experiments that try to break a result.

What can be told without looking at the lungs: logistic regressions, each image answered by a model that has seen no
image of its patient. What is left in another hospital: `load_external`.
"""

import hashlib
import math

import numpy as np
import pandas as pd
from PIL import Image, ImageFilter
from threadpoolctl import threadpool_limits

from .data import (
    CLASSES,
    SPLITS,
    PreparedData,
    Split,
    _audited,
    _root,
    audit_images,
    check_array,
    check_choice,
    check_data,
    check_kind,
    check_number,
    check_size,
    check_split,
    check_table,
    check_whole,
    find_images,
    read_image,
    resize,
)
from .evaluation import PROBABILITIES, check_predictions, check_tables, compare_two, compute_metrics
from .lungs import lung_fields

CENTRE = (0.12, 0.88)  # of the height and the width: the box that holds the lungs on most radiographs


def hide_centre(pixels):
    """The border alone: the box that holds the lungs is black (Maguolo & Nanni 2021, PMC8086233). [B, H, W, 3]."""
    low, high = (round(share * pixels.shape[1]) for share in CENTRE)
    pixels = pixels.copy()
    pixels[:, low:high, low:high] = 0
    return pixels


def hide_border(pixels):
    """The box that holds the lungs alone: everything around it is black. [B, H, W, 3]."""
    return pixels - hide_centre(pixels)


def blur(pixels, radius=8):
    """A heavy Gaussian blur of `radius` pixels: tone and outline stay, the texture of the lungs goes."""
    return np.stack([np.asarray(Image.fromarray(one).filter(ImageFilter.GaussianBlur(radius))) for one in pixels])


def grey(pixels):
    """The mean of the three channels in each of them: no colour."""
    return np.repeat(pixels.mean(axis=-1, keepdims=True).round().astype(np.uint8), 3, axis=-1)


def hide_lungs(pixels):
    """The lungs black, as far as `lung_fields` finds them; the rest as it is. [B, H, W, 3]."""
    return np.where(lung_fields(pixels).masks[..., None], 0, pixels).astype(np.uint8)


def only_lungs(pixels):
    """The lungs alone, as far as `lung_fields` finds them, on black. [B, H, W, 3]."""
    return np.where(lung_fields(pixels).masks[..., None], pixels, 0).astype(np.uint8)


CHANGES = {
    **{"grey": grey, "heavy blur": blur, "only the centre": hide_border, "only the border": hide_centre},
    **{"only the lungs": only_lungs, "without the lungs": hide_lungs},
}


ROOM = 2**28  # bytes of changed images that a split keeps in memory


class ChangedSplit(Split):
    """One side of a prepared set whose pixels pass through `change` when they are first taken."""

    change, kept, known = None, None, None

    def take(self, indices):
        """The changed images at `indices` as uint8 [B, size, size, 3]; each once, if all fit in a quarter GiB."""
        indices = np.arange(len(self))[indices]
        if len(self) * math.prod(self.pixels.shape[1:]) > ROOM:
            return self.change(super().take(indices))
        self.known = np.zeros(len(self), bool) if self.known is None else self.known
        new = np.unique(indices[~self.known[indices]])
        if len(new) or self.kept is None:
            pixels = self.change(super().take(new))
            self.kept = np.empty((len(self), *pixels.shape[1:]), pixels.dtype) if self.kept is None else self.kept
            self.kept[new], self.known[new] = pixels, True
        return self.kept[indices]

    def fingerprint(self):
        """sha256 over rows and changed pixels: a run on these is another run."""
        digest = hashlib.sha256(self.rows[["file", "label", "mirrored"]].to_csv(index=False).encode())
        for start in range(0, len(self), 256):
            digest.update(self.take(np.arange(start, min(start + 256, len(self)))).tobytes())
        return digest.hexdigest()


def change_split(split, change):
    """`split` with pixels changed by one of `CHANGES` (by name), or by a function of uint8 [B, H, W, 3].

    Raises ValueError for an unknown name.
    """
    check_kind("split", split, Split, "side of a prepared set", "data.test, say")
    if not callable(change):
        check_choice("change", change, CHANGES, ", or a function")
    changed = ChangedSplit(split.rows, split.pixels, split.positions)
    changed.change = change if callable(change) else CHANGES[change]
    return changed


def change_data(data, change):
    """All three sides through `change_split`: to train on changed images too."""
    check_data(data)
    sides = {name: change_split(getattr(data, name), change) for name in SPLITS}
    return PreparedData(**sides, settings=data.settings, is_sample=data.is_sample)


def plant_marker(split, shift=0, share=0.07):
    """A copy of `split`, in memory, with a stamp in the upper left corner that goes with the class.

    Stripes for covid, columns for normal, a chessboard for virus; `shift=1` gives each class the stamp of the next.
    share: width of the stamp, of that of the picture.
    """
    check_split(split)
    check_whole("shift", shift)
    check_number("share", share, lambda s: 0 < s <= 0.5, "above 0 and at most 0.5 of the width")
    pixels = split.take(np.arange(len(split)))
    width = max(4, round(share * pixels.shape[1]))
    y, x = np.indices((width, width)) // 2 % 2
    stamps = np.stack([y, x, y ^ x]).astype(np.uint8)[..., None] * 255  # [classes, width, width, 1]
    pixels[:, 2 : 2 + width, 2 : 2 + width] = stamps[(split.labels + shift) % len(CLASSES)]
    return Split(split.rows.assign(mirrored=False), pixels, np.arange(len(split)))


# ---------------------------------------------------------------- without the lungs


def guess(features, rows, seed=0, folds=5):
    """The answers of a logistic regression on `features` [images, d] to each image, as a predictions table.

    Cross-validated over groups: no image is answered by a model that has seen its patient. `rows` needs the columns
    file, label and group. Raises ValueError when a class has fewer groups than there are folds.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    check_table("rows", rows, ["file", "label", "group"], "audit_images")
    check_array("features", features, (len(rows), None), f"features of the {len(rows)} rows")
    check_whole("seed", seed)
    check_whole("folds", folds, 2)
    groups = rows.groupby("label").group.nunique()
    if groups.min() < folds:
        raise ValueError(f"folds: {folds} are more than the {groups.min()} groups of class {groups.idxmin()!r}.")
    split = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=500))
    with threadpool_limits(1):  # the same bits on any number of cores
        found = cross_val_predict(
            model, features, rows.label.to_numpy(), groups=rows.group.to_numpy(), cv=split, method="predict_proba"
        )
    present = sorted(rows.label.unique())
    table = rows[["file", "label", "group"]].reset_index(drop=True)
    table["predicted"] = np.array(present)[found.argmax(axis=1)]
    probabilities = pd.DataFrame(found, columns=[f"p_{name}" for name in present])
    return pd.concat([table, probabilities.reindex(columns=PROBABILITIES, fill_value=0.0)], axis=1)


def metadata_features(images):
    """What `audit_images` noted of each file: width, height, aspect, tint and mode. [images, d]."""
    check_table("images", images, ["width", "height", "mode", "tint"], "audit_images")
    columns = images[["width", "height", "tint"]].astype(float).assign(aspect=np.log(images.width / images.height))
    return np.hstack([columns.to_numpy(), pd.get_dummies(images["mode"]).to_numpy(float)])


def thumbnail_features(split, size=16):
    """Each image of `split` as `size` x `size` pixels of three channels, in a row: [images, size * size * 3]."""
    indices = np.arange(len(split))
    small = [resize(Image.fromarray(split.take(indices[i : i + 1])[0]), size) for i in indices]
    return np.stack(small).reshape(len(small), -1).astype(float)


def all_images(data):
    """All images of a prepared set once, unmirrored, as one `Split`."""
    check_data(data)
    rows = pd.concat([getattr(data, name).rows.assign(position=getattr(data, name).positions) for name in SPLITS])
    rows = rows[~rows.mirrored].sort_values("file").drop_duplicates("file").reset_index(drop=True)
    return Split(rows.drop(columns=["position", "split"]), data.train.pixels, rows.position.to_numpy())


def try_to_break(data, seed=0):
    """Answers that no honest look at the lungs is needed for: `{"experiment": predictions}`, of every image of `data`.

    Logistic regressions (`guess`) on the metadata of the files, on the border of the picture, on the whole picture
    shrunk to 16 x 16 pixels, and on that with shuffled labels (each group keeps one: what luck gives).
    """
    check_whole("seed", seed)
    split = all_images(data)
    rows = split.rows
    whole = thumbnail_features(split)
    one = rows.groupby("group").label.first()
    lottery = pd.Series(np.random.default_rng(seed).permutation(one), one.index)
    return {
        "metadata only": guess(metadata_features(rows), rows, seed),
        "only the border": guess(thumbnail_features(change_split(split, "only the border")), rows, seed),
        "16 x 16 pixels": guess(whole, rows, seed),
        "16 x 16, shuffled labels": guess(whole, rows.assign(label=rows.group.map(lottery)), seed),
    }


AT_CHANCE = ("metadata only", "only the border")  # what tells nothing of the class in an innocent data set


def judge(experiments):
    """A table of `try_to_break`: balanced accuracy with its interval, and what an innocent data set would give."""
    check_tables("experiments", experiments, hint="what try_to_break returned")
    rows = {}
    for name, predictions in experiments.items():
        metrics = compute_metrics(predictions)
        chance = 1 / predictions.label.nunique()
        innocent = chance if name in (*AT_CHANCE, "16 x 16, shuffled labels") else np.nan
        rows[name] = {"balanced accuracy": metrics["balanced_accuracy"], "images": metrics["images"]}
        rows[name]["low"], rows[name]["high"] = metrics["balanced_accuracy_interval"] or (np.nan, np.nan)
        rows[name]["innocent"] = innocent
    return pd.DataFrame.from_dict(rows, orient="index")


def verdict(table):
    """One sentence on the data set, filled in by the numbers of `judge`: accused, or nothing found."""
    if not isinstance(table, pd.DataFrame) or not set(AT_CHANCE) <= set(table.index):
        raise ValueError(f"table: it lacks {' or '.join(map(repr, AT_CHANCE))}; pass the table made by judge.")
    found = table.loc[list(AT_CHANCE)]
    guilty = found[found.low > found.innocent]
    if guilty.empty:
        return (
            "No shortcut found: neither metadata nor the border of the picture tells the classes apart "
            f"(balanced accuracy {', '.join(f'{v:.2f}' for v in found['balanced accuracy'])}; "
            f"{found.innocent.iloc[0]:.2f} is guessing). That acquits the data of these two, and of nothing else."
        )
    worst = guilty["balanced accuracy"].idxmax()
    row = guilty.loc[worst]
    return (
        f"ACCUSED: with {worst}, {row['balanced accuracy']:.0%} [{row.low:.0%}, "
        f"{row.high:.0%}] of the classes are recognised on average, where an innocent data set would give "
        f"{row.innocent:.0%}. "
        "What a network scores on this data may be where the images come from, not the disease."
    )


KEEPS = ("grey", "only the lungs")  # what an honest network needs is still there; the border alone holds none of it
HIDES = ("only the border", "without the lungs")


def overview(judged, answers, retrained=None, stamped=None, home_and_away=None):
    """All experiments in one table for `plot_experiments`: `score, low, high, innocent, guilty`, one row each.

    judged: the table of `judge`. answers, retrained: `{"as it is": predictions, "grey": ...}`, keys as in `CHANGES`, of
    a network as it was trained and of one trained anew on such pictures. stamped: the predictions where the stamp tells
    the truth, and where it lies. home_and_away: two predictions tables, compared by the AUC of `against_normal` tables.
    score is balanced accuracy, or that AUC; innocent is what the experiment would give if the network read the lungs
    alone: chance where they are hidden, no loss where they are not. guilty: the whole interval lies beyond that (of the
    paired loss, where nothing may be lost; see `compare_two`).
    """
    check_table("judged", judged, ["balanced accuracy", "low", "high"], "judge")
    check_table("judged", judged.assign(innocent=judged.get("innocent")).dropna(), ["innocent"], "judge")
    for argument, tables in (("answers", answers), ("retrained", retrained)):
        if argument == "retrained" and (tables is None or isinstance(tables, dict) and not tables):
            continue
        check_tables(argument, tables, PROBABILITIES)
        if "as it is" not in tables:
            raise ValueError(f"{argument}: 'as it is' is missing; found {', '.join(map(repr, tables))}.")
    for argument, pair in (("stamped", stamped), ("home_and_away", home_and_away)):
        if pair is not None and (not isinstance(pair, list | tuple) or len(pair) != 2):
            raise ValueError(f"{argument}: a {type(pair).__name__} is no pair; pass two tables made by predict.")
        for i, table in enumerate(pair or ()):
            check_predictions(table, f"{argument}[{i}]", PROBABILITIES)
    rows = judged.rename(columns={"balanced accuracy": "score"})[["score", "low", "high", "innocent"]].copy()
    rows["guilty"] = rows.low > rows.innocent

    def add(name, table, chance=np.nan, than=None, key="balanced_accuracy"):
        metrics, innocent, guilty = compute_metrics(table), chance, False
        low, high = metrics[f"{key}_interval"] or (np.nan, np.nan)
        if than is not None:  # where nothing may be lost: the interval of the paired loss
            innocent = compute_metrics(than, resamples=1)[key]
            guilty = (compare_two(than, table, key)["difference_interval"] or [0, 0])[1] < 0
        rows.loc[name] = [metrics[key], low, high, innocent, guilty or low > chance]

    for who, tables in (("", answers), (", learned anew", retrained or {})):
        for how, table in tables.items():
            if how in HIDES:
                add(f"{how}{who}" if who else f"{how}, network", table, 1 / table.label.nunique())
            else:
                add(f"{how}{who}", table, than=tables["as it is"] if how in KEEPS else None)
    if stamped is not None:
        add("stamp tells the truth", stamped[0])
        add("stamp lies", stamped[1], than=stamped[0])
    if home_and_away is not None:
        add("AUC at home", home_and_away[0], key="auc_covid")
        add("AUC elsewhere", home_and_away[1], than=home_and_away[0], key="auc_covid")
    return rows


# ---------------------------------------------------------------- another hospital


def load_external(folder, images, size=224, near=0.95):
    """The images of `folder`, which no network has seen, as one `Split`; what training could know is left out, aloud.

    images: the audited table that the networks were trained from. Left out are files that cannot be read, exact, near
    or mirrored duplicates of `images` (as `audit_images` finds them), and patients that are in it. Classes may be
    absent. Raises ValueError when nothing is left.
    """
    check_table("images", images, ["file", "label", "problem"], "audit_images")
    check_size(size)
    external = audit_images(find_images(folder, least_classes=1), near)
    external = external[external.problem.eq("")].reset_index(drop=True)
    ours, theirs = (_audited(_root(table), table.file[table.problem.eq("")])[1] for table in (images, external))
    mirrored = theirs.reshape(-1, 32, 32)[:, :, ::-1].reshape(-1, 32 * 32)
    twin = np.maximum(theirs @ ours.T, mirrored @ ours.T).max(axis=1) >= near
    patient = (external.patient.notna() & external.patient.isin(images.patient)).to_numpy()
    print(
        f"{len(external)} external images; left out: {twin.sum()} that training has too, "
        f"{(patient & ~twin).sum()} of patients in training."
    )
    external = external[~twin & ~patient].reset_index(drop=True)
    if external.empty:
        raise ValueError(f"folder: {str(folder)!r} holds no image that training does not know.")
    print(", ".join(f"{name} {n}" for name, n in external.label.value_counts().sort_index().items()))
    pixels = np.stack([resize(read_image(_root(external) / file), size) for file in external.file])
    return Split(external.assign(mirrored=False), pixels, np.arange(len(external)))
