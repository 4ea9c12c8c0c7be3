"""The decks: made by the command of docs/presenting.md, walked slide by slide in headless Chromium at two sizes."""

import hashlib
import itertools
import json
import re
import shlex
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import pytest
from nbconvert import HTMLExporter, SlidesExporter
from nbformat import v4
from traitlets.config import PyFileConfigLoader

ROOT = Path(__file__).resolve().parents[1]
DOT = "R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"
SIZES = [(1280, 720), (1920, 1080)]
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)

# What a reader in the back row would see of the present slide, or not see; pixels of a slide 1280 wide.
LOOK = """
(async () => {
  const slide = Reveal.getCurrentSlide(), scale = Reveal.getScale(), faults = [];
  await new Promise(done => requestAnimationFrame(() => setTimeout(done)));
  const room = slide.getBoundingClientRect(), seen = [...slide.querySelectorAll("*")].filter(
    part => part.checkVisibility() && !part.closest("aside, style, script") && part.getClientRects().length);
  const title = slide.querySelector("h1, h2");
  for (const part of seen) {
    const box = part.getBoundingClientRect(), name = part.tagName + " " + part.textContent.trim().slice(0, 40);
    if (box.bottom > Math.min(room.bottom, innerHeight) + 1 || box.right > Math.min(room.right, innerWidth) + 1
        || box.left < -1 || box.top < -1)
      faults.push(`overflow: ${name} ends at ${Math.round(box.right)}, ${Math.round(box.bottom)}`);
    if (part.scrollWidth > part.clientWidth + 1 && part.clientWidth) faults.push(`cut: ${name}`);
    if ([...part.childNodes].some(node => node.nodeType === 3 && node.textContent.trim())
        && parseFloat(getComputedStyle(part).fontSize) < 22) faults.push(`too small: ${name}`);
  }
  for (const image of slide.querySelectorAll("img")) {
    if (!image.complete || !image.naturalWidth) faults.push("missing image");
    if (image.getBoundingClientRect().height < 230 * scale) faults.push("image too low to be read");
    if (!image.alt || image.alt.startsWith("No description")) faults.push("image without a text");
  }
  if (!title) faults.push("no title");
  if (!seen.some(part => part !== title && !title?.contains(part) && (part.tagName === "IMG"
      || part.matches("p, li, td, pre") && part.textContent.trim()))) faults.push("empty");
  for (const block of slide.querySelectorAll("pre")) {  // a sentence may break, the line of a table not
    const height = block.scrollHeight;
    block.style.whiteSpace = "pre";
    if (block.scrollHeight < height && / {2,}/.test(block.textContent)) faults.push("torn table");
    block.style.whiteSpace = "";
  }
  if (!slide.querySelector("aside.notes")?.textContent.trim()) faults.push("no speaker notes");
  return {title: title?.textContent, faults};
})()
"""


class Browser:
    """Headless Chromium over its DevTools protocol; `errors` are what its console and its network say of a page."""

    def __init__(self, folder):
        from websocket import create_connection  # jupyter brings it

        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"]
        options += ["--remote-debugging-port=0", "--remote-allow-origins=*", f"--user-data-dir={folder}"]
        self.process = subprocess.Popen([BROWSER, *options, "about:blank"], stderr=subprocess.DEVNULL)
        self.ids, self.errors = itertools.count(1), []
        port = folder / "DevToolsActivePort"
        self._wait(lambda: port.is_file() and "\n" in port.read_text())
        address = f"http://127.0.0.1:{port.read_text().split()[0]}/json"
        self._wait(lambda: any(page["type"] == "page" for page in json.load(urllib.request.urlopen(address))))
        page = next(page for page in json.load(urllib.request.urlopen(address)) if page["type"] == "page")
        self.socket = create_connection(page["webSocketDebuggerUrl"], timeout=300)
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    @staticmethod
    def _wait(ready, seconds=300):
        end = time.monotonic() + seconds
        while not ready():
            assert time.monotonic() < end, "the browser did not answer"
            time.sleep(0.05)

    def call(self, method, **params):
        number = next(self.ids)
        self.socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            message = json.loads(self.socket.recv())
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]
            self._hear(message.get("method"), message.get("params"))

    def _hear(self, event, params):
        if event == "Runtime.exceptionThrown" or (
            event == "Runtime.consoleAPICalled" and params["type"] in ("error", "assert")
        ):
            self.errors.append(f"console: {json.dumps(params)[:300]}")
        elif event == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.errors.append(f"console: {params['entry']['text'][:300]}")
        elif event == "Network.requestWillBeSent" and not params["request"]["url"].startswith(("file:", "data:")):
            self.errors.append(f"network: {params['request']['url'][:100]}")

    def run(self, script):
        result = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def resize(self, width, height):
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def open(self, path, width, height, query=""):
        self.resize(width, height)
        self.call("Page.navigate", url=path.as_uri() + query)
        self._wait(
            lambda: self.run(f"location.pathname === {json.dumps(path.as_uri()[7:])} && !!window.Reveal?.isReady()")
        )

    def slides(self):
        """Goes to each slide in turn."""
        for h, column in enumerate(
            self.run("Reveal.getHorizontalSlides().map(s => s.querySelectorAll('section').length)")
        ):
            for v in range(max(1, column)):
                self.run(f"Reveal.slide({h}, {v})")
                yield h, v

    def close(self):
        self.call("Browser.close")
        self.process.wait(300)
        self.socket.close()


