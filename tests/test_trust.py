"""Can the numbers be trusted? Areas, intervals, paired tests and calibration against scikit-learn, scipy and truth."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn import metrics as sk
from test_evaluation import make_predictions

import xray_utils as xu
from xray_utils.lab.calibration import reliability
from xray_utils.metrics import _auc, numbers_of

sys.path.insert(0, str(Path(__file__).resolve().parent / "reliability"))
import bootstrap
from bootstrap import made

CLASSES = list(xu.CLASSES)
COLUMNS = [f"p_{name}" for name in CLASSES]


def test_auc_is_that_of_sklearn_with_ties_and_weights():
    rng = np.random.default_rng(0)
    scores, positive = rng.integers(8, size=80) / 8, rng.random(80) < 0.4
    weights = rng.integers(0, 4, size=(5, 80))
    wanted = [sk.roc_auc_score(positive, scores, sample_weight=row) for row in weights]
    assert _auc(scores, positive, weights) == pytest.approx(wanted)


def test_every_number_is_that_of_sklearn():
    table = make_predictions(n=90, seed=3)
    metrics = xu.compute_metrics(table)
    assert metrics["balanced_accuracy"] == pytest.approx(sk.balanced_accuracy_score(table.label, table.predicted))
    assert metrics["macro_f1"] == pytest.approx(sk.f1_score(table.label, table.predicted, average="macro"))
    recalls = sk.recall_score(table.label, table.predicted, labels=CLASSES, average=None)
    for name, recall in zip(CLASSES, recalls, strict=True):
        assert metrics[f"recall_{name}"] == pytest.approx(recall)
        assert metrics[f"auc_{name}"] == pytest.approx(sk.roc_auc_score(table.label == name, table[f"p_{name}"]))
        low, high = metrics[f"auc_{name}_interval"]
        assert low < metrics[f"auc_{name}"] < high


def test_intervals_of_independent_images_are_those_of_scipy():
    table = make_predictions(n=200, accuracy=0.8, seed=1)
    right = int((table.label == table.predicted).sum())
    wanted = stats.binomtest(right, 200).proportion_ci(method="wilson")
    assert xu.compute_metrics(table)["accuracy_interval"] == pytest.approx(wanted, abs=0.004)


@pytest.mark.parametrize("right", [0, 1])
def test_a_share_of_none_or_all_has_the_interval_of_its_groups(right):
    table = make_predictions(n=90).assign(group=np.arange(90) // 3)
    other = table.label.map({"covid": "virus", "virus": "covid", "normal": "covid"})
    table["predicted"] = table.label if right else other
    table[COLUMNS] = np.array([table.predicted == name for name in CLASSES]).T * 0.8
    metrics = xu.compute_metrics(table, resamples=200)
    t = stats.t.ppf(0.975, 29)
    edge = t**2 / (30 + t**2)  # Wilson's bound for 0 of 30, with Student's t for the normal quantile
    assert metrics["accuracy_interval"] == pytest.approx([1 - edge, 1] if right else [0, edge])
    exact = 1 - 0.025 ** (1 / 30)
    assert edge == pytest.approx(exact, abs=0.02), "Clopper and Pearson's of 30 patients"
    for name in CLASSES if right else ():
        groups = table[table.label == name].group.nunique(), table[table.label != name].group.nunique()
        for key, n in (("recall", groups[0]), ("auc", min(groups))):
            t = stats.t.ppf(0.975, n - 1)
            assert metrics[f"{key}_{name}"] == 1
            assert metrics[f"{key}_{name}_interval"] == pytest.approx([n / (n + t**2), 1])
    assert metrics["sure_but_wrong_interval"][0] == 0 < metrics["sure_but_wrong_interval"][1]


def test_rounding_is_no_spread():
    """Every patient has one of three wrong: what the bootstrap gives differs in the last digit alone."""
    table = make_predictions(n=90).assign(group=np.arange(90) // 3, label="covid").drop(columns=COLUMNS)
    table["predicted"] = np.where(np.arange(90) % 3, "covid", "virus")
    t = stats.t.ppf(0.975, 29)
    wanted = stats.binomtest(20, 30).proportion_ci(method="wilson")  # as of thirty images
    assert xu.compute_metrics(table)["accuracy_interval"] == pytest.approx(wanted, abs=0.01)
    low, high = xu.compare_two(table.assign(predicted="covid"), table)["difference_interval"]
    assert (low, high) == pytest.approx((-1 / 3 - t**2 / (30 + t**2), -1 / 3 + t**2 / (30 + t**2)))


def test_a_recall_rests_on_the_images_of_its_class():
    table = make_predictions(n=190).drop(columns=COLUMNS)
    table["label"] = np.where(np.arange(190) < 30, "covid", "normal")
    table["group"] = np.where(np.arange(190) < 30, np.arange(190) // 3, np.arange(190))
    table["predicted"] = np.where((table.label == "covid") & (np.arange(190) % 3 == 0), "virus", table.label)
    low, high = xu.compute_metrics(table)["recall_covid_interval"]
    assert high - low > 0.3, "ten patients"


def test_few_resamples_and_one_group_give_no_interval():
    table = make_predictions(n=60)
    assert xu.compute_metrics(table, resamples=1)["accuracy_interval"] is None
    assert xu.compare_two(table, table, resamples=1)["difference_interval"] is None
    means = xu.grouped_mean(pd.DataFrame({"x": [0.2, 0.6]}), ["a", "a"])
    assert means["x_interval"] is None and xu.with_interval(means, "x") == "0.400 (no interval)"
    judged = xu.shortcut_table({"metadata only": table.assign(group="a"), "only the border": table.assign(group="a")})
    assert judged.low.isna().all() and xu.verdict(judged).startswith("NO SHORTCUT FOUND")


def test_one_group_gives_no_interval():
    metrics = xu.compute_metrics(make_predictions(n=30).assign(group="a"), resamples=50)
    assert 0 < metrics["accuracy"] < 1 and metrics["accuracy_interval"] is None


def test_intervals_cover_the_truth_where_errors_are_clustered():
    """Every number in fewer sets; `python tests/reliability --only bootstrap` makes 2,000 of each kind."""
    for images, accuracy, per_group in ((240, 0.85, 2), (180, 0.96, 1), (60, 0.9, 1)):
        covered = bootstrap.covered(images, accuracy, per_group, sets=40, resamples=200)
        assert {"accuracy", "balanced_accuracy", "macro_f1", "recall_covid", "auc_virus"} <= set(covered)
        covered["difference"] = bootstrap.difference_covered(images, accuracy, per_group, sets=40, resamples=200)
        assert all(0.85 <= share <= 1 for share in covered.values()), covered  # 40 sets leave 4 points
    for case in bootstrap.AREAS[::3]:
        assert bootstrap.area_covered(*case, sets=60, resamples=200)["covered"] >= 0.9
    rng, n, held, naive = np.random.default_rng(5), 200, 0, 0
    for seed in range(n):
        table = made(360, 0.85, rng, images_per_group=3).drop(columns=COLUMNS)
        low, high = numbers_of(table, 200, seed)["accuracy"][1]
        held += low <= 0.85 <= high
        low, high = numbers_of(table.assign(group=table.file), 200, seed)["accuracy"][1]
        naive += low <= 0.85 <= high
    assert 0.92 <= held / n <= 0.98  # 200 sets leave 3 points; the command above has 2,000
    assert naive / n < 0.9  # drawing images instead of patients promises too much


def test_sure_but_wrong_by_hand():
    table = make_predictions(4).assign(label="covid", predicted=["covid", "virus", "virus", "normal"])
    table[COLUMNS] = [[0.95, 0.03, 0.02], [0.02, 0.03, 0.95], [0.2, 0.0, 0.8], [0.04, 0.92, 0.04]]
    assert xu.compute_metrics(table)["sure_but_wrong"] == 2 / 4


def test_a_class_that_is_absent_has_no_recall_and_no_area():
    table = make_predictions(n=60)
    metrics = xu.compute_metrics(table[table.label != "virus"])
    assert metrics["recall_virus"] is None and metrics["auc_virus"] is None and metrics["recall_virus_interval"] is None
    assert xu.with_interval(metrics, "recall_virus") == "cannot be said"
    seen = [metrics["recall_covid"], metrics["recall_normal"]]
    assert metrics["balanced_accuracy"] == pytest.approx(np.mean(seen))
    two = table[table.label != "virus"]
    assert xu.compute_metrics(two.assign(predicted=two.label))["macro_f1"] == 1, "it counts for nothing in the mean"


class TestTwo:
    first, second = make_predictions(120, 0.6, seed=0), make_predictions(120, 0.6, seed=0)
    better = second.index < 30
    second = second.assign(predicted=second.label.where(better, second.predicted))

    def test_paired_on_the_same_images(self):
        result = xu.compare_two(self.first, self.second)
        one, two = (table.label.eq(table.predicted) for table in (self.first, self.second))
        assert result["difference"] == pytest.approx(two.mean() - one.mean())
        assert (result["only_first"], result["only_second"]) == (0, (two & ~one).sum())
        assert result["p"] == pytest.approx(2 * 0.5 ** result["only_second"])  # all of the differing ones on one side
        gain = (two.astype(float) - one.astype(float)).to_numpy()
        wanted = stats.bootstrap((gain,), np.mean, method="percentile", n_resamples=5000, rng=0).confidence_interval
        assert result["difference_interval"] == pytest.approx(wanted, abs=0.01)

    def test_the_difference_of_any_number_is_paired(self):
        one, two = (xu.compute_metrics(table, resamples=1) for table in (self.first, self.second))
        result = xu.compare_two(self.first, self.second, "recall_covid")
        assert result["difference"] == pytest.approx(two["recall_covid"] - one["recall_covid"])
        low, high = result["difference_interval"]
        assert low <= result["difference"] <= high
        assert set(result) == {"difference", "difference_interval"}, "McNemar's test is one of accuracy"
        none = xu.compare_two(self.first.query("label != 'virus'"), self.second, "recall_virus")
        assert none == {"difference": None, "difference_interval": None}
        same = xu.compare_two(self.first, self.first, "auc_covid")  # drawn for both at once: no spread
        covid = self.first[self.first.label == "covid"].group.nunique()
        t = stats.t.ppf(0.975, covid - 1)
        assert same["difference"] == 0
        assert same["difference_interval"] == pytest.approx([-(t**2) / (covid + t**2), t**2 / (covid + t**2)])

    def test_every_pair_has_a_row(self):
        table = xu.compare_pairs({"a": self.first, "b": self.second, "c": self.first[:60]})
        alone = xu.compare_pairs({"a": self.first})
        assert alone.empty and list(alone) == list(table)
        assert list(table.index) == ["b minus a", "c minus a", "c minus b"]
        result = xu.compare_two(self.first, self.second)
        row = table.loc["b minus a"]
        assert row["difference"] == xu.with_interval(result, "difference")
        assert (row["gained"], row["lost"]) == (result["only_second"], 0)
        assert row["McNemar p"] == result["p"] and pd.isna(table.loc["c minus a", "McNemar p"])

    def test_order_of_the_rows_does_not_matter(self):
        shuffled = self.second.sample(frac=1, random_state=1)
        result, wanted = xu.compare_two(self.first, shuffled), xu.compare_two(self.first, self.second)
        assert {key: result[key] for key in ("difference", "p")} == pytest.approx(
            {key: wanted[key] for key in ("difference", "p")}
        )

    def test_with_itself(self):
        result = xu.compare_two(self.first, self.first)
        low, high = result.pop("difference_interval")
        assert result == {"difference": 0, "only_first": 0, "only_second": 0, "p": 1}
        assert -low == high == pytest.approx(1 - 0.025 ** (1 / 120), abs=0.005), "none of 120 images differs: exact"

    def test_other_images_give_an_interval_but_no_mcnemar(self):
        result = xu.compare_two(self.first, self.second[60:])
        assert set(result) == {"difference", "difference_interval"}
        low, high = result["difference_interval"]
        assert low < result["difference"] < high

    def test_labels_that_contradict_are_refused(self):
        other = self.second.assign(label=np.roll(self.second.label, 1))
        with pytest.raises(ValueError, match="second: the same images have other labels"):
            xu.compare_two(self.first, other)


def test_metrics_table_holds_every_number():
    metrics = xu.compute_metrics(make_predictions(60))
    table = xu.metrics_table({"one": metrics, "other": metrics})
    wanted = ["accuracy", "balanced accuracy", "macro F1"]
    wanted += [f"recall {name}" for name in CLASSES] + ["sure but wrong"] + [f"AUC {name}" for name in CLASSES]
    assert list(table.index) == wanted and list(table.columns) == ["one", "other"]
    assert table.loc["AUC virus", "one"] == xu.with_interval(metrics, "auc_virus")


def sure(temperature, n=4000, seed=0):
    """Predictions whose probabilities were true before their logits were multiplied by `temperature`."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, 3)) * 1.5
    label = (logits + rng.gumbel(size=(n, 3))).argmax(axis=1)
    power = np.exp(logits * temperature)
    columns = dict(zip(COLUMNS, (power / power.sum(axis=1, keepdims=True)).T, strict=True))
    names = np.array(CLASSES)
    return pd.DataFrame({"file": range(n), "label": names[label], "predicted": names[logits.argmax(axis=1)], **columns})


