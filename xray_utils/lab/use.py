"""Use a trained network: classify an X-ray of your own, export the network."""

import json
import os
import re
import tempfile
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from IPython import get_ipython
from IPython.display import display
from PIL import Image, ImageOps
from safetensors.torch import save_file

from .._support.checks import check_path
from .._support.decode import SHRINK, _to_rgb, bytes_needed
from .._support.dicom import header_of, is_dicom, no_frontal_radiograph
from .._support.files import _folder_beside, _writing_to
from .._support.paths import outputs_dir, repository_dir
from .._support.runs import Run, load_run
from .._support.typical import FILE, load_typical, reasons_against
from ..comparison import metrics_table
from ..constants import CLASSES, PROBABILITIES
from ..images import credit_line, find_images, read_image, resize
from ..models import tensors_of
from ..prepared import Split
from ..training import predict
from .figures import plot_classification
from .lungs import lung_fields
from .saliency import saliency_maps

EXPORTED = ("model.safetensors", "config.json", "preprocessor_config.json", "README.md", "baseline_cnn.py")


@dataclass
class Classification:
    """Prediction for one X-ray.

    probabilities: by class. pixels: the prepared image, uint8 [H, W, 3]. where: the saliency map, float [H, W] in
    0..1, or None. credit: what the licence of a bundled image requires, or "". unlike: reasons why the image is unlike
    the training images; None if the run does not know them and no DICOM header names a reason.
    """

    probabilities: pd.Series
    pixels: np.ndarray
    where: np.ndarray | None
    run: str
    credit: str = ""
    unlike: list | None = None

    @property
    def warning(self):
        """The warning as text: no diagnosis, trained on the sample, unlike the training images or not checked."""
        said = "No diagnosis: a course network, not for clinical use. It knows three classes, and answers to any image."
        said += " It was trained on a sample of 228 X-rays." if OF_SAMPLE.search(self.run) else ""
        if self.unlike is None:
            return f"{said}\nNot checked: is the image like the training images? This run has no {FILE}; fit writes it."
        unlike = f"Unlike the training images: {', '.join(self.unlike)}. Do not trust these probabilities.\n"
        return unlike * bool(self.unlike) + said

    def __str__(self):
        order = self.probabilities.sort_values(ascending=False)
        return f"{self.run}: {', '.join(f'{name} {p:.3f}' for name, p in order.items())}\n{self.warning}"


def classify(
    image: str | Path | bytes | Image.Image, run: Run | str | Path, look: Callable | None = saliency_maps
) -> Classification:
    """Classify one X-ray with the network of `run`; print the `Classification` with a warning (no diagnosis).

    It warns if the image is unlike the training images (inverted, turned, coloured, no chest), or if its DICOM header
    says lateral view or another modality. image: a path, the bytes of a file, or a PIL image. run: a `Run`, or the name
    or folder of one. look: a function of the network and a side with this one image that gives its map [1, H, W], or
    None. Raises ValueError for anything else and an image too large for `read_image`, FileNotFoundError for a missing
    path or run, OSError for a file that is no image.
    """
    run = _run_of(run)
    _check_look(look)
    known = load_typical(run.folder)
    shown, what = _rgb_of(image)
    pixels = resize(shown, run.config["data"]["size"])
    rows = pd.DataFrame({"file": ["image"], "label": [None], "group": ["image"], "mirrored": [False]})
    side = Split(rows, pixels[None], np.zeros(1, np.int64))
    probabilities = predict(run.model, side)[PROBABILITIES].iloc[0].set_axis(CLASSES)
    credit, sample = "", (repository_dir() / "data" / "sample").resolve()
    path = Path(image).expanduser().resolve() if isinstance(image, str | os.PathLike) else Path()
    if path.is_relative_to(sample):
        rows = find_images(sample)
        credit = credit_line(rows[rows.file.eq(path.relative_to(sample).as_posix())])
    unlike = known and reasons_against(pixels, known, lung_fields(pixels[None].copy()).trusted[0])
    unlike = [f"its DICOM header says {what}", *(unlike or [])] if what else unlike
    where = look(run.model, side)[0] if look else None
    answer = Classification(probabilities, pixels, where, run.name, credit, unlike)
    print(answer)
    return answer


def _check_look(look):
    if look is not None and not callable(look):
        raise ValueError(f"look: {look!r} must be None or a function of a network and a side, such as saliency_maps.")


def _run_of(run):
    if not isinstance(run, Run | str | Path) or run == "":
        raise ValueError(f"run: a {type(run).__name__} is no run; pass what fit or load_run returned, or a run's name.")
    return run if isinstance(run, Run) else load_run(run)