NAMES = [path.stem for path in sorted((ROOT / "notebooks").glob("*.ipynb"))]


def make_decks(folder, *others):
    """Decks of all notebooks, and of others, in `folder`, by the command of docs/presenting.md; what it says."""
    page = (ROOT / "docs/presenting.md").read_text(encoding="utf-8")
    command = re.search(r"\.venv/bin/jupyter (nbconvert .*--to slides .*)", page)[1]
    words = [str(folder) if word == "outputs/slides" else word for word in shlex.split(command)]
    return subprocess.run(
        [sys.executable, "-m", *words, *map(str, others)], cwd=ROOT, capture_output=True, text=True, check=True
    ).stderr


@pytest.fixture(scope="module")
def decks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slides")
    said = make_decks(folder, write_faulty(folder / "faulty.ipynb"))
    assert said.count("Alternative text is missing") == 1, "in the faulty one alone"
    return sorted(folder.glob("0*.slides.html"))


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if BROWSER is None:
        pytest.skip("no Chromium or Chrome is installed; the decks were not looked at")
    browser = Browser(tmp_path_factory.mktemp("browser"))
    yield browser
    browser.close()


def test_every_notebook_is_a_deck_that_needs_no_network(decks):
    assert [path.name.split(".")[0] for path in decks] == NAMES
    for path in decks:
        text = re.sub(r"data:[^\"')]+", "data:", path.read_text(encoding="utf-8"))
        assert not re.findall(
            r"(?:src|href)=\"(?!https?://[^\"]+\" ?>|data:|#|\w+\.slides\.html)[^\"]+\"|url\((?!data:)", text
        )
        assert all((path.parent / link).is_file() for link in re.findall(r'href="(\w+\.slides\.html)"', text))
        assert '<link rel="stylesheet"' not in text and "import " not in text.split("Reveal.initialize")[1]


def test_pages_and_decks_lead_to_each_other_and_a_note_on_a_page_looks_like_one():
    cells = [
        v4.new_markdown_cell("[next](04_resnet18.ipynb), [paper](https://arxiv.org/abs/1512.03385)"),
        v4.new_markdown_cell("Ask the class."),
    ]
    for cell, kind in zip(cells, ("slide", "notes"), strict=True):
        cell.metadata.slideshow = {"slide_type": kind}
    cells.append(v4.new_markdown_cell("No word about slides."))
    config = PyFileConfigLoader("config.py", str(ROOT / "notebooks" / "templates")).load_config()
    for exporter, target in ((HTMLExporter, "04_resnet18.html"), (SlidesExporter, "04_resnet18.slides.html")):
        made, _ = exporter(config=config).from_notebook_node(v4.new_notebook(cells=cells))
        assert re.findall(r'<a href="([^#"]+)"', made) == [target, "https://arxiv.org/abs/1512.03385"]
        (note,) = re.findall(r'<aside class="notes?">(.*?)</aside>', made, re.S)
        assert "Ask the class." in note and "next" not in note


@pytest.mark.parametrize("name", NAMES)
def test_every_slide_can_be_shown(name, decks, browser):
    browser.errors.clear()
    browser.open(decks[NAMES.index(name)], *SIZES[0])
    faults = {}
    for width, height in SIZES:
        browser.resize(width, height)
        browser.run("new Promise(done => requestAnimationFrame(() => done(Reveal.layout())))")
        assert browser.run("[innerWidth, innerHeight]") == [width, height]
        for place in browser.slides():
            look = browser.run(LOOK)
            if look["faults"]:
                faults[(width, *place, look["title"])] = look["faults"]
    assert not faults, "\n".join(f"{where}: {what}" for where, what in faults.items())
    assert not browser.errors


