"""The bundled sample: every file with its licence, and nobody in two places."""

import csv
import hashlib

import pytest

import xray_utils as xu
from xray_utils._support.paths import repository_dir
from xray_utils.images import CREDITS

FOLDERS = [repository_dir() / "data" / name for name in ("sample", "sample_external")]


def manifest(folder):
    with (folder / "manifest.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_every_file_is_listed_with_its_content_its_licence_and_its_credit(folder):
    rows = manifest(folder)
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert files == {row["file"] for row in rows} | {"manifest.csv"}
    for row in rows:
        assert hashlib.sha256((folder / row["file"]).read_bytes()).hexdigest() == row["sha256"], row["file"]
        assert row["licence"] and row["credit"] and row["patient_id"] and row["source"] in CREDITS


def test_the_samples_are_small_and_share_nobody():
    assert sum(path.stat().st_size for folder in FOLDERS for path in folder.rglob("*") if path.is_file()) <= 3_000_000
    patients = [{row["patient_id"] for row in manifest(folder)} for folder in FOLDERS]
    assert len(patients[0]) == 157 and len(patients[1]) == 29 and not patients[0] & patients[1]
    images = xu.audit_images(xu.find_images(FOLDERS[0]))
    assert len(images) == 228 and images.problem.eq("").all()
    assert len(xu.load_external(FOLDERS[1], images, size=16)) == 30  # a near-duplicate would have been left out


def test_the_pretrained_network_has_seen_nobody_of_either_sample():
    with (repository_dir() / "data" / "vit_tiny" / "images.csv").open(newline="", encoding="utf-8") as file:
        seen = {row["patient_id"] for row in csv.DictReader(file)}
    assert len(seen) == 731
    for folder in FOLDERS:
        assert not seen & {row["patient_id"] for row in manifest(folder)}


def test_a_figure_names_the_sources_of_its_images_and_no_others():
    images = xu.find_images(FOLDERS[0])
    both = "Images: Hannover Medical School, CC BY 3.0; Kermany et al., CC BY 4.0"
    assert xu.credit_line(images) == both
    assert xu.credit_line(images[images.label.eq("virus")]) == "Images: Kermany et al., CC BY 4.0"
    assert xu.credit_line(images.assign(source="mine")) == xu.credit_line(images.drop(columns="source")) == ""
