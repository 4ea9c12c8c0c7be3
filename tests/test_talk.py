"""The talk: made by the command of docs/presenting.md from runs that are drawn here, then looked at in Chromium."""

import csv
import io
import json
import re
import runpy
import shlex
import shutil
import sys
from contextlib import redirect_stdout
from datetime import date
from pathlib import Path
from string import Formatter
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from pptx import Presentation
from test_slides import BROWSER, LOOK, SIZES, browser  # noqa: F401 (a fixture that holds here too)

import xray_utils as xu

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "notebooks" / "talk"))
import export  # noqa: E402
import slides as talk_slides  # noqa: E402
import words as talk_words  # noqa: E402

MODELS = ("baseline_cnn", "resnet18", "vit")  # resnet18_augmented was not trained


def write_run(model, data, wrong, ending=""):
    """The folder of a run as a notebook leaves it; the first `wrong` test images are taken for the next class."""
    rows = data.test.rows
    predicted = [xu.CLASSES[(xu.CLASSES.index(label) + (i < wrong)) % 3] for i, label in enumerate(rows.label)]
    shares = {f"p_{name}": np.where(np.array(predicted) == name, 0.8, 0.1) for name in xu.CLASSES}
    table = rows[["file", "label", "group", "mirrored", "source"]].assign(predicted=predicted, **shares)
    folder = xu.outputs_dir("runs", f"{model}_grouped{ending}")
    folder.mkdir(parents=True)
    config = {
        "network": {"network": model},
        "parameters": 1491,
        "data": data.settings | {"train_images": len(data.train), "test": data.test.fingerprint()},
        "settings": {"optimizer": "adam", "lr": 5e-5, "batch_size": 8},
    }
    (folder / "config.json").write_text(json.dumps(config))
    losses = {f"{side}_loss": [1.0, 0.4 if model == "vit" else 0.5, 0.7] for side in ("train", "val")}
    history = {"epoch": [1, 2, 3], **losses, "train_accuracy": [0.4, 0.7, 0.8], "val_accuracy": [0.5, 0.75, 0.7]}
    pd.DataFrame(history).to_csv(folder / "history.csv", index=False)
    xu.save_results(SimpleNamespace(folder=folder, config=config), table)
    return table


