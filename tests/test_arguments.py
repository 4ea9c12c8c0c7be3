"""Wrong input to any public function: an error that names the argument, the value and what is allowed."""

import inspect
import json
import re
import warnings
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import numpy as np
import pandas as pd
import phantoms
import pytest
import torch
from nbconvert import HTMLExporter
from nbformat import v4
from PIL import Image
from test_evaluation import make_predictions

import xray_utils as xu
from xray_utils._support.runs import Run
from xray_utils.comparison import Result
from xray_utils.constants import ORIGINAL
from xray_utils.lab.lungs import LungFields
from xray_utils.prepared import PreparedData, Split

matplotlib.use("Agg")
CLASSES = "covid, normal, virus"
HISTORY = pd.DataFrame(
    {"epoch": [1, 2], "train_loss": 0.9, "val_loss": [0.8, 0.7], "train_accuracy": 0.5, "val_accuracy": 0.6}
)
PREDICTIONS = make_predictions()


def make_images(folder, per_class=6, name="{label}/{i}.png"):
    """A small folder of noise, a patient an image, found and audited."""
    rng = np.random.default_rng(0)
    rows = []
    for label in xu.CLASSES:
        for i in range(per_class):
            file = name.format(label=label, i=i)
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (24, 24), dtype=np.uint8)).save(folder / file)
            rows.append({"file": file, "label": label, "patient_id": file, "source": file})
    pd.DataFrame(rows).to_csv(folder / "manifest.csv", index=False)
    return xu.audit_images(xu.find_images(folder))


@pytest.fixture(scope="module")
def things(tmp_path_factory):
    """What the calls below spoil: images, their split, their prepared set."""
    folder = tmp_path_factory.mktemp("images")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XRAY_OUTPUTS", str(tmp_path_factory.mktemp("outputs")))
        images = make_images(folder)
        split = xu.split_images(images)
        data = xu.prepare(split, size=32)
    return SimpleNamespace(images=images, split=split, data=data, folder=folder, other=images.assign(file="other.png"))


def result(**options):
    config = {"network": {"network": "vit"}, "parameters": 9, "data": {"protocol": "grouped", "train_images": 5}}
    parts = dict(name="vit", config=config, history=HISTORY, predictions=PREDICTIONS)
    return Result(**{**parts, "metrics": xu.compute_metrics(PREDICTIONS, 10), **options})


def run_of(things, folder):
    """A run that was fitted on `things.data`, as far as `save_results` looks at it."""
    folder.mkdir()
    return SimpleNamespace(folder=folder, config={"data": {"test": things.data.test.fingerprint()}})


def run():
    config = {"network": {"network": "baseline_cnn"}, "data": {"size": 32}}
    return Run("run", Path("run"), xu.baseline_cnn(), HISTORY, config)


def predictions_of(split):
    """Predictions that say of which images they are."""
    table = split.rows[["file", "label"]].assign(predicted="covid")
    table.attrs = {"fingerprint": split.fingerprint(), "images": len(split)}
    return table


def spoilt(table, row=0, **cells):
    """A copy of `table` with other cells in one row."""
    table = table.copy()
    for column, value in cells.items():
        table[column] = table[column].astype(object)
        table.loc[table.index[row], column] = value
    return table


def tables(argument, use, columns, label="label"):
    """The rows of a function that takes a table: no table, an empty one, one without a column, with wrong cells."""
    yield argument, "{'label': ['covid']}", "table", lambda t: use(t, lambda table: {"label": ["covid"]})
    yield argument, "empty", "table", lambda t: use(t, lambda table: table[:0])
    for column in columns:
        yield argument, repr(column), "is missing", lambda t, c=column: use(t, lambda table: table.drop(columns=c))
    if label in columns:
        yield argument, "'flu'", CLASSES, lambda t: use(t, lambda table: spoilt(table, **{label: "flu"}))
        yield argument, "nan", CLASSES, lambda t: use(t, lambda table: spoilt(table, **{label: np.nan}))


def whole(argument, least, call, values=("3", 1.5, None, True)):
    """The rows of an argument that is a whole number."""
    for value in (*values, least - 1, 2**32):
        yield argument, repr(value), f"whole number of at least {least}", lambda t, v=value: call(t, **{argument: v})


def images_rows(function, *columns):
    return tables("images", lambda t, spoil: function(spoil(t.images)), columns)


def predictions_rows(use, argument="predictions"):
    yield from tables(argument, lambda t, spoil: use(spoil(PREDICTIONS)), ["file", "label", "predicted"])
    wrong = {"predicted": [("flu", CLASSES), (None, CLASSES)], "p_covid": [(np.nan, "0 to 1"), (1.5, "0 to 1")]}
    wrong |= {"p_virus": [(-0.1, "0 to 1"), ("high", "0 to 1")], "group": [(None, "no value in row 0")]}
    for column, values in wrong.items():
        for value, allowed in values:
            shown = {"group": "'group'", "predicted": repr(value)}.get(column, f"{column} of '0.png' is {value}")
            call = lambda t, c=column, v=value: use(spoilt(PREDICTIONS, **{c: v}))  # noqa: E731
            yield argument, shown, allowed, call


def histories_rows(argument, use):
    yield argument, "list", "run.history" if argument == "histories" else "load_results", lambda t: use([HISTORY])
    for column in ("epoch", "val_loss", "val_accuracy"):
        name = f"{argument}['one']"
        yield name, repr(column), "is missing", lambda t, c=column: use({"one": HISTORY.drop(columns=c)})
        yield name, repr(column), "row 1", lambda t, c=column: use({"one": spoilt(HISTORY, 1, **{c: np.nan})})
    yield f"{argument}['one']", "empty", "fit", lambda t: use({"one": HISTORY[:0]})


def nothing(things):
    side = things.data.test
    return Split(side.rows[:0], side.pixels, side.positions[:0])


def few(things):
    """A prepared set in which a class has fewer patients than there are folds."""
    side = things.data.val
    return PreparedData(side, side, side, things.data.settings)


