"""Images of one size as one memory-mapped array on disk; `load_data` finds, audits, splits and prepares them."""

import hashlib
import json
import os
import threading
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from ._support.checks import check_kind, check_size, check_table
from ._support.decode import _decode
from ._support.files import _crc32, _folder_beside, _in_threads, _writing_to
from ._support.names import check_labels
from ._support.paths import data_dir, default_size, is_sample, outputs_dir
from .audit import audit_images
from .constants import CLASSES, SPLITS
from .images import _root, describe_images, find_images, resize
from .splits import _check_split, split_images

SUMMED = 2 * 10**8  # bytes: the checksum of larger prepared sets is skipped (1,300 images of 224 x 224)
PREPARED_VERSION = 2  # part of the key: raise it when the pixels of a prepared set change
INDEX = ["file", "bytes", "mtime_ns"]  # the columns of index.csv: a file that has other values is decoded again


def check_data(data):
    """Raise ValueError unless `data` is a prepared set."""
    check_kind("data", data, PreparedData, "prepared set", "what prepare or load_data returned")


def check_split(split):
    """Raise ValueError unless `split` is a side of a prepared set, with images."""
    check_kind("split", split, Split, "side of a prepared set", "data.test, say")
    if not len(split):
        raise ValueError("split: there are no images in it; pass a side of a prepared set that has some.")


@dataclass
class Split:
    """One side of a prepared set: `rows` (file, label, group, mirrored, ...) and their pixels."""

    rows: pd.DataFrame
    pixels: np.ndarray  # uint8 [N, size, size, 3], memory-mapped, of all images
    positions: np.ndarray  # int [len(rows)], where each row's pixels are

    def __len__(self):
        return len(self.rows)

    def __repr__(self):
        return f"Split({len(self)} images, {self.pixels.shape[1]} pixels)"

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
        """sha256 over rows and pixels: it does not depend on where the images are stored."""
        rows = self.rows[["file", "label", "mirrored"]].to_csv(index=False, lineterminator="\n")
        digest = hashlib.sha256(rows.encode())
        for start in range(0, len(self), 16):  # small: it fits the processor cache
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
        """The protocol, with the suffix "_sample" for the bundled sample: the end of the names of its runs."""
        return self.settings["protocol"] + ("_sample" if self.is_sample else "")


def prepare(images: pd.DataFrame, size: int = 224) -> PreparedData:
    """Write all images once to disk as uint8 [N, size, size, 3], and return the sides: `.train .val .test`.

    `images` is the table of `split_images`. The array is in `outputs/prepared/<key>/` (the key: `size` and the names,
    sizes and times of the files); later calls read it memory-mapped. If the folder was prepared before, only new or
    changed files are decoded. A JPEG is decoded at 1/2, 1/4 or 1/8 of its size if both sides keep twice `size`. A
    damaged set is made again, with a message. (Above 200 MB the checksum is skipped; `fit` hashes the pixels.)
    Raises ValueError for a missing column, a bad size, or an empty side; OSError for an unreadable file, and for a
    folder that is full or cannot be written to.
    """
    check_size(size)
    check_table("images", images, ["file", "label", "split", "mirrored"], "split_images")
    for name in SPLITS:
        if not images.split.eq(name).any():
            raise ValueError(f"images: no rows with split {name!r}; {images.file.nunique()} images are too few.")
    root, size = _root(images), int(size)
    positions, files = images.file.factorize(sort=True)
    stats = []
    for file in files:
        with _named(file):
            stat = os.stat(f"{root}{os.sep}{file}")  # text is much faster than Path for 100,000 files
        stats.append((file, stat.st_size, stat.st_mtime_ns))
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