def _rgb_of(image):
    """The image as `read_image` gives it, PIL RGB; what its DICOM header says, if it is no frontal radiograph."""
    if isinstance(image, Image.Image):
        try:
            bytes_needed(image.mode, *image.size)
        except Image.DecompressionBombError as error:
            raise ValueError(f"image: {error} {SHRINK}") from error
        inverted = getattr(image, "tag_v2", {}).get(262) == 0
        return _to_rgb(ImageOps.exif_transpose(image), inverted), ""
    if isinstance(image, bytes | bytearray | memoryview):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "image"
            path.write_bytes(image)
            return _rgb_of(path)
    if not isinstance(image, str | os.PathLike):
        raise ValueError(f"image: a {type(image).__name__} is no X-ray; pass a path, the bytes of a file, a PIL image.")
    path = Path(image).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"image: {str(image)!r} is no file. Give the path of an X-ray.")
    what = ""
    with suppress(Exception), warnings.catch_warnings():  # a header that is not as it should be
        warnings.simplefilter("ignore")
        what = no_frontal_radiograph(header_of(path)) if is_dicom(path) else ""
    return read_image(path), what


def _has_reader():
    """Whether a user can answer: not in nbconvert, papermill and nbval."""
    return getattr(getattr(get_ipython(), "kernel", None), "_allow_stdin", False)


def image_form(run: Run | str | Path, files: list = (), look: Callable | None = saliency_maps) -> None:
    """Show a form to pick one of `files` (paths) or to upload an X-ray, and the result of `classify` below it.

    Without a user (nbconvert, papermill, tests) or ipywidgets it prints a message instead.
    """
    run = _run_of(run)
    _check_look(look)
    if isinstance(files, str | bytes) or not np.iterable(files):
        raise ValueError(f"files: {files!r} must be a list of paths.")
    for file in files:
        check_path("files", file, "a list of paths")
    if not _has_reader():
        return print("The form is shown where this notebook is open. Without it: xu.classify('my_xray.png', run).")
    try:
        import ipywidgets as widgets
    except ImportError:
        return print("The form needs ipywidgets. Without it: xu.classify('my_xray.png', run).")
    upload = widgets.FileUpload(accept="image/*,.dcm", multiple=False, description="Upload an X-ray")
    options = [("pick an X-ray", None), *((Path(file).name, file) for file in files)]
    pick, answers = widgets.Dropdown(options=options), widgets.Output()

    def show(image):
        answers.clear_output(wait=True)
        with answers:
            try:
                display(plot_classification(classify(image, run, look)))
            except (OSError, ValueError) as error:
                print(error)

    def uploaded(change):
        new = change["new"]  # ipywidgets 7, as on Colab: a dict by name; 8: a tuple
        for file in new.values() if isinstance(new, dict) else new:  # at most one
            show(bytes(file["content"]))

    upload.observe(uploaded, "value")
    pick.observe(lambda change: change["new"] is None or show(change["new"]), "value")
    display(widgets.VBox([widgets.HBox([upload, pick]), answers]))


OF_SAMPLE = re.compile(r"_sample(-\d+)?$")  # the end of the name of a run on the sample
# Three lines for each, but for imports; tests run them as they stand.
TRANSFORMERS = """from transformers import pipeline

network = pipeline("image-classification", ".")
print(network("xray.png"))"""
LOADING = {
    "vit": TRANSFORMERS,
    "resnet18": TRANSFORMERS,
    "baseline_cnn": """from baseline_cnn import load_model
from PIL import Image
from transformers import AutoImageProcessor

model, processor = load_model("model.safetensors"), AutoImageProcessor.from_pretrained(".")
pixels = processor(Image.open("xray.png").convert("RGB"), return_tensors="pt")["pixel_values"]
print(model(pixels).softmax(dim=1).tolist())  # covid, normal, virus""",
}
OWN = """# model = ...  # the {network} as you made it for the training, with any weights
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoImageProcessor

model.eval().load_state_dict(load_file("model.safetensors"))
pixels = AutoImageProcessor.from_pretrained(".")(Image.open("xray.png").convert("RGB"), return_tensors="pt")
print(model(pixels["pixel_values"]).softmax(dim=1).tolist())  # covid, normal, virus"""
BASELINE = '''"""The baseline CNN of the course, in plain torch: transformers has none like it."""

from safetensors.torch import load_file
from torch import nn


def load_model(file):
    layers = []
    for before, after in ((3, 8), (8, 16)):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2)]
    model = nn.Sequential(*layers, nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(16, 3))
    model.load_state_dict(load_file(file))
    return model.eval()
'''
RESNET = {"model_type": "resnet", "layer_type": "basic", "depths": [2] * 4, "hidden_sizes": [64, 128, 256, 512]}
RESNET |= {"embedding_size": 64, "architectures": ["ResNetForImageClassification"]}
CARD = """---
library_name: {library}
pipeline_tag: image-classification
tags: [chest-x-ray, education, not-for-clinical-use]
---
# {name}

**Not for clinical use.** This network is the exercise of a course. Its output is no diagnosis, and it was not
validated in another hospital. It classifies every image as one of: {classes}.

Network `{network}`, {parameters:,} parameters, trained on {data[train_images]:,} images (protocol `{data[protocol]}`).
{warning}
## Use, in this folder

```python
{loading}
```

Images of 8 bits a channel, stretched to {size} x {size} pixels. The course converts others (16 bits, transparency)
first, and resizes with Pillow: on large images its probabilities differ a little from these.

## Test

{metrics}

## Limits

In public sets like the course's the classes come from different hospitals and ages: the source predicts the class, and
a high internal accuracy says little about disease. Settings of the training: `{settings}`
"""