def compare(histories):
    if isinstance(histories, dict):
        histories = {name: result(history=history) for name, history in histories.items()}
    return xu.compare(histories)


def draw(function, *arguments, **options):
    return lambda t, **more: function(*(getattr(t, name) for name in arguments), **options, **more)


def sees(model):
    """`model`, which says what pixels it expects."""
    model.input_mean = model.input_std = [0.5] * 3
    return model


def without_maps():
    return sees(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 3)))


def looking(function):
    """The rows of a function that puts the images of a split through a network."""
    for value in ("vit", None, 3):
        yield "model", repr(value), "run.model", lambda t, v=value: function(v, t.data.test)
    yield "model", "Linear", "input_mean", lambda t: function(torch.nn.Linear(3, 3), t.data.test)
    for word, value in (("DataFrame", pd.DataFrame()), ("None", None), ("'test'", "test"), ("PreparedData", few)):
        value = (lambda t, v=value: v(t)) if value is few else (lambda t, v=value: v)
        yield "split", word, "data.test", lambda t, v=value: function(xu.baseline_cnn(), v(t))
    yield "split", "no images", "has some", lambda t: function(xu.baseline_cnn(), nothing(t))


def maps_of(split):
    """The arguments of `plot_saliency` for `split`."""
    table = make_predictions(len(split)).assign(file=split.rows.file)
    return split, {"a": np.ones((len(split), 4, 4))}, {"a": table}


ZEROS = np.zeros((4, 2))
ILL = pd.DataFrame({"label": ["covid", "normal", "virus", "normal"], "source": "near"})
SEEDS = pd.DataFrame({"network": ["vit"], "protocol": "slides", "seed": 0, "accuracy": 0.9})
JUDGED = xu.shortcut_table({"metadata only": PREDICTIONS})
MASKS, ONE = np.ones((1, 4, 4), bool), {"a": PREDICTIONS}
SEED = [("seed", 0)]
LOST = pd.DataFrame({"file": ["a.png"], "label": ["covid"], "group": ["a"], "split": ["train"], "mirrored": [False]})


# Of each function: argument, a word for the value, a word for what is allowed, the call.
def controls(t, **wrong):
    """A call of `add_controls` with one argument that will not do."""
    few = t.images.assign(source="one")
    features = np.ones((len(few), 2))
    return xu.add_controls(**{**dict(known=features, rows=few, others=features, other_rows=few), **wrong})


