"""Where images, outputs and results are."""

import json
import os
from pathlib import Path

import pandas as pd

from ..constants import CLASSES

SOURCES = {  # public sets: the site, the name there and, of GitHub, the commit
    "covid-cxr": ("kaggle", "sid321axn/covid-cxr-image-dataset-research"),
    "radiography": ("kaggle", "tawsifurrahman/covid19-radiography-database"),
    "covid19-image": ("kaggle", "pranavraikokte/covid19-image-dataset"),
    "chest-xray-pneumonia": ("kaggle", "paultimothymooney/chest-xray-pneumonia"),
    "actualmed": ("github", "agchung/Actualmed-COVID-chestxray-dataset", "27240dd8dec9454bc97f9f3c0c432ef434de2517"),
}
CHOICE = "data_dir.txt"  # in the outputs folder: the choice of `use_images`


def repository_dir():
    """The folder of this repository if we are in it or installed from it, else the working directory."""
    here = Path.cwd().resolve()
    for folder in (Path(__file__).resolve().parents[2], here, *here.parents):
        if (folder / "xray_utils" / "images.py").is_file() and (folder / "notebooks").is_dir():
            return folder
    return here


def data_dir() -> Path:
    """The folder of the images: `XRAY_DATA`, else what `use_images` chose, else `data/xray`, else the sample.

    Raises FileNotFoundError if `XRAY_DATA`, or the choice, is a folder that does not exist.
    """
    classes = ", ".join(CLASSES)
    remedy = f"Set it to the folder that holds the class folders {classes}, or unset it to use the bundled sample."
    if folder := _folder_of("XRAY_DATA", remedy):
        return folder
    if chosen := _chosen():
        folder, source, _ = chosen
        if not folder.is_dir():
            again = f"nothing in the brackets: it fetches {source!r} again" if _is_there(source) else "your images"
            raise FileNotFoundError(
                f"xu.use_images chose {str(folder)!r}{source and f' (from {source!r})'}, which is no folder any more. "
                f"Call it again, with {again}; or with 'sample' to go back to the bundled sample."
            )
        return folder
    own = repository_dir() / "data" / "xray"
    return own if _is_filled(own) else own.with_name("sample")


def _folder_of(variable, remedy):
    """The folder that an environment variable names, relative to here or to the repository; None if it is not set."""
    if not os.environ.get(variable):
        return None
    folder = Path(os.environ[variable]).expanduser()
    folder = folder if folder.is_dir() else repository_dir() / folder
    if not folder.is_dir():
        raise FileNotFoundError(f"{variable} is {str(folder)!r}, which is no folder. {remedy}")
    return folder


def _is_filled(folder):
    return folder.is_dir() and any(not entry.name.startswith(".") for entry in folder.iterdir())


def _chosen():
    """What `use_images` chose: folder, the set or archive it came from ("" for the user's own), labels; else None."""
    if not outputs_dir(CHOICE).is_file():
        return None
    lines = outputs_dir(CHOICE).read_text(encoding="utf-8").split("\n")
    folder, source, labels = (*lines, "", "")[:3]  # earlier versions wrote fewer
    return Path(folder), source, json.loads(labels or "{}")


def labels_of(folder):
    """The labels given to `use_images` for this folder; none for another one."""
    chosen = _chosen()
    return chosen[2] if chosen and chosen[0].resolve() == Path(folder).resolve() else {}


def _is_there(source):
    return source == "sample" or source in SOURCES or os.path.isfile(source)


def external_dir() -> Path | None:
    """The folder of a second hospital: `XRAY_EXTERNAL`, or `data/external` if it is there, else the sample's own.

    None for real images without one. Raises FileNotFoundError if `XRAY_EXTERNAL` names a folder that does not exist.
    """
    if folder := _folder_of("XRAY_EXTERNAL", "Set it, or unset it."):
        return folder
    sample = repository_dir() / "data" / "sample"
    if data_dir().resolve() == sample.resolve():
        return sample.with_name("sample_external")
    own = repository_dir() / "data" / "external"
    return own if _is_filled(own) else None


def is_sample(images: pd.DataFrame) -> bool:
    """True if the table `images` came from the bundled sample."""
    return Path(getattr(images, "attrs", {}).get("root", "")) == (repository_dir() / "data" / "sample").resolve()


def default_size(images: pd.DataFrame) -> int:
    """Pixels along a side of a prepared image: 112 for the bundled sample, 224 (as in the original) for others."""
    return 112 if is_sample(images) else 224


def outputs_dir(*parts: str) -> Path:
    """The folder for all outputs: `XRAY_OUTPUTS` if set, else `outputs/` of the repository."""
    return Path(os.environ.get("XRAY_OUTPUTS") or repository_dir() / "outputs", *parts).expanduser()


def results_dir() -> Path:
    """The committed results of the real runs, `results/runs` of the repository."""
    return repository_dir() / "results" / "runs"
