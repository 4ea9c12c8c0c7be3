"""An X-ray of one's own, the form, and the export: what comes out is what `predict` says of the prepared image."""

import ast
import contextlib
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from jupyter_client.manager import start_new_kernel
from matplotlib.text import Text
from PIL import Image, ImageDraw, ImageOps
from safetensors.torch import save
from test_arguments import HISTORY, PREDICTIONS, make_images
from test_dicom import write

import xray_utils as xu
from xray_utils._support import runs, typical
from xray_utils.constants import PROBABILITIES
from xray_utils.lab import use

matplotlib.use("Agg")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Images in the forms that people have them in, prepared; `.folder` is where they lie."""
    folder = tmp_path_factory.mktemp("images")
    images = make_images(folder)
    rng = np.random.default_rng(0)
    deep = rng.integers(0, 4096, (300, 200), dtype=np.uint16)
    Image.fromarray(deep).save(folder / "covid" / "0.png")
    Image.fromarray(rng.integers(0, 256, (90, 50, 4), dtype=np.uint8)).save(folder / "normal" / "0.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    picture = Image.fromarray(rng.integers(0, 256, (900, 700, 3), dtype=np.uint8))
    picture.save(folder / "virus" / "0.png", exif=turned)
    picture.convert("P").save(folder / "virus" / "1.png")
    images = xu.audit_images(xu.find_images(folder))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XRAY_OUTPUTS", str(tmp_path_factory.mktemp("outputs")))
        yield SimpleNamespace(data=xu.prepare(xu.split_images(images, mirror=False)), folder=folder)


def run_of(model, prepared, folder, name="mine_grouped"):
    """A run of this network as `fit` would leave it, but for the training."""
    if hasattr(model, "fc"):  # as after some training: statistics of batch norm that are not 0 and 1
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.uniform_(-0.1, 0.1, generator=torch.Generator().manual_seed(0))
    config = runs._config(model, prepared.data, name, {"epochs": 2})
    run = runs.Run(name, folder / name, model.eval(), HISTORY, config)
    run.folder.mkdir(parents=True)
    return run


@pytest.fixture
def run(prepared, tmp_path):
    return run_of(xu.baseline_cnn(seed=1), prepared, tmp_path)


def predicted(run, prepared):
    """`{file: probabilities}` of all images, by `predict` on the prepared set."""
    sides = [xu.predict(run.model, getattr(prepared.data, side)) for side in ("train", "val", "test")]
    return pd.concat(sides).set_index("file")[PROBABILITIES]


# ---------------------------------------------------------------- classify


def test_an_image_gets_the_probabilities_of_its_prepared_self(run, prepared, capsys):
    wanted = predicted(run, prepared)
    for file in ("covid/0.png", "normal/0.png", "virus/0.png", "virus/1.png", "virus/2.png"):
        path = prepared.folder / file
        with Image.open(path) as opened:
            for image in (path, str(path), path.read_bytes(), opened):
                answer = xu.classify(image, run, look=None)
                np.testing.assert_allclose(answer.probabilities, wanted.loc[file], atol=1e-5, err_msg=file)
    split = prepared.data.test
    alone = xu.classify(prepared.folder / split.rows.file[0], run, look=None)
    np.testing.assert_array_equal(alone.pixels, split.take([0])[0])
    said = capsys.readouterr().out
    assert said.count("No diagnosis: a course network, not for clinical use.") == 21
    assert alone.warning in said and list(alone.probabilities.index) == list(xu.CLASSES)
    assert alone.probabilities.sum() == pytest.approx(1) and alone.where is None and alone.credit == ""


def test_the_map_is_that_of_the_network_and_the_image(run, prepared):
    seen = []

    def look(model, side):
        seen.append((model, len(side), side.take([0])[0]))
        return np.full((1, 224, 224), 0.5, np.float32)

    answer = xu.classify(prepared.folder / "virus" / "0.png", run, look)
    ((model, images, pixels),) = seen
    assert model is run.model and images == 1 and np.array_equal(pixels, answer.pixels)
    assert answer.where.shape == (224, 224)
    shown = xu.plot_classification(answer)
    assert len(shown.axes) == 3 and len(shown.axes[1].images) == 2
    texts = [text.get_text() for text in shown.findobj(matplotlib.text.Text)]
    assert answer.warning in texts and f"{answer.probabilities['covid']:.3f}" in texts


def test_unless_told_otherwise_the_map_is_that_of_where_it_looks(run, prepared):
    split = prepared.data.test
    answer = xu.classify(prepared.folder / split.rows.file[0], run)
    np.testing.assert_allclose(answer.where, xu.saliency_maps(run.model, split)[0], atol=1e-4)


def test_an_image_of_the_sample_is_shown_with_its_credit(run):
    sample = xu.find_images(xu.data_dir())
    file = Path(sample.attrs["root"]) / sample.file[0]
    figure = xu.plot_classification(xu.classify(file, run))
    assert any("Hannover Medical School, CC BY 3.0" in text.get_text() for text in figure.findobj(Text))


def test_the_run_may_be_named(run, prepared):
    folder = xu.outputs_dir("runs", "named")
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(run.config))
    HISTORY.to_csv(folder / "history.csv", index=False)
    (folder / "best.safetensors").write_bytes(save(run.model.state_dict()))
    image = prepared.folder / "virus" / "2.png"
    wanted = xu.classify(image, run).probabilities
    for name in ("named", folder, str(folder), xu.load_run("named")):
        pd.testing.assert_series_equal(xu.classify(image, name).probabilities, wanted)


# ---------------------------------------------------------------- an image unlike the training images


@pytest.fixture(scope="module")
def sample_run(tmp_path_factory):
    """A run that knows the images of the bundled sample, and one image of its test set."""
    images = xu.audit_images(xu.find_images(xu.data_dir()))
    folder = tmp_path_factory.mktemp("sample")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XRAY_OUTPUTS", str(folder))
        data = xu.prepare(xu.split_images(images), size=64)
    typical.save_typical(folder, data)
    run = run_of(xu.baseline_cnn(seed=1), SimpleNamespace(data=data), folder)
    (folder / typical.FILE).rename(run.folder / typical.FILE)
    return run, Image.fromarray(data.test.take([0])[0])


def scene(seed=0):
    """What is no X-ray: discs on a grey ground."""
    rng = np.random.default_rng(seed)
    page = Image.new("L", (200, 200), 120)
    for x, y, radius, grey in rng.integers(10, 190, (12, 4)).tolist():
        ImageDraw.Draw(page).ellipse((x, y, x + radius // 2, y + radius // 2), fill=grey)
    return page


def noise(seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (200, 200), dtype=np.uint8))


UNLIKE = {
    "it is one": (lambda image: image, []),
    "inverted": (ImageOps.invert, ["its grey levels look inverted"]),
    "right": (lambda image: image.rotate(-90), ["it looks turned to the right"]),
    "left": (lambda image: image.rotate(90), ["it looks turned to the left"]),
    "upside down": (lambda image: image.rotate(180), ["it looks upside down"]),
    "coloured": (lambda image: ImageOps.colorize(image.convert("L"), "black", "orange"), ["it is coloured"]),
    "noise": (
        lambda image: noise(),
        ["no two lungs were found", "its brightness, contrast"],
    ),
    "scene": (
        lambda image: scene(),
        ["no two lungs were found", "its brightness, contrast or coarse structure differ"],
    ),
}


@pytest.mark.parametrize("name", UNLIKE)
def test_an_image_unlike_the_training_images_is_called_so(name, sample_run):
    run, image = sample_run
    change, reasons = UNLIKE[name]
    answer = xu.classify(change(image), run, look=None)
    assert len(answer.unlike) == len(reasons), answer.unlike
    assert all(found.startswith(reason) for found, reason in zip(answer.unlike, reasons, strict=True))
    warned = [
        f"Unlike the training images: {', '.join(answer.unlike)}." in text for text in (answer.warning, str(answer))
    ]
    assert warned == [bool(reasons)] * 2 and "Not checked" not in answer.warning
    shown = [text.get_text() for text in xu.plot_classification(answer).findobj(Text)]
    assert any("Unlike the training images" in text for text in shown) == bool(reasons)


@pytest.mark.parametrize("header", [dict(ViewPosition="LL"), dict(Modality="CT")], ids=["lateral view", "CT"])
def test_the_header_of_a_dicom_tells_that_it_is_no_frontal_radiograph(
    header, tmp_path, sample_run, run, request, monkeypatch
):
    path = write(tmp_path / "side.dcm", **header)
    reason = f"its DICOM header says {request.node.callspec.id}"
    for image in (path, path.read_bytes()):
        assert xu.classify(image, sample_run[0], look=None).unlike[0] == reason
    assert xu.classify(path, run, look=None).unlike == [reason]  # a run that does not know its training images
    front = write(tmp_path / "front.dcm", ViewPosition="PA", Modality="DX")
    assert xu.classify(front, run, look=None).unlike is None
    broken = write(tmp_path / "broken.dcm")
    monkeypatch.setattr(use, "header_of", lambda path: {"ViewCodeSequence": "no sequence"})
    assert xu.classify(broken, run, look=None).unlike is None


def test_a_run_without_training_images_says_that_it_is_not_checked(run, sample_run):
    answer = xu.classify(sample_run[1], run, look=None)
    assert answer.unlike is None and "Not checked: is the image like the training images?" in str(answer)
    (run.folder / typical.FILE).write_text("{")
    with pytest.raises(ValueError, match="training_images.json is broken.*call fit again"):
        xu.classify(sample_run[1], run, look=None)


def test_fit_writes_what_the_training_images_look_like():
    data = xu.prepare(xu.split_images(xu.audit_images(xu.find_images(xu.data_dir()))), size=32)
    fit = lambda: xu.fit(xu.baseline_cnn(), data, "typical", epochs=1)  # noqa: E731
    path = fit().folder / typical.FILE
    written = path.read_bytes()
    known = json.loads(written)
    assert known["images"] == (~data.train.rows.mirrored).sum() + len(data.val)
    path.unlink()
    assert fit().folder == path.parent and path.read_bytes() == written  # a finished run gets it too


# ---------------------------------------------------------------- the form


@pytest.fixture
def form(run, prepared, monkeypatch):
    """The form as a reader has it: its box, what it shows, and the run."""
    shown = []
    monkeypatch.setattr(use, "get_ipython", lambda: SimpleNamespace(kernel=SimpleNamespace(_allow_stdin=True)))
    monkeypatch.setattr(use, "display", shown.append)
    import ipywidgets

    class Output(contextlib.nullcontext):  # what is printed or displayed outside of it goes to the log of a server
        clear_output = staticmethod(lambda wait: shown.clear())
        open = False

        def __enter__(self):
            Output.open = True

        def __exit__(self, *error):
            Output.open = False

    monkeypatch.setattr(ipywidgets, "Output", Output)
    monkeypatch.setattr(ipywidgets, "VBox", lambda children: children)
    xu.image_form(run, [prepared.folder / "virus" / "2.png"])
    monkeypatch.setattr(use, "display", lambda figure: shown.append(figure) if Output.open else None)
    return SimpleNamespace(row=shown.pop()[0], shown=shown)


def test_an_image_can_be_picked(form, prepared, capsys):
    pick = form.row.children[1]
    pick.value = prepared.folder / "virus" / "2.png"
    assert len(form.shown) == 1 and "No diagnosis" in capsys.readouterr().out
    pick.value = None
    assert len(form.shown) == 1


def test_an_image_can_be_uploaded_with_old_and_new_ipywidgets(form, prepared, run, capsys):
    upload = form.row.children[0]
    (uploaded,) = upload._trait_notifiers["value"]["change"]
    content = (prepared.folder / "virus" / "2.png").read_bytes()
    said = set()
    for new in (({"name": "a.png", "content": memoryview(content)},), {"a.png": {"content": content}}):
        uploaded({"new": new})
        said.add(capsys.readouterr().out)
        assert len(form.shown) == 1
    assert len(said) == 1 and str(xu.classify(content, run)) in said.pop()
    uploaded({"new": ({"name": "a.png", "content": b"no image"},)})
    assert form.shown == [] and "no image that can be read" in capsys.readouterr().out
    uploaded({"new": ()})
    assert form.shown == []


def test_without_ipywidgets_it_says_what_to_do(run, monkeypatch, capsys):
    xu.image_form(run)
    assert "The form is shown where this notebook is open. Without it: xu.classify(" in capsys.readouterr().out
    monkeypatch.setattr(use, "get_ipython", lambda: SimpleNamespace(kernel=SimpleNamespace(_allow_stdin=True)))
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    xu.image_form(run)
    assert "The form needs ipywidgets. Without it: xu.classify(" in capsys.readouterr().out


def test_the_kernel_tells_a_reader_from_a_page_that_is_made():
    code = f"from IPython import get_ipython\n{inspect.getsource(use._has_reader)}\nprint(_has_reader())"
    manager, client = start_new_kernel()
    try:
        for reader in (False, True):  # nbclient and nbval ask nothing; JupyterLab, VS Code and Colab can
            said = []
            hook = lambda message: said.append(message["content"].get("text"))  # noqa: B023, E731
            client.execute_interactive(code, allow_stdin=reader, output_hook=hook, timeout=120)
            assert f"{reader}\n" in said
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


# ---------------------------------------------------------------- export

NETWORKS = {"baseline_cnn": lambda: xu.baseline_cnn(seed=1), "resnet18": lambda: xu.resnet18(seed=1)}
NETWORKS["vit"] = lambda: xu.vit(None, seed=1)


AS_THE_CARD_SAYS = """
import os, sys
for folder in sys.argv[1:]:
    os.chdir(folder)
    exec(open("README.md").read().split("```python")[1].split("```")[0], {})
