"""The figures of notebooks 6 and 7."""

from textwrap import fill

import numpy as np
import pandas as pd
import scipy
from matplotlib.figure import Figure

from .._support.checks import (
    check_choice,
    check_dict,
    check_kind,
    check_number,
    check_predictions,
    check_table,
    check_tables,
    check_whole,
)
from .._support.style import (
    CLASS_COLOURS,
    OTHER_COLOURS,
    _beside,
    _colour_of,
    _figure,
    _label_ends,
    _name_credits,
    _show,
)
from ..comparison import seed_table
from ..constants import CLASSES, PROBABILITIES
from ..images import credit_line
from ..metrics import compute_metrics, with_interval
from ..prepared import Split, check_split
from .calibration import calibration_error, reliability
from .external import _one_each, risk_coverage
from .lungs import LungFields


def plot_saliency(
    split: Split, maps: dict, predictions: dict, lungs: LungFields | None = None, which: str = "wrong", count: int = 5
) -> Figure:
    """Saliency maps of the most confident wrong predictions, or of the most confident correct ones of each class.

    A row holds `count` images of a network, or of two where there are more than two networks. maps, predictions:
    `{"name": maps [B, H, W]}` of `saliency_maps` and `{"name": table}` of `predict`, in the order of `split`; the
    colours of each map go from its minimum to its maximum. lungs: what `lung_fields` returned, drawn as an outline,
    dotted where it is not trusted. Raises ValueError where these are not of the same images.
    """
    check_split(split)
    check_dict("maps", maps, "{'name': the maps of saliency_maps}")
    for name, some in maps.items():
        if np.ndim(some) != 3:
            raise ValueError(f"maps[{name!r}]: {np.shape(some)} must be [B, H, W], the maps of saliency_maps.")
    check_tables("predictions", predictions, PROBABILITIES)
    check_choice("which", which, ("wrong", "correct"))
    check_whole("count", count, 1)
    for name, table in predictions.items():
        if name not in maps or len(maps[name]) != len(table) or table.file.tolist() != split.rows.file.tolist():
            raise ValueError(f"predictions[{name!r}]: not of the same images as maps and split; use one split for all.")
    check_kind("lungs", lungs, LungFields | None, "result of lung_fields", "what it returned, or None")
    if lungs is not None and len(lungs.masks) != len(split):
        raise ValueError(f"lungs: {len(lungs.masks)} masks for {len(split)} images; pass lung_fields of all of them.")
    beside = 2 if len(predictions) > 2 else 1
    rows, columns = -(-len(predictions) // beside), count * beside
    with _figure(rows, columns, 0.4 + 1.5 * columns, 0.3 + 2.05 * rows, photographs=True) as (figure, axes):
        for axis in axes.flat:
            axis.axis("off")
        for row, (name, table) in zip(axes.reshape(-1, count), predictions.items(), strict=False):
            table = table.reset_index(drop=True).assign(sure=lambda t: t[PROBABILITIES].max(axis=1))
            table = table[table.label.eq(table.predicted) == (which == "correct")]
            table = table.sort_values("sure", ascending=False, kind="stable")
            if which == "correct":  # each class in turn
                table = table.iloc[table.groupby("label").cumcount().argsort(kind="stable")]
            place = dict(transform=row[0].transAxes, fontsize=11)
            words = fill(name.replace("_", " "), 12)
            row[0].text(-0.06, 0.5, words, rotation=90, ha="right", va="center", fontweight="bold", **place)
            if table.empty:
                row[0].text(0.5, 0.5, f"no {which} answer", ha="center", **place)
            for axis, (index, one) in zip(row, table.iterrows(), strict=False):
                said = f"{one.predicted} {one.sure:.2f}"
                _show(axis, split.take([index])[0], said if which == "correct" else f"{one.label}, called\n{said}")
                axis.imshow(maps[name][index], cmap="inferno", alpha=0.45)
                if lungs is not None and lungs.masks[index].any():
                    style = "solid" if lungs.trusted[index] else "dotted"
                    axis.contour(lungs.masks[index], [0.5], colors="#56B4E9", linewidths=1, linestyles=style)
        _name_credits(figure, credit_line(split.rows))
        return figure


def plot_reliability(predictions: dict) -> Figure:
    """Confidence against accuracy in ten bins, for each table of `{"name": table}`, with the images of each bin.

    The area of a dot stands for its images, its bar is the 95 % interval (Wilson 1927).
    """
    check_tables("predictions", predictions, PROBABILITIES)
    with _figure(1, len(predictions), 4.4 * len(predictions), 4, sharey=True) as (figure, axes):
        for axis, (name, table) in zip(axes[0], predictions.items(), strict=True):
            bins = reliability(table)
            axis.plot([0.3, 1], [0.3, 1], color="0.7", linestyle=":")
            size = 15 + 300 * bins.images / len(table)
            axis.scatter(bins.confidence, bins.accuracy, s=size, color=OTHER_COLOURS[0], alpha=0.7)
            for bin_, one in bins.iterrows():
                test = scipy.stats.binomtest(round(one.accuracy * one.images), int(one.images))
                axis.vlines(one.confidence, *test.proportion_ci(method="wilson"), color=OTHER_COLOURS[0], lw=1.5)
                axis.text((bin_ + 0.5) / 10, -0.1, f"{one.images:.0f}", ha="center", va="center")
            title = f"{fill(name.replace('_', ' '), 30)}\ncalibration error {calibration_error(table):.3f}"
            axis.set(xlim=(0.28, 1.04), ylim=(-0.16, 1.05), xlabel="confidence", title=title)
        figure.supxlabel("bars: 95 % intervals; numbers: images of each bin", fontsize=12)
        axes[0, 0].set_ylabel("accuracy")
        return figure


def plot_classification(answer) -> Figure:
    """One result of `classify`: the prepared image, its saliency map (if requested) and the probabilities."""
    if not hasattr(answer, "probabilities"):
        raise ValueError(f"answer: a {type(answer).__name__} is none; pass what classify returned.")
    columns = 2 if answer.where is None else 3
    with _figure(1, columns, 1.6 + 2.5 * columns, 3.4, photographs=True) as (figure, axes):
        _show(axes[0, 0], answer.pixels, "as the network saw it")
        if answer.where is not None:
            _show(axes[0, 1], answer.pixels, "saliency map (bright: high)")
            axes[0, 1].imshow(answer.where, cmap="magma", vmin=0, vmax=1, alpha=0.5)
        axis, probabilities = axes[0, -1], answer.probabilities
        names = list(probabilities.index)
        bars = axis.barh(names, probabilities, color=[CLASS_COLOURS[name] for name in names])
        axis.bar_label(bars, [f"{p:.3f}" for p in probabilities], padding=4)
        axis.set(xlim=(0, 1.3), xticks=[0, 0.5, 1], xlabel="probability")
        axis.set_title(f"{answer.run}:\n{probabilities.idxmax()}", fontsize=10.5)
        axis.invert_yaxis()
        figure.supxlabel("\n".join(filter(None, [answer.warning, answer.credit])), fontsize=11, wrap=True)
        return figure


def plot_experiments(table: pd.DataFrame) -> Figure:
    """Score of each experiment of `shortcut_table` or `summarise`, with its interval. Diamond: without a shortcut.

    Experiments of `summarise` without an expected value are left out.
    """
    if not isinstance(table, pd.DataFrame) or table.empty or not {"low", "high", "expected"} <= set(table):
        raise ValueError("table: it lacks low, high, 'expected' or rows; pass that of shortcut_table or summarise.")
    every = "beyond" in table
    table = table[table.expected.notna()] if every else table.assign(beyond=table.low > table.expected)
    with _figure(width=11 if every else 8.5, height=1 + (0.31 if every else 0.36) * len(table)) as (figure, axes):
        axis = axes[0, 0]
        for row, (_, found) in enumerate(table.iterrows()):
            colour = OTHER_COLOURS[2 if found.beyond else 0]
            axis.plot([found.low, found.high], [row, row], color=colour, lw=4, solid_capstyle="round", alpha=0.6)
            axis.plot(found.iloc[0], row, "o", color=colour, mfc=colour if found.beyond else "white", markersize=9)
            axis.plot(found.expected, row, "D", mfc="none", mec="black", markersize=8)
            axis.text(1.04, row, f"{found.iloc[0]:.2f}", va="center")
        axis.set(yticks=range(len(table)), yticklabels=table.index, ylim=(len(table) - 0.5, -0.5), xlim=(-0.02, 1.02))
        label = "balanced accuracy, or AUC" if every else "balanced accuracy"
        axis.set_xlabel(f"{label} (diamond: expected without a shortcut; filled: beyond)")
        kind = "experiments" if every else "simple baselines"
        found = f"{table.beyond.sum()} of {table.expected.notna().sum()} {kind}"
        axis.set_title(f"{found}\nlie beyond the value without a shortcut")
        return figure


def plot_internal_external(internal: pd.DataFrame, external: pd.DataFrame) -> Figure:
    """Probability of covid by true class, internal and external: predictions tables of the same network.

    Point: an image. Box: the middle half of a class. Line: its median. Absent classes have no column. Each source of
    `external` has a panel. The AUC is that of covid against normal, where there are both.
    """
    check_predictions(internal, "internal", PROBABILITIES)
    check_predictions(external, "external", PROBABILITIES)
    places, tables = ["internal (test images)", "external"], [internal, external]
    if "source" in external and external.source.nunique() > 1:
        sources, parts = zip(*external.groupby("source"), strict=True)
        short = [str(source).split("/")[0] for source in sources]  # of the owner's name, where that tells them apart
        short = short if len(set(short)) == len(short) else [str(source) for source in sources]
        places, tables = [places[0], f"external, {short[0]}", *short[1:]], [internal, *parts]
    widths, intervals = [max(1.2, table.label.nunique()) for table in tables], []
    with _figure(1, len(tables), 10, 4.2, sharey=True, width_ratios=widths) as (figure, axes):
        for axis, place, table in zip(axes[0], places, tables, strict=True):
            names = [name for name in CLASSES if table.label.eq(name).any()]
            for column, name in enumerate(names):
                shares, colour = table.p_covid[table.label.eq(name)], CLASS_COLOURS[name]
                low, middle, high = shares.quantile([0.25, 0.5, 0.75])
                axis.scatter(_beside(column, shares), shares, s=25, color=colour, alpha=0.55, linewidths=0)
                axis.bar(column, high - low, 0.76, low, color=colour, alpha=0.25, zorder=0)
                axis.hlines(middle, column - 0.38, column + 0.38, color="black", lw=3, zorder=3)
            axis.set_xticks(range(len(names)), [f"{name}\n{table.label.eq(name).sum()} images" for name in names])
            axis.set_ylim(-0.03, 1.03)
            said, interval = f"{' and '.join(names)} alone", None
            if {"covid", "normal"} <= set(names):
                result = compute_metrics(table[table.label.ne("virus")])
                said, interval = f"AUC {with_interval(result, 'auc_covid')}", result["auc_covid_interval"] or (0, 1)
            intervals.append(interval)
            axis.set_title(f"{place}\n{said}", fontsize=12, loc="left")
        axes[0, 0].set_ylabel("probability of covid")
        low, highs = (intervals[0] or (0, 1))[0], [interval[1] for interval in intervals[1:] if interval]
        said = "the intervals of internal and external AUC overlap"
        if not highs:
            said = "each external source holds one of the two alone"
        elif low > max(highs):
            said = "external AUC below the internal one"
        figure.suptitle(f"Covid and normal: {said}", fontweight="bold", fontsize=15, x=0.01, ha="left")
        return figure


def plot_risk_coverage(tables: dict, uncertainty: dict, threshold: float) -> Figure:
    """Risk-coverage curves (see `risk_coverage`): `{"internal": predictions, ...}` and the uncertainty scores of each.

    The ring marks the coverage at `threshold`.
    """
    check_tables("tables", tables)
    check_dict("uncertainty", uncertainty, "{'internal': uncertainty scores, ...}")
    check_number("threshold", threshold, lambda t: t == t, "a number")
    if set(uncertainty) != set(tables):
        raise ValueError(f"uncertainty: {sorted(uncertainty)} are not the names of the tables, {sorted(tables)}.")
    for name, scores in uncertainty.items():
        _one_each(f"uncertainty[{name!r}]", scores, tables[name])
    with _figure(width=9, height=2.4 + 0.2 * len(tables)) as (figure, axes):
        axis, ends, titles = axes[0, 0], [], []
        for i, (name, table) in enumerate(tables.items()):
            curve, colour = risk_coverage(table, uncertainty[name]), _colour_of(name, 2 * i % 3)
            axis.plot(curve.coverage, curve.risk, color=colour, lw=2, linestyle=("-", "--", "-.", ":")[i % 4])
            ends.append((name, 1, curve.risk.iloc[-1], colour))
            titles.append(f"{name}: {curve.risk.iloc[-1]:.1%} of all {len(table)} wrong")
            kept = (np.asarray(uncertainty[name]) <= threshold).mean()
            if kept:
                at = curve.iloc[(curve.coverage - kept).abs().argmin()]
                axis.plot(at.coverage, at.risk, "o", color=colour, fillstyle="none", markersize=9)
                titles[-1] += f", {at.risk:.1%} of the {kept:.0%} answered"
        axis.set(xlabel="coverage: share of images with an answer", ylabel="risk: share of wrong answers")
        axis.set(title="\n".join(titles), xlim=(0, 1.02), ylim=(0, None))
        _label_ends(axis, ends)
        return figure


def plot_controls(tables: dict) -> Figure:
    """Share of images called covid against the number of added normal patients: `{"place": table of controls_table}`.

    Solid: normal images, which should not be called covid. Dashed: covid images, which should. Bands: 95 % intervals.
    """
    check_dict("tables", tables, "{'place': the table made by controls_table}")
    for name, table in tables.items():
        check_table(f"tables[{name!r}]", table, ["added", "normal called covid"], "controls_table")
    with _figure(1, len(tables), min(5.2 * len(tables), 12), 3.9, sharey=True) as (figure, axes):
        for axis, (name, table) in zip(axes[0], tables.items(), strict=True):
            for what, label, style in (("normal called covid", "normal", "-"), ("covid recall", "covid", "--")):
                if what in table:
                    x, y, colour = table.added, table[what], dict(color=CLASS_COLOURS[label])
                    axis.plot(x, y, style, marker="o", **colour)
                    axis.fill_between(x, table[f"{what} low"], table[f"{what} high"], alpha=0.2, **colour)
                    place = dict(xytext=(0, -10), textcoords="offset points", va="top", ha="right")
                    axis.annotate(label, (x.iloc[-1], y.iloc[-1]), fontweight="bold", **place, **colour)
            first, last = table["normal called covid"].iloc[[0, -1]]
            axis.set(ylim=(-0.03, 1.03), xticks=table.added, xlabel="normal patients added")
            axis.set_title(f"{name}\nnormal: {first:.0%}, then {last:.0%}")
        axes[0, 0].set_ylabel("share called covid")
        return figure


def plot_differences(differences: dict) -> Figure:
    """Differences of accuracy, each a dot with its 95 % interval: `{name: {"mean": .1, "interval": [0, .2]}}`.

    Filled if the interval excludes zero.
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
        axis.set(yticks=range(len(differences)), yticklabels=differences, ylim=(len(differences) - 0.4, -0.6))
        title = f"{shown} of {len(differences)} differences are shown:\ntheir intervals leave out zero"
        axis.set(xlabel="difference of test accuracy", title=title)
        return figure


def plot_seeds(seeds: pd.DataFrame) -> Figure:
    """Accuracy of each seed (dot) and their mean (bar), slides beside grouped. seeds: as for `seed_table`."""
    check_table("seeds", seeds, ["network", "protocol", "seed", "accuracy"], "results/scripts/external.py")
    networks = list(seeds.network.unique())
    with _figure(width=9, height=0.8 + 0.5 * len(networks)) as (figure, axes):
        axis = axes[0, 0]
        for offset, protocol, marker in ((-0.15, "slides", "s"), (0.15, "grouped", "o")):
            named = False
            for i, network in enumerate(networks):
                values = seeds[seeds.network.eq(network) & seeds.protocol.eq(protocol)].accuracy
                if values.empty:
                    continue
                colour, y = _colour_of(network), i + offset + 0.3 * (_beside(0, values))
                axis.plot(values, y, marker, color=colour, mfc=colour if protocol == "grouped" else "white", alpha=0.8)
                if len(values) > 1:
                    axis.vlines(values.mean(), i + offset - 0.12, i + offset + 0.12, color="black", linewidth=2)
                if not named:  # once is enough
                    place = dict(xytext=(9, 0), textcoords="offset points", va="center", fontsize=11)
                    axis.annotate(protocol, (values.max(), i + offset), **place)
                    named = True
        lows = seed_table(seeds).gap.str.extract(r"\[(.+),")[0].dropna().astype(float)
        title = f"Higher under slides, beyond the interval over seeds: {(lows > 0).sum()} of {len(lows)} networks"
        axis.set(yticks=range(len(networks)), yticklabels=networks, title=title if len(lows) else "")
        axis.set_xlabel("accuracy on the test images, a dot a seed, a bar their mean")
        axis.invert_yaxis()
        return figure
