"""Every figure is drawn without a warning, is returned, and is not left open; a few are read back."""

import base64
import inspect
import io
import warnings

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image
from test_evaluation import make_predictions, make_run

import xray_utils as xu
from xray_utils import figures, figures_of_data
from xray_utils._support import style
from xray_utils._support.paths import repository_dir
from xray_utils.constants import ORIGINAL
from xray_utils.lab import diagrams
from xray_utils.lab import figures as lab_figures
from xray_utils.lab.calibration import reliability
from xray_utils.lab.use import Classification

matplotlib.use("Agg")


@pytest.fixture(scope="module")
def images():
    return xu.audit_images(xu.find_images(repository_dir() / "data" / "sample"))


@pytest.fixture(scope="module")
def split(images):
    return xu.split_images(images, seed=0)


@pytest.fixture(scope="module")
def data(split, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XRAY_OUTPUTS", str(tmp_path_factory.mktemp("outputs")))
        return xu.prepare(split, size=32)


@pytest.fixture
def history():
    return pd.DataFrame(
        {
            "epoch": [1, 2, 3, 4],
            "train_loss": [1.1, 0.8, 0.5, 0.2],
            "val_loss": [1.0, 0.7, 0.6, 0.9],
            "train_accuracy": [0.4, 0.6, 0.8, 0.95],
            "val_accuracy": [0.5, 0.6, 0.7, 0.75],
        }
    )


@pytest.fixture
def table():
    for seed, name in enumerate(ORIGINAL):
        make_run(xu.outputs_dir("runs", name), name, seed)
    return xu.compare(xu.load_results(list(ORIGINAL)))


def draw(function, *args, **options):
    """The figure of `function`, painted to the end; a warning is an error, an open figure too."""
    plt.close("all")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = function(*args, **options)
        assert isinstance(figure, Figure)
        figure.canvas.draw()
    assert plt.get_fignums() == []
    return figure


def texts_drawn(figure, path, monkeypatch):
    """`[(text, its box in the figure)]` of what is seen when the figure is saved, where none may lie on another."""
    seen, draw_text = {}, matplotlib.text.Text.draw

    def note(text, renderer):
        if text.get_text().strip() and text.get_visible():
            box = matplotlib.text.Text.get_window_extent(text, renderer)  # the words without their leader
            seen[text] = (text.get_text(), box.transformed(figure.transFigure.inverted()))
        draw_text(text, renderer)

    with monkeypatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("error")
        patch.setattr(matplotlib.text.Text, "draw", note)
        figure.savefig(path)
    return list(seen.values())


def texts_of(figure):
    return [text.get_text() for text in figure.findobj(matplotlib.text.Text) if text.get_text()]


def maps_of(split):
    """Two networks on `split`: one wrong here and there, one never wrong, and maps with a bright corner."""
    table = make_predictions(len(split)).assign(file=split.rows.file, label=split.rows.label)
    maps = np.zeros((len(split), *split.pixels.shape[1:3]))
    maps[:, :9, :9] = 1
    return split, {"one": maps, "two": maps}, {"one": table, "two": table.assign(predicted=table.label)}


SEEDS = pd.DataFrame({"network": ["vit"] * 4, "protocol": ["slides", "grouped"] * 2, "seed": [0, 0, 1, 1],
                      "accuracy": [0.9, 0.8, 0.94, 0.86]})  # fmt: skip
CONTROLS = pd.DataFrame({"added": [0, 4], "normal called covid": [0.9, 0.3], "normal called covid low": [0.7, 0.1],
                         "normal called covid high": [1, 0.5], "covid recall": [1, 0.9], "covid recall low": [0.9, 0.7],
                         "covid recall high": [1, 1]})  # fmt: skip
FIGURES = {
    "plot_examples": lambda f: [f("images")],
    "plot_class_balance": lambda f: [f("images")],
    "plot_sizes": lambda f: [f("images")],
    "plot_colour": lambda f: [f("images")],
    "plot_mean_images": lambda f: [f("images"), 32],
    "plot_images_per_patient": lambda f: [f("images")],
    "plot_preparation": lambda f: [f("images"), f("data")],
    "plot_mirroring": lambda f: [f("data")],
    "plot_split": lambda f: [{"grouped": f("split"), "slides": xu.split_images(f("images"), protocol="slides")}],
    "plot_seeds": lambda f: [SEEDS],
    "plot_differences": lambda f: [
        {"a minus b": {"mean": 0.1, "interval": [0.02, 0.18]}, "b minus c": {"mean": 0.1, "interval": [-0.1, 0.3]}}
    ],
    "plot_controls": lambda f: [{"one": CONTROLS, "other": CONTROLS}],
    "plot_risk_coverage": lambda f: [{"home": make_predictions()}, {"home": np.arange(len(make_predictions()))}, 5],
    "plot_residual_block": lambda f: [xu.resnet18().layer2[0]],
    "plot_network": lambda f: [xu.baseline_cnn()],
    "plot_patches": lambda f: [f("data").train.take([0])[0], 8],
    "plot_history": lambda f: [f("history")],
    "plot_confusion_matrix": lambda f: [make_predictions()],
    "plot_comparison": lambda f: [f("table")],
    "plot_saliency": lambda f: [
        *maps_of(f("data").test),
        xu.lung_fields(f("data").test.take(range(len(f("data").test)))),
    ],
    "plot_experiments": lambda f: [
        xu.shortcut_table({"metadata only": make_predictions(), "16 x 16 pixels": make_predictions()})
    ],
    "plot_internal_external": lambda f: [make_predictions(), make_predictions(seed=1).query("label != 'virus'")],
    "plot_classification": lambda f: [
        Classification(pd.Series([0.7, 0.2, 0.1], xu.CLASSES), f("data").train.take([0])[0], np.eye(32), "vit")
    ],
    "plot_roc": lambda f: [make_predictions()],
    "plot_reliability": lambda f: [{"one": make_predictions(), "other": make_predictions(seed=1)}],
}


def test_every_figure_is_listed_here():
    everything = vars(figures) | vars(figures_of_data) | vars(lab_figures) | vars(diagrams)
    functions = {name for name in everything if name.startswith("plot_") and inspect.isfunction(everything[name])}
    assert functions == set(FIGURES)
    assert all(hasattr(xu, name) for name in functions)


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_drawn_without_warning_and_closed(name, request, tmp_path, monkeypatch):
    figure = draw(getattr(xu, name), *FIGURES[name](request.getfixturevalue))
    assert any(axes.has_data() or axes.patches for axes in figure.axes), "nothing is drawn"
    texts = texts_drawn(figure, tmp_path / "figure.png", monkeypatch)
    for i, (words, box) in enumerate(texts):
        assert min(box.x0, box.y0) > -0.02 and max(box.x1, box.y1) < 1.02, f"beyond the figure: {words}"
        for others, other in texts[:i]:
            wide = min(box.x1, other.x1) - max(box.x0, other.x0)
            high = min(box.y1, other.y1) - max(box.y0, other.y0)
            assert min(wide, high) < 0.004, f"{words!r} lies on {others!r}"
    pixels = plt.imread(tmp_path / "figure.png")
    assert pixels.std() > 0.01


def test_galleries_show_the_surest_answers_of_their_kind(data):
    split, maps, predictions = maps_of(data.test)
    table = predictions["one"]
    sure = table[[f"p_{name}" for name in xu.CLASSES]].max(axis=1)
    wrong = table.assign(sure=sure)[table.label.ne(table.predicted)].sort_values("sure", ascending=False, kind="stable")
    figure = draw(xu.plot_saliency, split, maps, predictions, count=3)
    titles = [axis.get_title() for axis in figure.axes]
    assert titles[:3] == [f"{r.label}, called\n{r.predicted} {r.sure:.2f}" for r in wrong[:3].itertuples()]
    assert titles[3:] == [""] * 3 and "no wrong answer" in texts_of(figure)
    assert (figure.axes[0].images[0].get_array() == split.take([wrong.index[0]])[0]).all()
    assert "Images: Hannover Medical School, CC BY 3.0; Kermany et al., CC BY 4.0" in texts_of(figure)
    correct = draw(xu.plot_saliency, split, maps, predictions, which="correct", count=3)
    assert {axis.get_title().split()[0] for axis in correct.axes[3:]} == set(xu.CLASSES)


def test_an_error_leaves_no_figure_open(images):
    plt.close("all")
    with pytest.raises(TypeError):
        xu.plot_sizes(images.assign(width="wide"))
    assert plt.get_fignums() == []


def test_the_style_stays_within_the_figure(history):
    before = dict(plt.rcParams)
    draw(xu.plot_history, history)
    assert dict(plt.rcParams) == before


def test_class_balance_counts_images_and_patients(images):
    texts = texts_of(draw(xu.plot_class_balance, images))
    for _, rows in images.groupby("label"):
        assert f"{len(rows)}\nimages" in texts and f"{rows.group.nunique()}\npatients" in texts


def test_examples_repeat_with_their_seed_and_show_the_size_on_disk(images):
    first, again, other = (texts_of(draw(xu.plot_examples, images, 2, seed)) for seed in (0, 0, 1))
    assert first == again != other
    sizes = {f"{row.width} x {row.height}" for row in images.itertuples()}
    credit = "Images: Hannover Medical School, CC BY 3.0; Kermany et al., CC BY 4.0"
    assert credit in first
    assert len(first) == 3 * 3 + 1 and set(first) <= sizes | set(xu.CLASSES) | {credit}


def test_split_shows_the_counts_of_each_side(split):
    axes = draw(xu.plot_split, {"grouped": split}).axes[0]
    heights = [[bar.get_height() for bar in bars] for bars in axes.containers]
    counts = xu.count_split(split).loc[list(xu.CLASSES), ["train", "val", "test"]]
    assert heights == counts.to_numpy().tolist()
    lines = [line for text in axes.texts for line in text.get_text().split("\n")]
    for label, row in counts.iterrows():
        for number in row:
            assert lines.count(f"{label} {number}") == list(row).count(number)


def test_confusion_matrix_shows_numbers_and_shares():
    table = make_predictions()
    cells = [text for text in texts_of(draw(xu.plot_confusion_matrix, table)) if text.endswith("%")]
    counts = pd.crosstab(table.label, table.predicted).reindex(index=xu.CLASSES, columns=xu.CLASSES, fill_value=0)
    wanted = [f"{n}\n{n / row.sum():.0%}" for row in counts.to_numpy() for n in row]
    assert cells == wanted and sum(int(cell.split("\n")[0]) for cell in cells) == len(table)


def test_confusion_matrix_without_images_of_a_class():
    table = make_predictions()
    cells = texts_of(draw(xu.plot_confusion_matrix, table[table.label.ne("virus")]))
    assert [cell for cell in cells if cell.endswith("%")][6:] == ["0\n0%"] * 3


def test_history_marks_the_epoch_with_the_lowest_validation_loss(history):
    for axes, height in zip(draw(xu.plot_history, history).axes, (0.6, 0.7), strict=True):
        marks = [line for line in axes.lines if line.get_markersize() == 10]
        assert [(mark.get_xdata()[0], mark.get_ydata()[0]) for mark in marks] == [(3, height)]


def test_history_of_several_runs_names_each(history):
    figure = draw(xu.plot_history, {"one": history, "two": history[:2]})
    for axes in figure.axes:
        assert sorted(text.get_text() for text in axes.texts) == ["one", "two"]
    assert len(figure.axes[0].lines) == 6
    grouped = draw(xu.plot_history, {"vit_grouped": history, "resnet18_grouped": history})
    assert sorted(text.get_text() for text in grouped.axes[0].texts) == [
        "resnet18",
        "vit",
    ]  # what all share is left out


def test_the_loss_axis_follows_the_data_and_no_single_peak(history):
    flat = history.assign(train_loss=[1.12, 1.1, 1.09, 1.08], val_loss=[1.1, 1.06, 1.05, 1.04])
    low, high = draw(xu.plot_history, {"a": flat, "b": flat}).axes[0].get_ylim()
    assert 1.0 < low < 1.04 and 1.12 < high < 1.2
    axes = draw(xu.plot_history, {"a": flat, "b": flat.assign(val_loss=[7.0, 1.1, 1.1, 1.1])}).axes[0]
    assert axes.get_ylim()[1] < 1.2 and axes.get_ylabel() == "loss (a peak of 7.0 is cut)"
    low, high = draw(xu.plot_history, history).axes[0].get_ylim()
    assert low < 0.2 and high > 1.1, "an ordinary start is no peak"


def test_patches_are_the_pieces_of_the_image():
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    figure = draw(xu.plot_patches, pixels, 16)
    whole, cut = (axes.images[0].get_array() for axes in figure.axes)
    assert np.array_equal(whole, pixels)
    assert np.array_equal(cut[18:34, :16], pixels[16:, :16])
    assert "2 x 2 = 4 patches of 16 x 16" in texts_of(figure)


@pytest.mark.parametrize("patch_size", [5, 33])
def test_patches_that_do_not_fit_are_refused(patch_size):
    with pytest.raises(ValueError, match=f"patch_size: {patch_size} does not divide 32x32"):
        xu.plot_patches(np.zeros((32, 32, 3), np.uint8), patch_size)


def test_mirroring_shows_twins(data):
    left, right = (axes.images[0].get_array() for axes in draw(xu.plot_mirroring, data).axes)
    assert np.array_equal(left, right[:, ::-1]) and not np.array_equal(left, right)


def test_mirroring_without_twins_is_refused(images):
    unmirrored = xu.prepare(xu.split_images(images, mirror=False), size=8)
    with pytest.raises(ValueError, match="data: no training image has a mirrored row"):
        xu.plot_mirroring(unmirrored)


def test_preparation_shows_the_prepared_pixels(images, data):
    figure = draw(xu.plot_preparation, images, data, count=2)
    assert texts_of(figure).count("32 x 32 x 3") == 2
    assert figure.axes[2].images[0].get_array().shape == (32, 32, 3)


def test_comparison_shows_ours_and_the_original(table):
    axes = draw(xu.plot_comparison, table).axes[0]
    drawn = {marker: [line.get_xdata()[0] for line in axes.lines if line.get_marker() == marker] for marker in "oD"}
    assert drawn["o"] == table.accuracy.to_list() and drawn["D"] == []
    assert [label.get_text() for label in axes.get_yticklabels()] == list(ORIGINAL)
    assert axes.get_xlabel() == "accuracy on the test images"
    for chance in (1 / 3, 1 / 2):
        lines = draw(xu.plot_comparison, table.assign(chance=chance)).axes[0].lines
        assert [line.get_xdata() for line in lines if line.get_linestyle() == ":"] == [[chance, chance]]
    both = pd.concat([table.set_axis([f"{name}_{how}" for name in ORIGINAL]) for how in ("slides", "grouped")])
    axes = draw(xu.plot_comparison, both).axes[0]
    diamonds = [(line.get_xdata()[0], line.get_ydata()[0]) for line in axes.lines if line.get_marker() == "D"]
    assert diamonds == [(0.89, 0), (0.97, 1), (0.90, 2)] and axes.get_xlabel().endswith("(diamond: the original)")


def test_a_comparison_names_a_highest_run_only_beyond_all_other_intervals(table):
    spread = table.assign(accuracy=[0.5, 0.6, 0.9])
    texts = ["0.500 [0.400, 0.600]", "0.600 [0.500, 0.700]", "0.900 [0.800, 1.000]"]
    apart = draw(xu.plot_comparison, spread.assign(**{"accuracy 95 %": texts}))
    assert title_of(apart) == f"Highest: {table.index[2]},\nits interval lies above all others"
    texts[1] = "0.600 [0.500, 0.850]"
    overlapping = draw(xu.plot_comparison, spread.assign(**{"accuracy 95 %": texts}))
    assert title_of(overlapping) == "The intervals overlap:\ncompare the networks with a paired test"
    twice = draw(xu.plot_comparison, pd.concat([spread, spread]))  # a name may stand twice
    assert [line.get_xdata()[0] for line in twice.axes[0].lines if line.get_marker() == "o"] == [0.5, 0.6, 0.9] * 2


def test_roc_names_the_area_of_each_class_and_leaves_out_a_class_that_is_absent():
    predictions = make_predictions(90)
    metrics = xu.compute_metrics(predictions)
    figure = draw(xu.plot_roc, predictions)
    labels = {text.get_text() for text in figure.axes[0].texts}
    assert labels == {f"{name} {xu.with_interval(metrics, f'auc_{name}')}" for name in xu.CLASSES}
    assert {text.get_text() for text in figure.axes[1].texts} == set(xu.CLASSES)
    two = draw(xu.plot_roc, predictions[predictions.label != "virus"])
    assert {text.get_text().split()[0] for text in two.axes[0].texts} == {"covid", "normal"}


def test_roc_says_which_class_is_told_apart_best_only_beyond_the_intervals():
    predictions = make_predictions(300)
    assert title_of(draw(xu.plot_roc, predictions)) == "ROC: the intervals\nof the AUCs overlap"
    clear = predictions.assign(p_covid=predictions.label.eq("covid") * 1.0)
    assert title_of(draw(xu.plot_roc, clear)) == "ROC: covid\nhas the highest AUC"


def test_reliability_draws_the_bins_of_each_table():
    tables = {"one": make_predictions(), "other": make_predictions(seed=1)}
    figure = draw(xu.plot_reliability, tables)
    assert figure.get_supxlabel() == "bars: 95 % intervals; numbers: images of each bin"
    for axes, (name, table) in zip(figure.axes, tables.items(), strict=True):
        bins = reliability(table)
        assert axes.get_title(loc="left") == f"{name}\ncalibration error {xu.calibration_error(table):.3f}"
        assert axes.collections[0].get_offsets().data.tolist() == bins[["confidence", "accuracy"]].to_numpy().tolist()
        assert [int(text.get_text()) for text in axes.texts] == bins.images.to_list()
        for bar, one in zip(axes.collections[1:], bins.itertuples(), strict=True):
            (_, low), (_, high) = bar.get_segments()[0]
            centre, half = wilson(one.accuracy, one.images)
            assert (low, high) == pytest.approx((centre - half, centre + half), abs=1e-6)


def wilson(p, n, z=1.959964):
    """The 95 % interval of a share (Wilson 1927): its centre, and half its width."""
    scale = 1 / (1 + z * z / n)
    return scale * (p + z * z / (2 * n)), scale * z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))


