"""Fight the shortcut: ask what the source cannot answer, and say when not to answer at all.

Where each class has its own hospital, a network of all classes may learn the hospitals. Inside one hospital that holds
ill and well there is nothing of it to learn: what tells the two apart there can be carried to another place.
"""

from dataclasses import replace

import numpy as np
import pandas as pd
import scipy
import torch
from PIL import Image, ImageOps
from threadpoolctl import threadpool_limits

from .data import Split, check_array, check_choice, check_data, check_flag, check_number, check_table
from .evaluation import PROBABILITIES, check_predictions, compute_metrics, mean_with_groups
from .lungs import check_pixels, lung_fields
from .training import batches, check_use, memory_for, to_input


def equalise(pixels):
    """Standardised intensity: grey, and every grey level about as frequent as any other. uint8 [B, H, W, 3].

    (Histogram equalisation of the whole picture, Pizer et al. 1987.) For `change_data`. Raises ValueError for
    anything but such pixels.
    """
    check_pixels(pixels)
    flat = [ImageOps.equalize(Image.fromarray(one).convert("L")).convert("RGB") for one in pixels]
    return np.stack([np.asarray(one) for one in flat])


def crop_lungs(pixels, margin=0.05):
    """The box around the lung fields, stretched to the full picture: little of border, marks, shoulders is left.

    pixels: uint8 [B, H, W, 3], and so is what comes back. margin: kept around the lungs, a share of the width of the
    picture. Estimates that are not trusted count too; where `lung_fields` finds no lung the picture stays as it is.
    For `change_data`. Raises ValueError for anything but such pixels, or a bad margin.
    """
    check_number("margin", margin, lambda m: 0 <= m <= 1, "a share of the width, from 0 to 1")
    masks, (height, width), out = lung_fields(pixels).masks, pixels.shape[1:3], []
    for one, mask in zip(pixels, masks, strict=True):
        box = (0, 0, width, height)
        if mask.any():
            (top, bottom), (left, right) = (np.flatnonzero(mask.any(axis=axis))[[0, -1]] for axis in (1, 0))
            space = margin * width
            box = (left - space, top - space, right + 1 + space, bottom + 1 + space)
            box = tuple(np.clip(box, 0, [width, height] * 2).tolist())
        resample = Image.Resampling.BILINEAR
        out.append(np.asarray(Image.fromarray(one).resize((width, height), resample, box=box)))
    return np.stack(out)


def lung_box(pixels):
    """The box of the lungs in standardised intensity: `crop_lungs`, then `equalise`. For `change_data`."""
    return equalise(crop_lungs(pixels))


def against_normal(predictions, illness="covid", within=False):
    """The covid and normal images of a predictions table, asked for two classes alone: p / (p + p_normal).

    A network of three classes may call a covid image "virus"; for the question "covid or normal?" only the odds of the
    two count (classes compared by pairs: Hand & Till 2001). illness: whose p to take, "covid" or "virus", that is
    pneumonia as such, which the children's hospital of the real set has taught without any covid;
    None leaves the probabilities as they are. within: keep the sources that hold both, see `within_sources`; an area
    over several sources may tell the sources apart.
    """
    check_predictions(predictions, needed=("label", "predicted", *PROBABILITIES))
    check_choice("illness", illness, ("covid", "virus", None))
    check_flag("within", within)
    table = predictions[predictions.label.ne("virus")].copy()
    if within:
        check_predictions(predictions, needed=["source"])
        table = table[within_sources(table)]
    if illness is None:
        return table
    ill, well = table[f"p_{illness}"], table.p_normal
    table["p_covid"] = (ill / (ill + well).where(ill + well > 0)).fillna(0.5)
    table["p_normal"], table["p_virus"] = 1 - table.p_covid, 0.0
    table["predicted"] = np.where(table.p_covid > 0.5, "covid", "normal")
    return table


def within_sources(rows):
    """True for each of `rows` whose source holds normal and other images: there the source cannot tell ill from well.

    Raises ValueError without a column `source`, or when no source holds both.
    """
    check_table("rows", rows, ["label", "source"], "find_images")
    normal = rows.label.eq("normal").groupby(rows.source)
    both = normal.transform("any") & ~normal.transform("all")
    if not both.any():
        raise ValueError("rows: no source holds normal and other images, so nothing can be learned within one.")
    return both.to_numpy()


def shared_sources(data):
    """`data` whose training and validation keep only what lies `within_sources`; the test side stays whole."""
    check_data(data)
    known = data.train.rows.source[within_sources(data.train.rows)].unique()
    sides = {}
    for side in ("train", "val"):
        split = getattr(data, side)
        keep = split.rows.source.isin(known).to_numpy()
        sides[side] = Split(split.rows[keep].reset_index(drop=True), split.pixels, split.positions[keep])
    return replace(data, **sides)


