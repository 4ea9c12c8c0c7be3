"""From a predictions table (`file, label, predicted, p_covid, p_normal, p_virus`) to numbers that can be compared."""

import csv
import glob
import json
import re
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import scipy

from .data import (
    CLASSES,
    check_array,
    check_choice,
    check_kind,
    check_number,
    check_path,
    check_table,
    check_whole,
    outputs_dir,
    repository_dir,
    whole_file,
)

# What the slides of the original course project report: precision, recall and F1 of each class on its test set.
ORIGINAL = {
    "baseline_cnn": {
        "accuracy": 0.89,
        "macro_f1": 0.88,
        "images": 360,
        "classes": {"covid": (0.82, 0.89, 0.86), "normal": (0.93, 0.93, 0.93), "virus": (0.89, 0.84, 0.86)},
    },
    "resnet18": {
        "accuracy": 0.97,
        "macro_f1": 0.97,
        "images": 360,
        "classes": {"covid": (0.98, 0.96, 0.97), "normal": (0.99, 0.98, 0.98), "virus": (0.96, 0.98, 0.97)},
    },
    "vit": {
        "accuracy": 0.90,
        "macro_f1": 0.91,
        "images": 180,
        "classes": {"covid": (0.98, 0.96, 0.97), "normal": (0.88, 0.88, 0.88), "virus": (0.85, 0.87, 0.86)},
    },
}
NOTEBOOKS = {  # the models of the course, and the notebook that trains each
    "baseline_cnn": "03_baseline_cnn",
    "resnet18": "04_resnet18",
    "resnet18_augmented": "04_resnet18",
    "vit": "05_vit",
}


PROBABILITIES = [f"p_{name}" for name in CLASSES]


def check_predictions(predictions, argument="predictions", needed=()):
    """Raise ValueError for a missing column, an empty table, an unknown class, or p_... that are no probabilities."""
    check_table(argument, predictions, ["file", "label", "predicted"], "predict")
    check_table(argument, predictions, ["group"] if "group" in predictions else [], "predict")
    for column in (name for name in PROBABILITIES if name in predictions):
        good = pd.to_numeric(predictions[column], errors="coerce").between(0, 1)
        if not good.all():
            file, value = predictions.loc[~good, ["file", column]].iloc[0]
            raise ValueError(f"{argument}: {column} of {file!r} is {value}; it must be a number from 0 to 1.")
    check_table(argument, predictions, needed, "predict")


def check_dict(argument, tables, hint):
    """Raise ValueError unless `tables` is a dict with something in it."""
    if not isinstance(tables, dict) or not tables:
        raise ValueError(f"{argument}: there is nothing by name in this {type(tables).__name__}; pass {hint}.")


def check_tables(argument, tables, needed=(), hint="{'name': the table made by predict, ...}"):
    """Raise ValueError unless `tables` is `{"name": predictions}`."""
    check_dict(argument, tables, hint)
    for name, table in tables.items():
        check_predictions(table, f"{argument}[{name!r}]", needed)


def check_histories(argument, histories, *columns):
    """Raise ValueError unless `histories` is `{"name": table}`, each table with `epoch` and these columns filled."""
    check_dict(argument, histories, "{'name': run.history, ...}")
    for name, history in histories.items():
        check_table(f"{argument}[{name!r}]", history, ["epoch", *columns], "fit")


def report(predictions):
    """Precision, recall, F1 and number of images of each class, of their macro average, and the accuracy.

    Raises ValueError for a missing column, an empty table, an unknown class, or p_... that are no probabilities.
    """
    from sklearn.metrics import accuracy_score, classification_report

    check_predictions(predictions)
    rows = classification_report(
        predictions.label, predictions.predicted, labels=list(CLASSES), output_dict=True, zero_division=0
    )
    table = pd.DataFrame({name: rows[name] for name in (*CLASSES, "macro avg")}).T
    accuracy = accuracy_score(predictions.label, predictions.predicted)
    table.loc["accuracy"] = [np.nan, np.nan, accuracy, len(predictions)]
    return table.rename(columns={"f1-score": "f1", "support": "images"}).astype({"images": int})


