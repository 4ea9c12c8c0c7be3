"""Image files of every odd kind, each with what is to become of it: right pixels at 224x224x3, or a reason in a row."""

import io
import json
import os
import re
import struct
import sys
import threading
import zlib

import numpy as np
import pytest
from PIL import GifImagePlugin, Image, ImageFile, TiffImagePlugin
from reliability import images as mutated

import xray_utils as xu
from xray_utils import audit as audit_module
from xray_utils._support import decode as decode_module
from xray_utils._support import files

GREY = (7 * np.arange(20)[:, None] + 5 * np.arange(24)).astype(np.uint8)  # 0..248; no turn or mirror leaves it as it is
COLOUR = np.dstack([GREY, GREY // 2, 255 - GREY])
UPPER = np.where(np.arange(20)[:, None] < 10, 255, 0).astype(np.uint8).repeat(24, axis=1)  # an upper half that shows
BLACK = Image.new("L", (24, 20))
DEEP = GREY.astype(np.uint16) * 16 + 100  # 12 bits, as a detector gives them


def to_bytes(pixels, kind, mode=None, **options):
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    file = io.BytesIO()
    (image.convert(mode) if mode else image).save(file, kind, **options)
    return file.getvalue()


def scaled(pixels):
    pixels = pixels.astype(float)
    return (pixels - pixels.min()) / (pixels.max() - pixels.min()) * 255


def turned(orientation, kind="PNG"):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return to_bytes(GREY, kind, exif=exif)


def palette(**options):
    image = Image.fromarray((UPPER == 0).astype(np.uint8))
    image.putpalette([200, 100, 50, 90, 90, 90])
    return to_bytes(image, "PNG", **options)


def tiff_white_is_zero():
    """A 16-bit TIFF that says that 0 is white; Pillow writes the tag as it is told, and the pixels as they are."""
    return to_bytes(DEEP, "TIFF", tiffinfo={262: 0})


def not_numbers():
    real = GREY.astype(np.float32) / 100 - 1
    real[0, 0], real[-1, -1], real[3, 3] = -np.inf, np.inf, np.nan
    return to_bytes(real, "TIFF")


def not_numbers_expected():
    real = GREY.astype(float)
    real[0, 0], real[-1, -1] = GREY.ravel()[1], np.sort(GREY.ravel())[-2]  # the least and the most that are finite
    real[3, 3] = real[0, 0]
    return scaled(real)


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_bomb(side, content=b""):
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(content, 9)) + chunk(b"IEND", b"")


def tile_bomb():
    """A TIFF of 64 x 64 pixels in one tile of 16384 x 16384, which unpacks to a quarter of a gigabyte."""
    strip = zlib.compress(bytes(1 << 20), 9)
    tags = [(256, 64), (257, 64), (258, 8), (259, 8), (262, 1), (277, 1), (322, 1 << 14), (323, 1 << 14)]
    tags += [(324, 8 + 2 + 12 * 10 + 4), (325, len(strip))]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + strip


WHITE_ON_BLACK = np.where(UPPER[..., None] == 255, [200, 100, 50], 0)
READABLE = {  # a name: the file, its pixels (grey [H, W] or [H, W, 3]), and how far they may be off
    "plain.png": (to_bytes(GREY, "PNG"), GREY, 0),
    "png named.jpg": (to_bytes(COLOUR, "PNG"), COLOUR, 0),
    "jpeg named.png": (to_bytes(GREY, "JPEG", quality=100), GREY, 3),
    "webp named.bmp": (to_bytes(COLOUR, "WEBP", lossless=True), COLOUR, 0),
    "tiff named.jpeg": (to_bytes(GREY, "TIFF", compression="tiff_lzw"), GREY, 0),
    "progressive.jfif": (to_bytes(GREY, "JPEG", quality=100, progressive=True), GREY, 3),
    "gif with two frames.png": (to_bytes(GREY, "GIF", save_all=True, append_images=[BLACK]), GREY, 0),
    "png with two frames.png": (to_bytes(GREY, "PNG", save_all=True, append_images=[BLACK]), GREY, 0),
    "webp with two frames.webp": (
        to_bytes(COLOUR, "WEBP", save_all=True, append_images=[BLACK.convert("RGB")], lossless=True), COLOUR, 0),
    "cmyk, inverted as Adobe does.jpg": (to_bytes(COLOUR, "JPEG", "CMYK", quality=100), COLOUR, 4),
    "cmyk.tif": (to_bytes(COLOUR, "TIFF", "CMYK"), COLOUR, 0),
    "12 bits in 16.png": (to_bytes(DEEP, "PNG"), scaled(DEEP), 0.5),
    "12 bits in 16.tif": (to_bytes(DEEP, "TIFF"), scaled(DEEP), 0.5),
    "16 bits, big end first.tif": (to_bytes(Image.fromarray(DEEP.astype(">u2")), "TIFF"), scaled(DEEP), 0.5),
    "16 bits, 0 is white.tif": (tiff_white_is_zero(), 255 - scaled(DEEP), 0.5),
    "8 bits, 0 is white.tif": (to_bytes(GREY, "TIFF", tiffinfo={262: 0}), GREY, 0),  # Pillow turns both ways
    "32 bits.tif": (to_bytes(DEEP.astype(np.int32) * 1000 - 9, "TIFF"), scaled(DEEP), 0.5),
    "floats.tif": (to_bytes(GREY.astype(np.float32) / 100 - 1, "TIFF"), scaled(GREY), 0.5),
    "floats that are no numbers.tif": (not_numbers(), not_numbers_expected(), 0.5),
    "1 bit.png": (to_bytes(Image.fromarray(UPPER).convert("1"), "PNG"), UPPER, 0),
    "1 bit, fax.tif": (to_bytes(Image.fromarray(UPPER).convert("1"), "TIFF", compression="group4"), UPPER, 0),
    "palette.png": (palette(), np.where(UPPER[..., None] == 255, [200, 100, 50], 90), 0),
    "palette, one colour transparent.png": (palette(transparency=1), WHITE_ON_BLACK, 0),
    "palette with alpha.png": (palette(transparency=b"\xff\x00"), WHITE_ON_BLACK, 0),
    "grey with alpha.png": (to_bytes(Image.fromarray(np.dstack([GREY, UPPER]), "LA"), "PNG"), GREY * (UPPER > 0), 0),
    "colour with alpha.webp": (
        to_bytes(np.dstack([COLOUR, UPPER]), "WEBP", lossless=True), COLOUR * (UPPER > 0)[..., None], 0),
    "animated.gif": (to_bytes(GREY, "GIF", save_all=True, append_images=[Image.fromarray(255 - GREY)]), GREY, 0),
    "turned 1.png": (turned(1), GREY, 0),
    "turned 2.png": (turned(2), GREY[:, ::-1], 0),
    "turned 3.tif": (turned(3, "TIFF"), GREY[::-1, ::-1], 0),
    "turned 4.png": (turned(4), GREY[::-1], 0),
    "turned 5.png": (turned(5), GREY.T, 0),
    "turned 6.webp": (turned(6, "WEBP"), np.rot90(GREY, -1), 30),
    "turned 7.png": (turned(7), GREY[::-1, ::-1].T, 0),
    "turned 8.jpg": (turned(8, "JPEG"), np.rot90(GREY), 12),
    "turned 9, which is no turn.png": (turned(9), GREY, 0),
    "1 x 1.png": (to_bytes(GREY[9:10, 9:10], "PNG"), GREY[9:10, 9:10], 0),
    "1 x 20000.png": (to_bytes(np.linspace(0, 255, 20000).astype(np.uint8)[:, None], "PNG"),
                      np.linspace(0, 255, 20000).astype(np.uint8)[:, None], 0),
    "20000 x 1.png": (to_bytes(np.linspace(0, 255, 20000).astype(np.uint8)[None], "PNG"),
                      np.linspace(0, 255, 20000).astype(np.uint8)[None], 0),
    "spaces,  \u00e9 e\u0301, \U0001fac1 and \u65e5\u672c.png": (to_bytes(GREY + 1, "PNG"), GREY + 1, 0),
    "n" * 196 + ".png": (to_bytes(GREY + 2, "PNG"), GREY + 2, 0),
    "<img src=x onerror=alert(1)>.png": (to_bytes(GREY + 3, "PNG"), GREY + 3, 0),
    "a$b$ $\\frac$ {0} %s.png": (to_bytes(GREY + 4, "PNG"), GREY + 4, 0),
    "=cmd|' calc'!A0.png": (to_bytes(GREY + 5, "PNG"), GREY + 5, 0),
}  # fmt: skip

UNREADABLE = {  # a name: what is in it (a function makes something else than a file), and the reason
    "empty.png": (b"", "no image that can be read"),
    "text.jpg": (b"<html>404: not found</html>", "no image that can be read"),
    "cut.jpg": (to_bytes(COLOUR, "JPEG")[:-60], "truncated"),
    "cut.png": (to_bytes(COLOUR, "PNG")[:-40], "truncated|broken"),
    "cut.webp": (to_bytes(COLOUR, "WEBP")[:-40], r"\w+ \w+"),
    "for ghostscript.jpg": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n", "no image"),
    "no number at all.tif": (to_bytes(np.full((4, 4), np.nan, np.float32), "TIFF"), "none of its pixels is a number"),
    "bomb that claims.png": (png_bomb(50_000), "exceeds limit"),
    "bomb that is.png": (
        png_bomb(10_700, bytes(10_700 * 10_701)),
        "114490000 pixels .10700x10700, L. need 686 MB, over 680.*magick",
    ),
    "bomb in a tile.tif": (tile_bomb(), "268435456 pixels .64x64, L. need 1610 MB"),
    "bomb.gif named.png": (b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + b";", r"\w+ \w+"),
    "link to nowhere.png": (lambda path: path.symlink_to("nowhere"), "No such file"),
    "link to itself.png": (lambda path: path.symlink_to(path), "Too many levels"),
    "pipe.png": (os.mkfifo, "not a regular file") if hasattr(os, "mkfifo") else (b"", ""),
    "zeros without end.png": (lambda path: path.symlink_to("/dev/zero"), "not a regular file"),
    "vanishes.png": (to_bytes(GREY, "PNG"), "No such file"),
}
ENOUGH = 11 * len(UNREADABLE)  # a class may lose a tenth

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="names, pipes and links of Linux")


