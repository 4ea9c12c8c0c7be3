"""Splitting and preparing: properties that hold for any table, and the pixels that come out."""

import hashlib
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import xray_utils as xu
from xray_utils import constants
from xray_utils import images as images_module
from xray_utils import prepared as prepared_module
from xray_utils._support import decode as decode_module
from xray_utils._support import files, paths

settings.register_profile("quick", deadline=None, max_examples=50, derandomize=True)
settings.load_profile("quick")

SLIDES = {"covid": 295, "normal": 468, "virus": 433}  # the original's 1196 images


def table(labels, groups):
    """An images table of these labels and groups."""
    files = [f"{i:04d}.png" for i in range(len(labels))]
    return pd.DataFrame({"file": files, "label": labels, "group": [f"g{group}" for group in groups]})


rows = st.lists(st.tuples(st.sampled_from(xu.CLASSES), st.integers(0, 25)), min_size=1, max_size=60)
tables = rows.map(lambda pairs: table(*zip(*pairs, strict=True)))
seeds = st.integers(0, 2**32 - 1)


# ---------------------------------------------------------------- split


@given(images=tables, seed=seeds, mirror=st.booleans())
def test_grouped_loses_nothing_and_keeps_groups_on_one_side(images, seed, mirror):
    split = xu.split_images(images, "grouped", seed, mirror)
    originals = split[~split.mirrored]
    assert originals.file.tolist() == images.file.tolist()
    assert originals.label.tolist() == images.label.tolist() and originals.group.tolist() == images.group.tolist()
    assert set(split.split) <= set(constants.SPLITS)
    assert (split.groupby("group").split.nunique() == 1).all()
    mirrored, train = split[split.mirrored], originals[originals.split.eq("train")]
    assert mirrored.split.eq("train").all()
    assert mirrored.file.tolist() == (train.file.tolist() if mirror else [])
    assert split.attrs == {"protocol": "grouped", "seed": seed, "mirror": mirror}


@given(images=tables, seed=seeds, mirror=st.booleans())
def test_slides_holds_each_image_once_or_with_its_twin(images, seed, mirror):
    split = xu.split_images(images, "slides", seed, mirror)
    assert not split.duplicated(["file", "mirrored"]).any()
    assert sorted(split.file) == sorted(images.file.tolist() * (2 if mirror else 1))
    assert split.mirrored.sum() == (len(images) if mirror else 0)
    n = len(split)
    assert [split.split.eq(side).sum() for side in ("train", "val")] == [int(0.7 * n), int(0.15 * n)]
    assert split.split.isin(constants.SPLITS).all()


@settings(max_examples=30)
@given(
    images=tables, seed=seeds, order=st.randoms(use_true_random=False), protocol=st.sampled_from(["grouped", "slides"])
)
def test_same_seed_same_split_whatever_the_order(images, seed, order, protocol):
    before = images.copy()
    split = xu.split_images(images, protocol, seed)
    positions = list(range(len(images)))
    order.shuffle(positions)
    pd.testing.assert_frame_equal(xu.split_images(images.iloc[positions], protocol, seed), split)
    pd.testing.assert_frame_equal(images, before)
    pd.testing.assert_frame_equal(xu.split_images(split, protocol, seed), split)  # a cell that is run again


@pytest.mark.parametrize("protocol", ["grouped", "slides"])
def test_another_seed_gives_another_split(protocol):
    images = table(["covid", "normal"] * 50, range(100))
    sides = {tuple(xu.split_images(images, protocol, seed).split) for seed in range(5)}
    assert len(sides) == 5


@given(seed=seeds, weights=st.lists(st.integers(1, 6), min_size=3, max_size=3))
@settings(max_examples=20)
def test_large_tables_are_stratified(seed, weights):
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 5, 400)  # images of a patient
    share = np.array(weights) / sum(weights)
    images = table(
        np.repeat(rng.choice(xu.CLASSES, 400, p=share), counts).tolist(), np.repeat(np.arange(400), counts).tolist()
    )
    split = xu.split_images(images, "grouped", seed, mirror=False)
    found = pd.crosstab(split.label, split.split, normalize="index")[list(constants.SPLITS)]
    tolerance = 2 / images.label.value_counts().min() + 0.005
    assert abs(found.to_numpy() - [0.7, 0.15, 0.15]).max() < tolerance


def test_fractions_are_followed():
    images = table(["covid", "normal"] * 100, range(200))
    for protocol in ("grouped", "slides"):
        split = xu.split_images(images, protocol, mirror=False, fractions=(0.5, 0.2, 0.3))
        assert [split.split.eq(side).sum() for side in constants.SPLITS] == [100, 40, 60]


