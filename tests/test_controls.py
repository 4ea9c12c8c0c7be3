"""Adding controls, on features whose truth is known."""

import numpy as np
import pandas as pd
import pytest

import xray_utils as xu


def world(disease=True):
    """Training: covid of adults, normal of children. Others: normal and covid adults. Two features: age, disease."""
    rng = np.random.default_rng(0)

    def images(label, adult, n, source):
        ill = float(label == "covid" and disease)
        features = rng.normal([4.0 * adult, 4.0 * ill], 0.5, (n, 2))
        rows = pd.DataFrame({"label": label, "source": source}, index=range(n))
        rows["group"] = rows["file"] = [f"{source} {label} {i}" for i in range(n)]
        return features, rows

    home = [images("covid", 1, 40, "home"), images("normal", 0, 40, "home"), images("virus", 0, 40, "home")]
    away = [images("normal", 1, 30, "far"), images("covid", 1, 20, "far")]
    joined = [
        (np.concatenate([f for f, _ in part]), pd.concat([r for _, r in part], ignore_index=True))
        for part in (home, away)
    ]
    return joined


def test_controls_help_where_the_disease_can_be_seen():
    (known, rows), (others, other_rows) = world()
    answers = xu.add_controls(known, rows, others, other_rows, counts=(0, 15), draws=5)
    table = xu.controls_table(answers).set_index("added")
    assert table["normal called covid"][15] < 0.1 < table["normal called covid"][0]
    assert table["covid recall"][15] > 0.9
    for name in ("normal called covid", "covid recall"):
        assert (table[f"{name} low"] <= table[name]).all() and (table[name] <= table[f"{name} high"]).all()


def test_controls_cost_covid_where_age_is_all_there_is():
    (known, rows), (others, other_rows) = world(disease=False)
    table = xu.controls_table(xu.add_controls(known, rows, others, other_rows, counts=(0, 20), draws=5, weight=5.0))
    before, after = table["covid recall"]
    assert before > 0.95 and after < before - 0.3


def test_nobody_is_added_and_evaluated_and_only_the_addable_are_added():
    (known, rows), (others, other_rows) = world()
    answers = xu.add_controls(known, rows, others, other_rows, counts=(0, 10), draws=4)
    each = answers.groupby(["draw", "added"]).group.agg(set)
    assert all(len([g for g in groups if "normal" in g]) == 20 for groups in each)
    assert all(each[draw, 0] == each[draw, 10] for draw in range(4)) and each[0, 0] != each[1, 0]
    again = xu.add_controls(known, rows, others, other_rows, counts=(0, 10), draws=4)
    pd.testing.assert_frame_equal(answers, again)
    place = other_rows.assign(addable=other_rows.index < 12)
    answers = xu.add_controls(known, rows, others, place, counts=(0, 12), draws=2)
    assert set(other_rows.group[12:]) == set(answers.group)
    with pytest.raises(ValueError, match="counts: 30 of 30 normal patients cannot be added, with others left"):
        xu.add_controls(known, rows, others, other_rows, counts=(0, 30))


def test_the_figure_says_before_and_after():
    table = pd.DataFrame({"added": [0, 4], "normal called covid": [0.9, 0.2]})
    for end in ("low", "high"):
        table[f"normal called covid {end}"] = table["normal called covid"]
    figure = xu.plot_controls({"NIH": table})
    assert figure.axes[0].get_title(loc="left") == "NIH\nnormal: 90%, then 20%"