WRONG = {
    # data: find, audit, split, prepare
    "find_images": [
        ("folder", "nowhere", "Give the one that holds", lambda t: xu.find_images("nowhere")),
        ("labels", "'dog'", CLASSES, lambda t: xu.find_images(t.folder, labels={"covid": "dog"})),
        (
            "labels",
            "'nobody'",
            "'covid', 'normal', 'virus'",
            lambda t: xu.find_images(t.folder, labels={"nobody": None}),
        ),
        ("labels", "accents", "keep one", lambda t: xu.find_images(t.folder, labels={"covid": None, "COVID": "virus"})),
    ],
    "download_images": [("source", "'mnist'", "radiography", lambda t: xu.download_images("mnist"))],
    "use_images": [
        *[("source", repr(v), "Unset that first", lambda t, v=v: xu.use_images(v)) for v in ("covid-cxr", "nowhere")],
        *[("source", repr(v), "a .zip file, or None", lambda t, v=v: xu.use_images(v)) for v in (3, ["a"], b"a")],
    ],
    "audit_images": [("images", "lost its folder", "find_images", lambda t: xu.audit_images(LOST))],
    "label_conflicts": [*images_rows(xu.label_conflicts, "file", "label", "alike", "duplicate", "sha256")],
    "read_image": [("", "manifest.csv", "image", lambda t: xu.read_image(t.folder / "manifest.csv"))],
    "resize": [
        ("image", "None", "read_image", lambda t: xu.resize(None)),
        ("size", "4097", "at most 4,096", lambda t: xu.resize(Image.new("L", (9, 9)), 4097)),
    ],
    "split_images": [
        *images_rows(xu.split_images, "file", "label", "group"),
        ("images", "'group'", "no value", lambda t: xu.split_images(spoilt(t.images, group=None))),
        ("images", "repeated", "one row an image", lambda t: xu.split_images(pd.concat([t.images, t.images]))),
        ("protocol", "'random'", "'grouped', 'slides'", lambda t: xu.split_images(t.images, "random")),
        ("mirror", "'no'", "True or False", lambda t: xu.split_images(t.images, mirror="no")),
        *[
            ("fractions", str(f), "add up to 1", lambda t, f=f: xu.split_images(t.images, fractions=f))
            for f in (None, 0.7, "abc", (0.7, 0.3), (0.5, 0.5, 0), (0.9, 0.9, 0.9), (0.7, float("nan"), 0.1))
        ],
        *whole("seed", 0, draw(xu.split_images, "images")),
    ],
    "count_split": [
        *tables("split", lambda t, spoil: xu.count_split(spoil(t.split)), ["label", "split"]),
        ("split", "'dev'", "train, val, test", lambda t: xu.count_split(spoilt(t.split, split="dev"))),
    ],
    "describe_images": [*images_rows(xu.describe_images, "label", "group")],
    "prepare": [
        ("images", "'split'", "split_images", lambda t: xu.prepare(t.images)),
        ("images", "'val'", "too few", lambda t: xu.prepare(t.split[t.split.split.ne("val")])),
        *whole("size", 1, draw(xu.prepare, "split")),
    ],
    "load_data": [
        ("protocol", "'random'", "'grouped', 'slides'", lambda t: xu.load_data("random")),
        ("mirror", "1", "True or False", lambda t: xu.load_data(mirror=1)),
        *whole("seed", 0, lambda t, **options: xu.load_data(**options)),
        ("size", "0", "at least 1", lambda t: xu.load_data(size=0)),
        ("labels", "'covid'", "Normais", lambda t: xu.load_data(labels="covid")),
    ],
    # networks
    "baseline_cnn": [*whole("num_classes", 2, draw(xu.baseline_cnn)), *whole("seed", 0, draw(xu.baseline_cnn))],
    "resnet18": [
        *whole("num_classes", 2, draw(xu.resnet18)),
        *whole("seed", 0, draw(xu.resnet18)),
        ("weights", "nowhere.pth", ".safetensors or .pth", lambda t: xu.resnet18("nowhere.pth")),
    ],
    "vit": [
        *whole("num_classes", 2, draw(xu.vit, weights=None)),
        *whole("seed", 0, draw(xu.vit, weights=None)),
    ],
    "vit_weights": [("is_sample", "1", "True or False", lambda t: xu.vit_weights(1))],
    "add_controls": [
        ("counts", "list of numbers", "(0, 2, 4)", lambda t: controls(t, counts=3)),
        ("counts", "99", "others left", lambda t: controls(t, counts=(0, 99))),
        ("known", "features", "rows", lambda t: controls(t, known=np.ones(3))),
        ("others", "features", "known", lambda t: controls(t, others=np.ones((2, 2)))),
        ("weight", "0", "a positive number", lambda t: controls(t, weight=0)),
        *whole("draws", 1, lambda t, **options: controls(t, **options)),
        *whole("seed", 0, lambda t, **options: controls(t, **options)),
        ("rows", "None", "find_images", lambda t: controls(t, rows=None)),
        ("other_rows", "None", "find_images", lambda t: controls(t, other_rows=None)),
    ],
    "controls_table": [
        ("answers", "'draw'", "add_controls", lambda t: xu.controls_table(PREDICTIONS.assign(added=0))),
        *whole("resamples", 1, lambda t, **options: xu.controls_table(PREDICTIONS.assign(added=0, draw=0), **options)),
        *whole("seed", 0, lambda t, **options: xu.controls_table(PREDICTIONS.assign(added=0, draw=0), **options)),
    ],
    "plot_controls": [("tables", "None", "controls_table", lambda t: xu.plot_controls(None))],
    "plot_differences": [
        ("differences", "NoneType", "interval", lambda t: xu.plot_differences(None)),
        ("differences['a']", "keys", "interval", lambda t: xu.plot_differences({"a": {"mean": 1}})),
    ],
    "credit_line": [("rows", "None", "find_images", lambda t: xu.credit_line(None))],
    "count_parameters": [("model", "'vit'", "torch.nn.Module", lambda t: xu.count_parameters("vit"))],
    # training
    "fit": [
        ("model", "None", "baseline_cnn()", lambda t: xu.fit(None, t.data, "run")),
        ("data", "None", "load_data", lambda t: xu.fit(xu.baseline_cnn(), None, "run")),
        ("data", "Split", "load_data", lambda t: xu.fit(xu.baseline_cnn(), t.data.train, "run")),
        *[("name", repr(v), "plain", lambda t, v=v: xu.fit(xu.baseline_cnn(), t.data, v)) for v in (None, 3, "a\0b")],
        (
            "class_weights",
            "'yes'",
            "True or False",
            lambda t: xu.fit(xu.baseline_cnn(), t.data, "run", class_weights="yes"),
        ),
        ("epochs", "0", "at least 1", lambda t: xu.fit(xu.baseline_cnn(), t.data, "run", epochs=0)),
        (
            "augment",
            "'wild'",
            "'strong'",
            lambda t: xu.fit(xu.baseline_cnn(), t.data, "run", 1, batch_size=2, augment="wild"),
        ),
        ("early_stopping", "'3'", "or None", lambda t: xu.fit(xu.baseline_cnn(), t.data, "run", early_stopping="3")),
        ("model", "input_mean", "[0.5] * 3", lambda t: xu.fit(torch.nn.Linear(3, 3), t.data, "run", batch_size=2)),
    ],
    "estimate_time": [
        ("data", "DataFrame", "prepare", lambda t: xu.estimate_time(xu.baseline_cnn(), t.split, 1)),
        ("epochs", "0", "at least 1", lambda t: xu.estimate_time(xu.baseline_cnn(), t.data, 0, 2)),
        ("batch_size", "1000", "at most", lambda t: xu.estimate_time(xu.baseline_cnn(), t.data, 1, 1000)),
        ("precision", "'int8'", "'bf16'", lambda t: xu.estimate_time(xu.baseline_cnn(), t.data, 1, 2, "int8")),
    ],
    "load_run": [("run", "'nothing'", "Train it first", lambda t: xu.load_run("nothing"))],
    "predict": [
        *looking(xu.predict),
        *whole("batch_size", 1, lambda t, **options: xu.predict(xu.baseline_cnn(), t.data.test, **options)),
    ],
    # an image of one's own, export
    "classify": [
        *[("image", w, "bytes", lambda t, v=v: xu.classify(v, run())) for w, v in (("int", 3), ("NoneType", None))],
        ("image", "'nowhere.png'", "path of an X-ray", lambda t: xu.classify("nowhere.png", run())),
        ("image", "no image", "PNG", lambda t: xu.classify(b"no image", run())),
        ("run", "dict", "load_run", lambda t: xu.classify("nowhere.png", {})),
        ("run", "'nothing'", "Train it first", lambda t: xu.classify("nowhere.png", "nothing")),
    ],
    "image_form": [("run", "NoneType", "load_run", lambda t: xu.image_form(None))],
    "export_model": [("run", "Sequential", "load_run", lambda t: xu.export_model(xu.baseline_cnn()))],
    "plot_classification": [("answer", "Series", "classify", lambda t: xu.plot_classification(pd.Series([1.0])))],
    # predictions and results
    "report": [*predictions_rows(xu.report)],
    "compute_metrics": [
        *predictions_rows(xu.compute_metrics),
        *whole("resamples", 1, lambda t, **options: xu.compute_metrics(PREDICTIONS, **options)),
        *whole("seed", 0, lambda t, **options: xu.compute_metrics(PREDICTIONS, **options)),
    ],
    "compare_with_original": [
        *predictions_rows(lambda table: xu.compare_with_original(table, "vit")),
        (
            "network",
            "'alexnet'",
            ", ".join(map(repr, ORIGINAL)),
            lambda t: xu.compare_with_original(PREDICTIONS, "alexnet"),
        ),
    ],
    "best_epochs": [*histories_rows("histories", xu.best_epochs)],
    "save_results": [*predictions_rows(lambda table: xu.save_results(None, table))],  # more below
    "load_results": [
        ("names", "'vit_grouped'", "list of run names", lambda t: xu.load_results("vit_grouped")),
        ("names", "'../vit_grouped'", "list of run names", lambda t: xu.load_results(["../vit_grouped"])),
        ("names", "3", "list of run names", lambda t: xu.load_results([3])),
        ("names", "'alexnet'", "vit", lambda t: xu.load_results(["alexnet"])),
        ("names", "'vi*'", "vit", lambda t: xu.load_results(["vi*"])),
        ("folder", "'nowhere'", "run folders, or None", lambda t: xu.load_results(["vit_grouped"], "nowhere")),
    ],
    "make_missing_runs": [
        ("names", "'vit_grouped'", "list of run names", lambda t: xu.make_missing_runs("vit_grouped")),
        ("names", "'alexnet'", "vit", lambda t: xu.make_missing_runs(["vit_grouped", "alexnet"])),
        ("labels", "3", "Normais", lambda t: xu.make_missing_runs(["vit_grouped"], labels=3)),
        ("names", "'vit_slides'", "..._grouped", lambda t: xu.make_missing_runs(["vit_grouped", "vit_slides"])),
    ],
    "compare": [*histories_rows("results", compare), ("results", "none", "notebooks 03", lambda t: xu.compare({}))],
    "compare_two": [
        *predictions_rows(lambda table: xu.compare_two(table, PREDICTIONS), "first"),
        *predictions_rows(lambda table: xu.compare_two(PREDICTIONS, table), "second"),
        ("statistic", "'auc_flu'", "auc_covid", lambda t: xu.compare_two(PREDICTIONS, PREDICTIONS, "auc_flu")),
        *whole("resamples", 1, lambda t, **options: xu.compare_two(PREDICTIONS, PREDICTIONS, **options)),
        *whole("seed", 0, lambda t, **options: xu.compare_two(PREDICTIONS, PREDICTIONS, **options)),
    ],
    "compare_pairs": [
        ("tables", "list", "{'name'", lambda t: xu.compare_pairs([PREDICTIONS])),
        *predictions_rows(lambda table: xu.compare_pairs({"one": PREDICTIONS, "two": table}), "tables['two']"),
    ],
    "metrics_table": [("metrics", "this dict", "save_results", lambda t: xu.metrics_table({}))],
    "calibration_error": [
        *predictions_rows(xu.calibration_error),
        ("predictions", "'p_virus'", "is missing", lambda t: xu.calibration_error(PREDICTIONS.drop(columns="p_virus"))),
        *whole("bins", 1, lambda t, **options: xu.calibration_error(PREDICTIONS, **options)),
    ],
    "fit_temperature": [
        *predictions_rows(xu.fit_temperature, "validation"),
        ("validation", "'p_virus'", "is missing", lambda t: xu.fit_temperature(PREDICTIONS.drop(columns="p_virus"))),
    ],
    "apply_temperature": [
        *predictions_rows(lambda table: xu.apply_temperature(table, 1)),
        *[
            ("temperature", repr(value), "positive number", lambda t, v=value: xu.apply_temperature(PREDICTIONS, v))
            for value in (0, -1.5, float("nan"), float("inf"))
        ],
    ],
    "with_interval": [
        ("key", "'loss'", "'accuracy', 'balanced_accuracy'", lambda t: xu.with_interval(result().metrics, "loss")),
    ],
    # figures
    "plot_examples": [
        *images_rows(xu.plot_examples, "file", "label"),
        ("images", "none of them", "problem", lambda t: xu.plot_examples(t.images.assign(problem="broken"))),
        *whole("per_class", 1, draw(xu.plot_examples, "images")),
        *whole("seed", 0, draw(xu.plot_examples, "images")),
    ],
    "plot_class_balance": [*images_rows(xu.plot_class_balance, "file", "label", "group")],
    "plot_network": [
        ("model", "'resnet18'", "baseline_cnn()", lambda t: xu.plot_network("resnet18")),
        ("size", "0", "at least 1", lambda t: xu.plot_network(xu.baseline_cnn(), size=0)),
    ],
    "plot_residual_block": [
        ("block", "'layer1'", "layer1[0]", lambda t: xu.plot_residual_block("layer1")),
        ("block", "0 sums", "layer1[0]", lambda t: xu.plot_residual_block(xu.baseline_cnn())),
    ],
    "save_figure": [
        ("figure", "DataFrame", "matplotlib Figure", lambda t: xu.save_figure(t.images, "images")),
        ("name", "'../up'", "plain file name", lambda t: xu.save_figure(xu.plot_class_balance(t.images), "../up")),
    ],
    "plot_sizes": [*images_rows(xu.plot_sizes, "label", "width", "height")],
    "plot_colour": [*images_rows(xu.plot_colour, "label", "mode", "tint")],
    "plot_mean_images": [
        *images_rows(xu.plot_mean_images, "file", "label"),
        *whole("size", 1, draw(xu.plot_mean_images, "images")),
        *whole("at_most", 1, draw(xu.plot_mean_images, "images")),
    ],
    "plot_images_per_patient": [*images_rows(xu.plot_images_per_patient, "label", "group")],
    "plot_preparation": [
        *tables("images", lambda t, spoil: xu.plot_preparation(spoil(t.images), t.data), ["file", "mode"]),
        ("images", ".png' of data", "made from", lambda t: xu.plot_preparation(t.other, t.data)),
        ("data", "DataFrame", "prepare", lambda t: xu.plot_preparation(t.images, t.split)),
        *whole("count", 1, draw(xu.plot_preparation, "images", "data")),
        *whole("seed", 0, draw(xu.plot_preparation, "images", "data")),
    ],
    "plot_mirroring": [
        ("data", "DataFrame", "prepare", lambda t: xu.plot_mirroring(t.split)),
        *whole("seed", 0, draw(xu.plot_mirroring, "data")),
    ],
    "plot_split": [
        ("splits", "DataFrame", '{"name": table', lambda t: xu.plot_split(t.split)),
        ("splits", "in this dict", '{"name": table', lambda t: xu.plot_split({})),
        *tables("splits['a']", lambda t, spoil: xu.plot_split({"a": spoil(t.split)}), ["label", "split"]),
        ("splits['a']", "'dev'", "train, val, test", lambda t: xu.plot_split({"a": spoilt(t.split, split="dev")})),
    ],
    "plot_patches": [
        *[
            ("pixels", word, "uint8 [H, W, 3]", lambda t, p=pixels: xu.plot_patches(p, 8))
            for word, pixels in {
                "list": [[0]],
                "float64 (8, 8, 3)": np.full((8, 8, 3), np.nan),
                "uint8 (8, 8)": np.zeros((8, 8), np.uint8),
                "uint8 (8, 8, 4)": np.zeros((8, 8, 4), np.uint8),
            }.items()
        ],
        ("patch_size", "5", "8x8 pixels", lambda t: xu.plot_patches(np.zeros((8, 8, 3), np.uint8), 5)),
        *whole("patch_size", 1, lambda t, **options: xu.plot_patches(np.zeros((8, 8, 3), np.uint8), **options)),
    ],
    "plot_history": [
        ("histories", "in this dict", "run.history", lambda t: xu.plot_history({})),
        ("histories['one']", "[1, 2]", "fit", lambda t: xu.plot_history({"one": [1, 2]})),
        *[
            ("histories['one']", repr(c), "missing", lambda t, c=c: xu.plot_history({"one": HISTORY.drop(columns=c)}))
            for c in HISTORY
        ],
        ("histories['']", "'val_loss'", "row 0", lambda t: xu.plot_history(HISTORY.assign(val_loss=np.nan))),
        ("histories['']", "empty", "fit", lambda t: xu.plot_history(HISTORY[:0])),
    ],
    "plot_confusion_matrix": [
        *list(predictions_rows(xu.plot_confusion_matrix))[1:],  # a dict may hold tables
        ("predictions['label']", "['covid']", "predict", lambda t: xu.plot_confusion_matrix({"label": ["covid"]})),
        *predictions_rows(
            lambda table: xu.plot_confusion_matrix({"one": PREDICTIONS, "two": table}), "predictions['two']"
        ),
        ("predictions", "in this dict", "predict", lambda t: xu.plot_confusion_matrix({})),
    ],
    "plot_roc": [
        *predictions_rows(xu.plot_roc),
        ("predictions", "'p_virus'", "is missing", lambda t: xu.plot_roc(PREDICTIONS.drop(columns="p_virus"))),
    ],
    "plot_reliability": [
        ("predictions", "this dict", "{'name'", lambda t: xu.plot_reliability({})),
        *predictions_rows(lambda table: xu.plot_reliability({"one": PREDICTIONS, "two": table}), "predictions['two']"),
    ],
    # experiments
    "change_split": [
        ("split", "'test'", "data.test", lambda t: xu.change_split("test", "grey")),
        ("change", "'sepia'", "'heavy blur'", lambda t: xu.change_split(t.data.test, "sepia")),
    ],
    "change_data": [
        ("data", "Split", "load_data", lambda t: xu.change_data(t.data.test, "grey")),
        ("change", "None", "'heavy blur'", lambda t: xu.change_data(t.data, None)),
    ],
    "save_table": [
        ("table", "[1]", "DataFrame", lambda t: xu.save_table([1], "one")),
        *[
            ("name", repr(name), "plain file name", lambda t, name=name: xu.save_table(HISTORY, name))
            for name in ("../one", "a/b", "", None)
        ],
    ],
    "summarise": [
        (
            "baselines",
            "'balanced accuracy'",
            "shortcut_table",
            lambda t: xu.summarise(HISTORY, {"as it is": PREDICTIONS}),
        ),
        ("answers", "'grey'", "'as it is'", lambda t: xu.summarise(JUDGED, {"grey": PREDICTIONS})),
        ("answers", "list", "predict", lambda t: xu.summarise(JUDGED, [PREDICTIONS])),
        (
            "retrained",
            "'grey'",
            "'as it is'",
            lambda t: xu.summarise(JUDGED, {"as it is": PREDICTIONS}, {"grey": PREDICTIONS}),
        ),
    ],
    "plant_marker": [
        ("split", "DataFrame", "data.test", lambda t: xu.plant_marker(t.split)),
        *[("share", repr(v), "0.5", lambda t, v=v: xu.plant_marker(t.data.test, share=v)) for v in (0, -1, 0.6)],
    ],
    "cross_validate": [
        *tables(
            "rows", lambda t, spoil: xu.cross_validate(np.zeros((18, 1)), spoil(t.images)), ["file", "label", "group"]
        ),
        ("folds", "5", "groups of class", lambda t: xu.cross_validate(np.zeros((3, 1)), t.images[::6])),
    ],
    "shortcut_baselines": [
        ("data", "DataFrame", "load_data", lambda t: xu.shortcut_baselines(t.split)),
        ("folds", "5", "groups of class", lambda t: xu.shortcut_baselines(few(t))),
    ],
    "shortcut_table": [
        ("experiments", "this dict", "shortcut_baselines", lambda t: xu.shortcut_table({})),
        *predictions_rows(lambda table: xu.shortcut_table({"metadata only": table}), "experiments['metadata only']"),
    ],
    "verdict": [("table", "'metadata only'", "shortcut_table", lambda t: xu.verdict(pd.DataFrame({"low": [1]})))],
    "load_external": [
        ("folder", "nowhere", "Give the one that holds", lambda t: xu.load_external("nowhere", t.images)),
        ("images", "'problem'", "audit_images", lambda t: xu.load_external(t.folder, t.images.drop(columns="problem"))),
        ("folder", "no image that training does not know", "", lambda t: xu.load_external(t.folder, t.images)),
        ("labels", "'flu'", CLASSES, lambda t: xu.load_external(t.folder, t.images, labels={"covid": "flu"})),
        *whole("size", 1, lambda t, **options: xu.load_external(t.folder, t.images, **options)),
    ],
    # remedies
    "covid_vs_normal": [
        *predictions_rows(lambda table: xu.covid_vs_normal(table)),
        ("positive", "'flu'", "'covid', 'virus'", lambda t: xu.covid_vs_normal(PREDICTIONS, "flu")),
        ("predictions", "'source'", "is missing", lambda t: xu.covid_vs_normal(PREDICTIONS, within=True)),
        ("predictions", "'p_virus'", "is missing", lambda t: xu.covid_vs_normal(PREDICTIONS.drop(columns="p_virus"))),
    ],
    "within_sources": [
        *tables("rows", lambda t, spoil: xu.within_sources(spoil(t.images)), ["label", "source"]),
        ("rows", "no source", "normal and other", lambda t: xu.within_sources(t.images)),
    ],
    "shared_sources": [
        ("data", "DataFrame", "prepare", lambda t: xu.shared_sources(t.images)),
        ("rows", "no source", "normal and other", lambda t: xu.shared_sources(t.data)),
    ],
    "features": [
        *looking(xu.features),
        ("model", "Flatten", "linear layer", lambda t: xu.features(sees(torch.nn.Flatten()), t.data.test)),
        *whole("batch_size", 1, lambda t, **options: xu.features(xu.baseline_cnn(), t.data.test, **options)),
    ],
    "pneumonia_scores": [
        *tables("rows", lambda t, spoil: xu.pneumonia_scores(ZEROS, spoil(ILL), ZEROS), ["label", "source"]),
        ("known", "(3, 2)", "4 rows", lambda t: xu.pneumonia_scores(ZEROS[:3], ILL, ZEROS)),
        ("others", "(4, 1)", "2", lambda t: xu.pneumonia_scores(ZEROS, ILL, ZEROS[:, :1])),
    ],
    "covid_auc": [
        *tables("rows", lambda t, spoil: xu.covid_auc(spoil(ILL.assign(file="a")), [0, 0, 0, 0]), ["file", "label"]),
        ("scores", "(3,)", "4", lambda t: xu.covid_auc(ILL.assign(file="a"), [0, 0, 0])),
    ],
    "uncertainty": [
        *predictions_rows(lambda table: xu.uncertainty(table, np.zeros(len(PREDICTIONS)))),
        ("pneumonia", "(2,)", "one number for each", lambda t: xu.uncertainty(PREDICTIONS, [1, 2])),
    ],
    "risk_coverage": [
        *predictions_rows(lambda table: xu.risk_coverage(table, np.zeros(len(PREDICTIONS)))),
        ("scores", "(2,)", "one number for each", lambda t: xu.risk_coverage(PREDICTIONS, [1, 2])),
    ],
    "abstain": [
        *predictions_rows(lambda table: xu.abstain(table, np.zeros(len(PREDICTIONS)), 0)),
        ("scores", "(2,)", "one number for each", lambda t: xu.abstain(PREDICTIONS, [1, 2], 0)),
    ],
    "plot_risk_coverage": [
        ("tables", "list", "'name'", lambda t: xu.plot_risk_coverage([PREDICTIONS], {}, 0)),
        ("uncertainty", "['b']", "['a']", lambda t: xu.plot_risk_coverage(ONE, {"b": []}, 0)),
    ],
    "seed_table": [*tables("seeds", lambda t, spoil: xu.seed_table(spoil(SEEDS)), SEEDS, label=None)],
    "plot_seeds": [*tables("seeds", lambda t, spoil: xu.plot_seeds(spoil(SEEDS)), SEEDS, label=None)],
    # where a network looks
    "grad_cam": [
        *looking(xu.grad_cam),
        ("target", "'flu'", CLASSES, lambda t: xu.grad_cam(xu.baseline_cnn(), t.data.test, "flu")),
        ("target", "['covid']", "one for each", lambda t: xu.grad_cam(xu.baseline_cnn(), t.data.test, ["covid"])),
        ("model", "none of its layers", "maps or tokens", lambda t: xu.grad_cam(without_maps(), t.data.test)),
        ("layer", "'9'", "[B, C, h, w]", lambda t: xu.grad_cam(xu.baseline_cnn(), t.data.test, layer="9")),
        *whole("batch_size", 1, lambda t, **options: xu.grad_cam(xu.baseline_cnn(), t.data.test, **options)),
    ],
    "attention_rollout": [
        *looking(xu.attention_rollout),
        ("model", "Sequential", "use grad_cam", lambda t: xu.attention_rollout(xu.baseline_cnn(), t.data.test)),
    ],
    "saliency_maps": [
        *looking(xu.saliency_maps),
        ("target", "'covid'", "ViT", lambda t: xu.saliency_maps(xu.vit(weights=None), t.data.test, "covid")),
    ],
    "sanity_check": [
        *looking(xu.sanity_check),
        ("model", "none of its layers", "maps or tokens", lambda t: xu.sanity_check(without_maps(), t.data.test)),
        *whole("seed", 0, lambda t, **options: xu.sanity_check(xu.baseline_cnn(), t.data.test, **options)),
    ],
    "lung_fields": [
        ("pixels", "list", "uint8 [B, H, W, 3]", lambda t: xu.lung_fields([[0]])),
        ("pixels", "float64 (1, 8, 8, 3)", "uint8 [B, H, W, 3]", lambda t: xu.lung_fields(np.ones((1, 8, 8, 3)))),
        ("pixels", "uint8 (8, 8, 3)", "[B, H, W, 3]", lambda t: xu.lung_fields(np.ones((8, 8, 3), np.uint8))),
        ("pixels", "(0, 8, 8, 3)", "at least one", lambda t: xu.lung_fields(np.ones((0, 8, 8, 3), np.uint8))),
    ],
    "equalise": [("pixels", "list", "uint8 [B, H, W, 3]", lambda t: xu.equalise([[0]]))],
    "lung_box": [("pixels", "list", "uint8 [B, H, W, 3]", lambda t: xu.lung_box([[0]]))],
    "crop_lungs": [
        ("pixels", "list", "uint8 [B, H, W, 3]", lambda t: xu.crop_lungs([[0]])),
        *[
            ("margin", repr(m), "from 0 to 1", lambda t, m=m: xu.crop_lungs(np.ones((1, 8, 8, 3), np.uint8), m))
            for m in (-0.1, None)
        ],
    ],
    "share_in_lungs": [
        ("maps", "(4, 4)", "[B, H, W]", lambda t: xu.share_in_lungs(MASKS[0], MASKS)),
        ("maps", "(1, 4, 4)", "from 0 on", lambda t: xu.share_in_lungs(MASKS - 0.5 - MASKS, MASKS)),
        ("maps", "(1, 4, 4)", "from 0 on", lambda t: xu.share_in_lungs(MASKS * np.nan, MASKS)),
        ("masks", "float64", "bool (1, 4, 4)", lambda t: xu.share_in_lungs(MASKS * 1.0, MASKS * 1.0)),
        ("masks", "(1, 4, 2)", "bool (1, 4, 4)", lambda t: xu.share_in_lungs(MASKS * 1.0, MASKS[..., :2])),
    ],
    "grouped_mean": [
        ("groups", "1 of them", "one an image", lambda t: xu.grouped_mean(HISTORY, ["a"])),
        ("table", "no row", "nothing to average", lambda t: xu.grouped_mean(HISTORY * np.nan, ["a", "b"])),
        *whole("resamples", 1, lambda t, **options: xu.grouped_mean(HISTORY, ["a", "b"], **options)),
        *whole("seed", 0, lambda t, **options: xu.grouped_mean(HISTORY, ["a", "b"], **options)),
    ],
    "plot_saliency": [
        ("maps", "this list", "saliency_maps", lambda t: xu.plot_saliency(t.data.test, [], {})),
        ("predictions", "this dict", "predict", lambda t: xu.plot_saliency(t.data.test, {"a": MASKS}, {})),
        ("predictions['a']", "same images", "one split", lambda t: xu.plot_saliency(t.data.test, {"a": MASKS}, ONE)),
        (
            "which",
            "'best'",
            "'wrong', 'correct'",
            lambda t: xu.plot_saliency(t.data.test, {"a": MASKS}, ONE, which="best"),
        ),
        *whole("count", 1, lambda t, **options: xu.plot_saliency(t.data.test, {"a": MASKS}, ONE, **options)),
        (
            "lungs",
            "1 masks",
            "of all of them",
            lambda t: xu.plot_saliency(*maps_of(t.data.test), LungFields(MASKS, 1, 1)),
        ),
    ],
    "plot_experiments": [("table", "'expected'", "shortcut_table", lambda t: xu.plot_experiments(HISTORY))],
    "plot_internal_external": [
        *predictions_rows(lambda table: xu.plot_internal_external(table, PREDICTIONS), "internal"),
        *predictions_rows(lambda table: xu.plot_internal_external(PREDICTIONS, table), "external"),
    ],
    "plot_comparison": [
        *tables(
            "table",
            lambda t, spoil: xu.plot_comparison(spoil(xu.compare({"vit": result()}))),
            ["network", "accuracy", "accuracy 95 %"],
        ),
    ],
}
NOTHING_TO_CHECK = {  # functions without arguments, or that take anything
    "check_environment": "no argument",
    "data_dir": "no argument; XRAY_DATA is tested in test_split",
    "results_dir": "no argument",
    "external_dir": "no argument; XRAY_EXTERNAL is tested in test_explain",
    "outputs_dir": "parts of any path",
    "default_size": "asks is_sample",
    "is_sample": "asks a table where it came from; any that does not know is none of the sample",
}


