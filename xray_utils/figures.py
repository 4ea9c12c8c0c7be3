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


def _without_peak(loss):
    """A loss over the epochs, without its largest value if that is far above all others and above chance."""
    others = loss.drop(loss.idxmax())
    return others if loss.max() > 1.5 * max(others.max(), np.log(len(CLASSES))) else loss


def plot_history(histories: dict) -> Figure:
    """Loss and accuracy on train (dashed) and val (solid) over the epochs; the best epoch on val is marked.

    histories: the table of one run, or `{"name": table}` for several in one figure, each in the colour of its model.
    """
    histories = histories if isinstance(histories, dict) else {"": histories}
    check_dict("histories", histories, "run.history or {'name': run.history}")
    check_histories("histories", histories, "train_loss", "val_loss", "train_accuracy", "val_accuracy")
    several = len(histories) > 1
    shared = re.search(r"(_.*)?$", commonprefix([name[::-1] for name in histories])[::-1])[0] if several else ""
    losses = [history[column] for history in histories.values() for column in ("train_loss", "val_loss")]
    shown, highest = pd.concat([_without_peak(loss) for loss in losses]), pd.concat(losses).max()
    with _figure(1, 2, 11 if several else 9.5, 3.9) as (figure, axes):
        ends, kept = {"loss": [], "accuracy": []}, []  # of the lines; the row of the best epoch of each run
        for i, (name, history) in enumerate(histories.items()):
            colour, last = _colour_of(name, i), history.iloc[-1]
            best = history.loc[history.val_loss.idxmin()]
            kept.append(best)
            for axis, what in zip(axes[0], ends, strict=True):
                line = dict(color=colour, marker="osD^vP"[i % 6], markersize=3)
                axis.plot(history.epoch, history[f"val_{what}"], **line, lw=2)
                axis.plot(history.epoch, history[f"train_{what}"], **line | dict(alpha=0.5, linestyle="--"))
                axis.plot(best.epoch, best[f"val_{what}"], "o", mfc="none", mec="black", markersize=10)
                label = name.removesuffix(shared) or name if several else "validation"
                ends[what].append((label, last.epoch, last[f"val_{what}"], colour))
                if not several:
                    ends[what].append(("training", last.epoch, last[f"train_{what}"], colour))
        room = 0.06 * (shown.max() - shown.min()) or 0.1
        axes[0, 0].set_ylim(max(0, shown.min() - room), shown.max() + room)
        titles = [
            f"Lowest validation loss: epoch {best.epoch:.0f} of {last.epoch:.0f}",
            f"Right on validation there: {best.val_accuracy:.1%}",
        ]
        if several:
            low, high = pd.DataFrame(kept).min(), pd.DataFrame(kept).max()
            titles = [
                f"Validation loss at the rings:\n{low.val_loss:.3f} to {high.val_loss:.3f}",
                f"Right on validation there:\n{low.val_accuracy:.1%} to {high.val_accuracy:.1%}",
            ]
        for axis, what, title in zip(axes[0], ends, titles, strict=True):
            axis.set(xlabel="epoch", ylabel=what, title=title)
            axis.xaxis.get_major_locator().set_params(integer=True)
            _label_ends(axis, ends[what])
        if highest > shown.max():
            axes[0, 0].set_ylabel(f"loss (a peak of {highest:.1f} is cut)")
        return figure


