"""Figures of notebooks 1 and 2 (and the patches of 5): the images, their files, the split."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ._support.checks import check_dict, check_kind, check_size, check_table, check_whole
from ._support.style import CLASS_COLOURS, CLASS_MARKERS, _beside, _figure, _ink, _label_ends, _name_credits, _show
from .constants import CLASSES, SPLITS
from .images import _root, credit_line, read_image, resize
from .prepared import PreparedData, check_data


def _readable(images, *columns, maker="find_images"):
    """The rows without a `problem`. Raises ValueError for a bad table, or when no image of it can be read."""
    check_table("images", images, columns, maker)
    images = images[images.problem.eq("")] if "problem" in images else images
    if images.empty:
        raise ValueError("images: none of them can be read; the column problem says why.")
    return images


def plot_examples(images: pd.DataFrame, per_class: int = 5, seed: int = 0) -> Figure:
    """Random images of each class as they are on disk, one row a class."""
    images = _readable(images, "file", "label")
    check_whole("per_class", per_class, 1)
    check_whole("seed", seed)
    with _figure(len(CLASSES), per_class, 1.5 * per_class, 4.9, photographs=True) as (figure, axes):
        for row, name in zip(axes, CLASSES, strict=True):
            some = images[images.label.eq(name)]
            some = some.sample(min(per_class, len(some)), random_state=seed)
            for axis in row:
                axis.axis("off")
            for axis, file in zip(row, some.file, strict=False):
                try:
                    image = read_image(_root(images) / file)
                    _show(axis, image, f"{image.width} x {image.height}")
                except (OSError, ValueError):  # possible before an audit
                    axis.set_title("cannot be read", fontsize=12, fontweight="normal", loc="center", y=0.5)
            row[0].text(-0.08, 0.5, name, transform=row[0].transAxes, rotation=90, ha="right", va="center",
                        fontsize=13, fontweight="bold")  # fmt: skip
        _name_credits(figure, credit_line(images))
        return figure


def plot_class_balance(images: pd.DataFrame) -> Figure:
    """Images and groups (patients) of each class."""
    check_table("images", images, ["file", "label", "group"], "find_images")
    counts = images.groupby("label").agg(images=("file", "size"), patients=("group", "nunique"))
    counts = counts.reindex(CLASSES, fill_value=0)
    colours, positions = [CLASS_COLOURS[name] for name in CLASSES], np.arange(len(CLASSES))
    with _figure(width=6, height=3) as (figure, axes):
        axis = axes[0, 0]
        for column, shift, alpha in (("images", -0.2, 1), ("patients", 0.2, 0.45)):
            bars = axis.bar(positions + shift, counts[column], 0.38, color=colours, alpha=alpha)
            axis.bar_label(bars, [f"{value}\n{column}" for value in counts[column]], fontsize=10)
        axis.set_xticks(positions, CLASSES)
        largest, share = counts["images"].idxmax(), counts["images"].max() / len(images)
        axis.set(ylabel="number", title=f"{share:.0%} of the images are {largest}, the largest class")
        axis.margins(y=0.2)
        return figure


def plot_sizes(images: pd.DataFrame) -> Figure:
    """Width against height, and the aspect, of each class."""
    import seaborn as sns

    images = _readable(images, "label", "width", "height", maker="audit_images")
    with _figure(1, 2, 10.5, 3.9) as (figure, axes):
        scatter, aspect = axes[0]
        middles, ends = [], []
        for name in CLASSES:
            some, colour = images[images.label.eq(name)], CLASS_COLOURS[name]
            if some.empty:
                continue
            scatter.scatter(some.width, some.height, s=18, alpha=0.7, color=colour, marker=CLASS_MARKERS[name])
            middle = some.width.median(), some.height.median()
            scatter.plot(*middle, CLASS_MARKERS[name], color=colour, mec="white", mew=1.5, markersize=11)
            middles.append((name, *middle, colour))
            sns.kdeplot(x=some.width / some.height, color=colour, lw=2.5, ax=aspect, cut=0, warn_singular=False)
            if len(aspect.lines) > len(ends):  # no curve if all have one aspect
                ends.append((name, *aspect.lines[-1].get_xydata()[-1], colour))
        titles = []
        for values, digits in ((images.height, 0), (images.width / images.height, 2)):
            medians = values.groupby(images.label).median()
            low, high = medians.idxmin(), medians.idxmax()
            titles.append(f"median {medians[low]:.{digits}f} ({low}) to {medians[high]:.{digits}f} ({high})")
        scatter.set(xlabel="width in pixels", ylabel="height in pixels (large: median)", title=f"Height: {titles[0]}")
        aspect.set(xlabel="width / height (1 = square)", ylabel="density", title=f"Aspect: {titles[1]}")
        aspect.set_ylim(bottom=0)
        _label_ends(scatter, middles)
        _label_ends(aspect, ends)
        return figure


def plot_colour(images: pd.DataFrame) -> Figure:
    """Colour modes of the files, and the tint (mean blue minus mean red) of each image."""
    import seaborn as sns

    images = _readable(images, "label", "mode", "tint", maker="audit_images")
    modes = pd.crosstab(images.label, images["mode"], normalize="index").reindex(CLASSES)
    texts = modes.map(lambda share: f"{share:.0%}" if share > 0 else "")
    common = images["mode"].value_counts(normalize=True)
    tinted = images.label[images.tint.abs() > 5].value_counts()  # grey levels
    with _figure(1, 2, 10, 3.4) as (figure, axes):
        left, right = axes[0]
        sns.heatmap(modes, annot=texts, fmt="", cmap="Greys", vmin=0, vmax=1.3, cbar=False, linewidths=1, ax=left)
        left.tick_params(length=0, labelrotation=0)
        title = f"{common.max():.0%} of the files are {common.idxmax()}"
        left.set(xlabel="colour mode (share of the class)", ylabel="", title=title)
        for row, name in enumerate(CLASSES):
            tints = images.tint[images.label.eq(name)]
            right.scatter(tints, _beside(row, tints), s=16, color=CLASS_COLOURS[name], alpha=0.7, linewidths=0)
        right.set_yticks(range(len(CLASSES)), CLASSES)
        right.invert_yaxis()
        right.axvline(0, color="0.7", zorder=0)
        title = ", ".join(f"{name} {n}" for name, n in tinted.items()) or "none"
        right.set(xlabel="mean blue minus mean red (grey levels)", title=f"Tinted images: {title}")
        return figure


def plot_mean_images(images: pd.DataFrame, size: int = 128, at_most: int = 150) -> Figure:
    """Mean image of each class over at most `at_most` images, and its difference from the mean of all."""
    images = _readable(images, "file", "label")
    check_size(size)
    check_whole("at_most", at_most, 1)
    means = {}
    for name, files in images.sort_values("file").groupby("label").file:
        files = files.iloc[:: max(1, len(files) // at_most)]
        stack = [resize(read_image(_root(images) / file), size).mean(axis=-1) for file in files]
        means[name] = np.mean(stack, axis=0)
    differences = np.array(list(means.values())) - np.mean(list(means.values()), axis=0)
    limit = np.abs(differences).max()
    with _figure(2, len(means), 2.4 * len(means), 4.6, photographs=True) as (figure, axes):
        for (above, below), (name, mean), difference in zip(axes.T, means.items(), differences, strict=True):
            _show(above, mean, f"mean of {name}", vmin=0, vmax=255)
            title = f"minus mean: up to {np.abs(difference).max():.0f}"
            _show(below, difference, title, cmap="coolwarm", vmin=-limit, vmax=limit)
        figure.colorbar(below.images[0], ax=axes[1, :], label="grey levels", shrink=0.8)
        _name_credits(figure, credit_line(images))
        return figure


def plot_images_per_patient(images: pd.DataFrame) -> Figure:
    """How many patients have one image, two, three, ..."""
    check_table("images", images, ["label", "group"], "find_images")
    counts = images.groupby(["label", "group"], as_index=False).size()
    table = pd.crosstab(counts["size"], counts.label).reindex(columns=CLASSES, fill_value=0)
    several = (counts["size"] > 1).sum()
    with _figure(len(CLASSES), 1, 8, 3.9, sharex=True, sharey=True) as (figure, axes):
        for axis, name in zip(axes[:, 0], CLASSES, strict=True):
            bars = axis.bar(table.index.astype(str), table[name], 0.6, color=CLASS_COLOURS[name])
            axis.bar_label(bars, [str(n) if n else "" for n in table[name]], fontsize=11)
            axis.set_ylabel(name, rotation=0, ha="right", va="center", fontweight="bold")
            axis.set_yticks([])
            axis.margins(y=0.35)
        axes[0, 0].set_title(f"{several} of {len(counts)} patients have more than one image")
        axes[-1, 0].set_xlabel("images of one patient (number above: patients)")
        return figure


def plot_preparation(images: pd.DataFrame, data: PreparedData, count: int = 4, seed: int = 0) -> Figure:
    """Images as they are on disk above the same images as prepared: size x size, three channels.

    Raises ValueError when `data` was made from other images than `images`.
    """
    check_table("images", images, ["file", "mode"], "audit_images")
    check_data(data)
    check_whole("count", count, 1)
    check_whole("seed", seed)
    rows = data.train.rows[~data.train.rows.mirrored]
    rows = rows.sample(min(count, len(rows)), random_state=seed)
    if other := sorted(set(rows.file) - set(images.file)):
        raise ValueError(f"images: {other[0]!r} of data is not in it; pass the table that data was made from.")
    modes = images.set_index("file")["mode"]
    with _figure(2, count, 1.95 * count, 4.3, photographs=True) as (figure, axes):
        for (above, below), (index, file) in zip(axes.T, rows.file.items(), strict=False):
            before, after = read_image(_root(images) / file), data.train.take([index])[0]
            _show(above, before, f"{before.width} x {before.height}, {modes[file]}")
            _show(below, after, " x ".join(map(str, after.shape)))
        _name_credits(figure, credit_line(images))
        return figure


def plot_mirroring(data: PreparedData, seed: int = 0) -> Figure:
    """A training image and its mirrored row."""
    check_data(data)
    check_whole("seed", seed)
    rows = data.train.rows
    mirrored_copies = rows[rows.mirrored & rows.file.isin(rows.file[~rows.mirrored])]
    if mirrored_copies.empty:
        raise ValueError("data: no training image has a mirrored row; split with mirror=True.")
    file = mirrored_copies.sample(1, random_state=seed).file.iloc[0]
    with _figure(1, 2, 5.5, 3.2, photographs=True) as (figure, axes):
        for axis, mirrored in zip(axes[0], (False, True), strict=True):
            index = rows.index[rows.file.eq(file) & rows.mirrored.eq(mirrored)][:1]
            _show(axis, data.train.take(index)[0], "mirrored" if mirrored else "as it is")
        _name_credits(figure, credit_line(rows))
        return figure


def plot_split(splits: dict) -> Figure:
    """Images per class and side for each named split: `{"slides": table, "grouped": table}`."""
    check_dict("splits", splits, '{"name": table of split_images}')
    for name, split in splits.items():
        check_table(f"splits[{name!r}]", split, ["label", "split"], "split_images")
    room = 0.05 * max(map(len, splits.values()))  # in a lower bar: its numbers stand above it
    with _figure(1, len(splits), 4.6 * len(splits), 3.2, sharey=True) as (figure, axes):
        for axis, (name, split) in zip(axes[0], splits.items(), strict=True):
            table = pd.crosstab(split.split, split.label).reindex(index=SPLITS, columns=CLASSES, fill_value=0)
            bottom = np.zeros(len(SPLITS), int)
            inside = table.min(axis=1) > room
            inside[SPLITS[0]] = True
            for label, counts in table.items():
                bars = axis.bar(SPLITS, counts, bottom=bottom, color=CLASS_COLOURS[label])
                texts = [f"{label} {n}" if inside[side] else "" for side, n in counts.items()]
                axis.bar_label(bars, texts, label_type="center", color=_ink(CLASS_COLOURS[label]), fontsize=10)
                bottom += counts.to_numpy()
            for x, side in enumerate(SPLITS):
                place, of, style = (x, bottom[x]), "data", dict(ha="center", va="bottom", fontsize=10)
                if not inside[side]:
                    names = "\n".join(f"{label} {table[label][side]}" for label in reversed(CLASSES))
                    place, of = (0.5, 1), axis.text(*place, names, **style)
                axis.annotate(str(bottom[x]), place, xycoords=of, **style, fontweight="bold")
            axis.set_title(f"{name}: {bottom[-1]} to test on")
            axis.margins(y=0.1)
        axes[0, 0].set_ylabel("images")
        return figure


def plot_patches(pixels: np.ndarray, patch_size: int, credit: str = "") -> Figure:
    """A prepared image [H, W, 3], and the patches of `patch_size` pixels that a ViT divides it into.

    Raises ValueError for anything but uint8 pixels, and when the image cannot be cut into whole patches.
    """
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        what = f"{pixels.dtype} {pixels.shape}" if isinstance(pixels, np.ndarray) else type(pixels).__name__
        raise ValueError(f"pixels: {what} must be uint8 [H, W, 3], such as data.train.take([0])[0].")
    check_whole("patch_size", patch_size, 1)
    check_kind("credit", credit, str, "text", "whose image it is, or ''")
    height, width = pixels.shape[:2]
    if height % patch_size or width % patch_size:
        raise ValueError(f"patch_size: {patch_size} does not divide {height}x{width} pixels.")
    rows, columns = height // patch_size, width // patch_size
    cut = pixels.reshape(rows, patch_size, columns, patch_size, 3)
    cut = np.pad(cut, [(0, 0), (0, 2), (0, 0), (0, 2), (0, 0)], constant_values=255)  # white lines of two pixels
    cut = cut.reshape(rows * (patch_size + 2), columns * (patch_size + 2), 3)[:-2, :-2]
    with _figure(1, 2, 7.4, 3.9, photographs=True) as (figure, axes):
        _show(axes[0, 0], pixels, f"{height} x {width} pixels")
        _show(axes[0, 1], cut, f"{rows} x {columns} = {rows * columns} patches of {patch_size} x {patch_size}")
        _name_credits(figure, credit)
        return figure
