"""What the bundled sample teaches, measured over five seeds: `python tests/lessons` (half an hour on two CPU cores).

Writes results/sample.json and the page results/sample.md. A training that was done before is not repeated (it is kept
in outputs/lessons). The settings were chosen on validation: results/tables/sample_settings.csv lists all that were
tried.
"""

import contextlib
import functools
import io
import json
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(Path(__file__).resolve().parent), str(ROOT / "tests"), str(ROOT)]

import torch  # noqa: E402
from intervals import called_covid, over_seeds  # noqa: E402
from trainings import SEEDS, other_hospitals, sample, train  # noqa: E402

import xray_utils as xu  # noqa: E402
from xray_utils._support.device import choose_precision  # noqa: E402
from xray_utils._support.files import whole_file  # noqa: E402

CAREFUL = dict(optimizer="adamw", weight_decay=0.05, schedule="cosine", warmup=0.1, augment=True)
BASELINE = dict(lr=3e-3, batch_size=8, epochs=15)
RESNET = dict(lr=5e-4, batch_size=8, epochs=5)
VIT = dict(lr=3e-4, batch_size=8, epochs=10, **CAREFUL)


def tiny(**options):
    """The pretrained ViT of the sample, as a function of the seed."""
    return functools.partial(xu.vit, xu.vit_weights(is_sample=True), **options)


TRAININGS = {  # name: network, settings
    "baseline": (xu.baseline_cnn, BASELINE),
    "resnet18": (xu.resnet18, RESNET),
    "vit, fine-tuned": (tiny(), VIT),
    "vit, random weights": (tiny(pretrained=False), VIT),
    "vit, fixed features": (tiny(freeze=True), dict(lr=1e-2, batch_size=8, epochs=10)),
    "vit, Adam at 0.001": (tiny(), dict(lr=1e-3, batch_size=8, epochs=10)),
    "vit, Adam at 0.01": (tiny(), dict(lr=1e-2, batch_size=8, epochs=10)),
    "baseline, mild augmentation": (xu.baseline_cnn, {**BASELINE, "augment": "mild"}),
    "resnet18, mild augmentation": (xu.resnet18, {**RESNET, "augment": "mild"}),
    "baseline, slides": (xu.baseline_cnn, {**BASELINE, "protocol": "slides", "mirror": True}),
    "baseline, grouped and mirrored": (xu.baseline_cnn, {**BASELINE, "mirror": True}),
    "baseline, planted marker": (xu.baseline_cnn, {**BASELINE, "marker": True}),
}
PAIRS = {  # a lesson: of which trainings the accuracies are compared
    "pretrained minus random weights": ("vit, fine-tuned", "vit, random weights"),
    "fine-tuned minus fixed features": ("vit, fine-tuned", "vit, fixed features"),
    "fine-tuned minus Adam at 0.001": ("vit, fine-tuned", "vit, Adam at 0.001"),
    "fine-tuned minus Adam at 0.01": ("vit, fine-tuned", "vit, Adam at 0.01"),
    "baseline: mild augmentation minus none": ("baseline, mild augmentation", "baseline"),
    "ResNet18: mild augmentation minus none": ("resnet18, mild augmentation", "resnet18"),
    "ResNet18 minus baseline": ("resnet18", "baseline"),
    "ViT minus baseline": ("vit, fine-tuned", "baseline"),
    "baseline: slides minus grouped, both mirrored": ("baseline, slides", "baseline, grouped and mirrored"),
}
WANTED = {"baseline": 0.80, "resnet18": 0.90, "vit, fine-tuned": 0.90}  # mean test accuracy


def answers_of(name, side):
    """The predictions of one training on one side, by seed."""
    make, settings = TRAININGS[name]
    return {seed: train(make, seed, **settings)[1][side] for seed in SEEDS}


def accuracies():
    """Test accuracy of each training, and how long one took."""
    found = {}
    for name in TRAININGS:
        start = time.perf_counter()
        found[name] = over_seeds(answers_of(name, "test"), "accuracy")
        print(f"{name}: {found[name]['mean']:.3f}, {time.perf_counter() - start:.0f} s", flush=True)
    found["baseline, marker contradicts"] = over_seeds(answers_of("baseline, planted marker", "lie"), "accuracy")
    return found


def differences():
    """Differences of test accuracy between two trainings, over the same seeds and patients."""
    return {
        name: over_seeds(answers_of(one, "test"), "accuracy", answers_of(other, "test"))
        for name, (one, other) in PAIRS.items()
    }


