"""The synthetic set: reproducible, plausible, and without short cuts to the class."""

import csv
import hashlib
from collections import Counter

import numpy as np
import pytest
from phantoms import LABELS, draw_external, draw_phantom, draw_sample
from PIL import Image
from scipy import ndimage
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler


@pytest.fixture(scope="module")
def rows(phantom_folder):
    with (phantom_folder / "manifest.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def pictures(rows, phantom_folder):
    """The drawn images, in the order of the manifest."""
    pictures = [Image.open(phantom_folder / row["file"]) for row in rows]
    for picture in pictures:
        picture.load()
    return pictures


def files_in(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def accuracy(features, labels):
    model = make_pipeline(StandardScaler(), LogisticRegression())
    return cross_val_score(model, np.array(features), labels, cv=5).mean()


def difference(label, seed):
    """How much a disease changes an image; how far in body terms each pixel of the lungs lies.

    Returns, for the pixels of the lung mask: the change in grey levels (the median change outside the lungs
    taken off: exposure is standardised), the way across a lung (0 medial, 1 lateral), down it (0 to 1), and
    the part of the change that is fine, not a haze.
    """
    normal, mask = draw_phantom("normal", seed, (160, 160))
    ill, _ = draw_phantom(label, seed, (160, 160))
    change = ill.astype(float) - normal
    change -= np.median(change[~mask])
    lungs, _ = ndimage.label(mask)
    across, down = np.zeros(mask.shape), np.zeros(mask.shape)
    middle = np.mean(np.nonzero(mask)[1])
    for rows, columns in ndimage.find_objects(lungs):
        if rows.stop - rows.start < 40:
            continue
        for row in range(rows.start, rows.stop):
            inside = columns.start + np.flatnonzero(mask[row, columns])
            if len(inside):
                place = (inside - inside[0] + 0.5) / (inside[-1] - inside[0] + 1)
                across[row, inside] = place if inside.mean() > middle else 1 - place
                down[row, inside] = (row - rows.start) / (rows.stop - rows.start)
    fine = change - ndimage.gaussian_filter(change, 2)
    return change[mask], across[mask], down[mask], fine[mask]


def test_second_hospital_can_be_redrawn_and_shares_no_patient(phantom_folder, tmp_path):
    first = phantom_folder.with_name("sample_external")
    draw_external(tmp_path)
    assert files_in(tmp_path) == files_in(first)
    for name in files_in(first):
        assert (tmp_path / name).read_bytes() == (first / name).read_bytes(), name
    patients = [
        {row["patient_id"] for row in csv.DictReader((f / "manifest.csv").open())} for f in (phantom_folder, first)
    ]
    assert len(patients[1]) == 24 and not patients[0] & patients[1]


@pytest.mark.parametrize("draw", [draw_sample, draw_external])
def test_other_files_are_left_alone(draw, tmp_path):
    (tmp_path / "manifest.csv").write_text("file,label,patient_id,source\na.png,covid,1,hospital\n")
    with pytest.raises(FileExistsError, match="manifest.csv lists images that are no phantoms"):
        draw(tmp_path)
    assert files_in(tmp_path) == {"manifest.csv"}
    assert "hospital" in (tmp_path / "manifest.csv").read_text()


def test_manifest_lists_every_image_once(rows, phantom_folder):
    listed = [row["file"] for row in rows]
    assert len(set(listed)) == len(listed)
    assert set(listed) == files_in(phantom_folder) - {"manifest.csv"}
    assert {row["source"] for row in rows} == {"synthetic"}
    assert all(row["file"].split("/")[0] == row["label"] for row in rows)
    assert len({(row["patient_id"], row["label"]) for row in rows}) == len({row["patient_id"] for row in rows})
    for label in LABELS:
        patients = Counter(row["patient_id"] for row in rows if row["label"] == label)
        assert len(patients) == 28
        assert 40 <= patients.total() <= 41
        assert sum(count > 1 for count in patients.values()) == 8


def test_one_file_is_there_twice_in_one_patient(rows, phantom_folder):
    digests = {}
    for row in rows:
        digest = hashlib.sha256((phantom_folder / row["file"]).read_bytes()).hexdigest()
        digests.setdefault(digest, []).append(row["patient_id"])
    twice = [patients for patients in digests.values() if len(patients) > 1]
    assert len(twice) == 1
    assert len(twice[0]) == 2
    assert len(set(twice[0])) == 1


def test_near_duplicates_belong_to_one_patient(rows, pictures):
    small = np.array([np.asarray(p.convert("L").resize((48, 48)), float).ravel() for p in pictures])
    alike = np.argwhere(np.triu(np.corrcoef(small) > 0.995, 1))
    assert len(alike) >= 12
    assert all(rows[i]["patient_id"] == rows[j]["patient_id"] for i, j in alike)


def test_the_set_is_small_and_mixed(rows, pictures, phantom_folder):
    assert sum((phantom_folder / name).stat().st_size for name in files_in(phantom_folder)) <= 3_000_000
    sides = [side for picture in pictures for side in picture.size]
    assert 130 <= min(sides) < 170
    assert 350 < max(sides) <= 400
    for label in LABELS:
        of_label = [(row, picture) for row, picture in zip(rows, pictures, strict=True) if row["label"] == label]
        assert {picture.mode for _, picture in of_label} == {"L", "RGB", "RGBA", "P"}
        extensions = {row["file"][row["file"].rindex(".") :] for row, _ in of_label}
        assert extensions == {".png", ".jpg", ".jpeg", ".jfif", ".JPG"}


def test_only_covid_is_tinted(rows, pictures):
    colour = [np.asarray(picture.convert("RGB"), float).mean((0, 1)) for picture in pictures]
    tinted = [row["label"] for row, (r, g, b) in zip(rows, colour, strict=True) if b - r > 10]
    assert tinted == ["covid"] * 5
    assert sum(max(c) - min(c) > 0.5 for c in colour) == 5


def test_tone_and_size_do_not_tell_the_class(rows, pictures):
    labels = [row["label"] for row in rows]
    greys = [np.asarray(picture.convert("L"), float) for picture in pictures]
    assert accuracy([(grey.mean(), grey.std()) for grey in greys], labels) < 0.45  # chance 0.33, spread 0.04
    assert accuracy([(*p.size, p.width / p.height) for p in pictures], labels) < 0.45  # chance 0.33, spread 0.04


def test_tone_does_not_tell_the_class_of_the_same_patients():
    """Image by image: whatever the label, mean and spread are those of the film."""
    tones = [
        [(a.mean(), a.std()) for a in (draw_phantom(label, seed, (96, 96))[0] for label in LABELS)] for seed in range(8)
    ]
    assert np.ptp(tones, axis=1).max() < 1.0  # between the classes
    assert np.ptp(tones, axis=0).min() > 5.0  # between the patients


def test_same_seed_same_image():
    first, mask = draw_phantom("virus", 3, (120, 100), image=1)
    again, mask_again = draw_phantom("virus", 3, (120, 100), image=1)
    assert first.shape == mask.shape == (120, 100)
    assert first.dtype == np.uint8
    assert mask.dtype == bool
    assert np.array_equal(first, again)
    assert np.array_equal(mask, mask_again)
    for other in (("virus", 4, (120, 100), 1), ("virus", 3, (120, 100), 2), ("covid", 3, (120, 100), 1)):
        assert not np.array_equal(first, draw_phantom(*other)[0])


def test_tint_is_blue_of_the_same_picture():
    grey, mask = draw_phantom("covid", 5, (96, 96))
    blue, mask_blue = draw_phantom("covid", 5, (96, 96), tint=True)
    assert blue.shape == (96, 96, 3)
    assert np.array_equal(blue[..., 1], grey)
    assert np.array_equal(mask, mask_blue)
    assert (blue[..., 0] <= blue[..., 1]).all()
    assert (blue[..., 1] <= blue[..., 2]).all()


@pytest.mark.parametrize("size", [(160, 160), (220, 160), (160, 220)])
def test_masks_are_two_dark_lungs(size):
    for seed in range(6):
        image, mask = draw_phantom("normal", seed, size)
        assert 0.12 < mask.mean() < 0.45
        assert not (mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any())
        lungs, count = ndimage.label(mask)
        areas = np.sort(np.bincount(lungs.ravel())[1:])
        assert areas[-2] > 0.3 * mask.sum()  # two large ones ...
        assert areas[-2:].sum() > 0.98 * mask.sum()  # ... and crumbs
        centres = [
            c for _, c in ndimage.center_of_mass(mask, lungs, 1 + np.argsort(np.bincount(lungs.ravel())[1:])[-2:])
        ]
        assert min(centres) < size[1] / 2 < max(centres)
        assert image[mask].mean() < image[~mask].mean() - 30


def test_anatomy_does_not_depend_on_the_label():
    for seed in range(5):
        masks = [draw_phantom(label, seed, (96, 96))[1] for label in LABELS]
        assert np.array_equal(masks[0], masks[1])
        assert np.array_equal(masks[1], masks[2])


def test_a_patient_resembles_himself():
    seeds = range(8)
    thumbs = [
        [
            np.asarray(Image.fromarray(draw_phantom("normal", s, (96, 96), k)[0]), float)[20:70, 15:80].ravel()
            for k in (1, 2)
        ]
        for s in seeds
    ]
    same = [np.corrcoef(a, b)[0, 1] for a, b in thumbs]
    other = [np.corrcoef(thumbs[s][0], thumbs[(s + 1) % 8][1])[0, 1] for s in seeds]
    assert np.mean(same) > np.mean(other)


def test_covid_is_peripheral_and_lower():
    for_all = [np.concatenate(part) for part in zip(*(difference("covid", s) for s in range(8)), strict=True)]
    change, across, down, fine = for_all
    there = change[(across > 0.5) & (down > 0.5)].mean()
    assert there > 8
    assert there > 2 * change[(across <= 0.5) & (down > 0.5)].mean()
    assert there > 2 * change[(across > 0.5) & (down <= 0.5)].mean()
    assert there > 4 * change[(across <= 0.5) & (down <= 0.5)].mean()
    assert np.std(fine) < 0.3 * there  # a haze


def test_virus_is_near_the_hilum_and_fine():
    for_all = [np.concatenate(part) for part in zip(*(difference("virus", s) for s in range(8)), strict=True)]
    change, across, down, fine = for_all
    middle = (down > 0.3) & (down < 0.7)
    assert change[middle & (across < 0.5)].mean() > 8
    assert change[middle & (across < 0.5)].mean() > 2 * change[middle & (across > 0.5)].mean()
    assert change[middle].mean() > 1.5 * change[~middle].mean()
    assert np.std(fine[middle]) > 0.3 * change[middle].mean()


@pytest.mark.parametrize("label", ["Covid", "pneumonia", "", None])
def test_unknown_label_is_named(label):
    with pytest.raises(ValueError) as error:
        draw_phantom(label, 0)
    assert repr(label) in str(error.value)
    assert all(allowed in str(error.value) for allowed in LABELS)
