"""External validation, selective prediction, and control images added to training."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import scipy
import torch
from threadpoolctl import threadpool_limits

from .._support.checks import (
    check_array,
    check_choice,
    check_flag,
    check_number,
    check_predictions,
    check_size,
    check_table,
    check_whole,
)
from .._support.memory import memory_for
from ..audit import _audited, _in_conflict, audit_images
from ..batches import batches, to_input
from ..constants import PROBABILITIES
from ..images import _root, find_images, read_image, resize
from ..metrics import compute_metrics, grouped_mean
from ..models import evaluating
from ..prepared import PreparedData, Split, check_data
from ..training import check_use
from .shortcuts import as_predictions, logistic_regression

NEEDED = ["file", "label", "group", "source"]


def add_controls(
    known: np.ndarray,
    rows: pd.DataFrame,
    others: np.ndarray,
    other_rows: pd.DataFrame,
    counts: tuple | list = (0, 2, 4, 8),
    draws: int = 20,
    weight: float = 1.0,
    seed: int = 0,
) -> pd.DataFrame:
    """Predictions of logistic regressions trained on `rows` and on normal patients of `other_rows`.

    known, others: features of the images [n, d], of training and of other hospitals (see `features`). In each draw the
    normal patients of `other_rows` are shuffled: the first `max(counts)` may be added; all other patients are
    evaluated. An optional column addable of `other_rows` marks the rows that may be added (to leave one hospital out).
    weight: of an added image in the loss. Returns a predictions table with the columns `added` (patients) and `draw`.
    Raises ValueError for counts that leave no normal patient to evaluate.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    check_table("rows", rows, NEEDED[:3], "find_images")
    check_table("other_rows", other_rows, NEEDED, "find_images")
    known = check_array("known", known, (len(rows), None), f"features of the {len(rows)} rows; see features")
    others = check_array("others", others, (len(other_rows), known.shape[1]), "features as those of known")
    check_whole("draws", draws, 1)
    check_whole("seed", seed)
    check_number("weight", weight, lambda w: 0 < w < np.inf, "a positive number")
    if not isinstance(counts, tuple | list) or not counts:
        raise ValueError(f"counts: a {type(counts).__name__} must be a list of numbers of patients, such as (0, 2, 4).")
    for count in counts:
        check_whole("counts", count, 0)
    normal = other_rows.label.eq("normal")
    addable = other_rows[normal & other_rows.get("addable", True)].group.unique()
    if max(counts) > min(len(addable), other_rows[normal].group.nunique() - 1):
        raise ValueError(f"counts: {max(counts)} of {len(addable)} normal patients cannot be added, with others left.")
    rng, answers = np.random.default_rng(seed), []
    scaler = StandardScaler().fit(known)
    known, others = scaler.transform(known), scaler.transform(others)
    with threadpool_limits(1):  # the same bits on any number of cores
        for draw in range(draws):
            order = rng.permutation(addable)
            evaluated = ~other_rows.group.isin(order[: max(counts)]).to_numpy()
            for count in counts:
                chosen = other_rows.group.isin(order[:count]).to_numpy()
                x, y = np.concatenate([known, others[chosen]]), [*rows.label, *other_rows.label[chosen]]
                weights = np.repeat([1.0, weight], [len(known), chosen.sum()])
                model = LogisticRegression(C=0.1, max_iter=1000).fit(x, y, weights)
                p = model.predict_proba(others[evaluated])
                table = as_predictions(other_rows.loc[evaluated, NEEDED], p, model.classes_)
                answers.append(table.assign(added=count, draw=draw))
    return pd.concat(answers, ignore_index=True)


def controls_table(answers: pd.DataFrame, resamples: int = 2000, seed: int = 0) -> pd.DataFrame:
    """Share of normal and of covid images called covid, with intervals, for each number of added patients.

    A row for each `added`: means over the draws, and `low` and `high` of their 95 % percentile interval. Each resample
    takes one draw at random, and its evaluated patients with replacement: the interval covers which patients were added
    and which were evaluated.
    """
    check_table("answers", answers, ["label", "group", "predicted", "added", "draw"], "add_controls")
    check_whole("resamples", resamples, 1)
    check_whole("seed", seed)
    found = []
    for added, of_count in answers.groupby("added"):
        row = {"added": added}
        for label, name in (("normal", "normal called covid"), ("covid", "covid recall")):
            some = of_count[of_count.label.eq(label)].assign(hit=lambda t: t.predicted.eq("covid"))
            patients = [part.groupby("group").hit.agg(["sum", "size"]).to_numpy() for _, part in some.groupby("draw")]
            rng, drawn = np.random.default_rng(seed), []
            for _ in range(resamples if patients else 0):
                one = patients[rng.integers(len(patients))]
                hits, images = one[rng.integers(len(one), size=len(one))].sum(axis=0)
                drawn.append(hits / images)
            if drawn:
                row[name] = np.mean([p[:, 0].sum() / p[:, 1].sum() for p in patients])
                row[f"{name} low"], row[f"{name} high"] = np.quantile(drawn, [0.025, 0.975])
        found.append(row)
    return pd.DataFrame(found)


