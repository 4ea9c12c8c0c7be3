"""What is downloaded or handed over may be hostile: archives, weights, tables, names; and arguments that are wrong."""

import csv
import io
import json
import os
import pathlib
import re
import shutil
import stat
import struct
import types
import zipfile

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import xray_utils as xu
from xray_utils import models
from xray_utils._support import archives

EVIL = "<img src=x onerror=alert(1)>"


def draw(path, seed=0, size=(12, 10)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, size[::-1], dtype=np.uint8)).save(path, "PNG")
    return path


# ---------------------------------------------------------------- archives


def zip_of(path, *members, compression=zipfile.ZIP_DEFLATED):
    """A zip archive at `path`; a member is (name or ZipInfo, content)."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members:
            archive.writestr(name, content, compression)
    return path


def special(kind):
    info = zipfile.ZipInfo("device.png")
    info.external_attr = (kind | 0o666) << 16
    return info


@pytest.mark.parametrize(
    "names",
    [
        ["a.png", "A.PNG"],
        ["stra\u00dfe.png", "STRASSE.png"],
        ["\u00e9.png", "e\u0301.png"],
        ["a.png", "./a.png"],
        [special(stat.S_IFCHR)],
        [special(stat.S_IFBLK)],
        [special(stat.S_IFIFO)],
        [special(stat.S_IFSOCK)],
    ],
    ids=["upper case", "sharp s", "accents", "dot", "character device", "block device", "pipe", "socket"],
)
def test_odd_members_are_refused_before_anything_is_written(names, tmp_path):
    archive = zip_of(tmp_path / "a.zip", ("good.png", b"1"), *[(name, b"2") for name in names])
    with pytest.raises(ValueError, match="archive: a.zip holds .*refused as unsafe"):
        archives.unpack(archive, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compressions_that_unpack_in_one_go_are_refused(compression, tmp_path):
    archive = zip_of(tmp_path / "a.zip", ("a.png", bytes(1000)), compression=compression)
    with pytest.raises(ValueError, match="refused as unsafe"):
        archives.unpack(archive, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_bomb_is_refused_by_its_ratio(tmp_path):
    archive = zip_of(tmp_path / "a.zip", *[(f"{i}.png", bytes(1_000_000)) for i in range(5)])
    with pytest.raises(ValueError, match=f"over {100 * archive.stat().st_size} bytes"):
        archives.unpack(archive, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]


def test_a_bomb_that_lies_about_its_size_is_cut_off_and_removed(tmp_path, monkeypatch):
    archive = zip_of(tmp_path / "a.zip", ("good.png", b"12345"), ("bomb.png", bytes(30_000_000)))
    archive.write_bytes(archive.read_bytes().replace(struct.pack("<I", 30_000_000), struct.pack("<I", 1_000)))
    with zipfile.ZipFile(archive) as file:
        assert [member.file_size for member in file.infolist()] == [5, 1_000], "it does not lie"
    written, extract = [], zipfile.ZipFile.extractall

    def watched(*args):
        try:
            extract(*args)
        finally:
            written.extend(path.stat().st_size for path in (tmp_path / "out").iterdir())

    monkeypatch.setattr(zipfile.ZipFile, "extractall", watched)
    with pytest.raises(zipfile.BadZipFile):
        archives.unpack(archive, tmp_path / "out")
    assert max(written) <= 1_000 and [path.name for path in tmp_path.iterdir()] == ["a.zip"]


@pytest.mark.parametrize("how", ["bad checksum", "file and folder of one name"])
def test_what_is_half_unpacked_is_removed(how, tmp_path):
    members = [("good.png", b"1234567"), ("a", b"7654321"), ("a/b", b"x")]
    archive = zip_of(tmp_path / "a.zip", *members[: 2 + (how != "bad checksum")], compression=zipfile.ZIP_STORED)
    if how == "bad checksum":
        archive.write_bytes(archive.read_bytes().replace(b"7654321", b"7654320"))
    with pytest.raises((zipfile.BadZipFile, OSError)):
        archives.unpack(archive, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]


def test_a_folder_that_is_there_is_left_alone(tmp_path):
    mine = draw(tmp_path / "out" / "mine.png")
    with pytest.raises(FileExistsError):
        archives.unpack(zip_of(tmp_path / "a.zip", ("a.png", b"1")), tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == [mine]


def test_links_in_a_download_are_not_followed(tmp_path, monkeypatch):
    secret = draw(tmp_path / "elsewhere" / "secret.png")
    draw(tmp_path / "cache" / "covid" / "a.png")
    (tmp_path / "cache" / "normal").symlink_to(secret.parent, target_is_directory=True)
    monkeypatch.setattr("kagglehub.dataset_download", lambda name: str(tmp_path / "cache"))
    with pytest.raises(RuntimeError, match="links, refused"):
        xu.download_images("covid-cxr", tmp_path / "data" / "xray")
    assert list((tmp_path / "data").iterdir()) == []


# ---------------------------------------------------------------- weights


class Bomb:
    """A pickle of this makes a file when it is read carelessly."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return pathlib.Path.touch, (pathlib.Path(self.path),)


