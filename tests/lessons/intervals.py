"""A mean over seeds and its 95 % interval, over seeds and patients at once.

Each seed has a split of its own, so that a patient is tested under some seeds and not under others. Seeds and patients
are both drawn with replacement, independently, and an answer counts as often as its seed and its patient were drawn
together (pigeonhole bootstrap, Owen 2007, doi:10.1214/07-AOAS122). From the spread of these draws the interval is made
as in `xu.compute_metrics` (Wilson's, for a share or an area) and `xu.compare_two` (Student's, for a difference).
"""

import numpy as np
import pandas as pd

from xray_utils.metrics import _difference_interval, _draws, _statistics, _wilson_interval


def called_covid(table, weights):
    """The share of the images that is called covid, for each row of `weights` [R, images]."""
    return weights @ table.predicted.eq("covid").to_numpy() / weights.sum(axis=1)


def number_of(statistic):
    """A function of a predictions table and weights [R, images]: one of the numbers of `xu.compute_metrics`."""
    return lambda table, weights: _statistics(table, weights)[statistic]


def over_seeds(tables, number, than=None, resamples=2000, seed=0):
    """The mean of `number` over `{seed: predictions}`, or of its difference to that of the tables `than`.

    number: a name of `xu.compute_metrics`, or a function as `called_covid`. A dict: `mean`, `interval`, `seeds` (the
    number of each), `images` (answers in all) and `patients`.
    """
    number = number_of(number) if isinstance(number, str) else number
    sides = [tables] if than is None else [tables, than]
    names = pd.concat([table.group for side in sides for table in side.values()]).unique()
    place = pd.Series(np.arange(len(names)), names)
    rng = np.random.default_rng([seed, 1])

    def values(weights_of):  # [R, seeds]
        one, *other = (
            np.stack([number(table, weights_of(table)) for table in side.values()], axis=1) for side in sides
        )
        return one - other[0] if other else one

    drawn = []
    for weights in _draws(len(names), resamples, seed):
        of_seeds = rng.multinomial(len(tables), np.full(len(tables), 1 / len(tables)), len(weights))
        of_patients = values(lambda table, w=weights: w[:, place[table.group].to_numpy()])
        known = np.where(np.isnan(of_patients), 0, of_seeds)  # a draw of patients may lack a class
        with np.errstate(invalid="ignore"):
            drawn.append((known * np.nan_to_num(of_patients)).sum(axis=1) / known.sum(axis=1))
    each = values(lambda table: np.ones((1, len(table))))[0]
    images = sum(len(table) for table in tables.values())
    if than is None:
        interval = _wilson_interval(each.mean(), np.concatenate(drawn), len(names), images)
    else:
        interval = _difference_interval(each.mean(), np.concatenate(drawn), len(names))
    found = {"mean": each.mean(), "interval": interval, "seeds": each.tolist()}
    return found | {"images": images, "patients": len(names)}