def test_every_public_function_has_its_rows():
    public = {name for name in dir(xu) if inspect.isfunction(getattr(xu, name)) and not name.startswith("_")}
    assert public == WRONG.keys() | NOTHING_TO_CHECK.keys()
    assert not WRONG.keys() & NOTHING_TO_CHECK.keys() and all(WRONG.values())
    for name, reason in NOTHING_TO_CHECK.items():
        assert reason.startswith("no argument") == (not inspect.signature(getattr(xu, name)).parameters), name


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_is_named_with_what_is_allowed(name, things):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for argument, value, allowed, call in WRONG[name]:
            with pytest.raises((ValueError, OSError)) as caught:
                call(things)
            message = str(caught.value)
            assert message.startswith(f"{argument}: " if argument else ""), message
            assert value in message and allowed in message, f"{value} / {allowed}: {message}"
    assert matplotlib.pyplot.get_fignums() == [], "a refused figure is left open"


@pytest.mark.parametrize(
    ("options", "argument"),
    [(dict(label="flu"), "label: 'flu'"), (dict(label=None), "label: None"), (dict(size=(8, 64)), "size: (8, 64)")],
)
def test_phantoms_refuse_what_they_cannot_draw(options, argument):
    with pytest.raises(ValueError, match=re.escape(argument)):
        phantoms.draw_phantom(**{"label": "covid", "seed": 0, **options})


