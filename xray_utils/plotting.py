"""Every figure of the course; each function returns its matplotlib Figure, which a notebook shows as it is."""

import io
import re
from contextlib import contextmanager
from os.path import commonprefix
from textwrap import fill

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import Image as display_image
from IPython.display import display
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from .data import (
    CLASSES,
    SPLITS,
    _root,
    check_array,
    check_choice,
    check_data,
    check_kind,
    check_number,
    check_size,
    check_split,
    check_table,
    check_whole,
    credit_line,
    outputs_dir,
    read_image,
    resize,
    whole_file,
)
from .evaluation import (
    ORIGINAL,
    PROBABILITIES,
    calibration_error,
    check_dict,
    check_histories,
    check_predictions,
    check_tables,
    compute_metrics,
    reliability,
    seed_table,
    with_interval,
)
from .robust import risk_coverage

CLASS_COLOURS = {
    "covid": "#D55E00",
    "normal": "#5DBB8F",
    "virus": "#004488",
}  # after Okabe & Ito, for colour-blind eyes; each of another lightness, so that they differ in grey print too
CLASS_MARKERS = {"covid": "o", "normal": "s", "virus": "^"}
MODEL_COLOURS = {
    "baseline_cnn": "#C4659A",
    "resnet18_augmented": "#7A4E00",  # before the shorter name
    "resnet18": "#F0B030",
    "vit": "#30002A",
}
OTHER_COLOURS = ("#555555", "#56B4E9", "#7A5CFF")  # what is neither class nor model
STYLE = {
    **{"figure.constrained_layout.use": True, "figure.dpi": 110, "savefig.dpi": 220, "font.size": 12},
    **{
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlesize": 13,
        "axes.titleweight": "bold",
    },
    **{"axes.titlelocation": "left", "legend.frameon": False, "image.cmap": "gray"},
    **{"svg.fonttype": "none", "svg.hashsalt": "xray"},  # text stays text; the same figure, the same file
    "text.parse_math": False,  # a name with $ is no formula
    "text.hinting": "none",  # as wide at every resolution: what is laid out once is cut at none
}