@pytest.mark.parametrize("name", NAMES)
def test_a_slide_is_a_page_when_it_is_printed(name, decks, browser):
    browser.errors.clear()
    browser.open(decks[NAMES.index(name)], *SIZES[0], query="?print-pdf")
    slides = browser.run("Reveal.getTotalSlides()")
    browser._wait(lambda: browser.run("document.querySelectorAll('.pdf-page').length"))
    pages = browser.run(
        "[...document.querySelectorAll('.pdf-page')].map(page => [page.querySelector('h1, h2').textContent,"
        " page.offsetHeight, ...[...page.querySelectorAll('img, table, pre, p')].map(part =>"
        " part.getBoundingClientRect().bottom - page.getBoundingClientRect().top)])"
    )
    assert len(pages) == slides
    for title, *bottoms in pages:
        assert max(bottoms) < 760, f"{title} is longer than its page"
    assert not browser.errors


FAULTY = {  # what a slide holds, and what must be said of it
    "": "empty",
    "words": "no speaker notes",
    "<pre>" + "name  0.5  " * 20 + "</pre>": "torn table",
    "many lines\n\n" * 40: "overflow: P many lines",
    "`" + "x" * 200 + "`": "overflow: ",
    "<small style='font-size: 12px'>whisper</small>": "too small: SMALL whisper",
    "<img alt='gone' src='data:image/png;base64,AAAA'>": "missing image",
    f"<img src='data:image/gif;base64,{DOT}'>": "image without a text",
    f"<img alt='dot' src='data:image/gif;base64,{DOT}'>": "image too low to be read",
}


def write_faulty(path):
    cells = [
        v4.new_markdown_cell(f"## Title\n\n{text}", metadata={"slideshow": {"slide_type": "slide"}}) for text in FAULTY
    ]
    cells[0].source += "\n<script>console.error('on purpose')</script><script src='http://127.0.0.1:9/x.js'></script>"
    nbformat.write(v4.new_notebook(cells=cells), path)
    return path


def test_faults_are_seen(decks, browser):
    browser.errors.clear()
    browser.open(decks[0].with_name("faulty.slides.html"), *SIZES[0])
    for place, wanted in zip(browser.slides(), FAULTY.values(), strict=True):
        assert any(fault.startswith(wanted) for fault in browser.run(LOOK)["faults"]), (place, wanted)
    assert any("on purpose" in error for error in browser.errors)
    assert any("network: http://127.0.0.1:9/x.js" in error for error in browser.errors)
    browser.errors.clear()


def test_words_without_a_picture_are_as_large_as_the_slide_allows(decks, browser):
    browser.open(decks[0].with_name("faulty.slides.html"), *SIZES[0])
    sizes = [browser.run("Reveal.getCurrentSlide().style.fontSize") for _ in browser.slides()]
    few, wide, many, *_, image = sizes[1:]
    assert few == "46px" and wide == many == image == "", "neither torn, cut nor beside a picture"


def test_words_stand_beside_a_long_table(decks, browser):
    browser.open(decks[2], *SIZES[0])
    sides = (
        "(slide => [slide.querySelector('.words').getBoundingClientRect().right,"
        " slide.querySelector('table').getBoundingClientRect().left, parseFloat(slide.style.fontSize)])"
        "(Reveal.getCurrentSlide())"
    )
    titles = {
        browser.run("Reveal.getCurrentSlide().querySelector('h1, h2').textContent"): at for at in browser.slides()
    }
    browser.run(f"Reveal.slide({titles['The test, once'][0]}, 0)")
    right, left, size = browser.run(sides)
    assert right < left and size > 30


def test_reveal_js_is_the_one_of_its_package():
    """sha256 of the files of the npm package reveal.js 6.0.2."""
    files = {
        "reveal.js": "aa1bbbf2617b23a623b23612cb3c5bdb63de512e652bf20fcfa832b045d37844",
        "reveal.css": "615ee850cbbb98a0f688b60ed37b21819a3f54c9f3e6f20e33e63693ab74a0c0",
        "notes.js": "447c42f365876e41853de81453d0c53c580c5b2099132e8f61200de4a0ba2af3",
    }
    folder = ROOT / "notebooks" / "templates" / "deck" / "static"
    assert {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in files} == files
