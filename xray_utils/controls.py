"""Mend the data: add normal images of other hospitals to training, and evaluate patients who were not added."""

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from .data import check_array, check_number, check_table, check_whole
from .evaluation import PROBABILITIES

NEEDED = ["file", "label", "group", "source"]


def add_controls(known, rows, others, other_rows, counts=(0, 2, 4, 8), draws=20, weight=1.0, seed=0):
    """Answers of logistic regressions that learned from `rows` and from normal patients of `other_rows`.

    known, others: features of the images [n, d], of training and of other hospitals (see `features`). In each draw the
    normal patients of `other_rows` are shuffled: the first `max(counts)` may be added; all others are evaluated, with
    all images of other classes, so that nobody is in training and in the test. The column addable of `other_rows`, if
    there is one, says who may be added at all (to leave one hospital out). weight: of an added image in the loss.
    Returns a predictions table with the columns `added` (patients) and `draw`. Raises ValueError for counts that leave
    no normal patient to evaluate.
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
    left = other_rows[normal].group.nunique() - max(counts)
    if max(counts) > len(addable) or left < 1:
        raise ValueError(f"counts: {max(counts)} of {len(addable)} normal patients cannot be added, with others left.")
    rng, answers = np.random.default_rng(seed), []
    scaler = StandardScaler().fit(known)
    with threadpool_limits(1):  # the same bits on any number of cores
        for draw in range(draws):
            order = rng.permutation(addable)
            asked = ~other_rows.group.isin(order[: max(counts)]).to_numpy()
            for count in counts:
                chosen = other_rows.group.isin(order[:count]).to_numpy()
                x, y = np.concatenate([known, others[chosen]]), [*rows.label, *other_rows.label[chosen]]
                model = LogisticRegression(C=0.1, max_iter=1000)
                model.fit(scaler.transform(x), y, np.repeat([1.0, weight], [len(known), chosen.sum()]))
                p = pd.DataFrame(model.predict_proba(scaler.transform(others[asked])), columns=model.classes_)
                table = other_rows.loc[asked, NEEDED].reset_index(drop=True)
                table["predicted"] = p.idxmax(axis=1)
                table[PROBABILITIES] = p.reindex(columns=[c[2:] for c in PROBABILITIES], fill_value=0.0).to_numpy()
                answers.append(table.assign(added=count, draw=draw))
    return pd.concat(answers, ignore_index=True)


def controls_table(answers, resamples=2000, seed=0):
    """Of each number of added patients: the share of normal and of covid images that is called covid, with intervals.

    A row for each `added`: `normal called covid` and `covid recall` are means over the draws; `low` and `high` behind
    them are the 95 % percentiles of what one draw gives on patients drawn anew (each resample takes one draw at random
    and its evaluated patients with replacement): they cover which patients were added and which were evaluated.
    """
    check_table("answers", answers, ["label", "group", "predicted", "added", "draw"], "add_controls")
    check_whole("resamples", resamples, 1)
    check_whole("seed", seed)
    found = []
    for added, of_count in answers.groupby("added"):
        row = {"added": added}
        for label, name in (("normal", "normal called covid"), ("covid", "covid recall")):
            some = of_count[of_count.label.eq(label)].assign(hit=lambda t: t.predicted.eq("covid"))
            if some.empty:
                continue
            rng = np.random.default_rng(seed)
            patients = [part.groupby("group").hit.agg(["sum", "size"]).to_numpy() for _, part in some.groupby("draw")]
            drawn = []
            for _ in range(resamples):
                one = patients[rng.integers(len(patients))]
                hits, images = one[rng.integers(len(one), size=len(one))].sum(axis=0)
                drawn.append(hits / images)
            low, high = np.quantile(drawn, [0.025, 0.975])
            row |= {name: np.mean([p[:, 0].sum() / p[:, 1].sum() for p in patients])}
            row |= {f"{name} low": low, f"{name} high": high}
        found.append(row)
    return pd.DataFrame(found)
