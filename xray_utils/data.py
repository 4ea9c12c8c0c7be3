"""From a folder of chest X-rays to arrays: find, audit, split and prepare the images."""

import ctypes
import glob
import hashlib
import json
import logging
import numbers
import os
import re
import shutil
import stat
import tempfile
import threading
import time
import unicodedata
import urllib.request
import warnings
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import scipy
from PIL import Image, ImageOps, UnidentifiedImageError
from tqdm.auto import tqdm

CLASSES = ("covid", "normal", "virus")  # by index: 0, 1, 2
EXTENSIONS = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
OTHER_EXTENSIONS = (".dcm", ".dicom", ".heic", ".heif", ".avif", ".jxl", ".jp2", ".nii", ".svg")  # pictures, not read
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")  # told by content; Pillow would hand an EPS to Ghostscript
MAX_PIXELS = 40_000_000  # of an image, and of all that are decoded at a time: up to 17 bytes a pixel, so 700 MB
MAX_SIZE = 4096  # pixels along a side of a prepared image
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
SOURCES = {  # public sets: where they are, under which name they are fetched, what their page is
    "covid-cxr": ("kaggle", "sid321axn/covid-cxr-image-dataset-research"),
    "radiography": ("kaggle", "tawsifurrahman/covid19-radiography-database"),
    "covid19-image": ("kaggle", "pranavraikokte/covid19-image-dataset"),
    "chest-xray-pneumonia": ("kaggle", "paultimothymooney/chest-xray-pneumonia"),
    "actualmed": ("github", "agchung/Actualmed-COVID-chestxray-dataset"),
}
ACTUALMED_COMMIT = "27240dd8dec9454bc97f9f3c0c432ef434de2517"
CHOICE = "data_dir.txt"  # in the folder of outputs: where `use_images` leaves its choice
SPLITS = ("train", "val", "test")
CREDITS = {  # by the column source: whom a figure that shows such images must name
    "hannover": "Hannover Medical School, CC BY 3.0",
    "kermany": "Kermany et al., CC BY 4.0",
    "nih": "NIH Clinical Center",
    "cohen": "Cohen et al., CC BY 4.0",
}
SUMMED = 2 * 10**8  # bytes: up to here (1,300 images of 224 x 224) a prepared set is summed when it is opened
PREPARED_VERSION = 2  # part of the key: raise it when the pixels of a prepared set change
AUDIT_VERSION = 1  # part of the key: raise it when what `_audit_one` gives for a file changes
MARK = ["path", "bytes", "mtime_ns", "ctime_ns"]  # an audited file that has another one is read again
DRAFT = 448  # pixels: a JPEG whose sides keep so many is audited at a half, a quarter or an eighth of its size


# ---------------------------------------------------------------- folders


def repository_dir():
    """The folder of this repository if we are in it or installed from it, else the working directory."""
    here = Path.cwd().resolve()
    for folder in (Path(__file__).resolve().parents[1], here, *here.parents):
        if (folder / "xray_utils" / "data.py").is_file() and (folder / "notebooks").is_dir():
            return folder
    return here


def data_dir():
    """The folder of the images: `XRAY_DATA`, else what `use_images` chose, else `data/xray`, else the sample.

    Raises FileNotFoundError if `XRAY_DATA`, or the choice, is a folder that does not exist.
    """
    if os.environ.get("XRAY_DATA"):
        folder = Path(os.environ["XRAY_DATA"]).expanduser()
        folder = folder if folder.is_dir() else repository_dir() / folder  # a relative path: from here, or from there
        if not folder.is_dir():
            raise FileNotFoundError(
                f"XRAY_DATA is {str(folder)!r}, which is no folder. Set it to the folder that holds the class "
                f"folders {', '.join(CLASSES)}, or unset it to use the bundled sample."
            )
        return folder
    own = repository_dir() / "data" / "xray"
    if outputs_dir(CHOICE).is_file():
        folder, source = _chosen()
        if not folder.is_dir():
            again = f"nothing in the brackets: it fetches {source!r} again" if _is_there(source) else "your images"
            raise FileNotFoundError(
                f"xu.use_images chose {str(folder)!r}{source and f' (from {source!r})'}, which is no folder any more. "
                f"Call it again, with {again}; or with 'sample' to go back to the bundled sample."
            )
        return folder
    if own.is_dir() and any(entry for entry in own.iterdir() if not entry.name.startswith(".")):
        return own
    return repository_dir() / "data" / "sample"


def _chosen():
    """What `use_images` chose: the folder, and the set or archive that it came from ("" for a folder of the user)."""
    folder, _, source = outputs_dir(CHOICE).read_text(encoding="utf-8").partition("\n")
    return Path(folder), source


def _is_there(source):
    return source == "sample" or source in SOURCES or (source != "" and zipfile.is_zipfile(source))


def external_dir():
    """The folder of a second hospital: `XRAY_EXTERNAL`, or `data/external` if it is there, else the sample's own.

    None for real images without one. Raises FileNotFoundError if `XRAY_EXTERNAL` names a folder that does not exist.
    """
    if os.environ.get("XRAY_EXTERNAL"):
        folder = Path(os.environ["XRAY_EXTERNAL"]).expanduser()
        folder = folder if folder.is_dir() else repository_dir() / folder  # a relative path: from here, or from there
        if not folder.is_dir():
            raise FileNotFoundError(f"XRAY_EXTERNAL is {str(folder)!r}, which is no folder. Set it, or unset it.")
        return folder
    sample = repository_dir() / "data" / "sample"
    if data_dir().resolve() == sample.resolve():
        return sample.with_name("sample_external")
    own = repository_dir() / "data" / "external"
    return own if own.is_dir() and any(not entry.name.startswith(".") for entry in own.iterdir()) else None


def is_sample(images):
    """True if the table `images` came from the bundled sample."""
    return Path(getattr(images, "attrs", {}).get("root", "")) == (repository_dir() / "data" / "sample").resolve()