def write_tables(internal, border=0.87):
    """What notebook 7 leaves: simple baselines, an external set of two places."""
    scores = {"metadata only": 0.3, "only the border": border, "16 x 16 pixels": 0.9, "16 x 16, shuffled labels": 0.3}
    baselines = pd.DataFrame({"balanced accuracy": scores})
    baselines = baselines.assign(images=228, low=baselines.iloc[:, 0] - 0.1, high=baselines.iloc[:, 0] + 0.1)
    xu.save_table(baselines.assign(expected=[1 / 3, 1 / 3, np.nan, 1 / 3]), "shortcut_baselines_grouped")
    auc = pd.DataFrame({"score": [0.99, 0.4375], "low": [0.9, 0.1], "high": [1, 0.8]}, ["AUC internal", "AUC external"])
    xu.save_table(auc, "all_experiments_grouped")
    external = internal[internal.label.ne("virus")].assign(network="baseline_cnn")
    external["source"] = np.where(external.label.eq("covid"), "owner/one-place", "other/place")
    xu.save_table(external, "external_predictions_grouped")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The files of the talk about images of one's own, with one run missing: {"en": folder, "pt": folder}, and more."""
    folder = tmp_path_factory.mktemp("talk")
    images = pd.read_csv(ROOT / "data" / "sample" / "manifest.csv").groupby("label").head(24)
    for file in images.file:  # some of the sample in another folder: images of one's own
        (folder / "images" / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / "data" / "sample" / file, folder / "images" / file)
    images.to_csv(folder / "images" / "manifest.csv", index=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XRAY_DATA", str(folder / "images"))
        patch.setenv("XRAY_OUTPUTS", str(folder / "outputs"))
        data = xu.load_data(size=64, mirror=False)
        tables = {model: write_run(model, data, wrong) for model, wrong in zip(MODELS, (5, 0, 2), strict=True)}
        write_tables(tables["baseline_cnn"])
        page = (ROOT / "docs" / "presenting.md").read_text(encoding="utf-8")
        command = re.search(r"\.venv/bin/python (notebooks/talk .*--language pt.*)", page)[1]
        patch.setattr(sys, "argv", shlex.split(command))
        draw, drawn = talk_slides.Talk._drawn, []
        patch.setattr(talk_slides.Talk, "_drawn", lambda *one: drawn.append(draw(*one)) or drawn[-1])
        with redirect_stdout(io.StringIO()) as said:
            runpy.run_path(str(ROOT / sys.argv[0]), run_name="__main__")
        shutil.move(folder / "outputs" / "slides", folder / "pt")
        words = talk_words.Words("en")
        talk, pictures = (
            talk_slides.Talk(words),
            iter(drawn),
        )  # the figures are those of the other language, to be quick
        patch.setattr(talk_slides.Talk, "_drawn", lambda *one: next(pictures))
        slides = talk.make("Ana", "Course", date(2026, 11, 28))
        export.write_html(slides, words, talk.footer, folder / "en" / "talk.en.slides.html")
        yield SimpleNamespace(folder=folder, said=said.getvalue(), slides=slides, tables=tables, footer=talk.footer)


def titles_of(html):
    return re.findall(r"<h[12]>(.*?)</h[12]>", html.read_text(encoding="utf-8"))


def test_one_command_makes_a_talk_of_fifteen_minutes_in_portuguese(made):
    html, pptx, pdf = (made.folder / "pt" / f"talk.pt.{ending}" for ending in ("slides.html", "pptx", "pdf"))
    titles, page = titles_of(html), html.read_text(encoding="utf-8").split("<script>")[0]
    assert 16 <= len(titles) <= 22 and f"{len(titles)} slides" in made.said and "runs: own" in made.said
    assert 12 * 60 <= sum(slide.seconds for slide in made.slides) <= 15 * 60
    assert "CNN de base: 5 de 12 imagens de teste erradas" in titles
    assert "ResNet18: todas as 12 imagens de teste certas" in titles
    assert "ResNet18, com aumento: ainda sem resultado" in titles and "04_resnet18.ipynb" in page
    assert any("acurácia 0,583\u00a0[0," in title and "original informa 0,89" in title for title in titles)
    assert "Podemos confiar? Sem os pulmões, só a borda já chega a 0,87" in titles
    assert "CNN de base, covid contra normal: AUC 0,99 interna, 0,44 externa" in titles
    assert page.count("Imagens próprias: 72. Divisão: agrupada. Não é para uso clínico.") == len(titles)
    assert not re.findall(r"(?:src|href)=\"(?!data:)", page) and "A origem prevê a classe" in page
    assert ">0,00005</td>" in page
    assert not re.search(r"\b0\.\d", re.sub("<.*?>", " ", page.split("<body>")[1])), "a decimal point"
    if BROWSER:
        assert len(re.findall(rb"/Type /Page\b(?!s)", pdf.read_bytes())) == len(titles)
    index = (html.parent / "index.html").read_text(encoding="utf-8")
    assert [path.name for path in (html, pptx, pdf) if path.is_file()] == re.findall('href="(.*?)"', index)
    deck = Presentation(pptx)
    assert [slide.shapes.title.text for slide in deck.slides] == titles
    assert all("Tempo: 0:" in slide.notes_slide.notes_text_frame.text for slide in deck.slides)
    said = deck.slides[titles.index("ViT: 2 de 12 imagens de teste erradas")].notes_slide.notes_text_frame.text
    wrong = made.tables["vit"].query("label != predicted").label.mode()[0]
    assert f"Leiam a linha {talk_words.Words('pt')(f'figure.{wrong}')}: nela" in said
    shapes = [shape for slide in deck.slides for shape in slide.shapes]
    assert sum(shape.has_table for shape in shapes) == page.count("<table") > 4
    (report,) = (shape.table for shape in deck.slides[titles.index("ViT: 2 de 12 imagens de teste erradas") + 1].shapes
                 if shape.has_table)  # fmt: skip
    grey = [cell.text_frame.paragraphs[0].font.color.type is not None for cell in report.rows[1].cells]
    assert grey == [False, False, True, False, True, False, True], "the original"
    pictures = [shape for shape in shapes if shape.shape_type == 13]
    assert len(pictures) == page.count("<img") > 8
    for shape in shapes:
        assert shape.left >= 0 and shape.left + shape.width <= deck.slide_width
        assert shape.top >= 0 and shape.top + shape.height <= deck.slide_height


@pytest.mark.parametrize("language", ["en", "pt"])
def test_every_slide_can_be_shown_and_says_little(language, made, browser):  # noqa: F811
    browser.errors.clear()
    browser.open(made.folder / language / f"talk.{language}.slides.html", *SIZES[0])
    faults = {}
    for width, height in SIZES:
        browser.resize(width, height)
        browser.run("new Promise(done => requestAnimationFrame(() => done(Reveal.layout())))")
        for place in browser.slides():
            look = browser.run(LOOK)
            count = "[...Reveal.getCurrentSlide().querySelectorAll('.words')].map(e => e.textContent).join(' ')"
            words = browser.run(count).split()
            shown = browser.run("Reveal.getCurrentSlide().querySelectorAll('img, table').length")
            if look["faults"] or len(words) > 30 or shown != 1:
                faults[(width, *place, look["title"])] = look["faults"], len(words), shown
    assert not faults and not browser.errors, (faults, browser.errors)


def test_a_slide_is_a_page_when_it_is_printed_from_the_browser(made, browser):  # noqa: F811
    browser.open(made.folder / "pt" / "talk.pt.slides.html", *SIZES[0], query="?print-pdf")
    browser._wait(lambda: browser.run("document.querySelectorAll('.pdf-page').length"))
    pages = browser.run(
        "[...document.querySelectorAll('.pdf-page')].map(page => [page.querySelector('img')?.offsetHeight ?? 300,"
        " page.querySelector('h1, h2').offsetWidth,"
        " page.querySelector('footer').getBoundingClientRect().bottom - page.getBoundingClientRect().top])"
    )
    assert len(pages) == len(made.slides)
    assert all(image > 230 and title > 1100 and 600 < footer < 760 for image, title, footer in pages), pages


def test_every_text_is_there_in_every_language_with_the_same_values():
    with talk_words.TABLE.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len({row["key"] for row in rows}) == len(rows)
    for row in rows:
        values = [
            {part[1] for part in Formatter().parse(row[language])} - {None} for language in talk_words.languages()
        ]
        assert all(row.values()) and all(one == values[0] for one in values), row["key"]
        if row["key"].endswith((".columns", "limits.rows")):
            assert len({row[language].count("|") for language in talk_words.languages()}) == 1


def test_a_missing_text_is_named_and_a_third_language_is_a_column(tmp_path, monkeypatch):
    table = pd.read_csv(talk_words.TABLE, dtype=str).assign(de=lambda t: t.en)
    table.loc[table.key.eq("curves.title"), "de"] = ""
    table.to_csv(tmp_path / "strings.csv", index=False)
    monkeypatch.setattr(talk_words, "TABLE", tmp_path / "strings.csv")
    assert talk_words.languages() == ["en", "pt", "de"]
    words = talk_words.Words("de")
    assert "IA 2.0 A, 1/2" in talk_words.Words("pt")("cover.words", group="Ana", course="IA 2.0 A", date="1/2")
    assert words("cover.title") == table.set_index("key").en["cover.title"]
    with pytest.raises(KeyError, match="'curves.title' is missing in the column 'de'"):
        words("curves.title", network="ViT", epoch=1, epochs=2)
    with pytest.raises(KeyError, match="no row figure.* for the text 'unheard of'"):
        words.of_figure("unheard of")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("1,491", "1.491"),
        ("0.5", "0,5"),
        ("covid 52", "covid 52"),
        ("12\n17%", "12\n17%"),
        ("virus\n12 images", "vírus\n12 imagens"),
        ("AUC 0.900 [0.812, 0.950]", "AUC 0,900\u00a0[0,812,\u00a00,950]"),
        ("normal and virus alone", "só normal e vírus"),
        ("Images: Kermany et al., CC BY 4.0", "Imagens: Kermany et al., CC BY 4.0"),
        ("256 x 210, L", "256 x 210, L"),
        ("16 x 16, shuffled labels", "16 x 16, rótulos embaralhados"),
    ],
)
def test_texts_of_figures_in_portuguese(text, wanted):
    assert talk_words.Words("pt").of_figure(text) == wanted


