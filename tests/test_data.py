"""Finding, fetching, reading and auditing images, on small trees that the tests draw."""

import hashlib
import io
import itertools
import os
import shutil
import stat
import struct
import urllib.error
import urllib.request
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from phantoms import draw_phantom
from PIL import Image

import xray_utils as xu
from xray_utils import audit as audit_module
from xray_utils._support import archives, datasets
from xray_utils._support import decode as decode_module


def draw(path, seed=0, size=(12, 10), **options):
    """Write one tiny image of noise, in the format that its extension says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    grey = np.random.default_rng(seed).integers(0, 256, size[::-1], dtype=np.uint8)
    kind = "JPEG" if path.suffix.lower() in (".jpg", ".jpeg", ".jfif") else None
    Image.fromarray(grey).save(path, kind, **options)
    return path


def draw_tree(root, files):
    """Draw all `files` under `root`, each a different image; names that are no image get a few words."""
    for seed, name in enumerate(files):
        if name.lower().endswith(decode_module.EXTENSIONS):
            draw(root / name, seed)
        else:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text("some words\n")
    return root


def hashes(root):
    """Every file under `root` with the sha256 of its content."""
    return {p: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(Path(root).rglob("*")) if p.is_file()}


def left_out(capsys):
    """What was said to be left out: {reason: count}."""
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Left out: ")]
    parts = lines[0].removeprefix("Left out: ").split(", ") if lines else []
    return {reason: int(number) for number, reason in (part.split(" ", 1) for part in parts)}


# ---------------------------------------------------------------- find

LAYOUTS = {  # a name: the files with their class (None: left out), and what is counted aloud
    "COVID_IEEE": (
        {
            "COVID_IEEE/covid/a.JPG": "covid",
            "COVID_IEEE/covid/b.jfif": "covid",
            "COVID_IEEE/covid/c.webp": "covid",
            "COVID_IEEE/normal/a.jpeg": "normal",
            "COVID_IEEE/normal/b.Bmp": "normal",
            "COVID_IEEE/normal/c.GIF": "normal",
            "COVID_IEEE/virus/a.PNG": "virus",
            "COVID_IEEE/virus/b.tif": "virus",
            "COVID_IEEE/virus/notes.txt": None,
        },
        {},
    ),
    "COVID_IEEE with train and a flat test": (
        {
            "COVID_IEEE/train/covid/a.jpg": "covid",
            "COVID_IEEE/train/normal/a.jpg": "normal",
            "COVID_IEEE/train/virus/a.jpg": "virus",
            "COVID_IEEE/test/1.jpg": None,
            "COVID_IEEE/test/2.png": None,
        },
        {"in no class folder": 2},
    ),
    "COVID_IEEE from inside, with a flat test": (
        {
            "train/covid/a.jpg": "covid",
            "train/normal/a.jpg": "normal",
            "train/virus/a.jpg": "virus",
            "test/1.jpg": None,
        },
        {"in no class folder": 1},
    ),
    "COVID-19_Radiography_Dataset": (
        {
            **{f"COVID-19_Radiography_Dataset/COVID/images/COVID-{i}.png": "covid" for i in (1, 2)},
            **{f"COVID-19_Radiography_Dataset/COVID/masks/COVID-{i}.png": None for i in (1, 2)},
            "COVID-19_Radiography_Dataset/Normal/images/Normal-1.png": "normal",
            "COVID-19_Radiography_Dataset/Normal/masks/Normal-1.png": None,
            "COVID-19_Radiography_Dataset/Viral Pneumonia/images/Viral Pneumonia-1.png": "virus",
            "COVID-19_Radiography_Dataset/Viral Pneumonia/masks/Viral Pneumonia-1.png": None,
            "COVID-19_Radiography_Dataset/Lung_Opacity/images/Lung_Opacity-1.png": None,
            "COVID-19_Radiography_Dataset/Lung_Opacity/masks/Lung_Opacity-1.png": None,
            "COVID-19_Radiography_Dataset/README.md.txt": None,
        },
        {"masks": 5, "lung opacity": 1},
    ),
    "Covid19-dataset": (
        {
            "Covid19-dataset/train/Covid/01.jpeg": "covid",
            "Covid19-dataset/train/Normal/01.jpeg": "normal",
            "Covid19-dataset/train/Viral Pneumonia/01.jpeg": "virus",
            "Covid19-dataset/test/Covid/0100.jpeg": "covid",
            "Covid19-dataset/test/Normal/0101.jpeg": "normal",
            "Covid19-dataset/test/Viral Pneumonia/0101.jpeg": "virus",
        },
        {},
    ),
    "chest-xray-pneumonia beside a covid folder": (
        {
            "covid/a.png": "covid",
            "train/NORMAL/IM-0115-0001.jpeg": "normal",
            "val/NORMAL/NORMAL2-IM-1427-0001.jpeg": "normal",
            "train/PNEUMONIA/person7_virus_10.jpeg": "virus",
            "train/PNEUMONIA/person7_virus_11.jpeg": "virus",
            "test/PNEUMONIA/person7_bacteria_28.jpeg": None,
            "test/PNEUMONIA/other.jpeg": None,
        },
        {"bacteria": 1, "pneumonia of unknown kind": 1},
    ),
    "folders that are none of ours": (
        {
            "covid/a.png": "covid",
            "No_Findings/a.png": "normal",
            "SARS-CoV-2/a.png": "covid",
            "virus/a.png": "virus",
            "Inconclusive/a.png": None,
            ".ipynb_checkpoints/a-checkpoint.png": None,
            "covid/.ipynb_checkpoints/a-checkpoint.png": None,
            "covid/._a.png": None,
            "__MACOSX/covid/a.png": None,
            **dict.fromkeys(["covid/b.heic", "virus/c.HEIC", "virus/d.avif", "virus/.e.heic"]),
        },
        {"hidden": 5, "inconclusive": 1, ".heic (export as PNG)": 2, ".avif (export as PNG)": 1},
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_find_images_reads_public_layout(layout, tmp_path, capsys):
    files, counted = LAYOUTS[layout]
    root = draw_tree(tmp_path / "tree", files)
    images = xu.find_images(root)
    assert dict(zip(images.file, images.label, strict=True)) == {f: c for f, c in files.items() if c}
    assert list(images.file) == sorted(images.file)
    assert left_out(capsys) == counted
    assert images.source.eq("tree").all() and images.attrs["root"] == str(root)


def test_patient_comes_from_known_file_names_only(tmp_path):
    files, _ = LAYOUTS["chest-xray-pneumonia beside a covid folder"]
    images = xu.find_images(draw_tree(tmp_path, files)).set_index("file")
    assert images.group.to_dict() == {
        "covid/a.png": "covid/a.png",
        "train/NORMAL/IM-0115-0001.jpeg": "normal:IM-0115",
        "val/NORMAL/NORMAL2-IM-1427-0001.jpeg": "normal:NORMAL2-IM-1427",
        "train/PNEUMONIA/person7_virus_10.jpeg": "virus:person7",
        "train/PNEUMONIA/person7_virus_11.jpeg": "virus:person7",
    }
    assert images.patient.isna().to_dict()["covid/a.png"]


def write_manifest(root, text):
    """Draw a.png to d.png and write the manifest."""
    draw_tree(root, ["a.png", "sub/b.png", "images/c.png", "d.png"])
    (root / "manifest.csv").write_text(text)
    return root


def test_manifest_gives_class_patient_and_source(tmp_path, capsys):
    root = write_manifest(
        tmp_path,
        "label,file,patient_id,source,view\nCOVID-19,sub/b.png,p1,here,PA\nNormal,a.png,,there,\n"
        "viral pneumonia,c.png,p2,,AP\nbacteria,d.png,p3,here,PA\n",
    )
    images = xu.find_images(root).set_index("file")
    assert images.label.to_dict() == {"a.png": "normal", "images/c.png": "virus", "sub/b.png": "covid"}
    assert images.group.to_dict() == {"a.png": "a.png", "images/c.png": "p2", "sub/b.png": "p1"}
    assert images.source.to_dict() == {"a.png": "there", "images/c.png": tmp_path.name, "sub/b.png": "here"}
    assert left_out(capsys) == {"bacteria": 1}


def test_manifest_counts_images_it_does_not_name(tmp_path, capsys):
    root = write_manifest(tmp_path, "file,label\n./a.png,covid\nsub/../d.png,normal\n")
    draw(root / ".hidden" / "e.png")
    assert xu.find_images(root).file.tolist() == ["a.png", "d.png"]
    assert left_out(capsys) == {"not in manifest.csv": 2, "hidden": 1}


@pytest.mark.parametrize(
    "text, error, words",
    [
        ("name,label\na.png,covid\n", ValueError, ["'file'", "missing", "name, label"]),
        ("file,class\na.png,covid\n", ValueError, ["'label'", "missing", "file, class"]),
        ("file,label\na.png,covid\ngone.png,normal\n", FileNotFoundError, ["1 of its files", "'gone.png'"]),
        ("file,label\na.png,covid\n../outside.png,normal\n", ValueError, ["'../outside.png'", "outside"]),
        ("file,label\na.png,covid\n../gone.png,normal\n", FileNotFoundError, ["'../gone.png'"]),
        ("file,label\na.png,covid\n../link.png,normal\n", ValueError, ["'../link.png'", "outside"]),
        ("file,label\na.png,covid\n{outside},normal\n", ValueError, ["outside.png", "outside"]),
        ("file,label\na.png,covid\nd.png,dog\n", ValueError, ["'dog'", "'d.png'", "normal"]),
        ("file,label\na.png,covid\na.png,normal\n", ValueError, ["repeated"]),
        ("file,label\na.png,covid\n./a.png,normal\n", ValueError, ["twice"]),
        ("file,label\na.png,covid\n,normal\n", ValueError, ["empty"]),
        ("file,label\na.png,covid\nd.png,covid\n", ValueError, ["one class only", "'covid'", "2 images", "virus"]),
        ("file,label\n", FileNotFoundError, ["no images", "manifest.csv"]),
    ],
)
def test_manifest_errors_say_what_and_where(text, error, words, tmp_path):
    outside = draw(tmp_path / "outside.png")
    (tmp_path / "link.png").symlink_to(outside)
    root = write_manifest(tmp_path / "tree", text.format(outside=outside))
    with pytest.raises(error) as caught:
        xu.find_images(root)
    assert all(word in str(caught.value) for word in words), caught.value


def test_links_inside_the_folder_are_followed_once(tmp_path):
    store = draw_tree(tmp_path / "store", ["a.png"])
    root = draw_tree(tmp_path / "tree", ["normal/b.png"])
    (root / "covid").symlink_to(store, target_is_directory=True)
    (root / "normal" / "loop").symlink_to(root, target_is_directory=True)
    assert xu.find_images(root).file.tolist() == ["covid/a.png", "normal/b.png"]
    (root / "manifest.csv").write_text("file,label\ncovid/a.png,covid\nnormal/b.png,normal\n")
    assert xu.find_images(root).file.tolist() == ["covid/a.png", "normal/b.png"]


@pytest.mark.parametrize(
    "files, error, words",
    [
        ([], FileNotFoundError, ["no images", "found nothing", "Expected", "covid, normal, virus", ".jpg"]),
        (["notes.txt", "covid/a.heic"], FileNotFoundError, ["no images", "found covid, notes.txt", "Expected", ".jpg"]),
        (["covid/a.png", "covid/b.png"], ValueError, ["'covid'", "2 images", "at least two of covid, normal, virus"]),
        (["covid/a.png", "normal/b.png", "cats/c.png"], ValueError, ["'cats'", "cats/c.png", 'labels={"cats": "?"}']),
    ],
)
def test_folder_errors_say_what_was_found_and_expected(files, error, words, tmp_path):
    with pytest.raises(error) as caught:
        xu.find_images(draw_tree(tmp_path, files))
    assert all(word in str(caught.value) for word in words), caught.value


def test_find_images_names_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        xu.find_images(tmp_path / "nowhere")


# ---------------------------------------------------------------- download

PAGES = {
    "covid-cxr": "https://www.kaggle.com/datasets/sid321axn/covid-cxr-image-dataset-research",
    "actualmed": "https://github.com/agchung/Actualmed-COVID-chestxray-dataset",
}


def fail(*args, **kwargs):
    raise urllib.error.URLError("no network here")


def zip_of(members):
    """A zip archive in memory; a member is (name, content) or (ZipInfo, content)."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members:
            archive.writestr(name, content)
    file.seek(0)
    return file


