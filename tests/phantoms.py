"""Synthetic chest radiographs: X-rays with a known truth, to test what is said of real ones.

Each phantom adds up the shadows of simple shapes (trunk, lungs, ribs, heart, ...) and develops them like
a film. The classes differ only inside the lungs, where the diseases do; exposure, size and pose are drawn
apart from the class, so that overall tone or file properties do not give it away.

Draw a set and a second hospital: `python tests/phantoms.py folder`
"""

import argparse
import csv
import io
import os
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

LABELS = ("covid", "normal", "virus")
LETTERS = {  # the side marker, 5x7 dots
    "L": "10000 10000 10000 10000 10000 10000 11111",
    "R": "11110 10001 10001 11110 10100 10010 10001",
}
# What the 40 images of a class are saved as: (mode, extension, how many). The same for every class.
SPECS = (
    [("L", ".png", 7), ("L", ".jpg", 6), ("L", ".jpeg", 2), ("L", ".jfif", 1), ("RGB", ".png", 2)]
    + [("RGB", ".jpg", 9), ("RGB", ".jpeg", 3), ("RGB", ".jfif", 2), ("RGB", ".JPG", 1)]
    + [("RGBA", ".png", 3), ("P", ".png", 4)]
)
IMAGES_PER_PATIENT = [1] * 20 + [2] * 4 + [3] * 4  # 28 patients, 40 images a class
NEAR_DUPLICATES = 4  # of the 12 repeat images of a class; the others are new exposures
TINTED = 5  # blue covid images


def _edge(distance, width=0.01):
    """A soft step: 0 well below zero, 1 well above, `width` the blur in body units."""
    return 1 / (1 + np.exp(-np.clip(distance / width, -30, 30)))


def _noise(rng, x, y, scale, where=True):
    """Smooth noise with features of about `scale` body units, fixed to the body; about unit variance.

    where: the pixels that need it, the others are 0 (most of the drawing time goes here).
    """
    noise, where = np.zeros_like(x), np.broadcast_to(where, x.shape)
    grid = ndimage.spline_filter(rng.standard_normal([int(3 / scale) + 4] * 2), order=2)
    at = [(y[where] + 1.5) / scale, (x[where] + 1.5) / scale]
    noise[where] = 1.4 * ndimage.map_coordinates(grid, at, order=2, prefilter=False, mode="mirror")
    return noise


def _bone(distance, width):
    """The shadow of a tube: a flat band with a brighter rim (cortex)."""
    square = np.square(distance / width)
    return np.exp(-square * square) * (0.62 + 0.6 * square)


