"""Thousands of mutated image files through the audit: no crash, no hang, no memory filled, no flood of warnings."""

import faulthandler
import io
import json
import os
import struct
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
HANGS = 300  # seconds after which a file counts as one that never ends
FENCE = 6 << 30  # bytes of address space, so that a failure does not take the machine with it


def run(files=5000, seed=0):
    """Read `files` mutated images in a process of their own; returns what became of them.

    crashes: exceptions other than a reason in the audit table, killed processes, and files without an end.
    peak_mb: largest resident memory of the process, which has numpy, scipy, pandas and Pillow in it, not torch.
    """
    rows, warned = [], 0
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "log.jsonl")
        while len(rows) < files:
            command = [sys.executable, __file__, str(len(rows)), str(files), str(seed), folder]
            answer = subprocess.run(command, stderr=subprocess.PIPE, text=True)
            lines = log.read_text().splitlines() if log.is_file() else []
            log.unlink(missing_ok=True)
            rows += map(json.loads, lines)
            warned += len(answer.stderr.splitlines()) if answer.returncode == 0 else 0
            if answer.returncode:  # it died on the next file
                rows.append({"crash": f"exit {answer.returncode}: {answer.stderr[-1000:]}"})
    crashes = [row["crash"] for row in rows if row.get("crash")]
    return {
        "files": len(rows),
        "read": sum(row.get("problem") == "" for row in rows),
        "refused": sum(bool(row.get("problem")) for row in rows),
        "crashes": len(crashes),
        "first_crash": crashes[0] if crashes else "",
        "slowest_s": max(row.get("seconds", 0) for row in rows),
        "slowest_cpu_s": max(row.get("cpu", 0) for row in rows),
        "peak_mb": max(row.get("peak_mb", 0) for row in rows),
        "warnings": warned + sum(row.get("warnings", 0) for row in rows),
    }


# ---------------------------------------------------------------- files


def originals():
    """Small whole files of every kind: `[(suffix, bytes)]`."""
    pictures = sorted((ROOT / "data" / "sample").rglob("*.jpg"))[:2]
    greys = [Image.open(path).convert("L").resize((96, 80)) for path in pictures]
    grey, colour = greys[0], Image.merge("RGB", [greys[0], greys[1], greys[0]])
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 16)
    real = Image.fromarray(np.asarray(grey).astype(np.float32) / 255)
    alpha = Image.merge("RGBA", [*colour.split(), greys[1]])
    turned = Image.Exif()
    turned[0x0112] = 6
    moving = dict(save_all=True, append_images=[greys[1]])
    wanted = [
        *[(".png", image, "PNG", {}) for image in (grey, colour, alpha, deep, grey.convert("1"), colour.quantize(16))],
        (".png", Image.merge("LA", greys), "PNG", {}),
        (".png", colour.quantize(16), "PNG", dict(transparency=3, exif=turned)),
        (".png", grey, "PNG", moving),
        (".jpg", grey, "JPEG", {}),
        (".jpg", colour, "JPEG", dict(progressive=True, exif=turned)),
        (".jpg", colour.convert("CMYK"), "JPEG", {}),
        (".webp", colour, "WEBP", {}),
        (".webp", alpha, "WEBP", dict(lossless=True, exif=turned)),
        (".webp", grey, "WEBP", moving),
        *[(".bmp", image, "BMP", {}) for image in (grey, colour, grey.convert("1"))],
        *[(".tif", image, "TIFF", {}) for image in (grey, deep, real, colour.convert("CMYK"))],
        *[(".tif", colour, "TIFF", dict(compression=c)) for c in ("tiff_lzw", "tiff_deflate", "jpeg", "packbits")],
        (".tif", grey.convert("1"), "TIFF", dict(compression="group4")),
        (".png", grey, "GIF", moving),  # a GIF under another name
    ]
    files = []
    for suffix, image, kind, options in wanted:
        file = io.BytesIO()
        image.save(file, kind, **options)
        files.append((suffix, file.getvalue()))
    return files


