"""What the pages say: links lead somewhere, commands are whole and run, names exist.

The two long commands install several GB and take minutes: here the first is read and the second collects tests. So are
commands that train or serve: their tools, files and parameters must be there. `XRAY_SLOW=1 pytest -n 0
tests/test_readme.py` also runs them: on one notebook, a few images, one epoch; and those that take hours (benchmarks,
reliability, seeds, training configurations) with `--help` behind them.
"""

import ast
import contextlib
import importlib.util
import inspect
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import types
import urllib.error
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file
from test_arguments import make_images

import xray_utils as xu
from xray_utils.lab.use import EXPORTED

sys.path.insert(0, str(Path(__file__).resolve().parent / "reliability"))
import suite as proof

ROOT = Path(__file__).resolve().parents[1]
PAGES = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "data/README.md"]
PAGES += sorted(
    path.relative_to(ROOT).as_posix() for folder in ("docs", "results") for path in ROOT.glob(f"{folder}/*.md")
)
RESULTS = [page for page in PAGES if page.startswith("results/")]
NOTEBOOKS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "notebooks").glob("*.ipynb"))
BIN = Path(sys.executable).parent
SLOW = bool(os.environ.get("XRAY_SLOW"))


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


def test_every_page_can_be_reached_from_the_readme():
    reached, todo = set(), ["README.md"]
    while todo:
        page = todo.pop()
        reached.add(page)
        for link in re.findall(r"\]\(([^)\s#]+\.md)", text_of(page)):
            if not link.startswith("http"):
                target = ((ROOT / page).parent / link).resolve().relative_to(ROOT).as_posix()
                todo += [target] if target not in reached else []
    assert set(PAGES) <= reached, set(PAGES) - reached


# ---------------------------------------------------------------- commands


def commands():
    """Every command of the pages, once, `(page, command)`: blocks of bash, text in code style."""
    seen = set()
    tool = r"(?:[A-Z_]+=\S+ )*(?:\.venv/bin/\w|(?:pip|pytest|python3?|jupyter|git) )"
    for page in PAGES:
        outside = re.sub(r"```.*?```", "", text_of(page), flags=re.S)
        for command in [*blocks(page, "bash"), *re.findall(r"`([^`]+)`", outside)]:
            if command not in seen and (command in blocks(page, "bash") or re.match(tool, command)):
                seen.add(command)
                yield page, command


def run(command, folder):
    """Run a command of the pages with the tools of this Python; what it makes goes to `folder`."""
    command = command.replace(".venv/bin/", f"{shlex.quote(str(BIN))}/").replace("outputs/", f"{folder}/outputs/")
    variables = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(["bash", "-c", command], cwd=ROOT, env=variables, capture_output=True, text=True)
    assert result.returncode == 0, f"{command}\n{result.stdout[-2000:]}\n{result.stderr[-3000:]}"
    return result.stdout


def read(command, folder=None):
    """The tools of a command are installed, and its files and the parameters of its notebooks are there."""
    words = [word.rstrip(";") for line in command.splitlines() for word in shlex.split(line, comments=True)]
    tools = {word.removeprefix(".venv/bin/") for word in words if word.startswith(".venv/bin/")}
    assert tools or {"pip", "python", "python3", "git"} & set(words), "it names no tool"
    tools |= {f"jupyter-{word}" for before, word in zip(words, words[1:], strict=False) if before.endswith("/jupyter")}
    for tool in tools - {"pip", "python"}:
        assert shutil.which(tool, path=str(BIN)), f"{tool} is not installed"
    for module in re.findall(r"-m (xray_utils[\w.]+)", command):
        assert (ROOT / f"{module.replace('.', '/')}.py").is_file(), f"{module} is not there"
    files = [
        word for word in words if re.match(r"(notebooks|results|data|tests)\b|xray_utils/", word) and "$" not in word
    ]
    for file in files:
        assert list(ROOT.glob(file)), f"{file} is not there"
    for name in re.findall(r"(?<!\S)-p (\w+)|-y \"{(\w+):", command.partition("papermill")[2]):
        for notebook in [file for file in files if file.endswith(".ipynb")]:
            cells = nbformat.read(ROOT / notebook, as_version=4).cells
            (knobs,) = [cell.source for cell in cells if "parameters" in cell.metadata.get("tags", [])]
            assert re.search(rf"^{''.join(name)} = ", knobs, re.M), f"{notebook} has no parameter {name}"