@pytest.mark.parametrize("source", PAGES)
def test_failed_download_says_which_page_and_folder(source, tmp_path, monkeypatch):
    monkeypatch.setattr("kagglehub.dataset_download", fail)
    monkeypatch.setattr(urllib.request, "urlopen", fail)
    folder = tmp_path / "data" / "xray"
    with pytest.raises(RuntimeError) as caught:
        xu.download_images(source, folder)
    assert PAGES[source] in str(caught.value).split() and str(folder) in str(caught.value).split()
    assert "no network here" in str(caught.value)
    assert list(folder.parent.iterdir()) == []


def test_download_from_kaggle_is_whole(tmp_path, monkeypatch):
    cache = draw_tree(tmp_path / "cache", ["COVID_IEEE/covid/a.jpg", "COVID_IEEE/normal/b.png", ".marker"])
    asked = []
    monkeypatch.setattr("kagglehub.dataset_download", lambda name: asked.append(name) or str(cache))
    folder = tmp_path / "data" / "xray"
    assert xu.download_images("covid-cxr", folder) == folder
    assert asked == ["sid321axn/covid-cxr-image-dataset-research"]
    assert sorted(hashes(folder)) == [folder / ".source", folder / "covid/a.jpg", folder / "normal/b.png"]
    assert (folder / "covid/a.jpg").read_bytes() == (cache / "COVID_IEEE/covid/a.jpg").read_bytes()
    assert (folder / ".source").read_text() == "covid-cxr"  # so that use_images need not fetch it again
    assert list(folder.parent.iterdir()) == [folder]
    assert xu.find_images(folder).label.tolist() == ["covid", "normal"]


