"""How often the 95 % intervals hold the truth: predictions of known accuracy, with errors that cluster in patients."""

import time

import numpy as np
import pandas as pd
import scipy

from xray_utils.constants import CLASSES, PROBABILITIES
from xray_utils.metrics import _draws, _groups, _percentile_interval, _statistics, compare_two, numbers_of

SETS = [  # images, accuracy, images of a patient: from the easiest for an interval to what the course has
    (360, 0.85, 2),
    (180, 0.85, 3),
    (180, 0.96, 1),
    (180, 0.96, 2),
    (180, 0.98, 1),
    (60, 0.90, 1),
]

AREAS = [  # images with covid and normal, how far their scores lie apart, share of covid images that look normal
    (26, 30, 0.75, 0.0),
    (30, 100, 2.3, 0.0),
    (30, 100, 4.1, 0.0),
    (30, 100, 6.0, 0.02),
    (30, 100, 6.0, 0.05),
]


def made(n, accuracy, rng, images_per_group=2, clustered=0.6):
    """Predictions of known accuracy; in a share of the groups all images are right or wrong together."""
    group = np.arange(n) // images_per_group
    together = (rng.random(group.max() + 1) < clustered)[group]
    luck = np.where(together, rng.random(group.max() + 1)[group], rng.random(n))
    label = rng.integers(3, size=n)
    predicted = np.where(luck < accuracy, label, (label + rng.integers(1, 3, size=n)) % 3)
    columns = {"label": np.array(CLASSES)[label], "predicted": np.array(CLASSES)[predicted], "group": group}
    table = pd.DataFrame({"file": [f"{i}.png" for i in range(n)], **columns})
    rest = rng.uniform(0, 0.3, size=(n, 3))
    rest[np.arange(n), predicted] = 0
    rest[np.arange(n), predicted] = 1 - rest.sum(axis=1)
    return table.assign(**dict(zip(PROBABILITIES, rest.T, strict=True)))


def covered(images, accuracy, images_per_group, sets, resamples, seed=0, with_percentiles=False):
    """The share of `sets` made predictions whose interval holds the truth, for every number."""
    rng = np.random.default_rng(seed)
    large = made(200_000, accuracy, rng, images_per_group)
    truth = {name: float(value[0]) for name, value in _statistics(large, np.ones((1, len(large)))).items()}
    truth["accuracy"], held, plain = accuracy, dict.fromkeys(truth, 0), dict.fromkeys(truth, 0)
    for i in range(sets):
        table = made(images, accuracy, rng, images_per_group)
        for name, (_, (low, high)) in numbers_of(table, resamples, i).items():
            held[name] += low <= truth[name] <= high
        for name, (low, high) in percentiles(table, resamples, i).items() if with_percentiles else ():
            plain[name] += low <= truth[name] <= high
    shares = [{name: round(count / sets, 4) for name, count in counts.items()} for counts in (held, plain)]
    return shares if with_percentiles else shares[0]


def percentiles(table, resamples, seed):
    """The middle 95 % of the bootstrap values of every number: the interval that most papers give."""
    group = _groups(table)
    drawn = [_statistics(table, weights[:, group]) for weights in _draws(group.max() + 1, resamples, seed)]
    return {
        name: _percentile_interval(np.concatenate([part[name] for part in drawn]), group.max() + 1) for name in drawn[0]
    }


def difference_covered(images, accuracy, images_per_group, sets, resamples, lost=0.04, gained=0.4, seed=0):
    """The same for the paired difference of two networks: the second loses and gains so much of the first's answers."""
    rng, held, truth = np.random.default_rng(seed), 0, (1 - accuracy) * gained - accuracy * lost
    for i in range(sets):
        first = made(images, accuracy, rng, images_per_group).drop(columns=PROBABILITIES)
        right, luck = first.label.eq(first.predicted), rng.random(images)
        wrong = first.predicted.where(
            ~right, first.label.map(dict(zip(CLASSES, [*CLASSES[1:], CLASSES[0]], strict=True)))
        )
        second = first.assign(predicted=first.label.where(np.where(right, luck > lost, luck < gained), wrong))
        low, high = compare_two(first, second, resamples=resamples, seed=i)["difference_interval"]
        held += low <= truth <= high
    return round(held / sets, 4)


def area_covered(covid, normal, apart, hard, sets, resamples, seed=0):
    """The same for the area under the ROC curve of two classes with normal scores, up to one that is nearly 1."""
    rng, held = np.random.default_rng(seed), 0
    truth = (1 - hard) * scipy.stats.norm.cdf(apart / 2**0.5) + hard / 2
    label = np.repeat(["covid", "normal"], [covid, normal])
    for i in range(sets):
        scores = rng.normal(size=covid + normal) + apart * ((label == "covid") & (rng.random(covid + normal) >= hard))
        p = scipy.special.expit(scores)
        table = pd.DataFrame({"file": np.arange(len(p)).astype(str), "label": label, "predicted": "covid"})
        table = table.assign(p_covid=p, p_normal=1 - p, p_virus=0.0)
        low, high = numbers_of(table, resamples, i)["auc_covid"][1]
        held += low <= truth <= high
    return {"area": round(float(truth), 4), "covered": round(held / sets, 4)}


def run(sets=2000, resamples=500) -> dict:
    """`covered`, and of two networks `difference_covered`, for each of `SETS`."""
    start, found = time.perf_counter(), []
    for images, accuracy, per_group in SETS:
        shares, plain = covered(images, accuracy, per_group, sets, resamples, with_percentiles=True)
        shares["difference"] = difference_covered(images, accuracy, per_group, sets, resamples)
        found.append(dict(images=images, accuracy=accuracy, images_per_group=per_group, covered=shares))
        found[-1]["covered_by_percentiles"] = plain
    areas = []
    for case in AREAS:
        names = dict(zip(("covid", "normal", "apart", "hard"), case, strict=True))
        areas.append(names | area_covered(*case, sets, resamples))
    return {
        "sets": sets,
        "resamples": resamples,
        "made": found,
        "areas": areas,
        "seconds": round(time.perf_counter() - start),
    }


if __name__ == "__main__":
    print(run())