@pytest.fixture(scope="module")
def station(tmp_path_factory):
    """All of these in one folder, found, audited, split and prepared, and what was said."""
    root = tmp_path_factory.mktemp("corpus")
    (root / "covid").mkdir()
    (root / "normal" / "folder.png").mkdir(parents=True)
    for i in range(ENOUGH):
        noise = np.random.default_rng(i).integers(0, 256, (8, 8), dtype=np.uint8)
        Image.fromarray(noise).save(root / ("normal", "covid")[i < 3] / f"filler {i}.png")
    for name, (content, *_) in {**READABLE, **UNREADABLE}.items():
        path = root / "normal" / name
        content(path) if callable(content) else path.write_bytes(content)
    before = {p.name: p.read_bytes() for p in root.rglob("*") if p.is_file() and not p.is_symlink()}
    images = xu.find_images(root)
    (root / "normal" / "vanishes.png").unlink()
    with pytest.MonkeyPatch.context() as patch, pytest.MonkeyPatch.context() as printed:
        said = io.StringIO()
        printed.setattr(sys, "stdout", said)
        patch.setenv("XRAY_OUTPUTS", str(tmp_path_factory.mktemp("outputs")))
        audited = xu.audit_images(images)
        split = xu.split_images(audited, mirror=False)
        prepared = xu.prepare(split)
    before.pop("vanishes.png")
    assert before == {p.name: p.read_bytes() for p in root.rglob("*") if p.is_file() and not p.is_symlink()}
    return audited.set_index(audited.file.str.removeprefix("normal/")), split, prepared, said.getvalue()