def load_external(
    folder: str | Path, images: pd.DataFrame, size: int = 224, near: float = 0.95, labels: dict | None = None
) -> Split:
    """The images of `folder` as one `Split`, without those related to training; print how many are left out.

    images: the audited table that the networks were trained from. Left out are files that cannot be read, exact, near
    or mirrored duplicates of `images` (as `audit_images` finds them), patients that are in it, and label conflicts.
    Classes may be absent. labels: of the names in `folder`, as in `find_images`. Raises ValueError if nothing is left.
    """
    check_table("images", images, ["file", "label", "problem"], "audit_images")
    check_size(size)
    external = audit_images(find_images(folder, least_classes=1, labels=labels), near)
    external = external[external.problem.eq("") & ~_in_conflict(external)].reset_index(drop=True)
    ours, theirs = (_audited(_root(table), table.file[table.problem.eq("")])[1] for table in (images, external))
    mirrored = theirs.reshape(-1, 32, 32)[:, :, ::-1].reshape(-1, 32 * 32)
    known = np.maximum(theirs @ ours.T, mirrored @ ours.T).max(axis=1) >= near
    patient = (external.patient.notna() & external.patient.isin(images.patient)).to_numpy()
    left_out = f"{known.sum()} that training has too, {(patient & ~known).sum()} of patients in training"
    print(f"{len(external)} external images; left out: {left_out}.")
    external = external[~known & ~patient].reset_index(drop=True)
    if external.empty:
        raise ValueError(f"folder: {str(folder)!r} holds no image that training does not know.")
    print(", ".join(f"{name} {n}" for name, n in external.label.value_counts().sort_index().items()))
    pixels = np.stack([resize(read_image(_root(external) / file), size) for file in external.file])
    return Split(external.assign(mirrored=False), pixels, np.arange(len(external)))


def covid_vs_normal(predictions: pd.DataFrame, positive: str | None = "covid", within: bool = False) -> pd.DataFrame:
    """The covid and normal images of a predictions table, with probabilities of two classes: p / (p + p_normal).

    A network of three classes may call a covid image "virus"; here only the odds of two classes count
    (pairwise comparison: Hand & Till 2001). positive: the class whose probability is used, "covid" or "virus"; None
    leaves the probabilities as they are. within: keep only the sources with both classes, see `within_sources`,
    since an AUC over several sources may measure how well the sources are separated.
    """
    check_flag("within", within)
    check_predictions(predictions, needed=[*PROBABILITIES, "source"] if within else PROBABILITIES)
    check_choice("positive", positive, ("covid", "virus", None))
    table = predictions[predictions.label.ne("virus")].copy()
    if within:
        table = table[within_sources(table)]
    if positive is None:
        return table
    score = table[f"p_{positive}"]
    table["p_covid"] = (score / (score + table.p_normal)).fillna(0.5)  # 0 / 0: undecided
    table["p_normal"], table["p_virus"] = 1 - table.p_covid, 0.0
    table["predicted"] = np.where(table.p_covid > 0.5, "covid", "normal")
    return table


def within_sources(rows: pd.DataFrame) -> np.ndarray:
    """True for each of `rows` whose source holds normal and other images: there the source does not give the class.

    Raises ValueError without a column `source`, or when no source holds both.
    """
    check_table("rows", rows, ["label", "source"], "find_images")
    normal = rows.label.eq("normal").groupby(rows.source)
    both = normal.transform("any") & ~normal.transform("all")
    if not both.any():
        raise ValueError("rows: no source holds normal and other images; within_sources needs one.")
    return both.to_numpy()


def shared_sources(data: PreparedData) -> PreparedData:
    """`data` with only the sources that hold normal and other images in training and validation; test is unchanged."""
    check_data(data)
    shared = data.train.rows.source[within_sources(data.train.rows)].unique()

    def part(split):
        keep = split.rows.source.isin(shared).to_numpy()
        return Split(split.rows[keep].reset_index(drop=True), split.pixels, split.positions[keep])

    return replace(data, train=part(data.train), val=part(data.val))


