"""Asking within a source, and refusing: by hand, and on made features with a planted source."""

from pathlib import Path

import numpy as np
import pandas as pd
import phantoms
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from test_training import make_data

import xray_utils as xu
from xray_utils.lab import lungs
from xray_utils.lab.lungs import LungFields


def world(rng, n=150, home=True):
    """Features: illness in the first, the source in the second, noise behind. Internally all covid is far."""
    label = np.array(["covid", "normal", "virus"] if home else ["covid", "normal"])[
        rng.integers(3 if home else 2, size=n)
    ]
    far = label == "covid" if home else np.full(n, True)
    features = rng.normal(size=(n, 6))
    features[:, 0] += 2.5 * (label != "normal")
    features[:, 1] += 8.0 * far
    files = [f"{'h' if home else 'a'}{i}.png" for i in range(n)]
    rows = {"file": files, "label": label, "group": files, "source": np.where(far, "far", "near")}
    return features, pd.DataFrame(rows)


def table(p, label="covid"):
    p = np.atleast_2d(p)
    files = [f"{i}.png" for i in range(len(p))]
    columns = {"file": files, "label": label, "predicted": np.array(xu.CLASSES)[p.argmax(axis=1)]}
    return pd.DataFrame(columns).assign(**{f"p_{name}": p[:, i] for i, name in enumerate(xu.CLASSES)})


def test_equalised_pictures_are_grey_and_use_all_tones_alike():
    rng = np.random.default_rng(0)
    dark = (rng.random((2, 64, 64, 3)) ** 4 * 60).astype(np.uint8)
    kept = dark.copy()
    seen = xu.equalise(dark)
    assert (dark == kept).all() and seen.shape == dark.shape and seen.dtype == np.uint8
    assert (seen[..., 0] == seen[..., 1]).all() and (seen[..., 1] == seen[..., 2]).all()
    assert abs(seen.mean() - 127.5) < 5 and seen.min() < 5 and seen.max() > 250
    grey = dark[..., :1].repeat(3, axis=-1)
    brighter = np.minimum(grey.astype(int) * 2 + 30, 255).astype(np.uint8)  # another exposure of the same
    assert np.abs(xu.equalise(grey).astype(int) - xu.equalise(brighter)).max() <= 1


def test_the_box_of_the_lungs_fills_the_picture(monkeypatch):
    pixels = np.full((2, 40, 40, 3), 200, np.uint8)
    pixels[:, 10:30, 8:32] = 50
    masks = np.zeros((2, 40, 40), bool)
    masks[0, 10:30, 8:32] = True  # of the second nothing is found
    monkeypatch.setattr(lungs, "lung_fields", lambda p: LungFields(masks, np.ones(2), np.ones(2, bool)))
    seen = xu.crop_lungs(pixels, margin=0)
    assert seen.shape == pixels.shape and (seen[1] == pixels[1]).all()
    assert (seen[0, 1:-1, 1:-1] == 50).all(), "but for the outermost pixels, which blend with what was cut off"
    wide = xu.crop_lungs(pixels, margin=0.1)[0]  # 4 pixels of 28 and 32 around
    assert (wide[20, 20] == 50).all() and (wide[0] == 200).all() and (wide[:, 0] == 200).all()
    assert 0.45 < (wide == 50).mean() < 0.54  # 20 * 24 of 28 * 32 = 0.54, less of soft edges


def test_the_configuration_of_one_line_cuts_and_then_equalises():
    pixels = np.stack([phantoms.draw_phantom("normal", seed, (96, 96))[0] for seed in (1, 2)])
    pixels = pixels if pixels.ndim == 4 else pixels[..., None].repeat(3, axis=-1)
    seen = xu.lung_box(pixels)
    assert (seen == xu.equalise(xu.crop_lungs(pixels))).all() and not (seen == xu.equalise(pixels)).all()


def test_only_the_odds_of_the_two_classes_count():
    asked = xu.covid_vs_normal(table([[0.2, 0.1, 0.7], [0.0, 0.0, 1.0], [0.1, 0.3, 0.6]], ["covid", "normal", "virus"]))
    assert asked.label.tolist() == ["covid", "normal"]
    assert asked.p_covid.tolist() == pytest.approx([2 / 3, 0.5]) and asked.predicted.tolist() == ["covid", "normal"]
    assert xu.covid_vs_normal(table([[0.2, 0.1, 0.7]]), "virus").p_covid.tolist() == pytest.approx([7 / 8])


def test_within_sources_that_hold_both_no_place_is_told_from_another():
    asked = table([[0.2, 0.8, 0.0], [0.1, 0.9, 0.0], [0.9, 0.1, 0.0]], ["covid", "normal", "normal"])
    asked = asked.assign(source=["a", "a", "b"])
    assert xu.covid_vs_normal(asked, within=True).p_covid.tolist() == [0.2, 0.1]
    assert len(xu.covid_vs_normal(asked)) == 3
    with pytest.raises(ValueError, match="no source holds normal and other"):
        xu.covid_vs_normal(asked[1:], within=True)


def test_a_source_counts_where_it_holds_normal_and_others():
    rows = pd.DataFrame({"label": ["covid", "normal", "virus", "normal", "virus"], "source": list("abbcd")})
    assert xu.within_sources(rows).tolist() == [False, True, True, False, False]
    with pytest.raises(ValueError, match="no source holds normal and other"):
        xu.within_sources(rows[rows.source != "b"])