@pytest.mark.parametrize("name", READABLE)
def test_a_readable_image_has_the_right_pixels(name, station):
    rows, _, prepared, _ = station
    _, expected, tolerance = READABLE[name]
    expected = np.asarray(expected, float)
    expected = expected if expected.ndim == 3 else expected[..., None].repeat(3, axis=2)
    row = rows.loc[name]
    assert (row.problem, row.width, row.height) == ("", expected.shape[1], expected.shape[0])
    side = next(s for s in (prepared.train, prepared.val, prepared.test) if s.rows.file.eq(row.file).any())
    pixels = side.take(np.flatnonzero(side.rows.file.eq(row.file)))[0]
    assert pixels.shape == (224, 224, 3) and pixels.dtype == np.uint8
    wanted = xu.resize(Image.fromarray(expected.round().astype(np.uint8)))
    assert np.abs(pixels.astype(int) - wanted).max() <= np.ceil(tolerance)


@pytest.mark.parametrize("name", UNREADABLE)
def test_an_unreadable_image_is_a_row_with_a_reason_and_left_out(name, station):
    rows, split, _, _ = station
    row = rows.loc[name]
    assert re.search(UNREADABLE[name][1], row.problem), row.problem
    assert len(row.problem) <= 200 and os.sep not in row.problem, "the reason shows where the images lie"
    assert row.file not in set(split.file)


def test_what_is_left_out_is_counted_aloud(station):
    rows, split, _, said = station
    assert "folder.png" not in rows.index and len(rows) == ENOUGH + len(READABLE) + len(UNREADABLE)
    assert len(split) == ENOUGH + len(READABLE)
    assert f"{len(UNREADABLE)} of {len(rows)} images cannot be read; the first is 'normal/bomb in a tile.tif'" in said


def test_cmyk_of_the_corpus_is_adobes():
    content = READABLE["cmyk, inverted as Adobe does.jpg"][0]
    assert b"Adobe" in content and Image.open(io.BytesIO(content)).mode == "CMYK"