# ---------------------------------------------------------------- what does not belong together


def test_results_of_other_images_are_refused(things, tmp_path):
    run, data = run_of(things, tmp_path / "run"), things.data
    for table in (
        predictions_of(data.val),
        predictions_of(data.train),
        predictions_of(data.test)[:-1],
        pd.concat([predictions_of(data.test)] * 2),
    ):
        with pytest.raises(ValueError, match=rf"predictions: {len(table)} rows, the first of .* 'run'; pass predict"):
            xu.save_results(run, table)
    assert list(run.folder.iterdir()) == [], "a refused table is to leave nothing behind"
    xu.save_results(run, predictions_of(data.test).sample(frac=1, random_state=0))
    xu.save_results(run, pd.DataFrame(predictions_of(data.test).to_dict("list")))  # one that says nothing is believed


def test_beside_the_original_says_that_the_images_are_others(capsys):
    xu.compare_with_original(PREDICTIONS, "vit")
    assert "Other test images: 60 here, 180 in the original." in capsys.readouterr().out
    xu.compare_with_original(PREDICTIONS, "resnet18")
    assert "60 here, 360 in the original." in capsys.readouterr().out


def test_a_comparison_shows_which_runs_had_the_same_test_images():
    def on(test, network="vit"):
        config = result().config
        data = {**config["data"], "test": test}
        return result(config={**config, "network": {"network": network}, "data": data})

    table = xu.compare({"vit_slides": on("abcdef0"), "b": on("abcdef0", "Sequential"), "vit_slides-2": on("fedcba0")})
    assert table["test set"].to_list() == ["abcdef", "abcdef", "fedcba"]
    assert table["original accuracy"].isna().to_list() == [False, True, False]  # none for a network of one's own
    xu.plot_comparison(table)