def test_temperature_is_found_and_mends_the_calibration():
    validation, test = sure(2.5), sure(2.5, seed=1)
    temperature = xu.fit_temperature(validation)
    assert temperature == pytest.approx(2.5, rel=0.08)
    calmed = xu.apply_temperature(test, temperature)
    assert xu.calibration_error(test) > 0.1 > 0.03 > xu.calibration_error(calmed)
    assert (calmed[COLUMNS].to_numpy().argmax(axis=1) == test[COLUMNS].to_numpy().argmax(axis=1)).all()
    assert calmed[COLUMNS].sum(axis=1).to_numpy() == pytest.approx(1)
    with pytest.raises(ValueError, match="temperature: 0 must be a positive number"):
        xu.apply_temperature(test, 0)


def test_calibration_error_by_hand():
    table = pd.DataFrame(
        {
            "file": list("abcd"),
            "label": ["covid", "covid", "normal", "virus"],
            "predicted": ["covid", "normal", "normal", "virus"],
            "p_covid": [0.95, 0.15, 0.3, 0.2],
            "p_normal": [0.03, 0.75, 0.42, 0.05],
            "p_virus": [0.02, 0.1, 0.28, 0.75],
        }
    )
    bins = reliability(table)
    assert bins.images.to_list() == [1, 2, 1] and bins.accuracy.to_list() == [1, 0.5, 1]
    assert bins.confidence.to_list() == pytest.approx([0.42, 0.75, 0.95])
    assert xu.calibration_error(table) == pytest.approx((1 * 0.58 + 2 * 0.25 + 1 * 0.05) / 4)
