"""Tables of images: one entry a known set in `LAYOUTS`, and one way to read them all."""

import os
import re
import zipfile
from collections import Counter
from dataclasses import dataclass

import pandas as pd

from ..constants import CLASSES
from .files import UNPRINTABLE, image_files
from .names import check_found, fold, meaning, patient_of, unknown_error

MAX_CELL = 1000  # characters of a table's cell


@dataclass(frozen=True)
class Layout:
    """How a set describes its images. Names of columns are compared in lower case, without blanks around them."""

    table: str  # a regular expression: the files that identify the set
    file: str  # column: name of the image, with or without its extension
    label: str | None  # column, or None: all images are covid
    patient: str = ""  # columns that may be there
    view: str = ""
    modality: str = ""
    licence: str = ""
    source: tuple = ()
    folders: tuple = ("",)  # where the images are; * stands for anything
    set_name: str = ""  # the source of all images; "": the user's own table, each line of which must be right
    names: tuple = ()  # what labels of this set mean, beyond `meaning`


OWN = dict(file="file", label="label", patient="patient_id", view="view", licence="licence")
LAYOUTS = (
    Layout(r"manifest\.(csv|xlsx)", **OWN, source=("source", "source_repo"), folders=("", "images")),
    Layout(  # ieee8023/covid-chestxray-dataset
        *("metadata.csv", "filename", "finding", "patientid", "view", "modality", "license"),
        folders=("images",),
        set_name="covid-chestxray-dataset",
    ),
    Layout(  # agchung/Actualmed-COVID-chestxray-dataset
        *("metadata.csv", "imagename", "finding", "patientid", "view"), folders=("images",), set_name="actualmed"
    ),
    Layout(  # agchung/Figure1-COVID-chestxray-dataset: the image is named after the patient
        *("metadata.csv", "patientid", "finding", "patientid", "view", "modality"),
        folders=("images",),
        set_name="figure1",
    ),
    Layout(  # ml-workgroup/covid-19-image-repository, Hannover
        *("data.csv", "image_id", None, "patient_id", "projection", "modality"), folders=("png",), set_name="hannover"
    ),
    Layout(  # NIH ChestX-ray14, in one folder or in the twelve of Kaggle
        *(r"Data_Entry_2017\w*\.csv", "image index", "finding labels", "patient id", "view position"),
        folders=("images", "images_*/images"),
        set_name="nih",
    ),
    Layout(  # COVIDx: lines "patient file label source" without a header, as read by _covidx
        *(r"(?P<side>train|val|test)(_\w+)?\.txt", "file", "label", "patient"),
        source=("source",),
        set_name="covidx",
        names=(("positive", "covid"), ("negative", "negative for covid (normal or other)")),
    ),
)


def find_layout(root):
    """The layout of the tables in `root`, and the tables as one, with our names of columns; None, None if none fits.

    Raises ValueError for a manifest that cannot be used.
    """
    names = sorted(entry.name for entry in root.iterdir() if entry.is_file())
    unfit = {}
    for layout in LAYOUTS:
        tables = [name for name in names if re.fullmatch(layout.table, name)]
        if not tables:
            continue
        needed = [column for column in (layout.file, layout.label) if column]
        if not layout.set_name and len(tables) > 1:
            raise ValueError(f"{tables[0]}: {tables[1]} is there too; remove one of them.")
        parts = [_read(root / name, needed, layout) for name in tables]
        parts = [part for part in parts if part is not None]
        if parts and all(column in part for part in parts for column in needed):
            return layout, _with_our_columns(pd.concat(parts, ignore_index=True), layout, tables[0]), tables[0]
        if not layout.set_name:
            raise ValueError(
                f"{tables[0]}: column {next(c for c in needed if c not in parts[0])!r} is missing; found "
                f"{', '.join(map(str, parts[0].columns))[:200]}. Needed: {', '.join(needed)}."
            )
        if parts:
            unfit[tables[0]] = parts[0].columns
    for name, columns in unfit.items():
        print(f"Not used: {name}, whose columns ({', '.join(columns)[:100]}) are those of no known set.")
    return None, None, None


