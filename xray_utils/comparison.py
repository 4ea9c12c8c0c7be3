"""Save and load the results of runs, and put them into tables."""

import csv
import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import scipy

from ._support.checks import (
    _check_names,
    check_choice,
    check_dict,
    check_histories,
    check_kind,
    check_path,
    check_predictions,
    check_table,
)
from ._support.files import whole_file
from ._support.names import check_labels
from ._support.paths import outputs_dir, repository_dir
from ._support.runs import Run
from .constants import NOTEBOOKS, ORIGINAL
from .metrics import compute_metrics, report, with_interval


def metrics_table(metrics: dict) -> pd.DataFrame:
    """Every number of `{"name": metrics}` with its 95 % interval: one row a number, one column a name."""
    check_dict("metrics", metrics, "{'name': the metrics of save_results, ...}")
    for name, one in metrics.items():
        check_dict(f"metrics[{name!r}]", one, "what save_results or compute_metrics returned")
    first = next(iter(metrics.values()))
    keys = [key for key in first if f"{key}_interval" in first]
    columns = {name: [with_interval(one, key) for key in keys] for name, one in metrics.items()}
    return pd.DataFrame(columns, [key.replace("_", " ").replace("auc", "AUC").replace("f1", "F1") for key in keys])


def seed_table(seeds: pd.DataFrame) -> pd.DataFrame:
    """Accuracy over seeds for each network: mean and standard deviation under both protocols, and the gap between them.

    seeds: a row a run with `network, protocol, seed, accuracy`. `gap` is slides minus grouped of the same seed, its
    mean with the 95 % interval of a paired t-test (Student 1908); with fewer than two such seeds: "cannot be said".
    """
    check_table("seeds", seeds, ["network", "protocol", "seed", "accuracy"], "results/scripts/external.py")
    rows = {}
    for network, runs in seeds.groupby("network"):
        wide = runs.pivot(index="seed", columns="protocol", values="accuracy").reindex(columns=["slides", "grouped"])
        row = rows[network] = {}
        for protocol, n in wide.count().items():
            spread = f" (sd {wide[protocol].std():.3f})" if n > 1 else ""
            row[protocol] = f"{wide[protocol].mean():.3f}{spread}, n {n}" if n else "not run"
        gap = (wide.slides - wide.grouped).dropna()
        row["gap"] = "cannot be said"
        if len(gap) > 1:
            low, high = scipy.stats.t.interval(0.95, len(gap) - 1, gap.mean(), gap.sem())
            row["gap"] = f"{gap.mean():+.3f} [{low:+.3f}, {high:+.3f}]"
    return pd.DataFrame.from_dict(rows, orient="index")


def compare_with_original(predictions: pd.DataFrame, network: str) -> pd.DataFrame:
    """Our precision, recall and F1 of each class compared with those of the original project.

    Prints that the test images differ, and the number of each.
    """
    check_choice("network", network, ORIGINAL)
    ours, original = report(predictions), ORIGINAL[network]
    theirs = pd.DataFrame.from_dict(original["classes"], "index", columns=["precision", "recall", "f1"])
    theirs.loc["macro avg", "f1"] = original["macro_f1"]
    theirs.loc["accuracy", ["f1", "images"]] = original["accuracy"], original["images"]
    print(f"Other test images: {len(predictions)} here, {original['images']} in the original.")
    both = pd.concat({"here": ours, "original": theirs}, axis=1)
    return both.astype({("here", "images"): "Int64", ("original", "images"): "Int64"})


def best_epochs(histories: dict) -> pd.DataFrame:
    """Of each history in `{"name": table}`: epochs run, the best one on validation, its loss and accuracy there.

    No histories give an empty table.
    """
    if not isinstance(histories, dict) or histories:
        check_histories("histories", histories, "val_loss", "val_accuracy")
    rows = {}
    for name, history in histories.items():
        best = history.loc[history.val_loss.idxmin()]
        rows[name] = {"epochs": len(history), "best epoch": int(best.epoch)}
        rows[name] |= {"val loss": best.val_loss, "val accuracy": best.val_accuracy}
    return pd.DataFrame.from_dict(rows, orient="index")


@dataclass
class Result:
    """The tables of a run folder, without the network."""

    name: str
    config: dict
    history: pd.DataFrame
    predictions: pd.DataFrame
    metrics: dict
    validation: pd.DataFrame | None = None


def save_results(run: Run, predictions: pd.DataFrame, validation: pd.DataFrame | None = None) -> dict:
    """Write `predictions.csv` and `metrics.json` of the test images into the folder of `run`; returns the metrics.

    validation: the predictions of the validation images, kept as `validation.csv` (for `fit_temperature`).
    Raises ValueError when a table is not of the test or validation images of `run`; `predict` notes their fingerprint
    in `attrs`.
    """
    tables = {"predictions": ("test", predictions)}
    if validation is not None:
        tables["validation"] = "val", validation
    for argument, (_, table) in tables.items():
        check_predictions(table, argument)
    if not hasattr(run, "folder") or not hasattr(run, "config"):
        raise ValueError(f"run: a {type(run).__name__} is no run; pass what fit or load_run returned.")
    for argument, (side, table) in tables.items():
        fingerprint, attrs = run.config["data"].get(side), table.attrs
        if attrs.get("fingerprint", fingerprint) != fingerprint or attrs.get("images", len(table)) != len(table):
            raise ValueError(
                f"{argument}: {len(table)} rows, the first of {table.file.iloc[0]!r}, are not of the {side} images of "
                f"{Path(run.folder).name!r}; pass predict(run.model, data.{side}) with the data of its fit."
            )
    metrics = compute_metrics(predictions)
    for argument, (_, table) in tables.items():
        with whole_file(Path(run.folder) / f"{argument}.csv") as path:
            table.to_csv(path, index=False, quoting=csv.QUOTE_NONNUMERIC)
    with whole_file(Path(run.folder) / "metrics.json") as path:
        path.write_text(json.dumps(metrics, indent=1))
    return metrics


