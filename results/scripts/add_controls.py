"""Add controls: normal adults of other hospitals are added to training, those of one more hospital are evaluated.

    XRAY_DATA=... XRAY_EXTERNAL=... XRAY_VIT_WEIGHTS=... .venv/bin/python results/scripts/add_controls.py

Logistic regressions on fixed features of the ViT. Places with normal adults: Actualmed (`agchung`) and publications
(`s-mostafa-a`) of XRAY_EXTERNAL, and NIH of data/sample_external. One place is left out, normal patients of the other
two are added in growing numbers, 50 draws each, with weight 1 and 5. What is added, and its weight, was fixed before
the first run. Covid recall: the internal test images, and the covid images of the place. Into tables/controls.csv.
"""

from pathlib import Path

import numpy as np
import pandas as pd

import xray_utils as xu
from xray_utils._support.paths import repository_dir

COUNTS, DRAWS, WEIGHTS = (0, 2, 5, 10, 20), 50, (1.0, 5.0)


def main():
    """Features once, then one table of every place, weight and number."""
    backbone = xu.vit(xu.vit_weights())
    data = xu.load_data("grouped", mirror=False)
    images = xu.audit_images(xu.find_images(xu.data_dir()))
    places = [xu.load_external(xu.external_dir(), images)]
    places.append(xu.load_external(repository_dir() / "data" / "sample_external", images))
    splits = [data.train, data.test, *places]
    known, *others = (xu.features(backbone, split).astype(float) for split in splits)
    rows = [split.rows for split in splits]
    internal = rows[1].assign(source="internal")
    internal = internal[internal.label.eq("covid")]  # the price: covid images of the test that are still found
    nih = rows[3].source.eq("nih").to_numpy()  # its covid images come from publications, as those of training
    other_rows = pd.concat([internal, rows[2], rows[3][nih]], ignore_index=True)
    features = np.concatenate([others[0][internal.index], others[1], others[2][nih]])
    tables = []
    for place in ("agchung", "s-mostafa-a", "nih"):
        inside = other_rows.source.str.startswith(place)
        rest = other_rows.assign(addable=~inside & other_rows.source.ne("internal"))
        for weight in WEIGHTS:
            answers = xu.add_controls(known, rows[0], features, rest, COUNTS, DRAWS, weight)
            here, internal = answers.source.str.startswith(place), answers.source.eq("internal")
            for where, some in {place: here, "internal": internal}.items():
                table = xu.controls_table(answers[some])
                tables.append(table.assign(left_out=place, evaluated=where, weight=weight))
    result = pd.concat(tables, ignore_index=True).round(4)
    result.to_csv(Path(__file__).resolve().parents[1] / "tables" / "controls.csv", index=False)
    print(result.to_string())


if __name__ == "__main__":
    main()