def default_size(images):
    """Pixels along a side of a prepared image: 112 for the bundled sample, 224 (as in the original) for others."""
    return 112 if is_sample(images) else 224


def outputs_dir(*parts):
    """The folder for everything that is made: `XRAY_OUTPUTS` if set, else `outputs/` of the repository."""
    base = os.environ.get("XRAY_OUTPUTS")
    folder = Path(base).expanduser() if base else repository_dir() / "outputs"
    return folder.joinpath(*parts)


def progress(iterable, what, total=None):
    """A progress bar that is gone when it is done; `TQDM_DISABLE=1` in the environment turns all of them off.

    Of several processes the first alone has one.
    """
    off = os.environ.get("TQDM_DISABLE", "0") not in ("", "0") or os.environ.get("RANK", "0") != "0"
    return tqdm(iterable, what, total, leave=False, disable=off or total == 0)


@contextmanager
def whole_file(path):
    """A temporary name beside `path`, flushed and renamed to `path` at the end: whole or not at all.

    Raises OSError naming the folder when it cannot be written to, or is full.
    """
    path = Path(path)
    with _writing_to(path.parent):
        _remove_stale(path)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            temporary.chmod(0o644)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def _writing_to(folder):
    """Makes `folder`; an OSError of the system while writing there becomes one that says where, and what to do."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        if error.errno is None:  # one of ours, with its own words
            raise
        ours = outputs_dir() in (folder, *folder.parents)
        raise OSError(
            f"{'outputs' if ours else 'folder'}: cannot write to {folder} ({error.strerror}). Free some space or allow "
            f"writing there, or {'set XRAY_OUTPUTS to' if ours else 'give'} another folder."
        ) from error


@contextmanager
def _folder_beside(folder):
    """A temporary folder beside `folder`, gone at the end; one that a killed process left is removed first."""
    _remove_stale(folder)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", suffix=".part", dir=folder.parent) as temporary:
        yield Path(temporary)


def _remove_stale(path):
    """What killed processes left beside `path` under temporary names; one that still writes did so within the hour."""
    for old in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        with suppress(OSError):  # another process may remove it, too
            if time.time() - max(part.stat().st_mtime for part in (old, *old.rglob("*"))) > 3600:
                shutil.rmtree(old) if old.is_dir() else old.unlink()


# ---------------------------------------------------------------- checks of arguments: a ValueError names the argument


def _shown(value):
    text = repr(value)
    return text if len(text) <= 100 and "\n" not in text else f"a {type(value).__name__}"


def check_kind(argument, value, kind, what, instead):
    """`value` is of this type, `what` it is called; `instead` says what to pass."""
    if not isinstance(value, kind):
        raise ValueError(f"{argument}: {_shown(value)} is no {what}; pass {instead}.")


def check_choice(argument, value, allowed, more=""):
    """`value` is one of `allowed` (words, or None)."""
    if not isinstance(value, str | None) or value not in allowed:
        raise ValueError(f"{argument}: {_shown(value)} is unknown. Allowed: {', '.join(map(repr, allowed))}{more}.")


def check_flag(argument, value):
    """`value` is True or False."""
    if not isinstance(value, bool):
        raise ValueError(f"{argument}: {_shown(value)} must be True or False.")


def check_number(argument, value, is_good, allowed):
    """`value` is a number for which `is_good` holds."""
    if not isinstance(value, numbers.Real) or isinstance(value, bool) or not is_good(value):
        raise ValueError(f"{argument}: {_shown(value)} must be {allowed}.")


def check_whole(argument, value, least=0, most=2**32 - 1, more=""):
    """`value` is a whole number in this range (seeds must be below 2**32)."""
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or not least <= value <= most:
        end = f"at most {most:,}" if most < 2**32 - 1 else "below 2**32"
        raise ValueError(f"{argument}: {_shown(value)} must be a whole number of at least {least} and {end}{more}.")


def check_size(size):
    """`size` is that of a prepared image."""
    check_whole("size", size, 1, MAX_SIZE)


def check_path(argument, value, instead):
    """`value` is a path (whether there is anything or not)."""
    if not isinstance(value, str | os.PathLike) or not str(value) or "\0" in str(value):
        raise ValueError(f"{argument}: {_shown(value)} is no path; pass {instead}.")


def check_array(argument, values, shape, allowed, is_good=np.isfinite):
    """`values` as an array of floats; it has this shape (None: any length), and `is_good` holds for all of them."""
    try:
        array = np.asarray(values, float)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{argument}: {_shown(values)} must be {allowed}.") from error
    fits = array.ndim == len(shape) and all(n in (None, m) for n, m in zip(shape, array.shape, strict=True))
    if not fits:
        raise ValueError(f"{argument}: {array.shape} must be {allowed}.")
    if not is_good(array).all():
        raise ValueError(f"{argument}: {array[~is_good(array)][0]} is in it; it must be {allowed}.")
    return array


def check_table(argument, table, columns, maker):
    """Raise ValueError unless `table` has rows, these columns without empty cells, and in them known classes only."""
    check_kind(argument, table, pd.DataFrame, "table", f"the one made by {maker}")
    for column in columns:
        if column not in table:
            raise ValueError(f"{argument}: column {column!r} is missing; pass the table made by {maker}.")
    if table.empty:
        raise ValueError(f"{argument}: the table is empty; pass the one made by {maker}.")
    for column in columns:
        cells = table[column]
        if column in ("label", "predicted") and not cells.isin(CLASSES).all():
            wrong = cells[~cells.isin(CLASSES)].iloc[0]
            raise ValueError(f"{argument}: {wrong!r} is none of the classes {', '.join(CLASSES)}.")
        if column == "split" and not cells.isin(SPLITS).all():
            wrong = cells[~cells.isin(SPLITS)].iloc[0]
            raise ValueError(f"{argument}: {wrong!r} is none of the sides {', '.join(SPLITS)}.")
        if cells.isna().any():
            raise ValueError(f"{argument}: column {column!r} has no value in row {cells.isna().idxmax()!r}; fill it.")


def check_data(data):
    """`data` is a prepared set."""
    check_kind("data", data, PreparedData, "prepared set", "what prepare or load_data returned")


def check_split(split):
    """`split` is one side of a prepared set, with images."""
    check_kind("split", split, Split, "side of a prepared set", "data.test, say")
    if not len(split):
        raise ValueError("split: there are no images in it; pass a side of a prepared set that has some.")


# ---------------------------------------------------------------- find


def find_images(folder, least_classes=2):
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
    if left_out:
        counted = pd.Series(left_out).value_counts().sort_index()
        print("Left out:", ", ".join(f"{number} {reason}" for reason, number in counted.items()))
    if not rows:
        raise FileNotFoundError(
            f"folder: no images of {', '.join(CLASSES)} in {root.name!r}; found "
            f"{', '.join(sorted(entry.name for entry in root.iterdir())[:8]) or 'nothing'}. Expected class folders "
            f"with files {' '.join(EXTENSIONS)}, or a manifest.csv with columns file and label."
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
            if name.lower().endswith(EXTENSIONS + OTHER_EXTENSIONS):
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


# ---------------------------------------------------------------- download


def download_images(source, folder=None):
    """Fetch a public set by its name in `SOURCES` into `folder` (default `data/xray`) and return the folder.

    Raises ValueError for an unknown name, FileExistsError if the folder already holds something, and RuntimeError
    when the download fails; that one says which page to open and where to put the files.
    """
    if folder is not None:
        check_path("folder", folder, "where to put the images, or None")
    check_choice("source", source, SOURCES)
    kind, name = SOURCES[source]
    page = f"https://www.kaggle.com/datasets/{name}" if kind == "kaggle" else f"https://github.com/{name}"
    folder = Path(folder).expanduser() if folder else repository_dir() / "data" / "xray"
    with _to_be_filled(folder, source) as whole:
        try:
            if kind == "kaggle":
                import kagglehub

                cache = Path(kagglehub.dataset_download(name))
                if any(path.is_symlink() for path in cache.rglob("*")):  # copied, one to / would bring everything
                    raise OSError("it holds links, refused as unsafe")
                shutil.copytree(cache, whole)
            else:
                archive = whole.with_name("archive.zip")
                with urllib.request.urlopen(f"{page}/archive/{ACTUALMED_COMMIT}.zip", timeout=60) as answer:
                    with open(archive, "wb") as file:
                        shutil.copyfileobj(answer, file)
                unpack_zip(archive, whole)
            if not _image_files(whole)[0]:
                raise OSError("it holds no images")
        except Exception as error:
            raise RuntimeError(
                f"source: {source!r} could not be downloaded ({type(error).__name__}: {str(error)[:200]}).\n"
                f"Open {page} in a browser, download the archive, and unpack it so that its folders lie in\n"
                f"{folder}\nThen go on with find_images: it reads that folder. Any other folder: point XRAY_DATA at it."
            ) from error
    return folder


@contextmanager
def _to_be_filled(folder, source):
    """The path of a new folder of images, which becomes `folder` at the end: whole or not at all.

    Raises FileExistsError if `folder` already holds something. What came from where is kept in its file `.source`.
    """
    if folder.is_file() or folder.is_dir() and any(folder.iterdir()):
        raise FileExistsError(f"folder: {folder} already holds something. Move it away, or give another folder.")
    with _writing_to(folder.parent), _folder_beside(folder) as temporary:
        whole = temporary / "images"
        yield whole
        inner = [entry for entry in whole.iterdir() if not entry.name.startswith(".")]
        whole = inner[0] if len(inner) == 1 and inner[0].is_dir() else whole
        (whole / ".source").write_text(source, encoding="utf-8")
        if folder.is_dir():
            folder.rmdir()
        os.replace(whole, folder)


def use_images(source=None):
    """Choose the images that all notebooks use from now on, and say which these are.

    source: a name in `SOURCES`, fetched into `data/xray`; a .zip file, unpacked there; the folder of your images,
    which stay where they are; "upload" (on Colab: asks for a .zip file); "sample"; or None, to change nothing. The
    choice is kept in `outputs/data_dir.txt`. What `data/xray` already holds is not fetched or unpacked again; what is
    gone from there (outputs on a Drive, another machine) is, from the same set or archive.

    Raises ValueError for what is none of these, and while XRAY_DATA is set, which goes first; FileExistsError if
    `data/xray` holds something else; and what `download_images`, `unpack_zip` and `find_images` raise. The choice is
    then what it was before.
    """
    if source is not None:
        check_path("source", source, "the name of a set, a folder, a .zip file, or None")
        if os.environ.get("XRAY_DATA"):
            raise ValueError(f"source: {str(source)!r} would not be used while XRAY_DATA is set. Unset that first.")
    elif outputs_dir(CHOICE).is_file() and not os.environ.get("XRAY_DATA"):
        folder, before = _chosen()
        if not folder.is_dir() and _is_there(before):
            print(f"{folder} is gone; its images are brought again from {before}.")
            source = before
    if source is not None:
        folder, origin = _images_of(source)
        with whole_file(outputs_dir(CHOICE)) as path:
            path.write_text(f"{folder}\n{origin}", encoding="utf-8")
    folder, here = data_dir().resolve(), repository_dir().resolve()
    is_bundled = folder == here / "data" / "sample"
    shown = folder.relative_to(here).as_posix() if here in folder.parents else folder
    print(f"The notebooks use {shown}" + (": the bundled sample." if is_bundled else "."))


def _images_of(source):
    """The folder for `use_images`, if it can be read, and where it can be had again (as `_chosen` gives it).

    A set or an archive is brought to `data/xray`.
    """
    own = repository_dir() / "data" / "xray"
    if source == "sample":
        return own.with_name("sample"), source
    path = Path(_upload() if source == "upload" else source).expanduser()
    if source not in SOURCES and path.is_dir():
        find_images(path)
        return path.resolve(), ""
    if source not in SOURCES and path.is_file() and not zipfile.is_zipfile(path):
        raise ValueError(f"source: {path.name} is no .zip file, or not all of it has arrived. Fetch it again.")
    if source not in SOURCES and not path.is_file():
        raise ValueError(
            f"source: {str(source)!r} is no folder, no .zip file and no known set. Known: {', '.join(SOURCES)}."
        )
    origin = source if source in SOURCES else str(path.resolve())
    key = source if source in SOURCES else f"{path.name}, {path.stat().st_size} bytes"
    if (own / ".source").is_file() and (own / ".source").read_text(encoding="utf-8") == key:
        return own, origin  # since the last time
    if source in SOURCES:
        return download_images(source, own), origin
    with _to_be_filled(own, key) as whole:
        unpack_zip(path, whole)
        find_images(whole)
    return own, origin


def _upload():
    """The name of the archive that the user uploads to Colab."""
    try:
        from google.colab import files
    except ImportError:
        raise ValueError(
            "source: 'upload' works on Colab. Elsewhere drag the .zip file beside the notebook, and give its name."
        ) from None
    names = list(files.upload())
    if len(names) != 1:
        raise ValueError(f"source: 'upload' brought {len(names)} files; choose one .zip file.")
    return names[0]


def unpack_zip(archive, folder, max_bytes=20e9):
    """Unpack a zip archive into the new `folder`: whole or not at all.

    Raises ValueError, before anything is written, for paths that leave the folder, links and devices, a name that
    is there twice (in upper or lower case: one file to Windows and macOS), a compression other than deflate, and more
    than `max_bytes` or 100 times the archive when unpacked. zipfile writes no more than the sizes checked here, and
    raises BadZipFile if there is more.
    """
    archive, seen = Path(archive), set()
    with zipfile.ZipFile(archive) as file:
        for member in file.infolist():
            path = Path(member.filename.replace("\\", "/"))
            name = unicodedata.normalize("NFC", path.as_posix()).casefold()
            kind = stat.S_IFMT(member.external_attr >> 16)
            if (
                path.is_absolute()
                or ".." in path.parts
                or ":" in "".join(path.parts[:1])
                or kind not in (0, stat.S_IFREG, stat.S_IFDIR)
                or name in seen
                or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
            ):
                raise ValueError(f"archive: {archive.name} holds {member.filename[:100]!r}, refused as unsafe.")
            seen.add(name)
        allowed = min(max_bytes, 100 * archive.stat().st_size)
        if sum(member.file_size for member in file.infolist()) > allowed:
            raise ValueError(f"archive: {archive.name} unpacks to over {allowed:.0f} bytes, refused.")
        Path(folder).mkdir(parents=True)
        try:
            file.extractall(folder)
        except BaseException:
            shutil.rmtree(folder)
            raise


# ---------------------------------------------------------------- read and audit


def read_image(path):
    """An image file as PIL RGB: EXIF rotation applied, deep pixels scaled to 0..255, transparency on black.

    What kind of file it is stands in its content, not in its name; of several frames the first counts. Deep grey
    pixels (16 or 32 bits) are scaled from the range that this image uses: 12 bits in a 16-bit file, the custom in
    radiology, would be near black otherwise. So its brightness cannot be compared with that of another image.
    NaN counts as the lowest value. (Of 16-bit colour Pillow gives the upper 8 bits, unscaled.)

    Raises OSError for a file that is no image, is broken or cut short, ValueError for one of over 40 megapixels.
    """
    check_path("path", path, "that of an image")
    return _decode(path)[0]


def _decode(path, least=None):
    """The image of `read_image`, and the mode and the size, turned as EXIF wants, that it has in the file.

    least: a JPEG may come at half, a quarter or an eighth of its size, while each side keeps so many pixels.
    """
    name = Path(path).name
    if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe or a device may never end
        raise OSError(f"{name}: no ordinary file.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(path, formats=FORMATS) as file:
                tags = getattr(file, "tag_v2", {})  # of a TIFF, whose tiles may be larger than it is
                pixels = max(file.width * file.height, tags.get(322, 0) * tags.get(323, 0))
                if pixels > MAX_PIXELS:
                    raise Image.DecompressionBombError(f"{pixels} pixels ({file.width}x{file.height}) are too many.")
                with _room_for(pixels):
                    whole, mode = file.size, file.mode
                    if least:
                        file.draft(None, (least, least))
                    drafted = file.size
                    ImageOps.exif_transpose(file, in_place=True)
                    whole = whole if file.size == drafted else whole[::-1]
                    return _to_rgb(file, inverted=tags.get(262) == 0), mode, whole
        except Image.DecompressionBombError as error:
            raise ValueError(f"{name}: {error} At most {MAX_PIXELS} are read: make it smaller.") from error
        except UnidentifiedImageError as error:
            raise OSError(f"{name}: no image that can be read ({', '.join(FORMATS)}).") from error
        except (OSError, MemoryError):
            raise
        except Exception as error:  # whatever a decoder makes of broken bytes
            raise OSError(f"{name}: broken image ({error})") from error


_room, _decoding = threading.Condition(), 0


@contextmanager
def _room_for(pixels):
    """Wait until all threads together decode at most MAX_PIXELS, these among them."""
    global _decoding
    with _room:
        _room.wait_for(lambda: _decoding + pixels <= MAX_PIXELS)
        _decoding += pixels
    try:
        yield
    finally:
        with _room:
            _decoding -= pixels
            _room.notify_all()


def _to_rgb(image, inverted):
    if image.mode.startswith(("I", "F")):  # 16 or 32 bits: scale the range that is used to 0..255
        deep = np.array(image, dtype=np.float64)
        if inverted:  # in a TIFF, 0 may be white; Pillow sees to it for 8 bits only
            np.negative(deep, out=deep)
        finite = np.isfinite(deep)
        low, high = deep.min(where=finite, initial=np.inf), deep.max(where=finite, initial=-np.inf)
        if low > high:
            raise ValueError("none of its pixels is a number")
        np.nan_to_num(deep, copy=False, nan=low, posinf=high, neginf=low)
        deep -= low
        deep *= 255 / max(high - low, 1e-9)
        image = Image.fromarray(deep.round(out=deep).astype(np.uint8))
    if image.mode in ("LA", "PA", "La", "RGBa", "RGBA") or "transparency" in image.info:
        image = image.convert("RGBA")
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        image = Image.alpha_composite(black, image)
    return image.convert("RGB")


def resize(image, size=224):
    """A PIL image stretched to `size` x `size` as uint8 [size, size, 3] (bilinear with antialiasing)."""
    check_kind("image", image, Image.Image, "PIL image", "what read_image returned")
    check_size(size)
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, reducing_gap=3.0))


def _crc32(path):
    """The checksum of a file: against a disk that forgets, not against an enemy; twice as fast as a hash."""
    return zlib.crc32(np.memmap(path, np.uint8, "r"))


def _sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _audit_one(path):
    """The audit of one file, and its thumbnail: [32 * 32] float32 without slow shading, of length 1."""
    row = dict(width=0, height=0, mode="", tint=0.0, sha256="", problem="")
    try:
        image, mode, (width, height) = _decode(path, DRAFT)
        digest = _sha256(path)
    except (OSError, ValueError, MemoryError) as error:
        reason = (
            getattr(error, "strerror", None)
            or str(error).removeprefix(f"{path.name}: ").strip()
            or type(error).__name__
        )
        return {**row, "problem": reason[:200]}, np.zeros(32 * 32, np.float32)
    row.update(width=width, height=height, mode=mode, sha256=digest)
    small = resize(image, 32).astype(np.float32)
    row["tint"] = float((small[..., 2] - small[..., 0]).mean())
    thumbnail = small.mean(axis=-1)
    thumbnail = (thumbnail - scipy.ndimage.gaussian_filter(thumbnail, 2)).ravel()
    return row, thumbnail / max(np.linalg.norm(thumbnail), 1e-6)


def _audited(root, files):
    """What `_audit_one` gives for each of `files`: a table, and thumbnails [N, 32 * 32].

    Of files that can be read it is kept in `outputs/audited/<key of root>.npz`, and taken from there as long as their
    size, time and (but on Windows) permissions stay as they were.
    """
    key = hashlib.sha256(f"{AUDIT_VERSION} {os.path.abspath(root)}".encode()).hexdigest()[:16]
    path, marks = outputs_dir("audited", f"{key}.npz"), []
    for file in files:
        try:
            stat = os.stat(f"{root}{os.sep}{file}")
            marks.append((file, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns))
        except (OSError, ValueError):  # `_audit_one` says why
            marks.append((file, -1, -1, -1))
    table, thumbnails, places = _audited_before(path)
    new = [mark for mark in dict.fromkeys(marks) if mark not in places]
    if found := _in_threads(_audit_one, [root / file for file, *_ in new], "audit"):
        rows = [dict(zip(MARK, mark, strict=True)) | row for mark, (row, _) in zip(new, found, strict=True)]
        table = pd.concat([table, pd.DataFrame(rows)], ignore_index=True) if places else pd.DataFrame(rows)
        thumbnails = np.vstack([thumbnails, *(thumbnail for _, thumbnail in found)])
        del found  # of 100,000 images 0.4 GB, as much again as the array
        places |= {mark: len(places) + i for i, mark in enumerate(new)}
        keep = table.problem.eq("") & ~table.path.duplicated(keep="last")  # the last: as the file is now
        if keep[-len(new) :].any():
            columns = {name: np.array(table[name][keep].tolist()) for name in table}
            try:
                with whole_file(path) as part, open(part, "wb") as archive:
                    np.savez(archive, thumbnails=thumbnails if keep.all() else thumbnails[keep], **columns)
            except OSError as error:
                print(f"audit: what was found is not kept for the next time. {error}")
    order = [places[mark] for mark in marks]
    if order != list(range(len(table))):  # else a copy is spared
        table, thumbnails = table.iloc[order], thumbnails[order]
    return table.drop(columns=MARK).reset_index(drop=True), thumbnails


def _audited_before(path):
    """Table and thumbnails that `_audited` kept, and the row of each mark; none, said aloud, where it is broken."""
    if os.path.isfile(path):
        try:
            with np.load(path) as kept:
                columns = {name: kept[name] for name in kept.files}
            thumbnails = columns.pop("thumbnails")
            table = pd.DataFrame({name: column.tolist() for name, column in columns.items()})
            return table, thumbnails, {row: i for i, row in enumerate(table[MARK].itertuples(index=False, name=None))}
        except Exception as error:  # whatever a reader makes of broken bytes
            print(f"audit: {path} is broken ({type(error).__name__}); all files are read again.")
    return pd.DataFrame(columns=MARK), np.zeros((0, 32 * 32), np.float32), {}


def _in_threads(function, items, title):
    """`function` of each item, in order, on all cores, with a progress bar."""
    with warnings.catch_warnings():  # read_image changes the filters in each thread: put them back once, at the end
        warnings.simplefilter("ignore")
        _hush_pillow()
        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            parts = (items[start : start + 1024] for start in range(0, len(items), 1024))  # few wait: little memory
            results = (result for part in parts for result in pool.map(function, part))
            return list(progress(results, title, len(items)))


def _hush_pillow():
    """Pillow logs broken files and its libtiff prints each bad row: the reason in the audit table is enough."""
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
    try:
        library = ctypes.CDLL(Image.core.__file__)
        library.TIFFSetErrorHandler(None)
        library.TIFFSetWarningHandler(None)
    except (OSError, AttributeError):  # this Pillow was built otherwise; then it prints
        pass


def audit_images(images, near=0.95):
    """Add `width, height, mode, tint, sha256, problem, duplicate, alike` and join duplicates into one `group`.

    `tint` is mean blue minus mean red (grey levels, 0 for grey). `duplicate` is "exact" (same bytes), "near" or
    "mirror" (the thumbnail, or its mirror image, correlates by at least `near` with an earlier one), else "". `alike`
    is one name for all images that are duplicates of each other, whosever they are. A file that cannot be read keeps
    its row, with the reason in `problem`; `split_images` leaves it out. How many there are is said aloud. What was
    found of the others is kept in `outputs/audited/`, and they are read again when size, time or permissions change.

    Raises ValueError when more than a tenth of a class cannot be read, or for bad input.
    """
    root = _root(images)
    check_number("near", near, lambda r: 0 < r <= 1, "a correlation above 0 and at most 1")
    check_table("images", images, ["file", "label", "group"], "find_images")
    table, thumbnails = _audited(root, images.file)
    audited = images.drop(columns=[*table, "duplicate", "alike"], errors="ignore").reset_index(drop=True)
    audited = pd.concat([audited, table], axis=1)
    lost = audited.problem.ne("").groupby(audited.label).mean()
    if lost.any():
        broken = audited[audited.problem.ne("")]
        first = f"the first is {broken.file.iloc[0]!r}: {broken.problem.iloc[0]}"
        if (lost > 0.1).any():
            raise ValueError(
                f"images: {len(broken)} files cannot be read, {lost.max():.0%} of class {lost.idxmax()!r}; {first}. "
                "Fetch the set again, or remove these files."
            )
        print(f"Left out of every split: {len(broken)} of {len(audited)} images cannot be read; {first}")
    audited["duplicate"], audited["alike"], audited["group"] = _join_duplicates(audited, thumbnails, near)
    audited.attrs = dict(images.attrs)
    return audited


def _join_duplicates(images, thumbnails, near, tile=2048):
    """Kind of duplicate of an earlier image, duplicates and groups joined over them (the smallest name stands).

    A thumbnail is the sum of an even and an odd part, and its mirror image their difference, so that the correlation
    with another and with its mirror image come from the same two products.
    """
    content = images.sha256.where(images.problem.eq(""), images.file).factorize()[0]
    first = np.unique(content, return_index=True)[1]  # files of the same bytes are compared once
    copies = np.flatnonzero(first[content] != np.arange(len(images)))
    pairs = {"mirror": [], "near": [], "exact": [(copies, first[content[copies]])]}  # (later, earlier)

    def parts(rows):
        left, right = thumbnails[rows].reshape(-1, 32, 2, 16).transpose(2, 0, 1, 3)
        both = left + right[..., ::-1], left - right[..., ::-1]
        return [part.reshape(len(rows), -1) / np.float32(2**0.5) for part in both]

    tiles = [first[start : start + tile] for start in range(0, len(first), tile)]
    for i, later in enumerate(tiles):
        even, odd = parts(later)
        for earlier in tiles[: i + 1]:
            even_product, odd_product = (a @ b.T for a, b in zip((even, odd), parts(earlier), strict=True))
            for name, alike in (("mirror", even_product - odd_product), ("near", even_product + odd_product)):
                one, other = np.nonzero((alike >= near) & (later[:, None] > earlier))
                pairs[name].append((later[one], earlier[other]))
    kind = np.full(len(images), "", object)
    for name, found in pairs.items():  # the last that is true of an image stands
        for later, _ in found:
            kind[later] = name
    left, right = (np.concatenate(ends) for ends in zip(*sum(pairs.values(), []), strict=True))
    itself, group, joined = np.arange(len(images)), images.group.factorize()[0], []
    for unit, names in ((itself, images.file), (group, images.group)):
        n = unit.max() + 1
        links = scipy.sparse.coo_array((np.ones(len(left)), (unit[left], unit[right])), (n, n))
        component = scipy.sparse.csgraph.connected_components(links, directed=False)[1][unit]
        codes, sorted_names = names.factorize(sort=True)  # of numbers pandas finds the least without a call a group
        joined.append(sorted_names.take(pd.Series(codes).groupby(component).transform("min")))
    return kind, *joined


def _root(images):
    if "root" not in getattr(images, "attrs", {}):
        raise ValueError("images: the table has lost its folder; pass the table that find_images returned.")
    return Path(images.attrs["root"])


# ---------------------------------------------------------------- split


def _check_split(protocol, seed, mirror, fractions=(0.7, 0.15, 0.15)):
    check_choice("protocol", protocol, ("grouped", "slides"))
    check_whole("seed", seed)
    check_flag("mirror", mirror)
    three = isinstance(fractions, tuple | list) and len(fractions) == 3
    if not three or not all(isinstance(f, float | int) and f > 0 for f in fractions) or abs(sum(fractions) - 1) > 1e-9:
        raise ValueError(f"fractions: {_shown(fractions)} must be three positive numbers that add up to 1.")


def split_images(images, protocol="grouped", seed=0, mirror=True, fractions=(0.7, 0.15, 0.15)):
    """Add the columns `split` (train, val, test) and `mirrored`; unreadable images are left out.

    protocol "grouped": stratified by class, a group never on two sides, only training rows mirrored.
    protocol "slides": mirror first, then a plain random split (what the original course project did: most test
    images then have their twin in training). `mirror=False` leaves all mirrored rows out.
    The order of the rows does not matter. Raises ValueError for a bad argument, an unknown class, a file that stands
    twice, or no images.
    """
    _check_split(protocol, seed, mirror, fractions)
    check_table("images", images, ["file", "label", "group"], "find_images")
    if "problem" in images:
        images = images[images.problem.eq("")]
    if "mirrored" in images:  # split before: start from the images again
        images = images[~images.mirrored].drop(columns=["split", "mirrored"], errors="ignore")
    if images.empty:
        raise ValueError("images: the table is empty; there is nothing to split.")
    if images.file.duplicated().any():
        raise ValueError(f"images: {images.file[images.file.duplicated()].iloc[0]!r} stands twice; one row an image.")
    rows = images.sort_values("file", ignore_index=True).assign(mirrored=False)
    rng = np.random.default_rng(seed)
    if protocol == "slides":
        if mirror:
            rows = pd.concat([rows, rows.assign(mirrored=True)], ignore_index=True)
        n_train, n_val = int(fractions[0] * len(rows)), int(fractions[1] * len(rows))
        order = rng.permutation(len(rows))
        rows["split"] = "test"
        rows.loc[order[:n_train], "split"] = "train"
        rows.loc[order[n_train : n_train + n_val], "split"] = "val"
    else:
        rows["split"] = _grouped_split(rows, fractions, rng)
        if mirror:
            rows = pd.concat([rows, rows[rows.split.eq("train")].assign(mirrored=True)], ignore_index=True)
    rows.attrs = {**images.attrs, "protocol": protocol, "seed": seed, "mirror": mirror}
    return rows


def _grouped_split(rows, fractions, rng):
    """Whole groups, largest first and else in random order, each to the side that lacks most of its classes."""
    counts = pd.crosstab(rows.group, rows.label).sort_index()
    counts = counts.iloc[rng.permutation(len(counts))]
    counts = counts.loc[counts.sum(axis=1).sort_values(ascending=False, kind="stable").index]
    wanted = np.outer(fractions, counts.sum())  # [3 sides, classes]
    filled = np.zeros_like(wanted)
    side = {}
    for group, row in zip(counts.index, counts.to_numpy(), strict=True):
        lack = ((wanted - filled) / wanted * row).sum(axis=1)
        side[group] = int(lack.argmax())
        filled[side[group]] += row
    return rows.group.map(side).map(dict(enumerate(SPLITS)))


def count_split(split):
    """Images per class and side, with totals: the table [classes + all, train, val, test, all]."""
    check_table("split", split, ["label", "split"], "split_images")
    return pd.crosstab(split.label, split.split, margins=True, margins_name="all").reindex(
        columns=[*SPLITS, "all"], fill_value=0
    )


# ---------------------------------------------------------------- prepare


@dataclass
class Split:
    """One side of a prepared set: `rows` (file, label, group, mirrored, ...) and the pixels behind them."""

    rows: pd.DataFrame
    pixels: np.ndarray  # uint8 [N, size, size, 3], memory-mapped, of all images
    positions: np.ndarray  # int [len(rows)], where each row's pixels are

    def __len__(self):
        return len(self.rows)

    @cached_property
    def labels(self):
        """Class indices, int64 [len]."""
        return self.rows.label.map({name: i for i, name in enumerate(CLASSES)}).to_numpy(np.int64)

    def take(self, indices):
        """The images at `indices` as uint8 [B, size, size, 3], mirrored where the row says so."""
        batch = self.pixels[self.positions[indices]]
        flip = self.rows.mirrored.to_numpy()[indices]
        batch[flip] = batch[flip][:, :, ::-1]
        return batch

    def fingerprint(self):
        """sha256 over rows and pixels: the same images in the same order give the same, wherever they lie."""
        digest = hashlib.sha256(
            self.rows[["file", "label", "mirrored"]].to_csv(index=False, lineterminator="\n").encode()
        )
        for start in range(0, len(self), 16):  # few: they stay in the cache
            digest.update(self.pixels[self.positions[start : start + 16]])
        return digest.hexdigest()


@dataclass
class PreparedData:
    """The three sides of a prepared set, and how they were made (`protocol`, `seed`, `mirror`, `size`)."""

    train: Split
    val: Split
    test: Split
    settings: dict
    is_sample: bool = False

    @property
    def name(self):
        """The protocol, and "_sample" behind it for the bundled sample: the end of the names of its runs."""
        return self.settings["protocol"] + ("_sample" if self.is_sample else "")


def prepare(images, size=224):
    """Bring all images to uint8 [N, size, size, 3] once, on disk, and return the sides: `.train .val .test`.

    `images` is the table of `split_images`. The array lies in `outputs/prepared/<key>/`, keyed by what went in
    (names, sizes and times of the files, `size`), and is read memory-mapped by every later call. Of a folder that was
    prepared before, only new or changed files are decoded; a JPEG is decoded at a half, a quarter or an eighth of its
    size where each side keeps twice `size`. A set whose array is not as noted in meta.json is made again, and that is
    said. (Of over 200 MB, length and time alone are compared; but `fit` hashes the pixels and takes changed ones for
    other data.)
    Raises ValueError for a missing column, a bad size, or an empty side; OSError for a file that cannot be read,
    and for a folder that is full or cannot be written to.
    """
    check_size(size)
    check_table("images", images, ["file", "label", "split", "mirrored"], "split_images")
    for name in SPLITS:
        if not images.split.eq(name).any():
            raise ValueError(f"images: no rows with split {name!r}; {images.file.nunique()} images are too few.")
    root, size = _root(images), int(size)
    positions, files = images.file.factorize(sort=True)
    files = files.tolist()
    stats, start = [], f"{root}{os.sep}"
    try:
        for file in files:
            stat = os.stat(start + file)  # as text: of 100,000 files a path each takes longer than the rest
            stats.append((file, stat.st_size, stat.st_mtime_ns))
    except (OSError, ValueError):
        with _named(file):
            raise
    key = hashlib.sha256(json.dumps([PREPARED_VERSION, str(root), size, stats]).encode()).hexdigest()[:16]
    folder = outputs_dir("prepared", key)
    if not _is_whole(folder):
        if folder.is_dir():
            print(f"prepare: the set in {folder} is incomplete or was changed; it is made again.")
        _write_prepared(root, stats, size, folder)
    pixels = np.load(folder / "images.npy", mmap_mode="r")
    sides = {}
    for name in SPLITS:
        here = images.split.eq(name).to_numpy()
        sides[name] = Split(images[here].reset_index(drop=True), pixels, positions[here])
    settings = {k: images.attrs.get(k) for k in ("protocol", "seed", "mirror")}
    return PreparedData(**sides, settings={**settings, "size": size}, is_sample=is_sample(images))


def load_data(protocol="grouped", seed=0, mirror=True, size=None):
    """Find, audit, split and prepare the images of `data_dir()`, and say aloud which images these are.

    size: pixels along a side of a prepared image; None: 112 on the bundled sample, 224 on other images.
    """
    _check_split(protocol, seed, mirror)  # before the audit, which takes its time
    if size is not None:
        check_size(size)
    images = audit_images(find_images(data_dir()))
    size = default_size(images) if size is None else size
    data = prepare(split_images(images, protocol=protocol, seed=seed, mirror=mirror), size=size)
    print(describe_images(images))
    print(
        ", ".join(f"{side} {len(getattr(data, side))}" for side in SPLITS),
        f"(protocol {protocol}, mirror {mirror}, {size} pixels)",
    )
    return data


def describe_images(images):
    """One sentence: how many images, in how many groups, and whether they are the bundled sample."""
    check_table("images", images, ["label", "group"], "find_images")
    what = "images of the bundled sample" if is_sample(images) else "images"
    counts = images.label.value_counts().sort_index()
    classes = ", ".join(f"{name} {n}" for name, n in counts.items())
    return f"{len(images)} {what}: {classes}; {images.group.nunique()} groups (patients)."


def credit_line(rows):
    """The attribution that the licences of the bundled images ask for, from the column source; "" where none does."""
    check_kind("rows", rows, pd.DataFrame, "table", "the one made by find_images, or the rows of a side")
    found = set(rows.source) if "source" in rows else set()
    names = "; ".join(text for source, text in CREDITS.items() if source in found)
    return f"Images: {names}" if names else ""


@contextmanager
def _named(file):
    """An image that cannot be read, or is no longer there: OSError with its name, and what to do."""
    try:
        yield
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OSError(
            f"images: {file!r} cannot be read ({reason}). Run audit_images first: it leaves such files out "
            "(where it does not, remove outputs/audited before)."
        ) from error


def _is_whole(folder):
    """True if the array of a prepared set is as noted when it was made: length, time, and, up to 200 MB, content."""
    try:
        meta, stat = json.loads((folder / "meta.json").read_text()), os.stat(folder / "images.npy")
        if (meta["bytes"], meta["mtime_ns"]) != (stat.st_size, stat.st_mtime_ns):
            return False
        return stat.st_size > SUMMED or meta.get("crc32") in (None, _crc32(folder / "images.npy"))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _prepared_before(root, stats, size, parent):
    """What another set of the same folder has: its pixels, and the place in them of each unchanged file."""
    best, pixels = {}, None
    for meta in parent.glob("*/meta.json"):
        with suppress(OSError, ValueError, KeyError, TypeError):
            known = json.loads(meta.read_text())
            if [known[key] for key in ("version", "root", "size")] != [PREPARED_VERSION, str(root), size]:
                continue
            index = pd.read_csv(meta.with_name("index.csv"), dtype={"file": str}, keep_default_na=False)
            where = {
                row: i for i, row in enumerate(index[["file", "bytes", "mtime_ns"]].itertuples(index=False, name=None))
            }
            same = {row[0]: where[row] for row in stats if row in where}
            if len(same) > len(best) and _is_whole(meta.parent):
                best, pixels = same, np.load(meta.with_name("images.npy"), mmap_mode="r")
    return best, pixels


def _write_prepared(root, stats, size, folder):
    files = [file for file, *_ in stats]
    with _writing_to(folder.parent), _folder_beside(folder) as temporary:
        whole = temporary / "set"
        whole.mkdir()
        before = _prepared_before(root, stats, size, folder.parent)
        _write_pixels(root, files, size, whole / "images.npy", *before)
        pd.DataFrame(stats, columns=["file", "bytes", "mtime_ns"]).to_csv(whole / "index.csv", index=False)
        stat = os.stat(whole / "images.npy")
        meta = {"version": PREPARED_VERSION, "root": str(root), "images": len(files), "size": size}
        meta |= {"bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns}
        if stat.st_size <= SUMMED:
            meta["crc32"] = _crc32(whole / "images.npy")
        (whole / "meta.json").write_text(json.dumps(meta))
        try:
            os.replace(whole, folder)
        except OSError:
            if _is_whole(folder):  # another process was faster; its set has the same key, so the same pixels
                return
            if not folder.is_dir():
                raise
            for name in ("images.npy", "index.csv", "meta.json"):  # a changed set: these three alone
                os.replace(whole / name, folder / name)


def _write_pixels(root, files, size, path, known, pixels_before):
    """By plain writes: on a full disk a write is an error, but a memory map kills the process.

    What `known` holds, `{file: place in pixels_before}`, is copied and not decoded.
    """
    with open(path, "wb") as array:
        header = dict(descr="|u1", fortran_order=False, shape=(len(files), size, size, 3))
        np.lib.format.write_array_header_1_0(array, header)
        start, lock = array.tell(), threading.Lock()

        def bring(i):
            if files[i] in known:
                pixels = pixels_before[known[files[i]]]
            else:
                with _named(files[i]):
                    pixels = resize(_decode(root / files[i], 2 * size)[0], size)
            with lock:
                array.seek(start + i * pixels.nbytes)
                array.write(pixels)

        _in_threads(bring, range(len(files)), "prepare")
        array.flush()
        os.fsync(array.fileno())
    earlier = os.stat(path).st_mtime_ns - 10**10  # ten seconds: a coarse clock, too, tells a later write from ours
    with suppress(OSError):
        os.utime(path, ns=(earlier, earlier))