# ---------------------------------------------------------------- broken images, absent classes, odd names


def test_unreadable_images_are_left_out_of_the_figures(tmp_path):
    images = make_images(tmp_path, per_class=11)
    broken = images.file[0]
    (tmp_path / broken).write_bytes(b"broken")
    found = xu.find_images(tmp_path)
    titles = [axis.get_title() for axis in xu.plot_examples(found, per_class=11).axes]
    assert titles.count("cannot be read") == 1 and titles.count("24 x 24") == 32
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        audited = xu.audit_images(found)
        for plot in (xu.plot_examples, xu.plot_sizes, xu.plot_colour, xu.plot_mean_images):  # all 24 x 24, too
            plot(audited).canvas.draw()
        points = xu.plot_sizes(audited).axes[0].collections
    assert sum(len(part.get_offsets()) for part in points) == 32


def test_a_class_may_be_absent(things):
    images = things.images[things.images.label.ne("virus")]
    texts = [text.get_text() for text in xu.plot_class_balance(images).findobj(matplotlib.text.Text)]
    assert "0\nimages" in texts and "0\npatients" in texts
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in ("examples", "class_balance", "sizes", "colour", "mean_images", "images_per_patient"):
            figure = getattr(xu, f"plot_{name}")(images)
            figure.canvas.draw()
            assert not any("nan" in text.get_text() for text in figure.findobj(matplotlib.text.Text)), name


