"""Statistics of the training images, saved with the run; `classify` warns if an image is unlike them."""

import json

import numpy as np
from PIL import Image

from .files import whole_file

FILE = "training_images.json"  # in the folder of a run: means and covariances, no image
SIDE = 8  # pixels of a thumbnail
LEAST, MOST = 40, 2000  # images: with fewer there is no check; of more, a part is used
FAR, WITHOUT_LUNGS = 0.99, 0.9  # quantiles of the distance of known images, beyond which an image is called unlike
TURNS = {
    "its grey levels look inverted": lambda pixels: 255 - pixels,
    "it looks turned to the right": lambda pixels: np.rot90(pixels, 1, (1, 2)),
    "it looks upside down": lambda pixels: np.rot90(pixels, 2, (1, 2)),
    "it looks turned to the left": lambda pixels: np.rot90(pixels, 3, (1, 2)),
}


def _features(pixels):
    """[N, 67] of uint8 pixels [N, H, W, 3]: a standardised thumbnail, then brightness, contrast and fine detail."""
    grey = pixels.mean(axis=-1)
    small = [Image.fromarray(one.astype(np.float32)).resize((SIDE, SIDE), Image.Resampling.BOX) for one in grey]
    small = np.stack(small).reshape(len(pixels), -1)
    mean, contrast = small.mean(axis=1, keepdims=True), small.std(axis=1, keepdims=True)
    whole, fine = grey.std(axis=(1, 2)), np.abs(np.diff(grey, axis=2)).mean(axis=(1, 2))
    levels = 3 * np.stack([mean[:, 0] / 64, np.log(whole + 1), np.log(fine + 0.3)], axis=1)
    return np.hstack([(small - mean) / (contrast + 1), levels])


def _colour(pixels):
    """[N] of uint8 pixels [N, H, W, 3]: the mean difference between the highest and the lowest channel."""
    return np.ptp(pixels.astype(np.int16), axis=-1).mean(axis=(1, 2))


def save_typical(folder, data):
    """Write `FILE` unless it is there. The distances of training and validation images are cross-validated by group."""
    known = [(side, i) for side in (data.train, data.val) for i in np.flatnonzero(~side.rows.mirrored.to_numpy())]
    known = known[:: -(-len(known) // MOST)]
    groups = [side.rows.group.iloc[i] for side, i in known]
    if (folder / FILE).is_file() or len(known) < LEAST or len(set(groups)) < 5:
        return
    from sklearn.covariance import LedoitWolf  # slow to import
    from sklearn.model_selection import GroupKFold

    images = [side.take(np.array([i])) for side, i in known]
    x, colour = np.vstack([_features(one) for one in images]), [_colour(one)[0] for one in images]
    distances = np.empty(len(x))
    for fitted, left_out in GroupKFold(5).split(x, groups=groups):
        distances[left_out] = LedoitWolf().fit(x[fitted]).mahalanobis(x[left_out])
    fit = LedoitWolf().fit(x)
    numbers = {"mean": fit.location_.tolist(), "precision": fit.precision_.tolist(), "images": len(x)}
    numbers |= {"far": np.quantile(distances, FAR), "without_lungs": np.quantile(distances, WITHOUT_LUNGS)}
    with whole_file(folder / FILE) as path:
        path.write_text(json.dumps(numbers | {"colour": max(8.0, np.quantile(colour, FAR))}))


def load_typical(folder):
    """Read the file of `save_typical`; None if there is none, ValueError if it is broken."""
    if not (folder / FILE).is_file():
        return None
    try:
        known = json.loads((folder / FILE).read_text())
        return known | {"mean": np.array(known["mean"]), "precision": np.array(known["precision"])}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"run: {folder.name}/{FILE} is broken ({error}). Remove it and call fit again.") from error


def reasons_against(pixels, known, lungs):
    """Why the image uint8 [H, W, 3] is unlike those of `load_typical`: a list of reasons, empty if it is like them.

    By the Mahalanobis distance with the covariance of Ledoit & Wolf (2004). lungs: whether two lungs were found.
    """
    versions = [pixels[None], *(turn(pixels[None]) for turn in TURNS.values())]
    off = np.vstack([_features(one) for one in versions]) - known["mean"]
    distance, *others = ((off @ known["precision"]) * off).sum(axis=1)
    found = ["it is coloured"] if _colour(pixels[None])[0] > known["colour"] else []
    nearest = int(np.argmin(others))
    if others[nearest] < min(distance, known["far"]):
        return [*found, list(TURNS)[nearest]]
    if not lungs and distance > known["without_lungs"]:
        found.append("no two lungs were found")
    if distance > known["far"]:
        found.append("its brightness, contrast or coarse structure differ")
    return found