def test_internal_and_external_draws_the_classes_that_are_there_and_claims_what_the_intervals_show():
    home = make_predictions(120)
    away = make_predictions(120, seed=1).query("label != 'virus'")
    figure = draw(xu.plot_internal_external, home, away)
    ticks = [[label.get_text().split()[0] for label in axes.get_xticklabels()] for axes in figure.axes]
    assert ticks == [list(xu.CLASSES), ["covid", "normal"]]
    assert figure.get_suptitle() == "Covid and normal: the intervals of internal and external AUC overlap"
    medians = [line.get_segments()[0][0][1] for line in figure.axes[1].collections[1::2]]
    assert medians == [away.p_covid[away.label.eq(name)].median() for name in ("covid", "normal")]
    sure = home.assign(p_covid=home.label.eq("covid") * 1.0)
    figure = draw(xu.plot_internal_external, sure, away)
    assert figure.get_suptitle() == "Covid and normal: external AUC below the internal one"


def test_each_external_source_has_a_panel_and_an_auc_of_its_own():
    home, away = make_predictions(120), make_predictions(120, seed=1).query("label != 'virus'")
    alone = away.label.eq("normal") & (np.arange(len(away)) % 2 == 0)
    away = away.assign(source=np.where(alone, "them/papers", "us/hospital"), p_covid=np.where(alone, 1.0, away.p_covid))
    figure = draw(xu.plot_internal_external, home, away)
    ticks = [[label.get_text().split()[0] for label in axes.get_xticklabels()] for axes in figure.axes]
    assert ticks == [list(xu.CLASSES), ["normal"], ["covid", "normal"]]
    area = xu.with_interval(xu.compute_metrics(away[~alone]), "auc_covid")
    titles = [axes.get_title(loc="left").split("\n") for axes in figure.axes]
    assert titles[1:] == [["external, them", "normal alone"], ["us", f"AUC {area}"]]
    figure = draw(xu.plot_internal_external, home, away[alone])
    assert figure.get_suptitle() == "Covid and normal: each external source holds one of the two alone"
    three = away.assign(source=np.array(["us/one", "them/two", "them/three"])[np.arange(len(away)) % 3])
    figure = draw(xu.plot_internal_external, home, three)
    titles = [axes.get_title(loc="left").split("\n")[0] for axes in figure.axes]
    assert titles[1:] == ["external, them/three", "them/two", "us/one"], "a source is missing, or cannot be told"


