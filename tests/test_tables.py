"""Names of classes, tables of public sets, tables as people save them: on small trees that the tests draw."""

import io
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from test_data import draw_tree, left_out

import xray_utils as xu
from xray_utils._support import archives, datasets
from xray_utils._support.names import meaning
from xray_utils._support.paths import SOURCES
from xray_utils._support.tables import LAYOUTS, Layout

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
    "names, kind",
    [
        (["COVID-19 positive", "COVID19(460)", "Pneumonia/Viral/COVID-19", "SARS-CoV-2", "COVID-19, ARDS"], "covid"),
        (["2019-nCoV", "covid+", "Covid 19 cases"], "covid"),
        (["NORMAL (healthy)", "No_Findings", "NoFinding", "Normal chest x-rays [90]"], "normal"),
        (["v\u00edrus", "VI\u0301RUS", "Pneumonia/Viral/SARS", "MERS-CoV", "SARS", "ViralPneumonia"], "virus"),
        (["covid_0", "covid=0", "COVID19 (00)"], None),
        (["covid_10", "covid_1", "covid 2020", "COVID-190"], "covid"),
        (["no_covid", "non-covid", "nocovid", "covid negative", "COVID-19 (-)", "!covid", "COVID\u9634\u6027"], None),
        (["not normal", "abnormal", "unhealthy", "normal pneumonia", "no normal"], None),
        (["covid and normal", "virus covid", "covid19-dataset", "post-covid", "Normais", "positive"], None),
        (["train", "train_0", "images", "chest_xray", "12", ""], ""),
    ],
)
def test_a_name_is_read_only_if_all_its_words_mean_one_class(names, kind):
    assert {name: meaning(name) for name in names} == dict.fromkeys(names, kind)


# Of each public set: its files, its tables, the classes that are read, what is counted aloud.
COHEN = """PatientID,finding,view,modality,filename,license,clinical_notes
1,Pneumonia/Viral/COVID-19,PA,X-ray,a.jpg,CC BY,"two
lines"
2,No Finding,AP,X-ray,b.png,,
3,Pneumonia/Viral/SARS,AP Supine,X-ray,c.jpeg,,
4,Pneumonia/Bacterial/Klebsiella,PA,X-ray,d.png,,
4,Pneumonia/Fungal/Pneumocystis,PA,X-ray,d2.png,,
5,Pneumonia/Viral/COVID-19,L,X-ray,e.jpg,,
5,Pneumonia/Viral/COVID-19,Axial,CT,x.nii.gz,,
5,COVID-19,Coronal,CT,f.jpg,,
6,todo,AP,X-ray,g.png,,
7,"COVID-19, ARDS",AP,X-ray,h.png,,
8,Hernia,AP,X-ray,i.png,,
9,Pneumonia/Viral/COVID-19,AP,X-ray,gone.png,,
"""
NIH = "Image Index,Finding Labels,Patient ID,View Position,OriginalImage[Width,Height],\n"
NIH += "1.png,No Finding,1,PA,9,9,\n2.png,Pneumonia,2,AP,9,9,\n3.png,Mass|Nodule,2,AP,9,9,\n4.png,Hernia,3,PA,9,9,\n"
SETS = {
    "covid-chestxray-dataset": (
        [f"images/{name}" for name in "a.jpg b.png c.jpeg d.png d2.png e.jpg f.jpg g.png h.png i.png".split()]
        + ["volumes/x.nii.gz", "annotations/z.png"],
        {"metadata.csv": COHEN},
        {"images/a.jpg": "covid", "images/b.png": "normal", "images/c.jpeg": "virus", "images/h.png": "covid"},
        {"CT": 2, "lateral view": 1, "bacteria": 1, "fungi": 1, "inconclusive": 1, "other findings": 1}
        | {"file missing": 1, "not in metadata.csv": 1},
    ),
    "actualmed": (
        [f"images/CR.{i}.png" for i in range(5)],
        {
            "metadata.csv": "imagename,patientid,view,modality,finding\nCR.0.png,7,PA,CR,COVID-19\n"
            "CR.1.png,7,AP,CR,COVID-19\nCR.2.png,8,PA,DX,No finding\nCR.3.png,9,PA,DX,\n"
        },
        {"images/CR.0.png": "covid", "images/CR.1.png": "covid", "images/CR.2.png": "normal"},
        {"inconclusive": 1, "not in metadata.csv": 1},
    ),
    "figure1": (
        ["images/COVID-00001.jpg", "images/COVID-00002.png"],
        {"metadata.csv": "patientid,finding,view\nCOVID-00001,COVID-19,PA\nCOVID-00002,No finding,AP\n"},
        {"images/COVID-00001.jpg": "covid", "images/COVID-00002.png": "normal"},
        {},
    ),
    "hannover": (
        ["png/aa.png", "png/bb.png"],
        {"data.csv": "patient_id,image_id,projection\n1,aa,ap\n2,bb,lateral\n"},
        {"png/aa.png": "covid"},
        {"lateral view": 1},
    ),
    "nih sample": (
        ["sample/images/1.png", "sample/images/2.png"],
        {"sample_labels.csv": NIH},
        {"sample/images/1.png": "normal"},
        {"pneumonia of unknown kind": 1, "file missing": 2},
    ),
    "nih": (
        ["images_001/images/1.png", "images_012/images/2.png", "images_012/images/3.png"],
        {"Data_Entry_2017_v2020.csv": NIH},
        {"images_001/images/1.png": "normal"},
        {"pneumonia of unknown kind": 1, "other findings": 1, "file missing": 1},
    ),
    "covidx": (
        ["train/a.png", "train/b c.png", "test/a.png", "test/d.jpg", "test/e.jpg"],
        {
            "train.txt": "1 a.png COVID-19 cohen\n2 b c.png normal rsna\n",
            "test_COVIDx9A.txt": "1 a.png positive\n3 d.jpg pneumonia sirm\n4 e.jpg negative x\n",
        },
        {"test/a.png": "covid", "train/a.png": "covid", "train/b c.png": "normal"},
        {"pneumonia of unknown kind": 1, "negative for covid (normal or other)": 1},
    ),
}