def make_a_page(command, folder):
    read(command)
    assert command.startswith("python3 -m venv .venv && .venv/bin/pip install -q -r requirements.txt && ")
    pages = command.split(" && ")[2]
    assert "--execute " in pages and pages.endswith(" notebooks/*.ipynb")
    if SLOW:
        run(pages.replace("notebooks/*.ipynb", NOTEBOOKS[0]), folder)
        assert (folder / "outputs" / "html" / "01_data_exploration.html").stat().st_size > 100_000


def collect(command, folder):
    read(command)
    listed = run(f"{command.split(' && ')[2]} --collect-only -n 0 -q {NOTEBOOKS[0]} tests/test_notebooks.py", folder)
    assert "01_data_exploration.ipynb::" in listed and "test_notebooks.py::" in listed


def train(command, folder):
    read(command)
    if SLOW:
        make_images(folder / "some images")
        command = command.replace("/path/to/images", shlex.quote(str(folder / "some images")))
        command = command.replace("mkdir -p outputs", "mkdir -p outputs/")
        run(f"{command} -p epochs 1 -p augmented_epochs 0 -p batch_size 8", folder)
        (made,) = (folder / "outputs").glob("*.ipynb")
        assert "resnet18_slides: 11,178,051 trained parameters" in made.read_text(encoding="utf-8")


def serve(command, folder):
    read(command)
    if SLOW:
        words = shlex.split(command.replace(".venv/bin/", f"{BIN}/"))
        words += ["--no-browser", "--allow-root", "--ServerApp.port=0"]
        with subprocess.Popen(words, cwd=ROOT, stderr=subprocess.PIPE, text=True) as server:
            try:
                address = re.compile(r"http://127\S+/lab\?token=\w+")
                page = next(filter(None, map(address.search, server.stderr)))[0]
                assert answers(page)
            finally:
                server.terminate()
                server.stderr.close()


def parse(command, folder):
    """The command with `--help` behind it: its program starts, and knows the options that it is given."""
    read(command)
    if SLOW:
        for line in re.split(r"&&|\n", command):
            said = run(f"{re.sub('^python ', '.venv/bin/python ', line.strip())} --help", folder)
            assert said.lower().startswith("\nusage:" if " pip " in said else "usage:")


def answers(address, seconds=30):
    """Whether a page is served; a server may say its address before it listens."""
    for _ in range(2 * seconds):
        try:
            return urllib.request.urlopen(address).status == 200
        except urllib.error.URLError:
            time.sleep(0.5)
    return False


# How a command is tried; the first pattern that fits it counts. That of the slides makes the decks of test_slides.py.
TRIED = {
    r"^python3 -m venv .* --execute ": make_a_page,
    r"^python3 -m venv .*pytest --nbval-lax$": collect,
    r"^\.venv/bin/jupyter lab notebooks$": serve,
    r"--to (slides|notebook)": read,
    r"papermill .* -p protocol slides$": train,
    r"papermill": read,
    r"^python3 xray_utils/_support/environment\.py https://": read,  # test_setup.py runs it
    r"^git (clone https://|grep$)": read,
    r"^(XRAY_SLOW=1 )?\.venv/bin/(pytest|ruff) ": read,
    r"^pip install (pre-commit|timm)": read,
    r"tests/lessons$|pytest": read,
    r"python tests/gpu/cards\.py$": read,  # test_gpu.py runs it
    r"results/scripts/(seeds|configurations)\.py|tests/(phantoms|reliability|benchmarks|gpu)": parse,
    r"python notebooks/talk ": read,  # test_talk.py runs it
    r"python results/scripts/\w+\.py": read,
}


