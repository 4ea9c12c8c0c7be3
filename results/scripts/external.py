"""What holds in another hospital, what more data would do, and over how many seeds: tables, no image.

After notebooks 3 to 5 under "grouped", with the images of `XRAY_DATA` and `XRAY_EXTERNAL` and the ViT of
`XRAY_VIT_WEIGHTS`: `.venv/bin/python results/scripts/external.py`
"""

import os
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

import xray_utils as xu
from xray_utils._support.files import whole_file
from xray_utils.lab.shortcuts import all_images
from xray_utils.metrics import _auc, _draws, _groups
from xray_utils.prepared import Split

TABLES = Path(__file__).resolve().parents[1] / "tables"
WEIGHTS = os.environ.get("XRAY_VIT_WEIGHTS", xu.VIT_NAME)


def cached(name, split):
    """Features of the pretrained ViT, never fine-tuned: computed once, kept beside the runs."""
    path = xu.outputs_dir("tables", f"features_{name}.npz")
    key = f"{Path(WEIGHTS).name} {split.fingerprint()}"
    if not path.is_file() or str(np.load(path)["key"]) != key:
        found = xu.features(xu.vit(WEIGHTS), split)
        with whole_file(path) as part, open(part, "wb") as file:  # by a name, savez would add its own ending
            np.savez(file, key=key, features=found)
    return np.load(path)["features"]


def probe(known, rows, tested, tested_rows, weights=None):
    """The answers of a logistic regression on features, as a predictions table."""
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
    with threadpool_limits(1):
        model.fit(known, rows.label, logisticregression__sample_weight=weights)
        found = model.predict_proba(tested)
    columns = [column for column in ("group", "source", "view") if column in tested_rows]
    table = tested_rows[["file", "label", *columns]].reset_index(drop=True)
    table["predicted"] = model.classes_[found.argmax(axis=1)]
    return table.assign(**{f"p_{name}": found[:, i] for i, name in enumerate(model.classes_)})


def auc(table, positive, within=False):
    """AUC of covid against normal with its interval, of two classes; positive None: by the plain p_covid."""
    return xu.with_interval(xu.compute_metrics(xu.covid_vs_normal(table, positive, within)), "auc_covid")


def answers(name, data, away, *sides):
    """The answers of a network to `sides`: the committed ones, else those of the run that is here; or None."""
    files = {"val": "validation.csv", "test": "predictions.csv", "external": "external.csv"}
    files = [TABLES.parent / "runs" / f"{name}_grouped" / files[side] for side in sides]
    if all(path.is_file() for path in files):
        return [pd.read_csv(path) for path in files]
    try:
        model = xu.load_run(f"{name}_{data.name}").model
    except FileNotFoundError as error:
        print(error, "Its row is left as it was.")
        return None
    return [xu.predict(model, away if side == "external" else getattr(data, side)) for side in sides]


def aucs(data, away, probes, scores):
    """AUC of covid vs normal of every network and score, on the internal test images and on the external ones."""
    rows = []
    tables = dict(probes)
    for name in (*xu.NOTEBOOKS, "baseline_cnn_shared_sources", "vit_shared_sources"):
        found = answers(name, data, away, "test", "external")
        tables |= {name: found} if found else {}
    for name, (internal, there) in tables.items():
        shared = "shared" in name  # trained without covid: it can only be evaluated on pneumonia
        for score, positive in (("p of covid", None), ("covid : normal", "covid"), ("virus : normal", "virus")):
            if not shared or positive == "virus":
                aucs_of_score = {"internal": auc(internal, positive), "external": auc(there, positive)}
                aucs_of_score["one place"] = auc(there, positive, within=True)
                rows.append({"network": name, "score": score, **aucs_of_score})
    inside = xu.within_sources(scores[1][0])
    scores.append((scores[1][0][inside].reset_index(drop=True), scores[1][1][inside]))
    found = [xu.with_interval(xu.covid_auc(table, score), "auc_covid") for table, score in scores]
    row = {"network": "ViT, fixed features", "score": "pneumonia : normal, within sources"}
    rows.append(row | dict(zip(("internal", "external", "one place"), found, strict=True)))
    return pd.DataFrame(rows)


