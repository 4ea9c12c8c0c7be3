"""The slides of the talk, from the runs and the tables in outputs/."""

import io
import os
from contextlib import redirect_stdout
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import xray_utils as xu
from matplotlib.text import Text
from xray_utils.constants import ORIGINAL

WIDE, HIGH, SQUARE = (8.2, 3.4), (8.4, 4.1), (3.6, 3.5)  # inches of a figure: small, so that its texts are large
SMALLEST = 11  # points of a text in a figure
TRUST = "07_try_to_break_it"


@dataclass
class Slide:
    """One slide. `figure` is a PNG or JPEG; `table` holds texts alone; the notes take `seconds` to say."""

    name: str
    title: str
    notes: str
    words: list = field(default_factory=list)
    figure: bytes | None = None
    square: bool = False  # the words stand beside the figure, not below it
    table: pd.DataFrame | None = None
    seconds: int = 40


class Talk:
    """The slides in the language of `words`.

    runs: "own", "sample", or None: those of the user where there are any. Raises ValueError when the images in use are
    not those of the runs.
    """

    def __init__(self, words, protocol: str = "grouped", runs: str | None = None):
        endings, self.words, self.slides = {"own": "", "sample": "_sample"}, words, []
        with redirect_stdout(io.StringIO()):  # what is missing gets a slide
            results = {
                kind: xu.load_results([f"{model}_{protocol}{ending}" for model in xu.NOTEBOOKS])
                for kind, ending in endings.items()
            }
            self.kind = runs or ("own" if results["own"] else "sample")
            if self.kind == "sample":
                os.environ["XRAY_DATA"] = str(xu.results_dir().parents[1] / "data" / "sample")
            self.images = xu.audit_images(xu.find_images(xu.data_dir()))
            first = next(iter(results[self.kind].values()), None)
            settings = first.config["data"] if first else {"seed": 0, "mirror": self.kind == "own", "size": None}
            self.data = xu.load_data(protocol, settings["seed"], settings["mirror"], settings["size"])
        self.protocol, self.ending = protocol, protocol + endings[self.kind]
        self.results = {name.removesuffix(f"_{self.ending}"): result for name, result in results[self.kind].items()}
        for result in self.results.values():
            there = set(result.predictions.file) <= set(self.images.file)
            if not there or self.data.is_sample != (self.kind == "sample"):
                raise ValueError(
                    f"{result.name} was tested on other images than those of {xu.data_dir()}, which are in use. Set "
                    "XRAY_DATA to the images of your runs, or use --runs sample."
                )
        self.names = {model: words(f"name.{model}") for model in xu.NOTEBOOKS}
        words.names |= self.names | {f"{model}_{self.ending}": name for model, name in self.names.items()}
        self.footer = words(f"footer.{self.kind}", images=len(self.images), protocol=words(f"protocol.{protocol}"))

    def add(self, name, kind=None, figure=None, size=WIDE, titles=False, table=None, variants=(), seconds=40, **values):
        """A slide with the texts kind.title, kind.words and kind.notes of strings.csv.

        variants: endings of keys that go before these, as "leak" in split.title.leak.
        """
        title, words, notes = (self._text(kind or name, part, variants, values) for part in ("title", "words", "notes"))
        figure = None if figure is None else self._drawn(figure, size, titles)
        self.slides.append(Slide(name, title, notes, words.splitlines(), figure, size is SQUARE, table, seconds))

    def _text(self, kind, part, variants, values):
        keys = [f"{kind}.{part}.{variant}" for variant in variants] + [f"{kind}.{part}"]
        known = [key for key in keys if key in self.words.strings]
        return "" if part == "words" and not known else self.words((known or keys)[0], **values)

    def missing(self, name, notebook, what):
        """A slide that says which notebook makes what is missing."""
        table = self._table({what: [f"{notebook}.ipynb"]}, "missing")
        self.add(name, "missing", table=table, notebook=notebook, what=what)

    def _drawn(self, figure, size, titles):
        """A figure as a picture in the language of the talk, without titles: the slide has one."""
        figure.suptitle("")
        for axes in figure.axes if not titles else ():
            axes.set_title("", loc="left")
            axes.set_title("", loc="center")
        figure.set_size_inches(size)
        for text in figure.findobj(Text):
            text.set_fontsize(max(text.get_fontsize(), SMALLEST))
        self.words.translate(figure)
        if size is SQUARE and figure.get_supxlabel():
            figure.supxlabel(figure.get_supxlabel().replace("; ", "\n"))
        file = io.BytesIO()
        options = {"format": "jpeg", "pil_kwargs": {"quality": 85}} if figure.photographs else {"format": "png"}
        figure.savefig(file, dpi=200, bbox_inches="tight", **options)
        return file.getvalue()

    def _table(self, rows, kind):
        """A table of texts. Its columns are the text kind.columns, parted by |; the first names the rows."""
        first, *columns = self.words(f"{kind}.columns").split("|")
        table = pd.DataFrame.from_dict(rows, orient="index", columns=columns)
        return table.map(lambda value: self.words.number(str(value))).rename_axis(first)

    def make(self, group: str, course: str, date) -> list:
        """All slides, in the order of the original talk."""
        words = self.words
        about = {"group": group, "course": course, "date": date.strftime(words("date"))}
        self.add("cover", figure=xu.plot_examples(self.images, 2, seed=1), size=SQUARE, seconds=20, **about)
        self._add_data()
        if self.results:
            self._add_training()
        for model in xu.NOTEBOOKS:
            if model in self.results:
                self._add_network(model)
            else:
                self.missing(model, xu.NOTEBOOKS[model], self.names[model])
        if self.results:
            self._add_comparison()
        else:
            self.missing("comparison", "06_comparison", words("what.comparison"))
        self._add_trust()
        return self.slides

    def _add_data(self):
        images, data = self.images, self.data
        counts, heights = images.label.value_counts(), images[images.problem.eq("")].height
        values = {"label": self.words(f"figure.{counts.idxmax()}"), "share": f"{counts.max() / len(images):.0%}"}
        values |= {"images": len(images), "patients": images.group.nunique()}
        equal = ["equal"] * (counts.nunique() == 1)
        self.add("balance", figure=xu.plot_class_balance(images), variants=equal, **values)
        values = {"low": heights.min(), "high": heights.max(), "size_of": data.settings["size"]}
        equal = ["equal"] * (heights.nunique() == 1)
        self.add("examples", figure=xu.plot_examples(images, 6), size=HIGH, titles=True, variants=equal, **values)
        self.add("preparation", figure=xu.plot_preparation(images, data, 5), size=HIGH, titles=True, **values)
        split = pd.concat([getattr(data, side).rows.assign(split=side) for side in ("train", "val", "test")])
        shared = set(data.train.rows.group) & set(data.test.rows.group)
        copies = int(data.train.rows.mirrored.sum())
        values = {"shared": len(shared), "train": len(data.train) - copies, "test": len(data.test), "copies": copies}
        variants = ["leak"] * bool(shared) + ["mirrored"] * bool(copies)
        self.add("split", figure=xu.plot_split({self.protocol: split}), variants=variants, **values)

    def _add_training(self):
        rows, optimisers = {}, {"adam": "Adam", "adamw": "AdamW"}
        for model, result in self.results.items():
            used = result.config["settings"]
            row = [f"{result.config['parameters']:,}", optimisers.get(used["optimizer"], used["optimizer"])]
            rows[self.names[model]] = [
                *row,
                np.format_float_positional(used["lr"]),
                used["batch_size"],
                len(result.history),
            ]
        most = max(result.config["parameters"] for result in self.results.values())
        self.add("training", table=self._table(rows, "training"), high=f"{most:,}")

    def _add_network(self, model):
        result, words = self.results[model], self.words
        history, predictions = result.history, result.predictions
        kept = history.loc[history.val_loss.idxmin()]
        values = {"network": self.names[model], "about": words(f"about.{model}"), "images": len(predictions)}
        values |= {"epoch": int(kept.epoch), "epochs": len(history), "accuracy": f"{kept.val_accuracy:.1%}"}
        shown = ("resnet18", model) if model == "resnet18_augmented" else (model,)
        figure = xu.plot_history({name: self.results[name].history for name in shown if name in self.results})
        self.add(f"{model}_curves", "curves", figure, **values)
        wrong = predictions[predictions.label.ne(predictions.predicted)]
        values |= {"errors": len(wrong), "patients": result.metrics["groups"]}
        if len(wrong):
            pairs = wrong.groupby(["label", "predicted"]).size()
            true, called = (words(f"figure.{label}") for label in pairs.idxmax())
            values |= {"label": true, "pair": f"{true}\u00a0→\u00a0{called}", "count": pairs.max()}
        figure, variants = xu.plot_confusion_matrix(predictions), [] if len(wrong) else ["none"]
        self.add(f"{model}_confusion", "confusion", figure, SQUARE, variants=variants, **values)
        if model in ORIGINAL:
            with redirect_stdout(io.StringIO()):
                both = xu.compare_with_original(predictions, model)
            columns = [(side, score) for score in ("precision", "recall", "f1") for side in ("here", "original")]
            texts = both[columns].map(lambda value: "" if pd.isna(value) else f"{value:.2f}")
            rows = {words(f"report.{name}".replace(" ", "_")): list(row) for name, row in texts.T.items()}
            values["accuracy"] = xu.with_interval(result.metrics, "accuracy")
            values |= {"original": f"{ORIGINAL[model]['accuracy']:.2f}", "others": ORIGINAL[model]["images"]}
            self.add(f"{model}_report", "report", table=self._table(rows, "report"), **values)

    def _add_comparison(self):
        tables = {model: result.predictions for model, result in self.results.items()}
        top = max(result.metrics["accuracy"] for result in self.results.values())
        highest = [model for model, result in self.results.items() if top - result.metrics["accuracy"] < 1e-9]
        first = tables.pop(highest[0])
        gaps = [xu.compare_two(table, first)["difference_interval"] for table in tables.values()]
        chance = sum(gap is None or gap[0] <= 0 for gap in gaps)
        values = {
            "network": " / ".join(self.names[model] for model in highest),
            "accuracy": f"{top:.3f}",
            "chance": chance,
            "others": len(gaps),
        }
        named = {f"{model}_{self.ending}": result for model, result in self.results.items()}
        variants = [] if gaps else ["single"]
        self.add("comparison", figure=xu.plot_comparison(xu.compare(named)), variants=variants, **values)

    def _saved(self, name):
        """A table of notebook 7, empty if it is not there."""
        path = xu.outputs_dir("tables", f"{name}_{self.ending}.csv")
        return pd.read_csv(path, index_col=0) if path.is_file() else pd.DataFrame()

    def _with_interval(self, row):
        """The score of a row, with its interval where it has one."""
        if pd.isna(row.iloc[0]):
            return self.words("conclusions.none")
        interval = self.words("conclusions.one") if pd.isna(row.low) else f"[{row.low:.3f}, {row.high:.3f}]"
        return f"{row.iloc[0]:.3f} {interval}"

    def _add_trust(self):
        words, rows, found = self.words, {}, False
        if self.results:
            best = min(self.results, key=lambda model: self.results[model].history.val_loss.min())  # as notebook 7
            accuracy = xu.with_interval(self.results[best].metrics, "accuracy")
            rows[words("conclusions.best", network=self.names[best])] = [accuracy]
        baselines, experiments = self._saved("shortcut_baselines"), self._saved("all_experiments")
        external = self._saved("external_predictions")
        if baselines.empty:
            self.missing("shortcut", TRUST, words("what.shortcut"))
        else:
            above = baselines[baselines.low > baselines.expected].index
            what = "metadata" if "metadata only" in above and "only the border" not in above else "border"
            row = baselines.loc[{"metadata": "metadata only", "border": "only the border"}[what]]
            found = row.name in above
            rows[words(f"conclusions.{what}")] = [self._with_interval(row)]
            values = {"score": f"{row.iloc[0]:.2f}", "chance": f"{row.expected:.2f}"}
            variants = [what] if found else ["none"]
            self.add("shortcut", figure=xu.plot_experiments(baselines), variants=variants, **values)
        network = None if external.empty else external.network.iloc[0]
        if network not in self.results or "AUC external" not in experiments.index:
            self.missing("external", TRUST, words("what.external"))
        else:
            sources = [str(source) for source in external.source.unique()]
            words.names |= {name: name for source in sources for name in (source, source.split("/")[0])}
            values = {"network": self.names[network], "images": len(external)}
            values["accuracy"] = f"{external.label.eq(external.predicted).mean():.0%}"
            for side in ("internal", "external"):
                row = experiments.loc[f"AUC {side}"]
                values[side] = f"{row.score:.2f}"
                rows[words(f"conclusions.{side}", network=self.names[network])] = [self._with_interval(row)]
            variants = ["one"] * ("nan" in values.values())
            figure = xu.plot_internal_external(self.results[network].predictions, external)
            self.add("external", figure=figure, titles=True, variants=variants, **values)
        variants = [] if found else ["open"]
        self.add("conclusions", table=self._table(rows, "conclusions"), variants=variants)
        source = self._text("limits", "source", variants, {})
        limits = words("limits.rows", source=source, patients=self.data.test.rows.group.nunique()).split("\n")
        rows = {name: [text] for name, text in (line.split("|") for line in limits)}
        self.add("limits", table=self._table(rows, "limits"))
