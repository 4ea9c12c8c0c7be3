"""Copy what the real runs gave from outputs/runs to results/runs: tables and curves, no image of any patient.

Run it after the notebooks: `.venv/bin/python results/collect.py`
"""

import shutil
from pathlib import Path

import xray_utils as xu

HERE = Path(__file__).resolve().parent
NAMES = [f"{model}_{protocol}" for protocol in ("slides", "grouped") for model in xu.NOTEBOOKS]


def collect():
    """Write `runs/<name>/` for each run of the course, history and settings of the other runs, and the comparison."""
    runs = HERE / "runs"
    for name, result in xu.load_results(NAMES).items():
        folder = runs / name
        folder.mkdir(parents=True, exist_ok=True)
        for file in ("config.json", "history.csv", "predictions.csv", "validation.csv", "metrics.json"):
            if xu.outputs_dir("runs", result.name, file).is_file():
                shutil.copyfile(xu.outputs_dir("runs", result.name, file), folder / file)
        xu.plot_history(result.history).savefig(folder / "curves.png", dpi=120)
        xu.plot_confusion_matrix(result.predictions, title=name).savefig(folder / "confusion_matrix.png", dpi=120)
    for folder in sorted(xu.outputs_dir("runs").iterdir()):  # compared on validation only: they have no test
        if (folder / "finished.json").is_file() and not (folder / "metrics.json").is_file():
            if not folder.name.endswith("_sample") and not folder.name.startswith(("stamp", "relearned")):
                (runs / folder.name).mkdir(parents=True, exist_ok=True)
                for file in ("config.json", "history.csv"):
                    shutil.copyfile(folder / file, runs / folder.name / file)
    for path in xu.outputs_dir("tables").glob("*.csv"):  # of notebook 7
        if not path.stem.endswith("_sample"):
            (HERE / "tables").mkdir(exist_ok=True)
            shutil.copyfile(path, HERE / "tables" / path.name)
    table = xu.compare(xu.load_results(NAMES, runs))
    table.to_csv(HERE / "comparison.csv", float_format="%.4f")
    xu.plot_comparison(table).savefig(HERE / "comparison.png", dpi=120)
    print(table.to_string())


if __name__ == "__main__":
    collect()
