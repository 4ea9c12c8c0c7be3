"""From a folder or a table of chest X-rays to the images table; read one image."""

import os
import re
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from ._support import dicom
from ._support.checks import check_kind, check_path, check_size, check_table, check_whole
from ._support.decode import EXTENSIONS, OTHER_EXTENSIONS, _decode
from ._support.paths import is_sample
from .constants import CLASSES

MAX_CELL = 1000  # characters of a table's cell
UNPRINTABLE = r"[\x00-\x1f\x7f\ud800-\udfff]"  # in a name: control characters, and bytes that are no UTF-8
FORMULA = re.compile(r"[=+\-@\uff1d\uff0b\uff0d\uff20]")  # what a spreadsheet takes for one begins with these
# Folder names and manifest labels, in lower case and without anything but letters and digits.
CLASS_ALIASES = {
    **dict.fromkeys(["covid", "covid19", "covid19pneumonia", "sarscov2", "covidpositive"], "covid"),
    **dict.fromkeys(["normal", "nofinding", "nofindings", "healthy", "control"], "normal"),
    **dict.fromkeys(["virus", "viral", "viralpneumonia", "pneumoniavirus", "pneumoniaviral"], "virus"),
}
OTHER_CLASSES = {  # real classes of public sets that this course does not use
    **dict.fromkeys(["lungopacity", "nonnormalandnoncovid"], "lung opacity"),
    **dict.fromkeys(["bacteria", "bacterial", "bacterialpneumonia"], "bacteria"),
    **dict.fromkeys(["tuberculosis", "tb"], "tuberculosis"),
    **dict.fromkeys(["inconclusive", "unknown", "nan", ""], "inconclusive"),
}
NEUTRAL_FOLDERS = {"train", "training", "test", "testing", "val", "valid", "validation", "images", "image"}
MASK_FOLDERS = {"mask", "masks", "lungmask", "lungmasks", "infectionmasks", "segmentation"}
PATIENT_PATTERNS = (  # Kermany et al. 2018: person123_virus_456.jpeg, NORMAL2-IM-0123-0001.jpeg
    re.compile(r"(?P<patient>person\d+)_(?P<kind>virus|bacteria)_", re.I),
    re.compile(r"^(?P<patient>(?:NORMAL2-)?IM-\d+)-", re.I),
)
CREDITS = {  # by the column source: whom a figure that shows such images must name
    "hannover": "Hannover Medical School, CC BY 3.0",
    "kermany": "Kermany et al., CC BY 4.0",
    "nih": "NIH Clinical Center",
    "cohen": "Cohen et al., CC BY 4.0",
}


def find_images(folder: str | Path, least_classes: int = 2) -> pd.DataFrame:
    """One row an image: `file` (relative to the folder), `label`, `patient`, `group`, `source`, sorted by file.

    Reads a folder with `manifest.csv` (columns file, label; patient_id, source and more if there), Actualmed's
    `metadata.csv`, or class folders at any depth (train/val/test are merged). What is left out is counted aloud.
    `group` is the patient, or the file itself where the patient is not known; `audit_images` joins duplicates.
    Links are followed wherever they lead: they are the user's own, no archive brings any. A name or cell that a
    spreadsheet would take for a formula gets "./" in front, here and so in every table made from this one.

    Raises FileNotFoundError: no such folder, or no images. ValueError: an unknown class, fewer than
    `least_classes`, or a table that is no UTF-8 CSV or holds paths out of the folder, control characters or cells of
    over 1,000 characters.
    """
    if not isinstance(folder, (str, os.PathLike)) or not os.path.isdir(os.path.expanduser(folder)):
        raise FileNotFoundError(f"folder: {str(folder)!r} is no folder. Give the one that holds the images.")
    check_whole("least_classes", least_classes, 1, len(CLASSES))
    root = Path(folder).expanduser().resolve()
    entries = [entry for entry in root.iterdir() if not entry.name.startswith(".")]
    if len(entries) == 1 and any((entries[0] / table).is_file() for table in ("manifest.csv", "metadata.csv")):
        root = entries[0]  # an archive unpacked by hand: all of it lies one folder further down
    if (root / "manifest.csv").is_file():
        rows, left_out = _rows_of_table(root, "manifest.csv", "file", "label", "patient_id")
    elif (root / "metadata.csv").is_file() and (root / "images").is_dir():
        rows, left_out = _rows_of_table(root, "metadata.csv", "imagename", "finding", "patientid")
    else:
        rows, left_out = _rows_of_folders(root)
    rows, hidden = dicom.add_headers(root, rows)
    left_out += hidden
    if left_out:
        counted = pd.Series(left_out).value_counts().sort_index()
        print("Left out:", ", ".join(f"{number} {reason}" for reason, number in counted.items()))
    if not rows:
        raise FileNotFoundError(
            f"folder: no images of {', '.join(CLASSES)} in {root.name!r}; found "
            f"{', '.join(sorted(entry.name for entry in root.iterdir())[:8]) or 'nothing'}. Expected class folders "
            f"with files {' '.join(EXTENSIONS)} or DICOM, or a manifest.csv with columns file and label."
            + (" This is the folder of one class: give the one above it." if root.name in CLASSES else "")
        )
    images = pd.DataFrame(rows).sort_values("file", ignore_index=True)
    found = sorted(images.label.unique())
    if len(found) < least_classes:
        raise ValueError(
            f"folder: {root.name!r} holds one class only, {found[0]!r} ({len(images)} images). "
            f"A classifier needs at least two of {', '.join(CLASSES)}, each in a folder of its own."
        )
    for column in images:
        images[column] = images[column].map(_inert, na_action="ignore")
    images["group"] = images.patient.fillna(images.file)
    first = ["file", "label", "patient", "group", "source"]
    images = images[first + [column for column in images if column not in first]]
    images.attrs["root"] = str(root)
    return images


