"""How often `classify` calls an image unlike the training images: rightly of changed and drawn ones, wrongly of X-rays.

    XRAY_DATA=data/sample python results/scripts/unlike.py sample
    XRAY_DATA=data/xray XRAY_EXTERNAL=data/external python results/scripts/unlike.py real

adds the rows of this set to results/tables/unlike.csv. Nothing is trained: the check knows the training and validation
images of each split, not the network. The rule was chosen on splits 0 to 2; this uses splits 5 to 9.
"""

import sys
import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw, ImageFilter

import xray_utils as xu
from xray_utils._support.typical import load_typical, reasons_against, save_typical

TABLE = Path(__file__).parents[1] / "tables" / "unlike.csv"
SIZE, SEEDS, DRAWN = 112, range(5, 10), 20


def cloud(rng, power):
    """Noise whose spectrum falls with the frequency, as that of photographs does."""
    at = np.fft.fftfreq(SIZE)
    noise = np.fft.fft2(rng.standard_normal((SIZE, SIZE))) / (np.hypot(at[:, None], at[None]) + 1 / SIZE) ** power
    return np.fft.ifft2(noise).real


def gradient(rng):
    y, x = np.mgrid[-1 : 1 : SIZE * 1j, -1 : 1 : SIZE * 1j]
    turn = rng.uniform(0, 2 * np.pi)
    return x * np.cos(turn) + y * np.sin(turn)


def text_page(rng):
    page = Image.new("L", (SIZE, SIZE), 255)
    for y in range(4, SIZE, 11):
        words = "".join(rng.choice(list("abcdefgh ijklmnop "), int(rng.integers(8, SIZE // 6))))
        ImageDraw.Draw(page).text((4, y), words, fill=0)
    return np.asarray(page)


def shapes(rng):
    page = Image.new("L", (SIZE, SIZE), int(rng.integers(256)))
    for x, y, width, height in rng.integers(0, SIZE, (12, 4)).tolist():
        ImageDraw.Draw(page).ellipse((x, y, x + width // 2 + 3, y + height // 2 + 3), fill=int(rng.integers(256)))
    return np.asarray(page.filter(ImageFilter.GaussianBlur(1)))


def limb(rng):
    """A long bone in soft tissue, as on an X-ray of an arm or a leg."""
    y, x = np.mgrid[-1 : 1 : SIZE * 1j, -1 : 1 : SIZE * 1j]
    turn = rng.normal(0, 0.15)
    u = x * np.cos(turn) + y * np.sin(turn)
    bone = np.exp(-((u / 0.13) ** 4)) * (1 - 0.4 * np.exp(-((u / 0.06) ** 2)))
    return np.exp(-((u / 0.35) ** 4)) + bone + 0.04 * rng.standard_normal(u.shape)


DRAW = {
    "noise": lambda rng: rng.random((SIZE, SIZE)),
    "gradient": gradient,
    "page of text": text_page,
    "shapes": shapes,
    "limb": limb,
    "photograph, grey": lambda rng: cloud(rng, rng.uniform(1.2, 1.8)),
    "photograph, colour": lambda rng: np.dstack([cloud(rng, 1.5) for _ in range(3)]),
}


def drawn(kind, rng):
    image = np.asarray(DRAW[kind](rng), float)
    image = (255 * (image - image.min()) / np.ptp(image)).astype(np.uint8)
    return image if image.ndim == 3 else image[..., None].repeat(3, axis=2)


def film_in_frame(pixels):
    """A photograph of a film: smaller, in a grey frame."""
    frame = Image.new("RGB", (SIZE, SIZE), (40, 40, 40))
    side = int(0.62 * SIZE)
    frame.paste(Image.fromarray(pixels).resize((side, side)), [(SIZE - side) // 2] * 2)
    return np.asarray(frame)


def corner(pixels):
    side = int(0.35 * SIZE)
    return np.asarray(Image.fromarray(pixels[:side, :side]).resize((SIZE, SIZE)))


CHANGES = {
    "as it is": lambda pixels: pixels,
    "inverted": lambda pixels: 255 - pixels,
    "turned by 90": lambda pixels: np.rot90(pixels),
    "turned by 180": lambda pixels: np.rot90(pixels, 2),
    "turned by 270": lambda pixels: np.rot90(pixels, 3),
    "film in a frame": film_in_frame,
    "corner, enlarged": corner,
}


def main(name):
    images = xu.audit_images(xu.find_images(xu.data_dir()))
    external = xu.load_external(xu.external_dir(), images, size=SIZE)
    found, reasons = defaultdict(list), defaultdict(list)
    for seed in SEEDS:
        data = xu.prepare(xu.split_images(images, seed=seed), size=SIZE)
        with tempfile.TemporaryDirectory() as folder:
            save_typical(Path(folder), data)
            known = load_typical(Path(folder))
        test, rng = data.test.take(np.arange(len(data.test))), np.random.default_rng(seed)
        sets = {f"test, {change}": [make(one) for one in test] for change, make in CHANGES.items()}
        sets["external, as it is"] = external.take(np.arange(len(external)))
        sets |= {f"drawn: {kind}": [drawn(kind, rng) for _ in range(DRAWN)] for kind in DRAW}
        for what, pixels in sets.items():
            pixels = np.stack(pixels)
            lungs = xu.lung_fields(pixels).trusted
            said = [reasons_against(*one) for one in zip(pixels, [known] * len(pixels), lungs, strict=True)]
            found[what] += [bool(reason) for reason in said]
            reasons[what] += [reason[0] for reason in said if reason]
    rows = pd.DataFrame(
        {
            "set": name,
            "images": what,
            "number": len(flags),
            "called unlike": round(np.mean(flags), 3),
            "most frequent reason": pd.Series(reasons[what], dtype=str).mode().get(0, ""),
        }
        for what, flags in found.items()
    )
    if TABLE.is_file():
        others = pd.read_csv(TABLE, keep_default_na=False)
        rows = pd.concat([others[others.set.ne(name)], rows])
    rows.to_csv(TABLE, index=False)
    print(rows.to_string(index=False))


if __name__ == "__main__":
    main(sys.argv[1])