@pytest.fixture
def mark(tmp_path):
    """The file that a bomb makes; it is not there at the end."""
    yield tmp_path / "it ran"
    assert not (tmp_path / "it ran").exists()


@pytest.mark.parametrize("old", [False, True], ids=["zip", "bare pickle"])
@pytest.mark.parametrize("name", ["bomb.safetensors", "bomb.pt", "bomb", "bomb.SAFETENSORS"])
def test_a_pickle_under_any_name_does_not_run(name, old, mark, tmp_path):
    path = tmp_path / name
    torch.save({"conv1.weight": Bomb(mark)}, path, _use_new_zipfile_serialization=not old)
    with open(path, "rb") as file:  # by its name, torch would take it for safetensors
        torch.load(file, weights_only=False)
    assert mark.exists(), "the bomb is a dud, so the test would prove nothing"
    mark.unlink()
    with pytest.raises(ValueError, match="weights: .*could not be read as plain tensors"):
        models.load_weights(path)


def test_weights_that_unpack_to_much_more_are_refused(tmp_path):
    torch.save({"a": torch.zeros(1_000_000)}, tmp_path / "plain.pth")
    with zipfile.ZipFile(tmp_path / "plain.pth") as plain:
        zip_of(tmp_path / "bomb.pth", *[(name, plain.read(name)) for name in plain.namelist()])
    assert len(models.load_weights(tmp_path / "plain.pth")["a"]) == len(torch.load(tmp_path / "bomb.pth")["a"])
    with pytest.raises(ValueError, match="weights: .*compressed"):
        models.load_weights(tmp_path / "bomb.pth")


def test_names_that_are_no_text_are_refused(tmp_path):
    torch.save({3: torch.zeros(2)}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match="weights: .*does not hold named tensors"):
        xu.resnet18(weights=tmp_path / "a.pth")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_mutated_weights_are_read_or_refused(suffix, mark, tmp_path):
    path, rng = tmp_path / f"weights{suffix}", np.random.default_rng(0)
    tensors = {"a": torch.arange(6.0), "b": torch.ones(2, 3, dtype=torch.int64)}
    save_file(tensors, path) if suffix == ".safetensors" else torch.save(tensors, path)
    whole, refused = path.read_bytes(), 0
    for _ in range(100):
        content = bytearray(whole)
        for at in rng.integers(len(content), size=rng.integers(1, 12)):
            content[at] = rng.integers(256)
        path.write_bytes(content[: rng.integers(len(content))] if rng.random() < 0.2 else content)
        try:
            models.load_weights(path)
        except ValueError as error:
            refused += "weights: " in str(error)
    assert refused > 20


