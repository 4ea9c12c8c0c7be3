"""Tables of images: `LAYOUTS` says how each set is read, and one function reads them all."""

import os
import re
import unicodedata
import zipfile
from collections import Counter
from dataclasses import dataclass, field
from functools import partial

import pandas as pd

from ..constants import CLASSES
from .files import UNPRINTABLE, image_files
from .names import UnknownClassError, check_found, fold, meaning, patient_of

MAX_CELL = 1000  # characters of a table's cell
MAX_EXCEL = 10**8  # bytes of an Excel file when unpacked


@dataclass(frozen=True)
class Layout:
    """How a set describes its images."""

    name: str  # the source of its images; "": the user's own table, in which every row must be valid
    table: str  # a regular expression: the files that identify the set
    columns: dict  # {name in the table, in any case: file, label, patient, source, view, modality or licence}
    folders: tuple  # where its images are, with or without the extension that `file` gives; * stands for anything
    labels: dict = field(default_factory=dict)  # classes of labels that `meaning` does not know


COHEN = {"finding": "label", "patientid": "patient", "view": "view", "modality": "modality", "license": "licence"}
OWN = {"file": "file", "label": "label", "patient_id": "patient", "source": "source", "source_repo": "source"}
OWN |= {"licence": "licence", "view": "view", "modality": "modality"}
NIH = {"image index": "file", "finding labels": "label", "patient id": "patient", "view position": "view"}
HANNOVER = {"image_id": "file", "patient_id": "patient", "projection": "view"}
COVIDX = {"file": "file", "label": "label", "patient": "patient", "source": "source"}  # see _covidx
LAYOUTS = (
    Layout("", r"manifest\.(csv|xlsx)", OWN, ("", "images")),
    Layout("covid-chestxray-dataset", "metadata.csv", {"filename": "file", **COHEN}, ("images",)),
    Layout("actualmed", "metadata.csv", {"imagename": "file", **COHEN}, ("images",)),
    Layout("figure1", "metadata.csv", {**COHEN, "patientid": "file"}, ("images",)),
    Layout("hannover", "data.csv", HANNOVER, ("png",)),  # without a label: all are covid
    Layout("nih", r"(Data_Entry_2017\w*|sample_labels)\.csv", NIH, ("images", "images_*/images", "sample/images")),
    Layout(
        *("covidx", r"(train|val|test)(_\w+)?\.txt", COVIDX, ("",)),
        {"positive": "covid", "negative": "negative for covid (normal or other)"},
    ),
)


def find_layout(root):
    """The layout of the tables in `root`, these as one table with our columns, the name of the first; else three None.

    Raises ValueError for a manifest that cannot be used.
    """
    names = sorted(entry.name for entry in root.iterdir() if entry.is_file())
    not_used = set()
    for layout in LAYOUTS:
        tables = [name for name in names if re.fullmatch(layout.table, name, re.IGNORECASE)]
        if not layout.name and len(tables) > 1:
            raise ValueError(f"{tables[0]}: {tables[1]} is there too; remove one of them.")
        all_needed = "label" not in layout.columns.values()
        needed = [theirs.lower() for theirs, ours in layout.columns.items() if all_needed or ours in ("file", "label")]
        try:
            parts = [part for name in tables if (part := _read(root / name)) is not None]
            if missing := [column for column in needed if any(column not in part for part in parts)]:
                raise ValueError(
                    f"{tables[0]}: column {missing[0]!r} is missing; found {', '.join(parts[0])[:200]}. "
                    f"Needed: {', '.join(needed)}."
                )
        except ValueError:
            if not layout.name:
                raise
            not_used |= set(tables)
            continue
        if parts and _folders(root, layout):
            return layout, _renamed(pd.concat(parts, ignore_index=True), layout, tables[0]), tables[0]
        not_used |= set(tables if parts else ())
    if not_used:
        print(f"Not used: {', '.join(sorted(not_used))}, no table of a known set.")
    return None, None, None


