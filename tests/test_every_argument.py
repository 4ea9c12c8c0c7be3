"""Every argument of every public function, with what no argument takes: the error begins with the argument's name."""

import contextlib
import inspect
import io
import warnings
from types import SimpleNamespace

import matplotlib
import numpy as np
import pandas as pd
import pytest
from test_arguments import HISTORY, ILL, PREDICTIONS, SEEDS, make_images, result
from test_evaluation import make_predictions

import xray_utils as xu
from xray_utils._support.runs import Run
from xray_utils.lab.lungs import LungFields
from xray_utils.lab.use import Classification

matplotlib.use("Agg")


@pytest.fixture(scope="module")
def t(tmp_path_factory):
    """Good arguments."""
    t = SimpleNamespace(folder=tmp_path_factory.mktemp("images"), outputs=tmp_path_factory.mktemp("outputs"))
    t.images = make_images(t.folder).assign(source="one")
    t.split = xu.split_images(t.images)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XRAY_OUTPUTS", str(t.outputs))
        t.data = xu.prepare(t.split, size=32)
    t.model, t.vit, t.side = xu.baseline_cnn(), xu.vit(None), t.data.test
    t.image = xu.read_image(t.folder / t.images.file[0])
    config = {"network": t.model.spec, "parameters": 1, "settings": {}}
    config["data"] = {"size": 32, "train_images": 1, "protocol": "grouped"}
    t.run = Run("run", t.outputs / "run", t.model, HISTORY, config)
    t.numbers = np.zeros(len(PREDICTIONS))
    t.answer = Classification(pd.Series({"covid": 1.0}), np.zeros((4, 4)), None, "run")
    t.judged = pd.DataFrame({"expected": 1 / 3, "balanced accuracy": 0.5, "low": 0.2, "high": 0.9},
                            ["metadata only", "only the border"])  # fmt: skip
    t.maps = {"a": np.ones((len(t.side), 32, 32))}
    t.of_side = {"a": make_predictions(len(t.side)).assign(file=t.side.rows.file)}
    t.lungs = LungFields(np.ones((len(t.side), 32, 32), bool), np.ones(len(t.side)), np.ones(len(t.side), bool))
    t.figure = xu.plot_class_balance(t.images)
    return t


