"""The style of the course's figures, and helpers for drawing and saving them."""

import io
import re
from contextlib import contextmanager

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Image as display_image
from IPython.display import display
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from .checks import check_kind
from .files import whole_file
from .paths import outputs_dir

# After Okabe & Ito, for colour-blind readers; their lightness differs, so that they differ in grey print, too
CLASS_COLOURS = {"covid": "#D55E00", "normal": "#5DBB8F", "virus": "#004488"}
CLASS_MARKERS = {"covid": "o", "normal": "s", "virus": "^"}
MODEL_COLOURS = {
    "baseline_cnn": "#C4659A",
    "resnet18_augmented": "#7A4E00",  # before "resnet18", with which it begins
    "resnet18": "#F0B030",
    "vit": "#30002A",
}
OTHER_COLOURS = ("#555555", "#56B4E9", "#7A5CFF", "#00CCCC")  # for anything that is neither class nor model
STYLE = {
    **{"figure.constrained_layout.use": True, "figure.dpi": 110, "savefig.dpi": 220, "font.size": 12},
    **{"axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 13, "axes.titleweight": "bold"},
    **{"axes.titlelocation": "left", "legend.frameon": False, "image.cmap": "gray"},
    **{"svg.fonttype": "none", "svg.hashsalt": "xray"},  # text stays text; the same figure, the same file
    "text.parse_math": False,  # a name with $ is no formula
    "text.hinting": "none",  # text is as wide at every resolution: a layout fits all
}


class CourseFigure(Figure):
    """A figure that a page shows at twice its pixels: radiographs as JPEG, charts as PNG of 256 colours.

    Both are much smaller than a plain PNG: GitHub shows small notebooks only.
    """

    def __init__(self, *arguments, photographs=False, **options):
        super().__init__(*arguments, **options)
        self.photographs, self.saved = photographs, None

    def _ipython_display_(self):
        drawn, file = io.BytesIO(self.saved), io.BytesIO()
        if self.saved is None or self.stale:  # not drawn yet, or changed since
            self.savefig(drawn, format="png", dpi=2 * self.dpi, bbox_inches="tight")
        image, kind, options = Image.open(drawn).convert("RGB"), "jpeg", {"quality": 82}
        if not self.photographs:
            image, kind, options = image.quantize(256, dither=Image.Dither.NONE), "png", {"optimize": True}
        image.save(file, kind, **options)
        shown = display_image(file.getvalue(), format=kind, width=image.width // 2, height=image.height // 2)
        data, metadata = shown._repr_mimebundle_()
        display({**data, "text/plain": self.in_words()}, metadata=metadata, raw=True)

    def in_words(self):
        """Titles and axes in one line: the default alt text for screen readers."""
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
        options |= dict(figsize=(width, height), squeeze=False, FigureClass=CourseFigure)
        figure, axes = plt.subplots(rows, columns, **options)
        try:
            yield figure, axes
        finally:
            plt.close(figure)


def save_figure(figure: Figure, name: str) -> Figure:
    """Write a figure for slides of your own to `outputs/figures`, as name.svg and name.png; returns it to be shown.

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
        figure.set_layout_engine("none")  # the layout is computed once, for both files and the page
        for ending in ("svg", "png"):
            with whole_file(outputs_dir("figures", f"{name}.{ending}")) as path:
                figure.savefig(path, format=ending, bbox_inches=box, metadata=about)
                figure.saved = path.read_bytes()
        figure.set_layout_engine(layout or "none")
        figure.stale = False
    return figure


def _colour_of(name, i=0):
    """The colour of a run by the model in its name; for another name one by its position `i`."""
    name = "vit" if name == "fine-tuned" else name  # notebook 5 names its runs by configuration
    others = OTHER_COLOURS[i % len(OTHER_COLOURS)]
    return next((colour for model, colour in MODEL_COLOURS.items() if name.startswith(model)), others)


def _ink(colour):
    """Black or white, whichever can be read on a colour."""
    red, green, blue = to_rgb(colour)
    return "black" if 0.3 * red + 0.59 * green + 0.11 * blue > 0.45 else "white"


def _beside(place, values):
    """Fixed jitter around `place`, so that equal points do not hide each other."""
    return place + np.random.default_rng(0).uniform(-0.3, 0.3, len(values))


def _label_ends(axis, ends):
    """Names beside the right ends of lines, [(name, x, y, colour)], moved apart if they overlap."""
    low, high = axis.get_ylim()
    ends, gap, heights = sorted(ends, key=lambda end: end[2]), 0.085 * (high - low), []
    for end in ends:
        heights.append(max(end[2], heights[-1] + gap) if heights else end[2])
    for i in reversed(range(len(ends))):  # those pushed out above come down again
        heights[i] = min(heights[i], heights[i + 1] - gap if i + 1 < len(ends) else max(high - gap / 2, ends[i][2]))
    for (name, x, y, colour), height in zip(ends, heights, strict=True):
        leader = dict(arrowstyle="-", color=colour, lw=1, ls=":", relpos=(0, 0.5), shrinkA=3, patchA=None)
        place = (1.02, (height - low) / (high - low))
        axis.annotate(name, (x, y), place, textcoords="axes fraction", va="center", arrowprops=leader)


def _name_credits(figure, line):
    """Write the required credits below the figure."""
    if line:
        figure.supxlabel(line, fontsize=9, color="0.4")


def _show(axes, pixels, title="", **options):
    axes.imshow(pixels, **options)
    axes.set_title(title, fontsize=12, fontweight="normal", loc="center")
    axes.axis("off")