def tree(root, files, tables):
    draw_tree(root, files)
    for name, text in tables.items():
        (root / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return root


def test_every_known_set_is_tested_and_listed():
    assert {layout.name for layout in LAYOUTS} == {"", *(name.split()[0] for name in SETS)}
    page = (ROOT / "data" / "README.md").read_text(encoding="utf-8")
    assert all(f"| `{source}` | [{name}]" in page for source, (_, name, *_) in SOURCES.items())
    assert all(len(commit) == (site == "github") for site, _, *commit in SOURCES.values())


def test_the_columns_of_a_set_are_found_in_any_case(tmp_path, monkeypatch):
    other = Layout("other", "labels.csv", {"Img": "file", "Pt": "patient", "Dx": "label"}, ("pics",))
    monkeypatch.setattr("xray_utils._support.tables.LAYOUTS", (other,))
    table = "IMG,pt,Dx\na.png,1,COVID-19\nb.png,2,Normal\n"
    images = xu.find_images(tree(tmp_path, ["pics/a.png", "pics/b.png"], {"labels.csv": table}))
    assert images.patient.tolist() == ["other:1", "other:2"] and images.label.tolist() == ["covid", "normal"]


@pytest.mark.parametrize("inside", ["", "archive/master"])
@pytest.mark.parametrize("name", SETS)
def test_a_public_set_is_read_by_its_table(name, inside, tmp_path, capsys):
    files, tables, classes, counted = SETS[name]
    tree(tmp_path / "set" / inside, files, tables)
    (tmp_path / "set" / "__MACOSX").mkdir()
    (tmp_path / "set" / "README.txt").touch()
    images = xu.find_images(tmp_path / "set", least_classes=1)
    assert dict(zip(images.file, images.label, strict=True)) == classes
    assert left_out(capsys) == counted
    assert images.source.str.startswith(source := name.split()[0]).all()
    assert images.patient.str.startswith(f"{source}:").all() if name != "figure1" else images.patient.isna().all()


def test_no_file_of_a_public_set_is_an_error(tmp_path):
    root = tree(tmp_path, ["images/other.png"], {"Data_Entry_2017.csv": NIH})
    with pytest.raises(FileNotFoundError, match="none of its 4 images is there. They belong in images"):
        xu.find_images(root)


def test_a_set_of_one_class_says_how_it_is_read(tmp_path):
    files, tables, *_ = SETS["hannover"]
    with pytest.raises(ValueError, match="one class only, 'covid'.*least_classes=1"):
        xu.find_images(tree(tmp_path, files, tables))


def test_a_table_of_no_known_set_is_named_and_folders_are_read(tmp_path, capsys):
    tables = {"metadata.csv": COHEN, "data.csv": "image_id,b\n1,2\n", "train.txt": "words\n"}
    root = tree(tmp_path, ["covid/a.png", "normal/b.png"], tables)
    assert xu.find_images(root).label.tolist() == ["covid", "normal"]
    assert capsys.readouterr().out == "Not used: data.csv, metadata.csv, no table of a known set.\n"


@pytest.mark.parametrize(
    "text",
    [
        "file;label\nward/a.png;covid\nward/b.png;normal\n",
        "file\tlabel\tnote\nward/a.png\tcovid\t1,5\nward/b.png\tnormal\t2\n",
        " File ,LABEL\nward\\a.png,Covid \n ward\\b.png,normal\n",
        "\ufefffile,label\r\nward/a.png,covid\r\nward/b.png,normal\r\n",
        "\ufeffsep=;\r\nfile;label\r\nward/a.png;covid\r\nward/b.png;normal\r\n",
        'file;label;"years, months, days"\nward/a.png;covid;1\nward/b.png;normal;2\n',
        "file;label\nward/a.png;covid\nward/b.png;normal\n;\n;\n",
    ],
    ids=[
        "semicolons",
        "tabs",
        "upper case, blanks, backslashes",
        "byte-order mark",
        "sep=",
        "commas in a name",
        "empty",
    ],
)
def test_a_manifest_may_be_saved_in_many_ways(text, tmp_path):
    images = xu.find_images(tree(tmp_path, ["ward/a.png", "ward/b.png"], {"Manifest.CSV": text}))
    assert images[["file", "label"]].values.tolist() == [["ward/a.png", "covid"], ["ward/b.png", "normal"]]


def test_lateral_views_and_ct_of_a_manifest_are_counted(tmp_path, capsys):
    text = "file,label,view,modality\na.png,covid,PA,DX\nb.png,normal,,\nc.png,normal,Lateral,\nd.png,covid,,CT\n"
    images = xu.find_images(tree(tmp_path, ["a.png", "b.png", "c.png", "d.png"], {"manifest.csv": text}))
    assert images.file.tolist() == ["a.png", "b.png"] and left_out(capsys) == {"lateral view": 1, "CT": 1}


def test_a_table_further_down_is_not_used_where_images_lie_beside_its_folder(tmp_path):
    tree(tmp_path, ["c.png", "set/a.png", "set/b.png"], {"set/manifest.csv": "file,label\na.png,covid\nb.png,normal\n"})
    with pytest.raises(ValueError, match="unknown class 'set'.*in one folder, write a manifest.csv .file, label"):
        xu.find_images(tmp_path)


def test_a_letter_with_an_accent_is_one_however_it_is_written(tmp_path):
    text = "file,label\nme\u0301dico.png,covid\nb.png,normal\n"
    images = xu.find_images(tree(tmp_path, ["m\u00e9dico.png", "b.png"], {"manifest.csv": text}))
    assert images.file.tolist() == ["b.png", "m\u00e9dico.png"]


@pytest.mark.parametrize(
    "tables, words",
    [
        ({"manifest.csv": "file,label\na.png,v\u00edrus\n".encode("cp1252")}, "utf-8.*'CSV UTF-8'"),
        ({"manifest.csv": "file,FILE,label\na.png,b.png,covid\n"}, "has a column twice"),
        ({"manifest.csv": "file,label\na.png,covid,x\nb.png,normal,x\n"}, "more cells than its first line"),
        ({"manifest.csv": "file,label\n", "manifest.xlsx": "x"}, "manifest.xlsx is there too; remove one"),
        ({"manifest.xlsx": "no Excel file"}, "manifest.xlsx: "),
    ],
)
def test_a_manifest_that_cannot_be_read_says_what_to_do(tables, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        xu.find_images(tree(tmp_path, ["a.png", "b.png"], tables))


def test_an_excel_manifest_is_read_or_names_its_package(tmp_path, monkeypatch):
    draw_tree(tmp_path, ["a.png", "b.png"])
    pytest.importorskip("openpyxl")
    table = pd.DataFrame({"File": ["a.png", "b.png"], "Label": ["covid", "normal"], "patient_id": [7, 8]})
    table.to_excel(tmp_path / "manifest.xlsx", index=False)
    assert xu.find_images(tmp_path).patient.tolist() == ["7", "8"]
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(ValueError, match="manifest.xlsx: .*Install openpyxl"):
        xu.find_images(tmp_path)


# ---------------------------------------------------------------- labels

FOLDERS = ["Normais/a.png", "v\u00edrus/1/b.png", "COVID19(460)/c.png", "Outros/fa/d.png"]
MANIFEST = "file,label\nNormais/a.png,Normais\nv\u00edrus/1/b.png,v\u00edrus\nOutros/fa/d.png,Outros\n"
CLASSES = {"Normais/a.png": "normal", "v\u00edrus/1/b.png": "virus"}


@pytest.mark.parametrize("table", [False, True], ids=["folders", "manifest"])
def test_labels_say_which_name_is_which_class(table, tmp_path, capsys):
    tree(tmp_path, FOLDERS, {"manifest.csv": MANIFEST} if table else {})
    with pytest.raises(ValueError) as caught:
        xu.find_images(tmp_path)
    known = "'v\u00edrus' is virus"
    for words in ("unknown class 'Normais', 'Outros'", 'labels={"Normais": "normal", "Outros": "?"}', known, "None"):
        assert words in str(caught.value)
    images = xu.find_images(tmp_path, labels={"NORMAIS": "normal", "Outros": None})
    expected = CLASSES if table else {**CLASSES, "COVID19(460)/c.png": "covid"}
    assert dict(zip(images.file, images.label, strict=True)) == expected
    reason = "with label 'Outros' (labels)" if table else "in 'Outros' (labels)"
    assert left_out(capsys) == {reason: 1} | ({"not in manifest.csv": 1} if table else {})
    with pytest.raises(ValueError, match="there is no .*'norma'. Found: .*'Normais', 'Outros'"):
        xu.find_images(tmp_path, labels={"Normais": "normal", "Outros": None, "norma": "normal"})


def test_labels_go_before_what_a_name_means(tmp_path, capsys):
    draw_tree(tmp_path, ["0/a.png", "1/b.png", "covid/c.png", "clinic/covid/e.png"])
    images = xu.find_images(tmp_path, labels={"0": "normal", "1": "virus", "covid": "covid", "clinic": None})
    assert images.label.tolist() == ["normal", "virus", "covid"] and left_out(capsys) == {"in 'clinic' (labels)": 1}


def test_a_folder_below_a_class_is_asked_for_unless_labels_name_the_class(tmp_path):
    draw_tree(tmp_path, ["all/covid/P1/a.png", "all/covid/P2/b.png", "all/normal/1/c.png"])
    with pytest.raises(ValueError, match="unknown class 'P1', 'P2'"):
        xu.find_images(tmp_path)
    assert xu.find_images(tmp_path, labels={"covid": "covid"}).label.tolist() == ["covid", "covid", "normal"]
    draw_tree(tmp_path / "none", ["set/Gesunde/P1/a.png", "set/Kranke/P1/b.png"])
    with pytest.raises(ValueError, match="unknown class 'Gesunde', 'Kranke'"):
        xu.find_images(tmp_path / "none")


def test_a_folder_that_holds_other_classes_is_no_class_itself(tmp_path, capsys):
    draw_tree(tmp_path, ["covid19/test/1.png", "covid19/covid/a.png", "covid19/normal/b.png"])
    assert xu.find_images(tmp_path).label.tolist() == ["covid", "normal"]
    assert left_out(capsys) == {"in no class folder": 1}


def test_folders_named_by_numbers_alone_are_asked_for(tmp_path):
    with pytest.raises(ValueError, match=r'labels=\{"0": "\?", "1": "\?"\}'):
        xu.find_images(draw_tree(tmp_path, ["0/a.png", "1/b.png"]))


@pytest.mark.parametrize("name", ["no_covid", "covid_0", "abnormal", "anormais", "ohne covid", "covid!"])
def test_no_class_is_proposed_for_a_name_that_denies_one(name, tmp_path):
    with pytest.raises(ValueError) as caught:
        xu.find_images(draw_tree(tmp_path, ["covid/a.png", f"{name}/b.png"]))
    assert f'labels={{"{name}": "?"}}' in str(caught.value)


# ---------------------------------------------------------------- archives


def zip_of(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def tar_of(path, *members, mode="w:gz"):
    """Members are (name, content) or (TarInfo, content)."""
    with tarfile.open(path, mode) as archive:
        for member, content in members:
            info = member if isinstance(member, tarfile.TarInfo) else tarfile.TarInfo(member)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def special(kind, name="odd.png", target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def unpacked(archive):
    archives.unpack(archive, archive.parent / "out")
    return {p.relative_to(archive.parent / "out").as_posix() for p in (archive.parent / "out").rglob("*.*")}


FILES = {"set/covid/a.png": b"1", "set/normal/b.png": b"2"}


@pytest.mark.parametrize("kind", ["set.tar", "set.tar.gz", "SET.TGZ", "backslashes.zip", "zip.zip", "tgz.zip"])
def test_every_kind_of_archive_gives_its_files(kind, tmp_path):
    archive = tmp_path / kind
    if kind == "backslashes.zip":
        zip_of(archive, {name.replace("/", "\\"): content for name, content in FILES.items()})
    elif kind.endswith(".zip"):
        inner = tmp_path / f"inner.{kind[:-4]}"
        zip_of(inner, FILES) if kind == "zip.zip" else tar_of(inner, *FILES.items())
        zip_of(archive, {f"data/{inner.name}": inner.read_bytes(), "data/readme.txt": b"x"})
    else:
        tar_of(archive, *FILES.items(), mode="w" if kind == "set.tar" else "w:gz")
    archives.check_archive(archive)
    nested = {f"data/inner/{name}" for name in FILES} | {"data/readme.txt"}
    assert unpacked(archive) == (nested if kind in ("zip.zip", "tgz.zip") else set(FILES))


def test_archives_of_archives_are_unpacked_without_the_files_of_macos(tmp_path):
    covid, normal = (zip_of(tmp_path / "part.zip", {name: b"1"}).read_bytes() for name in ("a.png", "b.png"))
    deep = zip_of(tmp_path / "deep.zip", {"covid.zip": covid}).read_bytes()
    archive = zip_of(tmp_path / "a.zip", {"deep.zip": deep, "normal.zip": normal, "__MACOSX/._normal.zip": b"x"})
    assert unpacked(archive) == {"deep/covid/a.png", "normal/b.png", "__MACOSX/._normal.zip"}


def test_an_archive_beside_a_folder_of_its_name_leaves_nothing(tmp_path):
    inner = zip_of(tmp_path / "normal.zip", {"b.png": b"2"}).read_bytes()
    archive = zip_of(tmp_path / "a.zip", {"normal.zip": inner, "normal/readme.txt": b"x"})
    with pytest.raises(ValueError, match="normal.zip lies beside normal. Unpack them, and give the folder"):
        archives.unpack(archive, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_archive_beside_images_stays_packed_aloud(tmp_path, capsys):
    inner = zip_of(tmp_path / "masks.zip", {"m.png": b"3"}).read_bytes()
    assert unpacked(zip_of(tmp_path / "a.zip", {**FILES, "masks.zip": inner})) == {*FILES, "masks.zip"}
    assert capsys.readouterr().out == "Not unpacked: masks.zip, beside the images.\n"


@pytest.mark.parametrize(
    "members, words",
    [
        ([("../x.png", b"1")], "refused as unsafe"),
        ([("/x.png", b"1")], "refused as unsafe"),
        ([("..\\x.png", b"1")], "refused as unsafe"),
        ([("a.png", b"1"), ("A.png", b"1")], "refused as unsafe"),
        ([(special(tarfile.SYMTYPE, target="/"), b"")], "refused as unsafe"),
        ([(special(tarfile.LNKTYPE, target="good.png"), b"")], "refused as unsafe"),
        ([(special(tarfile.FIFOTYPE), b"")], "refused as unsafe"),
        ([(special(tarfile.CHRTYPE), b"")], "refused as unsafe"),
        ([("a.png", bytes(5_000_000))], "unpacks to over"),
        ([("x" * 3_000_000, b"1")], "unpacks to over"),
    ],
)
def test_a_hostile_tar_is_refused_before_anything_is_written(members, words, tmp_path):
    archive = tar_of(tmp_path / "a.tgz", ("good.png", b"0"), *members)
    with pytest.raises(ValueError, match=f"archive: a.tgz .*{words}"):
        archives.unpack(archive, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["a.tgz"]


def test_a_bomb_inside_an_archive_leaves_nothing(tmp_path):
    inner = zip_of(tmp_path / "inner.zip", {"a.png": bytes(5_000_000)}).read_bytes()
    archive = zip_of(tmp_path / "a.zip", {"inner.zip": inner})
    (tmp_path / "inner.zip").unlink()
    with pytest.raises(ValueError, match="archive: inner.zip unpacks to over"):
        archives.unpack(archive, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]


def test_a_tar_of_another_compression_inside_is_not_read(tmp_path):
    inner = tar_of(tmp_path / "inner.tar", ("a.png", bytes(1000)), mode="w:xz").read_bytes()
    with pytest.raises(ValueError, match="archive: inner.tar is broken"):
        archives.unpack(zip_of(tmp_path / "a.zip", {"inner.tar": inner}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_cut_tar_leaves_nothing(tmp_path):
    noise = np.random.default_rng(0).bytes(50_000)
    archive = tar_of(tmp_path / "a.tgz", ("a.png", noise), ("b.png", noise[::-1]))
    archive.write_bytes(archive.read_bytes()[:-200])
    with pytest.raises(ValueError, match="archive: a.tgz is broken"):
        archives.unpack(archive, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["a.tgz"]


def test_a_zip_with_a_password_says_so(tmp_path):
    archive = zip_of(tmp_path / "a.zip", {"a.png": b"1"})
    content = bytearray(archive.read_bytes())
    for start, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(start) + flags] |= 1
    archive.write_bytes(content)
    with pytest.raises(ValueError, match="archive: a.zip has a password. Unpack it by hand, and give the folder"):
        archives.unpack(archive, tmp_path / "out")


@pytest.mark.parametrize(
    "name, start, words",
    [
        ("a.rar", b"Rar!\x1a\x07\x01\x00", "a.rar is a RAR archive, not read here. Unpack it, and give the folder"),
        ("a.7z", b"7z\xbc\xaf\x27\x1c", "a.7z is a 7-Zip archive"),
        ("a.zip", b"Rar!\x1a\x07\x01\x00", "a.zip is a RAR archive"),
        ("a.tar.gz", b"\x1f\x8b\x08\x00", "a.tar.gz is broken .*Fetch it again"),
        ("a.zip", b"PK\x03\x04", "a.zip is no .zip file, or it is incomplete"),
    ],
)
def test_what_is_no_archive_to_read_is_named(name, start, words, tmp_path, monkeypatch):
    monkeypatch.delenv("XRAY_DATA")
    monkeypatch.setattr(datasets, "repository_dir", lambda: tmp_path / "repository")
    (tmp_path / name).write_bytes(start + bytes(20))
    with pytest.raises(ValueError, match=f"(source|archive): {words}"):
        xu.use_images(tmp_path / name)


def test_labels_reach_the_prepared_set_and_its_fingerprint(tmp_path, monkeypatch, capsys):
    draw_tree(tmp_path, [f"{name}/{i}.png" for name in ("covid", "um", "dois") for i in range(12)])
    monkeypatch.setenv("XRAY_DATA", str(tmp_path))
    chosen = [{"um": "normal", "dois": "virus"}, {"um": "virus", "dois": "normal"}, {"um": "normal", "dois": None}]
    loaded = [xu.load_data(size=8, labels=labels) for labels in chosen]
    assert len({data.train.fingerprint() for data in loaded}) == 3
    assert "Left out: 12 in 'dois' (labels)" in capsys.readouterr().out
    assert set(loaded[2].train.rows.label) == {"covid", "normal"}


def test_names_without_a_class_are_said_when_chosen_and_kept(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("XRAY_DATA")
    xu.use_images(draw_tree(tmp_path / "mine", ["covid/a.png", "Normais/b.png"]))
    assert 'labels={"Normais": "normal"}' in capsys.readouterr().out and xu.data_dir() == tmp_path / "mine"
