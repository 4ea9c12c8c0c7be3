"""The experiments that try to break a result: they must find what was planted, and nothing else."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import xray_utils as xu
from xray_utils._support.paths import repository_dir
from xray_utils.batches import batches
from xray_utils.lab import shortcuts
from xray_utils.prepared import PreparedData


@pytest.fixture(scope="module")
def data(tmp_path_factory, phantom_folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XRAY_OUTPUTS", str(tmp_path_factory.mktemp("outputs")))
        patch.setenv("XRAY_DATA", str(phantom_folder))
        return xu.load_data(size=64)


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(1, 256, (3, 50, 50, 3), dtype=np.uint8)


# ---------------------------------------------------------------- changed pixels


def test_centre_and_border_make_up_the_picture(pixels):
    border, centre = shortcuts.hide_centre(pixels), shortcuts.hide_border(pixels)
    assert (border + centre == pixels).all()
    assert (border[:, 6:44, 6:44] == 0).all() and (centre[:, :6] == 0).all() and (centre[:, :, 44:] == 0).all()
    assert (border == 0).all(axis=-1).mean() == pytest.approx((38 / 50) ** 2)


def test_grey_has_no_colour_and_blur_no_texture(pixels):
    grey = shortcuts.grey(pixels)
    assert (grey == grey[..., :1]).all() and np.abs(grey[..., 0] - pixels.mean(axis=-1)).max() <= 0.5
    blurred = shortcuts.blur(pixels)
    assert blurred.shape == pixels.shape and blurred.dtype == np.uint8
    assert blurred.std() < 0.1 * pixels.std() and abs(blurred.mean() - pixels.mean()) < 3


def test_a_changed_split_is_taken_changed_and_is_other_data(data):
    changed = xu.change_split(data.test, "only the border")
    assert (changed.take([0, 2]) == shortcuts.hide_centre(data.test.take([0, 2]))).all()
    assert len(changed) == len(data.test) and (changed.labels == data.test.labels).all()
    prints = {split.fingerprint() for split in (data.test, changed, xu.change_split(data.test, "grey"))}
    assert len(prints) == 3
    assert xu.change_split(data.test, lambda pixels: pixels).fingerprint() != changed.fingerprint()
    whole = xu.change_data(data, "heavy blur")
    assert (whole.val.take([1]) == shortcuts.blur(data.val.take([1]))).all() and whole.settings == data.settings


@pytest.mark.parametrize("room", [2**30, 0])
def test_an_image_is_changed_once_where_there_is_room(data, monkeypatch, room):
    monkeypatch.setattr(shortcuts, "ROOM", room)
    monkeypatch.setattr(shortcuts, "batches", lambda split, _: batches(split, 2))
    seen = []

    def smaller(pixels):
        seen.append(len(pixels))
        return pixels[:, ::2, ::2]

    changed = xu.change_split(data.test, smaller)
    for indices in ([2, 0], [0, 1, 2], [1, 1], np.arange(len(changed)) == 1, slice(1, 3)):
        assert (changed.take(indices) == data.test.take(indices)[:, ::2, ::2]).all()
    assert sum(seen) == (len(changed) if room else 10)
    assert changed.take([]).shape[0] == 0 and changed.fingerprint() == changed.fingerprint()


# ---------------------------------------------------------------- guessing


def rows(n, images_per_group=4):
    group = np.arange(n) // images_per_group
    label = np.random.default_rng(1).integers(3, size=group.max() + 1)[group]
    return pd.DataFrame({"file": [f"{i}.png" for i in range(n)], "label": np.array(xu.CLASSES)[label], "group": group})


def test_a_guess_finds_what_tells_the_class():
    table = rows(120)
    answers = xu.cross_validate(pd.get_dummies(table.label).to_numpy(float), table)
    assert answers.label.eq(answers.predicted).all()
    assert list(answers.file) == list(table.file)


def test_a_guess_knows_no_patient():
    table = rows(240)
    patients = np.random.default_rng(2).normal(size=(table.group.nunique(), 40))[table.group]  # tells the patient only
    answers = xu.cross_validate(patients, table)
    assert answers.label.eq(answers.predicted).mean() < 0.5
    alone = xu.cross_validate(patients, table.assign(group=table.file))  # the same, were every image its own patient
    assert alone.label.eq(alone.predicted).mean() > 0.8


def test_a_guess_needs_groups_enough():
    with pytest.raises(ValueError, match="folds: 5 are more than the 1 groups of class"):
        xu.cross_validate(np.zeros((12, 1)), rows(12).assign(label=["covid"] * 4 + ["virus"] * 8))


def test_all_images_stand_once_and_unmirrored(data):
    split = shortcuts.all_images(data)
    assert len(split) == 121 and split.rows.file.is_unique and not split.rows.mirrored.any()
    where = data.test.rows.index[0]
    same = split.rows.index[split.rows.file == data.test.rows.file[where]]
    assert (split.take(same)[0] == data.test.take([where])[0]).all()


# ---------------------------------------------------------------- the verdict


def test_no_shortcut_is_found_in_phantoms_without_one(data):
    table = xu.shortcut_table(xu.shortcut_baselines(data))
    assert table.loc["16 x 16, shuffled labels", "low"] <= 1 / 3
    assert (table.images == 121).all() and (table.low < table["balanced accuracy"]).all()
    sentence = xu.verdict(table)
    assert sentence.startswith("NO SHORTCUT FOUND")
    assert f"{table.loc['metadata only', 'balanced accuracy']:.2f}" in sentence


def test_a_marker_in_the_corner_is_found(data):
    markered = {side: xu.plant_marker(getattr(data, side)) for side in ("train", "val", "test")}
    rows = pd.concat([split.rows.assign(n=i) for i, split in enumerate(markered.values())], ignore_index=True)
    pixels = np.concatenate([split.pixels for split in markered.values()])
    keep = np.flatnonzero(~rows.file.duplicated())
    whole = shortcuts.Split(rows.loc[keep].reset_index(drop=True), pixels, keep)
    assert whole.rows.label.value_counts().to_dict() == {"normal": 41, "covid": 40, "virus": 40}
    empty = shortcuts.Split(whole.rows[:0], pixels, keep[:0])
    marked = PreparedData(whole, empty, empty, data.settings)
    table = xu.shortcut_table(xu.shortcut_baselines(marked))
    assert table.loc["only the border", "low"] > 0.6 > table.loc["metadata only", "high"]
    assert xu.verdict(table).startswith("SHORTCUT FOUND: with only the border")
    assert f"{table.loc['only the border', 'balanced accuracy']:.0%}" in xu.verdict(table)


def whole(data, change=lambda rows: {}):
    """The training side alone as the whole set, its metadata altered by class."""
    train = shortcuts.Split(data.train.rows.assign(**change(data.train.rows)), data.train.pixels, data.train.positions)
    empty = shortcuts.Split(data.val.rows[:0], data.val.pixels, data.val.positions[:0])
    return PreparedData(train, empty, empty, data.settings)


PLANTED = {"width": (300, 200, 250), "height": (9, 3, 20), "tint": (9.0, 0.0, -9.0), "mode": ("RGB", "L", "RGBA")}


@pytest.mark.parametrize("column, values", PLANTED.items())
def test_a_file_that_goes_with_the_class_is_found(data, column, values):
    planted = whole(data, lambda rows: {column: rows.label.map(dict(zip(xu.CLASSES, values, strict=True)))})
    split = shortcuts.all_images(planted)
    table = xu.shortcut_table(
        {name: xu.cross_validate(shortcuts.metadata_features(split.rows), split.rows) for name in shortcuts.AT_CHANCE}
    )
    assert xu.verdict(table).startswith("SHORTCUT FOUND: with metadata only")


@pytest.mark.parametrize("plant", ["exposure", "frame", "collimation"])
def test_a_picture_that_goes_with_the_class_outside_the_lungs_is_found(data, plant):
    split = shortcuts.all_images(whole(data))
    pixels, index = split.take(np.arange(len(split))), split.labels
    for one, i in zip(pixels, index, strict=True):
        if plant == "exposure":
            one[:] = np.clip(one * (0.8, 1.0, 1.2)[i], 0, 255)
        elif plant == "frame":
            one[:, : (1, 4, 8)[i]] = one[:, -(1, 4, 8)[i] :] = 0
        else:
            one[: (2, 10, 20)[i]] = 0
    rows = split.rows.assign(mirrored=False)
    planted = shortcuts.Split(rows, pixels, np.arange(len(rows)))
    seen = shortcuts.thumbnail_features(xu.change_split(planted, "only the border"))
    answers = {"only the border": xu.cross_validate(seen, rows)}
    answers["metadata only"] = xu.cross_validate(shortcuts.metadata_features(rows), rows)
    assert xu.verdict(xu.shortcut_table(answers)).startswith("SHORTCUT FOUND: with only the border")


def test_a_shortcut_is_seldom_found_where_there_is_none():
    """Twelve sets whose metadata know nothing of the class: one may be found by chance."""
    found = 0
    for seed in range(12):
        rng = np.random.default_rng(seed)
        files = [f"{i}.png" for i in range(90)]
        rows = pd.DataFrame({"file": files, "group": files, "label": np.repeat(xu.CLASSES, 30)})
        answers = xu.cross_validate(rng.normal(size=(90, 4)), rows)
        found += xu.verdict(xu.shortcut_table(dict.fromkeys(shortcuts.AT_CHANCE, answers))).startswith("SHORTCUT FOUND")
    assert found <= 3, "at one time in forty, more than this comes once in 6,000 runs"


def answers_right(share, n=90, seed=0):
    """Predictions of which about `share` are right."""
    rng = np.random.default_rng(seed)
    label = np.repeat(xu.CLASSES, n // 3)
    predicted = np.where(rng.random(n) < share, label, np.roll(label, n // 3))
    p = {f"p_{name}": np.where(predicted == name, 0.8, 0.1) for name in xu.CLASSES}
    return pd.DataFrame({"file": [f"{i}.png" for i in range(n)], "label": label, "predicted": predicted, **p})


def test_the_summary_marks_what_lies_beyond_the_expected():
    judged = xu.shortcut_table({name: answers_right(share) for name, share in
                       {"metadata only": 0.9, "only the border": 0.33, "16 x 16 pixels": 0.9}.items()})  # fmt: skip
    tables = {"as it is": 0.95, "grey": 0.95, "only the lungs": 0.4, "without the lungs": 0.8, "only the border": 0.3}
    tables = {how: answers_right(share) for how, share in tables.items()}
    two = [answers_right(share).query("label != 'virus'") for share in (0.98, 0.6)]
    table = xu.summarise(judged, tables, tables, (answers_right(1.0), answers_right(0.1)), two)
    assert list(table.columns) == ["score", "low", "high", "expected", "beyond"] and table.index.is_unique
    beyond = {"metadata only", "only the lungs", "without the lungs, network", "marker contradicts", "AUC external",
              "only the lungs, retrained", "without the lungs, retrained"}  # fmt: skip
    assert set(table.index[table.beyond]) == beyond
    row = table.loc["without the lungs, network"]
    assert row.score == pytest.approx(xu.compute_metrics(tables["without the lungs"])["balanced_accuracy"])
    assert row.expected == pytest.approx(1 / 3) and table.loc["grey", "expected"] == table.loc["as it is", "score"]
    assert np.isnan(table.loc["as it is", "expected"]) and len(table) == 3 + 2 * 5 + 2 + 2
    assert len(xu.summarise(judged, tables)) == 3 + 5
    luck = answers_right(0.42, seed=1)  # of a network at chance: what it loses lies within luck
    assert not xu.summarise(judged, {"as it is": luck, "grey": answers_right(0.35, seed=2)}).loc["grey", "beyond"]
    figure = xu.plot_experiments(table)
    axis = figure.axes[0]
    assert [label.get_text() for label in axis.get_yticklabels()] == list(table.index[table.expected.notna()])
    assert axis.get_title(loc="left") == "7 of 12 experiments\nlie beyond the value without a shortcut"


def test_the_marker_goes_with_the_class_and_can_be_swapped(data):
    marked, swapped = xu.plant_marker(data.test), xu.plant_marker(data.test, shift=1)
    corner = {
        label: marked.take(np.flatnonzero(data.test.rows.label == label)[:1])[0, 2:6, 2:6, 0] for label in xu.CLASSES
    }
    assert all(
        (corner[a] != corner[b]).any() for a, b in (("covid", "normal"), ("normal", "virus"), ("virus", "covid"))
    )
    covid = np.flatnonzero(data.test.rows.label == "covid")[:1]
    assert (swapped.take(covid)[0, 2:6, 2:6, 0] == corner["normal"]).all()
    assert (marked.take([0])[0, 8:] == data.test.take([0])[0, 8:]).all()


# ---------------------------------------------------------------- another hospital


def hospital(folder, images):
    """A folder of images `{file: pixels}` with a patient of their own, or that of the second part of the pair."""
    table = []
    for file, image in images.items():
        image, patient = image if isinstance(image, tuple) else (image, file)
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / file)
        table.append({"file": file, "label": file.split("/")[0], "patient_id": patient, "view": "AP"})
    pd.DataFrame(table).to_csv(folder / "manifest.csv", index=False)
    return folder


def test_what_training_knows_is_left_out_of_an_external_set(tmp_path, capsys):
    from phantoms import draw_phantom

    own = [draw_phantom("covid", seed, (96, 96))[0] for seed in range(4)]
    home = hospital(tmp_path / "home", {f"covid/{i}.png": image for i, image in enumerate(own)} | {
        f"normal/{i}.png": draw_phantom("normal", 50 + i, (96, 96))[0] for i in range(2)})  # fmt: skip
    new = [draw_phantom("covid", 100 + seed, (96, 96))[0] for seed in range(3)]
    away = hospital(
        tmp_path / "away",
        {
            "covid/copy.png": own[0],
            "covid/small.png": np.asarray(Image.fromarray(own[1]).resize((80, 80))),
            "covid/mirror.png": own[2][:, ::-1],
            "covid/known_patient.png": (new[0], "covid/3.png"),
            "covid/new1.png": new[1],
            "covid/new2.png": new[2],
        },
    )
    images = xu.audit_images(xu.find_images(home))
    external = xu.load_external(away, images, size=64)
    assert sorted(external.rows.file) == ["covid/new1.png", "covid/new2.png"]
    assert external.take([0, 1]).shape == (2, 64, 64, 3) and set(external.rows["view"]) == {"AP"}
    said = capsys.readouterr().out
    assert "left out: 3 that training has too, 1 of patients in training" in said
    with pytest.raises(ValueError, match="holds no image that training does not know"):
        xu.load_external(home, images)


def test_sets_without_known_patients_can_be_compared(tmp_path):
    from phantoms import draw_phantom

    for place, first in (("home", 0), ("away", 10)):
        for i, label in enumerate(("covid", "normal")):
            (tmp_path / place / label).mkdir(parents=True)
            pixels = draw_phantom(label, first + i, (96, 96))[0]
            Image.fromarray(pixels).save(tmp_path / place / label / f"{label}{first}.png")
    images = xu.audit_images(xu.find_images(tmp_path / "home"))
    assert images.patient.isna().all()
    assert len(xu.load_external(tmp_path / "away", images, size=64)) == 2  # nobody is taken for the same patient


def test_where_the_other_hospital_is(tmp_path, monkeypatch):
    assert xu.external_dir() == repository_dir() / "data" / "sample_external"
    monkeypatch.setenv("XRAY_EXTERNAL", str(tmp_path))
    assert xu.external_dir() == tmp_path
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XRAY_EXTERNAL", "data/sample_external")  # relative: from here, or from the repository
    assert xu.external_dir() == repository_dir() / "data" / "sample_external"
    monkeypatch.setenv("XRAY_EXTERNAL", str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match="XRAY_EXTERNAL is '.*nowhere', which is no folder"):
        xu.external_dir()
    monkeypatch.delenv("XRAY_EXTERNAL")
    monkeypatch.setenv("XRAY_DATA", str(tmp_path))
    own = repository_dir() / "data" / "external"
    assert xu.external_dir() == (own if own.is_dir() else None)  # real images are not tried on drawings