def load_results(names: list, folder: str | Path | None = None) -> dict:
    """The results of runs by name (the latest of each name); prints which are missing and how to make them.

    Raises ValueError for names that are not those of runs, FileNotFoundError for a missing `folder`.
    """
    _check_names(names)
    if folder is not None:
        check_path("folder", folder, "one of run folders, or None")
        if not Path(folder).is_dir():
            raise FileNotFoundError(f"folder: {str(folder)!r} is no folder. Give one of run folders, or None.")
    saved = list(Path(folder or outputs_dir("runs")).glob("*/metrics.json"))
    results = {}
    for name in names:
        of_run = [path for path in saved if re.fullmatch(rf"{re.escape(name)}(-\d+)?", path.parent.name)]
        if not of_run:
            model = _model_of(name)
            protocol = name[len(model) + 1 :].removesuffix("_sample")
            print(f"{name} is missing: run notebooks/{NOTEBOOKS[model]}.ipynb with protocol = {protocol!r} to make it.")
            continue
        newest = max(of_run, key=lambda path: path.stat().st_mtime_ns).parent
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
    """Read a table of `save_results`; text stays text, also "1" or "NA"."""
    text = dict.fromkeys(("file", "label", "predicted", "group", "source"), str)
    return pd.read_csv(path, dtype=text, keep_default_na=False, float_precision="round_trip")


def compare(results: dict) -> pd.DataFrame:
    """One row a run: network, protocol, images, parameters, epochs, validation and test, and the original's test.

    Runs with the same `test set` (the start of its fingerprint) were tested on the same images, others were not.
    Raises ValueError without results, or for an incomplete history.
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
    rows = {}
    for name, result in results.items():
        config, metrics, history = result.config, result.metrics, result.history
        best = history.loc[history.val_loss.idxmin()]
        network = config["network"]["network"]
        same = name.startswith(f"{network}_slides")  # the original used only this split, without augmentation
        original = ORIGINAL.get(network, {}) if same else {}
        rows[name] = {
            "network": network,
            "protocol": config["data"]["protocol"],
            "parameters": config["parameters"],
            "train": config["data"]["train_images"],
            "epochs": len(history),
            "best epoch": int(best.epoch),
            "val accuracy": best.val_accuracy,
            "test": metrics["images"],
            "test set": config["data"].get("test", "")[:6],
            "chance": 1 / sum(of_class["images"] > 0 for of_class in metrics["classes"].values()),
            "accuracy": metrics["accuracy"],
            "accuracy 95 %": with_interval(metrics, "accuracy"),
            "macro F1": metrics["macro_f1"],
            "macro F1 95 %": with_interval(metrics, "macro_f1"),
            "original accuracy": original.get("accuracy", np.nan),
            "original macro F1": original.get("macro_f1", np.nan),
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("run")


def save_table(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """Write a table to `outputs/tables`, as name.csv, whole or not at all; returns its path."""
    check_kind("table", table, pd.DataFrame, "pandas DataFrame", "a table")
    if not isinstance(name, str) or not re.fullmatch(r"[\w.-]*\w", name):
        raise ValueError(f"name: {name!r} must be a plain file name without ending, such as 'accuracies'.")
    path = outputs_dir("tables", f"{name}.csv")
    with whole_file(path) as temporary:
        table.to_csv(temporary)
    return path


def make_missing_runs(names: list, labels: dict | None = None) -> None:
    """Execute the notebook of each missing run (with the default protocol), and print its name.

    labels: the parameter of that name, as in `find_images`.
    Raises ValueError, before any notebook is executed, for a name that no notebook makes; RuntimeError if a
    notebook does not make its run.
    """
    import nbformat
    from nbclient import NotebookClient

    check_labels(labels)
    _check_names(names)
    for name in names:
        if name.removesuffix("_sample") != f"{_model_of(name)}_grouped":
            raise ValueError(f"names: {name!r} is not made by a notebook as it stands; allowed is '..._grouped'.")
    for name in names:
        metrics = outputs_dir("runs", name, "metrics.json")
        if metrics.is_file():
            continue
        notebook = repository_dir() / "notebooks" / f"{NOTEBOOKS[_model_of(name)]}.ipynb"
        print(f"{name} is missing: running notebooks/{notebook.name}")
        content = nbformat.read(notebook, as_version=4)
        (at,) = [i for i, cell in enumerate(content.cells) if "parameters" in cell.metadata.get("tags", [])]
        content.cells.insert(at + 1, nbformat.v4.new_code_cell(f"labels = {labels or {}!r}"))
        NotebookClient(content, resources={"metadata": {"path": notebook.parent}}).execute()
        if not metrics.is_file():
            raise RuntimeError(f"names: notebooks/{notebook.name} did not make {name!r}; correct NOTEBOOKS.")


def _model_of(name):
    found = [model for model in NOTEBOOKS if name.startswith(f"{model}_")]
    if not found:
        raise ValueError(f"names: {name!r} is not the run of a model of the course ({', '.join(NOTEBOOKS)}).")
    return max(found, key=len)