def shortcuts():
    """Balanced accuracy of the simple baselines; each seed makes other folds."""
    with contextlib.redirect_stdout(io.StringIO()):
        tables = {seed: xu.shortcut_baselines(sample("grouped", 0, False), seed) for seed in SEEDS}
    return {name: over_seeds({s: t[name] for s, t in tables.items()}, "balanced_accuracy") for name in tables[0]}


def external():
    """AUC of covid against normal, internal and external, and the share of external normal adults called covid."""
    found = {}
    for name in WANTED:
        sides = {side: answers_of(name, side) for side in ("test", "external")}
        two = {side: {s: xu.covid_vs_normal(t, None) for s, t in tables.items()} for side, tables in sides.items()}
        normal = {s: t[t.label.eq("normal")] for s, t in sides["external"].items()}
        found[name] = {
            "internal AUC": over_seeds(two["test"], "auc_covid"),
            "external AUC": over_seeds(two["external"], "auc_covid"),
            "external normal adults called covid": over_seeds(normal, called_covid),
        }
    return found


def controls():
    """Normal adults of other hospitals added to training, on fixed features: as in the last act of notebook 7."""
    backbone, data, away = tiny()(seed=0), sample("grouped", 0, False), other_hospitals()
    features = [xu.features(backbone, split).astype(float) for split in (data.train, away)]
    answers = xu.add_controls(features[0], data.train.rows, features[1], away.rows, (0, 2, 4, 8, 12), draws=50)
    return xu.controls_table(answers).round(4).to_dict("records")


def number(found):
    """A mean with its interval, as text."""
    if found["interval"] is None:
        return f"{found['mean']:.3f} (no interval)"
    return f"{found['mean']:.3f} [{found['interval'][0]:.3f}, {found['interval'][1]:.3f}]"


def page(result):
    """results/sample.md."""
    rows = [f"| {name} | {number(found)} |" for name, found in result["accuracy"].items()]
    gaps = []
    for name, found in result["differences"].items():
        low, high = found["interval"]
        shown = "yes" if low > 0 else "yes, the other way round" if high < 0 else "not shown"
        gaps.append(f"| {name} | {number(found)} | {shown} |")
    guesses = [f"| {name} | {number(found)} |" for name, found in result["shortcuts"].items()]
    away = [f"| {name} | {' | '.join(map(number, found.values()))} |" for name, found in result["external"].items()]
    added = [
        f"| {row['added']} | {row['normal called covid']:.2f} [{row['normal called covid low']:.2f}, "
        f"{row['normal called covid high']:.2f}] | {row['covid recall']:.2f} [{row['covid recall low']:.2f}, "
        f"{row['covid recall high']:.2f}] |"
        for row in result["controls"]
    ]
    return "\n".join(
        [
            "# What the bundled sample teaches",
            "",
            f"Means over five seeds (of the split, the first weights and the order of the images), on two CPU cores in "
            f"{result['precision']}, by `python tests/lessons`. In brackets the 95 % interval over seeds and patients, "
            "both drawn again with replacement (pigeonhole bootstrap, Owen 2007). The settings were chosen on "
            "validation: [all that were tried](tables/sample_settings.csv).",
            *["", "## Test accuracy", "", "| training | accuracy |", "| --- | --- |", *rows],
            *["", "## Differences", "", "| lesson | difference of accuracy | shown? |", "| --- | --- | --- |", *gaps],
            *["", "## Simple baselines", "", "Balanced accuracy of a logistic regression; chance is 0.333.", ""],
            *["| what it sees | balanced accuracy |", "| --- | --- |", *guesses],
            *[
                "",
                "## In other hospitals",
                "",
                "| network | internal AUC | external AUC | normal adults called covid |",
            ],
            *["| --- | --- | --- | --- |", *away],
            *[
                "",
                "## Add normal adults",
                "",
                "Normal adults of NIH added to training, others of NIH evaluated; 50 draws.",
                "",
            ],
            *["| added | unseen normal adults called covid | external covid recall |", "| --- | --- | --- |", *added],
            "",
        ]
    )


def main(folder=ROOT / "results"):
    """All parts, then both files, each whole or not at all."""
    result = {"command": "python tests/lessons", "torch": torch.__version__, "seeds": len(SEEDS)}
    result["precision"] = choose_precision()
    for part in (accuracies, differences, shortcuts, external, controls):
        result[{"accuracies": "accuracy"}.get(part.__name__, part.__name__)] = part()
    with whole_file(folder / "sample.json") as path:
        path.write_text(json.dumps(result, indent=1) + "\n")
    with whole_file(folder / "sample.md") as path:
        path.write_text(page(result))
    print(page(result))


if __name__ == "__main__":
    main()