def test_risk_coverage_says_what_abstention_leaves_of_the_error():
    table = make_predictions(10).assign(label="covid", predicted=["covid"] * 6 + ["virus"] * 4)
    score = np.arange(10)
    tables, scores = {"internal": table, "external": table}, {"internal": score, "external": score}
    figure = draw(xu.plot_risk_coverage, tables, scores, 7)
    line = "{}: 40.0% of all 10 wrong, 25.0% of the 80% answered"
    assert title_of(figure) == "\n".join(map(line.format, tables))
    (axis,) = figure.axes
    assert [text.get_text() for text in axis.texts] == [*tables] and not axis.get_legend()


def test_seeds_say_how_many_networks_gain_beyond_their_interval():
    assert title_of(draw(xu.plot_seeds, SEEDS)).endswith("over seeds: 0 of 1 networks")
    surely = SEEDS.assign(accuracy=[0.9, 0.8, 0.901, 0.8])
    figure = draw(xu.plot_seeds, surely)
    assert title_of(figure).endswith("over seeds: 1 of 1 networks")
    assert [text.get_text() for text in figure.axes[0].texts] == ["slides", "grouped"]


def lightness(colour):
    """L* of CIELAB: what is left of a colour in grey print, 0 black to 100 white."""
    parts = np.array(to_rgb(colour))
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return 116 * np.cbrt(linear @ [0.2126, 0.7152, 0.0722]) - 16