def compute_metrics(predictions, resamples=2000, seed=0):
    """Accuracy, balanced accuracy, macro F1, recall and one-vs-rest AUC of each class, with 95 % intervals, as a dict.

    `sure_but_wrong` is the share of images that get a wrong answer with a probability above 0.9.
    Each number `x` has `x_interval`: Wilson's interval (1927) for the effective number of images (Kish 1965), that is
    with the spread of a bootstrap over groups (patients; Field & Welsh 2007), since images of one patient are not
    independent, and Student's t for the number of groups (Dean & Pagano 2015; for F1 and AUC it is an analogy, tried by
    simulation: `tests/reliability/bootstrap.py`). A number that the images cannot give (the recall of a class that is
    absent) is None, and so is an interval from one group, or from fewer than 20 `resamples`. `classes`: see `report`.
    """
    check_whole("resamples", resamples, 1)
    check_whole("seed", seed)
    table = report(predictions)
    metrics = {"images": len(predictions), "groups": int(_groups(predictions).max() + 1)}
    for name, (value, interval) in numbers_of(predictions, resamples, seed).items():
        metrics |= {name: value, f"{name}_interval": interval}
    return metrics | {"classes": table.loc[list(CLASSES), ["precision", "recall", "f1", "images"]].to_dict("index")}


def numbers_of(predictions, resamples=2000, seed=0):
    """Every number of `compute_metrics` and its interval, `{name: (value, [low, high])}`."""
    group, groups, of = _groups(predictions), _groups_behind(predictions), predictions.label.value_counts()
    drawn = [_statistics(predictions, weights[:, group]) for weights in _draws(group.max() + 1, resamples, seed)]
    numbers = {}
    for name, (value,) in _statistics(predictions, np.ones((1, len(predictions)))).items():
        images = of.get(name.removeprefix("recall_"), len(predictions))  # of its class, for a recall
        interval = _wilson(value, np.concatenate([part[name] for part in drawn]), groups[name], images)
        numbers[name] = (None, None) if np.isnan(value) else (float(value), interval)
    return numbers


def _groups_behind(predictions):
    """On how many groups each number of `compute_metrics` rests, at least."""
    group, label = _groups(predictions), predictions.label.to_numpy()
    of = {name: len(set(group[label == name])) for name in CLASSES}
    behind = dict.fromkeys(("accuracy", "sure_but_wrong"), int(group.max() + 1))
    behind |= dict.fromkeys(("balanced_accuracy", "macro_f1"), min(filter(None, of.values())))
    behind |= {f"recall_{name}": n for name, n in of.items()}
    return behind | {f"auc_{name}": min(n, len(set(group[label != name]))) for name, n in of.items()}


def mean_with_groups(table, groups, resamples=2000, seed=0):
    """The mean of each column with its 95 % interval over groups, as a dict for `with_interval`.

    groups: one an image, as `data.test.rows.group`. The interval is a percentile bootstrap over them (Efron &
    Tibshirani 1993, chapter 13); of a column of True and False, a share, that of `compute_metrics`. Rows with a number
    missing are left out; `images` says how many are left. Raises ValueError when none is.
    """
    check_table("table", table, [], "share_in_lungs, say")
    check_array("table", table, (len(table), None), "one of finite numbers, or empty cells", lambda x: ~np.isinf(x))
    names = pd.Series(groups).dropna() if np.ndim(groups) == 1 else ()
    if len(names) != len(table):
        raise ValueError(f"groups: {len(names)} of them for a table of {len(table)} rows; give one an image.")
    check_whole("resamples", resamples, 1)
    check_whole("seed", seed)
    good = table.notna().all(axis=1).to_numpy()
    if not good.any():
        raise ValueError("table: no row of it is complete; there is nothing to average.")
    values, group = table.to_numpy(float)[good], pd.Series(np.asarray(groups)[good]).factorize()[0]
    drawn = [w[:, group] @ values / w[:, group].sum(axis=1)[:, None] for w in _draws(group.max() + 1, resamples, seed)]
    result = {"images": int(good.sum()), "groups": int(group.max() + 1)}
    for column, value, spread in zip(table, values.mean(axis=0), np.concatenate(drawn).T, strict=True):
        share = pd.api.types.is_bool_dtype(table[column])
        result[column] = float(value)
        result[f"{column}_interval"] = (
            _wilson(value, spread, result["groups"], len(values)) if share else _middle(spread, result["groups"])
        )
    return result