def load_data(
    protocol: str = "grouped",
    seed: int = 0,
    mirror: bool = True,
    size: int | None = None,
    labels: dict | None = None,
) -> PreparedData:
    """Find, audit, split and prepare the images of `data_dir()`, and print which images these are.

    size: pixels along a side of a prepared image; None: 112 on the bundled sample, 224 on other images.
    labels: as in `find_images`: `{"Normais": "normal", "Outros": None}`.
    """
    check_labels(labels)
    _check_split(protocol, seed, mirror)  # before the audit, which is slow
    if size is not None:
        check_size(size)
    images = audit_images(find_images(data_dir(), labels=labels))
    size = default_size(images) if size is None else size
    data = prepare(split_images(images, protocol, seed, mirror), size)
    print(describe_images(images))
    sides = ", ".join(f"{side} {len(getattr(data, side))}" for side in SPLITS)
    print(f"{sides} (protocol {protocol}, mirror {mirror}, {size} pixels)")
    return data


@contextmanager
def _named(file):
    """Re-raise the error of an unreadable or missing image as OSError with its name and a remedy."""
    try:
        yield
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OSError(
            f"images: {file!r} cannot be read ({reason}). Run audit_images first: it leaves such files out "
            "(where it does not, remove outputs/audited before)."
        ) from error


def _is_whole(folder):
    """True if length, time and, up to 200 MB, checksum of the array are those in meta.json."""
    try:
        meta, stat = json.loads((folder / "meta.json").read_text()), os.stat(folder / "images.npy")
        if (meta["bytes"], meta["mtime_ns"]) != (stat.st_size, stat.st_mtime_ns):
            return False
        return stat.st_size > SUMMED or meta.get("crc32") in (None, _crc32(folder / "images.npy"))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _prepared_before(root, stats, size, parent):
    """Unchanged files in an earlier prepared set of this folder: `{file: index}`, and its pixels."""
    best, pixels = {}, None
    for meta in parent.glob("*/meta.json"):
        with suppress(OSError, ValueError, KeyError, TypeError):
            known = json.loads(meta.read_text())
            if [known[key] for key in ("version", "root", "size")] != [PREPARED_VERSION, str(root), size]:
                continue
            index = pd.read_csv(meta.with_name("index.csv"), dtype={"file": str}, keep_default_na=False)
            where = {row: i for i, row in enumerate(index[INDEX].itertuples(index=False, name=None))}
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
        pd.DataFrame(stats, columns=INDEX).to_csv(whole / "index.csv", index=False)
        stat = os.stat(whole / "images.npy")
        meta = {"version": PREPARED_VERSION, "root": str(root), "images": len(files), "size": size}
        meta |= {"bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns}
        if stat.st_size <= SUMMED:
            meta["crc32"] = _crc32(whole / "images.npy")
        (whole / "meta.json").write_text(json.dumps(meta))
        try:
            os.replace(whole, folder)
        except OSError:
            if _is_whole(folder):  # another process wrote the same set first
                return
            if not folder.is_dir():
                raise
            for name in ("images.npy", "index.csv", "meta.json"):  # a damaged set: replace its files
                os.replace(whole / name, folder / name)


def _write_pixels(root, files, size, path, known, pixels_before):
    """Decode and resize the files into a .npy array; those in `known`, `{file: index in pixels_before}`, are copied.

    By plain writes: on a full disk a write raises an error, but a memory map kills the process.
    """
    with open(path, "wb") as array:
        header = dict(descr="|u1", fortran_order=False, shape=(len(files), size, size, 3))
        np.lib.format.write_array_header_1_0(array, header)
        start, lock = array.tell(), threading.Lock()

        def write_one(i):
            if files[i] in known:
                pixels = pixels_before[known[files[i]]]
            else:
                with _named(files[i]):
                    pixels = resize(_decode(root / files[i], 2 * size)[0], size)
            with lock:
                array.seek(start + i * pixels.nbytes)
                array.write(pixels)

        _in_threads(write_one, range(len(files)), "prepare")
        array.flush()
        os.fsync(array.fileno())
    earlier = os.stat(path).st_mtime_ns - 10**10  # ten seconds: a later write is visible on a coarse clock
    with suppress(OSError):
        os.utime(path, ns=(earlier, earlier))