def _anatomy(seed, x, y):
    """Draw one patient at body coordinates x, y [H, W] (unit: lung height; x to the image right, y down).

    Returns the shadow without disease [H, W], and what a disease needs, each [H, W]: the soft lung field,
    the way across it (0 mediastinum to 1 chest wall), the distance from the hilum, and the vessels.
    """
    rng = np.random.default_rng([seed, 0])
    side = np.where(x < 0, -1, 1)  # -1: the patient's right, on the left of the image
    ax = np.abs(x)
    down = y + 0.5 + 0.012 * side * rng.uniform(-1, 1)
    t = np.clip(down, 0, 1)

    # Lung outline: chest wall, mediastinum with heart and aortic knob, diaphragm.
    apex, width = rng.uniform(0.18, 0.21), rng.uniform(0.43, 0.49)
    wall = apex + (width - apex) * (1 - (1 - t) ** rng.uniform(2.4, 3.2)) ** 0.55 + 0.015 * t * t
    wall += side * rng.normal(0, 0.008)
    medial = apex - (apex - rng.uniform(0.065, 0.085)) * np.sqrt(np.clip(3.5 * t, 0, 1))
    heart_x, heart_y = rng.uniform(0.045, 0.075), rng.uniform(0.20, 0.25)
    heart_w, heart_h, tilt = rng.uniform(0.13, 0.165), rng.uniform(0.21, 0.25), rng.uniform(0.5, 0.8)
    hx, hy = x - heart_x, y - heart_y
    along, over = hx * np.cos(tilt) + hy * np.sin(tilt), hy * np.cos(tilt) - hx * np.sin(tilt)
    heart = _edge(1 - np.sqrt((along / heart_h) ** 2 + (over / heart_w) ** 2), 0.06)
    knob = _edge(1 - np.hypot((x - 0.075) / 0.055, (y + 0.2) / 0.075), 0.16)
    lift = np.where(side < 0, rng.uniform(0.02, 0.05), 0)  # the liver lifts the right dome
    dome = 0.5 - lift - rng.uniform(0.11, 0.17) * (1 - np.clip((ax - 0.2) / (wall - 0.19), -1.2, 1) ** 2)
    lung = _edge(wall - ax) * _edge(ax - medial, 0.008) * _edge(dome - y, 0.007) * _edge(down, 0.012)
    lung_field = lung * (1 - heart) * (1 - knob)
    needed = lung_field > 1e-3

    # Trunk, neck and arms: thickness of an elliptic cylinder; outside is air.
    neck = 0.16 + 1.1 * np.sqrt(np.clip(y + 0.64, 0, 2))
    trunk = np.minimum(width + 0.12 + 0.10 * _edge(-y - 0.2, 0.07), neck)
    flesh = rng.uniform(0.02, 0.1)
    inside = np.sqrt(np.clip(1 - (ax / (trunk + flesh)) ** 2, 0, 1))
    shadow = 0.90 * inside + 0.03 * _noise(rng, x, y, 0.25) * inside
    arm = np.sqrt(np.clip(1 - ((ax - trunk - flesh - 0.10) / 0.13) ** 2, 0, 1)) * _edge(y + 0.36, 0.05)
    shadow += 0.5 * arm * rng.uniform(0.3, 1)

    # Air: the lungs (deepest in the middle of each), trachea, sometimes a stomach bubble.
    depth = np.sqrt(np.clip((wall - ax) * (ax - 0.3 * medial), 0, None)) / (0.45 * wall)
    air = lung * (1 - 0.88 * heart) * (1 - 0.6 * knob) * (0.55 + 0.45 * np.clip(depth, 0, 1))
    shadow -= rng.uniform(0.68, 0.78) * air
    shadow -= 0.2 * _edge(0.026 - np.abs(x - 0.012 * np.sin(4 * y)), 0.007) * _edge(-0.11 - y, 0.03)
    bubble = np.hypot((x - 0.2) / rng.uniform(0.06, 0.1), (y - rng.uniform(0.46, 0.53)) / 0.05)
    shadow -= rng.choice([0, 0.1, 0.2]) * _edge(1 - bubble, 0.12) * _edge(y - dome - 0.02)

    # Mediastinum, spine, liver and breasts.
    shadow += 0.26 * np.exp(-((x / 0.085) ** 2)) * _edge(y + 0.42, 0.05)
    shadow += 0.22 * heart + 0.10 * knob + 0.12 * _edge(y - dome, 0.05) * inside
    discs = np.cos(np.pi * y / rng.uniform(0.075, 0.09)) ** 2
    shadow += 0.10 * _bone(x - 0.01 * np.sin(3 * y), 0.052) * (1 - 0.45 * discs * discs)
    breast_x, breast_y, breast_r = rng.uniform(0.23, 0.29), rng.uniform(0.2, 0.3), rng.uniform(0.17, 0.22)
    breast = np.hypot(ax - breast_x, 1.1 * (y - breast_y)) / breast_r
    shadow += rng.choice([0, 0, 0.07, 0.12]) * _edge(1 - breast, 0.07) * np.clip(0.4 + breast, 0, 1)

    # Ribs: one curve repeated down each side, in front (faint) and behind; then clavicles and shoulders.
    step, start = rng.uniform(0.088, 0.102), rng.uniform(0, 0.1)
    s = np.clip(ax / (wall + 0.015), 0, 1.2)
    bend, slope = rng.uniform(0.03, 0.05), rng.uniform(0.09, 0.14)
    cage = _edge(wall + 0.022 - ax, 0.006) * _edge(down + 0.02, 0.02) * (1 - 0.75 * _edge(y - dome, 0.02))

    def ribs(curve, half_width):
        return _bone((y - curve - start) % step - step / 2, half_width) * cage

    behind = ribs(slope * s * s - bend * np.sin(np.pi * s), 0.0165) * _edge(ax - 0.05, 0.01)
    front = ribs(slope + rng.uniform(0.3, 0.4) * np.clip(1 - s, 0, 1), 0.021) * _edge(s - 0.42, 0.05)
    shadow += (rng.uniform(0.10, 0.15) * behind + rng.uniform(0.05, 0.08) * front) * _edge(y + 0.44, 0.02)
    clavicle_y = -0.40 - rng.uniform(0.1, 0.28) * (ax - 0.2) + 0.025 * np.sin(11 * ax)
    shadow += 0.20 * _bone(y - clavicle_y, 0.02) * _edge(ax - 0.055, 0.008) * _edge(0.5 - ax, 0.02)
    humerus = np.hypot(ax - width - 0.155, (y + 0.41) * 0.9) / 0.075
    shadow += 0.2 * _edge(1 - humerus, 0.06) * inside
    scapula = _edge(ax - wall + 0.055 - 0.1 * (y + 0.2), 0.008) * _edge(0.06 - np.abs(y + 0.12) / 3.6, 0.01)
    shadow += 0.07 * scapula * inside

    # Vessels: branches fan out from the hilum and thin with distance.
    rx, ry = ax - 0.10, y + 0.01 - 0.02 * side
    r = np.hypot(rx, ry)
    angle = np.arctan2(ry, rx) + 0.13 * _noise(rng, x, y, 0.2, needed)
    vessels = np.exp(-((rx / 0.04) ** 2) - (ry / 0.085) ** 2) * 1.1
    for count, near, far in [(11, 0.0, 0.26), (23, 0.10, 0.42)]:
        turn = count * angle / (2 * np.pi) + rng.uniform() * side
        arc = np.abs((turn % 1) - 0.5) * 2 * np.pi / count * np.maximum(r, 0.03)
        thick = 0.010 * np.exp(-r / 0.22) + 0.0022
        vessels += np.exp(-((arc / thick) ** 2)) * _edge(r - near, 0.02) * np.exp(-((r / far) ** 2)) * 0.8
    vessels *= np.clip(0.75 + 0.4 * _noise(rng, x, y, 0.12, needed), 0.1, 1.5)
    shadow += lung_field * (rng.uniform(0.10, 0.16) * vessels + 0.012 * _noise(rng, x, y, 0.03, needed))

    across = np.clip((ax - medial) / np.maximum(wall - medial, 0.03), 0, 1)
    return shadow, {"lung": lung_field, "across": across, "hilum": r, "vessels": vessels}


