"""The words on the pages are true of any images; exercises have solutions, and both are complete.

`XRAY_SLOW=1 pytest -n 0 tests/test_prose.py` also runs all notebooks on a second set of images.
"""

import base64
import io
import os
import re
from pathlib import Path

import nbformat
import phantoms
import pytest
from nbclient import NotebookClient
from nbformat import v4
from PIL import Image
from test_notebooks import NOTEBOOKS, cells_of, text_of

import xray_utils as xu

# Every number of two or more characters that the prose may hold, and why it is true of any images.
FACTS = {
    "images with drawn lungs": "132",
    "the licences": "3.0 4.0",
    "tinted images of the original's set": "37",
    "the original's images and splits": "1,196 590 936 866 1,674 358 360 837 179 180 70",
    "sizes, shares and settings we choose": "224 112 15 0.01 0.003 0.0003 0.7 0.001 0.3 0.00005 30 0.05 95 0.95 0.8",
    "the baseline: parameters, filters": "1,491 16",
    "ResNet18: parameters (millions, times the baseline), filters and pixels": "11 7,500 512 64 128 256 56 28 14 20",
    "ViT: patches, patches a side, pixels a side, features, millions": "196 64 14 784 768 22",
    "chance and certainty": "0.5 0.9 1.000",
    "years of papers": "1998 2007 2012 2015 2016 2017 2018 2019 2020 2021 2023",
}
FACTS = {number for numbers in FACTS.values() for number in numbers.split()}
# Where a single digit may stand; the names of notebooks aside.
DIGITS = {
    "the mathematics of intervals and ranks": "holds? 0|reach 0|near 1|Far from 1|3/n",
    "the binomial intervals of 360 and 180 images": "plus or minus [24]",
    "shapes of layers": r"\d+ x 3 weights and 3 biases|inputs x 3 x 3 \+ 1|7 x 7|at 7 pixels",
    "an axis that counts images": "right of 1 are",
}
NOTEBOOK = r"[Nn]otebooks? \[?\d(?:(?:, \[?| and \[?| to )\d)*|\(\[\d|\[\d\. |^# \d\."


def prose_of(path):
    """The sentences of a notebook without code, links' targets, and the numerals of its lists and title."""
    noise = r"```.*?```|`[^`]*`|\]\([^)]*\)|^\d+\. |^# \d+\."
    return [re.sub(noise, "", cell.source, flags=re.S | re.M) for cell in cells_of(path, "markdown")]


def numbers_of(text):
    return set(re.findall(r"(?<![\w.,-])\d(?:[\d,.]*\d)(?!\w)", text))


def printed_by(nb):
    outputs = [output for cell in nb.cells if cell.cell_type == "code" for output in cell.outputs]
    outputs = [one for one in outputs if not any(kind.startswith("image/") for kind in one.get("data", {}))]
    return set().union(*(numbers_of(text_of(output)) for output in outputs))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_number_in_the_prose_is_a_fact_of_networks_or_protocol(path):
    for text in prose_of(path):
        assert numbers_of(text) <= FACTS, text
        rest = re.sub("|".join([NOTEBOOK, *DIGITS.values()]), "", text, flags=re.M)
        assert not re.findall(r"(?<![\w.,-])\d(?![\w.,]*\d)(?!\w)", rest), text


