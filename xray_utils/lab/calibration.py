"""Calibration error, reliability table and temperature scaling."""

import numpy as np
import pandas as pd
import scipy

from .._support.checks import check_number, check_predictions, check_whole
from ..constants import CLASSES, PROBABILITIES


def calibration_error(predictions: pd.DataFrame, bins: int = 10) -> float:
    """Expected calibration error: mean |confidence - accuracy| over `bins` of equal width, weighted (Guo 2017)."""
    table = reliability(predictions, bins)
    return float((table.images * (table.accuracy - table.confidence).abs()).sum() / table.images.sum())


def reliability(predictions, bins=10):
    """For each confidence bin: mean confidence, accuracy and number of images (Guo et al. 2017, arXiv:1706.04599)."""
    check_predictions(predictions, needed=PROBABILITIES)
    check_whole("bins", bins, 1)
    confidence = predictions[PROBABILITIES].max(axis=1)
    bin_ = np.minimum((confidence * bins).astype(int), bins - 1)
    right = predictions.label.eq(predictions.predicted)
    bins = pd.DataFrame({"confidence": confidence, "accuracy": right}).groupby(bin_.rename("bin"))
    return bins.mean().assign(images=bins.size())


def fit_temperature(validation: pd.DataFrame) -> float:
    """Temperature that minimises the cross-entropy on `validation` (Guo et al. 2017); above 1: overconfident."""
    check_predictions(validation, "validation", PROBABILITIES)
    logits = np.log(validation[PROBABILITIES].to_numpy().clip(1e-12))
    own = np.take_along_axis(logits, validation.label.map(CLASSES.index).to_numpy()[:, None], axis=1)[:, 0]

    def loss(log_temperature):
        scale = np.exp(-log_temperature)
        return (scipy.special.logsumexp(logits * scale, axis=1) - own * scale).mean()

    return float(np.exp(scipy.optimize.minimize_scalar(loss, bounds=(-3, 3), method="bounded").x))


def apply_temperature(predictions: pd.DataFrame, temperature: float) -> pd.DataFrame:
    """Predictions with lower (above 1) or higher (below 1) confidence; the predicted class is unchanged."""
    check_predictions(predictions, needed=PROBABILITIES)
    check_number("temperature", temperature, lambda t: 0 < t < np.inf, "a positive number")
    logits = np.log(predictions[PROBABILITIES].clip(1e-12)) / temperature
    probabilities = scipy.special.softmax(logits.to_numpy(), axis=1).T
    return predictions.assign(**dict(zip(PROBABILITIES, probabilities, strict=True)))