def _normalised(name):
    return re.sub(r"[^a-z0-9]", "", str(name).lower())


def _inert(text):
    return f"./{text}" if FORMULA.match(text) else text


def _patient_of(path):
    for pattern in PATIENT_PATTERNS:
        if match := pattern.search(Path(path).name):
            kind = match.groupdict().get("kind") or "normal"
            return f"{kind.lower()}:{match['patient']}"
    return None


def _rows_of_table(root, table_name, file_column, label_column, patient_column):
    try:
        table = pd.read_csv(root / table_name, dtype=str)
    except ValueError as error:  # of encoding and of form
        raise ValueError(f"{table_name}: {str(error)[:200]}. Save it as CSV with commas, in UTF-8.") from error
    for column in (file_column, label_column):
        if column not in table:
            raise ValueError(
                f"{table_name}: column {column!r} is missing; found {', '.join(table.columns)}. "
                f"Needed: {file_column}, {label_column}."
            )
    if table[file_column].isna().any() or table[file_column].duplicated().any():
        raise ValueError(f"{table_name}: column {file_column!r} has empty or repeated cells; one row an image.")
    rows, left_out, missing = [], [], []
    source_column = next((c for c in ("source", "source_repo") if c in table), None)
    known = {file_column, label_column, patient_column, source_column}
    for column in known & set(table):
        cells = table[column].fillna("")
        if (bad := cells.str.len().gt(MAX_CELL) | cells.str.contains(UNPRINTABLE)).any():
            raise ValueError(
                f"{table_name}: the cell of row {bad.argmax() + 1} in column {column!r} begins with "
                f"{cells[bad.argmax()][:40]!r}; at most {MAX_CELL} characters are allowed, and no control characters."
            )
    for record in table.to_dict("records"):
        name, label = record[file_column], record[label_column]
        path = (root / name) if os.path.isfile(root / name) else (root / "images" / name)
        path = Path(os.path.normpath(path))  # by name only: links inside the folder may lead where they like
        if root not in path.parents:
            raise ValueError(f"{table_name}: {name!r} lies outside the folder {root.name!r}.")
        if _normalised(label) in OTHER_CLASSES:
            left_out.append(OTHER_CLASSES[_normalised(label)])
            continue
        if _normalised(label) not in CLASS_ALIASES:
            raise ValueError(
                f"{table_name}: unknown class {label!r} of {name!r}. Known: {', '.join(sorted(CLASS_ALIASES))}."
            )
        if not os.path.isfile(path):
            missing.append(name)
            continue
        patient, source = record.get(patient_column), record.get(source_column)
        rows.append(
            {
                "file": path.relative_to(root).as_posix(),
                "label": CLASS_ALIASES[_normalised(label)],
                "patient": patient if isinstance(patient, str) else _patient_of(name),
                "source": source if isinstance(source, str) else root.name,
                **{k: v for k, v in record.items() if k in ("view", "licence") and k not in known},
            }
        )
    if missing:
        raise FileNotFoundError(
            f"{table_name}: {len(missing)} of its files are not there, the first is {missing[0]!r}. "
            f"Put them beside {table_name}, or take their rows out of it."
        )
    listed = {row["file"] for row in rows}
    if len(listed) < len(rows):
        raise ValueError(f"{table_name}: column {file_column!r} names a file twice; one row an image.")
    listed |= {os.path.normpath(name) for name in table[file_column]}
    listed |= {f"images/{name}" for name in table[file_column]}
    files, hidden = _image_files(root)
    left_out += [f"not in {table_name}" for file in files if file.as_posix() not in listed]
    return rows, left_out + hidden