def parts(probes):
    """What each network whose answers are kept gives external, by source and by view of the film."""
    tables = {"ViT, fixed features": probes[1]}
    for path in sorted((TABLES.parent / "runs").glob("*_grouped/external.csv")):
        tables[path.parent.name] = pd.read_csv(path)
    rows = []
    for name, table in tables.items():
        cuts = [("all", "", table)]
        cuts += [(column, str(value).split("/")[0], part) for column in ("source", "view")
                 for value, part in table.groupby(column)]  # fmt: skip
        for column, value, part in cuts:
            metrics, row = xu.compute_metrics(part), {"network": name, "by": column, "part": value}
            row |= {label: int(part.label.eq(label).sum()) for label in ("covid", "normal")}
            both = part.label.nunique() > 1
            row["AUC, p of covid"] = auc(part, None) if both else ""
            row["AUC, covid : normal"] = auc(part, "covid") if both else ""
            rows.append(row | {key: xu.with_interval(metrics, key) for key in ("recall_covid", "recall_normal")})
    return pd.DataFrame(rows)


def over_seeds():
    """AUC of covid against normal in one place external, and over both, of the short trainings: a row a seed."""
    rows = []
    for path in sorted((TABLES.parent / "runs").glob("short_*/external.csv")):
        table = pd.read_csv(path)
        row = {"run": path.parent.name}
        for score, positive in (("p of covid", None), ("covid : normal", "covid")):
            row |= {f"{score}, {where}": auc(table, positive, within)
                    for where, within in (("one place", True), ("all", False))}  # fmt: skip
        normal = table[table.label.eq("normal")]
        rows.append(row | {"normal called covid": normal.predicted.eq("covid").mean().round(3)})
    return pd.DataFrame(rows)


def controls(internal, away, known, there, draws=20, resamples=100):
    """Adult normal images of one place, or of both, added to the training; tested on all that is left external.

    Means over draws of the images that are added; in brackets 95 % over draws and, in each, over patients of the test.
    """
    rows, adult = [], away.rows.label.eq("normal").to_numpy()
    places = away.rows.source.to_numpy()
    train, test = (internal.side == side for side in ("train", "test"))
    for place in [*sorted(set(places[adult])), "both"]:
        pool = np.flatnonzero(adult & ((places == place) | (place == "both")))
        most = len(pool) if place != "both" else len(pool) - 8  # eight are left to be tested
        for count in sorted({0, 2, 4, 8, 12, 16, most} & set(range(most + 1))):
            for weight in (1, 5) if count else (1,):
                found = {"normals called covid": [], "covid recall internal": [], "AUC": []}
                resampled = {"normals called covid": [], "AUC": []}
                alone = not count or count == len(pool)
                for draw in range(1 if alone else draws):
                    rng = np.random.default_rng(draw)
                    chosen = rng.choice(pool, count, replace=False)
                    tested = places != place
                    tested &= ~away.rows.group.isin(away.rows.group.iloc[chosen]).to_numpy()  # their patients are known
                    rows_ = pd.concat([internal.rows[train], away.rows.iloc[chosen]])
                    weights = np.r_[np.ones(train.sum()), np.full(count, weight)]
                    features = np.concatenate([known[train], there[chosen]])
                    both = np.concatenate([there[tested], known[test]])
                    answers = probe(features, rows_, both, pd.concat([away.rows[tested], internal.rows[test]]), weights)
                    answers, inside = answers.iloc[: tested.sum()], answers.iloc[tested.sum() :]
                    found["covid recall internal"].extend(share_of_covid(inside, "covid"))
                    found["normals called covid"].extend(share_of_covid(answers, "normal"))
                    found["AUC"].extend(covid_or_normal(answers))
                    weighed = next(_draws(answers.group.nunique(), draws * resamples if alone else resamples, draw,
                                          chunk=draws * resamples))[:, _groups(answers)]  # fmt: skip
                    resampled["normals called covid"].extend(share_of_covid(answers, "normal", weighed))
                    resampled["AUC"].extend(covid_or_normal(answers, weighed))
                row = {"controls from": place.split("/")[0], "added": count, "weight": weight,
                       "draws": len(found["AUC"])}  # fmt: skip
                for key, values in found.items():
                    row[key] = f"{np.mean(values):.3f}" if np.isfinite(values).all() else ""
                    if row[key] and key in resampled:
                        low, high = np.nanquantile(resampled[key], [0.025, 0.975])
                        row[key] += f" [{low:.3f}, {high:.3f}]" if high > low else ""
                rows.append(row)
    return pd.DataFrame(rows)