def test_slides_has_the_numbers_of_the_original():
    images = table([label for label, n in SLIDES.items() for _ in range(n)], range(1196))
    split = xu.split_images(images, "slides")
    assert split.label.value_counts().to_dict() == {"covid": 590, "normal": 936, "virus": 866}
    assert [split.split.eq(side).sum() for side in constants.SPLITS] == [1674, 358, 360]
    train = set(split.file[split.split.eq("train")])
    assert 0.6 < split.file[split.split.eq("test")].isin(train).mean() < 0.8  # the mirrored copy is in training
    single = xu.split_images(images, "slides", mirror=False)
    assert [single.split.eq(side).sum() for side in constants.SPLITS] == [837, 179, 180]


def test_count_split_adds_up():
    images = table(["covid"] * 30 + ["normal"] * 70, range(100))
    split = xu.split_images(images, "grouped", mirror=True)
    counts = xu.count_split(split)
    assert counts.index.tolist() == ["covid", "normal", "all"]
    assert counts.columns.tolist() == ["train", "val", "test", "all"]
    for label in ("covid", "normal"):
        for side in constants.SPLITS:
            assert counts.loc[label, side] == (split.label.eq(label) & split.split.eq(side)).sum()
    assert counts.loc["all"].tolist() == [*(split.split.eq(side).sum() for side in constants.SPLITS), len(split)]
    one_side = xu.count_split(split[split.split.eq("train")])
    assert one_side["val"].tolist() == [0, 0, 0] and one_side["all"].tolist() == one_side["train"].tolist()


@pytest.mark.parametrize(
    "options, words",
    [
        ({"protocol": "random"}, "'random'.*'grouped'.*'slides'"),
        ({"fractions": (0.7, 0.3)}, "three positive numbers"),
        ({"fractions": (0.8, 0.2, 0)}, "three positive numbers"),
        ({"fractions": (0.7, 0.2, 0.2)}, "add up to 1"),
    ],
)
def test_split_options_are_checked(options, words):
    with pytest.raises(ValueError, match=words):
        xu.split_images(table(["covid", "normal"], [0, 1]), **options)


@pytest.mark.parametrize("column", ["file", "label", "group"])
def test_split_names_a_missing_column(column):
    with pytest.raises(ValueError, match=f"'{column}' is missing.*find_images"):
        xu.split_images(table(["covid", "normal"], [0, 1]).drop(columns=column))


def test_split_leaves_unreadable_out_and_refuses_an_empty_table():
    images = table(["covid", "normal"] * 10, range(20)).assign(problem=["broken"] + [""] * 19)
    assert "0000.png" not in set(xu.split_images(images).file)
    with pytest.raises(ValueError, match="empty"):
        xu.split_images(images.assign(problem="broken"))


# ---------------------------------------------------------------- prepare


def draw_set(root, per_class=8):
    """Small colour images in three class folders, lossless and JPEG, no two alike."""
    rng = np.random.default_rng(0)
    for label in xu.CLASSES:
        (root / label).mkdir(parents=True)
        for i in range(per_class):
            shape = (*rng.integers(20, 40, 2), 3)
            picture = Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8))
            picture.save(root / label / f"{i}.{'jpg' if i % 2 else 'png'}")
    return root


@pytest.fixture
def split(tmp_path):
    """A split table of 24 drawn images, every side filled."""
    return xu.split_images(xu.find_images(draw_set(tmp_path / "images")), "grouped", seed=1)


def prepared_sets():
    """All that lies in outputs/prepared, hidden files included."""
    folder = xu.outputs_dir("prepared")
    return sorted(folder.iterdir()) if folder.is_dir() else []


def hashes(root):
    return {p: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(Path(root).rglob("*")) if p.is_file()}


def broken(*args, **kwargs):
    raise RuntimeError("the power is out")


def test_pixels_are_those_of_pillow_and_mirrored_rows_are_flips(split):
    root = Path(split.attrs["root"])
    prepared = xu.prepare(split, size=16)
    assert prepared.settings == {"protocol": "grouped", "seed": 1, "mirror": True, "size": 16}
    seen = 0
    for name in constants.SPLITS:
        side = getattr(prepared, name)
        assert side.rows.file.tolist() == split.file[split.split.eq(name)].tolist()
        batch = side.take(np.arange(len(side)))
        assert batch.shape == (len(side), 16, 16, 3) and batch.dtype == np.uint8
        for row, image in zip(side.rows.itertuples(), batch, strict=True):
            with Image.open(root / row.file) as file:
                expected = np.asarray(file.convert("RGB").resize((16, 16), Image.Resampling.BILINEAR))
            assert (image == (expected[:, ::-1] if row.mirrored else expected)).all()
            seen += row.mirrored
        assert side.labels.tolist() == [xu.CLASSES.index(label) for label in side.rows.label]
        assert side.labels.dtype == np.int64
    assert seen == split.mirrored.sum() > 0


