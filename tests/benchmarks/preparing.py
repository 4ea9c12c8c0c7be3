"""What it costs to prepare images: against a plain Pillow loop, and of 100,000 of them."""

import contextlib
import io
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

import xray_utils as xu
from xray_utils._support import decode

LONG_SIDE = 1500  # pixels, as the files of public sets have them
MANY = (5_000, 100_000)


def copies(source, folder, limit, side):
    """`limit` images of each class (None: all) of `source` as JPEG of `side` pixels (None: the files as they are)."""
    for label in xu.CLASSES:
        (folder / label).mkdir(parents=True)
    images = xu.find_images(source)
    for _, rows in images.groupby("label"):
        for file in rows.file.iloc[:limit]:
            target = folder / file
            target.parent.mkdir(parents=True, exist_ok=True)
            if side is None:
                target.symlink_to(Path(source).resolve() / file)
                continue
            image = xu.read_image(Path(source) / file)
            scale = side / max(image.size)
            size = [round(length * scale) for length in image.size]
            image.resize(size, Image.Resampling.BICUBIC).save(target.with_suffix(".jpg"), "JPEG", quality=90)
    return folder


def some(source, folder, limit=None, side=None):
    """These images, prepared under "grouped" without mirroring."""
    with contextlib.redirect_stdout(io.StringIO()):
        images = xu.audit_images(xu.find_images(copies(source, folder, limit, side)))
        return xu.prepare(xu.split_images(images, mirror=False))


def plain_loop(images, root):
    """What everybody writes: open, convert, resize, one after the other."""
    for file in images.file:
        np.asarray(Image.open(root / file).convert("RGB").resize((224, 224), Image.Resampling.BILINEAR))


def against_pillow(rounds, limit):
    """Seconds of a plain Pillow loop and of `xu.prepare` on files of 1500 px, and of one more call, and of ten more."""
    ratios, again, ten = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        root = copies(xu.data_dir(), Path(folder) / "images", limit or 100, LONG_SIDE)
        images = xu.split_images(xu.find_images(root), mirror=False)
        for number in range(rounds):
            os.environ["XRAY_OUTPUTS"] = f"{folder}/outputs{number}"
            times = []
            for act in (
                lambda: plain_loop(images, root),
                lambda: xu.prepare(images),
                lambda: xu.prepare(images),
            ):
                start = time.perf_counter()
                act()
                times.append(time.perf_counter() - start)
            ratios.append(times[0] / times[1])
            again.append(times[2])
            os.environ["XRAY_OUTPUTS"] += "_ten"
            less = images[~images.file.isin(images.file.iloc[:10])]
            less.attrs = images.attrs
            xu.prepare(less)
            start = time.perf_counter()
            xu.prepare(images)
            ten.append((time.perf_counter() - start) / times[1] * len(images) / 10)
        exact = exactness(root, images)
    return {
        "images": len(images), "long_side": LONG_SIDE, "rounds": rounds,
        "times_as_fast_as_a_plain_loop": [float(f(ratios)) for f in (np.median, min, max)],
        "seconds_of_a_second_call": float(np.median(again)),
        "ten_more_images_cost_so_many_times_their_share": float(np.median(ten)),
        "grey_levels_off_a_full_decode": exact,
    }  # fmt: skip


def exactness(root, images):
    """How far the pixels are from those of a full decode, in grey levels of 255."""
    off = []
    for file in images.file:
        whole = xu.resize(xu.read_image(root / file)).astype(int)
        off.append(np.abs(xu.resize(decode._decode(root / file, 448)[0]).astype(int) - whole))
    off = np.array(off)
    return {"mean": float(off.mean()), "99.9 %": float(np.quantile(off, 0.999)), "greatest": int(off.max())}


ONE = """
import resource, sys, time
import pandas as pd, xray_utils as xu
images = pd.read_csv(sys.argv[1], dtype={"group": str})
images.attrs = {"root": sys.argv[2]}
start = time.perf_counter()
xu.prepare(images)
first = time.perf_counter() - start
peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
start = time.perf_counter()
xu.prepare(images)
print(first, time.perf_counter() - start, peak * 1024)
"""


def many(rounds, limit):
    """Peak memory and time per image of 5,000 and of 100,000 images: a pool of the bundled sample, linked again."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        pool = xu.find_images(xu.data_dir())
        for count in MANY:
            root = Path(folder) / str(count)
            for label in xu.CLASSES:
                (root / label).mkdir(parents=True)
            rows = pool.iloc[np.arange(count) % len(pool)].reset_index(drop=True)
            rows["file"] = [f"{label}/{i}{Path(file).suffix}" for i, label, file in
                            zip(range(count), rows.label, rows.file, strict=True)]  # fmt: skip
            for i, file in enumerate(rows.file):
                (root / file).symlink_to(xu.data_dir().resolve() / pool.file.iloc[i % len(pool)])
            rows["group"] = rows.file
            xu.split_images(rows, mirror=False).to_csv(root / "images.csv", index=False)
            environment = {**os.environ, "XRAY_OUTPUTS": f"{folder}/outputs", "TQDM_DISABLE": "1"}
            done = subprocess.run([sys.executable, "-c", ONE, root / "images.csv", root], env=environment,
                                  capture_output=True, text=True, check=True)  # fmt: skip
            first, second, peak = map(float, done.stdout.split())
            found[f"{count} images"] = {"seconds_per_1000": 1000 * first / count, "seconds_to_open": second,
                                        "peak_memory_MB": peak / 1e6}  # fmt: skip
            print(found, flush=True)
    return found


PARTS = {"preparing files of 1500 px": against_pillow, "preparing 100,000 files": many}