@torch.no_grad()
def features(model, split, batch_size=64):
    """What the last layer of a network sees of each image of `split`: float32 [images, features], in fp32."""
    check_use(model, split, batch_size)
    layers = [layer for layer in model.modules() if isinstance(layer, torch.nn.Linear)]
    if not layers:
        raise ValueError(f"model: {str(model)[:50]!r} has no linear layer at its end, whose input to take.")
    device, found, was_training = next(model.parameters()).device, [], model.training
    hook = layers[-1].register_forward_pre_hook(lambda layer, inputs: found.append(inputs[0].float().cpu()))
    model.eval()
    try:
        for indices in batches(split, batch_size):
            with memory_for(len(indices)):
                model(to_input(split.take(indices), model, device))
    finally:
        hook.remove()
        model.train(was_training)
    return torch.cat(found).numpy()


def ill_scores(known, rows, asked):
    """Log-odds of ill (any class but normal) for each row of the features `asked` [images, d].

    A logistic regression on the features `known` of training `rows`, of those alone that lie `within_sources`: it has
    never had to tell one hospital from another.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    within = within_sources(rows)
    known = check_array("known", known, (len(rows), None), f"features of the {len(rows)} rows; see features")
    d = known.shape[1]
    asked = check_array("asked", asked, (None, d), f"as many features an image as known has, {d}")
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
    with threadpool_limits(1):  # the same bits on any number of cores
        model.fit(known[within], rows.label.to_numpy()[within] != "normal")
        return model.decision_function(asked)


def covid_area(rows, scores):
    """AUC of covid against normal by any score, high for ill, with its interval over groups: as `compute_metrics`."""
    check_table("rows", rows, ["file", "label"], "find_images")
    p = scipy.special.expit(_one_each("scores", scores, rows))
    table = rows.assign(predicted="covid", p_covid=p, p_normal=1 - p, p_virus=0.0)
    return compute_metrics(table[table.label.ne("virus")])


def doubts(predictions, ill):
    """How much an answer is to be doubted: covid, although the image looks well by `ill_scores`. Other answers: none.

    An answer is refused where its doubt lies above the threshold; take the one that refuses a tenth on validation.
    """
    check_predictions(predictions)
    return np.where(predictions.predicted.eq("covid"), -_one_each("ill", ill, predictions), -np.inf)


def _one_each(argument, numbers, predictions):
    """`numbers` as an array, one for each prediction; raise ValueError for another count or not a number."""
    n = len(predictions)
    return check_array(argument, numbers, (n,), f"one number for each of {n} predictions", lambda x: ~np.isnan(x))


def risk_coverage(predictions, doubt):
    """The error of the images that are still answered when the most doubtful are refused, as `coverage` and `risk`.

    (El-Yaniv & Wiener 2010.) One row for each number of answered images, from those on that nothing speaks against
    (a doubt of minus infinity); other ties are answered in the order of the table.
    """
    check_predictions(predictions)
    doubt = _one_each("doubt", doubt, predictions)
    order, first = np.argsort(doubt, kind="stable"), max(0, np.isneginf(doubt).sum() - 1)
    wrong = predictions.label.ne(predictions.predicted).to_numpy()[order]
    answered = np.arange(1, len(wrong) + 1)
    return pd.DataFrame({"coverage": answered / len(wrong), "risk": wrong.cumsum() / answered})[first:]


def refuse(predictions, doubt, threshold):
    """What refusing above `threshold` gives, as a dict of shares with 95 % intervals over groups.

    `answered` of all images, `covid_answered` of the covid images, and `normal_safe`: normal images that are refused,
    or not called covid.
    """
    check_predictions(predictions)
    check_number("threshold", threshold, lambda t: t == t, "a number")
    kept = _one_each("doubt", doubt, predictions) <= threshold
    covid, normal = (predictions.label.eq(name).to_numpy() for name in ("covid", "normal"))
    safe = ~kept | predictions.predicted.ne("covid").to_numpy()
    groups = predictions["group" if "group" in predictions else "file"].to_numpy()
    parts = {"answered": (kept, kept >= 0), "covid_answered": (kept, covid), "normal_safe": (safe, normal)}
    result = {"images": len(predictions)}
    for name, (hit, of) in parts.items():
        share = mean_with_groups(pd.DataFrame({name: hit[of]}), groups[of]) if of.any() else {name: None}
        result |= {name: share[name], f"{name}_interval": share.get(f"{name}_interval")}
    return result