def _read(path):
    """A table of text; names of columns in lower case. None for a .txt file that is no list of COVIDx."""
    try:
        if (suffix := path.suffix.lower()) == ".txt":
            return _covidx(path)
        if suffix == ".xlsx":
            with zipfile.ZipFile(path) as file:
                if sum(member.file_size for member in file.infolist()) > MAX_EXCEL:
                    raise ValueError("it unpacks to over 100 MB")
            table = pd.read_excel(path, dtype=str)
        else:
            with open(path, encoding="utf-8-sig") as file:
                header = file.readline(20 * MAX_CELL)
                first = len(header) if header.startswith("sep=") else 0  # a line for Excel alone, such as "sep=;"
                names = re.sub('"[^"]*"', "", file.readline(20 * MAX_CELL) if first else header)
                file.seek(0)
                file.read(first)
                table = pd.read_csv(file, sep=max(",;\t", key=names.count), dtype=str)
        table.columns = [str(column).strip().lower() for column in table.columns]
        if not isinstance(table.index, pd.RangeIndex) or table.columns.has_duplicates:
            raise ValueError("it has a column twice, or lines with more cells than its first line")
        return table.dropna(how="all", ignore_index=True)  # the empty rows that Excel leaves at the end
    except (ImportError, ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
        advice = "Save it as CSV in UTF-8 (in Excel: 'CSV UTF-8'), one row an image."
        if isinstance(error, ImportError):
            advice = "Install openpyxl, or save it as CSV in UTF-8."
        raise ValueError(f"{path.name}: {str(error)[:200]}. {advice}") from error


def _covidx(path):
    """The lines "patient file label [source]" of train.txt, whose images are in train/ (or test, or val)."""
    side = re.match("[a-z]+", path.name.lower())[0]
    lines = pd.Series(path.read_text(encoding="utf-8-sig").splitlines(), dtype=str)
    line = r"^(?P<patient>\S+) (?P<file>.+?\.\w+) (?P<label>\S+)(?: (?P<source>\S+))?\s*$"
    table = lines[lines.str.strip().ne("")].str.extract(line)
    if table.empty or table.file.isna().any() or not (path.parent / side).is_dir():
        return None
    return table.assign(file=f"{side}/" + table.file, source="covidx " + table.source)


def _renamed(table, layout, name):
    """Our columns of `table`, as clean text."""
    columns = {}
    for theirs, ours in layout.columns.items():
        if (column := theirs.lower()) in table and ours not in columns:
            cells = table[column].fillna("")
            if (bad := cells.str.len().gt(MAX_CELL) | cells.str.contains(UNPRINTABLE)).any():
                raise ValueError(
                    f"{name}: the cell of row {bad.argmax() + 1} in column {column!r} begins with "
                    f"{cells[bad.argmax()][:40]!r}; at most {MAX_CELL} characters are allowed, none of control."
                )
            columns[ours] = cells.str.strip()
    return pd.DataFrame(columns)


def rows_of_table(root, layout, table, name, labels):
    """One row an image (file, label, patient, source; view and licence if present), and the counts of what is left out.

    labels: as check_labels returns them. A wrong row of a manifest raises ValueError or FileNotFoundError. Users often
    have a part of a public set, so its rows without a file are only counted.
    """
    optional = [column for column in ("view", "licence") if column in table]
    table = table.reindex(columns=["file", "label", "patient", "source", "view", "modality", "licence"], fill_value="")
    if "label" not in layout.columns.values():
        table["label"] = "covid"
    if not layout.name and (table.file.eq("") | table.file.duplicated()).any():
        raise ValueError(f"{name}: column 'file' has empty or repeated cells; one row an image.")
    files, hidden = image_files(root)
    path = pd.Series(_places(table.file, root, layout, [file.as_posix() for file in files], name), dtype=object)
    kinds = {label: _kind(label, layout, labels) for label in table.label.unique()}
    check_found(labels, kinds, "label")
    if unknown := {label: file for label, file in zip(table.label, table.file, strict=True) if not kinds[label]}:
        raise UnknownClassError(name, unknown, kinds)
    kind = table.label.map(kinds)
    left_out = kind.mask(kind.isin(CLASSES), "")
    if layout.name:
        if path.isna().all():
            folders = " or ".join(folder or "train, val, test" for folder in layout.folders)
            raise FileNotFoundError(f"{name}: none of its {len(table)} images is there. They belong in {folders}.")
        left_out = left_out.mask(path.isna(), "file missing")
    left_out = left_out.mask(table["view"].str.match(r"(l|ll|rl|lat\w*)\b", case=False), "lateral view")
    ct = table.modality.str.fullmatch("ct", case=False) | table["view"].str.match("axial|coronal", case=False)
    left_out = left_out.mask(ct, "CT").mask(table.file.duplicated(), "listed twice")
    kept = left_out.eq("")
    if len(missing := table.file[kept & path.isna()]):
        raise FileNotFoundError(
            f"{name}: {len(missing)} of its files are not there, the first is {missing.iloc[0]!r}. "
            f"Put them beside {name}, or take their rows out of it."
        )
    if path[kept].duplicated().any():
        raise ValueError(f"{name}: column 'file' names a file twice; one row an image.")
    rows = pd.DataFrame({"file": path, "label": kind, "patient": table.patient.astype(object)})
    rows["source"] = table.source.where(table.source.ne(""), layout.name or root.name)
    rows[optional] = table[optional].mask(table[optional].eq(""))
    rows = rows[kept].copy()
    own_number = rows.patient.ne("")
    if layout.name:  # patient 1 of one hospital is not patient 1 of another
        rows["patient"] = f"{layout.name}:" + rows.patient
    rows["patient"] = rows.patient.where(own_number, rows.file.map(patient_of))
    counted = Counter(hidden) + Counter(left_out[~kept])
    counted[f"not in {name}"] = len({file.as_posix() for file in files} - set(path))
    return rows, counted


def _folders(root, layout):
    """The existing folders of the layout, relative to `root`."""
    found = [path for pattern in layout.folders for path in (sorted(root.glob(pattern)) if pattern else [root])]
    return [path.relative_to(root).as_posix() for path in found if path.is_dir()]


def _places(names, root, layout, files, table_name):
    """The path of each name relative to `root`, None if missing. Only a manifest may name hidden files."""
    there = {os.path.splitext(file)[0]: file for file in files} if layout.name else {}
    there |= {file: file for file in files}
    composed = partial(unicodedata.normalize, "NFC")  # macOS writes an accented letter as two characters, others as one
    there = {composed(name): file for name, file in there.items()}
    folders = _folders(root, layout)

    def place(name):
        for folder in folders:
            path = os.path.normpath(os.path.join(folder, name)).replace(os.sep, "/")
            if (same := composed(path)) in there:
                return there[same]
            if not layout.name and os.path.isfile(whole := os.path.normpath(os.path.join(root, path))):
                if not whole.startswith(f"{root}{os.sep}"):  # by name: links may lead outside
                    raise ValueError(f"{table_name}: {name!r} lies outside the folder {root.name!r}.")
                return os.path.relpath(whole, root).replace(os.sep, "/")
        return place(name.replace("\\", "/")) if "\\" in name else None  # written on Windows

    return [place(name) for name in names]


def _kind(label, layout, labels):
    """The class of a label, or why its images are left out; None or "" for an unknown label of a manifest."""
    if fold(label) in labels:
        return labels[fold(label)] or f"with label {label!r} (labels)"
    kind = "inconclusive" if label == "" else layout.labels.get(fold(label)) or meaning(label)
    if kind or not layout.name:
        return kind
    parts = label.split("/")  # "Pneumonia/Bacterial/Klebsiella": bacteria
    wider = [meaning("/".join(parts[:end])) for end in range(len(parts) - 1, 0, -1)]
    return next((kind for kind in wider if kind and kind not in CLASSES), "other findings")