@pytest.mark.skipif(shutil.which("bash") is None, reason="the commands are for bash")
@pytest.mark.parametrize(("page", "command"), list(commands()), ids=lambda value: value[-40:])
def test_every_command_is_well_formed_and_tried(page, command, tmp_path):
    parsed = subprocess.run(["bash", "-n", "-c", command], capture_output=True, text=True)
    assert parsed.returncode == 0, parsed.stderr
    tried = [how for pattern, how in TRIED.items() if re.search(pattern, command)]
    assert tried, f"{page}: how is {command!r} to be tried? Add it to TRIED."
    tried[0](command, tmp_path)


def test_pages_are_short():
    assert len(text_of("README.md").split()) <= 900
    for line in re.sub(r"```.*?```", "", text_of("README.md"), flags=re.S).splitlines():
        assert len(line) <= 120 or line[0] in "|!`", line  # tables, the figure, a command
    for page in RESULTS:
        assert len(text_of(page).splitlines()) <= 160, page


def rows_of(page, first, cells):
    """The rows of the tables of a page whose first cell matches and that have so many cells."""
    rows = [[cell.strip() for cell in line[1:-1].split("|")] for line in text_of(page).splitlines() if line[:1] == "|"]
    return [row for row in rows if len(row) == cells and re.fullmatch(first, row[0])]


def test_the_table_of_two_trainings_says_what_was_measured():
    (part,) = json.loads((ROOT / "results/shared_cores.json").read_text()).values()
    one = part["figures"]["the course: threads sleep, turns"]["alone"]
    wanted = [
        [way]
        + [
            cell
            for net in one
            for cell in (f"{s['alone'][net]:.2f}", f"{s['two'][net]:.2f} ({s['two'][net] / one[net]:.1f})")
        ]
        for way, s in part["figures"].items()
    ]
    assert rows_of("results/speed.md", "|".join(map(re.escape, part["figures"])), 7) == wanted


def test_the_reliability_page_says_what_was_measured():
    found = {part: one["figures"] for part, one in json.loads((ROOT / "results/reliability.json").read_text()).items()}
    of = sum(proof.TIMES.get(name, 1) for name in proof.CONDITIONS)
    fits, covered, suite = found["soak"]["fits"], found["bootstrap"]["made"], found["suite"]
    both = [[100 * share for one in covered for name, share in one[key].items() if name != "sure_but_wrong"]
            for key in ("covered", "covered_by_percentiles")]  # fmt: skip
    shares = [f"{min(some):.0f} to {max(some):.0f} %" for some in both]
    text = text_of("results/reliability.md")
    for words in (
        f"({found['kills']['kills']} kills) | {found['kills']['bytes_lost']} bytes lost, at most one epoch repeated",
        f"({found['images']['files']:,} files) | each is read or rejected with a reason; "
        f"{found['images']['crashes']} crashes",
        f"train {fits['fits']} times in one process | memory {fits['memory_mib_after_warm_up']:.0f} MiB after the "
        f"warm-up, {fits['memory_mib_at_the_end']:.0f} MiB at the end; {fits['open_files_at_the_end']} open files",
        f"{len(covered)} kinds of simulated test sets, {found['bootstrap']['sets']:,} each | {shares[0]} |",
        f"bootstrap percentiles, same test sets | {shares[1]} |",
        f"runs the test command {of} times in a clean clone",
        f"the test command of the README, in a clean clone | {suite['green_in_all']} of {suite['runs_in_all']} runs "
        "passed |",
    ):
        assert words in text, words
    assert found["kills"]["epochs_lost_to_one_kill_at_most"] == 1
    assert fits["open_files_after_warm_up"] == fits["open_files_at_the_end"]
    conditions = {
        name: [f"{one['green']} of {one['runs']}", " to ".join(dict.fromkeys(f"{s / 60:.1f}" for s in one["seconds"]))]
        for name, one in suite["conditions"].items()
    }
    assert conditions == {row[0]: row[1:] for row in rows_of("results/reliability.md", "(?!condition|-).*", 3)}


