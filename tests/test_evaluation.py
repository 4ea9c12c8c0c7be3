"""From predictions to numbers: by hand, by scikit-learn and by scipy; and what run folders keep of them."""

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn import metrics as sk

import xray_utils as xu
from xray_utils import comparison
from xray_utils.constants import ORIGINAL
from xray_utils.metrics import with_interval

CLASSES = list(xu.CLASSES)


def make_predictions(n=60, accuracy=0.7, seed=0, images_per_group=1):
    """A predictions table; images of one group are all right or all wrong together."""
    rng = np.random.default_rng(seed)
    group = np.arange(n) // images_per_group
    label = rng.integers(3, size=n)
    wrong = (rng.random(group.max() + 1) > accuracy)[group]
    predicted = np.where(wrong, (label + rng.integers(1, 3, size=n)) % 3, label)
    probabilities = rng.dirichlet(np.ones(3), size=n)
    return pd.DataFrame(
        {
            "file": [f"{i}.png" for i in range(n)],
            "label": np.array(CLASSES)[label],
            "predicted": np.array(CLASSES)[predicted],
            **{f"p_{name}": probabilities[:, i] for i, name in enumerate(CLASSES)},
            "group": [f"patient {i}" for i in group],
        }
    )


# ---------------------------------------------------------------- report


def test_report_by_hand():
    # covid: 3 images, 2 found, 1 false alarm; normal: 2 images, 1 found, 2 false alarms; virus: 1 image, missed
    table = pd.DataFrame(
        {
            "file": list("abcdef"),
            "label": ["covid", "covid", "covid", "normal", "normal", "virus"],
            "predicted": ["covid", "covid", "normal", "normal", "covid", "normal"],
        }
    )
    report = xu.report(table)
    assert list(report.index) == [*CLASSES, "macro avg", "accuracy"]
    assert list(report.columns) == ["precision", "recall", "f1", "images"]
    assert report.loc["covid"].to_list() == pytest.approx([2 / 3, 2 / 3, 2 / 3, 3])
    assert report.loc["normal"].to_list() == pytest.approx([1 / 3, 1 / 2, 2 / 5, 2])
    assert report.loc["virus"].to_list() == [0, 0, 0, 1]
    assert report.loc["macro avg", "f1"] == pytest.approx((2 / 3 + 2 / 5) / 3)
    assert report.loc["accuracy", "f1"] == 3 / 6 and report.loc["accuracy", "images"] == 6


def test_report_agrees_with_sklearn():
    table = make_predictions()
    report = xu.report(table)
    wanted = sk.precision_recall_fscore_support(table.label, table.predicted, labels=CLASSES)
    assert np.allclose(report.loc[CLASSES].T, wanted)
    assert report.loc["macro avg", "f1"] == pytest.approx(sk.f1_score(table.label, table.predicted, average="macro"))
    assert report.loc["accuracy", "f1"] == pytest.approx((table.label == table.predicted).mean())


@pytest.mark.parametrize("use", [xu.report, xu.compute_metrics, lambda table: xu.compare_with_original(table, "vit")])
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda table: table.drop(columns="predicted"), "predictions: column 'predicted' is missing"),
        (lambda table: table.drop(columns="label"), "predictions: column 'label' is missing"),
        (lambda table: table.drop(columns="file"), "predictions: column 'file' is missing"),
        (lambda table: table[:0], "predictions: the table is empty"),
        (lambda table: table.replace({"label": {"virus": "flu"}}), "predictions: 'flu' is none of the classes"),
        (lambda table: table.replace({"predicted": {"virus": "flu"}}), "predictions: 'flu' is none of the classes"),
    ],
)
def test_bad_predictions_are_refused(use, spoil, message):
    with pytest.raises(ValueError, match=message):
        use(spoil(make_predictions()))


# ---------------------------------------------------------------- intervals


