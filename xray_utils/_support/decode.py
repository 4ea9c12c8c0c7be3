"""Decode one image file within bounds of memory."""

import ctypes
import logging
import os
import stat
import threading
import warnings
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from . import dicom

EXTENSIONS = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
OTHER_EXTENSIONS = (".heic", ".heif", ".avif", ".jxl", ".jp2", ".nii", ".svg")  # image types that are not read
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")  # by content; Pillow passes EPS to Ghostscript
MAX_BYTES = 680_000_000  # to decode an image to RGB, and all images decoded at the same time
BYTES = {"1": 6, "L": 6, "P": 6, "I;16": 10, "I;16B": 10, "RGB": 12, "DICOM": 13, "DICOM RGB": 34}  # a pixel; else 17
SHRINK = "Make it smaller: magick large.png -resize 4000x4000 small.png (ImageMagick)."


def bytes_needed(mode, width, height, pixels=None):
    """Memory to decode an image of a PIL mode to RGB; DecompressionBombError for more than MAX_BYTES."""
    pixels = pixels or width * height
    if (needed := pixels * BYTES.get(mode, 17)) > MAX_BYTES:
        which = f"{pixels} pixels ({width}x{height}, {mode})"
        raise Image.DecompressionBombError(f"{which} need {needed // 10**6} MB, over {MAX_BYTES // 10**6}.")
    return needed


def _decode(path, least=None):
    """The image of `read_image`, and mode and size (after EXIF rotation) in the file.

    least: a JPEG is decoded at 1/2, 1/4 or 1/8 of its size if both sides keep this many pixels.
    """
    name = Path(path).name
    if not stat.S_ISREG(os.stat(path).st_mode):  # reading a pipe or a device may never end
        raise OSError(f"{name}: not a regular file.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            if dicom.is_dicom(path):
                header = dicom.header_of(path)
                with _room_for(bytes_needed(*dicom.mode_and_size(path, header))):
                    image = dicom.first_frame(path, header)
                    return image.convert("RGB"), image.mode, image.size
            with Image.open(path, formats=FORMATS) as file:
                tags = getattr(file, "tag_v2", {})  # of a TIFF, whose tiles may be larger than it is
                pixels = max(file.width * file.height, tags.get(322, 0) * tags.get(323, 0))
                whole, mode = file.size, file.mode
                with _room_for(bytes_needed("RGBA" if "transparency" in file.info else mode, *whole, pixels)):
                    if least:
                        file.draft(None, (least, least))
                    drafted = file.size
                    ImageOps.exif_transpose(file, in_place=True)
                    whole = whole if file.size == drafted else whole[::-1]
                    return _to_rgb(file, inverted=tags.get(262) == 0), mode, whole
        except Image.DecompressionBombError as error:
            raise ValueError(f"{name}: {error} {SHRINK}") from error
        except UnidentifiedImageError as error:
            raise OSError(f"{name}: no image that can be read ({', '.join(FORMATS)}, DICOM).") from error
        except (OSError, MemoryError):
            raise
        except Exception as error:  # a broken file may raise anything
            raise OSError(f"{name}: broken image ({error})") from error


_room, _decoding = threading.Condition(), 0


@contextmanager
def _room_for(needed):
    """Wait until all threads together need at most MAX_BYTES."""
    global _decoding
    with _room:
        _room.wait_for(lambda: _decoding + needed <= MAX_BYTES)
        _decoding += needed
    try:
        yield
    finally:
        with _room:
            _decoding -= needed
            _room.notify_all()


def _to_rgb(image, inverted):
    if image.mode.startswith(("I", "F")):
        image = Image.fromarray(_to_8_bits(np.asarray(image), inverted))
    if image.mode in ("LA", "PA", "La", "RGBa", "RGBA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image)
    return image.convert("RGB")


def _to_8_bits(deep, inverted):
    """Pixels [H, W] of 16 or 32 bits as uint8: the range used is scaled to 0..255. In strips, to save memory.

    inverted: 0 is white in this TIFF; Pillow inverts only 8-bit images.
    """
    finite, grey = np.isfinite(deep), np.empty(deep.shape, np.uint8)
    if not finite.any():
        raise ValueError("none of its pixels is a number")
    some = deep.flat[finite.argmax()]
    low, high = (float(end(deep, where=finite, initial=some)) for end in (np.min, np.max))
    low, high, sign = (-high, -low, -1.0) if inverted else (low, high, 1.0)
    for start in range(0, len(deep), 64):
        strip = sign * deep[start : start + 64].astype(np.float64)
        np.nan_to_num(strip, copy=False, nan=low, posinf=high, neginf=low)
        grey[start : start + 64] = ((strip - low) * (255 / max(high - low, 1e-9))).round()
    return grey


def _silence_decoders():
    """Silence Pillow and libtiff warnings; the audit table records the reason."""
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
    with suppress(OSError, AttributeError):  # another build of Pillow; it prints warnings
        library = ctypes.CDLL(Image.core.__file__)
        library.TIFFSetErrorHandler(None)
        library.TIFFSetWarningHandler(None)