def mutate(content, other, rng):
    """`content` with bytes flipped, cut, doubled, or spliced with those of `other`; most PNG get new checksums."""
    content = bytearray(content)
    for _ in range(rng.integers(1, 4)):
        at = int(rng.integers(len(content) if rng.random() < 0.5 else min(len(content), 200)))  # headers more often
        kind = rng.choice(["flip", "number", "cut", "splice", "double", "lose"], p=[0.4, 0.2, 0.1, 0.1, 0.1, 0.1])
        if kind == "flip":
            for place in rng.integers(at, min(at + 64, len(content)), rng.integers(1, 9)):
                content[place] ^= 1 << rng.integers(8)
        elif kind == "number":
            value = [0, 1, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 20_000][rng.integers(8)]
            number = struct.pack("<>"[rng.integers(2)] + "I", value)[: rng.integers(1, 5)]
            content[at : at + len(number)] = number
        elif kind == "cut":
            del content[max(at, 1) :]
        elif kind == "splice":
            content[at:] = other[rng.integers(len(other)) :]
        else:
            end = at + int(rng.integers(1, 400))
            content[at:end] = content[at:end] * 2 if kind == "double" else b""
        if not content:
            return b""
    return _with_checksums(content) if rng.random() < 0.7 else bytes(content)


def _with_checksums(content):
    """The checksums of a PNG's chunks put right, so that the decoder gets to see what is in them."""
    at = 8
    while content.startswith(b"\x89PNG") and at + 12 <= len(content):
        end = at + 8 + int.from_bytes(content[at : at + 4], "big")
        if end + 4 > len(content):
            break
        content[end : end + 4] = struct.pack(">I", zlib.crc32(content[at + 4 : end]))
        at = end + 4
    return bytes(content)


# ---------------------------------------------------------------- in the process


def read_all(first, last, seed, folder):
    """Audit, read and resize the files `first` to `last`; a line each in log.jsonl as soon as it is done."""
    import resource

    sys.path.insert(0, str(ROOT))
    from xray_utils import audit, images  # without torch
    from xray_utils._support.files import _in_threads

    resource.setrlimit(resource.RLIMIT_AS, (FENCE, FENCE))
    whole = originals()
    shown = []
    warnings.simplefilter("always")
    warnings.showwarning = lambda *args, **options: shown.append(args)
    with open(folder / "log.jsonl", "a") as log:
        for number in range(first, last):
            rng = np.random.default_rng([seed, number])  # each file can be made again alone
            suffix, content = whole[rng.integers(len(whole))]
            path = folder / f"file{suffix}"
            path.write_bytes(mutate(content, whole[rng.integers(len(whole))][1], rng))
            faulthandler.dump_traceback_later(HANGS, exit=True)
            row, clock = {"number": number}, [(time.perf_counter(), time.process_time())]
            try:
                row["problem"] = _in_threads(audit._audit_one, [path], "audit")[0][0]["problem"]
                clock.append((time.perf_counter(), time.process_time()))
                if not row["problem"]:
                    pixels = images.resize(images.read_image(path))
                    assert pixels.shape == (224, 224, 3) and pixels.dtype == np.uint8, pixels.shape
            except BaseException:
                row["crash"] = traceback.format_exc()
            clock.append((time.perf_counter(), time.process_time()))
            row["seconds"], row["cpu"] = np.diff(clock, axis=0).max(axis=0).tolist()  # of the longer of both readings
            row["warnings"] = len(shown)
            faulthandler.cancel_dump_traceback_later()
            status = Path("/proc/self/status").read_text()  # getrusage counts what the parent had, too
            row["peak_mb"] = int(status.split("VmHWM:")[1].split()[0]) / 1024
            shown.clear()
            log.write(json.dumps(row) + "\n")
            log.flush()


if __name__ == "__main__":
    os.environ["TQDM_DISABLE"] = "1"
    read_all(*map(int, sys.argv[1:4]), Path(sys.argv[4]))
