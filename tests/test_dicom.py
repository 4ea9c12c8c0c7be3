"""DICOM files that the tests write: what a viewer shows is what is read, and of the header only a digest is kept."""

import hashlib
import io
import sys

import numpy as np
import pandas as pd
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRLittleEndian, JPEGBaseline8Bit, JPEGLSLossless, RLELossless

import xray_utils as xu
from xray_utils._support.dicom import add_headers

RAMP = np.linspace(100, 3900, 30 * 40).reshape(30, 40).astype(np.uint16)


def write(path, pixels=RAMP, kind="MONOCHROME2", syntax=ExplicitVRLittleEndian, frames=None, **header):
    """A DICOM file; `frames` are compressed ones, of the size of `pixels`."""
    file = Dataset()
    file.file_meta = FileMetaDataset()
    file.file_meta.TransferSyntaxUID = syntax
    file.SOPClassUID, file.SOPInstanceUID, file.PatientName = "1.2.840.10008.5.1.4.1.1.1", "1.2.3", "Doe^Jane"
    file.Rows, file.Columns = pixels.shape[-2:] if kind != "RGB" else pixels.shape[:2]
    file.BitsAllocated = 8 * pixels.dtype.itemsize
    file.BitsStored, file.HighBit = file.BitsAllocated, file.BitsAllocated - 1
    file.PixelRepresentation, file.PhotometricInterpretation = int(pixels.dtype.kind == "i"), kind
    file.SamplesPerPixel = 3 if kind in ("RGB", "YBR_FULL_422") else 1
    if file.SamplesPerPixel == 3:
        file.PlanarConfiguration = 0
    for name, value in header.items():
        setattr(file, name, value)
    if frames:
        file.PixelData = encapsulate(frames)
        file["PixelData"].is_undefined_length = True
    else:
        file.PixelData = pixels.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    if syntax == RLELossless:
        file.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        file.compress(RLELossless)
    file.save_as(path, enforce_file_format=True)
    return path


def ramp(low, high, pixels=RAMP):
    """Grey levels of a linear window from `low` to `high`."""
    return (255 * np.clip((pixels.astype(float) - low) / (high - low), 0, 1)).round()


def lut(first, entries, bits):
    item = Dataset()
    item.LUTDescriptor = [len(entries), first, bits]
    item.add_new("LUTData", "OW", np.asarray(entries, np.uint16).tobytes())
    return [item]