def test_download_keeps_class_folders_side_by_side(tmp_path, monkeypatch):
    cache = draw_tree(tmp_path / "cache", ["covid/a.jpg", "normal/b.png"])
    monkeypatch.setattr("kagglehub.dataset_download", lambda name: str(cache))
    (tmp_path / "xray").mkdir()  # empty: may be filled
    folder = xu.download_images("covid-cxr", tmp_path / "xray")
    assert xu.find_images(folder).file.tolist() == ["covid/a.jpg", "normal/b.png"]


@pytest.mark.parametrize("broken", ["no images", "a copy that stops"])
def test_download_that_gives_no_whole_set_leaves_no_folder(broken, tmp_path, monkeypatch):
    cache = draw_tree(tmp_path / "cache", ["readme.txt"] + ["covid/a.jpg"] * (broken != "no images"))
    if broken == "a copy that stops":
        (cache / "normal.png").symlink_to(tmp_path / "gone.png")
    monkeypatch.setattr("kagglehub.dataset_download", lambda name: str(cache))
    with pytest.raises(RuntimeError, match="could not be downloaded"):
        xu.download_images("covid-cxr", tmp_path / "data" / "xray")
    assert list((tmp_path / "data").iterdir()) == []


def test_download_from_github_is_pinned_and_unpacked(tmp_path, monkeypatch):
    picture = draw(tmp_path / "a.png").read_bytes()
    archive = zip_of(
        [("Actualmed-1/images/a.png", picture), ("Actualmed-1/images/b.png", picture)]
        + [("Actualmed-1/metadata.csv", "imagename,finding,patientid\na.png,COVID-19,1\nb.png,No finding,2\n")]
    )
    asked = []
    monkeypatch.setattr(urllib.request, "urlopen", lambda url, timeout: asked.append(url) or archive)
    folder = xu.download_images("actualmed", tmp_path / "data" / "external")
    assert asked == [f"{PAGES['actualmed']}/archive/{datasets.SOURCES['actualmed'][2]}.zip"]
    assert xu.find_images(folder).file.tolist() == ["images/a.png", "images/b.png"]
    assert list(folder.parent.iterdir()) == [folder]


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_download_never_replaces_what_is_there(kind, tmp_path, monkeypatch):
    monkeypatch.setattr("kagglehub.dataset_download", lambda name: pytest.fail("fetched for nothing"))
    mine = draw(tmp_path / "xray" / "mine.png") if kind == "folder" else draw(tmp_path / "xray.png")
    before = hashes(tmp_path)
    with pytest.raises(FileExistsError, match="xray"):
        xu.download_images("covid-cxr", mine.parent if kind == "folder" else mine)
    assert hashes(tmp_path) == before