def _disease(label, seed, x, y, place):
    """The shadow a disease adds, [H, W]. The same patient has it in the same places in every image."""
    rng = np.random.default_rng([seed, 1, LABELS.index(label)])
    severity = rng.uniform(0.4, 1.1)
    if label == "normal":
        return np.zeros_like(x)
    needed = place["lung"] > 1e-3
    if label == "virus":  # interstitial: fine lines and thickened bronchi, both lungs, densest at the hila
        fine = np.exp(-((_noise(rng, x, y, 0.030, needed) / 0.32) ** 2))
        fine += np.exp(-((_noise(rng, x, y, 0.05, needed) / 0.22) ** 2))
        weight = 0.2 + np.exp(-((place["hilum"] / rng.uniform(0.2, 0.3)) ** 2))
        return severity * place["lung"] * weight * (0.17 * fine + 0.12 * place["vessels"] + 0.06)
    clear = np.ones_like(x)  # covid: patches of ground glass, both lungs, lower and outer zones
    for k in range(rng.integers(5, 9)):
        cx = rng.uniform(0.27, 0.42) * (-1) ** k
        cy = rng.uniform(0.02, 0.36) if k < 4 else rng.uniform(-0.25, 0.3)
        long, short, turn = rng.uniform(0.09, 0.15), rng.uniform(0.05, 0.09), rng.uniform(-0.6, 0.6)
        u = (x - cx) * np.cos(turn) + (y - cy) * np.sin(turn)
        v = (y - cy) * np.cos(turn) - (x - cx) * np.sin(turn)
        ragged = np.hypot(u / short, v / long) + 0.2 * _noise(rng, x, y, 0.07, needed)
        clear *= 1 - rng.uniform(0.5, 0.9) * _edge(1 - ragged, 0.26)
    mottle = np.clip(1 + 0.18 * _noise(rng, x, y, 0.035, needed), 0, 2)
    return severity * place["lung"] * (0.3 + 0.7 * place["across"]) * 0.42 * (1 - clear) * mottle


