"""Report, scores, their intervals, paired tests."""

from itertools import combinations

import numpy as np
import pandas as pd
import scipy

from ._support.checks import (
    check_array,
    check_choice,
    check_dict,
    check_kind,
    check_predictions,
    check_table,
    check_tables,
    check_whole,
)
from .constants import CLASSES, PROBABILITIES


def report(predictions: pd.DataFrame) -> pd.DataFrame:
    """Precision, recall, F1 and number of images of each class, of their macro average, and the accuracy.

    The scores of a class without test images are NaN; it is left out of the average.
    Raises ValueError for a missing column, an empty table, an unknown class, or p_... that are no probabilities.
    """
    from sklearn.metrics import precision_recall_fscore_support

    check_predictions(predictions)
    true, predicted = predictions.label, predictions.predicted
    scores = precision_recall_fscore_support(true, predicted, labels=list(CLASSES), zero_division=0)
    table = pd.DataFrame(np.transpose(scores), CLASSES, columns=["precision", "recall", "f1", "images"])
    table.loc[table["images"].eq(0), ["precision", "recall", "f1"]] = np.nan
    table.loc["macro avg"] = table.mean()
    table.loc["accuracy", "f1"] = (true == predicted).mean()
    table.loc[["macro avg", "accuracy"], "images"] = len(predictions)
    return table.astype({"images": int})


def compute_metrics(predictions: pd.DataFrame, resamples: int = 2000, seed: int = 0) -> dict:
    """Accuracy, balanced accuracy, macro F1, recall and one-vs-rest AUC of each class, with 95 % intervals, as a dict.

    `sure_but_wrong` is the share of images with a wrong prediction of a probability above 0.9.
    Each number `x` has `x_interval`: Wilson's interval (1927) for the effective number of images (Kish 1965). Images of
    one patient are not independent, so the variance is that of a bootstrap over groups (patients; Field & Welsh 2007),
    with Student's t for the number of groups (Dean & Pagano 2015). For F1 and AUC this is an analogy, checked by
    simulation in `tests/reliability/bootstrap.py`. A number that cannot be computed (the recall of an absent class) is
    None, and so is an interval from one group or from fewer than 20 `resamples`. `classes`: see `report`.
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
    group, groups, of = _groups(predictions), _groups_of_each_number(predictions), predictions.label.value_counts()
    drawn = [_statistics(predictions, weights[:, group]) for weights in _draws(group.max() + 1, resamples, seed)]
    numbers = {}
    for name, (value,) in _statistics(predictions, np.ones((1, len(predictions)))).items():
        images = of.get(name.removeprefix("recall_"), len(predictions))  # of its class, for a recall
        interval = _wilson_interval(value, np.concatenate([part[name] for part in drawn]), groups[name], images)
        numbers[name] = (None, None) if np.isnan(value) else (float(value), interval)
    return numbers


def _groups_of_each_number(predictions):
    """Number of groups (patients) that each number of `compute_metrics` is computed from, at least."""
    group, label = _groups(predictions), predictions.label.to_numpy()
    of = {name: len(set(group[label == name])) for name in CLASSES}
    behind = dict.fromkeys(("accuracy", "sure_but_wrong"), int(group.max() + 1))
    behind |= dict.fromkeys(("balanced_accuracy", "macro_f1"), min(filter(None, of.values())))
    behind |= {f"recall_{name}": n for name, n in of.items()}
    return behind | {f"auc_{name}": min(n, len(set(group[label != name]))) for name, n in of.items()}


def grouped_mean(
    table: pd.DataFrame, groups: list | np.ndarray | pd.Series, resamples: int = 2000, seed: int = 0
) -> dict:
    """The mean of each column with its 95 % interval over groups, as a dict for `with_interval`.

    groups: one an image, as `data.test.rows.group`. The interval is a percentile bootstrap over them (Efron &
    Tibshirani 1993, chapter 13); for a column of True and False, that of `compute_metrics`. Rows with a missing number
    are left out; `images` is the number of rows that remain. Raises ValueError if none remains.
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
    values, group = table.to_numpy(float)[good], names[good].factorize()[0]
    n = int(group.max() + 1)
    drawn = [w[:, group] @ values / w[:, group].sum(axis=1)[:, None] for w in _draws(n, resamples, seed)]
    result = {"images": len(values), "groups": n}
    for column, value, spread in zip(table, values.mean(axis=0), np.concatenate(drawn).T, strict=True):
        share = pd.api.types.is_bool_dtype(table[column])
        interval = _wilson_interval(value, spread, n, len(values)) if share else _percentile_interval(spread, n)
        result |= {column: float(value), f"{column}_interval": interval}
    return result