def test_take_follows_its_indices_and_spoils_nothing(split):
    side = xu.prepare(split, size=8).train
    everything = side.take(np.arange(len(side)))
    picked = np.array([len(side) - 1, 0, 3, 0])
    batch = side.take(picked)
    assert (batch == everything[picked]).all()
    batch[:] = 0
    assert (side.take(np.arange(len(side))) == everything).all()


def test_second_call_reads_what_the_first_wrote(split, monkeypatch):
    first = xu.prepare(split, size=8)
    (folder,) = prepared_sets()
    markers = {p.name: (p.stat().st_mtime_ns, p.stat().st_ino) for p in [folder, *folder.iterdir()]}
    monkeypatch.setattr(decode_module, "_decode", broken)
    again = xu.prepare(split, size=8)
    assert prepared_sets() == [folder]
    assert markers == {p.name: (p.stat().st_mtime_ns, p.stat().st_ino) for p in [folder, *folder.iterdir()]}
    assert again.train.fingerprint() == first.train.fingerprint()
    slides = xu.split_images(split.drop(columns="split"), "slides")  # another split, the same pixels
    xu.prepare(slides, size=8)
    assert prepared_sets() == [folder]


def test_changed_image_or_size_makes_a_new_set(split):
    before = xu.prepare(split, size=8)
    file = split.file.iloc[0]
    Image.new("RGB", (30, 30), (1, 2, 3)).save(Path(split.attrs["root"]) / file)
    after = xu.prepare(split, size=8)
    assert len(prepared_sets()) == 2
    for name in constants.SPLITS:
        old, new = getattr(before, name), getattr(after, name)
        changed = (old.take(np.arange(len(old))) != new.take(np.arange(len(new)))).any(axis=(1, 2, 3))
        assert changed.tolist() == new.rows.file.eq(file).tolist()
        assert (new.take(np.flatnonzero(changed)) == [1, 2, 3]).all()
    assert xu.prepare(split, size=np.int64(9)).val.take([0]).shape == (1, 9, 9, 3)
    assert xu.prepare(split, size=np.int64(9)).settings["size"] == 9
    assert len(prepared_sets()) == 3


@pytest.mark.parametrize("before", ["whole", "damaged", "of another size", "of another folder", "without an index"])
def test_only_new_and_changed_files_are_decoded(before, split, monkeypatch, tmp_path):
    root = Path(split.attrs["root"])
    less = split[~split.file.isin(split.file.iloc[:3])]
    if before == "of another folder":
        root = root.rename(tmp_path / "moved")
    less.attrs = split.attrs = {**split.attrs, "root": str(root)}
    xu.prepare(less, size=9 if before == "of another size" else 8)
    if before == "of another folder":
        split.attrs = {**split.attrs, "root": str(root.rename(tmp_path / "moved again"))}
    (folder,) = prepared_sets()
    if before == "damaged":
        with open(folder / "images.npy", "r+b") as file:
            file.seek(-1, os.SEEK_END)
            file.write(b"?")
    if before == "without an index":
        (folder / "index.csv").unlink()
    changed = less.file.iloc[0]
    Image.new("RGB", (30, 30), (1, 2, 3)).save(Path(split.attrs["root"]) / changed)
    decode, decoded = decode_module._decode, []
    monkeypatch.setattr(
        prepared_module, "_decode", lambda path, *more: decoded.append(path.name) or decode(path, *more)
    )
    after = xu.prepare(split, size=8)
    new = {Path(file).name for file in [changed, *split.file.iloc[:3]]}
    assert len(decoded) == (4 if before == "whole" else split.file.nunique())
    assert set(decoded) == new or before != "whole"
    monkeypatch.setenv("XRAY_OUTPUTS", str(tmp_path / "from nothing"))
    whole = xu.prepare(split, size=8)
    for name in constants.SPLITS:
        assert getattr(after, name).fingerprint() == getattr(whole, name).fingerprint()