def _film(shadow, rng):
    """Develop a shadow [H, W] to grey levels: tone curve, fall-off, side marker, collimator, grain."""
    height, width = shadow.shape
    image = 1 - np.exp(-rng.uniform(0.9, 1.5) * np.clip(shadow, 0, None))
    row, column = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    image *= 1 + 0.08 * (rng.uniform(-1, 1) * column + rng.uniform(-1, 1) * row)
    image *= 1 - rng.uniform(0, 0.16) * (column**2 + row**2)

    letter = rng.choice(["L", "R"])
    dots = np.array([list(line) for line in LETTERS[letter].split()], float)
    size = max(1, round(min(height, width) / rng.uniform(110, 150)))
    mark = ndimage.gaussian_filter(np.pad(np.kron(dots, np.ones((size, size))), size), 0.35 * size)
    top = int(height * rng.uniform(0.04, 0.12))
    left = int(width * rng.uniform(0.04, 0.09))
    left = width - left - mark.shape[1] if letter == "L" else left
    patch = image[top : top + mark.shape[0], left : left + mark.shape[1]]
    patch += (rng.uniform(0.85, 1.05) - patch) * mark

    if rng.random() < 0.3:  # collimated: dark, slightly crooked borders
        margin, lean = rng.uniform(0.01, 0.05, 4), rng.uniform(-0.02, 0.02)
        across, along = column + lean * row, row - lean * column
        for from_border, m in zip([1 + across, 1 - across, 1 + along, 1 - along], margin, strict=True):
            image *= 0.06 + 0.94 * _edge(from_border - 2 * m, 0.006)

    image = ndimage.gaussian_filter(image, rng.uniform(0.3, 0.7))
    grain = rng.standard_normal(image.shape)
    grain += 2.2 * ndimage.gaussian_filter(rng.standard_normal(image.shape), 0.9)
    image += rng.uniform(0.005, 0.011) * grain
    mean, std = rng.uniform(105, 150), rng.uniform(46, 62)
    for _ in range(4):  # clipping shifts both a little: repeat
        image = np.clip((image - image.mean()) / image.std() * std + mean, 0, 255)
    return np.round(image).astype(np.uint8)


def draw_phantom(label, seed, size=(256, 256), image=0, tint=False):
    """Draw one synthetic frontal chest radiograph and its lung field.

    label: "covid", "normal" or "virus"; the anatomy, pose and exposure are the same whatever it is.
    seed: the patient, an integer >= 0; image: which of the patient's images, an integer >= 0.
    size: (height, width) in pixels, 32 or more. tint: blue, as some scanned films are.
    Returns the image, uint8 [H, W] ([H, W, 3] with tint), and the lung mask, bool [H, W].
    Raises ValueError for another label, or a size below 32.
    """
    if label not in LABELS:
        raise ValueError(f"label: {label!r} is unknown. Allowed: {', '.join(LABELS)}.")
    height, width = size
    if min(height, width) < 32:
        raise ValueError(f"size: {size} must be (height, width) of at least 32 pixels each.")
    rng = np.random.default_rng([seed, 2, image])
    scale = min(height, width) / rng.uniform(1.16, 1.32)  # pixels in a lung height
    turn, stretch = rng.normal(0, 0.03), rng.uniform(0.95, 1.06)  # lean; breath held deeper or less
    row, column = np.mgrid[:height, :width].astype(float)
    dx = (column - (width - 1) / 2) / scale - rng.normal(0, 0.025)
    dy = (row - (height - 1) / 2) / scale - rng.normal(0, 0.025)
    x = dx * np.cos(turn) + dy * np.sin(turn)
    y = (dy * np.cos(turn) - dx * np.sin(turn)) / stretch

    shadow, place = _anatomy(seed, x, y)
    grey = _film(shadow + _disease(label, seed, x, y, place), rng)
    if tint:  # darker red, lighter blue, about the same luminance
        colours = [255 * (grey / 255) ** power for power in (1.25, 1.0, 0.7)]
        grey = np.round(np.stack(colours, axis=-1)).astype(np.uint8)
    return grey, place["lung"] > 0.5


def _encode(image, mode, extension, quality):
    """The bytes of a uint8 image [H, W] or [H, W, 3] as a file of this mode and extension."""
    picture = Image.fromarray(image)
    if mode == "P":  # a palette of greys
        picture.putpalette([level for level in range(256) for _ in range(3)])
    elif picture.mode != mode:
        picture = picture.convert(mode)
    file = io.BytesIO()
    if extension == ".png":
        picture.save(file, "PNG", optimize=True)
    else:
        picture.save(file, "JPEG", quality=quality)
    return file.getvalue()