def test_the_ticks_of_a_figure_are_translated_and_stay_where_they_were():
    figure = xu.plot_history(pd.DataFrame({"epoch": [1, 2], **{
        f"{side}_{what}": [0.5, 0.25] for side in ("train", "val") for what in ("loss", "accuracy")}}))  # fmt: skip
    limits = [(axes.get_xlim(), axes.get_ylim()) for axes in figure.axes]
    for axes in figure.axes:
        axes.set_title("", loc="left")
    talk_words.Words("pt").translate(figure)
    figure.draw_without_rendering()
    assert [(axes.get_xlim(), axes.get_ylim()) for axes in figure.axes] == limits
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels and all(re.fullmatch(r"0,\d+", label) for label in labels)
    assert figure.axes[0].get_xlabel() == "época"


def test_the_ticks_that_panels_share_are_translated_once():
    figure = Figure()
    first, second = figure.subplots(1, 2, sharey=True)
    first.set_ylim(-0.03, 1.03)  # ticks at -0.2 and 1.2 lie beyond it
    talk_words.Words("pt").translate(figure)
    figure.draw_without_rendering()
    assert first.get_ylim() == second.get_ylim() == (-0.03, 1.03)
    assert {"0,0", "0,2"} <= {label.get_text() for label in first.get_yticklabels()}


