"""Copy what the real runs gave from outputs/runs to results/runs: tables and curves, no image of any patient.

Run it after the notebooks: `.venv/bin/python results/scripts/collect.py`; with `tables`, it copies nothing and makes
the metrics, the comparison, the calibration and the figures again from the answers that are here; with `leak`, it
counts who is on both sides of a split; with `external`, it evaluates the runs under "grouped" whose weights are here
on the images of XRAY_EXTERNAL.
"""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd

import xray_utils as xu
from xray_utils._support.files import whole_file

HERE = Path(__file__).resolve().parents[1]
NAMES = [f"{model}_{protocol}" for protocol in ("slides", "grouped") for model in xu.NOTEBOOKS]


def put(target, source):
    """`target` is a copy of a file, or a figure or a table; whole or not at all."""
    with whole_file(target) as path:
        if isinstance(source, Path):
            shutil.copyfile(source, path)
        elif isinstance(source, pd.DataFrame):
            source.to_csv(path, float_format="%.4f")
        else:
            source.savefig(path, dpi=120, format="png")


def collect():
    """Write `runs/<name>/` for each run of the course, history and settings of the other runs, and the comparison."""
    runs = HERE / "runs"
    for name, result in xu.load_results(NAMES).items():
        for file in ("config.json", "history.csv", "predictions.csv", "validation.csv", "metrics.json"):
            if xu.outputs_dir("runs", result.name, file).is_file():
                put(runs / name / file, xu.outputs_dir("runs", result.name, file))
        put(runs / name / "curves.png", xu.plot_history(result.history))
        put(runs / name / "confusion_matrix.png", xu.plot_confusion_matrix(result.predictions, title=name))
    for folder in sorted(xu.outputs_dir("runs").iterdir()):  # compared on validation only: they have no test
        if (folder / "finished.json").is_file() and not (folder / "metrics.json").is_file():
            if not folder.name.endswith("_sample") and not folder.name.startswith(
                ("marker", "relearned", "configuration")
            ):
                for file in ("config.json", "history.csv"):
                    put(runs / folder.name / file, folder / file)
    for path in xu.outputs_dir("tables").glob("*.csv"):  # of notebook 7
        if not path.stem.endswith("_sample"):
            put(HERE / "tables" / path.name, path)


def tables():
    """Write metrics.json of each run in `runs/`, comparison.csv and .png, tables/calibration.csv and the figures."""
    for path in sorted((HERE / "runs").glob("*/metrics.json")):
        with whole_file(path) as part:
            metrics = xu.compute_metrics(pd.read_csv(path.with_name("predictions.csv")))
            part.write_text(json.dumps(metrics, indent=1))
    results = xu.load_results(NAMES, HERE / "runs")
    table = xu.compare(results)
    put(HERE / "comparison.csv", table)
    put(HERE / "comparison.png", xu.plot_comparison(table))
    print(table.to_string())
    rows, shown = {}, {}
    for name, result in results.items():
        if result.validation is None:
            continue
        temperature = xu.fit_temperature(result.validation)
        calibrated = xu.apply_temperature(result.predictions, temperature)
        rows[name] = {"temperature": temperature}
        for when, answers in (("as trained", result.predictions), ("calibrated", calibrated)):
            rows[name][f"calibration error, {when}"] = xu.calibration_error(answers)
            sure = answers[[f"p_{label}" for label in xu.CLASSES]].max(axis=1)
            rows[name][f"mean confidence, {when}"] = sure.mean()
            shown[f"{name}, {when}"] = answers
        rows[name]["accuracy"] = result.metrics["accuracy"]
    calibration = pd.DataFrame.from_dict(rows, orient="index")
    put(HERE / "tables" / "calibration.csv", calibration)
    best = [name for name in shown if name.startswith("resnet18_augmented_grouped")]
    put(HERE / "calibration.png", xu.plot_reliability({name: shown[name] for name in best}))
    print(calibration.round(3).to_string())
    internal, away = (
        results["baseline_cnn_grouped"].predictions,
        HERE / "runs" / "baseline_cnn_grouped" / "external.csv",
    )
    put(HERE / "internal_external.png", xu.plot_internal_external(internal, pd.read_csv(away)))
    scaling()
    another_hospital()
    put(HERE / "risk_coverage.png", risk_coverage("baseline_cnn_grouped"))
    every = pd.read_csv(HERE / "tables" / "all_experiments_grouped.csv", index_col=0)
    put(HERE / "all_experiments.png", xu.plot_experiments(every))