def _groups(predictions):
    return predictions["group" if "group" in predictions else "file"].factorize()[0]


def _draws(groups, resamples, seed, chunk=100):
    """How often each group is drawn, with replacement, in each resample: arrays [up to `chunk`, groups]."""
    rng, equal = np.random.default_rng(seed), np.full(groups, 1 / groups)
    for start in range(0, resamples, chunk):
        yield rng.multinomial(groups, equal, min(chunk, resamples - start))


def _percentile_interval(values, groups):
    """The middle 95 % of bootstrap values as [low, high], or None."""
    return None if _has_no_interval(values, groups) else np.quantile(values, [0.025, 0.975]).tolist()


def _wilson_interval(value, drawn, groups, images):
    """Wilson's interval of a share, [low, high], for the effective number of images: that with the variance of `drawn`.

    drawn: bootstrap values. groups: their number behind the share. A share of 0 or 1 has no variance: then each group
    counts as one image.
    """
    if _has_no_interval(drawn, groups):
        return None
    variance = np.nanvar(drawn) * groups / (groups - 1)  # a bootstrap over few groups underestimates it
    n = min(images, value * (1 - value) / variance) if variance > 1e-12 and 0 < value < 1 else groups
    t = scipy.stats.t.ppf(0.975, groups - 1)
    centre, half = value + t**2 / 2 / n, t * np.sqrt(value * (1 - value) / n + t**2 / 4 / n**2)
    return np.clip([centre - half, centre + half] / (1 + t**2 / n), 0, 1).tolist()


def _difference_interval(value, drawn, groups):
    """Student's interval of a difference, [low, high], with the variance of its bootstrap values `drawn`.

    Without variance (equal predictions) it is that of a share of 0, on both sides.
    """
    if _has_no_interval(drawn, groups):
        return None
    t, deviation = scipy.stats.t.ppf(0.975, groups - 1), np.nanstd(drawn) * np.sqrt(groups / (groups - 1))
    half = float(t * deviation if deviation > 1e-6 else t**2 / (groups + t**2))
    return [max(-1.0, value - half), min(1.0, value + half)]


def _has_no_interval(drawn, groups):
    """True if there are fewer than 20 bootstrap values, over 5 % of them undefined, or a single group."""
    return len(drawn) < 20 or np.isnan(drawn).mean() > 0.05 or groups < 2


def _statistics(predictions, weights):
    """Every number of `compute_metrics` for each row of `weights` [R, images]: a dict of arrays [R]."""
    label, predicted = (predictions[name].to_numpy()[:, None] == np.array(CLASSES) for name in ("label", "predicted"))
    right, true, said = weights @ (label & predicted), weights @ label, weights @ predicted  # each [R, classes]
    with np.errstate(invalid="ignore"):
        recall = right / true
    result = {"accuracy": right.sum(axis=1) / weights.sum(axis=1)}
    result["balanced_accuracy"] = np.where(true > 0, recall, 0).sum(axis=1) / (true > 0).sum(axis=1)
    present = label.any(axis=0)  # absent classes are left out, as in balanced accuracy
    result["macro_f1"] = (2 * right / np.maximum(true + said, 1))[:, present].mean(axis=1)
    result |= {f"recall_{name}": recall[:, i] for i, name in enumerate(CLASSES)}
    if set(PROBABILITIES) <= set(predictions):
        sure = predictions[PROBABILITIES].max(axis=1).to_numpy() > 0.9
        result["sure_but_wrong"] = weights @ (sure & ~(label & predicted).any(axis=1)) / weights.sum(axis=1)
        for i, name in enumerate(CLASSES):
            result[f"auc_{name}"] = _auc(predictions[f"p_{name}"].to_numpy(), label[:, i], weights)
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