def as_nobody(function):
    """What `function` returns to a user who is not root, whom no permission stops: in a process of its own."""
    if os.getuid() != 0:
        return function()
    out, into = os.pipe()
    if (child := os.fork()) == 0:
        try:
            os.setuid(65534)
            os.write(into, json.dumps(function()).encode())
        finally:
            os._exit(0)
    os.close(into)
    os.waitpid(child, 0)
    with open(out) as answer:
        return json.load(answer)


def test_no_permission_to_read_is_a_reason(tmp_path, monkeypatch):
    for i in range(12):
        path = tmp_path / ("covid", "normal")[i == 0] / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(to_bytes(GREY + i, "PNG"))
    images = xu.find_images(tmp_path)
    images.attrs["root"] = "."  # another user has no way to the folder but through being there
    monkeypatch.chdir(tmp_path)
    tmp_path.chmod(0o755)
    (tmp_path / "covid" / "1.png").chmod(0)
    rows = as_nobody(lambda: xu.audit_images(images).problem.tolist())
    assert rows == ["", "Permission denied", *[""] * 10] or sorted(rows) == ["", *[""] * 10, "Permission denied"]


def test_a_folder_that_cannot_be_opened_is_counted(tmp_path, monkeypatch, capsys):
    for name in ("covid/a.png", "normal/b.png", "virus/c.png"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(to_bytes(GREY, "PNG"))
    scandir = os.scandir

    def closed(path="."):
        if str(path).endswith("virus"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)
    assert xu.find_images(tmp_path).file.tolist() == ["covid/a.png", "normal/b.png"]
    assert "Left out: 1 folder that cannot be opened" in capsys.readouterr().out


def test_names_that_are_no_text_are_counted_and_left_out(tmp_path, capsys):
    for name in (b"a\xff.png", b"b\r=1.png", b"c\n.png", b"d\x1b[31m.png", b"e.png"):
        for label in (b"covid", b"normal"):
            folder = os.path.join(os.fsencode(tmp_path), label)
            os.makedirs(folder, exist_ok=True)
            with open(os.path.join(folder, name), "wb") as file:
                file.write(to_bytes(GREY, "PNG"))
    assert xu.find_images(tmp_path).file.tolist() == ["covid/e.png", "normal/e.png"]
    assert "Left out: 8 with a name that is no text" in capsys.readouterr().out


def test_threads_together_decode_no_more_than_one_large_image(tmp_path, monkeypatch):
    paths = [tmp_path / f"{i}.png" for i in range(24)]
    for i, path in enumerate(paths):
        content = to_bytes(np.full((20, 20), i, np.uint8), "PNG")
        path.write_bytes(content if i % 3 else content[:-30])
    held, two, to_rgb = [], threading.Event(), decode_module._to_rgb

    def slow(*args, **options):
        held.append(decode_module._decoding)
        if held[-1] > 2_400 or not two.wait(60):  # the first waits for a second one
            two.set()
        return to_rgb(*args, **options)

    monkeypatch.setattr(decode_module, "_to_rgb", slow)
    monkeypatch.setattr(decode_module, "MAX_BYTES", 6_000)  # two of 400 pixels, not three
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    rows = files._in_threads(audit_module._audit_one, paths, "audit")
    assert [row["problem"] == "" for row, _ in rows] == [bool(i % 3) for i in range(24)]
    assert max(held) == 4_800 and decode_module._decoding == 0 and threading.active_count() < 50


def test_mutated_files_do_no_harm():
    said = mutated.run(files=300, seed=1)
    assert said["files"] == 300 == said["read"] + said["refused"] and said["read"] > 30, said
    assert said["crashes"] == said["warnings"] == 0, said["first_crash"]
    assert said["slowest_cpu_s"] < 2 and said["peak_mb"] < 1000, said


@pytest.mark.parametrize("name", [name for name in UNREADABLE if "bomb" in name])
def test_a_bomb_is_not_unpacked(name, tmp_path, monkeypatch):
    (tmp_path / name).write_bytes(UNREADABLE[name][0])
    for kind in (ImageFile.ImageFile, GifImagePlugin.GifImageFile, TiffImagePlugin.TiffImageFile):
        monkeypatch.setattr(kind, "load", lambda image: pytest.fail("it was unpacked"))
    with pytest.raises((OSError, ValueError)):
        xu.read_image(tmp_path / name)


@pytest.mark.parametrize("depth", [np.uint8, np.uint16])
def test_a_scan_of_50_megapixels_is_read(depth, tmp_path):
    path = tmp_path / "radiograph.png"
    ramp = np.linspace(0, np.iinfo(depth).max, 7_200).astype(depth)[None].repeat(7_000, axis=0)
    Image.fromarray(ramp).save(path, compress_level=1)
    assert abs(xu.resize(xu.read_image(path))[100, :, 0].astype(int) - np.linspace(0, 255, 224)).max() < 2
