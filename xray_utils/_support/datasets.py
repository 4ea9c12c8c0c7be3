"""Public sets and archives: `use_images` fetches, unpacks and chooses them."""

import json
import os
import shutil
import urllib.request
from contextlib import contextmanager
from pathlib import Path

from ..images import find_images
from .archives import check_archive, unpack
from .checks import check_choice, check_path
from .files import _folder_beside, _writing_to, image_files, whole_file
from .names import UnknownClassError, check_labels
from .paths import CHOICE, SOURCES, _chosen, _is_there, data_dir, labels_of, outputs_dir, repository_dir


def download_images(source: str, folder: str | Path | None = None) -> Path:
    """Fetch a public set by its name in `SOURCES` into `folder` (default `data/xray`) and return the folder.

    Raises ValueError for an unknown name, FileExistsError if the folder already holds something, and RuntimeError
    when the download fails; the message says which page to open and where to put the files.
    """
    if folder is not None:
        check_path("folder", folder, "where to put the images, or None")
    check_choice("source", source, SOURCES)
    kind, name, *commit = SOURCES[source]
    page = f"https://www.kaggle.com/datasets/{name}" if kind == "kaggle" else f"https://github.com/{name}"
    folder = Path(folder).expanduser() if folder else repository_dir() / "data" / "xray"
    with _to_be_filled(folder, source) as whole:
        try:
            if kind == "kaggle":
                import kagglehub

                cache = Path(kagglehub.dataset_download(name))
                if any(path.is_symlink() for path in cache.rglob("*")):  # a link to / would copy everything
                    raise OSError("it holds links, refused as unsafe")
                shutil.copytree(cache, whole)
            else:
                archive, address = whole.with_name("archive.zip"), f"{page}/archive/{commit[0]}.zip"
                with urllib.request.urlopen(address, timeout=60) as answer, open(archive, "wb") as file:
                    shutil.copyfileobj(answer, file)
                unpack(archive, whole)
            if not image_files(whole)[0]:
                raise OSError("it holds no images")
        except Exception as error:
            raise RuntimeError(
                f"source: {source!r} could not be downloaded ({type(error).__name__}: {str(error)[:200]}).\n"
                f"Open {page} in a browser, download the archive, and unpack it so that its folders lie in\n"
                f"{folder}\nThen find_images reads that folder. For another folder, set XRAY_DATA to it."
            ) from error
    return folder


@contextmanager
def _to_be_filled(folder, source):
    """The path of a new folder of images, which becomes `folder` at the end: whole or not at all.

    Raises FileExistsError if `folder` already holds something. Its file `.source` names the source.
    """
    if folder.is_file() or folder.is_dir() and any(folder.iterdir()):
        raise FileExistsError(
            f"folder: {folder} already holds other images. Move or delete it; or unpack yours into another folder, and "
            "give that one."
        )
    with _writing_to(folder.parent), _folder_beside(folder) as temporary:
        whole = temporary / "images"
        yield whole
        inner = [entry for entry in whole.iterdir() if not entry.name.startswith(".")]
        whole = inner[0] if len(inner) == 1 and inner[0].is_dir() else whole
        (whole / ".source").write_text(source, encoding="utf-8")
        if folder.is_dir():
            folder.rmdir()
        os.replace(whole, folder)


def use_images(source: str | None = None, labels: dict | None = None) -> None:
    """Choose the images that all notebooks use from now on, and print which these are.

    source: a name in `SOURCES`, fetched into `data/xray`; a .zip, .tar, .tar.gz or .tgz file, unpacked there; the
    folder of your images, which stay where they are; "upload" (on Colab: asks for such a file); "sample"; or None, to
    change nothing. The choice is kept in `outputs/data_dir.txt`. Images already in `data/xray` are not fetched or
    unpacked again; missing ones (outputs on a Drive, another machine) are, from the same set or archive.
    labels: as for `find_images`, kept for these images. If it is missing, the line to write is printed.

    Raises ValueError for another source, and while XRAY_DATA is set, which has priority; FileExistsError if
    `data/xray` holds something else; and what `download_images`, `unpack` and `find_images` raise. The choice is
    then not changed.
    """
    check_labels(labels)
    if labels and source is None:
        raise ValueError("labels: say of which images, in the argument source.")
    if source is not None:
        check_path("source", source, "the name of a set, a folder, a .zip file, or None")
        if os.environ.get("XRAY_DATA"):
            raise ValueError(f"source: {str(source)!r} would not be used while XRAY_DATA is set. Unset that first.")
    elif (chosen := _chosen()) and not os.environ.get("XRAY_DATA"):
        folder, before, kept = chosen
        if not folder.is_dir() and _is_there(before):
            print(f"{folder} is gone; its images are fetched again from {before}.")
            source, labels = before, labels or kept
    if source is not None:
        folder, origin = _images_of(source, labels)
        labels = labels or labels_of(folder)
        with whole_file(outputs_dir(CHOICE)) as path:
            path.write_text(f"{folder}\n{origin}\n{json.dumps(labels or {})}", encoding="utf-8")
    folder, here = data_dir().resolve(), repository_dir().resolve()
    is_bundled = folder == here / "data" / "sample"
    shown = folder.relative_to(here).as_posix() if here in folder.parents else folder
    print(f"The notebooks use {shown}" + (": the bundled sample." if is_bundled else "."))


def _images_of(source, labels):
    """The folder for `use_images`, checked, and its source as in `_chosen`; sets and archives go to `data/xray`."""
    own = repository_dir() / "data" / "xray"
    if source == "sample":
        return own.with_name("sample"), source
    path = Path(_upload() if source == "upload" else source).expanduser()
    if source in SOURCES:
        origin = key = source
    elif path.is_dir():
        _check_images(path, labels)
        return path.resolve(), ""
    elif path.is_file():
        check_archive(path)
        origin, key = str(path.resolve()), f"{path.name}, {path.stat().st_size} bytes"
    else:
        raise ValueError(
            f"source: {str(source)!r} is no folder, no .zip file and no known set. Known: {', '.join(SOURCES)}."
        )
    if (own / ".source").is_file() and (own / ".source").read_text(encoding="utf-8") == key:
        if labels:
            _check_images(own, labels)
        return own, origin  # since the last time
    if source in SOURCES:
        return download_images(source, own), origin
    with _to_be_filled(own, key) as whole:
        unpack(path, whole)
        _check_images(whole, labels)
    return own, origin


def _check_images(folder, labels):
    """Read the folder as a test; if only `labels` is missing, print so and keep the images."""
    try:
        find_images(folder, labels=labels)
    except UnknownClassError as error:
        if not error.can_be_classes:
            raise
        print(f"{error}\nCall xu.use_images again, with labels. Until then no notebook can read these images.")


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
        raise ValueError(f"source: 'upload' received {len(names)} files; choose one .zip file.")
    return names[0]
