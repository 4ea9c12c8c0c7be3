"""The classes, the sides of a split, and what the original course project reported."""

CLASSES = ("covid", "normal", "virus")  # by index: 0, 1, 2
SPLITS = ("train", "val", "test")
# What the slides of the original course project report: precision, recall and F1 of each class on its test set.
ORIGINAL = {
    "baseline_cnn": {
        "accuracy": 0.89,
        "macro_f1": 0.88,
        "images": 360,
        "classes": {"covid": (0.82, 0.89, 0.86), "normal": (0.93, 0.93, 0.93), "virus": (0.89, 0.84, 0.86)},
    },
    "resnet18": {
        "accuracy": 0.97,
        "macro_f1": 0.97,
        "images": 360,
        "classes": {"covid": (0.98, 0.96, 0.97), "normal": (0.99, 0.98, 0.98), "virus": (0.96, 0.98, 0.97)},
    },
    "vit": {
        "accuracy": 0.90,
        "macro_f1": 0.91,
        "images": 180,
        "classes": {"covid": (0.98, 0.96, 0.97), "normal": (0.88, 0.88, 0.88), "virus": (0.85, 0.87, 0.86)},
    },
}
NOTEBOOKS = {  # the models of the course, and the notebook that trains each
    "baseline_cnn": "03_baseline_cnn",
    "resnet18": "04_resnet18",
    "resnet18_augmented": "04_resnet18",
    "vit": "05_vit",
}
PROBABILITIES = [f"p_{name}" for name in CLASSES]
