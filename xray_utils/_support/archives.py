"""Unpack an archive of images: .zip, .tar, .tar.gz or .tgz, with one set of checks for all."""

import gzip
import shutil
import stat
import tarfile
import unicodedata
import zipfile
import zlib
from contextlib import contextmanager
from pathlib import Path

from .files import image_files

ENDINGS = (".zip", ".tar", ".tar.gz", ".tgz")
NOT_READ = {  # the first bytes of archives that are not read
    b"Rar!": "RAR",
    b"7z\xbc\xaf": "7-Zip",
    b"\xfd7zXZ": "xz",
    b"BZh": "bzip2",
    b"\x28\xb5\x2f\xfd": "Zstandard",
}
BROKEN = (tarfile.TarError, zlib.error, gzip.BadGzipFile, EOFError)
MAX_HEADER = 2**20  # bytes of a header of a tar; image data is read in smaller pieces


def check_archive(path):
    """Raise ValueError unless the file is an archive that `unpack` reads; say what it is, and what to do."""
    with open(path, "rb") as file:
        start = file.read(8)
    kind = next((kind for first, kind in NOT_READ.items() if start.startswith(first)), None)
    if kind:
        raise ValueError(
            f"source: {path.name} is a {kind} archive, which is not read here. Unpack it, and give the folder."
        )
    try:
        if not zipfile.is_zipfile(path):
            with _tar(path, path.stat().st_size):
                pass
    except BROKEN as error:
        kind = "tar" if path.name.lower().endswith(ENDINGS[1:]) else "zip"
        raise ValueError(
            f"source: {path.name} is no .{kind} file, or not all of it has arrived. Fetch it again."
        ) from error


def unpack(archive, folder, max_bytes=20e9):
    """Unpack an archive, and archives inside it if it holds no images beside them, into the new `folder`.

    Whole or not at all. Raises ValueError, before anything of an archive is written, for paths that leave the folder,
    links and devices, a name that is there twice (in upper or lower case: one file to Windows and macOS), a password,
    a compression other than deflate, and more than `max_bytes` or 100 times the archive when unpacked. zipfile and
    tarfile write no more than the sizes checked here; BadZipFile or ValueError follow if there is more.
    """
    archive, folder = Path(archive), Path(folder)
    if folder.exists():
        raise FileExistsError(f"folder: {folder} is there already.")
    left = min(max_bytes, 100 * archive.stat().st_size)
    try:
        left -= _unpack_one(archive, folder, left)
        inner = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name.lower().endswith(ENDINGS)]
        if inner and image_files(folder)[0]:
            print(f"Not unpacked: {', '.join(path.name for path in inner[:8])}, beside the images.")
            inner = []
        for path in inner:
            ending = next(ending for ending in ENDINGS if path.name.lower().endswith(ending))
            left -= _unpack_one(path, path.with_name(path.name[: -len(ending)]), left)
            path.unlink()
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _unpack_one(archive, folder, max_bytes):
    """Check and unpack one archive into the new `folder`; return how many bytes."""
    allowed = min(max_bytes, 100 * archive.stat().st_size)
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as file:
            members = file.infolist()
            for member in members:
                member.filename = member.filename.replace("\\", "/")  # as some programs on Windows write it
            total = _check(archive, map(_of_zip, members), allowed)
            folder.mkdir(parents=True)
            file.extractall(folder, members)
        return total
    if not hasattr(tarfile, "data_filter"):
        raise ValueError(f"archive: {archive.name} needs a newer Python to be unpacked safely. Unpack it by hand.")
    try:
        with _tar(archive, allowed) as file:
            total = _check(archive, map(_of_tar, file), allowed)
            folder.mkdir(parents=True)
            file.extractall(folder, filter="data")
    except BROKEN as error:
        raise ValueError(f"archive: {archive.name} is broken ({error}). Fetch it again.") from error
    return total


def _of_zip(member):
    """Name, bytes when unpacked, and None or what is wrong with the member of a zip archive."""
    if member.flag_bits & 1:
        return member.filename, 0, "a password"
    ordinary = stat.S_IFMT(member.external_attr >> 16) in (0, stat.S_IFREG, stat.S_IFDIR)
    known = member.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
    return member.filename, member.file_size, None if ordinary and known else "unsafe"


def _of_tar(member):
    """The same of a tar archive."""
    member.name = member.name.replace("\\", "/")
    ordinary = member.isdir() or (member.isfile() and not member.issparse())
    return member.name, member.size, None if ordinary else "unsafe"


def _check(archive, members, allowed):
    """The bytes of all `members` (name, bytes, fault) together; ValueError for one that is unsafe, or for too many."""
    seen, total = set(), 0
    for name, size, fault in members:
        if fault == "a password":
            raise ValueError(f"archive: {archive.name} has a password. Unpack it by hand, and give the folder.")
        path = Path(name)
        key = unicodedata.normalize("NFC", path.as_posix()).casefold()
        outside = path.is_absolute() or ".." in path.parts or ":" in "".join(path.parts[:1])
        if fault or outside or key in seen:
            raise ValueError(f"archive: {archive.name} holds {name[:100]!r}, refused as unsafe.")
        seen.add(key)
        total += size
        if total > allowed:
            raise ValueError(f"archive: {archive.name} unpacks to over {allowed:.0f} bytes, refused.")
    return total


@contextmanager
def _tar(path, allowed):
    """An open tar archive, compressed by gzip or not, of which little more than `allowed` bytes are unpacked."""
    with open(path, "rb") as raw:
        compressed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        with gzip.GzipFile(fileobj=raw) if compressed else raw as plain:
            with tarfile.open(fileobj=_Bounded(plain, 2 * allowed + MAX_HEADER), mode="r:") as file:
                yield file


class _Bounded:
    """A file of which no more than `limit` bytes, and at most MAX_HEADER at a time, are read: headers may lie."""

    def __init__(self, file, limit):
        self.file, self.limit, self.tell = file, limit, file.tell

    def read(self, size=-1):
        if not 0 <= size <= MAX_HEADER:
            raise tarfile.ReadError("a header is too large")
        return self.file.read(size)

    def seek(self, position, whence=0):
        if position > self.limit:
            raise tarfile.ReadError("it holds too much")
        return self.file.seek(position, whence)
