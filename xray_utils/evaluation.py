"""From a predictions table (`file, label, predicted, p_covid, p_normal, p_virus`) to numbers that can be compared."""

import csv
import glob
import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.metrics import accuracy_score, classification_report, f1_score

from .data import CLASSES, check_table, check_whole, outputs_dir, repository_dir, whole_file

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


def check_predictions(predictions):
    """Raise ValueError for a missing column, an empty table, an unknown class, or p_... that are no probabilities."""
    group = ["group"] if "group" in predictions else []
    check_table("predictions", predictions, ["file", "label", "predicted", *group], "predict")
    for column in (f"p_{name}" for name in CLASSES if f"p_{name}" in predictions):
        good = pd.to_numeric(predictions[column], errors="coerce").between(0, 1)
        if not good.all():
            file, value = predictions.loc[~good, ["file", column]].iloc[0]
            raise ValueError(f"predictions: {column} of {file!r} is {value}; it must be a number from 0 to 1.")


def check_histories(argument, histories, *columns):
    """Raise ValueError unless `histories` is `{"name": table}`, each table with `epoch` and these columns filled."""
    if not isinstance(histories, dict):
        raise ValueError(f"{argument}: a {type(histories).__name__} is no dict; pass {{'name': run.history, ...}}.")
    for name, history in histories.items():
        check_table(f"{argument}[{name!r}]", history, ["epoch", *columns], "fit")


def report(predictions):
    """Precision, recall, F1 and number of images of each class, of their macro average, and the accuracy.

    Raises ValueError for a missing column, an empty table, an unknown class, or p_... that are no probabilities.
    """
    check_predictions(predictions)
    rows = classification_report(
        predictions.label, predictions.predicted, labels=list(CLASSES), output_dict=True, zero_division=0
    )
    table = pd.DataFrame({name: rows[name] for name in (*CLASSES, "macro avg")}).T
    accuracy = accuracy_score(predictions.label, predictions.predicted)
    table.loc["accuracy"] = [np.nan, np.nan, accuracy, len(predictions)]
    return table.rename(columns={"f1-score": "f1", "support": "images"}).astype({"images": int})


def compute_metrics(predictions, resamples=2000, seed=0):
    """Accuracy and macro F1 with 95 % intervals, and `report`, as a dict of plain numbers.

    The intervals are percentile bootstraps over groups (patients), since images of one patient are not independent
    (Efron & Tibshirani 1993, chapter 13; Field & Welsh 2007 for resampling whole clusters).
    """
    check_whole("resamples", resamples, 1)
    check_whole("seed", seed)
    table = report(predictions)
    label, predicted = (predictions[c].map(CLASSES.index).to_numpy() for c in ("label", "predicted"))
    group = predictions["group" if "group" in predictions else "file"].factorize()[0]
    confusion = np.zeros((group.max() + 1, len(CLASSES), len(CLASSES)))
    np.add.at(confusion, (group, label, predicted), 1)  # [groups, true class, predicted class]
    drawn = np.random.default_rng(seed).multinomial(
        len(confusion), np.full(len(confusion), 1 / len(confusion)), resamples
    )
    drawn = np.tensordot(drawn, confusion, axes=1)  # [resamples, true class, predicted class]
    right = np.diagonal(drawn, axis1=1, axis2=2)
    accuracy = right.sum(axis=1) / drawn.sum(axis=(1, 2))
    f1 = 2 * right / np.maximum(drawn.sum(axis=1) + drawn.sum(axis=2), 1)
    return {
        "images": len(predictions),
        "groups": int(len(confusion)),
        "accuracy": float(accuracy_score(label, predicted)),
        "accuracy_interval": np.quantile(accuracy, [0.025, 0.975]).tolist(),
        "macro_f1": float(f1_score(label, predicted, average="macro", labels=range(len(CLASSES)), zero_division=0)),
        "macro_f1_interval": np.quantile(f1.mean(axis=1), [0.025, 0.975]).tolist(),
        "classes": table.loc[list(CLASSES), ["precision", "recall", "f1", "images"]].to_dict("index"),
    }


def beside_original(predictions, network):
    """Our precision, recall and F1 of each class beside those on the slides of the original project.

    Says aloud that these are other test images, and how many there are on either side.
    """
    if network not in ORIGINAL:
        raise ValueError(f"network: {network!r} is unknown. Known: {', '.join(ORIGINAL)}.")
    ours, original = report(predictions), ORIGINAL[network]
    theirs = pd.DataFrame.from_dict(original["classes"], "index", columns=["precision", "recall", "f1"])
    theirs.loc["macro avg", "f1"], theirs.loc["accuracy", "f1"] = original["macro_f1"], original["accuracy"]
    theirs.loc["accuracy", "images"] = original["images"]
    synthetic = "SYNTHETIC " if "source" in predictions and predictions.source.eq("synthetic").any() else ""
    print(f"Not the same test images: {len(predictions)} {synthetic}ones here, {original['images']} in the original.")
    both = pd.concat({"here": ours, "original": theirs}, axis=1).loc[list(ours.index)]
    return both.astype({("here", "images"): "Int64", ("original", "images"): "Int64"})


