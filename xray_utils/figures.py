"""Figures of every training: history, confusion matrix, comparison, ROC."""

import re
from os.path import commonprefix
from textwrap import fill

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ._support.checks import check_dict, check_histories, check_kind, check_predictions, check_table, check_tables
from ._support.style import CLASS_COLOURS, _colour_of, _figure, _label_ends
from .constants import CLASSES, ORIGINAL, PROBABILITIES
from .metrics import compute_metrics, with_interval


def plot_history(histories: dict) -> Figure:
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
                peak = highest > 1.5 * max(next_to_it, np.log(len(CLASSES)))  # loss at chance
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


def plot_confusion_matrix(predictions: pd.DataFrame | dict, title: str = "Confusion matrix") -> Figure:
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


def plot_comparison(table: pd.DataFrame) -> Figure:
    """Accuracy of each run of `compare` with its 95 % interval, beside what the original reported (diamonds).

    It reported three networks under the protocol slides: no other run has a diamond to stand beside.
    """
    check_table("table", table, ["network", "chance", "accuracy", "accuracy 95 %"], "compare")
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
        for chance in table.chance.unique():
            axis.axvline(chance, color="0.7", linestyle=":")
            axis.text(chance, -0.75, " chance", color="0.4", va="center")
        axis.set_yticks(range(len(table)), table.index)
        axis.set_ylim(len(table) - 0.4, -1)
        best = table.accuracy.idxmax()
        others = table.index.drop(best)
        title = f"Highest: {best},\nits interval lies above all others"
        if any(highs[name] >= lows[best] for name in others):
            title = "The intervals overlap:\ncompare the networks with a paired test"
        label = "accuracy on the test images" + (" (diamond: the original)" if set(reported) & set(highs) else "")
        axis.set(xlabel=label, title=title if len(others) else f"{best}: {table['accuracy 95 %'].iloc[0]}")
        axis.set_xlim(left=max(0, axis.get_xlim()[0]), right=1.02)
        return figure


def plot_roc(predictions: pd.DataFrame) -> Figure:
    """ROC and precision-recall curve of each class against the other two; areas under them with 95 % intervals."""
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
        order = sorted(found, key=lambda name: metrics[f"auc_{name}"])  # the largest AUC on top
        labels = [(f"{name} {with_interval(metrics, f'auc_{name}')}", 1, 1, CLASS_COLOURS[name]) for name in order]
        roc.plot([0, 1], [0, 1], color="0.7", linestyle=":", zorder=0)
        reach = [metrics[f"auc_{name}_interval"] or (0, 1) for name in order]
        title = "ROC: the intervals\nof the AUCs overlap" if order[1:] else "ROC"
        if order[1:] and reach[-1][0] > max(high for _, high in reach[:-1]):
            title = f"ROC: {order[-1]}\nis told apart best"
        roc.set(xlabel="false alarms (1 - specificity)", ylabel="found (sensitivity)", title=title, ylim=(-0.03, 1.03))
        _label_ends(roc, labels)
        pr.set(xlabel="found (recall)", ylabel="precision", title="Precision; dotted: chance", ylim=(0, 1.03))
        _label_ends(pr, ends)
        return figure