def share_of_covid(answers, label, weights=None):
    """Of the images of a class the share that is called covid; for each row of weights [R, images] if given."""
    weights = np.ones((1, len(answers))) if weights is None else weights
    weights = weights * answers.label.eq(label).to_numpy()
    return weights @ answers.predicted.eq("covid").to_numpy() / weights.sum(axis=1)


def covid_or_normal(answers, weights=None):
    """AUC of covid against normal, NaN where there are not both; for each row of weights [R, images] if given."""
    weights = np.ones((1, len(answers))) if weights is None else weights
    weights = weights * answers.label.isin(["covid", "normal"]).to_numpy()
    score = answers.p_covid / (answers.p_covid + answers.p_normal)
    return _auc(score.to_numpy(), answers.label.eq("covid").to_numpy(), weights)


def sources_left_out(internal, known):
    """Each source that holds normal and other images, left out of training and evaluated."""
    rows = []
    within = xu.within_sources(internal.rows)
    for source in sorted(internal.rows.source[within].unique()):
        out = internal.rows.source.eq(source).to_numpy()
        inside = ~out & ~internal.rows.group.isin(internal.rows.group[out]).to_numpy()
        answers = probe(known[inside], internal.rows[inside], known[out], internal.rows[out])
        metrics = xu.compute_metrics(answers)
        keys = ("accuracy", "recall_normal", "recall_virus")
        rows.append({"left out": source.split("/")[0], "images": int(out.sum())}
                    | {key: xu.with_interval(metrics, key) for key in keys})  # fmt: skip
    return pd.DataFrame(rows)


def abstention(data, internal, away, known, there, probes):
    """Coverage and risk of each network, abstaining by `xu.uncertainty` on a tenth of validation."""
    train, val, test = (internal.side == side for side in ("train", "val", "test"))
    pneumonia = {name: xu.pneumonia_scores(known[train], internal.rows[train], tested)
           for name, tested in (("val", known[val]), ("test", known[test]), ("away", there))}  # fmt: skip
    tables = {
        "ViT, fixed features": (probe(known[train], internal.rows[train], known[val], internal.rows[val]), *probes)
    }
    order = internal.rows.file.reset_index(drop=True)
    orders = {"val": order[val], "test": order[test], "external": away.rows.file}
    for name in xu.NOTEBOOKS:
        found = answers(name, data, away, *orders)
        if found:
            ordered = zip(found, orders.values(), strict=True)
            tables[name] = [table.set_index("file").reindex(files).reset_index() for table, files in ordered]
    scores = zip(orders.items(), pneumonia.values(), strict=True)
    scores = pd.concat(
        [
            pd.DataFrame({"side": side.replace("test", "internal"), "file": files, "pneumonia": score})
            for (side, files), score in scores
        ]
    )
    with whole_file(TABLES / "pneumonia_scores.csv") as path:  # for the figure of risk against coverage
        scores.round(4).to_csv(path, index=False)
    rows = []
    for name, (on_val, on_test, on_away) in tables.items():
        threshold = np.quantile(xu.uncertainty(on_val, pneumonia["val"]), 0.9, method="higher")
        inside = xu.abstain(on_test, xu.uncertainty(on_test, pneumonia["test"]), threshold)
        external = xu.abstain(on_away, xu.uncertainty(on_away, pneumonia["away"]), threshold)
        without = xu.abstain(on_away, np.full(len(on_away), -np.inf), threshold)
        rows.append({
            "network": name,
            "internal: answered": xu.with_interval(inside, "answered"),
            "internal: covid answered": xu.with_interval(inside, "covid_answered"),
            "external: covid answered": xu.with_interval(external, "covid_answered"),
            "external: normal without an answer or not called covid": xu.with_interval(external, "normal_safe"),
            "the same without refusing": xu.with_interval(without, "normal_safe"),
        })  # fmt: skip
    return pd.DataFrame(rows)


