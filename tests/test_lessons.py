"""The lessons of the sample: what was measured holds what the course promises, and the page says the same."""

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "lessons"))

import intervals  # noqa: E402

import xray_utils as xu  # noqa: E402

RESULT = json.loads((ROOT / "results" / "sample.json").read_text())


@pytest.mark.parametrize("name, wanted", {"baseline": 0.80, "resnet18": 0.90, "vit, fine-tuned": 0.90}.items())
def test_the_networks_reach_on_the_sample_what_is_promised(name, wanted):
    found = RESULT["accuracy"][name]
    assert found["mean"] >= wanted and len(found["seeds"]) == 5
    assert np.mean(found["seeds"]) == pytest.approx(found["mean"])


def test_the_page_says_what_was_measured():
    page = (ROOT / "results" / "sample.md").read_text()
    for part in (RESULT["accuracy"], RESULT["differences"], RESULT["shortcuts"], *RESULT["external"].values()):
        for found in part.values():
            low, high = found["interval"]
            assert low - 1e-9 <= found["mean"] <= high + 1e-9  # a mean of ones may differ from one in its last place
            assert f"{found['mean']:.3f} [{low:.3f}, {high:.3f}]" in page


def predictions(seed, n=30):
    rng = np.random.default_rng(seed)
    p = rng.dirichlet([1, 1, 1], n)
    table = pd.DataFrame({"file": [f"{i}.png" for i in range(n)], "label": np.resize(xu.CLASSES, n)})
    table["predicted"] = np.array(xu.CLASSES)[p.argmax(axis=1)]
    table[["p_covid", "p_normal", "p_virus"]] = p
    return table.assign(group=[f"patient {i // 2}" for i in range(n)])


def test_a_mean_over_seeds_is_that_of_its_tables():
    tables = {seed: predictions(seed) for seed in range(3)}
    each = [table.label.eq(table.predicted).mean() for table in tables.values()]
    found = intervals.over_seeds(tables, "accuracy", resamples=200)
    assert found["seeds"] == pytest.approx(each) and found["mean"] == pytest.approx(np.mean(each))
    assert found["interval"][0] < found["mean"] < found["interval"][1]
    same = intervals.over_seeds(tables, "accuracy", tables, resamples=200)
    assert same["mean"] == 0 and same["interval"][0] <= 0 <= same["interval"][1]
    called = intervals.over_seeds(tables, intervals.called_covid, resamples=200)
    assert called["mean"] == pytest.approx(np.mean([t.predicted.eq("covid").mean() for t in tables.values()]))


def test_a_clear_difference_is_found():
    tables = {seed: predictions(seed) for seed in range(3)}
    right = {seed: table.assign(predicted=table.label) for seed, table in tables.items()}
    assert intervals.over_seeds(right, "accuracy", tables, resamples=200)["interval"][0] > 0