@pytest.mark.parametrize("colours", [style.CLASS_COLOURS, style.MODEL_COLOURS], ids=["classes", "models"])
def test_colours_differ_in_grey_print(colours):
    light = sorted(map(lightness, colours.values()))
    assert min(np.diff(light)) > 12, light


DEUTERAN = [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]]
SRGB = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
PROTAN = [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]


@pytest.mark.parametrize("eye", [np.eye(3), DEUTERAN, PROTAN], ids=["usual", "deuteranopia", "protanopia"])
def test_no_colour_is_taken_for_one_of_another_meaning(eye):
    """Distances in CIELAB, as colour-blind eyes see it too (Machado et al. 2009)."""
    colours = [*style.CLASS_COLOURS.values(), *style.MODEL_COLOURS.values(), *style.OTHER_COLOURS]
    seen = np.array([to_rgb(colour) for colour in colours])
    linear = np.where(seen <= 0.04045, seen / 12.92, ((seen + 0.055) / 1.055) ** 2.4) @ np.transpose(eye)
    x, y, z = np.cbrt(linear.clip(1e-3) @ np.transpose(SRGB) / [[0.9505, 1, 1.089]]).T
    lab = np.stack([116 * y, 500 * (x - y), 200 * (y - z)], axis=1)
    distances = np.linalg.norm(lab[:, None] - lab, axis=-1) + 99 * np.eye(len(lab))
    assert distances.min() > 16, [colours[i] for i in np.unravel_index(distances.argmin(), distances.shape)]