def plot_confusion_matrix(predictions: pd.DataFrame | dict, title: str = "Confusion matrix") -> Figure:
    """True class (rows) against predicted class (columns): number of images and share of the row.

    predictions: the table of one run, or `{"name": table}` for several in one figure, titled by their names.
    """
    import seaborn as sns
    from sklearn.metrics import confusion_matrix

    check_kind("title", title, str, "title", "a string")
    if not isinstance(predictions, dict):
        check_predictions(predictions)
        predictions = {title: predictions}
    check_tables("predictions", predictions)
    columns = min(4, len(predictions))
    rows = -(-len(predictions) // columns)
    each = {1: 4.3, 2: 3.1}.get(columns, 2.5)  # inches: small, so that the numbers are large
    words = [fill(name.replace("_", " "), int(7.6 * each), break_long_words=False) for name in predictions]
    lines = max(text.count("\n") for text in words)
    with _figure(rows, columns, each * columns, (each + 0.3 + 0.2 * lines) * rows) as (figure, axes):
        for axis in axes.flat[len(predictions) :]:
            axis.axis("off")
        for axis, title, table in zip(axes.flat, words, predictions.values(), strict=False):
            counts = confusion_matrix(table.label, table.predicted, labels=list(CLASSES))
            shares = counts / counts.sum(axis=1, keepdims=True).clip(min=1)
            texts = [f"{n}\n{share:.0%}" for n, share in zip(counts.ravel(), shares.ravel(), strict=True)]
            sns.heatmap(
                shares, annot=np.array(texts).reshape(counts.shape), fmt="", cmap="Blues", vmin=0, vmax=1, cbar=False,
                square=True, xticklabels=CLASSES, yticklabels=CLASSES, ax=axis, linewidths=1,
            )  # fmt: skip
            title = f"{title}\n{np.trace(counts)} of {counts.sum()} right"
            axis.set_title(title, fontsize=13 if columns < 3 else 11)
            axis.set(xlabel="predicted", ylabel="true")
            axis.tick_params(length=0)
        return figure


def plot_comparison(table: pd.DataFrame) -> Figure:
    """Accuracy of each run of `compare` with its 95 % interval; diamonds: accuracy of the original project.

    Only runs with the protocol slides and without augmentation have a diamond.
    """
    check_table("table", table, ["network", "chance", "accuracy", "accuracy 95 %"], "compare")
    ends = table["accuracy 95 %"].str.extract(r"\[(.+), (.+)\]").astype(float)
    lows, highs = (ends[end].fillna(table.accuracy).to_numpy() for end in ends)
    reported = {f"{network}_slides": original["accuracy"] for network, original in ORIGINAL.items()}
    with _figure(width=8.5, height=1.3 + 0.44 * len(table)) as (figure, axes):
        axis = axes[0, 0]
        for row, (name, run) in enumerate(table.iterrows()):
            colour = _colour_of(name)
            axis.plot([lows[row], highs[row]], [row, row], color=colour, lw=4, solid_capstyle="round", alpha=0.6)
            axis.plot(run.accuracy, row, "o", color=colour, markersize=9)
            if name in reported:
                axis.plot(reported[name], row, "D", mfc="none", mec="black", markersize=8)
            axis.annotate(f"{run.accuracy:.3f}", (run.accuracy, row), (0, 7), textcoords="offset points", ha="center")
        for chance in table.chance.unique():
            axis.axvline(chance, color="0.7", linestyle=":")
            axis.text(chance, -0.75, " chance", color="0.4", va="center")
        axis.set_yticks(range(len(table)), table.index)
        axis.set_ylim(len(table) - 0.4, -1)
        best = table.accuracy.to_numpy().argmax()
        others = np.delete(highs, best)
        title = f"Highest: {table.index[best]},\nits interval lies above all others"
        if not others.size:
            title = f"{table.index[best]}: {table['accuracy 95 %'].iloc[0]}"
        elif (others >= lows[best]).any():
            title = "The intervals overlap:\ncompare the networks with a paired test"
        label = "accuracy on the test images" + (" (diamond: the original)" if set(reported) & set(table.index) else "")
        axis.set(xlabel=label, title=title)
        axis.set_xlim(left=max(0, axis.get_xlim()[0]), right=1.02)
        return figure


def plot_roc(predictions: pd.DataFrame) -> Figure:
    """ROC curve (AUC with 95 % interval) and precision-recall curve of each class against the other two."""
    from sklearn.metrics import precision_recall_curve, roc_curve

    check_predictions(predictions, needed=PROBABILITIES)
    metrics = compute_metrics(predictions)
    with _figure(1, 2, 10.5, 3.7) as (figure, axes):
        (roc, pr), ends = axes[0], []
        for name in CLASSES:
            true, score = predictions.label.eq(name), predictions[f"p_{name}"]
            if true.all() or not true.any():
                continue  # no curve: only one of the two sides has images
            colour = CLASS_COLOURS[name]
            false_positive, true_positive, _ = roc_curve(true, score)
            roc.plot(false_positive, true_positive, color=colour, lw=2)
            precision, recall, _ = precision_recall_curve(true, score)
            pr.plot(recall, precision, color=colour, lw=2)
            pr.axhline(true.mean(), color=colour, linestyle=":", lw=1)
            ends.append((name, 1, true.mean(), colour))
        order = sorted((name for name, *_ in ends), key=lambda name: metrics[f"auc_{name}"])  # the largest AUC on top
        labels = [(f"{name} {with_interval(metrics, f'auc_{name}')}", 1, 1, CLASS_COLOURS[name]) for name in order]
        roc.plot([0, 1], [0, 1], color="0.7", linestyle=":", zorder=0)
        intervals = [metrics[f"auc_{name}_interval"] or (0, 1) for name in order]
        title = "ROC"
        if len(order) > 1:
            apart = intervals[-1][0] > max(high for _, high in intervals[:-1])
            title = f"ROC: {order[-1]}\nhas the highest AUC" if apart else "ROC: the intervals\nof the AUCs overlap"
        roc.set(xlabel="false alarms (1 - specificity)", ylabel="found (sensitivity)", title=title, ylim=(-0.03, 1.03))
        _label_ends(roc, labels)
        pr.set(xlabel="found (recall)", ylabel="precision", title="Precision; dotted: chance", ylim=(0, 1.03))
        _label_ends(pr, ends)
        return figure