def _groups(predictions):
    return predictions["group" if "group" in predictions else "file"].factorize()[0]


def _draws(groups, resamples, seed, chunk=100):
    """How often each group is drawn, with replacement, in each resample: arrays [up to `chunk`, groups]."""
    rng, equal = np.random.default_rng(seed), np.full(groups, 1 / groups)
    for start in range(0, resamples, chunk):
        yield rng.multinomial(groups, equal, min(chunk, resamples - start))


def _middle(values, groups, level=0.95):
    """The middle 95 % of bootstrap values as [low, high], or None."""
    return None if _says_nothing(values, groups) else np.quantile(values, [(1 - level) / 2, (1 + level) / 2]).tolist()


def _wilson(value, drawn, groups, images, level=0.95):
    """Wilson's interval of a share, [low, high], for as many images as would spread as its bootstrap values `drawn`.

    groups: how many the share rests on. A share of 0 or 1 has no spread: then each group counts as one image.
    """
    if _says_nothing(drawn, groups):
        return None
    variance = np.nanvar(drawn) * groups / (groups - 1)  # a bootstrap over few groups spreads too little
    n = min(images, value * (1 - value) / variance) if variance > 1e-12 and 0 < value < 1 else groups
    t = scipy.stats.t.ppf((1 + level) / 2, groups - 1)
    centre, half = value + t**2 / 2 / n, t * np.sqrt(value * (1 - value) / n + t**2 / 4 / n**2)
    return (np.clip([centre - half, centre + half] / (1 + t**2 / n), 0, 1)).tolist()


def _difference_interval(value, drawn, groups, level=0.95):
    """Student's interval of a difference, [low, high], with the spread of its bootstrap values `drawn`.

    Where both answer alike nothing spreads; then it is that of a share of 0, on both sides.
    """
    if _says_nothing(drawn, groups):
        return None
    t, deviation = scipy.stats.t.ppf((1 + level) / 2, groups - 1), np.nanstd(drawn) * np.sqrt(groups / (groups - 1))
    half = float(t * deviation if deviation > 1e-6 else t**2 / (groups + t**2))
    return [max(-1.0, value - half), min(1.0, value + half)]


def _says_nothing(drawn, groups):
    """True where bootstrap values give no interval: too few, often without what is counted, or of a single group."""
    return len(drawn) < 20 or np.isnan(drawn).mean() > 0.05 or groups < 2


