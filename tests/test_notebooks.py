"""The contract of the notebooks, and that the two commands of the README are whole."""

import re
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def cells_of(path, kind="code"):
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == kind]


def text_of(output):
    data = output.get("data", {})
    return "".join(output.get("text", "")) + "".join(data.get("text/plain", "")) + "".join(data.get("text/html", ""))


def test_there_are_seven():
    names = ["01_data_exploration", "02_preprocessing", "03_baseline_cnn", "04_resnet18", "05_vit", "06_comparison"]
    names.append("07_try_to_break_it")
    assert [path.stem for path in NOTEBOOKS] == names


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
class TestContract:
    def test_it_starts_and_ends_like_the_others(self, path):
        cells = [cell for cell in cells_of(path, "markdown") if cell.metadata.slideshow.slide_type != "notes"]
        prose = [cell.source for cell in cells]
        assert re.match(rf"# {int(path.stem[:2])}\. .*\*\*Question:\*\*", prose[0], re.S)
        assert "Nothing here is for clinical use." in prose[0]
        assert "What we cover" in prose[1] and "**You will learn**" in prose[1]
        assert "## Takeaways" in prose[-2] and "## Exercises" in prose[-1]
        link = re.search(r"\]\((\S+\.ipynb)\)$", prose[-1].strip())
        assert link and (path.parent / link[1]).is_file()

    def test_one_cell_holds_the_parameters(self, path):
        tagged = [cell for cell in cells_of(path) if "parameters" in cell.metadata.get("tags", [])]
        assert len(tagged) == 1 and all("=" in line for line in tagged[0].source.splitlines())

    def test_every_cell_has_its_place_in_the_slides(self, path):
        for cell in nbformat.read(path, as_version=4).cells:
            assert cell.metadata["slideshow"]["slide_type"] in {"slide", "subslide", "fragment", "skip", "notes", "-"}

    def test_cells_are_short(self, path):
        for cell in cells_of(path):
            assert len(cell.source.splitlines()) <= 10, cell.source

    def test_at_least_three_cells_are_compared_with_their_output(self, path):
        tagged = [cell for cell in cells_of(path) if "nbval-check-output" in cell.metadata.get("tags", [])]
        assert len(tagged) >= 3
        assert all(cell.outputs for cell in tagged)

    def test_it_was_run_top_to_bottom_without_error_or_warning(self, path):
        cells = cells_of(path)
        assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
        for output in (output for cell in cells for output in cell.outputs):
            assert output.output_type != "error" and output.get("name") != "stderr"
            assert not any("widget" in kind for kind in output.get("data", {}))
            assert not re.search(r"(?<![\w.])/(?:home|root|tmp|work|Users)/|[A-Z]:\\|Warning", text_of(output))

    def test_the_page_says_that_its_images_are_those_of_the_sample(self, path):
        assert any(
            "images of the bundled sample" in text_of(output) for cell in cells_of(path) for output in cell.outputs
        )

    def test_every_picture_can_be_read_aloud(self, path):
        for cell in cells_of(path):
            if any(kind.startswith("image/") for output in cell.outputs for kind in output.get("data", {})):
                assert len(cell.metadata.get("alt", "")) > 30, cell.source

    def test_every_picture_is_saved_for_other_slides(self, path):
        for cell in cells_of(path):
            if any(kind.startswith("image/") for output in cell.outputs for kind in output.get("data", {})):
                assert "xu.save_figure(" in cell.source, cell.source

    def test_it_says_what_was_seen_before_what_to_take_away(self, path):
        prose = [cell.source for cell in cells_of(path, "markdown") if re.match("## ", cell.source)]
        titles = [text.splitlines()[0].removeprefix("## ") for text in prose]
        assert titles[-3:] == ["What we saw", "Takeaways", "Exercises"]

    def test_github_shows_it(self, path):
        assert path.stat().st_size < 1.5e6, "large notebooks are not rendered: fewer images, or radiographs as JPEG"

    def test_the_kernel_is_any_python(self, path):
        assert nbformat.read(path, as_version=4).metadata.kernelspec.name == "python3"


def readme_commands():
    blocks = re.findall(r"```bash\n(.*?)\n```", (ROOT / "README.md").read_text(), re.S)
    return [block for block in blocks if block.startswith("python3 -m venv .venv")]


def test_the_readme_has_two_commands_each_complete_in_itself():
    main, tests = readme_commands()
    for command in (main, tests):
        assert "pip install -q -r requirements.txt" in command and "\n" not in command
    assert "XRAY_DATA=data/sample" in main and "--execute" in main and "outputs/html" in main
    assert tests.endswith(".venv/bin/pytest --nbval-lax")
