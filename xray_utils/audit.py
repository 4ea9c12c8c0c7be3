"""Describe the files, and find those that are broken or appear twice."""

import hashlib
import os

import numpy as np
import pandas as pd
import scipy

from ._support.checks import check_number, check_table
from ._support.decode import _decode
from ._support.files import _in_threads, _sha256, whole_file
from ._support.paths import outputs_dir
from .images import _root, resize

AUDIT_VERSION = 1  # part of the key: raise it when the result of `_audit_one` changes
MARK = ["path", "bytes", "mtime_ns", "ctime_ns"]  # the index of the cache: a file with another mark is read again
DRAFT = 448  # pixels: a JPEG is audited at 1/2, 1/4 or 1/8 of its size if both sides keep this many


def _audit_one(path):
    """The audit of one file, and its thumbnail: float32 [32 * 32], high-pass filtered, of length 1."""
    row = dict(width=0, height=0, mode="", tint=0.0, sha256="", problem="")
    try:
        image, mode, (width, height) = _decode(path, DRAFT)
        digest = _sha256(path)
    except (OSError, ValueError, MemoryError) as error:
        message = str(error).removeprefix(f"{path.name}: ").strip()
        reason = getattr(error, "strerror", None) or message or type(error).__name__
        return {**row, "problem": reason[:200]}, np.zeros(32 * 32, np.float32)
    row.update(width=width, height=height, mode=mode, sha256=digest)
    small = resize(image, 32).astype(np.float32)
    row["tint"] = float((small[..., 2] - small[..., 0]).mean())
    thumbnail = small.mean(axis=-1)
    thumbnail = (thumbnail - scipy.ndimage.gaussian_filter(thumbnail, 2)).ravel()
    return row, thumbnail / max(np.linalg.norm(thumbnail), 1e-6)


def _audited(root, files):
    """The results of `_audit_one` for `files`: a table, and thumbnails [N, 32 * 32].

    The results of readable files are cached in `outputs/audited/<key of root>.npz` until the size, time or (except on
    Windows) permissions of the file change.
    """
    key = hashlib.sha256(f"{AUDIT_VERSION} {os.path.abspath(root)}".encode()).hexdigest()[:16]
    path, marks = outputs_dir("audited", f"{key}.npz"), []
    for file in files:
        try:
            stat = os.stat(f"{root}{os.sep}{file}")
            marks.append((file, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns))
        except (OSError, ValueError):  # `_audit_one` gives the reason
            marks.append((file, -1, -1, -1))
    marks = pd.MultiIndex.from_tuples(marks, names=MARK)
    table, thumbnails = _audited_before(path)
    new = marks.unique().difference(table.index, sort=False)
    if found := _in_threads(_audit_one, [root / file for file, *_ in new], "audit"):
        rows = pd.DataFrame([row for row, _ in found], new)
        table = pd.concat([table, rows]) if len(table) else rows
        thumbnails = np.vstack([thumbnails, *(thumbnail for _, thumbnail in found)])
        del found  # frees 0.4 GB for 100,000 images
        current = ~table.index.get_level_values("path").duplicated(keep="last")
        keep = table.problem.eq("").to_numpy() & current
        if keep[-len(new) :].any():
            columns = {name: np.array(column.tolist()) for name, column in table[keep].reset_index().items()}
            try:
                with whole_file(path) as part, open(part, "wb") as archive:
                    np.savez(archive, thumbnails=thumbnails if keep.all() else thumbnails[keep], **columns)
            except OSError as error:
                print(f"audit: the results could not be cached. {error}")
    order = table.index.get_indexer(marks)
    if not np.array_equal(order, np.arange(len(table))):  # otherwise no copy is needed
        table, thumbnails = table.iloc[order], thumbnails[order]
    return table.reset_index(drop=True), thumbnails


