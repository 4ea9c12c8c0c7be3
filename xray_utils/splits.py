"""Two protocols: leak-free by patient (`grouped`), and that of the original (`slides`)."""

import numpy as np
import pandas as pd

from ._support.checks import _shown, check_choice, check_flag, check_table, check_whole
from .audit import _in_conflict
from .constants import SPLITS


def _check_split(protocol, seed, mirror, fractions=(0.7, 0.15, 0.15)):
    check_choice("protocol", protocol, ("grouped", "slides"))
    check_whole("seed", seed)
    check_flag("mirror", mirror)
    three = isinstance(fractions, tuple | list) and len(fractions) == 3
    if not three or not all(isinstance(f, float | int) and f > 0 for f in fractions) or abs(sum(fractions) - 1) > 1e-9:
        raise ValueError(f"fractions: {_shown(fractions)} must be three positive numbers that add up to 1.")


def split_images(
    images: pd.DataFrame,
    protocol: str = "grouped",
    seed: int = 0,
    mirror: bool = True,
    fractions: tuple = (0.7, 0.15, 0.15),
    keep_conflicts: bool = False,
) -> pd.DataFrame:
    """Add the columns `split` (train, val, test) and `mirrored`; unreadable images are left out.

    protocol "grouped": stratified by class, each group on one side, only training rows mirrored.
    protocol "slides": mirror first, then a plain random split (what the original course project did: most test
    images then have their mirrored copy in training). `mirror=False` leaves all mirrored rows out.
    Images whose duplicates have another label (see `label_conflicts`) are left out, unless `keep_conflicts`.
    The order of the rows does not matter. Raises ValueError for a bad argument, an unknown class, a repeated file
    or no images.
    """
    _check_split(protocol, seed, mirror, fractions)
    check_flag("keep_conflicts", keep_conflicts)
    check_table("images", images, ["file", "label", "group"], "find_images")
    if "problem" in images:
        images = images[images.problem.eq("")]
    if "alike" in images and not keep_conflicts:
        images = images[~_in_conflict(images)]
    if "mirrored" in images:  # split before: start from the images again
        images = images[~images.mirrored].drop(columns=["split", "mirrored"], errors="ignore")
    if images.empty:
        raise ValueError("images: the table is empty; there is nothing to split.")
    if images.file.duplicated().any():
        raise ValueError(f"images: {images.file[images.file.duplicated()].iloc[0]!r} is repeated; one row an image.")
    rows = images.sort_values("file", ignore_index=True).assign(mirrored=False)
    rng = np.random.default_rng(seed)
    if protocol == "slides":
        if mirror:
            rows = pd.concat([rows, rows.assign(mirrored=True)], ignore_index=True)
        train, val = (int(fraction * len(rows)) for fraction in fractions[:2])
        sides = np.repeat(SPLITS, [train, val, len(rows) - train - val])
        rows.loc[rng.permutation(len(rows)), "split"] = sides
    else:
        rows["split"] = _grouped_split(rows, fractions, rng)
        if mirror:
            rows = pd.concat([rows, rows[rows.split.eq("train")].assign(mirrored=True)], ignore_index=True)
    rows.attrs = {**images.attrs, "protocol": protocol, "seed": seed, "mirror": mirror}
    if empty := [side for side in SPLITS if not rows.split.eq(side).any()]:
        print(f"split_images: {' and '.join(empty)} have no image; {rows.group.nunique()} groups are too few.")
    return rows


def _grouped_split(rows, fractions, rng):
    """Assign whole groups, largest first, ties in random order, to the side that lacks most of their classes."""
    counts = pd.crosstab(rows.group, rows.label)
    counts = counts.iloc[rng.permutation(len(counts))]
    counts = counts.loc[counts.sum(axis=1).sort_values(ascending=False, kind="stable").index]
    wanted = np.outer(fractions, counts.sum())  # [3 sides, classes]
    filled = np.zeros_like(wanted)
    side = {}
    for group, row in zip(counts.index, counts.to_numpy(), strict=True):
        lacks_most = ((wanted - filled) / wanted * row).sum(axis=1).argmax()
        side[group] = SPLITS[lacks_most]
        filled[lacks_most] += row
    return rows.group.map(side)


def count_split(split: pd.DataFrame) -> pd.DataFrame:
    """Images per class and side, with totals: the table [classes + all, train, val, test, all]."""
    check_table("split", split, ["label", "split"], "split_images")
    counts = pd.crosstab(split.label, split.split, margins=True, margins_name="all")
    return counts.reindex(columns=[*SPLITS, "all"], fill_value=0)