def test_the_table_of_coverage_is_what_was_measured():
    made = json.loads((ROOT / "results/reliability.json").read_text())["bootstrap"]["figures"]["made"]
    columns = (("accuracy", "balanced_accuracy", "macro_f1"), ("recall_",), ("auc_",))
    for key, cells in (("covered", 5), ("covered_by_percentiles", 4)):
        rows = rows_of("results/intervals.md", r"\d+, 0\.\d+, \d", cells)
        assert len(rows) == len(made)
        for row, one in zip(rows, made, strict=True):
            assert row[0] == f"{one['images']}, {one['accuracy']:.2f}, {one['images_per_group']}"
            for cell, names in zip(row[1:4], columns, strict=True):
                found = [100 * share for name, share in one[key].items() if name.startswith(names)]
                for said, value in zip(cell.split(" to "), (min(found), max(found)), strict=True):
                    assert abs(float(said) - value) < 0.0501, (row, value)


def test_the_tables_of_accuracy_are_those_of_the_committed_runs():
    table, networks = pd.read_csv(ROOT / "results" / "comparison.csv", index_col=0), r"(Baseline|ResNet18|ViT).*"
    models = ("baseline_cnn", "resnet18", "resnet18_augmented", "vit")
    long, short = rows_of("results/README.md", networks, 7), rows_of("README.md", networks, 4)
    for model, (name, parameters, slides, n, original, grouped, m), row in zip(models, long, short, strict=True):
        assert row == [name, slides, original, grouped]
        for protocol, accuracy, images in (("slides", slides, n), ("grouped", grouped, m)):
            run = table.loc[f"{model}_{protocol}"]
            assert (accuracy, int(images)) == (run["accuracy 95 %"], run.test)
            assert parameters == f"{run.parameters:,}"
        run = table.loc[f"{model}_slides"]
        assert original == ("" if pd.isna(run["original accuracy"]) else f"{run['original accuracy']:.2f}")


def test_the_table_of_the_sample_is_that_of_its_page():
    accuracy = {row[0]: row[1] for row in rows_of("results/sample.md", ".*", 2)}
    external = {row[0]: row[2] for row in rows_of("results/sample.md", ".*", 4)}
    said = rows_of("README.md", r"(Baseline|ResNet18|Small ViT).*", 3)
    for row, name in zip(said, ("baseline", "resnet18", "vit, fine-tuned"), strict=True):
        assert row[1:] == [accuracy[name], external[name]]


INTERVAL = re.compile(r"[-+]?\d\.\d{3} \[[-+]?\d\.\d{3}, [-+]?\d\.\d{3}\]")
IN_NO_FILE = {  # numbers with an interval that stand in the pages alone
    "0.953 [0.927, 0.975]": "a run that was not kept",
    "0.123 [0.009, 0.237]": "a loss: the difference below without its sign",
    "0.293 [0.141, 0.445]": "the same on all external images",
    "0.908 [0.900, 0.915]": "lungs.py's own table, rounded from four digits",
}


def with_intervals(value):
    """Every number with its interval in a parsed JSON file, as text."""
    if isinstance(value, dict):
        for key, interval in value.items():
            if key.endswith("_interval") and interval and value.get(key.removesuffix("_interval")) is not None:
                yield xu.with_interval(value, key.removesuffix("_interval"))
            yield from with_intervals(interval)


