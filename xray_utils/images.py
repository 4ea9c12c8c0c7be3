"""From a folder or a table of chest X-rays to the images table; read one image."""

import os
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from ._support import dicom
from ._support.checks import check_kind, check_path, check_size, check_table, check_whole
from ._support.decode import EXTENSIONS, _decode
from ._support.files import image_files
from ._support.names import PNEUMONIA, UnknownClassError, check_found, check_labels, fold, meaning, patient_of
from ._support.paths import is_sample, labels_of
from ._support.tables import find_layout, rows_of_table
from .constants import CLASSES

MASKS = re.compile(r"masks?$|^segmentation$")  # folders of masks, not of images
FORMULA = re.compile(r"[=+\-@\uff1d\uff0b\uff0d\uff20]")  # the first character of a spreadsheet formula
CREDITS = {  # by source: the credit that a figure of such images must show
    "hannover": "Hannover Medical School, CC BY 3.0",
    "kermany": "Kermany et al., CC BY 4.0",
    "nih": "NIH Clinical Center",
    "cohen": "Cohen et al., CC BY 4.0",
}


def find_images(folder: str | Path, least_classes: int = 2, labels: dict | None = None) -> pd.DataFrame:
    """One row an image: `file` (relative to the folder), `label`, `patient`, `group`, `source`, sorted by file.

    Reads a folder with `manifest.csv` (columns file, label; patient_id, source and more if there), a public set with
    a table (see `LAYOUTS`), or class folders at any depth (train/val/test are merged). Prints how many images are left
    out. `group` is the patient, or the file itself where the patient is not known; `audit_images` joins duplicates.
    Links are followed. A name or cell that a spreadsheet would take for a formula gets the prefix "./".
    labels: the class of a folder name or of a label in a table: `{"Normais": "normal", "Outros": None}`; None leaves
    its images out. Case and accents do not matter.

    Raises FileNotFoundError: no such folder, or no images. ValueError: an unknown class (the message has the line to
    write), a name in `labels` that is not there, fewer than `least_classes`, or a table that is no UTF-8 CSV or holds
    paths out of the folder, control characters or cells of over 1,000 characters.
    """
    if not isinstance(folder, (str, os.PathLike)) or not os.path.isdir(os.path.expanduser(folder)):
        raise FileNotFoundError(
            f"folder: {str(folder)!r} is no folder. Give the one that holds the images; use_images unpacks an archive."
        )
    check_whole("least_classes", least_classes, 1, len(CLASSES))
    root = Path(folder).expanduser().resolve()
    labels = check_labels(labels) or check_labels(labels_of(root))
    layout, *table = find_layout(root)
    inner = root
    while not layout and (inner := _folder_inside(inner)):  # an unpacked archive often has one top folder
        layout, *table = find_layout(inner)
    root = inner if layout else root
    rows, left_out = rows_of_table(root, layout, *table, labels) if layout else _rows_of_folders(root, labels)
    rows, hidden = dicom.add_headers(root, rows)
    left_out.update(hidden)
    if left_out := +left_out:
        print("Left out:", ", ".join(f"{left_out[reason]} {reason}" for reason in sorted(left_out)))
    if rows.empty:
        raise FileNotFoundError(
            f"folder: no images of {', '.join(CLASSES)} in {root.name!r}; found "
            f"{', '.join(sorted(entry.name for entry in root.iterdir())[:8]) or 'nothing'}. Expected class folders "
            f"with files {' '.join(EXTENSIONS)} or DICOM, or a manifest.csv with columns file and label."
            + (" This is the folder of one class: give the one above it." if meaning(root.name) in CLASSES else "")
        )
    images = rows.sort_values("file", ignore_index=True)
    found = sorted(images.label.unique())
    if len(found) < least_classes:
        raise ValueError(
            f"folder: {root.name!r} holds one class only, {found[0]!r} ({len(images)} images). "
            f"A classifier needs at least two of {', '.join(CLASSES)}, each in a folder of its own. "
            "(find_images with least_classes=1 reads one class alone.)"
        )
    images = images.map(_inert, na_action="ignore")
    images["group"] = images.patient.fillna(images.file)
    first = ["file", "label", "patient", "group", "source"]
    images = images[first + [column for column in images if column not in first]]
    images.attrs["root"] = str(root)
    return images


def _folder_inside(folder):
    """The only folder in `folder`, where no images lie beside it, else None. macOS adds __MACOSX to archives."""
    entries = [entry for entry in folder.iterdir() if not entry.name.startswith(".") and entry.name != "__MACOSX"]
    folders = [entry for entry in entries if entry.is_dir() and os.access(entry, os.R_OK | os.X_OK)]
    images = any(entry.name.lower().endswith(EXTENSIONS) for entry in entries)
    return folders[0] if len(folders) == 1 and not images else None


def _inert(text):
    return f"./{text}" if FORMULA.match(text) else text