def _statistics(predictions, weights):
    """Every number of `compute_metrics` for each row of `weights` [R, images]: a dict of arrays [R]."""
    label, predicted = (
        predictions[column].to_numpy()[:, None] == np.array(CLASSES) for column in ("label", "predicted")
    )
    right, true, said = weights @ (label & predicted), weights @ label, weights @ predicted  # each [R, classes]
    with np.errstate(invalid="ignore"):
        recall = right / true
    result = {"accuracy": right.sum(axis=1) / weights.sum(axis=1)}
    result["balanced_accuracy"] = np.where(true > 0, recall, 0).sum(axis=1) / (true > 0).sum(axis=1)
    present = label.any(axis=0)  # a class that no image has counts for nothing, as in balanced accuracy
    result["macro_f1"] = (2 * right / np.maximum(true + said, 1))[:, present].mean(axis=1)
    result |= {f"recall_{name}": recall[:, i] for i, name in enumerate(CLASSES)}
    if set(PROBABILITIES) <= set(predictions):
        sure = predictions[PROBABILITIES].max(axis=1).to_numpy() > 0.9
        result["sure_but_wrong"] = weights @ (sure & ~(label & predicted).any(axis=1)) / weights.sum(axis=1)
        result |= {
            f"auc_{name}": _auc(predictions[f"p_{name}"].to_numpy(), label[:, i], weights)
            for i, name in enumerate(CLASSES)
        }
    return result


def _auc(scores, positive, weights):
    """Area under the ROC curve for each row of `weights` [R, images]: the share of pairs in order (Bamber 1975)."""
    order = scores.argsort(kind="stable")
    scores, weights = scores[order], weights[:, order]
    ours, others = weights * positive[order], weights * ~positive[order]
    below = np.pad(others.cumsum(axis=1), ((0, 0), (1, 0)))  # weight of the others among the first k
    first, last = np.searchsorted(scores, scores, "left"), np.searchsorted(scores, scores, "right")
    with np.errstate(invalid="ignore"):
        pairs = ours.sum(axis=1) * others.sum(axis=1)
        return (ours * (below[:, first] + below[:, last]) / 2).sum(axis=1) / pairs


def compare_two(first, second, statistic="accuracy", resamples=2000, seed=0):
    """How much more accurate `second` is than `first`: `difference`, with a 95 % interval over groups, as a dict.

    Groups are drawn for both tables at once (bootstrap), so that what they share counts as paired; one name is one
    patient in both. The interval is Student's, with the spread of these draws. Of accuracy, where both answer the same
    images, there is an exact McNemar test too (McNemar 1947): `only_first`, `only_second` right, and its `p`.
    statistic: the number whose difference is asked for, any of `compute_metrics` with an interval ("auc_covid", say);
    None where the images cannot give it.
    Raises ValueError for a table that `report` would refuse, labels that contradict each other, or an unknown number.
    """
    tables = [first, second]
    for argument, table in zip(("first", "second"), tables, strict=True):
        check_predictions(table, argument)
    check_whole("resamples", resamples, 1)
    check_whole("seed", seed)
    keys = [table[["file", *(["mirrored"] if "mirrored" in table else [])]].astype(str).agg("|".join, axis=1)
            for table in tables]  # fmt: skip
    ones = [_statistics(table, np.ones((1, len(table)))) for table in tables]
    check_choice("statistic", statistic, sorted(ones[0].keys() & ones[1].keys()))
    right = [
        pd.Series(table.label.eq(table.predicted).to_numpy(), key) for table, key in zip(tables, keys, strict=True)
    ]
    names = pd.concat([table["group" if "group" in table else "file"] for table in tables]).factorize()[0]
    groups = names[: len(first)], names[len(first) :]
    drawn = []
    for weights in _draws(names.max() + 1, resamples, seed):
        with np.errstate(invalid="ignore"):
            one, two = (
                _statistics(table, weights[:, group])[statistic] for table, group in zip(tables, groups, strict=True)
            )
        drawn.append(two - one)
    difference = float(ones[1][statistic][0] - ones[0][statistic][0])
    result = {"difference": None if np.isnan(difference) else difference}
    behind = min(_groups_behind(table)[statistic] for table in tables)
    result["difference_interval"] = _difference_interval(difference, np.concatenate(drawn), behind)
    if set(keys[0]) == set(keys[1]) and keys[0].is_unique and keys[1].is_unique:
        labels = [table.label.set_axis(key) for table, key in zip(tables, keys, strict=True)]
        if not labels[0].equals(labels[1].reindex(labels[0].index)):
            raise ValueError("second: the same images have other labels than in first; these tables do not belong "
                             "together.")  # fmt: skip
        if statistic == "accuracy":
            other = right[1].reindex(right[0].index)
            result["only_first"], result["only_second"] = int((right[0] & ~other).sum()), int((~right[0] & other).sum())
            differing = result["only_first"] + result["only_second"]
            result["p"] = float(scipy.stats.binomtest(result["only_first"], differing).pvalue) if differing else 1.0
    return result