def width(metrics, key="accuracy"):
    low, high = metrics[f"{key}_interval"]
    return high - low


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("images_per_group", [1, 4])
def test_metrics_are_those_of_sklearn_and_lie_in_their_intervals(seed, images_per_group):
    table = make_predictions(seed=seed, images_per_group=images_per_group)
    metrics = xu.compute_metrics(table)
    assert metrics["accuracy"] == sk.accuracy_score(table.label, table.predicted)
    assert metrics["macro_f1"] == pytest.approx(sk.f1_score(table.label, table.predicted, average="macro"))
    for key in ("accuracy", "macro_f1"):
        low, high = metrics[f"{key}_interval"]
        assert 0 <= low < metrics[key] < high <= 1
    assert (metrics["images"], metrics["groups"]) == (60, 60 // images_per_group)
    assert metrics["classes"]["covid"]["images"] == table.label.eq("covid").sum()
    json.dumps(metrics)  # plain numbers only


def test_metrics_are_deterministic_and_depend_on_the_seed():
    table = make_predictions()
    assert xu.compute_metrics(table) == xu.compute_metrics(table)
    assert xu.compute_metrics(table)["macro_f1_interval"] != xu.compute_metrics(table, seed=1)["macro_f1_interval"]


def test_intervals_are_wider_when_images_come_in_groups():
    table = make_predictions(n=300, images_per_group=10)  # 30 patients, all ten images of one right or wrong
    clustered, independent = xu.compute_metrics(table), xu.compute_metrics(table.drop(columns="group"))
    assert clustered["accuracy"] == independent["accuracy"] and independent["groups"] == 300
    for key in ("accuracy", "macro_f1"):  # sqrt(10) = 3.2 times as wide in expectation
        assert 2 < width(clustered, key) / width(independent, key) < 5


def test_macro_f1_interval_is_wilsons_for_the_spread_of_resampling_by_hand():
    table = make_predictions(n=240, images_per_group=2)
    pairs = table[["label", "predicted"]].to_numpy().reshape(120, 2, 2)  # [groups, images, label and prediction]
    rng, values = np.random.default_rng(3), []
    for _ in range(2000):
        label, predicted = pairs[rng.integers(120, size=120)].reshape(240, 2).T
        is_true, is_said = ([side == name for name in CLASSES] for side in (label, predicted))
        values.append(np.mean([2 * (t & s).sum() / (t.sum() + s.sum()) for t, s in zip(is_true, is_said, strict=True)]))
    metrics = xu.compute_metrics(table)
    share = metrics["macro_f1"]
    n, z = share * (1 - share) / (np.var(values) * 120 / 119), stats.t.ppf(0.975, 119)
    half = z * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    assert metrics["macro_f1_interval"] == pytest.approx([centre - half, centre + half], abs=0.005)
    alone = xu.compute_metrics(table.drop(columns="group"))["macro_f1_interval"]
    assert np.abs(np.subtract(alone, [centre - half, centre + half])).max() > 0.01, "the groups count for nothing"


def test_with_interval():
    metrics = {"accuracy": 0.89712, "accuracy_interval": [0.8612, 0.93]}
    assert with_interval(metrics, "accuracy") == "0.897 [0.861, 0.930]"


# ---------------------------------------------------------------- the original


@pytest.mark.parametrize("network", ORIGINAL)
def test_beside_original_holds_both(network):
    table = make_predictions()
    both = xu.compare_with_original(table, network)
    pd.testing.assert_frame_equal(both["here"], xu.report(table), check_dtype=False)
    theirs = ORIGINAL[network]
    for name, numbers in theirs["classes"].items():
        assert tuple(both.loc[name, "original"][["precision", "recall", "f1"]]) == numbers
    assert both.loc["macro avg", ("original", "f1")] == theirs["macro_f1"]
    assert both.loc["accuracy", ("original", "f1")] == theirs["accuracy"]
    assert both.loc["accuracy", ("original", "images")] == theirs["images"]


def test_the_slides_are_transcribed():
    numbers = [(o["accuracy"], o["macro_f1"], o["images"]) for o in ORIGINAL.values()]
    assert list(ORIGINAL) == ["baseline_cnn", "resnet18", "vit"]
    assert numbers == [(0.89, 0.88, 360), (0.97, 0.97, 360), (0.90, 0.91, 180)]


def test_beside_original_refuses_an_unknown_network():
    with pytest.raises(ValueError, match="network: 'alexnet' is unknown. Allowed: 'baseline_cnn', 'resnet18', 'vit'"):
        xu.compare_with_original(make_predictions(), "alexnet")


# ---------------------------------------------------------------- run folders


def make_run(folder, network="baseline_cnn", seed=0, saved_at=None):
    """A run folder as `fit` leaves it, with the results of `make_predictions(seed=seed)`."""
    folder.mkdir(parents=True)
    config = {
        "network": {"network": network},
        "parameters": 1491,
        "data": {"protocol": "grouped", "train_images": 170, "test": "0123456789"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    history = pd.DataFrame({"epoch": [1, 2, 3], "val_loss": [0.9, 1 / 7, 0.6], "val_accuracy": [0.5, 0.7, 0.8]})
    history.to_csv(folder / "history.csv", index=False)
    metrics = xu.save_results(SimpleNamespace(folder=folder, config=config), make_predictions(seed=seed))
    if saved_at is not None:
        os.utime(folder / "metrics.json", (saved_at, saved_at))
    return metrics


def test_results_come_back_as_they_were_saved():
    metrics = make_run(xu.outputs_dir("runs", "baseline_cnn"))
    result = xu.load_results(["baseline_cnn"])["baseline_cnn"]
    assert result.name == "baseline_cnn" and result.metrics == metrics == xu.compute_metrics(make_predictions())
    pd.testing.assert_frame_equal(result.predictions, make_predictions(), check_exact=True)
    assert result.history.val_loss.to_list() == [0.9, 1 / 7, 0.6]
    assert result.config["parameters"] == 1491


def test_the_newest_run_of_a_name_is_taken(tmp_path):
    for when, name in enumerate(["vit", "vit-2", "vit-10", "vit_frozen-11", "vit-old"]):
        make_run(tmp_path / name, "vit", seed=when, saved_at=1000 + when)
    (tmp_path / "vit-12").mkdir()  # one that was never finished
    results = xu.load_results(["vit"], folder=tmp_path)
    assert results["vit"].name == "vit-10"
    assert results["vit"].metrics == xu.compute_metrics(make_predictions(seed=2))


@pytest.mark.parametrize(
    ("name", "notebook"), [("baseline_cnn", "03_baseline_cnn"), ("resnet18", "04_resnet18"), ("vit", "05_vit")]
)
def test_a_missing_run_is_said_with_the_notebook_to_run(name, notebook, capsys):
    make_run(xu.outputs_dir("runs", "vit" if name == "baseline_cnn" else "baseline_cnn"), "vit")
    assert xu.load_results([f"{name}_slides"]) == {}
    said = capsys.readouterr().out
    assert said.startswith(f"{name}_slides is missing: run notebooks/{notebook}.ipynb") and "'slides'" in said


def test_a_run_of_no_model_of_the_course_is_refused():
    with pytest.raises(ValueError, match="names: 'alexnet' is not the run of a model"):
        xu.load_results(["alexnet"])


def test_compare_has_a_row_a_run():
    networks = {f"{name}_slides": name for name in ORIGINAL}
    metrics = {name: make_run(xu.outputs_dir("runs", name), networks[name], seed) for seed, name in enumerate(networks)}
    table = xu.compare(xu.load_results(list(networks)))
    assert list(table.index) == list(networks) and list(table.network) == list(ORIGINAL)
    assert list(table.columns) == [
        *["network", "protocol", "parameters", "train", "epochs", "best epoch", "val accuracy", "test", "test set"],
        *["chance", "accuracy", "accuracy 95 %", "macro F1", "macro F1 95 %", "original accuracy", "original macro F1"],
    ]
    for name, row in table.iterrows():
        assert (row.epochs, row["best epoch"], row["val accuracy"]) == (3, 2, 0.7)  # lowest loss, not best accuracy
        assert (row.protocol, row.parameters, row.train, row.test) == ("grouped", 1491, 170, 60)
        assert row["test set"] == "012345"
        assert (row.accuracy, row["macro F1"]) == (metrics[name]["accuracy"], metrics[name]["macro_f1"])
        assert row["accuracy 95 %"] == with_interval(metrics[name], "accuracy")
        assert row["macro F1 95 %"] == with_interval(metrics[name], "macro_f1")
        assert row["original accuracy"] == ORIGINAL[networks[name]]["accuracy"]
        assert row["original macro F1"] == ORIGINAL[networks[name]]["macro_f1"]
    assert table.chance.eq(1 / 3).all()
    results = xu.load_results(list(networks)[:1])
    results[list(networks)[0]].metrics["classes"]["virus"]["images"] = 0
    assert xu.compare(results).chance.to_list() == [0.5]


def test_what_the_original_did_not_do_has_no_number_of_it():
    names = ["resnet18_slides", "resnet18_grouped", "resnet18_augmented_slides"]
    for name in names:
        make_run(xu.outputs_dir("runs", name), "resnet18")
    assert xu.compare(xu.load_results(names))["original accuracy"].isna().to_list() == [False, True, True]


def test_compare_of_nothing_says_what_to_run():
    with pytest.raises(ValueError, match="results: there are none; run the notebooks 03, 04 and 05"):
        xu.compare({})


def test_nothing_trained_is_an_empty_table():
    assert xu.best_epochs({}).round(3).empty, "notebook 3 with option_epochs = 0"


def test_best_epochs_are_those_with_the_lowest_validation_loss():
    history = pd.DataFrame({"epoch": [1, 2, 3], "val_loss": [0.5, 0.2, 0.3], "val_accuracy": [0.6, 0.7, 0.9]})
    table = xu.best_epochs({"one": history, "two": history.head(1)})
    assert table.loc["one"].tolist() == [3, 2, 0.2, 0.7] and table.loc["two"].tolist() == [1, 1, 0.5, 0.6]


def test_a_missing_run_is_made_by_its_notebook_and_a_present_one_is_left(tmp_path, monkeypatch):
    import nbformat

    code = "import os, pathlib; f = pathlib.Path(os.environ['XRAY_OUTPUTS']) / 'runs' / 'vit_grouped'"
    code += "; f.mkdir(parents=True); (f / 'metrics.json').write_text('{}')"
    (tmp_path / "notebooks").mkdir()
    code += "; (f / 'labels.txt').write_text(str(labels))"
    cells = [
        nbformat.v4.new_code_cell("labels = {}", metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell(code),
    ]
    notebook = nbformat.v4.new_notebook(cells=cells)
    nbformat.write(notebook, tmp_path / "notebooks" / "05_vit.ipynb")
    monkeypatch.setattr(comparison, "repository_dir", lambda: tmp_path)
    xu.make_missing_runs(["vit_grouped"], labels={"Normais": "normal"})
    assert (xu.outputs_dir("runs", "vit_grouped") / "labels.txt").read_text() == "{'Normais': 'normal'}"
    xu.make_missing_runs(["vit_grouped"])  # a second execution would fail: the folder is there
    shutil.move(xu.outputs_dir("runs", "vit_grouped"), tmp_path / "old")
    monkeypatch.setitem(comparison.NOTEBOOKS, "small_cnn", "05_vit")
    with pytest.raises(RuntimeError, match="05_vit.ipynb did not make 'small_cnn_grouped'"):
        xu.make_missing_runs(["small_cnn_grouped"])


def test_the_results_of_the_real_runs_are_those_of_the_repository():
    assert (xu.results_dir() / "baseline_cnn_slides" / "metrics.json").is_file()


def test_a_table_is_saved_whole_or_the_old_one_stays(tmp_path, monkeypatch):
    monkeypatch.setenv("XRAY_OUTPUTS", str(tmp_path))
    table = pd.DataFrame({"accuracy": ["0.9 [0.8, 1.0]"]}, index=["baseline_cnn"])
    path = xu.save_table(table, "one_sample")
    assert path == tmp_path / "tables" / "one_sample.csv"
    pd.testing.assert_frame_equal(pd.read_csv(path, index_col=0), table)
    before = path.read_bytes()

    def full(self, target, **options):
        Path(target).write_text("half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pd.DataFrame, "to_csv", full)
    with pytest.raises(OSError, match="Free some space"):
        xu.save_table(table, "one_sample")
    assert path.read_bytes() == before and [p.name for p in path.parent.iterdir()] == ["one_sample.csv"]


RUNS = sorted((Path(__file__).resolve().parents[1] / "results" / "runs").glob("*/metrics.json"))


def test_there_are_results_of_eight_real_runs():
    assert len(RUNS) == 8


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.parent.name)
def test_the_committed_numbers_are_those_of_the_committed_answers(path):
    kept, found = json.loads(path.read_text()), xu.compute_metrics(pd.read_csv(path.with_name("predictions.csv")))
    assert kept.keys() == found.keys()
    assert {k: v for k, v in kept.items() if k != "classes"} == {
        k: pytest.approx(found[k]) for k in kept if k != "classes"
    }


def test_a_class_without_a_test_image_has_no_scores_and_is_left_out_of_the_average():
    table = make_predictions(60).query("label != 'virus'")
    report = xu.report(table)
    assert report.loc["virus", ["precision", "recall", "f1"]].isna().all() and report.loc["virus", "images"] == 0
    recalls = [table.predicted[table.label.eq(name)].eq(name).mean() for name in ("covid", "normal")]
    assert report.loc["macro avg", "recall"] == pytest.approx(np.mean(recalls))
    assert report.loc["macro avg", "f1"] == pytest.approx(xu.compute_metrics(table, resamples=9)["macro_f1"])