def test_a_large_jpeg_is_decoded_at_reduced_scale_and_nearly_the_same(tmp_path):
    """1200 x 900 for 224: at half its size; the audit says how large the file is, turned as EXIF wants."""
    rng = np.random.default_rng(0)
    for label in xu.CLASSES:
        for i in range(3):
            picture = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((1200, 900))
            tag = picture.getexif()
            tag[0x0112] = 6 if i else 1
            (tmp_path / label).mkdir(exist_ok=True)
            picture.save(tmp_path / label / f"{i}.jpg", exif=tag, quality=90)
    images = xu.audit_images(xu.find_images(tmp_path))
    sizes = {(row.width, row.height) for row in images.itertuples() if row.file.endswith("0.jpg")}
    assert (
        sizes == {(1200, 900)} and set(images.width) == {1200, 900} and (images.width * images.height == 1080000).all()
    )
    for file in images.file:
        drafted = decode_module._decode(tmp_path / file, 448)
        assert (
            drafted[0].size in [(600, 450), (450, 600)] and decode_module._decode(tmp_path / file)[0].size == drafted[2]
        )
        assert decode_module._decode(tmp_path / file, 460)[0].size == drafted[2], (
            "the smaller side would have too few pixels"
        )
    prepared = xu.prepare(xu.split_images(images, fractions=(0.4, 0.3, 0.3), mirror=False))
    for name in constants.SPLITS:
        side = getattr(prepared, name)
        for file, pixels in zip(side.rows.file, side.take(np.arange(len(side))), strict=True):
            whole = xu.resize(xu.read_image(tmp_path / file))
            assert np.abs(pixels.astype(int) - whole).max() <= 3 and (pixels != whole).any()


@pytest.mark.parametrize("where", ["resize", "to_csv", "replace"])
def test_interrupted_prepare_leaves_nothing_and_can_be_repeated(where, split, monkeypatch):
    calls = []

    def at_the_tenth(*args):
        calls.append(args)
        return broken() if len(calls) == 10 else np.zeros((8, 8, 3), np.uint8)

    with monkeypatch.context() as patch:
        if where == "resize":
            patch.setattr(prepared_module, "resize", at_the_tenth)
        elif where == "to_csv":
            patch.setattr(pd.DataFrame, "to_csv", broken)
        else:
            patch.setattr(os, "replace", broken)
        with pytest.raises(RuntimeError, match="power"):
            xu.prepare(split, size=8)
    assert prepared_sets() == []
    prepared = xu.prepare(split, size=8)
    assert len(prepared_sets()) == 1 and (prepared.train.take([0]) != 0).any()


def test_prepare_by_several_at_once_makes_one_set(split):
    with ThreadPoolExecutor(4) as pool:
        prepared = list(pool.map(lambda _: xu.prepare(split, size=8), range(4)))
    assert len(prepared_sets()) == 1
    assert len({one.train.fingerprint() for one in prepared}) == 1


def test_a_rename_that_fails_is_an_error_unless_the_set_is_there(split, monkeypatch):
    def abstain(source, target):
        raise OSError("no rename today")

    def slower(source, target):  # another process has just put the same set there
        shutil.copytree(source, target)
        raise OSError("directory not empty")

    monkeypatch.setattr(os, "replace", abstain)
    with pytest.raises(OSError, match="no rename today"):
        xu.prepare(split, size=8)
    assert prepared_sets() == []
    monkeypatch.setattr(os, "replace", slower)
    assert len(xu.prepare(split, size=8).train) == split.split.eq("train").sum()
    assert len(prepared_sets()) == 1


def test_images_of_the_user_stay_as_they_are(tmp_path):
    root = draw_set(tmp_path / "images")
    before = hashes(root)
    images = xu.audit_images(xu.find_images(root))
    xu.prepare(xu.split_images(images), size=8)
    assert hashes(root) == before
    assert {p.name for p in tmp_path.iterdir()} == {"images", "outputs"}


@pytest.mark.parametrize("what", ["is broken", "is gone"])
def test_prepare_names_a_file_it_cannot_read(what, split):
    file = split.file[split.split.eq("val")].iloc[0]
    path = Path(split.attrs["root"]) / file
    path.write_text("no image") if what == "is broken" else path.unlink()
    with pytest.raises(OSError, match=f"^images: '{file}' cannot be read.*audit_images"):
        xu.prepare(split, size=8)
    assert prepared_sets() == []


@pytest.mark.parametrize("size", [0, -3, 10.5])
def test_prepare_refuses_a_bad_size(size, split):
    with pytest.raises(ValueError, match=f"size: {size} must be a whole number of at least 1"):
        xu.prepare(split, size=size)