def test_a_configuration_of_the_vit_has_its_colour_and_other_runs_none_of_a_model(history):
    names = ("fixed features", "fine-tuned", "Adam", "random weights")
    lines = draw(xu.plot_history, dict.fromkeys(names, history)).axes[0].lines
    first, tuned, *others = (line.get_color() for line in lines[::3])
    assert tuned == style.MODEL_COLOURS["vit"] and {first, *others} < set(style.OTHER_COLOURS)
    assert len({first, *others}) == 3


def saved(name):
    return {path.name: path for path in sorted(xu.outputs_dir("figures").glob(f"{name}.*"))}


def test_a_figure_is_saved_as_vectors_and_in_twice_the_pixels(history):
    figure = xu.plot_history(history)
    assert xu.save_figure(figure, "history") is figure
    files = saved("history")
    assert list(files) == ["history.png", "history.svg"]
    assert plt.imread(files["history.png"]).shape[1] == pytest.approx(figure.get_figwidth() * 220, rel=0.05)
    svg = files["history.svg"].read_text()
    assert svg.count("Lowest validation loss: epoch 3 of 4") > 2  # text, not outlines
    assert f"<title>{figure.in_words()}</title>" in svg and f"<dc:description>{figure.in_words()}</dc:" in svg
    before = {name: path.read_bytes() for name, path in files.items()}
    xu.save_figure(xu.plot_history(history), "history")
    assert {name: path.read_bytes() for name, path in files.items()} == before


