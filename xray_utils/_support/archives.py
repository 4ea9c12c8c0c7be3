"""Unpack an archive of images: .zip, .tar, .tar.gz or .tgz, with one set of checks for all."""

import gzip
import shutil
import stat
import tarfile
import unicodedata
import zipfile
import zlib
from pathlib import Path

from . import dicom
from .decode import EXTENSIONS
from .files import image_files

ENDINGS = (".zip", ".tar", ".tar.gz", ".tgz")
NOT_READ = {b"Rar!": "RAR", b"7z\xbc\xaf": "7-Zip", b"\xfd7zXZ": "xz", b"BZh": "bzip2"}  # by their first bytes
GZIP = b"\x1f\x8b"
UNSAFE = "holds {!r}, refused as unsafe"


def check_archive(path):
    """Raise ValueError unless the file is an archive that `unpack` reads; it says what the file is and what to do."""
    if path.name.lower().endswith(EXTENSIONS + dicom.EXTENSIONS):
        raise ValueError(f"source: {path.name} is one image. Give the folder of your images, or use xu.classify.")
    with open(path, "rb") as file:
        start = file.read(8)
    if kind := next((kind for first, kind in NOT_READ.items() if start.startswith(first)), None):
        raise ValueError(f"source: {path.name} is a {kind} archive, not read here. Unpack it, and give the folder.")
    if not zipfile.is_zipfile(path) and not start.startswith(GZIP) and not tarfile.is_tarfile(path):
        kind = ".tar" if path.name.lower().endswith(ENDINGS[1:]) else ".zip"
        raise ValueError(f"source: {path.name} is no {kind} file, or it is incomplete. Fetch it again.")


def unpack(archive, folder, max_bytes=20 * 10**9):
    """Unpack an archive, and archives inside it unless images lie beside them, into the new `folder`; return the bytes.

    Whole or not at all. Raises ValueError, before anything of an archive is written, for paths that leave the folder,
    links and devices, a name that occurs twice (in any case: one file on Windows and macOS), a password,
    a compression other than deflate, and more than `max_bytes` or 100 times the archive when unpacked. zipfile and
    tarfile write no more than the sizes checked here, and raise BadZipFile or TarError if there is more.
    """
    archive, folder = Path(archive), Path(folder)
    folder.mkdir(parents=True)
    allowed = min(max_bytes, 100 * archive.stat().st_size)
    try:
        total = _unpack_one(archive, folder, allowed)
        files = [path for path in sorted(folder.rglob("[!.]*")) if path.is_file()]  # macOS adds ._set.zip to set.zip
        inner = [path for path in files if path.name.lower().endswith(ENDINGS)]
        if inner and image_files(folder)[0]:
            print(f"Not unpacked: {', '.join(path.name for path in inner[:8])}, beside the images.")
            inner = []
        for path in inner:
            ending = next(ending for ending in ENDINGS if path.name.lower().endswith(ending))
            if (target := path.with_name(path.name[: -len(ending)])).exists():
                raise ValueError(f"archive: {path.name} lies beside {target.name}. Unpack them, and give the folder.")
            total += unpack(path, target, allowed - total)
            path.unlink()
    except BaseException:
        shutil.rmtree(folder)
        raise
    return total


def _unpack_one(archive, folder, allowed):
    """Check one archive and unpack it into the empty `folder`; return the bytes."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as file:
            total = _check(archive, map(_of_zip, file.infolist()), allowed)
            file.extractall(folder, file.infolist())
        return total
    if not hasattr(tarfile, "data_filter"):
        raise ValueError(f"archive: {archive.name} needs a newer Python 3.10 or 3.11. Unpack it, and give the folder.")
    try:
        mode = "r:gz" if _is_gzip(archive, 2 * allowed + 2**20) else "r:"  # first: headers may be false
        with tarfile.open(archive, mode) as file:
            total = _check(archive, map(_of_tar, file), allowed)
            file.extractall(folder, filter="data")
    except (tarfile.TarError, zlib.error, gzip.BadGzipFile, EOFError) as error:
        raise ValueError(f"archive: {archive.name} is broken ({error}). Fetch it again.") from error
    return total


def _of_zip(member):
    """Name, bytes when unpacked, and "" or what is wrong with a member of a zip archive."""
    member.filename = member.filename.replace("\\", "/")  # as some programs on Windows write it
    ordinary = stat.S_IFMT(member.external_attr >> 16) in (0, stat.S_IFREG, stat.S_IFDIR)
    known = member.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
    fault = "has a password. Unpack it by hand, and give the folder" if member.flag_bits & 1 else ""
    return member.filename, member.file_size, fault or ("" if ordinary and known else UNSAFE)


def _of_tar(member):
    """The same for a tar archive."""
    member.name = member.name.replace("\\", "/")
    ordinary = member.isdir() or (member.isfile() and not member.issparse())
    return member.name, member.size, "" if ordinary else UNSAFE


def _check(archive, members, allowed):
    """The sum of the bytes of all `members` (name, bytes, fault). ValueError for an unsafe member or too many bytes."""
    seen, total = set(), 0
    for name, size, fault in members:
        path = Path(name)
        key = unicodedata.normalize("NFC", path.as_posix()).casefold()
        if path.is_absolute() or ".." in path.parts or ":" in "".join(path.parts[:1]) or key in seen:
            fault = UNSAFE
        if fault:
            raise ValueError(f"archive: {archive.name} {fault.format(name[:100])}.")
        seen.add(key)
        total += size
        if total > allowed:
            raise ValueError(f"archive: {archive.name} unpacks to over {allowed} bytes, refused.")
    return total


def _is_gzip(archive, limit):
    """Whether gzip compresses it. Raises ValueError for more than `limit` bytes, EOFError if a part is missing."""
    with open(archive, "rb") as raw:
        if raw.read(2) != GZIP:
            return False
    with gzip.open(archive) as file:
        if file.seek(limit + 1) > limit:  # it reads up to there
            raise ValueError(f"archive: {archive.name} unpacks to over {limit} bytes, refused.")
    return True