def another_hospital():
    """Write tables/external_grouped.csv anew for the networks whose answers external are here."""
    path = HERE / "tables" / "external_grouped.csv"
    table = pd.read_csv(path, index_col=0)
    for model in xu.NOTEBOOKS:
        answers = HERE / "runs" / f"{model}_grouped" / "external.csv"
        if answers.is_file():
            table[model] = xu.metrics_table({model: xu.compute_metrics(pd.read_csv(answers))})[model]
    put(path, table)


def scaling():
    """Write tables/scaling.csv: hours an epoch on k devices, each as fast as the measured machine, as in notebook 5.

    Each device keeps a batch of 32; at a step it exchanges 2 (k - 1) / k of its gradients, in fp32, at 1 GB/s.
    """
    measured = json.loads((HERE / "benchmarks.json").read_text())
    rows = []
    for part, run in (("resnet18", "resnet18_grouped"), ("vit", "vit_grouped")):
        rate = measured[part]["figures"]["contestants"]["ours, bf16"]["images_per_second"][0]
        gradients = 4 * json.loads((HERE / "runs" / run / "config.json").read_text())["parameters"]
        for images in (10**5, 10**7):
            for devices in (1, 8, 64):
                hours = images / rate / devices / 3600
                exchange = images / 32 / devices * 2 * (devices - 1) / devices * gradients / 1e9 / 3600
                row = {"network": part, "images": images, "devices": devices, "arithmetic, hours": hours}
                rows.append(row | {"exchange, hours": exchange, "share that computes": hours / (hours + exchange)})
    put(HERE / "tables" / "scaling.csv", pd.DataFrame(rows).set_index("network"))


def risk_coverage(name):
    """The figure of notebook 7: which answers of a run go first; the threshold refuses a tenth of validation."""
    pneumonia = pd.read_csv(HERE / "tables" / "pneumonia_scores.csv").set_index(["side", "file"]).pneumonia
    files = {"val": "validation.csv", "internal": "predictions.csv", "external": "external.csv"}
    answers = {side: pd.read_csv(HERE / "runs" / name / file) for side, file in files.items()}
    scores = {side: xu.uncertainty(table, pneumonia[side].reindex(table.file)) for side, table in answers.items()}
    threshold = np.quantile(scores.pop("val"), 0.9, method="higher")
    answers.pop("val")
    return xu.plot_risk_coverage(answers, scores, threshold)


def external():
    """Write `runs/<name>/external.csv`, the answers in another hospital."""
    images = xu.audit_images(xu.find_images(xu.data_dir()))
    away = xu.load_external(xu.external_dir(), images)
    for name in (name for name in NAMES if name.endswith("_grouped")):
        if xu.outputs_dir("runs", name, "best.safetensors").is_file():
            with whole_file(HERE / "runs" / name / "external.csv") as path:
                xu.predict(xu.load_run(name).model, away).to_csv(path, index=False)


def leak():
    """Write tables/leak.csv: the share of test images with a relation in training, as notebook 2 counts it."""
    images, rows = xu.audit_images(xu.find_images(xu.data_dir())), []
    for protocol, mirror in (("slides", True), ("slides", False), ("grouped", True)):
        for seed in range(5):
            split = xu.split_images(images, protocol, seed, mirror)
            train, test = split[split.split == "train"], split[split.split == "test"]
            pairs = test.merge(train, on="alike")
            pairs = pairs.file_x[pairs.file_x != pairs.file_y]
            row = {"protocol": protocol, "mirror": mirror, "seed": seed, "test images": len(test)}
            row |= {"mirrored copy": test.file.isin(train.file).mean(), "near-duplicate": test.file.isin(pairs).mean()}
            rows.append(row | {"patient": test.group.isin(train.group).mean()})
    table = pd.DataFrame(rows).set_index("protocol")
    put(HERE / "tables" / "leak.csv", table)
    print(table.to_string())


if __name__ == "__main__":
    if sys.argv[1:] == ["external"]:
        external()
    elif sys.argv[1:] == ["leak"]:
        leak()
    else:
        if sys.argv[1:] != ["tables"]:
            collect()
        tables()