def _read(path, needed, layout):
    """A table of text; names of columns in lower case. None for a .txt file that is no list of COVIDx."""
    try:
        if path.suffix == ".txt":
            return _covidx(path, layout)
        if path.suffix == ".xlsx":
            table = pd.read_excel(path, dtype=str)
        else:
            with open(path, encoding="utf-8-sig") as file:
                header = file.readline(MAX_CELL * 20)
            separator = max(",;\t", key=header.count)
            table = pd.read_csv(path, sep=separator, dtype=str, encoding="utf-8-sig")
            if not isinstance(table.index, pd.RangeIndex):
                raise ValueError("its lines have more cells than its first line")
    except ImportError as error:
        raise ValueError(
            f"{path.name}: to read Excel files, install openpyxl (pip install openpyxl), or save it as CSV UTF-8."
        ) from error
    except UnicodeError as error:
        raise ValueError(
            f"{path.name}: {str(error)[:100]}. It is not in UTF-8: save it again, in Excel as 'CSV UTF-8'."
        ) from error
    except (ValueError, KeyError, OSError, zipfile.BadZipFile) as error:  # of the form
        raise ValueError(f"{path.name}: {str(error)[:200]}. Save it as CSV in UTF-8, one row an image.") from error
    table.columns = [str(column).strip().lower() for column in table.columns]
    if any(list(table.columns).count(column) > 1 for column in needed):
        raise ValueError(f"{path.name}: a column is there twice ({', '.join(needed)}); keep one of them.")
    return table


def _covidx(path, layout):
    """The lines "patient file label [source]" of a list beside the folder of its images."""
    side = re.fullmatch(layout.table, path.name)["side"]
    lines = pd.Series(path.read_text(encoding="utf-8-sig").splitlines(), dtype=str)
    line = r"(?P<patient>\S+) (?P<file>.+?\.\w+) (?P<label>\S+)(?: (?P<source>\S+))?\s*"
    table = lines[lines.str.strip().ne("")].str.extract(f"^{line}$")
    if table.empty or table.file.isna().any() or not (path.parent / side).is_dir():
        return None
    return table.assign(file=f"{side}/" + table.file, source="covidx " + table.source)


def _with_our_columns(table, layout, name):
    """Columns file, label, patient, source, view, modality, licence (those that are there) of clean text."""
    columns = {"file": layout.file, "label": layout.label, "patient": layout.patient}
    columns |= {"source": next((c for c in layout.source if c in table), "")}
    columns |= {"view": layout.view, "modality": layout.modality, "licence": layout.licence}
    table = pd.DataFrame({ours: table[theirs].fillna("") for ours, theirs in columns.items() if theirs in table})
    for column, cells in table.items():
        if (bad := cells.str.len().gt(MAX_CELL) | cells.str.contains(UNPRINTABLE)).any():
            raise ValueError(
                f"{name}: the cell of row {bad.argmax() + 1} in column {columns[column]!r} begins with "
                f"{cells[bad.argmax()][:40]!r}; at most {MAX_CELL} characters are allowed, and no control characters."
            )
    return table.apply(lambda cells: cells.str.strip())