def test_every_interval_of_the_pages_stands_in_a_committed_file():
    known = set(IN_NO_FILE)
    for path in (ROOT / "results").rglob("*.csv"):
        known |= set(INTERVAL.findall(path.read_text(encoding="utf-8")))
        table = pd.read_csv(path)
        if {"low", "high"} <= set(table):
            scores = table["score" if "score" in table else "balanced accuracy"]
            known |= {f"{a:.3f} [{b:.3f}, {c:.3f}]" for a, b, c in zip(scores, table.low, table.high, strict=True)}
        for name in [name for name in table if f"{name} low" in table]:
            for value, low, high in zip(table[name], table[f"{name} low"], table[f"{name} high"], strict=True):
                known.add(f"{value:.3f} [{low:.3f}, {high:.3f}]")
    known |= set(INTERVAL.findall(text_of("results/sample.md")))  # test_lessons.py compares it with sample.json
    for path in (ROOT / "results").rglob("*.json"):
        known |= set(with_intervals(json.loads(path.read_text())))
    read = {path.parent.name: pd.read_csv(path) for path in (ROOT / "results/runs").glob("*/predictions.csv")}
    for first, second in (
        ("resnet18_slides", "resnet18_augmented_slides"),
        ("resnet18_grouped", "resnet18_augmented_grouped"),
    ):
        known.add(xu.with_interval(xu.compare_two(read[first], read[second]), "difference"))
    seeds, short = (pd.read_csv(ROOT / f"results/tables/{name}.csv") for name in ("seeds", "seeds_and_precision"))
    known |= set(xu.seed_table(seeds).gap) | set(xu.seed_table(short[short.precision.eq("bf16")]).gap)
    every = set()
    for page in PAGES:
        said = set(INTERVAL.findall(" ".join(text_of(page).split())))
        assert said <= known, f"{page}: {said - known}"
        every |= said
    assert len(every) > 200 and set(IN_NO_FILE) <= every, "no page says these any more"


def test_the_shares_on_both_sides_are_those_that_were_counted():
    table = pd.read_csv(ROOT / "results" / "tables" / "leak.csv").set_index(["protocol", "mirror"])
    rows = rows_of("results/seeds.md", "`(slides|grouped)`.*", 4)
    assert len(rows) == 3
    for row, key in zip(rows, (("slides", True), ("slides", False), ("grouped", True)), strict=True):
        for cell, column in zip(row[1:], ("mirrored_copy", "patient", "near-duplicate"), strict=True):
            found = 100 * table.loc[[key], column]
            low, high = round(found.min()), round(found.max())
            assert cell == (f"{low} to {high} %" if low < high else f"{low} %"), row


def test_the_commands_for_windows_are_the_two():
    for windows, command in zip(blocks("docs/colab.md", "powershell"), blocks("README.md", "bash")[:2], strict=True):
        words = re.sub(r'\$env:(\w+) = "([^"]*)";', r"\1=\2", windows).replace(".venv\\Scripts\\", ".venv/bin/")
        left = re.findall(r"\$env:(\w+)", windows)
        words = words.removesuffix(
            "; Remove-Item " + ", ".join(f"Env:{name}" for name in left)
        )  # else it would stay set
        words = words.replace("py -m venv", "python3 -m venv").replace("python -m pip", "pip").replace(";", " &&")
        assert words.split() == command.split()


# ---------------------------------------------------------------- Python


@pytest.mark.parametrize("page", PAGES + NOTEBOOKS)
def test_what_a_page_says_of_the_package_is_there(page):
    for name in re.findall(r"\bxu\.(\w+)", text_of(page)):
        assert hasattr(xu, name), f"{page}: xu.{name}"
    nodes = [node for block in blocks(page, "python") for node in ast.walk(ast.parse(block))]
    calls = [node for node in nodes if isinstance(node, ast.Call)]
    for call in calls:
        if isinstance(call.func, ast.Attribute) and getattr(call.func.value, "id", "") == "xu":
            keywords = {keyword.arg: None for keyword in call.keywords}
            inspect.signature(getattr(xu, call.func.attr)).bind(*call.args, **keywords)