def test_download_of_an_unknown_source_names_the_known(tmp_path):
    with pytest.raises(ValueError, match="'mnist'.*covid-cxr.*actualmed"):
        xu.download_images("mnist", tmp_path / "xray")


def link_member():
    info = zipfile.ZipInfo("inside.png")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


@pytest.mark.parametrize(
    "member", ["/etc/x.png", "../x.png", "a/../../x.png", "..\\x.png", "C:/x.png", link_member()], ids=str
)
def test_unpack_refuses_before_it_writes(member, tmp_path):
    (tmp_path / "a.zip").write_bytes(zip_of([("good.png", b"1"), (member, b"2")]).read())
    with pytest.raises(ValueError, match="refused as unsafe"):
        archives.unpack(tmp_path / "a.zip", tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["a.zip"]


def test_unpack_limits_and_ordinary_archives(tmp_path):
    (tmp_path / "a.zip").write_bytes(zip_of([("./", b""), ("a/b.png", b"12345"), ("a/c.png", b"6")]).read())
    with pytest.raises(ValueError, match="over 5 bytes"):
        archives.unpack(tmp_path / "a.zip", tmp_path / "out", max_bytes=5)
    assert not (tmp_path / "out").exists()
    archives.unpack(tmp_path / "a.zip", tmp_path / "out", max_bytes=6)
    assert (tmp_path / "out/a/b.png").read_bytes() == b"12345"


# ---------------------------------------------------------------- read

RAMP = np.linspace(0, 255, 64).round().astype(np.uint8).reshape(8, 8)


def pixels(path):
    """What read_image gives, as int array [H, W, 3]."""
    image = xu.read_image(path)
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


@pytest.mark.parametrize("top", [4095, 65535])
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_deep_images_are_scaled(top, suffix, tmp_path):
    deep = np.linspace(100, top, 64).round().astype(np.uint16).reshape(8, 8)
    Image.fromarray(deep).save(tmp_path / f"a.{suffix}")
    assert abs(pixels(tmp_path / f"a.{suffix}") - RAMP[..., None]).max() <= 1


def test_floats_and_flat_deep_images(tmp_path):
    Image.fromarray(np.linspace(-1, 1, 64, dtype=np.float32).reshape(8, 8)).save(tmp_path / "float.tif")
    assert abs(pixels(tmp_path / "float.tif") - RAMP[..., None]).max() <= 1
    Image.fromarray(np.full((8, 8), 700, np.uint16)).save(tmp_path / "flat.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no division by zero
        assert (pixels(tmp_path / "flat.png") == 0).all()


def test_transparency_lies_on_black(tmp_path):
    opaque = np.zeros((8, 8), np.uint8)
    opaque[:4] = 255
    expected = np.where(opaque == 255, 200, 0)[..., None].repeat(3, axis=2)
    grey = np.full((8, 8), 200, np.uint8)
    Image.fromarray(np.dstack([grey, grey, grey, opaque])).save(tmp_path / "rgba.png")
    Image.fromarray(np.dstack([grey, opaque]), "LA").save(tmp_path / "la.png")
    palette = Image.fromarray((opaque == 0).astype(np.uint8))
    palette.putpalette([200, 200, 200, 90, 90, 90])
    palette.save(tmp_path / "palette.png", transparency=1)
    palette.save(tmp_path / "palette_bytes.png", transparency=b"\xff\x00")
    Image.fromarray(np.where(opaque == 255, 200, 90).astype(np.uint8)).save(tmp_path / "grey.png", transparency=90)
    for name in ("rgba", "la", "palette", "palette_bytes", "grey"):
        assert (pixels(tmp_path / f"{name}.png") == expected).all(), name
    Image.fromarray(np.dstack([grey, np.full((8, 8), 128, np.uint8)]), "LA").save(tmp_path / "half.png")
    assert abs(pixels(tmp_path / "half.png") - 100).max() <= 1


def test_palette_one_bit_and_cmyk(tmp_path):
    palette = Image.fromarray((RAMP > 100).astype(np.uint8))
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.save(tmp_path / "palette.png")
    assert (pixels(tmp_path / "palette.png") == np.where(RAMP[..., None] > 100, [200, 100, 50], [10, 20, 30])).all()
    Image.fromarray(RAMP > 100).save(tmp_path / "bit.png")
    assert (pixels(tmp_path / "bit.png") == np.where(RAMP > 100, 255, 0)[..., None]).all()
    Image.new("RGB", (16, 16), (200, 100, 50)).convert("CMYK").save(tmp_path / "cmyk.jpg", quality=95)
    assert abs(pixels(tmp_path / "cmyk.jpg") - [200, 100, 50]).max() <= 6


def test_exif_rotation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    Image.fromarray(RAMP[:4]).save(tmp_path / "a.png", exif=exif)
    assert (pixels(tmp_path / "a.png") == np.rot90(RAMP[:4], -1)[..., None]).all()


def test_resize_stretches_and_agrees_with_plain_bilinear():
    image = Image.fromarray(draw_phantom("normal", 5, (250, 300))[0]).convert("RGB")
    small = xu.resize(image, 32)
    assert small.shape == (32, 32, 3) and small.dtype == np.uint8
    plain = np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR)).astype(int)
    assert abs(small - plain).mean() < 1