def rows_of_table(root, layout, table, name, labels):
    """One row an image (file, label, patient, source and more if there), and how many are left out, by reason.

    labels: as returned by check_labels. Raises ValueError and FileNotFoundError for a table of the user's own with a
    line that is wrong; in a public set, lines without a file are counted, since people have parts of it.
    """
    own = not layout.set_name
    if "label" not in table:
        table = table.assign(label="covid")
    if own and (table.file.eq("") | table.file.duplicated()).any():
        raise ValueError(f"{name}: column {layout.file!r} has empty or repeated cells; one row an image.")
    files, hidden = image_files(root)
    table = table.assign(path=_places(table.file, root, layout, [file.as_posix() for file in files], name))
    left_out = Counter(hidden)
    left_out[f"not in {name}"] = len({file.as_posix() for file in files} - set(table.path))

    def keep(table, reasons):
        left_out.update(reasons[reasons.ne("")])
        return table[reasons.eq("")]

    if not own:
        table = keep(table, table.file.duplicated().map({True: "listed twice", False: ""}))
        if len(table) and table.path.isna().all():
            raise FileNotFoundError(
                f"{name}: none of its {len(table)} images is there, the first is {table.file.iloc[0]!r}. "
                f"They belong in the folder {' or '.join(map(repr, filter(None, layout.folders))) or 'beside it'}."
            )
        for column in ("modality", "view"):
            if column in table:
                table = keep(table, table[column].map({cell: _reason(cell) for cell in table[column].unique()}))
        table = keep(table, table.path.isna().map({True: "file missing", False: ""}))
    kinds = {label: _kind(label, layout, labels) for label in table.label.unique()}
    unknown = {label: file for label, file in zip(table.label, table.file, strict=True) if not kinds[label]}
    if unknown:
        raise unknown_error(name, unknown, kinds)
    check_found(labels, kinds, "label")
    kind = table.label.map(kinds)
    table = keep(table.assign(label=kind), kind.where(~kind.isin(CLASSES), ""))
    if (missing := table.file[table.path.isna()]).any():
        raise FileNotFoundError(
            f"{name}: {len(missing)} of its files are not there, the first is {missing.iloc[0]!r}. "
            f"Put them beside {name}, or take their rows out of it."
        )
    if table.path.duplicated().any():
        raise ValueError(f"{name}: column {layout.file!r} names a file twice; one row an image.")
    blank = table.assign(**{c: "" for c in ("patient", "source") if c not in table}).eq("")
    table = table.reindex(columns=dict.fromkeys(["path", "label", "patient", "source", *table.columns.drop("file")]))
    table = table.mask(blank.reindex(columns=table.columns, fill_value=False))
    table["patient"] = table.patient.astype(object).where(table.patient.notna(), table.path.map(patient_of))
    table["source"] = table.source.astype(object).fillna(layout.set_name or root.name)
    return table.drop(columns="modality", errors="ignore").rename(columns={"path": "file"}), left_out


def _places(names, root, layout, files, table_name):
    """The path of each name relative to `root`, None where no file is. Only an own table may name hidden files."""
    there = {os.path.splitext(file)[0]: file for file in files} if layout.set_name else {}
    there |= {file: file for file in files}
    folders = []
    for pattern in layout.folders:
        found = [path.relative_to(root).as_posix() for path in root.glob(pattern)] if pattern else [""]
        folders += sorted(found)

    def place(name):
        for spelling in dict.fromkeys((name, name.replace("\\", "/"))):  # written on Windows
            for folder in folders:
                path = os.path.normpath(os.path.join(folder, spelling)).replace(os.sep, "/")
                if path in there:
                    return there[path]
                if not layout.set_name and os.path.isfile(os.path.join(root, path)):
                    whole = os.path.normpath(os.path.join(root, path))  # by name: links may lead where they like
                    if not whole.startswith(f"{root}{os.sep}"):
                        raise ValueError(f"{table_name}: {name!r} lies outside the folder {root.name!r}.")
                    return os.path.relpath(whole, root).replace(os.sep, "/")
        return None

    return [place(name) for name in names]


def _reason(cell):
    """Why a public set's image with this modality or view is left out; "" if it is a frontal X-ray."""
    if re.fullmatch(r"ct|axial|coronal|sagittal", fold(cell)):
        return "CT"
    return "lateral view" if re.match(r"l(l|at\w*)?\b", fold(cell)) else ""


def _kind(label, layout, labels):
    """The class of a label, or why its images are left out; None or "" where a label of an own table is unknown."""
    if fold(label) in labels:
        return labels[fold(label)] or f"with label {label!r} (labels)"
    kind = "inconclusive" if label == "" else dict(layout.names).get(fold(label)) or meaning(label)
    if kind or not layout.set_name:
        return kind
    parts = label.split("/")  # "Pneumonia/Bacterial/Klebsiella": bacteria
    parents = [meaning("/".join(parts[:end])) for end in range(len(parts) - 1, 0, -1)]
    return next((parent for parent in parents if parent and parent not in CLASSES), "other findings")