def test_the_lines_for_drive_keep_the_runs_there(monkeypatch):
    mounted, colab = [], types.ModuleType("google.colab")
    colab.drive = SimpleNamespace(mount=mounted.append)
    monkeypatch.setitem(sys.modules, "google", types.ModuleType("google"))
    monkeypatch.setitem(sys.modules, "google.colab", colab)
    (block,) = [block for block in blocks("docs/colab.md", "python") if "drive.mount" in block]
    in_notebooks = [re.findall(r"`([^`]*drive\.mount[^`]*)`", text_of(page)) for page in NOTEBOOKS]
    for code in (block, *(line for (line,) in in_notebooks)):
        assert ast.dump(ast.parse(code)) == ast.dump(ast.parse(block))
        monkeypatch.setenv("XRAY_OUTPUTS", "elsewhere")
        exec(code, {})  # the first cell of all: nothing is imported yet
        assert mounted.pop() == "/content/drive" and xu.outputs_dir() == Path("/content/drive/MyDrive/xray")


def test_use_what_was_trained_as_the_page_says(tmp_path, monkeypatch, capsys):
    (block,) = blocks("docs/trained_networks.md", "python")
    model = xu.resnet18(seed=1)
    config = {"network": model.spec, "input_mean": model.input_mean, "input_std": model.input_std, "settings": {}}
    config |= {"parameters": 1, "data": {"size": 224, "train_images": 1, "protocol": "grouped"}}
    folder = xu.outputs_dir("runs", "resnet18_grouped")
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "history.csv").write_text("epoch,val_loss\n1,1.0\n")
    save_file(model.state_dict(), folder / "best.safetensors")
    monkeypatch.chdir(tmp_path)
    Image.new("L", (300, 300)).save("my_xray.png")
    exec(block, {"xu": xu})
    assert "No diagnosis" in capsys.readouterr().out
    assert (xu.outputs_dir("export", "resnet18_grouped") / "model.safetensors").is_file()


def test_a_network_of_ones_own_works_as_the_page_says(tmp_path, monkeypatch):
    *together, of_timm = blocks("docs/own_network.md", "python")
    make_images(tmp_path / "images", per_class=20)
    monkeypatch.setenv("XRAY_DATA", str(tmp_path / "images"))
    monkeypatch.chdir(tmp_path)
    Image.radial_gradient("L").save("my_xray.png")
    names = {}
    for block in together:
        exec(block.replace("load_data()", "load_data(size=32)").replace("epochs=10", "epochs=1"), names)
    run, model = names["run"], names["model"]
    predictions = xu.predict(run.model, names["data"].test)
    pd.testing.assert_frame_equal(predictions, names["predictions"])
    assert not torch.equal(model.classifier[3].bias, run.model.classifier[3].bias), "its own network was changed"
    assert xu.load_results([run.name])[run.name].config["network"] == {"network": "MobileNetV3"}

    folder = xu.outputs_dir("export", run.name)
    assert {path.name for path in folder.iterdir()} == {*EXPORTED} - {"baseline_cnn.py"}
    monkeypatch.chdir(folder)
    shutil.copy(tmp_path / "my_xray.png", "xray.png")
    (card,) = re.findall(r"```python\n(.*?)```", Path("README.md").read_text(), re.S)
    assert card.startswith("# model = ...  # the MobileNetV3 as you made it")
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(card, {"model": torchvision.models.mobilenet_v3_small(num_classes=3)})
    shown = Image.fromarray(xu.resize(xu.read_image("xray.png"), 32))  # as the network sees it: nothing left to resize
    wanted = xu.classify(shown, run, look=None).probabilities
    assert np.allclose(ast.literal_eval(said.getvalue()), wanted, atol=0.02)
    if importlib.util.find_spec("timm"):
        exec(of_timm, names)
        assert names["model"].patch_embed.img_size == (32, 32)