def _image_files(root):
    """Relative paths of all image files, sorted, and a reason for each hidden one; links are followed."""
    seen, files, hidden = set(), [], []
    closed = lambda error: hidden.append("folder that cannot be opened")  # noqa: E731
    for folder, subfolders, names in os.walk(root, onerror=closed, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:  # a link that leads back into the tree
            subfolders.clear()
            continue
        seen.add(real)
        subfolders.sort(key=lambda s: (s.startswith("."), s))  # hidden last: of two links, the open one counts
        for name in names:
            scan = dicom.may_be_dicom(os.path.join(folder, name))
            if scan or name.lower().endswith(EXTENSIONS + OTHER_EXTENSIONS):
                file = Path(folder, name).relative_to(root)
                if any(part.startswith(".") or part == "__MACOSX" for part in file.parts):
                    hidden.append("hidden")
                elif name.lower().endswith(OTHER_EXTENSIONS):
                    hidden.append(f"{file.suffix.lower()} (export as PNG)")
                elif re.search(UNPRINTABLE, str(file)):
                    hidden.append("with a name that is no text")
                else:
                    files.append(file)
    return sorted(files), hidden


def _rows_of_folders(root):
    files, hidden = _image_files(root)
    containers = {
        above
        for file in files
        for folder in file.parents
        if _normalised(folder.name) in {*CLASS_ALIASES, *OTHER_CLASSES, "pneumonia"}
        for above in folder.parents
    }
    rows, left_out, unknown = [], [], {}
    for file in files:
        folders = [f for f in file.parents if f.name and _normalised(f.name) not in NEUTRAL_FOLDERS]
        name = _normalised(folders[0].name) if folders else None
        if name == "pneumonia":  # Kermany et al.: the kind of pneumonia stands in the file name
            name = next((kind for kind in ("virus", "bacteria") if f"_{kind}_" in file.name.lower()), name)
            if name == "pneumonia":
                left_out.append("pneumonia of unknown kind")
                continue
        if any(_normalised(folder.name) in MASK_FOLDERS for folder in file.parents):
            left_out.append("masks")
        elif name is None or (name not in CLASS_ALIASES and folders[0] in containers):
            left_out.append("in no class folder")
        elif name in OTHER_CLASSES:
            left_out.append(OTHER_CLASSES[name])
        elif name not in CLASS_ALIASES:
            unknown.setdefault(folders[0].name, file)
        else:
            rows.append(
                {
                    "file": file.as_posix(),
                    "label": CLASS_ALIASES[name],
                    "patient": _patient_of(file),
                    "source": root.name,
                }
            )
    if unknown:
        raise ValueError(
            f"folder: unknown class folders {', '.join(map(repr, sorted(unknown)))} (for example "
            f"{next(iter(unknown.values())).as_posix()!r}). Known: {', '.join(sorted(CLASS_ALIASES))}; "
            f"known and left out: {', '.join(sorted(filter(None, OTHER_CLASSES)))}, masks. Rename or remove them."
        )
    return rows, left_out + hidden


def read_image(path: str | Path) -> Image.Image:
    """An image file as PIL RGB: EXIF rotation applied, deep pixels scaled to 0..255, transparency on black.

    What kind of file it is stands in its content, not in its name; of several frames the first counts. DICOM (needs
    pydicom) is rescaled and windowed as its header says, and MONOCHROME1 inverted. Other deep grey
    pixels (16 or 32 bits) are scaled from the range that this image uses: 12 bits in a 16-bit file, the custom in
    radiology, would be near black otherwise. So its brightness cannot be compared with that of another image.
    NaN counts as the lowest value. (Of 16-bit colour Pillow gives the upper 8 bits, unscaled.)

    Raises OSError for a file that is no image, is broken or cut short, ValueError for one that
    needs over 680 MB meanwhile: 113 megapixels of 8-bit grey, 68 of 16-bit grey, 56 of colour, 40 of others.
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
    return f"{len(images)} {what}: {classes}; {images.group.nunique()} groups (patients)."


def credit_line(rows: pd.DataFrame) -> str:
    """The attribution that the licences of the bundled images ask for, from the column source; "" where none does."""
    check_kind("rows", rows, pd.DataFrame, "table", "the one made by find_images, or the rows of a side")
    found = set(rows.source) if "source" in rows else set()
    names = "; ".join(text for source, text in CREDITS.items() if source in found)
    return f"Images: {names}" if names else ""