@pytest.fixture(scope="module")
def vit_folder(tmp_path_factory):
    import transformers

    folder = tmp_path_factory.mktemp("vit")
    sizes = dict(image_size=32, patch_size=8, hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
    config = transformers.ViTConfig(**sizes, intermediate_size=64)
    transformers.ViTForImageClassification(config).save_pretrained(folder)
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def edit(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def with_code(folder, mark):
    """Classes of its own, as `trust_remote_code=True` would run them."""
    (folder / "evil.py").write_text(
        f"import pathlib; pathlib.Path({str(mark)!r}).touch()\nfrom transformers import *\n"
        "class C(ViTConfig): pass\nclass M(ViTForImageClassification): pass\nclass P(ViTImageProcessor): pass\n"
    )
    classes = {"AutoConfig": "evil.C", "AutoModelForImageClassification": "evil.M"}
    edit(folder / "config.json", model_type="evil", auto_map=classes)
    preprocessor = next(folder.glob("*processor_config.json"))
    edit(preprocessor, image_processor_type="P", auto_map={"AutoImageProcessor": "evil.P"})


def with_code_for_the_processor(folder, mark):
    config = (folder / "config.json").read_text()
    with_code(folder, mark)
    (folder / "config.json").write_text(config)


def only_a_pickle(folder, mark):
    (folder / "model.safetensors").unlink()
    torch.save({"vit.layernorm.weight": Bomb(mark)}, folder / "pytorch_model.bin")


def a_pickle_in_disguise(folder, mark):
    torch.save({"vit.layernorm.weight": Bomb(mark)}, folder / "model.safetensors")


def an_index_of_pickles(folder, mark):
    only_a_pickle(folder, mark)
    index = {"metadata": {}, "weight_map": {"vit.layernorm.weight": "pytorch_model.bin"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def a_pickle_by_config(folder, mark):
    only_a_pickle(folder, mark)
    edit(folder / "config.json", transformers_weights="pytorch_model.bin")


@pytest.mark.parametrize(
    "spoil",
    [
        with_code,
        with_code_for_the_processor,
        only_a_pickle,
        a_pickle_in_disguise,
        an_index_of_pickles,
        a_pickle_by_config,
        lambda folder, mark: edit(folder / "config.json", quantization_config={"quant_method": "gptq", "bits": 4}),
        lambda folder, mark: edit(folder / "config.json", num_attention_heads=0),
        lambda folder, mark: (folder / "config.json").write_text("[]"),
    ],
    ids=lambda spoil: spoil.__name__,
)
def test_no_code_of_a_vit_folder_runs(spoil, mark, vit_folder, tmp_path):
    folder = shutil.copytree(vit_folder, tmp_path / "weights")
    spoil(folder, mark)
    with pytest.raises(RuntimeError, match="weights: .*could not be loaded"):
        xu.vit(weights=folder)


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
def test_a_config_cannot_ask_for_a_kernel_from_the_hub(key, vit_folder, tmp_path, monkeypatch):
    from transformers import ViTForImageClassification

    loads, asked = ViTForImageClassification.from_pretrained, []

    def watched(*arguments, **options):
        model, loading = loads(*arguments, **options)
        asked.append(model.config._attn_implementation)
        return model, loading

    monkeypatch.setattr(ViTForImageClassification, "from_pretrained", watched)
    folder = shutil.copytree(vit_folder, tmp_path / "weights")
    edit(folder / "config.json", **{key: "evil/kernel"})
    model = xu.vit(weights=folder)
    assert asked == ["sdpa"] and model.spec == xu.vit(weights=vit_folder).spec


@pytest.mark.parametrize("name", ["someone/vit", "someone/vit@main", "someone/vit@abc", xu.VIT_NAME + "@main"])
def test_weights_from_the_hub_need_a_commit(name, monkeypatch):
    import transformers

    fetch = lambda *args, **options: pytest.fail("fetched")  # noqa: E731
    monkeypatch.setattr(transformers.ViTForImageClassification, "from_pretrained", fetch)
    with pytest.raises(RuntimeError, match=f"weights: '{name}'.*commit of 40 hex digits"):
        xu.vit(weights=name)


def test_a_commit_reaches_network_and_preprocessor(vit_folder, monkeypatch):
    import transformers

    asked = []
    for owner in (transformers.ViTForImageClassification, transformers.AutoImageProcessor):
        real = owner.from_pretrained

        def fetch(name, real=real, **options):
            asked.append((name, options.pop("revision"), options["trust_remote_code"]))
            return real(vit_folder, **options)

        monkeypatch.setattr(owner, "from_pretrained", fetch)
    xu.vit(weights="someone/vit@" + "0f" * 20)
    assert asked == [("someone/vit", "0f" * 20, False)] * 2


# ---------------------------------------------------------------- tables


def manifest(root, content, files=("a.png", "b.png")):
    for seed, name in enumerate(files):
        draw(root / name, seed)
    (root / "manifest.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


@pytest.mark.parametrize(
    "content",
    [
        "file,label\na.png,covid\nb.png,normal\n".encode("utf-16"),
        "file,label,source\na.png,covid,Z\u00fcrich\nb.png,normal,x\n".encode("latin-1"),
        b"",
        b'file,label\na.png,covid\n"b.png,normal\n',
        b"file,label\na.png,covid\nb.png,normal,1,2,3\n",
        b"\x00" * 100,
        b"\x89PNG\r\n\x1a\n" + bytes(range(256)),
    ],
    ids=["utf-16", "latin-1", "empty", "open quote", "ragged", "zeros", "an image"],
)
def test_a_table_that_is_none_is_refused_by_name(content, tmp_path):
    with pytest.raises(ValueError, match="manifest.csv: "):
        xu.find_images(manifest(tmp_path, content))


def test_a_mark_of_byte_order_is_no_part_of_the_table(tmp_path):
    table = "file,label\r\na.png,covid\r\nb.png,normal\r\n".encode("utf-8-sig")
    assert xu.find_images(manifest(tmp_path, table)).file.tolist() == ["a.png", "b.png"]


@pytest.mark.parametrize("column", ["file", "label", "patient_id", "source"])
@pytest.mark.parametrize(
    "cell", ["x" * 10_000_000, "a\x00b", "a\rb", '"a\nb"', "a\x1b[31mb"], ids=["10 MB", "NUL", "CR", "LF", "escape"]
)
def test_huge_and_unprintable_cells_are_refused_in_few_words(cell, column, tmp_path):
    if len(cell) > 99 and column != "patient_id":
        cell = cell[:1001]  # the full size once is enough
    row = {"file": "a.png", "label": "covid", "patient_id": "p", "source": "s"}
    row[column] = cell if cell.startswith('"') else f'"{cell}"'
    text = ",".join(row) + "\n" + ",".join(row.values()) + "\nb.png,normal,q,s\n"
    with pytest.raises(ValueError, match="manifest.csv: ") as caught:
        xu.find_images(manifest(tmp_path, text))
    assert len(str(caught.value)) < 400 and "\x1b" not in str(caught.value)
    assert column in str(caught.value) or "\x00" in cell


def test_a_name_too_long_for_the_disk_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="manifest.csv: 1 of its files"):
        xu.find_images(manifest(tmp_path, f"file,label\na.png,covid\n{'b' * 900}.png,normal\n"))


def test_links_that_lead_out_are_followed_and_only_read(tmp_path):
    outside = draw(tmp_path / "outside.png", 3)
    before = outside.read_bytes()
    root = manifest(tmp_path / "tree", "file,label\na.png,covid\nlink.png,normal\n")
    (root / "link.png").symlink_to(outside)
    audited = xu.audit_images(xu.find_images(root))
    assert audited.problem.eq("").all() and outside.read_bytes() == before


FORMULAS = ["=cmd|' /C calc'!A0", "+1+1", "-2", "@SUM(A1)", "\uff1d1"]


def cells_of(path):
    with open(path, newline="") as file:
        return [cell for row in csv.reader(file) for cell in row]


@pytest.mark.parametrize("formula", FORMULAS)
def test_formulas_stay_text_in_every_table(formula, tmp_path, monkeypatch):
    name = formula.replace("/", "_")
    lines = [
        f'"{name}.png",covid,"{formula}","{formula}","{formula}"',
        *[f"n{i}.png,normal,p{i},s,v" for i in range(9)],
    ]
    files = [f"{name}.png", *[f"n{i}.png" for i in range(9)]]
    text = "file,label,patient_id,source,licence\n" + "\n".join(lines) + "\n"
    images = xu.audit_images(xu.find_images(manifest(tmp_path / "images", text, files)))
    assert images.problem.eq("").all(), "the file is no longer found"
    prepared = xu.prepare(xu.split_images(images, mirror=False), size=8)
    images.to_csv(tmp_path / "images.csv", index=False)
    rows = pd.concat([side.rows for side in (prepared.train, prepared.val, prepared.test)])
    rows = rows.assign(predicted=rows.label, p_covid=0.2, p_normal=0.3, p_virus=0.5)
    xu.save_results(types.SimpleNamespace(folder=tmp_path, config={"data": {}}), rows)
    tables = [*tmp_path.glob("*.csv"), *pathlib.Path(os.environ["XRAY_OUTPUTS"]).rglob("index.csv")]
    cells = [cell for table in tables for cell in cells_of(table)]
    assert len(tables) == 3 and sum(name in cell or formula in cell for cell in cells) >= 8
    numbers = [cell for cell in cells if cell.replace(".", "").replace("e-", "").lstrip("-").isdigit()]
    assert not [cell for cell in set(cells) - set(numbers) if cell.startswith(tuple("=+-@\uff1d"))]
    assert formula not in cells


def test_class_folders_that_look_like_formulas_stay_text(tmp_path):
    draw(tmp_path / "=covid" / "a.png")
    draw(tmp_path / "normal" / "=b.png", 1)
    images = xu.find_images(tmp_path)
    assert images.file.tolist() == ["./=covid/a.png", "normal/=b.png"]
    assert xu.audit_images(images).problem.eq("").all()


# ---------------------------------------------------------------- pages


def test_names_are_escaped_on_a_page(tmp_path):
    from nbconvert import HTMLExporter

    draw(tmp_path / "covid" / f"{EVIL}.png")
    draw(tmp_path / "normal" / "b.png", 1)
    images = xu.find_images(tmp_path)
    output = nbformat.v4.new_output
    outputs = [
        output("execute_result", {"text/html": images._repr_html_(), "text/plain": repr(images)}),
        output("execute_result", {"text/plain": images.file.iloc[0]}),
        output("stream", name="stdout", text=f"the first is {images.file.iloc[0]!r}"),
        output("error", ename="ValueError", evalue=EVIL, traceback=[f"ValueError: {images.file.iloc[0]}"]),
    ]
    cell = nbformat.v4.new_code_cell("images", outputs=outputs)
    page, _ = HTMLExporter().from_notebook_node(nbformat.v4.new_notebook(cells=[cell]))
    assert "<img src=x" not in page and page.count("&lt;img src=x onerror=alert(1)&gt;") == 5


# ---------------------------------------------------------------- arguments


def table(**columns):
    images = pd.DataFrame({"file": ["a.png"], "label": ["covid"], "group": ["a"], **columns})
    images.attrs["root"] = "."
    return images


WRONG = {
    "find_images(None)": (lambda: xu.find_images(None), "folder: 'None' is no folder"),
    "find_images(3)": (lambda: xu.find_images(3), "folder: '3' is no folder"),
    "find_images of a file": (lambda: xu.find_images(__file__), "folder: .*test_hostile.py' is no folder"),
    "find_images with NUL": (lambda: xu.find_images("a\0b"), "folder: .* is no folder"),
    "find_images, too long": (lambda: xu.find_images("a" * 9999), "folder: .* is no folder"),
    "download_images": (lambda: xu.download_images("mnist"), "source: 'mnist' is unknown. Allowed: 'covid-cxr'"),
    "audit_images of a list": (lambda: xu.audit_images([1]), "images: .* find_images"),
    "audit_images of no table": (lambda: xu.audit_images(None), "images: .* find_images"),
    "audit_images without group": (lambda: xu.audit_images(table().drop(columns="group")), "images: column 'group'"),
    "audit_images of no rows": (lambda: xu.audit_images(table().iloc[:0]), "images: the table is empty"),
    **{
        f"audit_images(near={near})": (lambda near=near: xu.audit_images(table(), near=near), f"near: {near!r} must be")
        for near in (0, -0.5, 1.01, float("nan"), "high", None)
    },
    **{
        f"resize({size!r})": (
            lambda size=size: xu.resize(Image.new("RGB", (9, 9)), size),
            re.escape(f"size: {size!r} must be"),
        )
        for size in (0, -1, 2.5, "big", None, (3, 3))
    },
    "resnet18(weights=3)": (lambda: xu.resnet18(weights=3), "weights: '3' is no file. Give"),
    "resnet18 with NUL": (lambda: xu.resnet18(weights="a\0b"), "weights: .* is no file. Give"),
    "resnet18 of a folder": (lambda: xu.resnet18(weights="/"), "weights: '/' is no file. Give"),
    "resnet18, too long": (lambda: xu.resnet18(weights="a" * 9999), "weights: .* is no file. Give"),
    "vit(weights=3)": (lambda: xu.vit(weights=3), "weights: '3' could not be loaded .no folder"),
    "vit(weights='')": (lambda: xu.vit(weights=""), "weights: '' could not be loaded .no folder"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_arguments_are_named(case):
    call, words = WRONG[case]
    with pytest.raises((ValueError, FileNotFoundError, RuntimeError), match=words):
        call()


def test_reading_names_what_is_wrong_with_the_file(tmp_path):
    for path, words in ((tmp_path / "gone.png", "gone.png"), (tmp_path, "not a regular file")):
        with pytest.raises(OSError, match=words):
            xu.read_image(path)
    with pytest.raises(ValueError, match="path: <.*BytesIO.* is no path; pass that of an image"):
        xu.read_image(io.BytesIO(b""))