def _audited_before(path):
    """Cached table, by mark, and thumbnails; empty, with a message, if the cache is broken."""
    if os.path.isfile(path):
        try:
            with np.load(path) as kept:
                columns = {name: kept[name] for name in kept.files}
            thumbnails = columns.pop("thumbnails")
            table = pd.DataFrame({name: column.tolist() for name, column in columns.items()})
            return table.set_index(MARK), thumbnails
        except Exception as error:  # a broken file may raise anything
            print(f"audit: {path} is broken ({type(error).__name__}); all files are read again.")
    return pd.DataFrame(columns=MARK).set_index(MARK), np.zeros((0, 32 * 32), np.float32)


def audit_images(images: pd.DataFrame, near: float = 0.95) -> pd.DataFrame:
    """Add `width, height, mode, tint, sha256, problem, duplicate, alike` and join duplicates into one `group`.

    `tint` is mean blue minus mean red (grey levels, 0 for grey). `duplicate` is "exact" (same bytes), "near" or
    "mirror" (the thumbnail, or its mirror image, correlates by at least `near` with an earlier one), else "". `alike`
    is one name for all images that are duplicates of each other; if their labels differ, at least one is wrong: see
    `label_conflicts`. An unreadable file keeps its row, with the reason in `problem`. `split_images` leaves out both;
    their number is printed. The results are cached in `outputs/audited/`.

    Raises ValueError when more than a tenth of a class cannot be read.
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
    if (conflicts := _in_conflict(audited)).any():
        first = label_conflicts(audited).iloc[0]
        print(
            f"Left out of every split: {conflicts.sum()} images whose duplicates have another label (see "
            f"label_conflicts); the first is {first.file!r} ({first.label}), like {first.other_file!r} "
            f"({first.other_label})."
        )
    return audited


def _in_conflict(images):
    """True for each image that has a duplicate of any kind with another label."""
    return images.groupby("alike").label.transform("nunique").gt(1)


def label_conflicts(images: pd.DataFrame) -> pd.DataFrame:
    """Pairs of duplicates with different labels: `file, label, other_file, other_label, kind`; may be empty.

    images: the table of `audit_images`. At least one label of a pair is wrong. Each image in conflict is in a pair.
    `kind` is "exact", or "near" or "mirror" as in the column `duplicate` of the later image.
    """
    check_table("images", images, ["file", "label", "alike", "duplicate", "sha256"], "audit_images")
    pairs = {}
    for _, alike in images[_in_conflict(images)].groupby("alike"):
        firsts = alike.drop_duplicates("label")
        for i, row in alike.iterrows():
            j = firsts.index[firsts.label.ne(row.label)][0]
            one, other = images.loc[min(i, j)], images.loc[max(i, j)]
            kind = "exact" if one.sha256 == other.sha256 else other.duplicate.replace("exact", "near") or "near"
            pairs[min(i, j), max(i, j)] = (one.file, one.label, other.file, other.label, kind)
    return pd.DataFrame(list(pairs.values()), columns=["file", "label", "other_file", "other_label", "kind"])


def _join_duplicates(images, thumbnails, near, tile=2048):
    """Kind of duplicate, and the joined names of duplicates and of groups (the smallest name is used).

    A thumbnail is the sum of an even and an odd part, and its mirror image their difference. So two matrix products
    give the correlations with another thumbnail and with its mirror image.
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
    for name, found in pairs.items():  # exact before near before mirror
        for later, _ in found:
            kind[later] = name
    left, right = (np.concatenate(ends) for ends in zip(*sum(pairs.values(), []), strict=True))
    itself, group, joined = np.arange(len(images)), images.group.factorize()[0], []
    for unit, names in ((itself, images.file), (group, images.group)):
        n = unit.max() + 1
        links = scipy.sparse.coo_array((np.ones(len(left)), (unit[left], unit[right])), (n, n))
        component = scipy.sparse.csgraph.connected_components(links, directed=False)[1][unit]
        codes, sorted_names = names.factorize(sort=True)  # a minimum of numbers is fast in pandas
        joined.append(sorted_names.take(pd.Series(codes).groupby(component).transform("min")))
    return kind, *joined
