"""The first command: calm output, a page, and an index that links pages and decks."""

import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "notebooks" / "templates" / "config.py"
sys.path.insert(0, str(CONFIG.parent))
from index_writer import write_index  # noqa: E402


def test_a_notebook_is_executed_without_any_line_that_is_not_for_the_user(tmp_path):
    cells = [nbformat.v4.new_markdown_cell("# 1. Odds & ends"), nbformat.v4.new_code_cell("6 * 7")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "01_a.ipynb")
    command = [sys.executable, "-m", "nbconvert", "--config", CONFIG, "--to", "html", "--execute"]
    done = subprocess.run(
        [*command, "--output-dir", tmp_path / "html", tmp_path / "01_a.ipynb"], capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stderr == ""
    page, end = done.stdout.splitlines()
    assert re.fullmatch(rf" *\d+ s  {re.escape(str(tmp_path / 'html' / '01_a.html'))}", page)
    assert end == f"Open {tmp_path / 'html' / 'index.html'} in a browser."
    assert ">42<" in re.sub(r"\s", "", (tmp_path / "html" / "01_a.html").read_text(encoding="utf-8"))
    assert "1. Odds &amp; ends" in (tmp_path / "html" / "index.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("last", ["html", "slides"])
def test_the_index_links_each_page_and_each_deck_from_both_folders(tmp_path, last):
    files = ["html/01_a.html", "html/02_b.html", "slides/01_a.slides.html", "slides/talk.slides.html"]
    for file in files:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(f"<h1>Heading of {file}</h1>")
    for ending in ("pptx", "pdf"):  # of the talk, of another language, and of no deck
        for name in ("talk", "talk.pt", "01_a"):
            (tmp_path / "slides" / f"{name}.{ending}").touch()
    files += ["slides/talk.pptx", "slides/talk.pdf", "slides/01_a.pptx", "slides/01_a.pdf"]
    write_index(tmp_path / last)
    for folder in ("html", "slides"):
        text = (tmp_path / folder / "index.html").read_text()
        linked = [(tmp_path / folder / link).resolve() for link in re.findall('href="(.*?)"', text)]
        assert linked == [tmp_path / files[i] for i in (0, 2, 6, 7, 1, 3, 4, 5)]
        assert re.findall("Heading of [^<]*", text) == [f"Heading of {files[i]}" for i in (0, 1, 3)]