class CourseFigure(Figure):
    """A figure that a page shows at twice its pixels: radiographs as JPEG, charts as PNG of 256 colours.

    Either takes a fraction of the bytes of a plain PNG, and notebooks that are small are shown by GitHub.
    """

    def __init__(self, *arguments, photographs=False, **options):
        super().__init__(*arguments, **options)
        self.photographs, self.saved = photographs, None

    def _ipython_display_(self):
        drawn, file = io.BytesIO(self.saved), io.BytesIO()
        if self.saved is None or self.stale:  # not drawn yet, or changed since
            self.savefig(drawn, format="png", dpi=2 * self.dpi, bbox_inches="tight")
        picture, kind = Image.open(drawn).convert("RGB"), "jpeg" if self.photographs else "png"
        if self.photographs:
            picture.save(file, "JPEG", quality=82)
        else:
            picture.quantize(256, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
        width, height = picture.width // 2, picture.height // 2
        shown = display_image(file.getvalue(), format=kind, width=width, height=height)
        data, metadata = shown._repr_mimebundle_()
        display({**data, "text/plain": self.in_words()}, metadata=metadata, raw=True)

    def in_words(self):
        """Titles and axes in one line: what a reader of the screen hears where a page has no other words for it."""
        words = [self.get_suptitle()]
        for axes in self.axes:
            words += [axes.get_title(place) for place in ("left", "center")] + [axes.get_xlabel(), axes.get_ylabel()]
        if not any(words):  # a diagram
            words = [text.get_text() for axes in self.axes for text in axes.texts]
        return "Figure: " + "; ".join(dict.fromkeys(" ".join(text.split()) for text in words if text.strip()))


@contextmanager
def _figure(rows=1, columns=1, width=9.0, height=3.5, **options):
    """A figure in the style of the course, closed at the end so that a notebook shows it once."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            rows, columns, figsize=(width, height), squeeze=False, FigureClass=CourseFigure, **options
        )
        try:
            yield figure, axes
        finally:
            plt.close(figure)


def save_figure(figure, name):
    """Writes a figure for slides of your own to `outputs/figures`, as name.svg and name.png; returns it to be shown.

    Raises ValueError for anything but a matplotlib Figure, or a name that is no plain file name.
    """
    check_kind("figure", figure, Figure, "matplotlib Figure", "what a plot function returned")
    if not isinstance(name, str) or not re.fullmatch(r"[\w.-]*\w", name):
        raise ValueError(f"name: {name!r} must be a plain file name without ending, such as 'history'.")
    words = figure.in_words() if isinstance(figure, CourseFigure) else name
    about = {"Title": words, "Description": words, "Date": None}
    with plt.rc_context(STYLE):
        figure.draw_without_rendering()
        layout, box = figure.get_layout_engine(), figure.get_tightbbox().padded(0.1)
        figure.set_layout_engine("none")  # it is laid out: once for both files, and for the page
        for ending in ("svg", "png"):
            with whole_file(outputs_dir("figures", f"{name}.{ending}")) as path:
                figure.savefig(path, format=ending, bbox_inches=box, metadata=about)
                figure.saved = path.read_bytes()
        figure.set_layout_engine(layout or "none")
        figure.stale = False
    return figure


def _colour_of(name, i=0):
    """The colour of a model's run, or one by its place for other names."""
    name = "vit" if name == "fine-tuned" else name  # notebook 5 names its runs by recipe
    others = OTHER_COLOURS[i % len(OTHER_COLOURS)]
    return next((colour for model, colour in MODEL_COLOURS.items() if name.startswith(model)), others)


def _ink(colour):
    """Black or white, whichever can be read on a colour."""
    red, green, blue = to_rgb(colour)
    return "black" if 0.3 * red + 0.59 * green + 0.11 * blue > 0.45 else "white"


def _beside(place, values):
    """Places around `place`, always the same ones, so that points of one value do not hide each other."""
    return place + np.random.default_rng(0).uniform(-0.3, 0.3, len(values))


def _label_ends(axis, ends):
    """Names beside the right ends of lines, [(name, x, y, colour)], moved apart where they would overlap."""
    low, high = axis.get_ylim()
    ends, gap, heights = sorted(ends, key=lambda end: end[2]), 0.085 * (high - low), []
    for end in ends:
        heights.append(max(end[2], heights[-1] + gap) if heights else end[2])
    for i in reversed(range(len(ends))):  # those pushed out above come down again
        heights[i] = min(heights[i], heights[i + 1] - gap if i + 1 < len(ends) else max(high, ends[i][2]))
    for (name, x, y, colour), height in zip(ends, heights, strict=True):
        leader = dict(arrowstyle="-", color=colour, lw=1, ls=":", relpos=(0, 0.5), shrinkA=3, patchA=None)
        place = (1.02, (height - low) / (high - low))
        axis.annotate(name, (x, y), place, textcoords="axes fraction", va="center", arrowprops=leader)


def _name_credits(figure, line):
    """Write below the figure whose images it shows, where their licence asks for it."""
    if line:
        figure.supxlabel(line, fontsize=9, color="0.4")


def _show(axes, pixels, title="", **options):
    axes.imshow(pixels, **options)
    axes.set_title(title, fontsize=12, fontweight="normal", loc="center")
    axes.axis("off")


# ---------------------------------------------------------------- data


def _readable(images, *columns, maker="find_images"):
    """The rows without a `problem`. Raises ValueError for a bad table, or when no image of it can be read."""
    check_table("images", images, columns, maker)
    images = images[images.problem.eq("")] if "problem" in images else images
    if images.empty:
        raise ValueError("images: none of them can be read; the column problem says why.")
    return images


def plot_examples(images, per_class=5, seed=0):
    """Random images of each class as they are on disk, a row a class."""
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
                except (OSError, ValueError):  # before an audit there may be such files
                    axis.set_title("cannot be read", fontsize=12, fontweight="normal", loc="center", y=0.5)
            row[0].text(-0.08, 0.5, name, transform=row[0].transAxes, rotation=90, ha="right", va="center",
                        fontsize=13, fontweight="bold")  # fmt: skip
        _name_credits(figure, credit_line(images))
        return figure


def plot_class_balance(images):
    """Images and groups (patients) of each class."""
    check_table("images", images, ["file", "label", "group"], "find_images")
    counts = images.groupby("label").agg(images=("file", "size"), patients=("group", "nunique"))
    counts = counts.reindex(CLASSES, fill_value=0)
    with _figure(width=6, height=3) as (figure, axes):
        positions = np.arange(len(CLASSES))
        for shift, (column, alpha) in zip((-0.2, 0.2), (("images", 1), ("patients", 0.45)), strict=True):
            colours = [CLASS_COLOURS[name] for name in CLASSES]
            bars = axes[0, 0].bar(positions + shift, counts[column], 0.38, color=colours, alpha=alpha)
            axes[0, 0].bar_label(bars, [f"{value:.0f}\n{column}" for value in counts[column]], fontsize=10)
        axes[0, 0].set_xticks(positions, CLASSES)
        largest, share = counts["images"].idxmax(), counts["images"].max() / max(counts["images"].sum(), 1)
        axes[0, 0].set(ylabel="number", title=f"{share:.0%} of the images are {largest}, the largest class")
        axes[0, 0].margins(y=0.2)
        return figure


def plot_sizes(images):
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
            if len(aspect.lines) > len(ends):  # all of one aspect have no curve
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


def plot_colour(images):
    """Colour modes of the files, and the tint (mean blue minus mean red) of each image."""
    import seaborn as sns

    images = _readable(images, "label", "mode", "tint", maker="audit_images")
    modes = pd.crosstab(images.label, images["mode"], normalize="index").reindex(CLASSES)
    with _figure(1, 2, 10, 3.4) as (figure, axes):
        texts = modes.map(lambda share: f"{share:.0%}" if share > 0 else "")
        sns.heatmap(modes, annot=texts, fmt="", cmap="Greys", vmin=0, vmax=1.3, cbar=False, linewidths=1, ax=axes[0, 0])
        axes[0, 0].tick_params(length=0, labelrotation=0)
        common = images["mode"].value_counts(normalize=True)
        title = f"{common.max():.0%} of the files are {common.idxmax()}"
        axes[0, 0].set(xlabel="colour mode (share of the class)", ylabel="", title=title)
        for row, name in enumerate(CLASSES):
            tints = images.tint[images.label.eq(name)]
            axes[0, 1].scatter(tints, _beside(row, tints), s=16, color=CLASS_COLOURS[name], alpha=0.7, linewidths=0)
        axes[0, 1].set_yticks(range(len(CLASSES)), CLASSES)
        axes[0, 1].invert_yaxis()
        axes[0, 1].axvline(0, color="0.7", zorder=0)
        tinted = images.label[images.tint.abs() > 5]  # grey levels
        title = ", ".join(f"{name} {n}" for name, n in tinted.value_counts().items()) or "none"
        axes[0, 1].set(xlabel="mean blue minus mean red (grey levels)", ylabel="", title=f"Tinted images: {title}")
        return figure


def plot_mean_images(images, size=128, at_most=150):
    """Mean image of each class over at most `at_most` images, and its difference from the mean of all."""
    images = _readable(images, "file", "label")
    check_size(size)
    check_whole("at_most", at_most, 1)
    means = {}
    present = [name for name in CLASSES if images.label.eq(name).any()]
    for name in present:
        files = images[images.label.eq(name)].sort_values("file").file
        files = files.iloc[:: max(1, len(files) // at_most)]
        stack = [resize(read_image(_root(images) / file), size).mean(axis=-1) for file in files]
        means[name] = np.mean(stack, axis=0)
    overall = np.mean(list(means.values()), axis=0)
    limit = max(np.abs(mean - overall).max() for mean in means.values())
    with _figure(2, len(present), 2.4 * len(present), 4.6, photographs=True) as (figure, axes):
        for column, name in enumerate(present):
            _show(axes[0, column], means[name], f"mean of {name}", vmin=0, vmax=255)
            shown = axes[1, column].imshow(means[name] - overall, cmap="coolwarm", vmin=-limit, vmax=limit)
            largest = np.abs(means[name] - overall).max()
            title = f"minus mean: up to {largest:.0f}"
            axes[1, column].set_title(title, fontsize=12, fontweight="normal", loc="center")
            axes[1, column].axis("off")
        figure.colorbar(shown, ax=axes[1, :], label="grey levels", shrink=0.8)
        _name_credits(figure, credit_line(images))
        return figure


def plot_images_per_patient(images):
    """How many patients have one image, two, three, ..."""
    check_table("images", images, ["label", "group"], "find_images")
    counts = images.groupby(["label", "group"]).size().rename("images").reset_index()
    table = pd.crosstab(counts["images"], counts.label).reindex(columns=CLASSES, fill_value=0)
    several = (counts["images"] > 1).sum()
    with _figure(len(CLASSES), 1, 8, 3.9, sharex=True, sharey=True) as (figure, axes):
        for axis, name in zip(axes[:, 0], CLASSES, strict=True):
            bars = axis.bar(table.index.astype(str), table[name], 0.6, color=CLASS_COLOURS[name])
            axis.bar_label(bars, [f"{v:.0f}" if v else "" for v in table[name]], fontsize=11)
            axis.set_ylabel(name, rotation=0, ha="right", va="center", fontweight="bold")
            axis.set(yticks=[])
            axis.margins(y=0.35)
        axes[0, 0].set_title(f"{several} of {len(counts)} patients have more than one image")
        axes[-1, 0].set_xlabel("images of one patient (number above: patients)")
        return figure


def plot_preparation(images, data, count=4, seed=0):
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
        raise ValueError(f"images: {other[0]!r} of data is none of them; pass the table that data was made from.")
    with _figure(2, count, 1.95 * count, 4.3, photographs=True) as (figure, axes):
        for column, (index, file) in enumerate(rows.file.items()):
            before = read_image(_root(images) / file)
            mode = images.set_index("file")["mode"][file]
            _show(axes[0, column], before, f"{before.width} x {before.height}, {mode}")
            after = data.train.take([index])[0]
            _show(axes[1, column], after, " x ".join(map(str, after.shape)))
        _name_credits(figure, credit_line(images))
        return figure


def plot_mirroring(data, seed=0):
    """A training image and its mirrored row."""
    check_data(data)
    check_whole("seed", seed)
    rows = data.train.rows
    twins = rows[rows.mirrored & rows.file.isin(rows.file[~rows.mirrored])]
    if twins.empty:
        raise ValueError("data: no training image has its mirrored row in training; split with mirror=True.")
    file = twins.sample(1, random_state=seed).file.iloc[0]
    with _figure(1, 2, 5.5, 3.2, photographs=True) as (figure, axes):
        for axis, mirrored in zip(axes[0], (False, True), strict=True):
            index = rows.index[rows.file.eq(file) & rows.mirrored.eq(mirrored)][:1]
            _show(axis, data.train.take(index)[0], "mirrored" if mirrored else "as it is")
        _name_credits(figure, credit_line(rows))
        return figure


def plot_split(splits):
    """Images per class and side for each named split: `{"slides": table, "grouped": table}`."""
    check_dict("splits", splits, '{"name": table of split_images}')
    for name, split in splits.items():
        check_table(f"splits[{name!r}]", split, ["label", "split"], "split_images")
    with _figure(1, len(splits), 4.6 * len(splits), 3.2, sharey=True) as (figure, axes):
        for axis, (name, split) in zip(axes[0], splits.items(), strict=True):
            table = pd.crosstab(split.split, split.label).reindex(index=SPLITS, columns=CLASSES, fill_value=0)
            bottom = np.zeros(len(table))
            for label in CLASSES:
                bars = axis.bar(SPLITS, table[label], bottom=bottom, color=CLASS_COLOURS[label])
                room = 0.05 * max(len(s) for s in splits.values())  # less is too low for a number
                texts = [f"{v:.0f}" if v > room else "" for v in table[label]]
                texts[0] = f"{label} {table[label].iloc[0]}"
                axis.bar_label(bars, texts, label_type="center", color=_ink(CLASS_COLOURS[label]), fontsize=10)
                bottom += table[label].to_numpy()
            for side, total in enumerate(bottom):
                axis.text(side, total, f"{total:.0f}", ha="center", va="bottom", fontsize=10, fontweight="bold")
            axis.set_title(f"{name}: {bottom[-1]:.0f} to test on")
        axes[0, 0].set_ylabel("images")
        return figure


# ---------------------------------------------------------------- networks


def plot_patches(pixels, patch_size, credit=""):
    """A prepared image [H, W, 3], and the patches of `patch_size` pixels that a ViT reads it as.

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
    cut = np.full((height + 2 * (rows - 1), width + 2 * (columns - 1), 3), 255, np.uint8)
    for r in range(rows):
        for c in range(columns):
            patch = pixels[r * patch_size : (r + 1) * patch_size, c * patch_size : (c + 1) * patch_size]
            top, left = r * (patch_size + 2), c * (patch_size + 2)
            cut[top : top + patch_size, left : left + patch_size] = patch
    with _figure(1, 2, 7.4, 3.9, photographs=True) as (figure, axes):
        _show(axes[0, 0], pixels, f"{height} x {width} pixels")
        _show(axes[0, 1], cut, f"{rows} x {columns} = {rows * columns} patches of {patch_size} x {patch_size}")
        _name_credits(figure, credit)
        return figure


# ---------------------------------------------------------------- results


def plot_history(histories):
    """Loss and accuracy on train (dashed) and val (solid) over the epochs; the best epoch on val is marked.

    histories: the table of one run, or `{"name": table}` for several in one figure, each in the colour of its model.
    """
    histories = histories if isinstance(histories, dict) else {"": histories}
    check_dict("histories", histories, "run.history or {'name': run.history}")
    check_histories("histories", histories, "train_loss", "val_loss", "train_accuracy", "val_accuracy")
    several = len(histories) > 1
    shared = re.search(r"(_.*)?$", commonprefix([name[::-1] for name in histories])[::-1])[0] if several else ""
    with _figure(1, 2, 11 if several else 9.5, 3.9) as (figure, axes):
        ends, kept, tops, lows, peaks = {"loss": [], "accuracy": []}, [], [], [], []
        for i, (name, history) in enumerate(histories.items()):
            colour, last = _colour_of(name, i), history.iloc[-1]
            best = history.loc[history.val_loss.idxmin()]
            kept.append(best)
            for loss in (history.train_loss, history.val_loss):
                lows.append(loss.min())
                highest, next_to_it = loss.max(), loss.drop(loss.idxmax()).max()
                peak = highest > 1.5 * max(next_to_it, np.log(len(CLASSES)))  # the logarithm: what guessing costs
                tops.append(next_to_it if peak else highest)
                peaks += [highest] if peak else []
            for axis, what in zip(axes[0], ends, strict=True):
                line = dict(color=colour, marker="osD^vP"[i % 6], markersize=3)
                axis.plot(history.epoch, history[f"val_{what}"], **line, lw=2)
                axis.plot(history.epoch, history[f"train_{what}"], **line | dict(alpha=0.5, linestyle="--"))
                axis.plot(best.epoch, best[f"val_{what}"], "o", mfc="none", mec="black", markersize=10)
                label = name.removesuffix(shared) or name if several else "validation"
                ends[what].append((label, last.epoch, last[f"val_{what}"], colour))
                if not several:
                    ends[what].append(("training", last.epoch, last[f"train_{what}"], colour))
        kept, loss = pd.DataFrame(kept), "loss" + (f" (a peak of {max(peaks):.1f} is cut)" if peaks else "")
        titles = [f"Lowest validation loss: epoch {best.epoch:.0f} of {history.epoch.max():.0f}"]
        titles.append(f"Right on validation there: {best.val_accuracy:.1%}")
        if several:  # no table here says how far luck reaches
            low, high = kept.min(), kept.max()
            titles = [f"Validation loss at the rings:\n{low.val_loss:.3f} to {high.val_loss:.3f}"]
            titles.append(f"Right on validation there:\n{low.val_accuracy:.1%} to {high.val_accuracy:.1%}")
        for axis, what, title in zip(axes[0], (loss, "accuracy"), titles, strict=True):
            axis.set(xlabel="epoch", ylabel=what, title=title)
            axis.xaxis.get_major_locator().set_params(integer=True)
        room = 0.06 * (max(tops) - min(lows)) or 0.1
        axes[0, 0].set_ylim(max(0, min(lows) - room), max(tops) + room)
        for axis, what in zip(axes[0], ends, strict=True):
            _label_ends(axis, ends[what])
        return figure


def plot_confusion_matrix(predictions, title="Confusion matrix"):
    """True class (rows) against predicted class (columns): number of images and share of the row.

    predictions: the table of one run, or `{"name": table}` for several in one figure, titled by their names.
    """
    import seaborn as sns
    from sklearn.metrics import confusion_matrix

    check_kind("title", title, str, "title", "a string")
    if isinstance(predictions, dict):
        check_tables("predictions", predictions)
    else:
        check_predictions(predictions)
    tables = predictions if isinstance(predictions, dict) else {title: predictions}
    columns = min(4, len(tables))
    rows = -(-len(tables) // columns)
    each = {1: 4.3, 2: 3.1}.get(columns, 2.5)  # inches: small, so that the numbers are large
    words = [fill(name.replace("_", " "), int(7.6 * each), break_long_words=False) for name in tables]
    lines = max(text.count("\n") for text in words)
    with _figure(rows, columns, each * columns, (each + 0.3 + 0.2 * lines) * rows) as (figure, axes):
        for axis in axes.flat[len(tables) :]:
            axis.axis("off")
        for axis, title, table in zip(axes.flat, words, tables.values(), strict=False):
            counts = confusion_matrix(table.label, table.predicted, labels=list(CLASSES))
            shares = counts / counts.sum(axis=1, keepdims=True).clip(min=1)
            texts = [f"{n}\n{share:.0%}" for n, share in zip(counts.ravel(), shares.ravel(), strict=True)]
            sns.heatmap(
                shares, annot=np.array(texts).reshape(counts.shape), fmt="", cmap="Blues", vmin=0, vmax=1, cbar=False,
                square=True, xticklabels=CLASSES, yticklabels=CLASSES, ax=axis, linewidths=1,
            )  # fmt: skip
            right = f"{np.trace(counts)} of {counts.sum()} right"
            axis.set(xlabel="predicted", ylabel="true")
            axis.set_title(f"{title}\n{right}", fontsize=13 if columns < 3 else 11)
            axis.tick_params(length=0)
        return figure


def plot_maps(split, maps, predictions, lungs=None, which="wrong", count=5):
    """Where each network looks: its surest wrong answers, or the surest correct ones of each class.

    A row holds `count` pictures of a network, or of two where there are more than two networks.

    maps, predictions: `{"name": maps [B, H, W]}` of `where_it_looks` and `{"name": table}` of `predict`, of the images
    of `split` in their order; each map is drawn from its lowest to its highest point. lungs: what `lung_fields`
    returned for them, drawn as an outline, dotted where it is not to be trusted. Raises ValueError where these do not
    belong together.
    """
    check_split(split)
    check_dict("maps", maps, "{'name': the maps of where_it_looks}")
    for name, some in maps.items():
        if np.ndim(some) != 3:
            raise ValueError(f"maps[{name!r}]: {np.shape(some)} must be [B, H, W], the maps of where_it_looks.")
    check_tables("predictions", predictions, PROBABILITIES)
    check_choice("which", which, ("wrong", "correct"))
    check_whole("count", count, 1)
    for name, table in predictions.items():
        if name not in maps or len(maps[name]) != len(table) or table.file.tolist() != split.rows.file.tolist():
            raise ValueError(
                f"predictions[{name!r}]: not of the same images as maps and split; make all from one split."
            )
    if lungs is not None and not hasattr(lungs, "masks"):
        raise ValueError(f"lungs: a {type(lungs).__name__} is none; pass what lung_fields returned, or None.")
    if lungs is not None and len(lungs.masks) != len(split):
        raise ValueError(f"lungs: {len(lungs.masks)} masks for {len(split)} images; pass lung_fields of all of them.")
    beside = 2 if len(predictions) > 2 else 1
    rows, columns = -(-len(predictions) // beside), count * beside
    with _figure(rows, columns, 0.4 + 1.5 * columns, 0.3 + 2.05 * rows, photographs=True) as (figure, axes):
        for axis in axes.flat:
            axis.axis("off")
        for row, (name, table) in zip(axes.reshape(-1, count), predictions.items(), strict=False):
            table = table.reset_index(drop=True).assign(sure=table[PROBABILITIES].max(axis=1).to_numpy())
            table = table[table.label.eq(table.predicted) == (which == "correct")]
            table = table.sort_values("sure", ascending=False, kind="stable")
            if which == "correct":  # each class in turn
                table = table.iloc[table.groupby("label").cumcount().argsort(kind="stable")]
            words = fill(name.replace("_", " "), 12)
            row[0].text(-0.06, 0.5, words, transform=row[0].transAxes, rotation=90, ha="right", va="center",
                        fontsize=11, fontweight="bold")  # fmt: skip
            if table.empty:
                row[0].text(0.5, 0.5, f"no {which} answer", transform=row[0].transAxes, ha="center", fontsize=11)
            for axis, (index, one) in zip(row, table.iterrows(), strict=False):
                said = f"{one.predicted} {one.sure:.2f}"
                title = said if which == "correct" else f"{one.label}, called\n{said}"
                _show(axis, split.take([index])[0], title)
                axis.imshow(maps[name][index], cmap="inferno", alpha=0.45)
                if lungs is not None and lungs.masks[index].any():
                    style = "solid" if lungs.trusted[index] else "dotted"
                    axis.contour(lungs.masks[index], [0.5], colors="#56B4E9", linewidths=1, linestyles=style)
        _name_credits(figure, credit_line(split.rows))
        return figure


def plot_comparison(table):
    """Accuracy of each run of `compare` with its 95 % interval, beside what the original reported (diamonds).

    It reported three networks under the protocol slides: no other run has a diamond to stand beside.
    """
    check_table("table", table, ["network", "accuracy", "accuracy 95 %"], "compare")
    with _figure(width=8.5, height=1.3 + 0.44 * len(table)) as (figure, axes):
        axis, lows, highs = axes[0, 0], {}, {}
        reported = {f"{network}_slides": original["accuracy"] for network, original in ORIGINAL.items()}
        for row, (name, run) in enumerate(table.iterrows()):
            low, high = [float(v) for v in re.findall(r"[\d.]+", run["accuracy 95 %"])[1:]] or [run.accuracy] * 2
            colour = _colour_of(name)
            lows[name], highs[name] = low, high
            axis.plot([low, high], [row, row], color=colour, lw=4, solid_capstyle="round", alpha=0.6)
            axis.plot(run.accuracy, row, "o", color=colour, markersize=9)
            if name in reported:
                axis.plot(reported[name], row, "D", mfc="none", mec="black", markersize=8)
            axis.annotate(f"{run.accuracy:.3f}", (run.accuracy, row), (0, 7), textcoords="offset points", ha="center")
        axis.axvline(1 / len(CLASSES), color="0.7", linestyle=":")
        axis.text(1 / len(CLASSES), -0.75, " chance", color="0.4", va="center")
        axis.set_yticks(range(len(table)), table.index)
        axis.set_ylim(len(table) - 0.4, -1)
        best = table.accuracy.idxmax()
        others = table.index.drop(best)
        reach = sum(highs[name] >= lows[best] for name in others)
        title = f"Highest: {best},\nits interval lies above all others"
        if reach or others.empty:
            title = f"The intervals overlap: {reach} of {len(others)} others\nreach the highest one"
        label = "accuracy on the test images" + (" (diamond: the original)" if set(reported) & set(highs) else "")
        axis.set(xlabel=label, title=title if len(others) else f"{best}: {table['accuracy 95 %'].iloc[0]}")
        axis.set_xlim(left=max(0, axis.get_xlim()[0]), right=1.02)
        return figure


def plot_roc(predictions):
    """ROC and precision-recall curve of each class against the other two; areas with their 95 % intervals."""
    from sklearn.metrics import precision_recall_curve, roc_curve

    check_predictions(predictions, needed=PROBABILITIES)
    metrics = compute_metrics(predictions)
    with _figure(1, 2, 10.5, 3.7) as (figure, axes):
        (roc, pr), found, ends = axes[0], [], []
        for name in CLASSES:
            true, score = predictions.label.eq(name), predictions[f"p_{name}"]
            if true.all() or not true.any():
                continue  # without one side there is no curve
            false_positive, true_positive, _ = roc_curve(true, score)
            roc.plot(false_positive, true_positive, color=CLASS_COLOURS[name], lw=2)
            found.append(name)
            precision, recall, _ = precision_recall_curve(true, score)
            pr.plot(recall, precision, color=CLASS_COLOURS[name], lw=2)
            pr.axhline(true.mean(), color=CLASS_COLOURS[name], linestyle=":", lw=1)
            ends.append((name, 1, true.mean(), CLASS_COLOURS[name]))
        order = sorted(found, key=lambda name: metrics[f"auc_{name}"])  # the largest area stands on top
        areas = [(f"{name} {with_interval(metrics, f'auc_{name}')}", 1, 1, CLASS_COLOURS[name]) for name in order]
        roc.plot([0, 1], [0, 1], color="0.7", linestyle=":", zorder=0)
        reach = [metrics[f"auc_{name}_interval"] or (0, 1) for name in order]
        title = "ROC: the intervals\nof the areas overlap" if order[1:] else "ROC"
        if order[1:] and reach[-1][0] > max(high for _, high in reach[:-1]):
            title = f"ROC: {order[-1]}\nis told apart best"
        roc.set(xlabel="false alarms (1 - specificity)", ylabel="found (sensitivity)", title=title, ylim=(-0.03, 1.03))
        _label_ends(roc, areas)
        pr.set(xlabel="found (recall)", ylabel="precision", title="Precision; dotted: guessing", ylim=(0, 1.03))
        _label_ends(pr, ends)
        return figure


def plot_reliability(predictions):
    """Confidence against accuracy in ten bins, for each table of `{"name": table}`, with the images of each bin.

    The area of a dot stands for its images, its bar is the 95 % interval (Wilson 1927).
    """
    from scipy.stats import binomtest

    check_tables("predictions", predictions, PROBABILITIES)
    with _figure(1, len(predictions), 4.4 * len(predictions), 4, sharey=True) as (figure, axes):
        for axis, (name, table) in zip(axes[0], predictions.items(), strict=True):
            bins = reliability(table)
            axis.plot([0.3, 1], [0.3, 1], color="0.7", linestyle=":")
            size = 15 + 300 * bins.images / len(table)
            axis.scatter(bins.confidence, bins.accuracy, s=size, color=OTHER_COLOURS[0], alpha=0.7)
            for bin_, one in bins.iterrows():
                test = binomtest(round(one.accuracy * one.images), int(one.images))
                axis.vlines(one.confidence, *test.proportion_ci(method="wilson"), color=OTHER_COLOURS[0], lw=1.5)
                axis.text((bin_ + 0.5) / 10, -0.1, f"{one.images:.0f}", ha="center", va="center")
            title = f"{fill(name.replace('_', ' '), 30)}\ncalibration error {calibration_error(table):.3f}"
            axis.set(xlim=(0.28, 1.04), ylim=(-0.16, 1.05), xlabel="confidence", title=title)
        figure.supxlabel("bars: 95 % intervals; numbers: images of each bin", fontsize=12)
        axes[0, 0].set_ylabel("accuracy")
        return figure


def plot_answer(answer):
    """What `classify` says of one X-ray: what the network saw, where it looked (if that was asked), how sure it is."""
    if not hasattr(answer, "probabilities"):
        raise ValueError(f"answer: a {type(answer).__name__} is none; pass what classify returned.")
    columns = 2 if answer.where is None else 3
    with _figure(1, columns, 1.6 + 2.5 * columns, 3.4, photographs=True) as (figure, axes):
        _show(axes[0, 0], answer.pixels, "as the network saw it")
        if answer.where is not None:
            _show(axes[0, 1], answer.pixels, "where it looked (bright)")
            axes[0, 1].imshow(answer.where, cmap="magma", vmin=0, vmax=1, alpha=0.5)
        axis, probabilities = axes[0, -1], answer.probabilities
        bars = axis.barh(
            list(probabilities.index), probabilities, color=[CLASS_COLOURS[c] for c in probabilities.index]
        )
        axis.bar_label(bars, [f"{p:.3f}" for p in probabilities], padding=4)
        axis.set(xlim=(0, 1.3), xticks=[0, 0.5, 1], xlabel="probability")
        axis.set_title(f"{answer.run}:\n{probabilities.idxmax()}", fontsize=10.5)
        axis.invert_yaxis()
        figure.supxlabel("\n".join(filter(None, [answer.warning, answer.credit])), fontsize=11, wrap=True)
        return figure


def plot_experiments(table):
    """The score of each experiment of `judge` or `overview` with its interval; a diamond: what innocent data give.

    Of `overview` only the experiments for which that can be said.
    """
    if not isinstance(table, pd.DataFrame) or table.empty or not {"low", "high", "innocent"} <= set(table):
        raise ValueError("table: it lacks low, high or 'innocent', or rows; pass the table made by judge or overview.")
    every = "guilty" in table
    if every:
        table, kind, label = table[table.innocent.notna()], "experiments", "balanced accuracy, or AUC"
    else:
        table = table.assign(guilty=table.low > table.innocent)
        kind, label = "guesses without the lungs", "balanced accuracy of the guess"
    with _figure(width=11 if every else 8.5, height=1 + (0.31 if every else 0.36) * len(table)) as (figure, axes):
        axis = axes[0, 0]
        for row, (_, found) in enumerate(table.iterrows()):
            colour = OTHER_COLOURS[2 if found.guilty else 0]
            axis.plot([found.low, found.high], [row, row], color=colour, lw=4, solid_capstyle="round", alpha=0.6)
            axis.plot(found.iloc[0], row, "o", color=colour, mfc=colour if found.guilty else "white", markersize=9)
            axis.plot(found.innocent, row, "D", mfc="none", mec="black", markersize=8)
            axis.text(1.04, row, f"{found.iloc[0]:.2f}", va="center")
        axis.set_yticks(range(len(table)), table.index)
        axis.set_ylim(len(table) - 0.5, -0.5)
        title = f"{table.guilty.sum()} of {table.innocent.notna().sum()} {kind} are beyond innocent data"
        axis.set(xlabel=f"{label} (diamond: innocent data; filled: beyond)", title=title, xlim=(-0.02, 1.02))
        return figure


def plot_home_and_away(internal, external):
    """Probability of covid by true class, at home and elsewhere: predictions tables of the same network.

    A point an image, a box the middle half of a class, a line its median. Classes that are absent have no column. Each
    source of `external` has a picture of its own. The AUC is that of covid against normal, where both are there.
    """
    check_predictions(internal, "internal", PROBABILITIES)
    check_predictions(external, "external", PROBABILITIES)
    places, tables = ["at home (test images)", "elsewhere"], [internal, external]
    if "source" in external and external.source.nunique() > 1:
        sources, parts = zip(*external.groupby("source"), strict=True)
        short = [str(source).split("/")[0] for source in sources]  # of the owner's name, where that tells them apart
        short = short if len(set(short)) == len(short) else [str(source) for source in sources]
        places, tables = [places[0], f"elsewhere, {short[0]}", *short[1:]], [internal, *parts]
    shown = [[name for name in CLASSES if table.label.eq(name).any()] for table in tables]
    areas = [compute_metrics(table[table.label.isin(["covid", "normal"])])
             if set(names) > {"covid"} and "normal" in names else None
             for table, names in zip(tables, shown, strict=True)]  # fmt: skip
    with _figure(1, len(tables), 10, 4.2, sharey=True, width_ratios=[max(1.2, len(names)) for names in shown]) as (
        figure,
        axes,
    ):
        for axis, place, table, names, area in zip(axes[0], places, tables, shown, areas, strict=True):
            for column, name in enumerate(names):
                shares, colour = table.p_covid[table.label.eq(name)], CLASS_COLOURS[name]
                low, middle, high = shares.quantile([0.25, 0.5, 0.75])
                axis.scatter(_beside(column, shares), shares, s=25, color=colour, alpha=0.55, linewidths=0)
                axis.bar(column, high - low, 0.76, low, color=colour, alpha=0.25, zorder=0)
                axis.hlines(middle, column - 0.38, column + 0.38, color="black", lw=3, zorder=3)
            axis.set_xticks(range(len(names)), [f"{name}\n{table.label.eq(name).sum()} images" for name in names])
            axis.set_ylim(-0.03, 1.03)
            said = f"AUC {with_interval(area, 'auc_covid')}" if area else f"{' and '.join(names)} alone"
            axis.set_title(f"{place}\n{said}", fontsize=12, loc="left")
        axes[0, 0].set_ylabel("probability of covid")
        home, *away = ((area or {}).get("auc_covid_interval") or (0, 1) for area in areas)
        away = [high for (_, high), area in zip(away, areas[1:], strict=True) if area]
        said = (
            "told apart at home, less so elsewhere"
            if away and home[0] > max(away)
            else "the intervals of home and elsewhere overlap"
            if away
            else "elsewhere one of the two alone"
        )
        figure.suptitle(f"Covid and normal: {said}", fontweight="bold", fontsize=15, x=0.01, ha="left")
        return figure


def plot_risk_coverage(tables, doubts, threshold):
    """Error of what is answered against how much is answered: `{"home": predictions, ...}` and the doubts of each.

    The ring marks what `threshold` leaves; see `robust.risk_coverage`.
    """
    check_tables("tables", tables)
    check_dict("doubts", doubts, "{'home': doubts, ...}")
    check_number("threshold", threshold, lambda t: t == t, "a number")
    if set(doubts) != set(tables):
        raise ValueError(f"doubts: {sorted(doubts)} are not the names of the tables, {sorted(tables)}.")
    for name, doubt in doubts.items():
        check_array(f"doubts[{name!r}]", doubt, (len(tables[name]),), "one number an image", lambda x: ~np.isnan(x))
    with _figure(width=9, height=2.4 + 0.2 * len(tables)) as (figure, axes):
        axis, ends, titles = axes[0, 0], [], []
        for i, (name, table) in enumerate(tables.items()):
            curve, colour = risk_coverage(table, doubts[name]), _colour_of(name, 2 * i)
            axis.plot(curve.coverage, curve.risk, color=colour, lw=2, linestyle=("-", "--", "-.", ":")[i % 4])
            ends.append((name, 1, curve.risk.iloc[-1], colour))
            titles.append(f"{name}: {curve.risk.iloc[-1]:.1%} of all {len(table)} wrong")
            kept = (np.asarray(doubts[name]) <= threshold).mean()
            if kept:
                at = curve.iloc[(curve.coverage - kept).abs().argmin()]
                axis.plot(at.coverage, at.risk, "o", color=colour, fillstyle="none", markersize=9)
                titles[-1] += f", {at.risk:.1%} of the {kept:.0%} answered"
        axis.set(xlabel="share of images that are answered", ylabel="error of these answers", title="\n".join(titles))
        axis.set(xlim=(0, 1.02), ylim=(0, None))
        _label_ends(axis, ends)
        return figure


def plot_controls(tables):
    """Share of images called covid against the number of added normal patients: `{"place": table of controls_table}`.

    Solid: normal images, which should not be called covid. Dashed: covid images, which should. Bands: 95 % intervals.
    """
    check_dict("tables", tables, "{'place': the table made by controls_table}")
    for name, table in tables.items():
        check_table(f"tables[{name!r}]", table, ["added", "normal called covid"], "controls_table")
    with _figure(1, len(tables), 5.2 * len(tables), 3.9, sharey=True) as (figure, axes):
        for axis, (name, table) in zip(axes[0], tables.items(), strict=True):
            lines = {"normal called covid": ("normal", "-"), "covid recall": ("covid", "--")}
            for what, (label, style) in lines.items():
                if what in table:
                    axis.plot(table.added, table[what], style, marker="o", color=CLASS_COLOURS[label])
                    axis.fill_between(table.added, table[f"{what} low"], table[f"{what} high"], alpha=0.2,
                                      color=CLASS_COLOURS[label])  # fmt: skip
                    words = "covid called covid" if label == "covid" else what
                    axis.annotate(words, (table.added.iloc[-1], table[what].iloc[-1]), (6, 0),
                                  textcoords="offset points", va="center", fontsize=11)  # fmt: skip
            first, last = table["normal called covid"].iloc[[0, -1]]
            axis.set(ylim=(-0.03, 1.03), xticks=table.added, xlabel="normal patients of other hospitals added")
            axis.set_title(f"{name}:\n{first:.0%} called covid before, {last:.0%} after")
        axes[0, 0].set_ylabel("share called covid")
        return figure


def plot_differences(differences):
    """Differences of accuracy, each a dot with its 95 % interval: `{name: {"mean": .1, "interval": [0, .2]}}`.

    Filled where the interval leaves out zero.
    """
    check_dict("differences", differences, '{"name": {"mean": .1, "interval": [0, .2]}}')
    for name, one in differences.items():
        if not isinstance(one, dict) or not {"mean", "interval"} <= set(one):
            raise ValueError(f"differences[{name!r}]: it must be a dict with the keys mean and interval.")
    with _figure(width=9, height=1.2 + 0.42 * len(differences)) as (figure, axes):
        axis, shown = axes[0, 0], 0
        for row, one in enumerate(differences.values()):
            low, high = one["interval"]
            clear = low > 0 or high < 0
            shown += clear
            axis.plot([low, high], [row, row], color="C0", lw=3, alpha=0.6, solid_capstyle="round")
            axis.plot(one["mean"], row, "o", color="C0", mfc="C0" if clear else "white", markersize=9)
        axis.axvline(0, color="0.4", linestyle=":")
        axis.set_yticks(range(len(differences)), list(differences))
        axis.set_ylim(len(differences) - 0.4, -0.6)
        title = f"{shown} of {len(differences)} differences are shown:\ntheir intervals leave out zero"
        axis.set(xlabel="difference of test accuracy", title=title)
        return figure


def plot_seeds(seeds):
    """Accuracy of each seed as a dot, a bar at the mean, slides beside grouped: the table that `seed_table` takes."""
    check_table("seeds", seeds, ["network", "protocol", "seed", "accuracy"], "results/elsewhere.py")
    networks = list(seeds.network.unique())
    with _figure(width=9, height=0.8 + 0.5 * len(networks)) as (figure, axes):
        axis, named = axes[0, 0], set()
        for i, network in enumerate(networks):
            for offset, protocol, marker in ((-0.15, "slides", "s"), (0.15, "grouped", "o")):
                values = seeds[seeds.network.eq(network) & seeds.protocol.eq(protocol)].accuracy
                if values.empty:
                    continue
                colour, y = _colour_of(network), i + offset + 0.3 * (_beside(0, values))
                axis.plot(values, y, marker, color=colour, mfc=colour if protocol == "grouped" else "white", alpha=0.8)
                if len(values) > 1:
                    axis.vlines(values.mean(), i + offset - 0.12, i + offset + 0.12, color="black", linewidth=2)
                if protocol not in named:  # once is enough
                    axis.annotate(protocol, (values.max(), i + offset), (9, 0), textcoords="offset points", va="center",
                                  fontsize=11)  # fmt: skip
                    named.add(protocol)
        lows = seed_table(seeds).gap.str.extract(r"\[(.+),")[0].dropna().astype(float)
        title = f"Higher under slides, beyond the interval over seeds: {(lows > 0).sum()} of {len(lows)} networks"
        axis.set(yticks=range(len(networks)), xlabel="accuracy on the test images, a dot a seed, a bar their mean")
        axis.set_title(title if len(lows) else "")
        axis.set_yticklabels(networks)
        axis.invert_yaxis()
        return figure