def export_model(run: Run, folder: str | Path | None = None) -> Path:
    """Write the network of `run` as a folder in the style of Hugging Face, whole or not at all, and return its path.

    model.safetensors, config.json, preprocessor_config.json, and README.md: a model card with the metrics of the run
    and three lines that load it, in transformers (ResNet18, ViT) or torch (the baseline, with its layers in
    baseline_cnn.py; a network of your own, which you make first). folder: None for `outputs/export/<name of the run>`;
    an earlier export there is replaced. Raises FileExistsError when the folder holds anything but an export, and
    OSError when it cannot be written.
    """
    run = _run_of(run)
    network = run.config["network"]["network"]
    if folder is not None:
        check_path("folder", folder, "where to write it, or None")
    folder = Path(folder).expanduser() if folder else outputs_dir("export", run.name)
    if folder.is_file() or folder.is_dir() and {path.name for path in folder.iterdir()} - set(EXPORTED):
        raise FileExistsError(f"folder: {folder} holds more than an export. Give another folder.")
    size, own = run.config["data"]["size"], run.config["network"].get("config", {})
    state = tensors_of(run.model)
    if network == "resnet18":
        state, own = {_in_transformers(name): tensor for name, tensor in state.items()}, RESNET
    elif network == "vit":  # a ViT of its own size, which needs no interpolation
        patches = torch.empty(1, (size // run.model.config.patch_size) ** 2 + 1, run.model.config.hidden_size)
        with torch.no_grad():
            positions = run.model.vit.embeddings.interpolate_pos_encoding(patches, size, size)
        state["vit.embeddings.position_embeddings"] = positions.cpu().contiguous()
        own = {**own, "image_size": size}
    labels = {"id2label": dict(enumerate(CLASSES)), "label2id": {name: i for i, name in enumerate(CLASSES)}}
    config = {"architectures": [type(run.model).__name__], **own, **labels}
    preprocessor = {
        **{"image_processor_type": "ViTImageProcessor", "do_resize": True, "resample": 2, "do_rescale": True},
        **{"size": {"height": size, "width": size}, "rescale_factor": 1 / 255, "do_normalize": True},
        **{"image_mean": run.model.input_mean, "image_std": run.model.input_std},
    }
    texts = {"README.md": _card(run), "config.json": json.dumps(config, indent=1)}
    texts["preprocessor_config.json"] = json.dumps(preprocessor, indent=1)
    if network == "baseline_cnn":
        texts["baseline_cnn.py"] = BASELINE
    with _writing_to(folder.parent), _folder_beside(folder) as temporary:
        whole = temporary / "export"
        whole.mkdir()
        for name, text in texts.items():
            (whole / name).write_text(text, encoding="utf-8")
        save_file(state, whole / "model.safetensors", metadata={"format": "pt"})
        if folder.is_dir():
            os.replace(folder, whole.with_name("earlier"))
        os.replace(whole, folder)
    return folder


def _in_transformers(name):
    """What transformers' ResNet calls this tensor of torchvision's ResNet18: the network is the same."""
    name = re.sub(r"^(conv|bn)1", r"embedder.embedder.\1", name)
    name = re.sub(r"^layer(\d)\.(\d)", lambda m: f"encoder.stages.{int(m[1]) - 1}.layers.{m[2]}", name)
    name = re.sub(r"\.(conv|bn)(\d)", lambda m: f".layer.{int(m[2]) - 1}.{m[1]}", name)
    name = name.replace("downsample.0", "shortcut.conv").replace("downsample.1", "shortcut.bn")
    name = name.replace("conv.", "convolution.").replace("bn.", "normalization.")
    return name.replace("fc.", "classifier.1.") if name.startswith("fc.") else f"resnet.{name}"


def _card(run):
    config, network = run.config, run.config["network"]["network"]
    metrics, warning = "It has not been tested.", ""
    if (run.folder / "metrics.json").is_file():
        numbers = json.loads((run.folder / "metrics.json").read_text())
        table = metrics_table({"value [95 % interval over patients]": numbers})
        rows = "\n".join(f"| {name} | {cells.iloc[0]} |" for name, cells in table.iterrows())
        head = f"On {numbers['images']} images of {numbers['groups']} patients, once.\n\n| | {table.columns[0]} |\n"
        metrics = f"{head}| --- | --- |\n{rows}"
    if OF_SAMPLE.search(run.name):
        warning = "**Trained on the small bundled sample**, to show how it is done.\n"
    return CARD.format(
        name=run.name,
        network=network,
        parameters=config["parameters"],
        data=config["data"],
        size=config["data"]["size"],
        warning=warning,
        classes=", ".join(CLASSES),
        library="transformers" if LOADING.get(network) == TRANSFORMERS else "torch",
        loading=LOADING.get(network, OWN.format(network=network)),
        metrics=metrics,
        settings=json.dumps(config["settings"]),
    )
