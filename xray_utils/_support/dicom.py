"""Read DICOM, the format of hospitals, with pydicom: one image as 8-bit grey or RGB, and what its header says."""

import hashlib
import os
import re
import warnings
from collections import Counter
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image

EXTENSIONS = (".dcm", ".dicom")
MANY_ATTRIBUTES = 1 << 20  # bytes: a larger one is read only when needed
LATERAL = {"LL", "RL", "LAT", "LATERAL"}
NO_XRAY = {"CT", "MR", "PT", "NM", "US", "MG", "SR", "PR", "KO"}  # modalities: no radiograph of a chest, or no image
NO_PYDICOM = "DICOM needs pydicom (pip install pydicom)"


def _pydicom():
    """The package pydicom, or None if it is not installed."""
    try:
        import pydicom.pixels

        return pydicom
    except ImportError:
        return None


def is_dicom(path):
    """Whether the content of this file is DICOM, whatever its name."""
    if os.path.isfile(path):  # reading a pipe or a device may never end
        with suppress(OSError), open(path, "rb") as file:  # the reader gives the reason
            return file.read(132)[128:] == b"DICM"
    return False


def may_be_dicom(path):
    """Whether the file ends in .dcm or .dicom, or has no extension, as IM0001 or 1.2.840.1, and `is_dicom`."""
    name = os.path.basename(path).lower()
    return name.endswith(EXTENSIONS) or not re.search(r"\.[a-z]\w*$", name) and is_dicom(path)


def header_of(path):
    """All attributes but the pixels. A deflated file is not read, since it may unpack to any size."""
    name = Path(path).name
    if (pydicom := _pydicom()) is None:
        raise OSError(f"{name}: {NO_PYDICOM}.")
    syntax = pydicom.filereader.read_file_meta_info(path).get("TransferSyntaxUID")
    if syntax == pydicom.uid.DeflatedExplicitVRLittleEndian:
        raise OSError(f"{name}: deflated DICOM is not read; convert it: dcmconv +te old.dcm new.dcm (DCMTK).")
    return pydicom.dcmread(path, stop_before_pixels=True, defer_size=MANY_ATTRIBUTES)


def no_frontal_radiograph(header):
    """Why it is no frontal radiograph of a chest: "lateral view", or a modality such as "CT"; else ""."""
    codes = " ".join(str(code.get("CodeMeaning", "")) for code in header.get("ViewCodeSequence") or [])
    views = {str(header.get("ViewPosition", "")).upper(), *codes.upper().split()}
    modality = str(header.get("Modality") or "").upper()
    return modality if modality in NO_XRAY else "lateral view" if views & LATERAL else ""


def add_headers(root, rows):
    """Rows of `find_images`, with the patient from the DICOM header where no table has it; counts of those left out.

    Only a digest of the PatientID, which is personal data, is kept, and nothing else of the header.
    """
    left_out, found = {}, {}  # by file: why, and the patient
    for file, patient in rows[["file", "patient"]].itertuples(index=False) if len(rows) else ():
        if not may_be_dicom(root / file):
            continue
        if _pydicom() is None:
            left_out[file] = NO_PYDICOM
            continue
        number, what = "", ""
        with suppress(Exception), warnings.catch_warnings():  # `audit_images` gives the reason
            warnings.simplefilter("ignore")
            header = header_of(root / file)
            number, what = str(header.get("PatientID") or "").strip(), no_frontal_radiograph(header)
        if what:
            left_out[file] = what
        elif not isinstance(patient, str):
            found[file] = f"dicom:{hashlib.sha256(number.encode()).hexdigest()[:16]}" if number else None
    if len(found) > 1 and len(set(found.values()) - {None}) < 2:  # as after anonymisation
        print(f"All {len(found)} DICOM files have the same PatientID or none, so it is not used. If they are of one")
        print("patient, say so in a manifest.csv, column patient_id.")
        found = {}
    if left_out or found:
        rows = rows[~rows.file.isin(list(left_out))].reset_index(drop=True)
        rows["patient"] = rows.patient.where(rows.patient.notna(), rows.file.map(found))
    return rows, Counter(left_out.values())


def mode_and_size(path, header):
    """ "DICOM" or "DICOM RGB", columns and rows; OSError for one that is not supported."""
    kind, bits = header.get("PhotometricInterpretation") or "", header.get("BitsAllocated")
    if not (bits and header.get("Rows") and header.get("Columns")):
        raise OSError(f"{Path(path).name}: there is no image in this DICOM file.")
    colour = kind.startswith(("RGB", "YBR"))
    if not (colour and bits == 8 or kind.startswith("MONOCHROME") and bits in (8, 16)):
        raise OSError(f"{Path(path).name}: DICOM of {bits} bits, {kind or 'no kind'}, is not read; export it as PNG.")
    return "DICOM RGB" if colour else "DICOM", header.Columns, header.Rows


def _look_up(item, values):
    """The output of a lookup table for values, and its maximum. (pydicom 3 is wrong for tables of 8 bits.)"""
    count, first, bits = item.LUTDescriptor
    data = item.LUTData
    if isinstance(data, bytes):
        data = np.frombuffer(data, np.uint8 if len(data) == count else "<u2")
    return np.asarray(data)[np.clip(values - first, 0, len(data) - 1).astype(int)].astype(float), 2**bits - 1


def first_frame(path, header):
    """The first frame as a PIL image, "L" or "RGB", as a viewer shows it: rescaled, windowed, MONOCHROME1 inverted.

    Modality LUT, then the first VOI LUT or window; without one, the range of the pixels that are not padding.
    """
    pixels, syntax = _pydicom().pixels, header.file_meta.TransferSyntaxUID
    if syntax.is_compressed and not pixels.get_decoder(syntax).is_available:
        raise OSError(
            f"{Path(path).name}: its pixels are compressed ({syntax.name}), and no decoder is installed: pip install "
            "pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg, or pip install python-gdcm."
        )
    stored = pixels.pixel_array(path, index=0)
    if stored.ndim == 3:
        return Image.fromarray(stored)
    values = np.unique(stored).astype(int)  # each once, for a lookup table
    padding = header.get("PixelPaddingValue")
    ends = sorted((padding, header.get("PixelPaddingRangeLimit", padding))) if isinstance(padding, int) else (1, 0)
    padded = (values >= ends[0]) & (values <= ends[1])
    if header.get("ModalityLUTSequence"):
        shown = _look_up(header.ModalityLUTSequence[0], values)[0]
    else:
        shown = values * float(header.get("RescaleSlope") or 1) + float(header.get("RescaleIntercept") or 0)
    if header.get("VOILUTSequence"):
        low, (shown, high) = 0, _look_up(header.VOILUTSequence[0], shown)
    elif header.get("WindowWidth") is not None and header.get("WindowCenter") is not None:
        *shown, low, high = pixels.apply_windowing(np.append(shown, [-1e12, 1e12]), header)
    else:
        low, high = shown[~padded].min(initial=np.inf), shown[~padded].max(initial=-np.inf)
    levels = np.clip((np.asarray(shown) - low) / ((high - low) or 1), 0, 1)
    if len(values) > 1 and np.ptp(levels) == 0:  # such as the window of width 1 that some programs write for "none"
        raise OSError(f"{Path(path).name}: the window in its header leaves one grey level. Export it as PNG.")
    levels = 1 - levels if header.PhotometricInterpretation == "MONOCHROME1" else levels
    table = np.zeros(1 << 16, np.uint8)
    table[values % (1 << 16)] = (255 * np.where(padded, 0, levels)).round()
    return Image.fromarray(table[stored.astype(np.uint16)])  # a negative number has the same index