def compare_pairs(tables):
    """`compare_two` of each pair in `{"name": predictions}`: the difference, images gained and lost, McNemar's p.

    With k networks there are k (k - 1) / 2 tests: one in twenty of them is below 0.05 by luck alone.
    """
    check_tables("tables", tables)
    rows = {}
    for first, second in combinations(tables, 2):
        result = compare_two(tables[first], tables[second])
        rows[f"{second} minus {first}"] = {
            "difference": with_interval(result, "difference"),
            "gained": result.get("only_second"),
            "lost": result.get("only_first"),
            "McNemar p": result.get("p"),
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def metrics_table(metrics):
    """Every number of `{"name": metrics}` with its 95 % interval, a row a number, a column a name."""
    check_dict("metrics", metrics, "{'name': the metrics of save_results, ...}")
    for name, one in metrics.items():
        check_dict(f"metrics[{name!r}]", one, "what save_results or compute_metrics returned")
    keys = [key for key in next(iter(metrics.values())) if f"{key}_interval" in next(iter(metrics.values()))]
    columns = {name: [with_interval(one, key) for key in keys] for name, one in metrics.items()}
    return pd.DataFrame(
        columns, index=[key.replace("_", " ").replace("auc", "AUC").replace("f1", "F1") for key in keys]
    )


# ---------------------------------------------------------------- calibration


def calibration_error(predictions, bins=10):
    """Expected calibration error: how far confidence and accuracy lie apart, over `bins` of equal width (Guo 2017)."""
    table = reliability(predictions, bins)
    return float((table.images * (table.accuracy - table.confidence).abs()).sum() / table.images.sum())


def reliability(predictions, bins=10):
    """Of each bin of confidence: mean confidence, accuracy and number of images (Guo et al. 2017, arXiv:1706.04599)."""
    check_predictions(predictions, needed=PROBABILITIES)
    check_whole("bins", bins, 1)
    confidence = predictions[PROBABILITIES].max(axis=1)
    bin_ = np.minimum((confidence * bins).astype(int), bins - 1)
    right = predictions.label.eq(predictions.predicted)
    table = pd.DataFrame({"confidence": confidence, "accuracy": right, "bin": bin_})
    return table.groupby("bin").agg(
        confidence=("confidence", "mean"), accuracy=("accuracy", "mean"), images=("bin", "size")
    )


def seed_table(seeds):
    """Accuracy over seeds for each network: mean and standard deviation under both protocols, and the gap between them.

    seeds: a row a run with `network, protocol, seed, accuracy`. `gap` is slides minus grouped of the same seed, its
    mean with the 95 % interval of a paired t-test (Student 1908); with fewer than two such seeds it cannot be said.
    """
    check_table("seeds", seeds, ["network", "protocol", "seed", "accuracy"], "results/elsewhere.py")
    rows = {}
    for network, runs in seeds.groupby("network"):
        wide = runs.pivot(index="seed", columns="protocol", values="accuracy").reindex(columns=["slides", "grouped"])
        row = {}
        for protocol, values in wide.items():
            values = values.dropna()
            spread = f" (sd {values.std():.3f})" if len(values) > 1 else ""
            row[protocol] = f"{values.mean():.3f}{spread}, n {len(values)}" if len(values) else "not run"
        gap = (wide.slides - wide.grouped).dropna()
        row["gap"] = "cannot be said"
        if len(gap) > 1:
            low, high = scipy.stats.t.interval(0.95, len(gap) - 1, gap.mean(), scipy.stats.sem(gap))
            row["gap"] = f"{gap.mean():+.3f} [{low:+.3f}, {high:+.3f}]"
        rows[network] = row
    return pd.DataFrame.from_dict(rows, orient="index")


def fit_temperature(validation):
    """The number that the logits of `validation` are best divided by (Guo et al. 2017); above 1: too sure."""
    check_predictions(validation, "validation", PROBABILITIES)
    logits = np.log(validation[PROBABILITIES].to_numpy().clip(1e-12))
    own = np.take_along_axis(logits, validation.label.map(CLASSES.index).to_numpy()[:, None], axis=1)[:, 0]

    def loss(log_temperature):
        scale = np.exp(-log_temperature)
        return (scipy.special.logsumexp(logits * scale, axis=1) - own * scale).mean()

    return float(np.exp(scipy.optimize.minimize_scalar(loss, bounds=(-3, 3), method="bounded").x))


def apply_temperature(predictions, temperature):
    """The same predictions with calmer (above 1) or surer (below 1) probabilities; the class stays."""
    check_predictions(predictions, needed=PROBABILITIES)
    check_number("temperature", temperature, lambda t: 0 < t < np.inf, "a positive number")
    logits = np.log(predictions[PROBABILITIES].clip(1e-12)) / temperature
    return predictions.assign(
        **dict(zip(PROBABILITIES, scipy.special.softmax(logits.to_numpy(), axis=1).T, strict=True))
    )


def beside_original(predictions, network):
    """Our precision, recall and F1 of each class beside those on the slides of the original project.

    Says aloud that these are other test images, and how many there are on either side.
    """
    check_choice("network", network, ORIGINAL)
    ours, original = report(predictions), ORIGINAL[network]
    theirs = pd.DataFrame.from_dict(original["classes"], "index", columns=["precision", "recall", "f1"])
    theirs.loc["macro avg", "f1"], theirs.loc["accuracy", "f1"] = original["macro_f1"], original["accuracy"]
    theirs.loc["accuracy", "images"] = original["images"]
    print(f"Not the same test images: {len(predictions)} here, {original['images']} in the original.")
    both = pd.concat({"here": ours, "original": theirs}, axis=1).loc[list(ours.index)]
    return both.astype({("here", "images"): "Int64", ("original", "images"): "Int64"})


def best_epochs(histories):
    """Of each history in `{"name": table}`: epochs run, the best one on validation, its loss and accuracy there.

    Nothing trained gives an empty table. Raises ValueError for what is no history.
    """
    if not isinstance(histories, dict) or histories:
        check_histories("histories", histories, "val_loss", "val_accuracy")
    rows = {}
    for name, history in histories.items():
        best = history.loc[history.val_loss.idxmin()]
        rows[name] = {"epochs": len(history), "best epoch": int(best.epoch)}
        rows[name] |= {"val loss": best.val_loss, "val accuracy": best.val_accuracy}
    return pd.DataFrame.from_dict(rows, orient="index")


# ---------------------------------------------------------------- run folders


@dataclass
class Result:
    """What a run folder says: no network, only tables."""

    name: str
    config: dict
    history: pd.DataFrame
    predictions: pd.DataFrame
    metrics: dict
    validation: pd.DataFrame | None = None


TEXT = ("file", "label", "predicted", "group", "source")  # columns of predictions.csv that are no numbers


def save_results(run, predictions, validation=None):
    """Write `predictions.csv` and `metrics.json` of the test images into the folder of `run`; returns the metrics.

    validation: the predictions of the validation images, kept as `validation.csv` (for `fit_temperature`).
    Raises ValueError when a table (which carries the fingerprint of its images in `attrs`, if `predict` made it) is
    not of the test or validation images of `run`.
    """
    check_predictions(predictions)
    if validation is not None:
        check_predictions(validation, "validation")
    if not hasattr(run, "folder") or not hasattr(run, "config"):
        raise ValueError(f"run: a {type(run).__name__} is no run; pass what fit or load_run returned.")
    metrics = compute_metrics(predictions)
    for argument, side, table in (("validation", "val", validation), ("predictions", "test", predictions)):
        if table is None:
            continue
        fingerprint, attrs = run.config["data"].get(side), table.attrs
        if attrs.get("fingerprint", fingerprint) != fingerprint or attrs.get("images", len(table)) != len(table):
            raise ValueError(
                f"{argument}: {len(table)} rows, the first of {table.file.iloc[0]!r}, are not of the {side} images of "
                f"{Path(run.folder).name!r}; pass predict(run.model, data.{side}) with the data of its fit."
            )
    for name, table in (("validation", validation), ("predictions", predictions)):
        if table is not None:
            with whole_file(Path(run.folder) / f"{name}.csv") as path:
                table.to_csv(path, index=False, quoting=csv.QUOTE_NONNUMERIC)
    with whole_file(Path(run.folder) / "metrics.json") as path:
        path.write_text(json.dumps(metrics, indent=1))
    return metrics


def load_results(names, folder=None):
    """The results of runs by name (of each the one saved last); says aloud which is missing and how to make it.

    Raises ValueError for names that are none of a run, FileNotFoundError for a `folder` that is not there.
    """
    _check_names(names)
    if folder is not None:
        check_path("folder", folder, "one of run folders, or None")
    runs = Path(folder) if folder else outputs_dir("runs")
    if folder and not runs.is_dir():
        raise FileNotFoundError(f"folder: {str(folder)!r} is no folder. Give one of run folders, or None.")
    results = {}
    for name in names:
        candidates = [
            path.parent
            for path in runs.glob(f"{glob.escape(name)}*/metrics.json")
            if path.parent.name == name or re.fullmatch(r"-\d+", path.parent.name[len(name) :])
        ]
        if not candidates:
            model = _model_of(name)
            protocol = name[len(model) + 1 :].removesuffix("_sample")
            print(f"{name} is missing: run notebooks/{NOTEBOOKS[model]}.ipynb with protocol = {protocol!r} to make it.")
            continue
        newest = max(candidates, key=lambda path: (path / "metrics.json").stat().st_mtime_ns)
        results[name] = Result(
            name=newest.name,
            config=json.loads((newest / "config.json").read_text()),
            history=pd.read_csv(newest / "history.csv", float_precision="round_trip"),
            predictions=_read_predictions(newest / "predictions.csv"),
            metrics=json.loads((newest / "metrics.json").read_text()),
            validation=_read_predictions(newest / "validation.csv") if (newest / "validation.csv").is_file() else None,
        )
    return results


def _read_predictions(path):
    """What `save_results` wrote; no text is taken for a number or an empty cell."""
    return pd.read_csv(path, dtype=dict.fromkeys(TEXT, str), keep_default_na=False, float_precision="round_trip")


def compare(results):
    """One row a run: network, protocol, images, parameters, epochs, validation and test, and the original's test.

    Runs with the same `test set` (the start of its fingerprint) were tested on the very same images, others were not.
    Raises ValueError when there are no results, or their histories lack something.
    """
    if isinstance(results, dict) and not results:
        raise ValueError(
            "results: there are none; run the notebooks 03, 04 and 05 first. On Colab and Kaggle each "
            "notebook is a machine of its own: README says how the next one finds the runs."
        )
    check_dict("results", results, "what load_results returned")
    for name, result in results.items():
        check_kind(f"results[{name!r}]", result, Result, "result of a run", "what load_results returned")
    histories = {name: result.history for name, result in results.items()}
    check_histories("results", histories, "val_loss", "val_accuracy")
    rows = []
    for name, result in results.items():
        config, metrics, history = result.config, result.metrics, result.history
        best = history.loc[history.val_loss.idxmin()]
        network = config["network"]["network"]
        as_there = name.startswith(f"{network}_slides")  # the original knew no other split, and no augmented network
        original = ORIGINAL[network] if as_there and network in ORIGINAL else {"accuracy": np.nan, "macro_f1": np.nan}
        rows.append(
            {
                "run": name,
                "network": network,
                "protocol": config["data"]["protocol"],
                "parameters": config["parameters"],
                "train": config["data"]["train_images"],
                "epochs": len(history),
                "best epoch": int(best.epoch),
                "val accuracy": best.val_accuracy,
                "test": metrics["images"],
                "test set": config["data"].get("test", "")[:6],
                "accuracy": metrics["accuracy"],
                "accuracy 95 %": with_interval(metrics, "accuracy"),
                "macro F1": metrics["macro_f1"],
                "macro F1 95 %": with_interval(metrics, "macro_f1"),
                "original accuracy": original["accuracy"],
                "original macro F1": original["macro_f1"],
            }
        )
    return pd.DataFrame(rows).set_index("run")


def with_interval(metrics, key):
    """A number with its 95 % interval as text, such as "0.897 [0.861, 0.930]"."""
    check_kind("metrics", metrics, dict, "dict", "what save_results or compute_metrics returned")
    known = [name.removesuffix("_interval") for name in metrics if name.endswith("_interval")]
    check_dict("metrics", dict.fromkeys(known), "what save_results or compute_metrics returned")
    check_choice("key", key, known)
    if metrics[key] is None:
        return "cannot be said"
    if metrics[f"{key}_interval"] is None:
        return f"{metrics[key]:.3f} (no interval)"
    low, high = metrics[f"{key}_interval"]
    return f"{metrics[key]:.3f} [{low:.3f}, {high:.3f}]"


def save_table(table, name):
    """Write a table to `outputs/tables`, as name.csv, whole or not at all; returns its path."""
    check_kind("table", table, pd.DataFrame, "pandas DataFrame", "a table")
    if not isinstance(name, str) or not re.fullmatch(r"[\w.-]*\w", name):
        raise ValueError(f"name: {name!r} must be a plain file name without ending, such as 'accuracies'.")
    path = outputs_dir("tables", f"{name}.csv")
    with whole_file(path) as temporary:
        table.to_csv(temporary)
    return path


def results_dir():
    """The committed results of the real runs, `results/runs` of the repository."""
    return repository_dir() / "results" / "runs"


def make_missing_runs(names):
    """Execute the notebook of each run that is not there yet (its protocol is the default one); say which.

    Raises ValueError, before anything is executed, for a name that no notebook makes.
    """
    import nbformat
    from nbclient import NotebookClient

    _check_names(names)
    for name in names:
        if name.removesuffix("_sample") != f"{_model_of(name)}_grouped":
            raise ValueError(f"names: {name!r} is not made by a notebook as it stands; allowed is '..._grouped'.")
    for name in names:
        if (outputs_dir("runs", name) / "metrics.json").is_file():
            continue
        notebook = repository_dir() / "notebooks" / f"{NOTEBOOKS[_model_of(name)]}.ipynb"
        print(f"{name} is missing: running notebooks/{notebook.name}")
        client = NotebookClient(
            nbformat.read(notebook, as_version=4), resources={"metadata": {"path": notebook.parent}}
        )
        client.execute()


def _check_names(names):
    if (
        isinstance(names, str)
        or not np.iterable(names)
        or not all(isinstance(name, str) and Path(name).name == name for name in names)
    ):
        raise ValueError(f"names: {names!r} must be a list of run names, such as ['baseline_cnn_grouped'].")


def _model_of(name):
    found = [model for model in NOTEBOOKS if name.startswith(f"{model}_")]
    if not found:
        raise ValueError(f"names: {name!r} is a run of no model of the course ({', '.join(NOTEBOOKS)}).")
    return max(found, key=len)
