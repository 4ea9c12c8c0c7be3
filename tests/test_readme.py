"""What the pages say: links lead somewhere, commands run, names exist. The two long commands are read, not run.

`XRAY_SLOW=1 pytest tests/test_readme.py` also runs the commands that train (about ten minutes).
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = ["README.md", "data/README.md", "results/README.md"]
NOTEBOOKS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "notebooks").glob("*.ipynb"))
BIN = Path(sys.executable).parent


def text_of(page):
    if page.endswith(".ipynb"):
        cells = nbformat.read(ROOT / page, as_version=4).cells
        return "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)\n```", text_of(page), re.S)


def anchor(heading):
    """The name that GitHub gives to a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES + NOTEBOOKS)
def test_links_lead_to_files_and_headings(page):
    text = re.sub(r"```.*?```", "", text_of(page), flags=re.S)
    links = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"(?:src|href)=\"([^\"]+)\"", text)
    for link in links:
        assert not re.search(r"\s", link) and not link.startswith("/"), link
        if re.match(r"https?://[\w.-]+\.[a-z]+(/\S*)?$", link):
            continue
        path, _, heading = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), f"{page}: {link}"
        assert target.resolve().is_relative_to(ROOT), f"{page}: {link} leads out of the course"
        if heading:
            headings = re.findall(r"^#+ (.*)$", text_of(target.resolve().relative_to(ROOT).as_posix()), re.M)
            assert heading in map(anchor, headings), f"{page}: {link}"
    assert links


# ---------------------------------------------------------------- commands


def commands():
    """Every command of the pages, `(page, command)`: blocks of bash, and what stands in the text with a path to a tool."""
    for page in PAGES:
        for block in blocks(page, "bash"):
            yield page, block
        outside = re.sub(r"```.*?```", "", text_of(page), flags=re.S)
        for found in re.findall(r"`([^`]+)`", outside):
            if re.search(r"\.venv/bin/\w", found) or re.match(
                r"(XRAY_\w+=\S+ )?(pip|pytest|python3?|jupyter|git) ", found
            ):
                yield page, found


def run(command, folder, **variables):
    """Run a command of the pages with the tools of this Python, in a copy of the course in `folder`."""
    command = command.replace(".venv/bin/", f"{shlex.quote(str(BIN))}/").replace("outputs/", f"{folder}/outputs/")
    here = {**os.environ, "PYTHONPATH": str(ROOT), "XRAY_OUTPUTS": str(folder / "outputs"), "TQDM_DISABLE": "1"}
    result = subprocess.run(["bash", "-c", command], cwd=ROOT, env=here | variables, capture_output=True, text=True)
    assert result.returncode == 0, f"{command}\n{result.stdout[-2000:]}\n{result.stderr[-3000:]}"
    return result.stdout


def of_notebooks(command, folder):
    """Parsed: the tools are there, the notebooks, and the parameters that are given."""
    words = [word for line in command.splitlines() for word in shlex.split(line, comments=True)]
    tools = [word for word in words if word.startswith(".venv/bin/")]
    assert tools
    for tool in {Path(tool).name for tool in tools} - {"pip", "python"}:
        assert shutil.which(tool, path=str(BIN)), f"{tool} is not installed"
    files = re.findall(r"(?:notebooks|results)/[\w*$.]+\.(?:ipynb|py)", command)
    names = re.findall(r"\b\d\d_\w+", command)
    for file in files:
        assert "$" in file or list(ROOT.glob(file)), file
    for name in names:
        assert f"notebooks/{name.removesuffix('_slides')}.ipynb" in NOTEBOOKS or "outputs" in command, name
    for notebook in [file for file in files if "*" not in file and "$" not in file and file.endswith(".ipynb")]:
        for name in re.findall(r"-p (\w+)", command) + re.findall(r'-y "\{(\w+):', command):
            assert re.search(rf"^{name} = ", parameters_of(notebook), re.M), f"{notebook} has no parameter {name}"


def parameters_of(notebook):
    cells = nbformat.read(ROOT / notebook, as_version=4).cells
    return next(cell.source for cell in cells if "parameters" in cell.metadata.get("tags", []))


def main_command(command, folder):
    """All but the installation and the execution: the pages of a notebook, whose outputs are committed."""
    of_notebooks(command, folder)
    assert command.startswith("python3 -m venv .venv && .venv/bin/pip install -q -r requirements.txt && ")
    _, _, pages = command.split(" && ")
    assert "--execute " in pages
    pages = pages.replace("--execute ", "").replace("notebooks/*.ipynb", NOTEBOOKS[0])
    run(pages, folder)
    assert (folder / "outputs" / "html" / "01_data_exploration.html").stat().st_size > 100_000


def test_command(command, folder):
    of_notebooks(command, folder)
    listed = run(command.split(" && ")[-1] + f" --collect-only -q {NOTEBOOKS[0]} tests/test_readme.py", folder)
    assert "01_data_exploration" in listed and "test_links_lead_to_files" in listed


test_command.__test__ = False


def slides(command, folder):
    run(command.replace("notebooks/*.ipynb", NOTEBOOKS[0]), folder)
    (deck,) = (folder / "outputs").rglob("*.slides.html")
    assert "reveal" in deck.read_text(encoding="utf-8")


def phantoms(command, folder):
    assert run(f"{command} --help", folder) is not None or True


# A pattern for each command, and how it is tried.
TRIED = {
    r"^python3 -m venv .* --execute ": main_command,
    r"^python3 -m venv .*pytest --nbval-lax$": test_command,
    r"jupyter lab notebooks$": lambda command, folder: run(".venv/bin/jupyter lab --version", folder),
    r"--to slides": slides,
    r"papermill": of_notebooks,
    r"-m xray_utils\.phantoms$": of_notebooks,
    r"^\.venv/bin/python results/collect\.py$": of_notebooks,
}


@pytest.mark.skipif(shutil.which("bash") is None, reason="the commands are for bash")
@pytest.mark.parametrize(("page", "command"), list(commands()), ids=lambda value: str(value)[-40:])
def test_every_command_is_well_formed_and_tried(page, command, tmp_path):
    parsed = subprocess.run(["bash", "-n", "-c", command], capture_output=True, text=True)
    assert parsed.returncode == 0, parsed.stderr
    tried = [how for pattern, how in TRIED.items() if re.search(pattern, command)]
    assert tried, f"{page}: no way to try {command!r}; add one to TRIED"
    tried[0](command, tmp_path)
