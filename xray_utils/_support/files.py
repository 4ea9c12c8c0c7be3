"""Files that are whole or not at all, checksums, threads, progress bars."""

import glob
import hashlib
import os
import re
import shutil
import tempfile
import time
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from . import dicom
from .decode import EXTENSIONS, OTHER_EXTENSIONS, _silence_decoders
from .paths import outputs_dir

UNPRINTABLE = r"[\x00-\x1f\x7f\ud800-\udfff]"  # in a name: control characters, and bytes that are no UTF-8


def progress(iterable, what, total=None):
    """A progress bar that disappears at the end; `TQDM_DISABLE=1` in the environment turns all of them off.

    Of several processes only the first shows one.
    """
    off = os.environ.get("TQDM_DISABLE", "0") not in ("", "0") or os.environ.get("RANK", "0") != "0"
    return tqdm(iterable, what, total, leave=False, disable=off or total == 0)


@contextmanager
def whole_file(path):
    """The path of a temporary file, flushed and renamed to `path` at the end: whole or not at all.

    Raises OSError naming the folder when it cannot be written to, or is full.
    """
    path = Path(path)
    with _writing_to(path.parent), _folder_beside(path) as folder:
        temporary = folder / path.name
        temporary.touch()
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)


@contextmanager
def _writing_to(folder):
    """Make `folder`; re-raise an OSError with the folder's name and a remedy."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        if error.errno is None:  # our own error, with its message
            raise
        ours = outputs_dir() in (folder, *folder.parents)
        raise OSError(
            f"{'outputs' if ours else 'folder'}: cannot write to {folder} ({error.strerror}). Free some space or allow "
            f"writing there, or {'set XRAY_OUTPUTS to' if ours else 'give'} another folder."
        ) from error


@contextmanager
def _folder_beside(path):
    """A temporary folder beside `path`, removed at the end; first those that killed processes left an hour ago."""
    for old in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        with suppress(OSError):  # another process may remove it, too
            if time.time() - max(part.stat().st_mtime for part in (old, *old.rglob("*"))) > 3600:
                shutil.rmtree(old) if old.is_dir() else old.unlink()  # earlier versions wrote files
    options = {"suffix": ".part", "dir": path.parent, "ignore_cleanup_errors": True}  # a virus scanner may hold it
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", **options) as temporary:
        yield Path(temporary)


def _crc32(path):
    """CRC of a file: detects accidental damage, not tampering; twice as fast as a hash."""
    return zlib.crc32(np.memmap(path, np.uint8, "r"))


def _sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _in_threads(function, items, title):
    """`function` of each item, in order, on all cores, with a progress bar."""
    with warnings.catch_warnings():  # read_image changes the filters in each thread: put them back once, at the end
        warnings.simplefilter("ignore")
        _silence_decoders()
        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            parts = (items[start : start + 1024] for start in range(0, len(items), 1024))  # in parts, to save memory
            results = (result for part in parts for result in pool.map(function, part))
            return list(progress(results, title, len(items)))


def image_files(root):
    """Relative paths of all image files, sorted, and a reason for each hidden one; links are followed."""
    seen, files, hidden = set(), [], []
    walk = os.walk(root, onerror=lambda _: hidden.append("folder that cannot be opened"), followlinks=True)
    for folder, subfolders, names in walk:
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