assert "xray_utils" not in sys.modules
"""


def test_an_export_is_loaded_in_three_lines_and_answers_alike(prepared, tmp_path):
    """The block of each card as it stands, where this course is not imported; imports are not counted."""
    image, wanted, folders = prepared.data.test.take([0])[0], [], []
    for name, network in NETWORKS.items():
        run = run_of(network(), prepared, tmp_path, name)
        folders.append(xu.export_model(run))
        assert folders[-1] == xu.outputs_dir("export", name)
        own = {"baseline_cnn.py"} if name == "baseline_cnn" else set()
        assert {path.name for path in folders[-1].iterdir()} == {*use.EXPORTED} - {"baseline_cnn.py"} | own
        (block,) = re.findall(r"```python\n(.*?)```", (folders[-1] / "README.md").read_text(), re.S)
        assert sum(not re.match("from |import |$", line) for line in block.splitlines()) <= 3
        Image.fromarray(image).save(folders[-1] / "xray.png")
        wanted.append(xu.classify(folders[-1] / "xray.png", run, look=None).probabilities)
        config = json.loads((folders[-1] / "config.json").read_text())
        assert config["id2label"] == {"0": "covid", "1": "normal", "2": "virus"}
    command = [sys.executable, "-c", AS_THE_CARD_SAYS, *map(str, folders)]
    said = subprocess.run(command, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr[-3000:]
    for answer, probabilities in zip(map(ast.literal_eval, said.stdout.splitlines()), wanted, strict=True):
        if isinstance(answer[0], dict):
            found = {one["label"]: one["score"] for one in answer}
        else:
            found = dict(zip(xu.CLASSES, answer[0], strict=True))
        np.testing.assert_allclose([found[name] for name in xu.CLASSES], probabilities, atol=1e-5)


def test_the_card_has_the_numbers_and_says_what_they_are_not(run, prepared):
    card = (xu.export_model(run) / "README.md").read_text()
    assert "It has not been tested." in card and "**Not for clinical use.**" in card
    metrics = xu.compute_metrics(PREDICTIONS)
    (run.folder / "metrics.json").write_text(json.dumps(metrics))
    run.name = "mine_grouped_sample-2"
    card = (xu.export_model(run) / "README.md").read_text()
    assert f"| accuracy | {xu.with_interval(metrics, 'accuracy')} |" in card and "not been tested" not in card
    assert "**Trained on the small bundled sample**" in card and "not-for-clinical-use" in card
    assert f"{run.config['parameters']:,} parameters, trained on {len(prepared.data.train)} images" in card


def test_an_export_is_whole_or_not_there(run, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    folder = tmp_path / "deep" / "an export"
    with monkeypatch.context() as patch:
        patch.setattr(use, "save_file", full)  # the last to be written
        with pytest.raises(OSError, match="No space left on device.*Free some space"):
            xu.export_model(run, folder)
    assert list(folder.parent.iterdir()) == []
    xu.export_model(run, str(folder))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with torch.no_grad():
        run.model[0].weight += 1
    with monkeypatch.context() as patch:
        patch.setattr(use, "save_file", full)  # the last to be written
        with pytest.raises(OSError):
            xu.export_model(run, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    xu.export_model(run, folder)
    assert (folder / "model.safetensors").read_bytes() != before["model.safetensors"]
    assert [path.name for path in folder.parent.iterdir()] == ["an export"]


def test_what_is_no_export_is_not_replaced(run, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "README.md").write_text("mine")
    (tmp_path / "thesis" / "chapter.md").write_text("mine")
    for folder in ("thesis", "thesis/chapter.md"):
        with pytest.raises(FileExistsError, match="more than an export"):
            xu.export_model(run, tmp_path / folder)
    assert (tmp_path / "thesis" / "README.md").read_text() == "mine"


def test_an_answer_of_a_network_that_saw_the_sample_alone_says_so():
    probabilities = pd.Series({"covid": 0.9, "normal": 0.05, "virus": 0.05})
    answers = [
        use.Classification(probabilities, np.zeros((8, 8, 3), np.uint8), None, run)
        for run in ("vit_grouped", "vit_grouped_sample")
    ]
    assert ["a sample of 228 X-rays" in str(answer) for answer in answers] == [False, True]
    assert "a sample of 228 X-rays" in " ".join(
        text.get_text() for text in xu.plot_classification(answers[1]).findobj(Text)
    )
