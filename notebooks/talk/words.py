"""The texts of the talk in one language: strings.csv, a row a text, a column a language."""

import csv
import re
from pathlib import Path

from matplotlib.text import Text

TABLE = Path(__file__).with_name("strings.csv")
NUMBER = r"(?<=\d)[.,](?=\d)"
# What stands for a placeholder in a text of a figure; for another name, any text
PLACEHOLDERS = {"number": r"[-+]?[\d.,]+", "label": "covid|normal|virus", "mode": r"[A-Z;\d]+"}


def languages() -> list:
    """The columns of strings.csv."""
    with TABLE.open(encoding="utf-8", newline="") as file:
        return next(csv.reader(file))[1:]


class Words:
    """The texts of one language. A text that the table lacks is a KeyError that names it."""

    def __init__(self, language: str):
        with TABLE.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        self.language, self.names = language, {}
        self.strings = {row["key"]: row[language] for row in rows}
        self.patterns = [(_pattern(row["en"]), row["key"]) for row in rows if row["key"].startswith("figure.")]

    def __call__(self, key: str, **values) -> str:
        """The text of a key, its placeholders filled in, its numbers in the manner of the language."""
        if not self.strings.get(key):
            raise KeyError(f"{TABLE.name}: the text {key!r} is missing in the column {self.language!r}; add it.")
        values = {name: str(value) for name, value in values.items()}  # a name or a licence may hold a number, too
        values = {n: v if re.search(r"[^\W\d_]", v) else self.number(v) for n, v in values.items()}
        text = self.strings[key].format(**values)
        return re.sub(r"(?<=\d) (?=\[)|(?<=\d,) (?=\d)", "\u00a0", text)  # no line break within an interval

    def number(self, text: str) -> str:
        """Decimal points and thousands separators of the numbers in a text."""
        marks = {".": self("decimal"), ",": self("thousands")}
        return re.sub(NUMBER, lambda mark: marks[mark[0]], text)

    def of_figure(self, text: str) -> str:
        """A text that a figure of the package writes, line by line: numbers, a name of `names`, or a row figure.*"""
        return "\n".join(self._line(line) for line in text.split("\n"))

    def _line(self, line):
        if line.strip() in self.names:
            return self.names[line.strip()]
        if not re.search(r"[^\W\d_]{2}", line):  # numbers alone
            return self.number(line)
        for pattern, key in self.patterns:
            if found := pattern.fullmatch(line.strip()):
                values = found.groupdict()
                values |= {n: self(f"figure.{v}") for n, v in values.items() if n.startswith("label")}
                return self(key, **values)
        raise KeyError(f"{TABLE.name}: no row figure.* for the text {line!r} of a figure; add it in all languages.")

    def translate(self, figure) -> None:
        """Replace every text of a figure; the labels of ticks become fixed ones."""
        figure.draw_without_rendering()
        axes_of = [axis for axes in figure.axes if axes.axison for axis in (axes.xaxis, axes.yaxis)]
        ticks = {axis.major: [label.get_text() for label in axis.get_majorticklabels()] for axis in reversed(axes_of)}
        for text in figure.findobj(Text):
            text.set_text(self.of_figure(text.get_text()))
        limits = [(axis, axis.get_view_interval().copy()) for axis in axes_of]
        for axis in {axis.major: axis for axis in reversed(axes_of)}.values():  # once, if several axes share it
            axis.set_ticks(axis.get_majorticklocs(), list(map(self.of_figure, ticks[axis.major])))
        for axis, interval in limits:  # set_ticks widens all axes that share it
            axis.set_view_interval(*interval, ignore=True)


def _pattern(english):
    """The English text of a row figure.* as a pattern: {number} is a number, {label} a class."""
    parts = re.split(r"\{(\w+)\}", english)
    for i, part in enumerate(parts):
        parts[i] = f"(?P<{part}>{PLACEHOLDERS.get(part.rstrip('0123456789'), '.+')})" if i % 2 else re.escape(part)
    return re.compile("".join(parts))