@pytest.mark.parametrize(
    ("border", "metadata", "title", "first_row"),
    [
        (0.87, 0.9, "Without the lungs, the border alone reaches 0.87", "Border of the image alone"),
        (0.35, 0.9, "Without any pixel, the data of the file reach 0.90", "Data of the file alone"),
        (0.35, 0.3, "The border alone reaches 0.35, about chance", "Border of the image alone"),
    ],
)
def test_the_title_names_what_predicts_the_class(border, metadata, title, first_row, monkeypatch):
    table = pd.DataFrame({"balanced accuracy": [metadata, border]}, ["metadata only", "only the border"])
    table = table.assign(images=228, low=table.iloc[:, 0] - 0.1, high=table.iloc[:, 0] + 0.1, expected=1 / 3)
    saved = {"shortcut_baselines": table}
    monkeypatch.setattr(talk_slides.Talk, "_saved", lambda talk, name: saved.get(name, pd.DataFrame()))
    monkeypatch.setattr(talk_slides.Talk, "_drawn", lambda *one: b"")
    talk = talk_slides.Talk(talk_words.Words("en"))
    talk._add_trust()
    slides = {slide.name: slide for slide in talk.slides}
    assert slides["shortcut"].title.endswith(title)
    assert slides["conclusions"].table.index[0].startswith(first_row)


def test_the_conclusions_are_about_the_network_with_the_lowest_validation_loss(made):
    """Not the one with the highest test accuracy, which is the ResNet18, and not the first."""
    (table,) = (slide.table for slide in made.slides if slide.name == "conclusions")
    assert table.index[0] == "ViT (best on validation), test accuracy" and "0.833" in table.iloc[0, 0]


def test_one_network_alone_is_compared_with_none(made, monkeypatch):
    monkeypatch.setenv("XRAY_DATA", str(made.folder / "images"))
    monkeypatch.setenv("XRAY_OUTPUTS", str(made.folder / "outputs"))
    monkeypatch.setattr(talk_slides.Talk, "_drawn", lambda *one: b"")
    talk = talk_slides.Talk(talk_words.Words("en"))
    talk.results = {"vit": talk.results["vit"]}
    talk._add_comparison()
    assert talk.slides[0].title == "ViT: accuracy 0.833. No other network has a result yet"


def test_runs_of_other_images_are_refused(made, monkeypatch):
    monkeypatch.setenv("XRAY_OUTPUTS", str(made.folder / "outputs"))  # own runs, but XRAY_DATA is the sample
    with pytest.raises(ValueError, match="baseline_cnn_grouped was tested on other images .* Set XRAY_DATA"):
        talk_slides.Talk(talk_words.Words("en"))


def test_without_any_run_the_slides_say_what_to_run(monkeypatch):
    monkeypatch.setattr(talk_slides.Talk, "_drawn", lambda *one: b"")
    talk = talk_slides.Talk(talk_words.Words("en"))
    slides = {slide.name: slide for slide in talk.make("Ana", "Course", date(2026, 11, 28))}
    assert talk.footer.startswith("Bundled sample: 228 images")
    made_by = {name: slide.words[0] for name, slide in slides.items() if "no result yet" in slide.title}
    assert set(made_by) == {*xu.NOTEBOOKS, "comparison", "shortcut", "external"}
    assert all(re.search(rf"notebooks/{xu.NOTEBOOKS[name]}.ipynb", made_by[name]) for name in xu.NOTEBOOKS)
    assert slides["conclusions"].title.startswith("Conclusion: the test accuracy alone")
    assert "The source may predict the class" in slides["limits"].table.index