def title_of(figure, place=0):
    return figure.axes[place].get_title(loc="left")


def test_titles_say_what_the_data_say(images, history):
    assert title_of(draw(xu.plot_class_balance, images)) == "33% of the images are covid, the largest class"
    some = images[images.label.ne("normal")]
    assert "are covid" in title_of(draw(xu.plot_class_balance, some[some.label.eq("covid") | (some.index % 2 > 0)]))
    single = images.assign(group=images.file)
    assert title_of(draw(xu.plot_images_per_patient, single)) == f"0 of {len(images)} patients have more than one image"
    assert title_of(draw(xu.plot_colour, images.assign(tint=0.0)), 1) == "Tinted images: none"
    assert title_of(draw(xu.plot_colour, images.assign(tint=9.0).query("label == 'virus'")), 1).startswith(
        "Tinted images: virus"
    )
    assert title_of(draw(xu.plot_history, {"vit": history})) == "Lowest validation loss: epoch 3 of 4"
    better = history.assign(val_loss=history.val_loss / 2)
    rings = "Validation loss at the rings:\n0.300 to 0.600"
    assert title_of(draw(xu.plot_history, {"one": history, "two": better})) == rings
    perfect = make_predictions().assign(predicted=lambda t: t.label)
    assert title_of(draw(xu.plot_confusion_matrix, perfect)).endswith(f"\n{len(perfect)} of {len(perfect)} right")


