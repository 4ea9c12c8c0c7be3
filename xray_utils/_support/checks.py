"""Checks of arguments: a ValueError begins with the name of the argument and says what is allowed."""

import numbers
import os
from pathlib import Path

import numpy as np
import pandas as pd

from ..constants import CLASSES, PROBABILITIES, SPLITS

MAX_SIZE = 4096  # pixels along a side of a prepared image
KNOWN = {"label": ("classes", CLASSES), "predicted": ("classes", CLASSES), "split": ("sides", SPLITS)}


def _shown(value):
    text = repr(value)
    return text if len(text) <= 100 and "\n" not in text else f"a {type(value).__name__}"


def check_kind(argument, value, kind, what, instead):
    """`value` is of this type, called `what`; `instead` says what to pass."""
    if not isinstance(value, kind):
        raise ValueError(f"{argument}: {_shown(value)} is no {what}; pass {instead}.")


def check_choice(argument, value, allowed, more=""):
    """`value` is one of `allowed` (words, or None)."""
    if not isinstance(value, str | None) or value not in allowed:
        raise ValueError(f"{argument}: {_shown(value)} is unknown. Allowed: {', '.join(map(repr, allowed))}{more}.")


def check_flag(argument, value):
    """`value` is True or False."""
    if not isinstance(value, bool):
        raise ValueError(f"{argument}: {_shown(value)} must be True or False.")


def check_number(argument, value, is_good, allowed):
    """`value` is a number for which `is_good` holds."""
    if not isinstance(value, numbers.Real) or isinstance(value, bool) or not is_good(value):
        raise ValueError(f"{argument}: {_shown(value)} must be {allowed}.")


def check_whole(argument, value, least=0, most=2**32 - 1, more=""):
    """`value` is a whole number in this range (seeds must be below 2**32)."""
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or not least <= value <= most:
        end = f"at most {most:,}" if most < 2**32 - 1 else "below 2**32"
        raise ValueError(f"{argument}: {_shown(value)} must be a whole number of at least {least} and {end}{more}.")


def check_size(size):
    """`size` is the side of a prepared image, in pixels."""
    check_whole("size", size, 1, MAX_SIZE)


def check_path(argument, value, instead):
    """`value` is a path; it need not exist."""
    if not isinstance(value, str | os.PathLike) or not str(value) or "\0" in str(value):
        raise ValueError(f"{argument}: {_shown(value)} is no path; pass {instead}.")


def check_array(argument, values, shape, allowed, is_good=np.isfinite):
    """`values` as an array of floats; it has this shape (None: any length), and `is_good` holds for all of them."""
    try:
        array = np.asarray(values, float)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{argument}: {_shown(values)} must be {allowed}.") from error
    if array.ndim != len(shape) or any(n not in (None, m) for n, m in zip(shape, array.shape, strict=True)):
        raise ValueError(f"{argument}: {array.shape} must be {allowed}.")
    if not is_good(array).all():
        raise ValueError(f"{argument}: {array[~is_good(array)][0]} is in it; it must be {allowed}.")
    return array


def check_table(argument, table, columns, maker):
    """Raise ValueError unless `table` has rows, these columns without empty cells, and in them known classes only."""
    check_kind(argument, table, pd.DataFrame, "table", f"the one made by {maker}")
    for column in columns:
        if column not in table:
            raise ValueError(f"{argument}: column {column!r} is missing; pass the table made by {maker}.")
    if table.empty:
        raise ValueError(f"{argument}: the table is empty; pass the one made by {maker}.")
    for column in columns:
        cells = table[column]
        what, known = KNOWN.get(column, ("", ()))
        if known and not cells.isin(known).all():
            wrong = cells[~cells.isin(known)].iloc[0]
            raise ValueError(f"{argument}: {wrong!r} is none of the {what} {', '.join(known)}.")
        if cells.isna().any():
            raise ValueError(f"{argument}: column {column!r} has no value in row {cells.isna().idxmax()!r}; fill it.")


def check_predictions(predictions, argument="predictions", needed=()):
    """Raise ValueError for a missing column, an empty table, an unknown class, or p_... that are no probabilities."""
    check_table(argument, predictions, ["file", "label", "predicted"], "predict")
    check_table(argument, predictions, ["group"] if "group" in predictions else [], "predict")
    for column in (name for name in PROBABILITIES if name in predictions):
        good = pd.to_numeric(predictions[column], errors="coerce").between(0, 1)
        if not good.all():
            file, value = predictions.loc[~good, ["file", column]].iloc[0]
            raise ValueError(f"{argument}: {column} of {file!r} is {value}; it must be a number from 0 to 1.")
    check_table(argument, predictions, needed, "predict")


def check_dict(argument, tables, hint):
    """Raise ValueError unless `tables` is a dict that is not empty."""
    if not isinstance(tables, dict) or not tables:
        raise ValueError(f"{argument}: there is nothing by name in this {type(tables).__name__}; pass {hint}.")


def check_tables(argument, tables, needed=(), hint="{'name': the table made by predict, ...}"):
    """Raise ValueError unless `tables` is `{"name": predictions}`."""
    check_dict(argument, tables, hint)
    for name, table in tables.items():
        check_predictions(table, f"{argument}[{name!r}]", needed)


def check_histories(argument, histories, *columns):
    """Raise ValueError unless `histories` is `{"name": table}`, each table with `epoch` and these columns filled."""
    check_dict(argument, histories, "{'name': run.history, ...}")
    for name, history in histories.items():
        check_table(f"{argument}[{name!r}]", history, ["epoch", *columns], "fit")


def _check_names(names):
    listed = np.iterable(names) and not isinstance(names, str)
    if not listed or not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise ValueError(f"names: {names!r} must be a list of run names, such as ['baseline_cnn_grouped'].")