@torch.no_grad()
def features(model: torch.nn.Module, split: Split, batch_size: int = 64) -> np.ndarray:
    """Input of the network's last layer for each image of `split`: float32 [images, features], computed in fp32."""
    check_use(model, split, batch_size)
    layers = [layer for layer in model.modules() if isinstance(layer, torch.nn.Linear)]
    if not layers:
        raise ValueError(f"model: {str(model)[:50]!r} has no linear layer; features are the input of the last one.")
    found, keep = [], lambda layer, inputs: found.append(inputs[0].float().cpu())
    with evaluating(model) as device, layers[-1].register_forward_pre_hook(keep):
        for indices in batches(split, batch_size):
            with memory_for(len(indices)):
                model(to_input(split.take(indices), model, device))
    return torch.cat(found).numpy()


def pneumonia_scores(known: np.ndarray, rows: pd.DataFrame, others: np.ndarray) -> np.ndarray:
    """Log-odds of pneumonia (any class but normal) for each row of the features `others` [images, d].

    A logistic regression on the features `known` of those training `rows` whose source holds normal and other images
    (`within_sources`), so that the source does not give the class.
    """
    within = within_sources(rows)
    known = check_array("known", known, (len(rows), None), f"features of the {len(rows)} rows; see features")
    others = check_array("others", others, (None, known.shape[1]), f"{known.shape[1]} features an image, as known has")
    with threadpool_limits(1):  # the same bits on any number of cores
        model = logistic_regression().fit(known[within], rows.label[within].ne("normal"))
        return model.decision_function(others)


def covid_auc(rows: pd.DataFrame, scores: np.ndarray) -> dict:
    """AUC of covid against normal of a score that is high for covid: as `compute_metrics` returns it."""
    check_table("rows", rows, ["file", "label"], "find_images")
    p = scipy.special.expit(_one_each("scores", scores, rows))
    table = rows.assign(predicted="covid", p_covid=p, p_normal=1 - p, p_virus=0.0)
    return compute_metrics(table[table.label.ne("virus")])


def uncertainty(predictions: pd.DataFrame, pneumonia: np.ndarray) -> np.ndarray:
    """Uncertainty score of each prediction: high for covid on an image with a low pneumonia score.

    pneumonia: the `pneumonia_scores` of the images. Predictions other than covid get minus infinity. Abstain above a
    threshold, such as the 0.9 quantile on validation.
    """
    check_predictions(predictions)
    return np.where(predictions.predicted.eq("covid"), -_one_each("pneumonia", pneumonia, predictions), -np.inf)


def _one_each(argument, numbers, predictions):
    """`numbers` as an array, one for each prediction; ValueError for another length or NaN."""
    n = len(predictions)
    return check_array(argument, numbers, (n,), f"one number for each of {n} predictions", lambda x: ~np.isnan(x))


def risk_coverage(predictions: pd.DataFrame, scores: np.ndarray) -> pd.DataFrame:
    """Risk-coverage curve (El-Yaniv & Wiener 2010): the error of the predictions that remain after abstaining.

    One row for each number of predictions kept, the least uncertain first; the first row keeps all with a score of
    minus infinity. Ties keep the order of the table.
    """
    check_predictions(predictions)
    scores = _one_each("scores", scores, predictions)
    order, first = np.argsort(scores, kind="stable"), max(0, np.isneginf(scores).sum() - 1)
    wrong = predictions.label.ne(predictions.predicted).to_numpy()[order]
    answered = np.arange(1, len(wrong) + 1)
    return pd.DataFrame({"coverage": answered / len(wrong), "risk": wrong.cumsum() / answered})[first:]


def abstain(predictions: pd.DataFrame, scores: np.ndarray, threshold: float) -> dict:
    """Shares after abstaining above `threshold`, with 95 % intervals over groups, as a dict.

    Coverage: `answered` of all images, `covid_answered` of the covid images, and `normal_safe`: normal images without a
    prediction or not called covid.
    """
    check_predictions(predictions)
    check_number("threshold", threshold, lambda t: t == t, "a number")
    kept = _one_each("scores", scores, predictions) <= threshold
    covid, normal = (predictions.label.eq(name).to_numpy() for name in ("covid", "normal"))
    safe = ~kept | predictions.predicted.ne("covid").to_numpy()
    groups = predictions["group" if "group" in predictions else "file"].to_numpy()
    parts = {"answered": (kept, slice(None)), "covid_answered": (kept, covid), "normal_safe": (safe, normal)}
    result = {"images": len(predictions)}
    for name, (hit, of) in parts.items():
        share = grouped_mean(pd.DataFrame({name: hit[of]}), groups[of]) if hit[of].size else {name: None}
        result |= {name: share[name], f"{name}_interval": share.get(f"{name}_interval")}
    return result