def _rows_of_folders(root, labels):
    files, hidden = image_files(root)
    folders = {file.parent for file in files}
    means = {f: meaning(f.name) for f in folders | {a for folder in folders for a in folder.parents} if f.name}
    decided = _decide(folders, means, labels)
    rows, left_out, unknown = [], Counter(hidden), {}
    for file in files:
        kind, name = decided[file.parent]
        if kind == PNEUMONIA:  # Kermany et al.: the kind of pneumonia is in the file name
            kind = next((kind for kind in ("virus", "bacteria") if f"_{kind}_" in file.name.lower()), kind)
        if kind is None:
            unknown.setdefault(name, file.as_posix())
        elif kind in CLASSES:
            rows.append({"file": file.as_posix(), "label": kind, "patient": patient_of(file.name), "source": root.name})
        else:
            left_out[kind] += 1
    if not rows and not unknown:  # where no folder is clear, those named 0 and 1, or one alone, may be classes
        unknown = {file.parent.name: file.as_posix() for file in files if not means.get(file.parent, "root")}
    check_found(labels, [folder.name for folder in means], "folder")
    if unknown:
        raise UnknownClassError("folder", unknown, {folder.name: kind for folder, kind in means.items()})
    return pd.DataFrame(rows), left_out


def _decide(folders, means, labels):
    """For each folder with images: (class or reason to leave them out, None), or (None, the name of unknown class).

    means: `{folder: meaning of its name}`, of parent folders too. The innermost name that means a class decides,
    unless a name inside it is unknown or the folder holds folders of other classes.
    """
    above = {a for f, kind in means.items() if kind or fold(f.name) in labels for a in f.parents}
    mixed = {a for f, kind in means.items() if kind for a in f.parents if a.name and means[a] != kind}
    common = Path(os.path.commonpath(folders)) if folders else Path()
    above |= {common, *common.parents}

    def decide(folder):
        inside_out, unknown = [folder, *folder.parents][:-1], None
        if any(MASKS.search(fold(f.name)) for f in inside_out):
            return "masks", None
        if dropped := [f.name for f in inside_out if labels.get(fold(f.name), "") is None]:
            return f"in {dropped[0]!r} (labels)", None
        for f in inside_out:
            if fold(f.name) in labels:
                return labels[fold(f.name)], None
            if means[f] and f not in mixed:
                return (None, unknown) if unknown else (means[f], None)
            if means[f] is None and f not in above:
                unknown = f.name
        return (None, unknown) if unknown else ("in no class folder", None)

    return {folder: decide(folder) for folder in folders}


def read_image(path: str | Path) -> Image.Image:
    """An image file as PIL RGB: EXIF rotation applied, deep pixels scaled to 0..255, transparency on black.

    The file type is recognised by content, not by name; of several frames the first is read. DICOM (needs pydicom) is
    rescaled and windowed as its header says, and MONOCHROME1 inverted. Other grey pixels of 16 or 32 bits are scaled
    from the range that this image uses, because 12 bits in a 16-bit file, common in radiology, would be near black;
    the brightness of two such images cannot be compared. NaN becomes the lowest value. 16-bit colour is not scaled:
    Pillow gives its upper 8 bits.

    Raises OSError for a file that is no image, broken or truncated; ValueError for one whose decoding needs over
    680 MB: 113 megapixels of 8-bit grey, 68 of 16-bit grey, 56 of colour, 40 of others.
    """
    check_path("path", path, "that of an image")
    return _decode(path)[0]


def resize(image: Image.Image, size: int = 224) -> np.ndarray:
    """A PIL image stretched to `size` x `size` as uint8 [size, size, 3] (bilinear with antialiasing)."""
    check_kind("image", image, Image.Image, "PIL image", "what read_image returned")
    check_size(size)
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, reducing_gap=3.0))


def _root(images):
    if "root" not in getattr(images, "attrs", {}):
        raise ValueError("images: the table has lost its folder; pass the table that find_images returned.")
    return Path(images.attrs["root"])


def describe_images(images: pd.DataFrame) -> str:
    """One sentence: how many images, in how many groups, and whether they are the bundled sample."""
    check_table("images", images, ["label", "group"], "find_images")
    what = "images of the bundled sample" if is_sample(images) else "images"
    counts = images.label.value_counts().sort_index()
    classes = ", ".join(f"{name} {n}" for name, n in counts.items())
    missing = images.patient.isna().sum() if "patient" in images else 0
    unknown = f"; patient unknown for {missing} images" if missing else ""
    return f"{len(images)} {what}: {classes}; {images.group.nunique()} groups (patients){unknown}."


def credit_line(rows: pd.DataFrame) -> str:
    """The attribution that the licences of the bundled images require, from the column source; "" if none does."""
    check_kind("rows", rows, pd.DataFrame, "table", "the one made by find_images, or the rows of a side")
    found = set(rows.source) if "source" in rows else set()
    names = "; ".join(text for source, text in CREDITS.items() if source in found)
    return f"Images: {names}" if names else ""