@pytest.fixture(scope="module")
def other_images(tmp_path_factory):
    """A second set of phantoms: other patients, fewer of them, another class the largest."""
    folder, rows = tmp_path_factory.mktemp("other set"), ["file,label,patient_id,source"]
    for seed, label, patients in zip((700, 800, 900), xu.CLASSES, (16, 9, 12), strict=True):
        (folder / label).mkdir()
        for i in range(patients + 4):  # four have two images
            pixels, _ = phantoms.draw_phantom(label, seed + i % patients, (90 + 2 * i, 100), image=i // patients)
            Image.fromarray(pixels).save(folder / label / f"{i}.png")
            rows.append(f"{label}/{i}.png,{label},{label}{i % patients},synthetic")
    (folder / "manifest.csv").write_text("\n".join(rows) + "\n")
    return folder


# What makes the other notebooks quick where the images are not the sample: random weights, an epoch of everything.
QUICK = {
    "03": "epochs = option_epochs = 1",
    "04": "epochs = 1",
    "05": "epochs = destroy_epochs = random_epochs = 1; weights = None",
    "07": "marker_epochs = retrain_epochs = 1",
}


@pytest.fixture(scope="module")
def pages(other_images, tmp_path_factory):
    """`{path: (notebook as it is committed, the same executed on the other images)}`; one kernel imports once."""
    from transformers import ViTImageProcessor

    both = {path: [nbformat.read(path, as_version=4) for _ in range(2)] for path in NOTEBOOKS}
    all_of_them = v4.new_notebook()
    for path, (_, after) in both.items():
        for cell in after.cells:
            if "parameters" in cell.metadata.get("tags", []):
                cell.source += "\n" + QUICK.get(path.stem[:2], "")
        all_of_them.cells += [v4.new_code_cell("%reset -f"), *after.cells]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XRAY_DATA", str(other_images))
        patch.setenv("XRAY_OUTPUTS", str(tmp_path_factory.mktemp("outputs")))
        folder = tmp_path_factory.mktemp("vit")  # a small random ViT stands for the one of the network
        xu.vit(None, seed=0).save_pretrained(folder)
        ViTImageProcessor().save_pretrained(folder)
        patch.setenv("XRAY_VIT_WEIGHTS", str(folder))
        where = {"metadata": {"path": str(NOTEBOOKS[0].parent)}}
        NotebookClient(all_of_them, timeout=300, kernel_name="python3", resources=where).execute()
        assert sorted(xu.outputs_dir("figures").glob("*.svg"))
    return both


@pytest.mark.skipif(not os.environ.get("XRAY_SLOW"), reason="slow: set XRAY_SLOW=1")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_on_other_images_and_its_figures_have_their_size(path, pages):
    before, after = pages[path]
    assert len(printed_by(before) - printed_by(after)) > 5, "the two sets give the same page"
    for output in (output for cell in after.cells for output in cell.get("outputs", [])):
        for kind in (kind for kind in output.get("data", {}) if kind.startswith("image/")):
            with Image.open(io.BytesIO(base64.b64decode(output.data[kind]))) as picture:
                size = output.metadata[kind]  # on the page; it has twice the pixels
                assert picture.width - 2 * size["width"] in (0, 1) and picture.height - 2 * size["height"] in (0, 1)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_exercise_has_a_folded_solution(path):
    exercises = re.findall(r"^(\d+)\. ", cells_of(path, "markdown")[-1].source, re.M)
    cells = nbformat.read(path, as_version=4).cells
    tagged = [cell for cell in cells if "solution" in cell.metadata.get("tags", [])]
    solved = re.findall(r"^# Solution (\d+): ", "\n".join(cell.source for cell in tagged), re.M)
    assert exercises == solved != []
    assert cells[-len(tagged) :] == tagged, "solutions stand last"
    for cell in tagged:
        assert cell.metadata.slideshow.slide_type == "skip"
        assert cell.metadata.jupyter == {"source_hidden": True, "outputs_hidden": True}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_links_of_a_notebook_lead_somewhere(path):
    links = re.findall(r"\]\(([^)]+)\)", "\n".join(cell.source for cell in cells_of(path, "markdown")))
    for link in links:
        papers = r"https://(doi\.org/10\.\d+/\S+|arxiv\.org/abs/\d+\.\d+|www\.ncbi\.nlm\.nih\.gov/pmc/articles/PMC\d+/)"
        assert re.fullmatch(papers, link) or (Path(path).parent / link).is_file(), link
