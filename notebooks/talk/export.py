"""Write the slides as one HTML file (reveal.js), as PowerPoint, and as PDF."""

import base64
import io
import shutil
import subprocess
import tempfile
from pathlib import Path

from jinja2 import Environment, FileSystemLoader
from PIL import Image
from pptx import Presentation
from pptx.dml.color import RGBColor
from pptx.enum.text import MSO_ANCHOR, PP_ALIGN
from pptx.util import Inches, Pt
from xray_utils._support.files import whole_file

HERE = Path(__file__).resolve().parent
REVEAL = HERE.parent / "templates" / "deck" / "static"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
DARK, GREY, WHITE = map(RGBColor.from_string, ("003A5D", "555566", "FFFFFF"))


def timed(slides, words) -> list:
    """The notes of each slide, with its time before them."""
    notes, end = [], 0
    clock = "{0[0]}:{0[1]:02d}".format
    for slide in slides:
        end += slide.seconds
        said = words("notes.time", time=clock(divmod(slide.seconds, 60)), until=clock(divmod(end, 60)))
        notes.append(f"{said}\n{slide.notes}")
    return notes


def write_html(slides, words, footer: str, path: Path, printed: bool = False) -> None:
    """One file that needs no network; `printed`: a page a slide, without reveal.js."""
    files = {name: (REVEAL / name).read_text(encoding="utf-8") for name in ("reveal.css", "reveal.js", "notes.js")}
    template = Environment(loader=FileSystemLoader(HERE), autoescape=True).get_template("talk.html.j2")
    images = [slide.figure and base64.b64encode(slide.figure).decode() for slide in slides]
    shown = list(zip(slides, timed(slides, words), images, strict=True))
    page = template.render(shown=shown, footer=footer, language=words.language, files=files, printed=printed)
    with whole_file(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def write_pdf(slides, words, footer: str, path: Path) -> None:
    """The slides printed by Chromium or Chrome, a page a slide. Raises OSError where neither prints."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        printed = path.with_suffix(".pptx").name
        raise FileNotFoundError(f"Chromium or Chrome is not installed. PowerPoint and LibreOffice can print {printed}.")
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--no-pdf-header-footer"]
    with whole_file(path) as temporary, tempfile.TemporaryDirectory(dir=path.parent) as folder:
        page = Path(folder) / "talk.html"
        write_html(slides, words, footer, page, printed=True)
        command = [browser, *options, f"--print-to-pdf={temporary}", page.resolve().as_uri()]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode or not temporary.stat().st_size:
            raise OSError(f"{browser} did not print it: {done.stderr[-200:].strip()}")


def write_pptx(slides, words, footer: str, path: Path) -> None:
    """The same slides for PowerPoint and LibreOffice: titles, words, tables and notes can be edited."""
    deck = Presentation()
    deck.slide_width, deck.slide_height = Inches(13.333), Inches(7.5)
    layout = deck.slide_layouts.get_by_name("Title Only")
    title, *others = layout.placeholders
    for part in others:  # date, footer and number stand where a slide of 4:3 has them
        part.element.getparent().remove(part.element)
    title.left, title.top, title.width, title.height = map(Inches, (0.4, 0.25, 12.5, 1.15))
    for number, (slide, notes) in enumerate(zip(slides, timed(slides, words), strict=True), 1):
        page = deck.slides.add_slide(layout)
        _write(page.shapes.title.text_frame, [slide.title], 40 if slide.name == "cover" else 28, DARK, bold=True)
        if slide.figure:
            _add_picture(page, slide)
        if slide.table is not None:
            _add_table(page, slide)
        place = (7.2, 2.6, 5.7, 3) if slide.square else (0.4, 6.3, 12.5, 0.6)
        _write(page.shapes.add_textbox(*map(Inches, place)).text_frame, slide.words, 26 if slide.square else 20)
        box = page.shapes.add_textbox(*map(Inches, (0.4, 6.95, 12.5, 0.4)))
        _write(box.text_frame, [f"{footer}   {number}/{len(slides)}"], 14, GREY)
        page.notes_slide.notes_text_frame.text = notes
    with whole_file(path) as temporary:
        deck.save(str(temporary))


def _write(frame, lines, size, colour=None, bold=False, align=PP_ALIGN.LEFT):
    frame.word_wrap, frame.text = True, "\n".join(lines)
    for paragraph in frame.paragraphs:
        paragraph.alignment, paragraph.space_after = align, Pt(size / 3)
        paragraph.font.size, paragraph.font.bold, paragraph.font.name = Pt(size), bold, "Arial"
        if colour is not None:
            paragraph.font.color.rgb = colour


def _add_picture(page, slide):
    """The figure as large as its room allows, in the middle of it."""
    left, top, width, height = (0.4, 1.5, 6.5, 5.3) if slide.square else (0.4, 1.5, 12.5, 4.75)
    across, down = Image.open(io.BytesIO(slide.figure)).size
    scale = min(width / across, height / down)
    place = left + (width - across * scale) / 2, top + (height - down * scale) / 2, across * scale, down * scale
    picture = page.shapes.add_picture(io.BytesIO(slide.figure), *map(Inches, place))
    picture._element.nvPicPr.cNvPr.set("descr", slide.title)


def _add_table(page, slide):
    """A real table, its numbers to the right; in a report every second column is grey: the original."""
    table, report = slide.table, slide.name.endswith("_report")
    rows = [[table.index.name, *table.columns], *table.reset_index().to_numpy()]
    place = map(Inches, (0.4, 1.6, 12.5, 0.75 * len(rows)))
    cells, many = page.shapes.add_table(len(rows), len(rows[0]), *place).table, len(rows[0]) > 2
    first = 3 if many else 6.8
    for i, column in enumerate(cells.columns):
        column.width = Inches((12.5 - first) / (len(rows[0]) - 1) if i else first)
    for i, row in enumerate(rows):
        for j, text in enumerate(row):
            cell, align = cells.cell(i, j), PP_ALIGN.RIGHT if many and j else PP_ALIGN.LEFT
            colour = WHITE if not i else GREY if report and j and not j % 2 else None
            _write(cell.text_frame, [text], 20 if many else 22, colour, not i, align)
            cell.vertical_anchor = MSO_ANCHOR.MIDDLE