P, ONE, SMALL = PREDICTIONS, {"a": PREDICTIONS}, dict(resamples=9, seed=0)
WHOLE = {"as it is": P}
CONTROLS = pd.DataFrame({"added": [0], **{f"normal called covid{end}": [0.5] for end in ("", " low", " high")}})
SCORED = ILL.assign(file=list("abcd"), source="one")
GOOD = {  # of each function, all its arguments
    "find_images": lambda t: dict(folder=t.folder, least_classes=2, labels={}),
    "download_images": lambda t: dict(source="mnist", folder=t.folder),
    "use_images": lambda t: dict(source="nowhere", labels={}),
    "audit_images": lambda t: dict(images=t.images, near=0.95),
    "label_conflicts": lambda t: dict(images=t.images),
    "read_image": lambda t: dict(path=t.folder / t.images.file[0]),
    "resize": lambda t: dict(image=t.image, size=8),
    "split_images": lambda t: dict(
        images=t.images, protocol="grouped", seed=0, mirror=True, fractions=(0.7, 0.15, 0.15),
        keep_conflicts=False,
    ),
    "count_split": lambda t: dict(split=t.split),
    "describe_images": lambda t: dict(images=t.images),
    "prepare": lambda t: dict(images=t.split, size=32),
    "load_data": lambda t: dict(protocol="grouped", seed=0, mirror=True, size=32, labels={}),
    "baseline_cnn": lambda t: dict(num_classes=3, seed=0),
    "resnet18": lambda t: dict(weights=None, num_classes=3, seed=0),
    "vit": lambda t: dict(weights=None, num_classes=3, freeze=False, seed=0, pretrained=True),
    "vit_weights": lambda t: dict(is_sample=True),
    "credit_line": lambda t: dict(rows=t.images),
    "add_controls": lambda t: dict(
        known=np.eye(len(t.images)), rows=t.images, others=np.eye(len(t.images)), other_rows=t.images, counts=(0, 1),
        draws=1, weight=1.0, seed=0,
    ),
    "controls_table": lambda t: dict(answers=P.assign(added=0, draw=0), **SMALL),
    "plot_differences": lambda t: dict(differences={"a": {"mean": 0.1, "interval": [0, 0.2]}}),
    "plot_controls": lambda t: dict(tables={"a": CONTROLS}),
    "count_parameters": lambda t: dict(model=t.model, trainable=False),
    "fit": lambda t: dict(
        model=t.model, data=t.data, name="run", epochs=1, lr=0.1, batch_size=4, seed=0, optimizer="adam",
        weight_decay=0.0, schedule="constant", warmup=0.0, class_weights=False, early_stopping=2, augment=False,
        precision="fp32",
    ),
    "estimate_time": lambda t: dict(model=t.model, data=t.data, epochs=1, batch_size=4, precision="fp32"),
    "load_run": lambda t: dict(run="run", model=t.model),
    "predict": lambda t: dict(model=t.model, split=t.side, batch_size=8),
    "classify": lambda t: dict(image=t.image, run=t.run, look=xu.saliency_maps),
    "image_form": lambda t: dict(run=t.run, files=["a.png"], look=xu.saliency_maps),
    "export_model": lambda t: dict(run=t.run, folder=t.folder),
    "plot_classification": lambda t: dict(answer=t.answer),
    "report": lambda t: dict(predictions=P),
    "compute_metrics": lambda t: dict(predictions=P, **SMALL),
    "compare_with_original": lambda t: dict(predictions=P, network="vit"),
    "best_epochs": lambda t: dict(histories={"a": HISTORY}),
    "save_results": lambda t: dict(run=t.run, predictions=P, validation=P),
    "load_results": lambda t: dict(names=["vit_grouped"], folder="nowhere"),
    "make_missing_runs": lambda t: dict(names=["alexnet"], labels={}),
    "compare": lambda t: dict(results={"a": result()}),
    "compare_two": lambda t: dict(first=P, second=P, statistic="accuracy", **SMALL),
    "compare_pairs": lambda t: dict(tables={"a": P, "b": P}),
    "metrics_table": lambda t: dict(metrics={"a": result().metrics}),
    "calibration_error": lambda t: dict(predictions=P, bins=10),
    "fit_temperature": lambda t: dict(validation=P),
    "apply_temperature": lambda t: dict(predictions=P, temperature=1.0),
    "with_interval": lambda t: dict(metrics=result().metrics, key="accuracy"),
    "grouped_mean": lambda t: dict(table=HISTORY, groups=["a", "b"], **SMALL),
    "seed_table": lambda t: dict(seeds=SEEDS),
    "plot_seeds": lambda t: dict(seeds=SEEDS),
    "plot_examples": lambda t: dict(images=t.images, per_class=1, seed=0),
    "plot_class_balance": lambda t: dict(images=t.images),
    "plot_network": lambda t: dict(model=t.model, size=32),
    "plot_residual_block": lambda t: dict(block=t.model),
    "save_table": lambda t: dict(table=P, name="name"),
    "save_figure": lambda t: dict(figure=t.figure, name="name"),
    "plot_sizes": lambda t: dict(images=t.images),
    "plot_colour": lambda t: dict(images=t.images),
    "plot_mean_images": lambda t: dict(images=t.images, size=8, at_most=2),
    "plot_images_per_patient": lambda t: dict(images=t.images),
    "plot_preparation": lambda t: dict(images=t.images, data=t.data, count=1, seed=0),
    "plot_mirroring": lambda t: dict(data=t.data, seed=0),
    "plot_split": lambda t: dict(splits={"a": t.split}),
    "plot_patches": lambda t: dict(pixels=np.zeros((8, 8, 3), np.uint8), patch_size=4, credit=""),
    "plot_history": lambda t: dict(histories={"a": HISTORY}),
    "plot_confusion_matrix": lambda t: dict(predictions=P, title="title"),
    "plot_roc": lambda t: dict(predictions=P),
    "plot_reliability": lambda t: dict(predictions=ONE),
    "plot_saliency": lambda t: dict(
        split=t.side, maps=t.maps, predictions=t.of_side, lungs=t.lungs, which="wrong", count=2
    ),
    "plot_comparison": lambda t: dict(table=xu.compare({"vit": result()})),
    "plot_experiments": lambda t: dict(table=t.judged),
    "plot_internal_external": lambda t: dict(internal=P, external=P),
    "plot_risk_coverage": lambda t: dict(tables=ONE, uncertainty={"a": t.numbers}, threshold=0.5),
    "change_split": lambda t: dict(split=t.side, change="grey"),
    "change_data": lambda t: dict(data=t.data, change="grey"),
    "plant_marker": lambda t: dict(split=t.side, shift=0, share=0.07),
    "cross_validate": lambda t: dict(features=np.zeros((18, 1)), rows=t.images, seed=0, folds=2),
    "shortcut_baselines": lambda t: dict(data=t.data, seed=0),
    "summarise": lambda t: dict(
        baselines=t.judged, answers=WHOLE, retrained=WHOLE, marked=(P, P), internal_external=(P, P)
    ),
    "shortcut_table": lambda t: dict(experiments=ONE),
    "verdict": lambda t: dict(table=t.judged),
    "load_external": lambda t: dict(folder=t.folder, images=t.images, size=8, near=0.95, labels={}),
    "covid_vs_normal": lambda t: dict(predictions=P.assign(source="a"), positive="covid", within=False),
    "within_sources": lambda t: dict(rows=t.images),
    "shared_sources": lambda t: dict(data=t.data),
    "features": lambda t: dict(model=t.model, split=t.side, batch_size=8),
    "pneumonia_scores": lambda t: dict(known=np.eye(4), rows=SCORED, others=np.eye(4)),
    "covid_auc": lambda t: dict(rows=SCORED, scores=[0, 1, 2, 3]),
    "uncertainty": lambda t: dict(predictions=P, pneumonia=t.numbers),
    "risk_coverage": lambda t: dict(predictions=P, scores=t.numbers),
    "abstain": lambda t: dict(predictions=P, scores=t.numbers, threshold=0.5),
    "grad_cam": lambda t: dict(model=t.model, split=t.side, target="covid", layer="7", batch_size=8),
    "attention_rollout": lambda t: dict(model=t.vit, split=t.side, batch_size=8),  # too small for it
    "saliency_maps": lambda t: dict(model=t.model, split=t.side, target="covid", batch_size=8),
    "sanity_check": lambda t: dict(model=t.model, split=t.side, seed=0, batch_size=8),
    "equalise": lambda t: dict(pixels=np.zeros((1, 8, 8, 3), np.uint8)),
    "crop_lungs": lambda t: dict(pixels=np.zeros((1, 8, 8, 3), np.uint8), margin=0.05),
    "lung_box": lambda t: dict(pixels=np.zeros((1, 8, 8, 3), np.uint8)),
    "lung_fields": lambda t: dict(pixels=np.zeros((1, 8, 8, 3), np.uint8)),
    "share_in_lungs": lambda t: dict(maps=np.ones((1, 4, 4)), masks=np.ones((1, 4, 4), bool)),
}  # fmt: skip
# Not tried: the parts of a path; a table, or whatever came from nowhere.
ANYTHING = {"outputs_dir", "is_sample", "default_size"}