@pytest.mark.parametrize("column", ["split", "mirrored"])
def test_prepare_names_a_missing_column(column, split):
    with pytest.raises(ValueError, match=f"'{column}' is missing.*split_images"):
        xu.prepare(split.drop(columns=column), size=8)


@pytest.mark.parametrize("side", constants.SPLITS)
def test_prepare_refuses_an_empty_side_before_it_writes(side, split):
    with pytest.raises(ValueError, match=f"no rows with split '{side}'"):
        xu.prepare(split[split.split.ne(side)], size=8)
    with pytest.raises(ValueError, match="images: the table is empty"):
        xu.prepare(split.iloc[:0], size=8)
    assert prepared_sets() == []


def test_fingerprint_is_of_rows_and_pixels_and_not_of_the_place(split, tmp_path):
    root = Path(split.attrs["root"])
    side = xu.prepare(split, size=8).test
    shutil.copytree(root, tmp_path / "elsewhere")
    moved = split.copy()
    moved.attrs = {**split.attrs, "root": str(tmp_path / "elsewhere")}
    assert xu.prepare(moved, size=8).test.fingerprint() == side.fingerprint()
    assert xu.prepare(split, size=9).test.fingerprint() != side.fingerprint()
    other = prepared_module.Split(side.rows.assign(mirrored=True), side.pixels, side.positions)
    assert other.fingerprint() != side.fingerprint()
    pixels = side.pixels.copy()
    pixels[side.positions[-1], 3, 3] ^= 1
    assert prepared_module.Split(side.rows, pixels, side.positions).fingerprint() != side.fingerprint()


# ---------------------------------------------------------------- folders


def test_data_dir_follows_xray_data(tmp_path, monkeypatch):
    monkeypatch.setenv("XRAY_DATA", str(tmp_path))
    assert xu.data_dir() == tmp_path
    monkeypatch.setenv("XRAY_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match="XRAY_DATA.*nowhere"):
        xu.data_dir()


def test_data_dir_prefers_the_user_s_images_to_the_sample(tmp_path, monkeypatch):
    monkeypatch.delenv("XRAY_DATA")
    monkeypatch.setattr(paths, "repository_dir", lambda: tmp_path)
    assert xu.data_dir() == tmp_path / "data" / "sample"
    (tmp_path / "data" / "xray").mkdir(parents=True)
    (tmp_path / "data" / "xray" / ".gitkeep").touch()
    assert xu.data_dir() == tmp_path / "data" / "sample"
    (tmp_path / "data" / "xray" / "covid").mkdir()
    assert xu.data_dir() == tmp_path / "data" / "xray"


def test_repository_dir_does_not_depend_on_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert (paths.repository_dir() / "xray_utils" / "images.py").samefile(images_module.__file__)


def test_outputs_dir_follows_xray_outputs(tmp_path, monkeypatch):
    assert xu.outputs_dir("runs", "one") == tmp_path / "outputs" / "runs" / "one"
    monkeypatch.delenv("XRAY_OUTPUTS")
    assert xu.outputs_dir("runs") == paths.repository_dir() / "outputs" / "runs"


def test_is_sample_is_true_for_the_sample_only(split, tmp_path):
    sample = xu.find_images(xu.data_dir())
    assert xu.is_sample(sample) and xu.is_sample(xu.split_images(sample))
    copy = shutil.copytree(xu.data_dir(), tmp_path / "sample")
    assert not xu.is_sample(xu.find_images(copy))
    assert not xu.is_sample(split) and not xu.is_sample(pd.DataFrame())


def test_whole_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "a.txt"
    with files.whole_file(path) as temporary:
        temporary.write_text("first")
        assert not path.exists() and temporary.parent.parent == path.parent
    os.umask(umask := os.umask(0))
    assert path.read_text() == "first" and path.stat().st_mode & 0o777 == 0o666 & ~umask
    with pytest.raises(RuntimeError, match="power"), files.whole_file(path) as temporary:
        temporary.write_text("half of the sec")
        broken()
    assert path.read_text() == "first"
    assert list(path.parent.iterdir()) == [path]


def test_a_split_that_leaves_a_side_empty_says_so(capsys):
    xu.split_images(table(["covid", "normal"] * 10, ["one", "two"] * 10))
    assert "have no image; 2 groups are too few" in capsys.readouterr().out
    xu.split_images(table(["covid", "normal"] * 10, range(20)))
    assert capsys.readouterr().out == ""