def test_a_name_with_a_dollar_is_no_formula():
    name = r"$\frac{a$ und $b$"
    figures = [
        xu.plot_history({name: HISTORY, "two": HISTORY}),
        xu.plot_confusion_matrix({name: PREDICTIONS}),
        xu.plot_confusion_matrix(PREDICTIONS, title=name),
        xu.plot_split({name: LOST}),
        xu.plot_comparison(xu.compare({name: result()})),
    ]
    for figure in figures:
        figure.canvas.draw()  # a broken formula fails here
        texts = [text for text in figure.findobj(matplotlib.text.Text) if "frac" in text.get_text()]
        assert texts and all(name in text.get_text() and not text.get_parse_math() for text in texts)


def test_twelve_histories_are_all_drawn():
    assert len(xu.plot_history({str(i): HISTORY for i in range(12)}).axes[0].lines) == 36


NASTY = ['=HYPERLINK("http://x","y")', "+1+1", "-2+3", "@SUM(1)", "\t=1", "\r=1", "'=1", "''@x", "'plain", "NA", "007"]


def test_odd_cells_come_back_as_they_were(things, tmp_path):
    table = make_predictions(n=len(NASTY)).assign(file=NASTY, group=NASTY, source=NASTY)
    run = run_of(things, tmp_path / "vit_grouped")
    (run.folder / "config.json").write_text(json.dumps(run.config))
    HISTORY.to_csv(run.folder / "history.csv", index=False)
    xu.save_results(run, table)
    again = xu.load_results(["vit_grouped"], tmp_path)["vit_grouped"].predictions
    pd.testing.assert_frame_equal(again, table, check_exact=True)