def _write(path, content):
    """Write bytes under a temporary name, then rename: a file is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _draw_class(label, seed, patients):
    """Yield (file, patient_id, bytes) for the 40 images of a class, as mixed as a real collection."""
    rng = np.random.default_rng([seed, 3, LABELS.index(label)])
    specs = [(mode, extension) for mode, extension, count in SPECS for _ in range(count)]
    counts = rng.permutation(IMAGES_PER_PATIENT)
    plan = [(patient, k, n) for patient, n in zip(patients, counts, strict=True) for k in range(1, n + 1)]
    order = rng.permutation(len(specs))
    copies = rng.choice([i for i, (_, k, _) in enumerate(plan) if k > 1], NEAR_DUPLICATES, replace=False)
    single_rgb = [i for i, (_, _, n) in enumerate(plan) if n == 1 and specs[order[i]][0] == "RGB"]
    tinted = single_rgb[:TINTED] if label == "covid" else []

    first = None
    for i, (patient, k, _) in enumerate(plan):
        mode, extension = specs[order[i]]
        # Lossless files are small ones, or the sample would weigh too much.
        side = rng.uniform(180, 220) if extension == ".png" else 200 + 200 * rng.uniform() ** 3
        aspect = rng.uniform(0.8, 1.3)
        if i in copies:  # the patient's first image again: resized, a little lighter or darker
            height, width = (round(side * length / max(first.shape)) for length in first.shape)
            image = Image.fromarray(first).resize((width, height), Image.Resampling.BICUBIC)
            image = np.clip(np.asarray(image) + rng.integers(-8, 9), 0, 255).astype(np.uint8)
        else:
            size = round(side / max(1, aspect)), round(side * min(1, aspect))
            image, _ = draw_phantom(label, 1000 * seed + patient, size, k, tint=i in tinted)
        if k == 1:
            first = image
        content = _encode(image, mode, extension, quality=int(rng.integers(70, 91)))
        yield f"{label}/phantom_{label}_p{patient:02d}_{k}{extension}", f"p{patient:02d}", content


def _check_manifest(manifest):
    if manifest.exists():
        with manifest.open(newline="", encoding="utf-8") as file:
            if any(not (row.get("source") or "").startswith("synthetic") for row in csv.DictReader(file)):
                raise FileExistsError(f"folder: {manifest} lists images that are no phantoms. Give another folder.")


def draw_sample(folder, seed=0):
    """Write a synthetic set: 121 images of 84 patients in a folder a class, and manifest.csv; about 2 MB.

    Mixed in size, mode and format alike in every class; near-duplicates belong to the patient they came
    from, one file is there twice, five covid images are blue. Other files in the folder are left alone.
    Returns the path of the manifest (file, label, patient_id, source), written last.
    Raises FileExistsError where the folder has a manifest of other images.
    """
    folder = Path(folder)
    manifest = folder / "manifest.csv"
    _check_manifest(manifest)
    rng = np.random.default_rng([seed, 4])
    patients = 1 + rng.permutation(len(LABELS) * len(IMAGES_PER_PATIENT)).reshape(len(LABELS), -1)
    rows = []
    for label, numbers in zip(LABELS, patients.tolist(), strict=True):
        for name, patient, content in _draw_class(label, seed, sorted(numbers)):
            _write(folder / name, content)
            rows.append((name, label, patient, "synthetic"))

    name, *rest = rows[rng.choice([i for i, row in enumerate(rows) if "_3." in row[0]])]
    again = name.replace("_3.", "_4.")
    _write(folder / again, (folder / name).read_bytes())
    rows.append((again, *rest))

    table = io.StringIO()
    header = ("file", "label", "patient_id", "source")
    csv.writer(table, lineterminator="\n").writerows([header, *sorted(rows)])
    _write(manifest, table.getvalue().encode())
    return manifest


def draw_external(folder, seed=0, per_class=12):
    """Write a second synthetic hospital: covid and normal alone, other patients, darker films with a bright upper edge.

    Returns the path of the manifest (file, label, patient_id, source, view), written last.
    """
    manifest, rows = Path(folder) / "manifest.csv", []
    _check_manifest(manifest)
    for label in LABELS[:2]:
        for i in range(per_class):
            rng = np.random.default_rng([seed, 5, LABELS.index(label), i])
            patient = 500 + 100 * LABELS.index(label) + i  # beyond those of the sample
            image, _ = draw_phantom(label, 1000 * seed + patient, tuple(rng.integers(190, 260, 2).tolist()))
            image = np.round(255 * (image / 255) ** 1.6).astype(np.uint8)
            image[:7] = 190
            name = f"{label}/phantom_{label}_h{patient}.jpg"
            _write(Path(folder) / name, _encode(image, "L", ".jpg", quality=85))
            rows.append((name, label, f"h{patient}", "synthetic hospital 2", ("AP", "PA")[i % 2]))
    table = io.StringIO()
    header = ("file", "label", "patient_id", "source", "view")
    csv.writer(table, lineterminator="\n").writerows([header, *sorted(rows)])
    _write(manifest, table.getvalue().encode())
    return manifest


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Draw a synthetic set and a second hospital beside it.")
    parser.add_argument("folder", type=Path)
    chosen = parser.parse_args().folder
    print(draw_sample(chosen))
    print(draw_external(chosen.with_name(f"{chosen.name}_external")))