def test_names_at_the_ends_of_lines_do_not_overlap(history):
    figure = draw(xu.plot_history, {name: history for name in ("baseline_cnn", "resnet18", "vit")})
    axes = figure.axes[1]
    heights = sorted(axes.transAxes.transform(text.xyann)[1] for text in axes.texts)
    assert len(heights) == 3 and min(np.diff(heights)) > axes.texts[0].get_fontsize() * figure.dpi / 72
    assert max(text.get_window_extent().y1 for text in axes.texts) <= axes.bbox.y1, "a name touches the title"


def test_a_figure_says_its_titles_and_axes_where_it_cannot_be_seen(images, monkeypatch):
    shown = []
    monkeypatch.setattr(style, "display", lambda *bundle, **more: shown.append(bundle[0]))
    for figure in (xu.plot_class_balance(images), xu.plot_residual_block(xu.resnet18().layer1[0])):
        figure._ipython_display_()
    balance, block = (one["text/plain"] for one in shown)
    assert {*shown[0]} == {"image/png", "text/plain"}
    title, axis = balance.removeprefix("Figure: ").split("; ")
    assert "the largest class" in title and axis == "number"
    assert "ReLU" in block


def test_a_saved_figure_is_shown_as_it_was_drawn_and_drawn_anew_where_it_was_changed(history, monkeypatch):
    shown = []
    monkeypatch.setattr(style, "display", lambda data, **_: shown.append(data["image/png"]))
    figure = xu.plot_history(history)
    plain = xu.plot_history(history)
    plain._ipython_display_()
    drawings = []
    savefig = style.Figure.savefig
    monkeypatch.setattr(
        style.Figure, "savefig", lambda self, *a, **k: (drawings.append(k["format"]), savefig(self, *a, **k))
    )
    xu.save_figure(figure, "history")._ipython_display_()
    assert drawings == ["svg", "png"], "drawn more often than there are files"
    figure.axes[0].set_title("another title")
    figure._ipython_display_()
    assert drawings == ["svg", "png", "png"] and len(set(shown)) >= 2 and shown[1] != shown[2]
    sizes = [Image.open(io.BytesIO(base64.b64decode(one))).size for one in shown]
    assert abs(sizes[0][0] - sizes[1][0]) <= 4 and abs(sizes[0][1] - sizes[1][1]) <= 4


def test_no_ink_of_a_saved_figure_touches_its_edge(history):
    """Long names reach far to the left: letters are as wide at the resolution that is saved as where it is laid out."""
    rows = {f"resnet18_augmented_grouped{ending}": history for ending in ("", "_sample", "_another_configuration")}
    for name, figure in {
        "comparison": xu.plot_comparison(xu.compare(xu.load_results(list(REAL), xu.results_dir()))),
        "history": xu.plot_history(rows),
    }.items():
        xu.save_figure(figure, name)
        with Image.open(xu.outputs_dir("figures", f"{name}.png")) as picture:
            ink = np.asarray(picture.convert("L")) < 200
        assert ink.any() and not (ink[:2].any() or ink[-2:].any() or ink[:, :2].any() or ink[:, -2:].any()), name


REAL = ("resnet18_augmented_slides", "resnet18_augmented_grouped")