def compare_two(
    first: pd.DataFrame, second: pd.DataFrame, statistic: str = "accuracy", resamples: int = 2000, seed: int = 0
) -> dict:
    """Accuracy of `second` minus that of `first`: `difference`, with a 95 % interval over groups, as a dict.

    Groups are drawn for both tables together (paired bootstrap): the same name means the same patient. The interval is
    Student's, with the variance of these draws. For accuracy on the same images there is also an exact McNemar test
    (McNemar 1947): `only_first` and `only_second`, the images that only one table predicts correctly, and its `p`.
    statistic: any number of `compute_metrics` with an interval, such as "auc_covid"; None if it cannot be computed.
    Raises ValueError for a bad table, labels that contradict each other, or an unknown statistic.
    """
    tables = [first, second]
    for argument, table in zip(("first", "second"), tables, strict=True):
        check_predictions(table, argument)
    check_whole("resamples", resamples, 1)
    check_whole("seed", seed)
    ones = [_statistics(table, np.ones((1, len(table)))) for table in tables]
    check_choice("statistic", statistic, sorted(ones[0].keys() & ones[1].keys()))
    names = pd.concat([table["group" if "group" in table else "file"] for table in tables]).factorize()[0]
    groups = names[: len(first)], names[len(first) :]
    drawn = []
    with np.errstate(invalid="ignore"):  # no image of one table may be drawn
        for weights in _draws(names.max() + 1, resamples, seed):
            one, two = (_statistics(table, weights[:, of])[statistic] for table, of in zip(tables, groups, strict=True))
            drawn.append(two - one)
    difference = float(ones[1][statistic][0] - ones[0][statistic][0])
    result = {"difference": None if np.isnan(difference) else difference}
    behind = min(_groups_of_each_number(table)[statistic] for table in tables)
    result["difference_interval"] = _difference_interval(difference, np.concatenate(drawn), behind)
    one, two = (table.set_index([name for name in ("file", "mirrored") if name in table]) for table in tables)
    if one.index.is_unique and two.index.is_unique and set(one.index) == set(two.index):
        two = two.loc[one.index]
        if not one.label.equals(two.label):
            raise ValueError(
                "second: the same images have other labels than in first; these tables do not belong together."
            )
        if statistic == "accuracy":
            first_right, second_right = one.label.eq(one.predicted), two.label.eq(two.predicted)
            gained, lost = int((second_right & ~first_right).sum()), int((first_right & ~second_right).sum())
            p = float(scipy.stats.binomtest(lost, lost + gained).pvalue) if lost + gained else 1.0
            result |= {"only_first": lost, "only_second": gained, "p": p}
    return result


def compare_pairs(tables: dict) -> pd.DataFrame:
    """`compare_two` of each pair in `{"name": predictions}`: the difference, images gained and lost, McNemar's p.

    With k networks there are k (k - 1) / 2 tests: one in twenty of them is below 0.05 by chance alone.
    """
    check_tables("tables", tables)
    rows = {}
    for first, second in combinations(tables, 2):
        result = compare_two(tables[first], tables[second])
        numbers = [result.get(key) for key in ("only_second", "only_first", "p")]
        rows[f"{second} minus {first}"] = [with_interval(result, "difference"), *numbers]
    return pd.DataFrame.from_dict(rows, orient="index", columns=["difference", "gained", "lost", "McNemar p"])


def with_interval(metrics: dict, key: str) -> str:
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