def test_shared_sources_leave_the_test_alone():
    data = make_data()
    for split in (data.train, data.val, data.test):
        split.rows["source"] = np.where(split.rows.label.eq("covid"), "far", "near")
    found = xu.shared_sources(data)
    assert set(found.train.rows.label) == set(found.val.rows.label) == {"normal", "virus"}
    assert found.test.fingerprint() == data.test.fingerprint() and len(found.test) == len(data.test)
    wanted = np.flatnonzero(data.train.rows.label.ne("covid"))
    assert (found.train.take(np.arange(len(found.train))) == data.train.take(wanted)).all()


@pytest.mark.parametrize("make", [xu.baseline_cnn, lambda: xu.vit(None)])
def test_features_are_what_the_last_layer_sees(make):
    model, data = make(), make_data(size=224 if make is not xu.baseline_cnn else 32)
    found = xu.features(model, data.test, batch_size=4)
    last = model.classifier if hasattr(model, "classifier") else model[-1]
    with torch.no_grad():
        p = last(torch.from_numpy(found)).softmax(dim=1).numpy()
    assert np.allclose(p, xu.predict(model, data.test)[["p_covid", "p_normal", "p_virus"]], atol=1e-5)
    assert not any(module._forward_pre_hooks for module in model.modules() if isinstance(module, torch.nn.Linear))


def test_learned_within_a_source_it_holds_in_another_place():
    rng = np.random.default_rng(0)
    (known, rows), (asked, away) = world(rng), world(rng, home=False)
    scores = xu.pneumonia_scores(known, rows, asked)
    assert xu.covid_auc(away, scores)["auc_covid"] > 0.9
    everything = xu.cross_validate(known, rows)  # the plain way has learned the source
    assert everything.predicted.eq(rows.label).mean() > 0.9
    assert (xu.pneumonia_scores(known, rows, known + [0, 8, 0, 0, 0, 0]) > 0).mean() == pytest.approx(
        (xu.pneumonia_scores(known, rows, known) > 0).mean(), abs=0.1
    ), "moving everybody to the far source must not make them ill"


def test_covid_answers_alone_are_doubted():
    predictions = table([[0.9, 0.1, 0], [0.1, 0.9, 0], [0.8, 0.0, 0.2]], ["covid", "normal", "normal"])
    assert xu.uncertainty(predictions, [2.0, -3.0, -1.0]).tolist() == [-2.0, -np.inf, 1.0]


def test_abstaining_where_uncertain_lowers_the_error_and_is_counted():
    predictions = table([[0.9, 0.1, 0], [0.1, 0.9, 0], [0.8, 0.0, 0.2], [0.7, 0.3, 0]], ["covid"] + ["normal"] * 3)
    scores = xu.uncertainty(predictions, [2.0, -3.0, -1.0, 0.5])
    curve = xu.risk_coverage(predictions, scores)
    assert curve.coverage.tolist() == [0.25, 0.5, 0.75, 1] and curve.risk.tolist() == pytest.approx([0, 0, 1 / 3, 0.5])
    assert xu.risk_coverage(predictions, [-np.inf, -np.inf, 1, 0]).coverage.tolist() == [0.5, 0.75, 1]
    kept = xu.abstain(predictions, scores, threshold=0.0)
    assert kept["answered"] == 0.75 and kept["covid_answered"] == 1 and kept["normal_safe"] == pytest.approx(2 / 3)
    assert xu.abstain(predictions, scores, np.inf)["normal_safe"] == pytest.approx(1 / 3)
    low, high = kept["normal_safe_interval"]
    assert low < 2 / 3 < high
    assert xu.abstain(predictions[:1], scores[:1], 0.0)["normal_safe"] is None


def test_from_the_layer_of_the_adversary_the_class_can_be_told_and_the_source_not(monkeypatch):
    """`results/scripts/configurations.py`: virus and normal from two sources, the features full of which."""
    monkeypatch.syspath_prepend(Path(__file__).resolve().parents[1] / "results" / "scripts")
    from configurations import Adversary

    rng, n = np.random.default_rng(0), 600
    label = rng.choice(xu.CLASSES, n)
    source = np.where(label == "covid", "a", rng.choice(["b", "c"], n))
    x = rng.normal(size=(n, 50))
    for column, true in enumerate((label == "normal", label == "covid", source == "b")):
        x[:, column] += 3 * true
    x = (x - x.mean(axis=0)) / x.std(axis=0)  # as `Probe` does
    adversary = Adversary(source, seed=0).fit(x, label)
    assert (adversary.classes_[adversary.decision_function(x).argmax(axis=1)] == label).mean() > 0.9
    seen = adversary.layer(torch.tensor(x, dtype=torch.float32)).detach().numpy()
    told = []
    for known in (x, seen):
        half, rest = np.flatnonzero(label != "covid")[::2], np.flatnonzero(label != "covid")[1::2]
        told.append(LogisticRegression(max_iter=2000).fit(known[half], source[half]).score(known[rest], source[rest]))
    assert told[0] > 0.85 and told[1] < 0.7, told
