"""How often the 95 % intervals hold the truth: predictions of known accuracy, with errors that cluster in patients."""

import time

import numpy as np
import pandas as pd

from xray_utils.data import CLASSES
from xray_utils.evaluation import PROBABILITIES, _draws, _groups, _interval, _statistics


def made(n, accuracy, rng, images_per_group=2, clustered=0.6):
    """Predictions of known accuracy; in a share of the groups all images are right or wrong together."""
    group = np.arange(n) // images_per_group
    together = (rng.random(group.max() + 1) < clustered)[group]
    luck = np.where(together, rng.random(group.max() + 1)[group], rng.random(n))
    label = rng.integers(3, size=n)
    predicted = np.where(luck < accuracy, label, (label + rng.integers(1, 3, size=n)) % 3)
    columns = {"label": np.array(CLASSES)[label], "predicted": np.array(CLASSES)[predicted], "group": group}
    table = pd.DataFrame({"file": [f"{i}.png" for i in range(n)], **columns})
    rest = rng.uniform(0.05, 0.3, size=(n, 3))
    rest[np.arange(n), predicted] = 0
    rest[np.arange(n), predicted] = 1 - rest.sum(axis=1)
    return table.assign(**dict(zip(PROBABILITIES, rest.T, strict=True)))


def intervals(table, seed, resamples):
    """The interval of every number of `compute_metrics`, without its report."""
    group = _groups(table)
    drawn = [_statistics(table, weights[:, group]) for weights in _draws(group.max() + 1, resamples, seed)]
    return {name: _interval(np.concatenate([part[name] for part in drawn])) for name in drawn[0]}


def run(sets=2000, images=360, accuracy=0.85, images_per_group=2, resamples=2000, seed=0) -> dict:
    """The share of `sets` made predictions whose interval holds the truth, for every number."""
    start, rng = time.perf_counter(), np.random.default_rng(seed)
    large = made(200_000, accuracy, rng, images_per_group)
    truth = {name: float(value[0]) for name, value in _statistics(large, np.ones((1, len(large)))).items()}
    truth["accuracy"] = accuracy
    covered = dict.fromkeys(truth, 0)
    for i in range(sets):
        found = intervals(made(images, accuracy, rng, images_per_group), i, resamples)
        for name, (low, high) in found.items():
            covered[name] += low <= truth[name] <= high
    shares = {name: round(count / sets, 4) for name, count in covered.items() if truth[name] > 0}
    figures = {"sets": sets, "images": images, "images_per_group": images_per_group, "resamples": resamples}
    return {**figures, "covered": shares, "seconds": round(time.perf_counter() - start)}


if __name__ == "__main__":
    print(run())
