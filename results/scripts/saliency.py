"""Where the networks of the real runs look, and how good the estimate of the lung fields is, into saliency.json.

    XRAY_DATA=/path/to/images .venv/bin/python results/scripts/saliency.py /path/to/lung_masks

The folder of masks (1 inside the lungs; same stem and size as the image) is only measured against.
"""

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

import xray_utils as xu
from xray_utils._support.files import whole_file

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
from phantoms import draw_phantom

RESULT = Path(__file__).resolve().parents[1] / "saliency.json"
GOOD = 0.85  # Dice from which on an estimate is called good


def measure(found, true, groups):
    """Dice of the estimates, all, trusted and not, with intervals over `groups`, and how well the score tells them."""
    both = (found.masks & true).sum(axis=(1, 2))
    dice = 2 * both / (found.masks.sum(axis=(1, 2)) + true.sum(axis=(1, 2)))
    result = {"median": float(np.median(dice)), "lowest": float(dice.min()), f"below {GOOD}": int((dice < GOOD).sum())}
    for name, some in {"all": dice >= 0, "trusted": found.trusted, "not trusted": ~found.trusted}.items():
        if some.any():
            result[name] = xu.grouped_mean(pd.DataFrame({"dice": dice[some]}), np.asarray(groups)[some])
    result["rank correlation of score and Dice"] = float(spearmanr(found.score, dice).statistic)
    if 0 < (dice < GOOD).sum() < len(dice):
        result["AUC of the score for good against bad"] = float(roc_auc_score(dice >= GOOD, found.score))
    return result


def on_phantoms(count=60):
    """Phantoms as those of the sample, of other patients, at 224 x 224."""
    drawn = [draw_phantom(xu.CLASSES[i % 3], 50_000 + i, (224, 224)) for i in range(count)]
    pixels = np.stack([np.repeat(image[..., None], 3, axis=-1) for image, _ in drawn])
    return measure(xu.lung_fields(pixels), np.stack([mask for _, mask in drawn]), np.arange(count))


def on_real(folder):
    """The images that have a mask, at 224 x 224; patients in the order of their names are halved by turns."""
    images = xu.find_images(xu.data_dir())
    root, images = Path(images.attrs["root"]), images[images.label.eq("covid")]
    masks = {path.stem: path for path in sorted(Path(folder).glob("*.png"))}
    images = images[images.file.map(lambda file: Path(file).stem in masks)].reset_index(drop=True)
    pixels = np.stack([xu.resize(xu.read_image(root / file)) for file in images.file])
    true = [Image.fromarray(255 * (np.asarray(Image.open(masks[Path(file).stem]).convert("L")) > 0).astype(np.uint8))
            for file in images.file]  # fmt: skip
    true = np.stack([np.asarray(mask.resize((224, 224), Image.Resampling.BILINEAR)) > 127 for mask in true])
    found, half = xu.lung_fields(pixels), images.group.factorize(sort=True)[0] % 2
    parts = {"looked at while it was made": half == 0, "held out": half == 1, "both halves": half >= 0}
    return {
        name: measure(type(found)(*(part[some] for part in found)), true[some], images.group[some])
        for name, some in parts.items()
    }


def of_runs(protocol="grouped"):
    """Share of each network's maps in the lungs on the test images, correct and wrong apart, and the sanity check.

    A network whose run is not here keeps the numbers that it has in the file.
    """
    data = xu.load_data(protocol)
    before = json.loads(RESULT.read_text()) if RESULT.is_file() else {}
    result = before.get("test_images", {}).get("runs", {})
    groups = data.test.rows.group.to_numpy()
    lungs = xu.lung_fields(data.test.take(np.arange(len(data.test))))
    for model in xu.NOTEBOOKS:
        try:
            run = xu.load_run(f"{model}_{protocol}")
        except FileNotFoundError as error:
            print(error)
            continue
        if run.config["data"]["test"] != data.test.fingerprint():
            print(f"{run.name} was tested on other images: left out.")
            result.pop(run.name, None)
            continue
        shares = xu.share_in_lungs(xu.saliency_maps(run.model, data.test), lungs.masks)
        table = xu.predict(run.model, data.test)
        right = table.label.eq(table.predicted).to_numpy()
        parts = {"all": right | True, "correct": right, "wrong": ~right, "lungs trusted": lungs.trusted}
        parts |= {f"class {name}": table.label.eq(name).to_numpy() for name in xu.CLASSES}
        same = pd.DataFrame({"correlation": xu.sanity_check(run.model, data.test)})
        result[run.name] = {name: xu.grouped_mean(shares[some], groups[some]) for name, some in parts.items()}
        result[run.name]["with random weights"] = xu.grouped_mean(same, groups)
    return {"images": len(data.test), "lungs trusted": int(lungs.trusted.sum()), "runs": result}


def rounded(value):
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    return [rounded(one) for one in value] if isinstance(value, list) else round(value, 4)


if __name__ == "__main__":
    found = {"lung_fields": {"phantoms": on_phantoms(), "real": on_real(sys.argv[1])}, "test_images": of_runs()}
    with whole_file(RESULT) as path:
        path.write_text(json.dumps(rounded(found), indent=1) + "\n")
    print(json.dumps(rounded(found), indent=1))
