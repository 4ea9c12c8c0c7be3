"""Decode one image file within bounds of memory."""

import ctypes
import logging
import os
import stat
import threading
import warnings
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

EXTENSIONS = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
OTHER_EXTENSIONS = (".dcm", ".dicom", ".heic", ".heif", ".avif", ".jxl", ".jp2", ".nii", ".svg")  # images, not read
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")  # told by content; Pillow would hand an EPS to Ghostscript
MAX_PIXELS = 40_000_000  # of an image, and of all that are decoded at a time: up to 17 bytes a pixel, so 700 MB


def _decode(path, least=None):
    """The image of `read_image`, and the mode and the size, turned as EXIF wants, that it has in the file.

    least: a JPEG may come at half, a quarter or an eighth of its size, while each side keeps so many pixels.
    """
    name = Path(path).name
    if not stat.S_ISREG(os.stat(path).st_mode):  # reading a pipe or a device may never end
        raise OSError(f"{name}: no ordinary file.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(path, formats=FORMATS) as file:
                tags = getattr(file, "tag_v2", {})  # of a TIFF, whose tiles may be larger than it is
                pixels = max(file.width * file.height, tags.get(322, 0) * tags.get(323, 0))
                if pixels > MAX_PIXELS:
                    raise Image.DecompressionBombError(f"{pixels} pixels ({file.width}x{file.height}) are too many.")
                with _room_for(pixels):
                    whole, mode = file.size, file.mode
                    if least:
                        file.draft(None, (least, least))
                    drafted = file.size
                    ImageOps.exif_transpose(file, in_place=True)
                    whole = whole if file.size == drafted else whole[::-1]
                    return _to_rgb(file, inverted=tags.get(262) == 0), mode, whole
        except Image.DecompressionBombError as error:
            raise ValueError(f"{name}: {error} At most {MAX_PIXELS} are read: make it smaller.") from error
        except UnidentifiedImageError as error:
            raise OSError(f"{name}: no image that can be read ({', '.join(FORMATS)}).") from error
        except (OSError, MemoryError):
            raise
        except Exception as error:  # whatever a decoder makes of broken bytes
            raise OSError(f"{name}: broken image ({error})") from error


_room, _decoding = threading.Condition(), 0


@contextmanager
def _room_for(pixels):
    """Wait until all threads together decode at most MAX_PIXELS, these among them."""
    global _decoding
    with _room:
        _room.wait_for(lambda: _decoding + pixels <= MAX_PIXELS)
        _decoding += pixels
    try:
        yield
    finally:
        with _room:
            _decoding -= pixels
            _room.notify_all()


def _to_rgb(image, inverted):
    if image.mode.startswith(("I", "F")):  # 16 or 32 bits: scale the range that is used to 0..255
        deep = np.array(image, dtype=np.float64)
        if inverted:  # in a TIFF, 0 may be white; Pillow sees to it for 8 bits only
            np.negative(deep, out=deep)
        finite = np.isfinite(deep)
        low, high = deep.min(where=finite, initial=np.inf), deep.max(where=finite, initial=-np.inf)
        if low > high:
            raise ValueError("none of its pixels is a number")
        np.nan_to_num(deep, copy=False, nan=low, posinf=high, neginf=low)
        deep -= low
        deep *= 255 / max(high - low, 1e-9)
        image = Image.fromarray(deep.round(out=deep).astype(np.uint8))
    if image.mode in ("LA", "PA", "La", "RGBa", "RGBA") or "transparency" in image.info:
        image = image.convert("RGBA")
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        image = Image.alpha_composite(black, image)
    return image.convert("RGB")


def _hush_pillow():
    """Silence Pillow and libtiff warnings; the audit table records the reason."""
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
    try:
        library = ctypes.CDLL(Image.core.__file__)
        library.TIFFSetErrorHandler(None)
        library.TIFFSetWarningHandler(None)
    except (OSError, AttributeError):  # this Pillow was built otherwise; then it prints
        pass
