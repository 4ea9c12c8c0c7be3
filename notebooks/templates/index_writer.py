"""nbconvert's file writer, with a line for each page and an index of all pages and decks."""

import atexit
import html
import os
import re
import time
from pathlib import Path

from nbconvert.writers import FilesWriter

HEADING = re.compile(r"<h1[^>]*>(.*?)<a class=\"anchor-link\"|<h1[^>]*>(.*?)</h1>", re.S)
PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Chest X-rays in three classes</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body {{ font: 18px/1.5 system-ui, sans-serif; max-width: 45em; margin: 2em auto; color: #222; }}
table {{ border-collapse: collapse; width: 100%; }}
td, th {{ border-top: 1px solid #ccc; padding: 0.5em 0.5em 0.5em 0; text-align: left; }}
a {{ color: #0072B2; }}
</style></head><body>
<h1>Chest X-rays in three classes</h1>
<table><tr><th>Notebook or talk</th><th>Page</th><th>Slides</th></tr>
{rows}
</table>
<p>Not for clinical use.</p>
</body></html>
"""


def heading(path):
    """The first heading of an HTML file, as text."""
    match = HEADING.search(path.read_text(encoding="utf-8"))
    return (
        html.unescape(re.sub("<[^>]*>", "", match[1] or match[2])).strip()
        if match
        else path.name
    )


def write_index(folder):
    """Write `index.html` into `folder`: a row for each notebook and talk, with links

    Pages in a folder html and decks in a folder slides beside it are listed in both.
    """
    pair = [folder.with_name("html"), folder.with_name("slides")]
    folders = [other for other in pair if other.is_dir()] if folder in pair else [folder]
    files = {}
    for path in sorted(
        path for other in folders for path in other.glob("*.html") if path.name != "index.html"
    ):
        name, kind = re.fullmatch(r"(.*?)(\.slides)?\.html", path.name).groups()
        files.setdefault(name, {})["slides" if kind else "page"] = path
        others = (path.with_name(f"{name}.{ending}") for ending in ("pptx", "pdf") if kind)
        files[name] |= {other.suffix[1:]: other for other in others if other.is_file()}
    for other in folders:
        rows = []
        for _, kinds in sorted(files.items()):
            cells = [html.escape(heading(next(iter(kinds.values()))))]
            for column in (("page",), ("slides", "pptx", "pdf")):
                shown = [kind for kind in column if kind in kinds]
                paths = [Path(os.path.relpath(kinds[kind], other)).as_posix() for kind in shown]
                links = zip(map(html.escape, paths), shown, strict=True)
                cells.append(" ".join(f'<a href="{path}">{kind}</a>' for path, kind in links))
            rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
        (other / "index.html").write_text(PAGE.format(rows="\n".join(rows)), encoding="utf-8")
    return folder / "index.html"


class IndexWriter(FilesWriter):
    """Write a page or a deck, say how long it took, and keep the index up to date."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.start, self.index = time.monotonic(), None

    def write(self, output, resources, notebook_name=None, **settings):
        """The path of the file written."""
        path = super().write(output, resources, notebook_name=notebook_name, **settings)
        if str(path).endswith(".html"):
            if self.index is None:
                atexit.register(lambda: print(f"Open {self.index} in a browser."))
            self.index = write_index(Path(path).parent)
            print(f"{time.monotonic() - self.start:4.0f} s  {path}", flush=True)
            self.start = time.monotonic()
        return path