FRAMES = np.stack([RAMP, RAMP[::-1]])
COLOUR = np.dstack([RAMP // 16, RAMP // 32, 255 - RAMP // 16]).astype(np.uint8)
PADDED = np.where(np.arange(40) < 5, 63_000, RAMP).astype(np.uint16)
SQUARES = np.arange(4096) ** 2 // 65536
READ = {  # a name: what is written, and the grey levels that are expected
    "the range used": (dict(), ramp(100, 3900)),
    "monochrome1": (dict(kind="MONOCHROME1"), 255 - ramp(100, 3900)),
    "window": (dict(WindowCenter=2000.5, WindowWidth=1001), ramp(1500, 2500)),
    "two windows": (dict(WindowCenter=[2000.5, 9], WindowWidth=[1001, 9]), ramp(1500, 2500)),
    "window, monochrome1": (dict(kind="MONOCHROME1", WindowCenter=2000.5, WindowWidth=1001), 255 - ramp(1500, 2500)),
    "window wider than the range": (dict(WindowCenter=2000.5, WindowWidth=8001), ramp(-2000, 6000)),
    "rescaled": (dict(RescaleSlope=2, RescaleIntercept=-500, WindowCenter=2500.5, WindowWidth=2001), ramp(1000, 2000)),
    "slope below zero": (dict(RescaleSlope=-1, RescaleIntercept=4000), 255 - ramp(100, 3900)),
    "signed": (dict(pixels=RAMP.astype(np.int16) - 2000), ramp(100, 3900)),
    "empty window": (dict(WindowCenter=None, WindowWidth=None), ramp(100, 3900)),
    "lut": (dict(VOILUTSequence=lut(0, SQUARES, 8)), SQUARES[RAMP]),
    "modality lut": (dict(ModalityLUTSequence=lut(0, SQUARES, 8)), ramp(0, SQUARES[3900], SQUARES[RAMP])),
    "padding": (dict(pixels=PADDED, PixelPaddingValue=63_000), np.where(PADDED > 4000, 0, ramp(RAMP[0, 5], 3900))),
    "many frames": (dict(pixels=FRAMES, NumberOfFrames=2), ramp(100, 3900)),
    "run lengths": (dict(syntax=RLELossless), ramp(100, 3900)),
    "8 bits": (dict(pixels=(RAMP // 16).astype(np.uint8), WindowCenter=128, WindowWidth=256), RAMP // 16),
    "colour": (dict(pixels=COLOUR, kind="RGB"), COLOUR),
}


@pytest.mark.parametrize("name", READ)
def test_a_file_is_read_as_a_viewer_shows_it(name, tmp_path):
    options, expected = READ[name]
    path = write(tmp_path / "without extension", **options)
    found = np.asarray(xu.read_image(path)).astype(int)
    expected = np.asarray(expected, float)
    assert found.shape == (30, 40, 3)
    assert np.abs(found - (expected if expected.ndim == 3 else expected[..., None])).max() <= 1


def test_jpeg_within_is_read_by_pillow(tmp_path):
    file = io.BytesIO()
    Image.fromarray((RAMP // 16).astype(np.uint8)).save(file, "JPEG", quality=100)
    path = write(tmp_path / "a.dcm", RAMP.astype(np.uint8), syntax=JPEGBaseline8Bit, frames=[file.getvalue()])
    assert np.abs(np.asarray(xu.read_image(path))[..., 0] - ramp(RAMP.min(), RAMP.max())).max() < 8


REFUSED = {
    "no decoder": (
        dict(syntax=JPEGLSLossless, frames=[b"\xff\xd8\xff\xd9"]),
        "a.dcm: .*JPEG-LS.*pip install pylibjpeg",
    ),
    "palette": (dict(kind="PALETTE COLOR"), "a.dcm: DICOM of 16 bits, PALETTE COLOR, is not read; export it as PNG"),
    "32 bits": (dict(pixels=RAMP.astype(np.uint32)), "a.dcm: DICOM of 32 bits"),
    "no image": (dict(Rows=0), "a.dcm: there is no image"),
    "bomb": (dict(Rows=65535, Columns=65535), "a.dcm: 4294836225 pixels .65535x65535, DICOM. need"),
    "cut": (dict(Rows=31), "a.dcm: broken image"),
    "window of one level": (dict(WindowCenter=0, WindowWidth=1), "a.dcm: the window in its header leaves one grey"),
    "window of width 0": (dict(WindowCenter=2000, WindowWidth=0), "a.dcm: broken image .*[Ww]indow"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_says_why(name, tmp_path):
    options, message = REFUSED[name]
    with pytest.raises((OSError, ValueError), match=message):
        xu.read_image(write(tmp_path / "a.dcm", **options))


def test_a_deflated_file_is_not_unpacked(tmp_path):
    path = write(tmp_path / "a.dcm", syntax=pydicom.uid.DeflatedExplicitVRLittleEndian)
    with pytest.raises(OSError, match="a.dcm: deflated DICOM is not read; convert it: dcmconv"):
        xu.read_image(path)


def folder_of_dicom(root, patients=("p1", "p1", "p2", "p3")):
    """Two classes, four images; one file has no extension."""
    names = ("covid/a.dcm", "covid/1.2.840.7", "normal/c.DCM", "normal/d.dicom")
    for i, (name, patient) in enumerate(zip(names, patients, strict=True)):
        pixels = np.random.default_rng(i).integers(0, 4096, (30, 40), np.uint16)
        write(root / name, pixels, PatientID=patient, ViewPosition="PA")
    return root


def test_patients_are_digests_and_nothing_else_is_kept(tmp_path):
    images = xu.audit_images(xu.find_images(folder_of_dicom(tmp_path))).set_index("file")
    digests = [f"dicom:{hashlib.sha256(p.encode()).hexdigest()[:16]}" for p in ("p1", "p1", "p2", "p3")]
    wanted = dict(zip(("covid/a.dcm", "covid/1.2.840.7", "normal/c.DCM", "normal/d.dicom"), digests, strict=True))
    assert images.patient.to_dict() == images.group.to_dict() == wanted
    assert images.problem.eq("").all() and images["mode"].eq("L").all()
    assert not any(text in images.to_csv() for text in ("p1", "Doe", "PA"))


@pytest.mark.parametrize("patient", ["ANONYMOUS", ""])
def test_one_patient_for_all_is_no_patient(patient, tmp_path, capsys):
    images = xu.find_images(folder_of_dicom(tmp_path, [patient] * 4))
    assert images.patient.isna().all() and images.group.tolist() == images.file.tolist()
    assert "All 4 DICOM files have the same PatientID or none" in capsys.readouterr().out


def test_the_table_has_the_last_word_on_patients(tmp_path):
    root = folder_of_dicom(tmp_path)
    rows = "covid/a.dcm,covid,mine\ncovid/1.2.840.7,covid,\nnormal/c.DCM,normal,\nnormal/d.dicom,normal,\n"
    (root / "manifest.csv").write_text("file,label,patient_id\n" + rows)
    patients = xu.find_images(root).set_index("file").patient
    assert patients["covid/a.dcm"] == "mine" and patients.drop("covid/a.dcm").str.startswith("dicom:").all()


@pytest.mark.parametrize(
    "view", [dict(ViewPosition="LL"), dict(ViewCodeSequence=[Dataset()])], ids=["position", "code"]
)
def test_lateral_views_are_left_out_and_counted(view, tmp_path, capsys):
    if "ViewCodeSequence" in view:
        view["ViewCodeSequence"][0].CodeMeaning = "left lateral"
    write(folder_of_dicom(tmp_path) / "covid" / "side.dcm", PatientID="p9", **view)
    assert "covid/side.dcm" not in set(xu.find_images(tmp_path).file)
    assert "Left out: 1 lateral view" in capsys.readouterr().out


def test_other_modalities_are_left_out_and_counted(tmp_path, capsys):
    root = folder_of_dicom(tmp_path)
    for name, modality in (("s1", "CT"), ("s2", "CT"), ("s3", "MR"), ("s4", "DX")):
        write(root / "covid" / f"{name}.dcm", PatientID=name, Modality=modality)
    assert [f for f in xu.find_images(root).file if "/s" in f] == ["covid/s4.dcm"]
    assert "Left out: 2 CT, 1 MR\n" in capsys.readouterr().out


def test_without_pydicom_the_files_are_left_out_and_it_says_so(tmp_path, monkeypatch, capsys):
    root = folder_of_dicom(tmp_path)
    for label in ("covid", "normal"):
        Image.fromarray((RAMP // 16).astype(np.uint8)).save(root / label / "e.png")
    monkeypatch.setitem(sys.modules, "pydicom", None)
    assert xu.find_images(root).file.tolist() == ["covid/e.png", "normal/e.png"]
    assert "Left out: 4 DICOM needs pydicom (pip install pydicom)" in capsys.readouterr().out
    with pytest.raises(OSError, match="a.dcm: DICOM needs pydicom .pip install pydicom."):
        xu.read_image(root / "covid" / "a.dcm")


def test_a_broken_header_is_a_row_with_a_reason(tmp_path):
    root = folder_of_dicom(tmp_path)
    for i in range(20):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (20, 20), np.uint8)).save(root / "covid" / f"{i}.png")
    (root / "covid" / "cut.dcm").write_bytes((root / "covid" / "a.dcm").read_bytes()[:200])
    (root / "covid" / "none.dcm").write_bytes(b"no DICOM")
    problems = xu.audit_images(xu.find_images(root)).set_index("file").problem
    assert set(problems[problems.ne("")].index) == {"covid/cut.dcm", "covid/none.dcm"}


@pytest.mark.filterwarnings("error")
def test_mutated_files_are_read_or_refused(tmp_path):
    options = dict(RescaleSlope=1, WindowCenter=2000, WindowWidth=900, VOILUTSequence=lut(0, SQUARES, 8), PatientID="p")
    whole, rng = write(tmp_path / "whole.dcm", **options).read_bytes(), np.random.default_rng(0)
    path, read = tmp_path / "covid" / "a.dcm", 0
    path.parent.mkdir()
    for _ in range(200):
        content = bytearray(whole)
        for at in rng.integers(128, 900, size=rng.integers(1, 12)):
            content[at] = rng.integers(256)
        path.write_bytes(content[: rng.integers(len(content))] if rng.random() < 0.2 else content)
        add_headers(tmp_path, pd.DataFrame({"file": ["covid/a.dcm"], "patient": [None]}))
        try:
            read += xu.read_image(path).mode == "RGB"
        except (OSError, ValueError) as error:
            assert str(error).startswith("a.dcm: "), error
    assert 10 < read < 190