def seeds(internal, known, mirrored, count=10):
    """Accuracy of a logistic regression on fixed ViT features under both protocols, a split a seed."""
    images = xu.audit_images(xu.find_images(xu.data_dir()))
    where = dict(zip(internal.rows.file, range(len(internal.rows)), strict=True))
    rows = []
    for seed in range(count):
        for protocol in ("slides", "grouped"):
            split = xu.split_images(images, protocol=protocol, seed=seed)
            position = split.file.map(where).to_numpy()
            x = np.where(split.mirrored.to_numpy()[:, None], mirrored[position], known[position])
            train, test = split.split.eq("train").to_numpy(), split.split.eq("test").to_numpy()
            metrics = xu.compute_metrics(probe(x[train], split[train], x[test], split[test]), resamples=500)
            rows.append({"network": "vit_fixed_features", "protocol": protocol, "seed": seed,
                         "images": metrics["images"], "accuracy": round(metrics["accuracy"], 4)})  # fmt: skip
    for name in sorted(path.parent.name for path in xu.outputs_dir("runs").glob("*/metrics.json")):
        network, _, rest = name.partition("_grouped") if "_grouped" in name else name.partition("_slides")
        protocol = "grouped" if "_grouped" in name else "slides"
        if network in xu.NOTEBOOKS and "sample" not in name:
            result = xu.load_results([name])[name]
            rows.append({"network": network, "protocol": protocol, "seed": int(rest.removeprefix("_seed") or 0),
                         "images": len(result.predictions),
                         "accuracy": round(result.metrics["accuracy"], 4)})  # fmt: skip
    return pd.DataFrame(rows).sort_values(["network", "protocol", "seed"])


def main():
    """Write the tables."""
    data = xu.load_data(protocol="grouped", seed=0)
    images = xu.audit_images(xu.find_images(xu.data_dir()))
    away = xu.load_external(xu.external_dir(), images)
    internal = all_images(data)
    sides = {side: set(getattr(data, side).rows.file) for side in ("val", "test")}
    internal.side = np.array(
        [next((s for s, files in sides.items() if file in files), "train") for file in internal.rows.file]
    )
    known, there = cached("internal", internal), cached("external", away)
    mirrored_copies = Split(internal.rows.assign(mirrored=True), internal.pixels, internal.positions)
    train, test = internal.side == "train", internal.side == "test"
    tested = (known[test], internal.rows[test].reset_index(drop=True)), (there, away.rows)
    probes = [probe(known[train], internal.rows[train], *one) for one in tested]
    pneumonia = [xu.pneumonia_scores(known[train], internal.rows[train], x) for x, _ in tested]
    tables = {
        "covid_vs_normal": lambda: aucs(
            data, away, {"ViT, fixed features": probes}, list(zip(probes, pneumonia, strict=True))
        ),
        "external_over_seeds": over_seeds,
        "external_by_part": lambda: parts(probes),
        "adult_controls": lambda: controls(internal, away, known, there),
        "sources_left_out": lambda: sources_left_out(internal, known),
        "abstention": lambda: abstention(data, internal, away, known, there, probes),
        "seeds": lambda: seeds(internal, known, cached("mirrored", mirrored_copies)),
    }
    for name in sys.argv[1:] or tables:
        table, keys = tables[name](), ["network", "score", "seed", "protocol"]
        before = pd.read_csv(TABLES / f"{name}.csv") if (TABLES / f"{name}.csv").is_file() else table[:0]
        if keys := [key for key in keys if key in table and key in before]:  # what cannot be evaluated again stays
            computed = set(table[keys].itertuples(index=False, name=None))
            stays = [row not in computed for row in before[keys].itertuples(index=False, name=None)]
            table = pd.concat([table, before[stays]], ignore_index=True)
        with whole_file(TABLES / f"{name}.csv") as path:
            table.to_csv(path, index=False)
        print(f"\n{name}\n{table.to_string(index=False)}", flush=True)


if __name__ == "__main__":
    main()