def broken_files(root):
    """Files that cannot be read, each in its own way."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "empty.png").write_bytes(b"")
    (root / "text.jpg").write_text("<html>404: not found</html>")
    header = struct.pack(">I4s5sI", 5, b"IHDR", b"12345", 0)
    (root / "header.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header)
    for kind in ("png", "jpg", "bmp", "tif", "webp"):
        whole = draw(root / f"cut.{kind}", 1, (40, 30)).read_bytes()
        (root / f"cut.{kind}").write_bytes(whole[: len(whole) // 2])
    return sorted(path.name for path in root.iterdir())


BROKEN = ["cut.bmp", "cut.jpg", "cut.png", "cut.tif", "cut.webp", "empty.png", "header.png", "text.jpg"]


def bomb(path):
    """A bitmap file whose header claims 50000 x 50000 pixels."""
    path.write_bytes(struct.pack("<2sIHHIIiiHHIIiiII", b"BM", 54, 0, 0, 54, 40, 50000, 50000, 1, 24, 0, 0, 0, 0, 0, 0))
    return path


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_an_oserror_with_words(name, tmp_path):
    assert broken_files(tmp_path / "broken") == BROKEN
    with pytest.raises(OSError, match=r"\w+ \w+") as caught:
        xu.read_image(tmp_path / "broken" / name)
    assert not isinstance(caught.value, FileNotFoundError)


def test_too_many_pixels_are_a_valueerror(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="bomb.bmp.*pixels"):
        xu.read_image(bomb(tmp_path / "bomb.bmp"))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # some notebooks do
    with pytest.raises(ValueError, match="bomb.bmp.*50000x50000"):
        xu.read_image(tmp_path / "bomb.bmp")


# ---------------------------------------------------------------- audit


def test_audit_describes_each_image(tmp_path):
    draw(tmp_path / "normal" / "grey.png", 1, (12, 9))
    (tmp_path / "covid").mkdir()
    Image.new("RGB", (7, 5), (10, 20, 110)).save(tmp_path / "covid" / "blue.png")
    audited = xu.audit_images(xu.find_images(tmp_path)).set_index("file")
    blue, grey = audited.loc["covid/blue.png"], audited.loc["normal/grey.png"]
    assert (blue.width, blue.height, blue["mode"], blue.tint) == (7, 5, "RGB", 100)
    assert (grey.width, grey.height, grey["mode"], grey.tint) == (12, 9, "L", 0)
    assert blue.sha256 == hashlib.sha256((tmp_path / "covid/blue.png").read_bytes()).hexdigest()
    assert audited.problem.eq("").all() and audited.duplicate.eq("").all()


def test_unreadable_rows_have_a_reason_and_are_left_out(tmp_path):
    for i in range(90):
        draw(tmp_path / "normal" / f"{i:02d}.png", 100 + i)
    draw_tree(tmp_path, ["covid/a.png", "covid/b.png"])
    broken_files(tmp_path / "normal")
    bomb(tmp_path / "normal" / "bomb.bmp")
    images = xu.find_images(tmp_path)
    audited = xu.audit_images(images)
    assert audited.file.tolist() == images.file.tolist()
    bad = audited[audited.problem.ne("")]
    assert sorted(bad.file) == sorted(f"normal/{name}" for name in [*BROKEN, "bomb.bmp"])
    assert bad.problem.str.contains(r"\w+ \w+").all()
    assert not bad.problem.str.contains(str(tmp_path), regex=False).any()
    for protocol in ("grouped", "slides"):
        split = xu.split_images(audited, protocol)
        assert set(split.file) == set(images.file) - set(bad.file)


def test_a_file_is_audited_once_and_again_when_it_changed(tmp_path, monkeypatch):
    for i in range(30):
        draw(tmp_path / "normal" / f"{i:02d}.png", i)
    draw_tree(tmp_path, ["covid/a.png", "covid/b.png"])
    (tmp_path / "normal" / "broken.png").write_text("no image")
    read, audit_one = [], audit_module._audit_one
    monkeypatch.setattr(audit_module, "_audit_one", lambda path: read.append(path.name) or audit_one(path))

    def audit(near=0.95):
        read.clear()
        return xu.audit_images(xu.find_images(tmp_path), near)

    first = audit()
    assert len(read) == 33
    pd.testing.assert_frame_equal(audit(), first)
    assert read == ["broken.png"]
    draw(tmp_path / "normal" / "new.png", 77)
    draw(tmp_path / "normal" / "03.png", 5)  # now the same as 05.png
    os.utime(tmp_path / "normal" / "03.png", (2, 2))
    os.utime(tmp_path / "normal" / "04.png", (1, 1))
    os.chmod(tmp_path / "normal" / "06.png", 0o600)
    changed = audit().set_index("file")
    assert sorted(read) == ["03.png", "04.png", "06.png", "broken.png", "new.png"]
    assert changed.duplicate["normal/05.png"] == "exact"
    (noted,) = xu.outputs_dir("audited").iterdir()
    draw(tmp_path / "normal" / "03.png", 3)
    os.utime(tmp_path / "normal" / "03.png", (3, 3))
    audit()
    os.remove(tmp_path / "normal" / "new.png")
    again = audit(near=0.9)  # what is compared is not kept
    assert read == ["broken.png"] and len(np.load(noted)["path"]) == 33
    pd.testing.assert_frame_equal(again, first)


def test_files_of_another_folder_are_other_files(tmp_path):
    for folder, blue in (("one", 50), ("two", 90)):
        for label in ("covid", "normal"):
            path = tmp_path / folder / label / "a.bmp"  # of the same size
            path.parent.mkdir(parents=True)
            Image.new("RGB", (7, 5), (10, 20, blue)).save(path)
            os.utime(path, (1, 1))
        assert xu.audit_images(xu.find_images(tmp_path / folder)).tint.eq(blue - 10).all()


def test_an_audit_that_cannot_be_kept_says_so_and_is_given(tmp_path, capsys):
    draw_tree(tmp_path, ["covid/a.png", "normal/b.png"])
    xu.outputs_dir().mkdir()
    xu.outputs_dir("audited").write_text("no folder")
    assert xu.audit_images(xu.find_images(tmp_path)).problem.eq("").all()
    assert "could not be cached. outputs: cannot write to" in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no archive", "half", "foreign"])
def test_a_broken_note_of_an_audit_is_made_again(content, tmp_path, capsys):
    draw_tree(tmp_path, ["covid/a.png", "normal/b.png"])
    images = xu.find_images(tmp_path)
    first = xu.audit_images(images)
    (noted,) = xu.outputs_dir("audited").iterdir()
    whole = noted.read_bytes()
    if content == "foreign":
        np.savez(noted, thumbnails=np.ones((5, 1024), np.float32), names=np.arange(5))
    else:
        noted.write_bytes(whole[: len(whole) // 2] if content == "half" else content)
    pd.testing.assert_frame_equal(xu.audit_images(images), first)
    assert len(np.load(noted)["path"]) == 2
    assert "is broken" in capsys.readouterr().out


@pytest.mark.parametrize("broken, error", [(1, False), (2, True)])
def test_a_class_may_lose_a_tenth_but_no_more(broken, error, tmp_path):
    for i in range(10):
        draw(tmp_path / "covid" / f"{i}.png", i)
        draw(tmp_path / "normal" / f"{i}.png", 100 + i)
    for i in range(broken):
        (tmp_path / "normal" / f"{i}.png").write_text("no image")
    images = xu.find_images(tmp_path)
    if error:
        with pytest.raises(ValueError, match="2 files cannot be read, 20% of class 'normal'.*normal/0.png"):
            xu.audit_images(images)
    else:
        assert xu.audit_images(images).problem.ne("").sum() == 1


def save_phantom(path, label, seed, change=None, **options):
    """One phantom, changed by `change` (an image to an image)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(draw_phantom(label, seed, (128, 128))[0])
    (change(image) if change else image).save(path, **options)
    return path


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Six phantoms of different patients, drawn once."""
    root = tmp_path_factory.mktemp("phantoms")
    for i, label in enumerate(["covid", "normal", "virus"] * 2):
        save_phantom(root / label / f"a{i}.png", label, i)
    return root


@pytest.fixture
def phantoms(drawn, tmp_path):
    """A copy of the six phantoms, without a manifest."""
    return shutil.copytree(drawn, tmp_path / "images")


def test_different_phantoms_are_not_joined(phantoms):
    audited = xu.audit_images(xu.find_images(phantoms))
    assert audited.duplicate.eq("").all() and audited.group.tolist() == audited.file.tolist()


@pytest.mark.parametrize(
    "kind, change, suffix, options",
    [
        ("near", lambda image: image, ".jpg", {"quality": 60}),
        ("near", lambda image: image.resize((90, 100)), ".png", {}),
        ("near", lambda image: image.point(lambda grey: 0.7 * grey + 50), ".png", {}),
        ("near", lambda image: image.resize((200, 180)).point(lambda grey: grey - 15), ".jpg", {"quality": 75}),
        ("mirror", lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), ".png", {}),
        ("mirror", lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).resize((99, 99)), ".jpg", {}),
    ],
    ids=["encoded again", "resized", "brighter", "all three", "mirrored", "mirrored and encoded"],
)
def test_near_duplicates_are_found_and_joined(kind, change, suffix, options, phantoms):
    save_phantom(phantoms / "covid" / f"z{suffix}", "covid", 0, change, **options)
    audited = xu.audit_images(xu.find_images(phantoms)).set_index("file")
    assert audited.duplicate[audited.duplicate.ne("")].to_dict() == {f"covid/z{suffix}": kind}
    assert audited.group.nunique() == 6
    assert audited.group[f"covid/z{suffix}"] == audited.group["covid/a0.png"] == "covid/a0.png"


@pytest.mark.parametrize("near", [0.95, 1.0])
def test_exact_duplicates_are_found_across_classes_and_names(near, phantoms):
    for i, label in enumerate(["covid", "normal", "virus"] * 2):
        shutil.copy(phantoms / label / f"a{i}.png", phantoms / "virus" / f"z{i}.png")
    audited = xu.audit_images(xu.find_images(phantoms), near=near).set_index("file")
    assert audited.duplicate[audited.duplicate.ne("")].to_dict() == {f"virus/z{i}.png": "exact" for i in range(6)}
    assert all(audited.group[f"virus/z{i}.png"].endswith(f"a{i}.png") for i in range(6))


def test_duplicates_are_those_of_the_definition_whatever_the_tile():
    """Each image with all earlier ones, as the docstring of `audit_images` says it."""
    rng, n = np.random.default_rng(0), 60
    thumbnails, sha256 = rng.normal(size=(n, 32, 32)), np.array([f"bytes {i}" for i in range(n)])
    for copy, of in ((20, 3), (41, 20), (33, 8)):
        thumbnails[copy] = thumbnails[of] + rng.normal(scale=0.1, size=(32, 32))  # near
    for copy, of in ((15, 4), (50, 33)):
        thumbnails[copy] = thumbnails[of][:, ::-1]
    for copy, of in ((30, 5), (31, 5), (59, 41)):
        thumbnails[copy], sha256[copy] = thumbnails[of], sha256[of]
    thumbnails[9], sha256[[9, 10]] = 0, ""  # cannot be read
    thumbnails[10] = 0
    thumbnails = (thumbnails / np.linalg.norm(thumbnails, axis=(1, 2), keepdims=True).clip(1e-6)).reshape(n, -1)
    names, groups = [f"{i:02d}" for i in range(n)], [f"p{i // 2:02d}" for i in range(n)]
    problem = np.where(sha256 == "", "broken", "")
    images = pd.DataFrame(dict(file=names, sha256=sha256, problem=problem, group=groups))
    mirrored = thumbnails.reshape(n, 32, 32)[:, :, ::-1].reshape(n, -1)
    kind, joined = [""] * n, np.eye(n, dtype=bool)
    for i, j in itertools.combinations(range(n), 2):
        found = {"mirror": mirrored[j] @ thumbnails[i] >= 0.95, "near": thumbnails[j] @ thumbnails[i] >= 0.95}
        found["exact"] = sha256[i] == sha256[j] != ""
        joined[i, j] = joined[j, i] = any(found.values())
        kind[j] = next((name for name in ("exact", "near", "mirror") if found[name]), kind[j])
    alike = np.linalg.matrix_power(joined.astype(float), n) > 0
    same = np.equal.outer(groups, groups)
    group = np.linalg.matrix_power((same @ joined @ same).astype(float).clip(0, 1), 20) > 0
    for tile in (1, 7, 60, 2048):
        kinds, likes, found = audit_module._join_duplicates(images, thumbnails.astype(np.float32), 0.95, tile)
        assert list(kinds) == kind and sorted(set(kind)) == ["", "exact", "mirror", "near"]
        assert list(likes) == [names[row.argmax()] for row in alike]
        assert list(found) == [groups[row.argmax()] for row in group]


def test_duplicates_with_another_label_are_a_conflict_and_in_no_split(phantoms, capsys):
    shutil.copy(phantoms / "covid" / "a0.png", phantoms / "virus" / "x.png")
    save_phantom(phantoms / "virus" / "y.jpg", "normal", 1, quality=80)
    mirrored = lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)  # noqa: E731
    save_phantom(phantoms / "normal" / "z.png", "virus", 2, mirrored)
    shutil.copy(phantoms / "covid" / "a3.png", phantoms / "covid" / "same label.png")
    audited = xu.audit_images(xu.find_images(phantoms))
    found = xu.label_conflicts(audited)
    assert found.to_numpy().tolist() == [
        ["covid/a0.png", "covid", "virus/x.png", "virus", "exact"],
        ["normal/a1.png", "normal", "virus/y.jpg", "virus", "near"],
        ["normal/z.png", "normal", "virus/a2.png", "virus", "mirror"],
    ]
    said = capsys.readouterr().out
    assert "Left out of every split: 6 images whose duplicates have another label" in said
    assert "'covid/a0.png' (covid), like 'virus/x.png' (virus)" in said
    left = set(audited.file) - {*found.file, *found.other_file}
    for protocol in ("grouped", "slides"):
        assert set(xu.split_images(audited, protocol).file) == left
        assert set(xu.split_images(audited, protocol, keep_conflicts=True).file) == set(audited.file)


def test_a_set_of_many_conflicting_images_has_few_pairs(tmp_path):
    for i in range(30):
        path = tmp_path / xu.CLASSES[i % 3] / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("L", (20, 20), 90).save(path)
    found = xu.label_conflicts(xu.audit_images(xu.find_images(tmp_path)))
    assert len(found) < 30 and found.label.ne(found.other_label).all()
    assert len({*found.file, *found.other_file}) == 30


def test_images_without_structure_are_duplicates_only_byte_by_byte(tmp_path):
    for name, grey in (("covid/a", 0), ("covid/b", 90), ("normal/a", 0), ("normal/b", 180)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("L", (20, 20), grey).save(tmp_path / f"{name}.png")
    audited = xu.audit_images(xu.find_images(tmp_path)).set_index("file")
    assert audited.duplicate.to_dict() == {
        "covid/a.png": "",
        "covid/b.png": "",
        "normal/a.png": "exact",
        "normal/b.png": "",
    }
    assert audited.group["normal/a.png"] == "covid/a.png" and audited.group.nunique() == 3


def test_broken_files_of_the_same_bytes_join_nobody(tmp_path):
    for i in range(12):
        for label in ("covid", "normal"):
            draw(tmp_path / label / f"{i:02d}.png", i + 100 * (label == "covid"))
    for label in ("covid", "normal"):
        (tmp_path / label / "05.png").write_bytes(b"")
    audited = xu.audit_images(xu.find_images(tmp_path))
    assert audited.duplicate.eq("").all() and audited.group.nunique() == 24


def test_duplicates_join_whole_groups_and_chains(phantoms):
    save_phantom(phantoms / "covid" / "y.jpg", "covid", 0, quality=70)
    save_phantom(phantoms / "covid" / "z.png", "normal", 1)
    pd.DataFrame(
        [
            ("covid/a0.png", "covid", "p1"),
            ("covid/a3.png", "covid", "p2"),
            ("normal/a1.png", "normal", "p3"),
            ("virus/a2.png", "virus", "p4"),
            ("covid/y.jpg", "covid", "p2"),  # p1's image under p2's name: p1 = p2
            ("covid/z.png", "covid", "p2"),  # p3's image: p1 = p2 = p3
        ],
        columns=["file", "label", "patient_id"],
    ).to_csv(phantoms / "manifest.csv", index=False)
    audited = xu.audit_images(xu.find_images(phantoms)).set_index("file")
    assert audited.group.to_dict() == {file: "p4" if file == "virus/a2.png" else "p1" for file in audited.index}
    assert audited.patient["covid/y.jpg"] == "p2"
    mirrored_copies = {"covid/y.jpg": "covid/a0.png", "covid/z.png": "covid/z.png", "normal/a1.png": "covid/z.png"}
    assert audited.alike.to_dict() == {file: mirrored_copies.get(file, file) for file in audited.index}


@pytest.fixture(scope="module")
def sample(phantom_folder):
    """The synthetic set as found, and audited once with and once without its patients."""
    images = xu.find_images(phantom_folder)
    alone = images.assign(group=images.file)
    alone.attrs = images.attrs
    return images, xu.audit_images(images), xu.audit_images(alone)


def test_sample_has_its_planted_duplicates_and_no_others(sample):
    images, audited, alone = sample
    kinds = pd.crosstab(audited.label, audited.duplicate)
    assert kinds["near"].tolist() == [4, 4, 4] and audited.duplicate.eq("exact").sum() == 1
    assert "mirror" not in kinds and audited.problem.eq("").all()
    assert audited.group.tolist() == images.patient.tolist()  # nothing joined across patients
    assert (images.patient.groupby(alone.group).nunique() == 1).all()
    assert alone.group.nunique() == len(images) - 13
    assert alone.duplicate.tolist() == audited.duplicate.tolist()
    assert alone.alike.tolist() == alone.group.tolist() == audited.alike.tolist()


def test_audit_can_be_called_again(sample):
    _, audited, _ = sample
    again = xu.audit_images(audited)
    pd.testing.assert_frame_equal(again, audited)
    assert again.attrs == audited.attrs


def test_audit_leaves_images_and_warning_filters_alone(tmp_path, monkeypatch):
    import scipy.sparse.csgraph  # noqa: F401  (loaded at first use, it has filters of its own)

    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    folder = shutil.copytree(xu.data_dir(), tmp_path / "sample")
    before, filters = hashes(folder), list(warnings.filters)
    xu.audit_images(xu.find_images(folder))
    assert hashes(folder) == before
    assert warnings.filters == filters


def test_audit_needs_the_folder_of_the_table(sample):
    images, *_ = sample
    with pytest.raises(ValueError, match="find_images"):
        xu.audit_images(pd.DataFrame(images.to_dict("list")))


def test_load_data_goes_all_the_way_and_says_which_images(capsys):
    loaded = xu.load_data(protocol="slides", seed=1, size=16)
    printed = capsys.readouterr().out
    assert (
        "228 images of the bundled sample" in printed
        and "157 groups" in printed
        and "train 319, val 68, test 69" in printed
    )
    assert loaded.settings == {"protocol": "slides", "seed": 1, "mirror": True, "size": 16}
    assert loaded.is_sample and loaded.name == "slides_sample"
    assert xu.load_data().settings["size"] == 112  # of the sample, unless another one is asked for
    assert (len(loaded.train), len(loaded.val), len(loaded.test)) == (319, 68, 69)
    assert "train=Split(319 images, 16 pixels)" in repr(loaded) and len(repr(loaded)) < 300  # as the end of a cell


def test_images_of_the_user_are_not_called_the_sample(tmp_path):
    for label in ("covid", "normal"):
        (tmp_path / label).mkdir()
        Image.new("L", (8, 8)).save(tmp_path / label / "a.png")
    assert (
        xu.describe_images(xu.find_images(tmp_path))
        == "2 images: covid 1, normal 1; 2 groups (patients); patient unknown for 2 images."
    )


def test_an_archive_that_has_not_wholly_arrived_is_not_taken_for_a_wrong_name(tmp_path, monkeypatch):
    monkeypatch.delenv("XRAY_DATA")
    half = tmp_path / "half.zip"
    with zipfile.ZipFile(half, "w") as archive:
        archive.writestr("covid/a.png", b"x" * 1000)
    half.write_bytes(half.read_bytes()[:500])
    with pytest.raises(ValueError, match=r"source: half.zip is no .zip file, or it is incomplete. Fetch it"):
        xu.use_images(half)
    with pytest.raises(ValueError, match="is no folder, no .zip file and no known set"):
        xu.use_images(tmp_path / "missing.zip")


def test_the_folder_of_one_class_is_sent_to_the_one_above(tmp_path):
    (tmp_path / "covid").mkdir()
    Image.new("L", (64, 64)).save(tmp_path / "covid" / "a.png")
    with pytest.raises(FileNotFoundError, match="This is the folder of one class: give the one above it."):
        xu.find_images(tmp_path / "covid")
    with pytest.raises(FileNotFoundError, match=r"file and label\.$"):
        (tmp_path / "others").mkdir()
        xu.find_images(tmp_path / "others")