def best_epochs(histories):
    """Of each history in `{"name": table}`: epochs run, the best one on validation, its loss and accuracy there."""
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


TEXT = ("file", "label", "predicted", "group", "source")  # columns of predictions.csv that are no numbers
FORMULA = r"'*[=+@\t\r-]"  # how a cell begins that a spreadsheet would run, or one that was quoted for it


def save_results(run, predictions):
    """Write `predictions.csv` and `metrics.json` into the folder of `run`; returns the metrics.

    Text that a spreadsheet would take for a formula gets a ' in front (https://owasp.org/www-community/attacks/
    CSV_Injection), which `load_results` takes off again. Raises ValueError when `predictions` (which carry the
    fingerprint of their images in `attrs`, if `predict` made them) are not those of the test images of `run`.
    """
    metrics = compute_metrics(predictions)
    test, attrs = run.config["data"].get("test"), predictions.attrs
    if attrs.get("fingerprint", test) != test or attrs.get("images", len(predictions)) != len(predictions):
        raise ValueError(
            f"predictions: {len(predictions)} rows, the first of {predictions.file.iloc[0]!r}, are not of the test "
            f"images of {Path(run.folder).name!r}; pass predict(run.model, data.test) with the data of its fit."
        )
    text = predictions[[c for c in TEXT if c in predictions]].astype(str)
    text = text.replace(f"^(?={FORMULA})", "'", regex=True)
    with whole_file(Path(run.folder) / "predictions.csv") as path:
        predictions.assign(**text).to_csv(path, index=False, quoting=csv.QUOTE_NONNUMERIC)
    with whole_file(Path(run.folder) / "metrics.json") as path:
        path.write_text(json.dumps(metrics, indent=1))
    return metrics


def load_results(names, folder=None):
    """The results of runs by name (of each the one saved last); says aloud which is missing and how to make it.

    Raises ValueError for names that are none of a run, FileNotFoundError for a `folder` that is not there.
    """
    _check_names(names)
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
        )
    return results


def _read_predictions(path):
    """What `save_results` wrote; no text is taken for a number, an empty cell or a formula."""
    table = pd.read_csv(path, dtype=dict.fromkeys(TEXT, str), keep_default_na=False, float_precision="round_trip")
    text = table[[c for c in TEXT if c in table]].replace(f"^'(?={FORMULA})", "", regex=True)
    return table.assign(**text)


def compare(results):
    """One row a run: network, protocol, images, parameters, epochs, validation and test, and the original's test.

    Runs with the same `test set` (the start of its fingerprint) were tested on the very same images, others were not.
    Raises ValueError when there are no results, or their histories lack something.
    """
    if not isinstance(results, dict):
        raise ValueError(f"results: a {type(results).__name__} is no dict; pass what load_results returned.")
    if not results:
        raise ValueError("results: there are none; run the notebooks 03, 04 and 05 first.")
    histories = {name: result.history for name, result in results.items()}
    check_histories("results", histories, "val_loss", "val_accuracy")
    rows = []
    for name, result in results.items():
        config, metrics, history = result.config, result.metrics, result.history
        best = history.loc[history.val_loss.idxmin()]
        network = config["network"]["network"]
        original = ORIGINAL.get(network, {"accuracy": np.nan, "macro_f1": np.nan})  # none for a network of your own
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
    if f"{key}_interval" not in metrics:
        known = ", ".join(name.removesuffix("_interval") for name in metrics if name.endswith("_interval"))
        raise ValueError(f"key: {key!r} is no number with an interval. Known: {known}.")
    low, high = metrics[f"{key}_interval"]
    return f"{metrics[key]:.3f} [{low:.3f}, {high:.3f}]"


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
    if isinstance(names, str) or not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise ValueError(f"names: {names!r} must be a list of run names, such as ['baseline_cnn_grouped'].")


def _model_of(name):
    found = [model for model in NOTEBOOKS if name.startswith(f"{model}_")]
    if not found:
        raise ValueError(f"names: {name!r} is a run of no model of the course ({', '.join(NOTEBOOKS)}).")
    return max(found, key=len)