class Odd:
    def __repr__(self):
        return "<odd>"


HOSTILE = [None, "", "a\0b", b"a", -1, 1.5, float("nan"), True, [], {"a": None}, pd.DataFrame(), np.ones((2, 2)), Odd()]
TAKEN = {  # each by its place in HOSTILE: what these take on purpose
    (0,): [  # None
        *[("load_run", "model"), ("save_results", "validation"), ("classify", "look"), ("image_form", "look")],
        *[("fit", "early_stopping"), ("resnet18", "weights"), ("vit", "weights"), ("export_model", "folder")],
        *[("load_results", "folder"), ("download_images", "folder"), ("use_images", "source")],
        *[("grad_cam", "target"), ("grad_cam", "layer"), ("saliency_maps", "target"), ("plot_saliency", "lungs")],
        *[("summarise", "retrained"), ("summarise", "marked"), ("summarise", "internal_external")],
        ("covid_vs_normal", "positive"),
        *[("load_data", "size"), ("find_images", "labels"), ("load_external", "labels")],
    ],
    (7,): [  # True
        *[("fit", "class_weights"), ("fit", "augment"), ("vit", "freeze"), ("count_parameters", "trainable")],
        *[("split_images", "mirror"), ("load_data", "mirror"), ("vit_weights", "is_sample")],
        ("split_images", "keep_conflicts"),
        ("vit", "pretrained"),
        ("covid_vs_normal", "within"),
    ],
    (5,): [
        *[("fit", "lr"), ("fit", "weight_decay"), ("apply_temperature", "temperature")],
        ("add_controls", "weight"),
    ],
    (4, 5): [("abstain", "threshold"), ("plot_risk_coverage", "threshold")],
    (1, 2): [("plot_confusion_matrix", "title"), ("plot_patches", "credit")],
    (10,): [("save_table", "table"), ("credit_line", "rows")],
    # None, and a folder left out
    (0, 9): [("load_data", "labels"), ("make_missing_runs", "labels"), ("use_images", "labels")],
    (8, 10): [("make_missing_runs", "names")],
    (8, 9, 10): [("load_results", "names"), ("image_form", "files")],
}


def outcome(name, options):
    """None, or the error."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            getattr(xu, name)(**options)
        except Exception as error:
            return error


def test_every_function_is_here():
    public = {name for name in dir(xu) if inspect.isfunction(getattr(xu, name)) and not name.startswith("_")}
    assert GOOD.keys() | ANYTHING == {name for name in public if inspect.signature(getattr(xu, name)).parameters}


@pytest.mark.parametrize("name", GOOD)
def test_no_argument_takes_what_it_cannot_use(name, t, monkeypatch):
    if name == "load_data":
        monkeypatch.setenv("XRAY_DATA", "nowhere")
    good = GOOD[name](t)
    assert good.keys() == inspect.signature(getattr(xu, name)).parameters.keys()
    usual = outcome(name, good)  # some are refused in the end, for where they would lead
    for argument in good:
        taken = []  # by place
        for place, value in enumerate(HOSTILE):
            error = outcome(name, good | {argument: value})
            if error is None or str(error) == str(usual):
                taken.append(place)
                continue
            assert isinstance(error, (ValueError, OSError, RuntimeError)), f"{argument}={value!r}: {error!r}"
            assert str(error).startswith((f"{argument}: ", f"{argument}[")), f"{argument}={value!r}: {error!r}"
        allowed = [list(places) for places, what in TAKEN.items() if (name, argument) in what]
        assert taken == (allowed[0] if allowed else []), argument
    assert matplotlib.pyplot.get_fignums() == [], "a refused figure is left open"