def test_pages_escape_what_comes_from_file_names(tmp_path):
    script = "<img src=x onerror=alert(1)>"
    images = make_images(tmp_path, name="{label}_{i}_" + script + ".png")
    assert images.file.str.contains("<img", regex=False).all()
    predictions = images[["file", "label", "group", "source"]].assign(predicted="covid")
    shown = [images, predictions, xu.compare({script: result(name=script)}), xu.count_split(xu.split_images(images))]
    outputs = [v4.new_output("display_data", {"text/html": table._repr_html_()}) for table in shown]
    outputs += [v4.new_output("stream", text=f"{text}\n") for text in (images.file[0], xu.describe_images(images))]
    style = xu.compare_with_original(predictions, "vit").style.format(precision=2, na_rep="")
    outputs.append(v4.new_output("display_data", {"text/html": style.to_html()}))
    outputs.append(v4.new_output("error", ename="ValueError", evalue=script, traceback=[f"ValueError: {script}"]))
    page, _ = HTMLExporter().from_notebook_node(v4.new_notebook(cells=[v4.new_code_cell("1", outputs=outputs)]))
    assert "onerror=alert(1)" in page and "<img src=x" not in page


def test_a_preparation_of_more_images_than_there_are_shows_all(things):
    train = Split(things.data.train.rows[:2], things.data.train.pixels, things.data.train.positions[:2])
    few = PreparedData(train, train, train, things.data.settings)
    assert len(xu.plot_preparation(things.images, few, count=4).axes) == 8


def test_a_wrong_protocol_is_named_before_any_image_is_read(monkeypatch):
    monkeypatch.setenv("XRAY_DATA", "nowhere")
    with pytest.raises(ValueError, match="protocol: 'random'"):
        xu.load_data("random")
