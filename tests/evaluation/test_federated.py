"""AP on federated data: the figures of the lvis package, which were recorded."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rpn_jax.data.annotated_files import AnnotatedFiles
from rpn_jax.data.coco_file import read_coco
from rpn_jax.data.dataset import Dataset, Verified
from rpn_jax.data.views import relabel
from rpn_jax.errors import UserError
from rpn_jax.evaluation.average_precision import class_figures, evaluate_detections
from rpn_jax.evaluation.tables import LVIS_MEANINGS, detection_table
from rpn_jax.inference.results_file import read_detections
from tests.evaluation.cases import MadeDataset
from tests.evaluation.test_tables import cells, lines_of

CASE = Path(__file__).with_name("lvis")
"""Ground truth, made detections, and the figures of lvis 0.5.3."""


@pytest.fixture(scope="module")
def expected() -> dict[str, float]:
    figures = json.loads((CASE / "figures.json").read_text())
    return {name: np.nan if value is None else value for name, value in figures.items()}


@pytest.fixture(scope="module")
def truth():
    read = read_coco(CASE / "annotations.json", clip_boxes=True)
    return AnnotatedFiles(
        read.pictures, read.class_names, read.category_ids, CASE, "", read.frequencies
    )


def figures_of(dataset: Dataset) -> dict[str, float]:
    return evaluate_detections(
        dataset, read_detections(CASE / "results.json", dataset.category_ids)
    )


def test_the_figures_are_those_of_lvis(truth, expected):
    figures = figures_of(truth)
    assert figures.keys() == expected.keys()
    assert figures == pytest.approx(expected, abs=1e-12, nan_ok=True)
    assert sum(np.isnan(list(class_figures(figures).values()))) == 1


def test_other_labels_give_the_same_figures(truth, expected):
    count = len(truth.class_names)
    turned = relabel(
        truth,
        np.arange(count - 1, -1, -1, dtype=np.int32),
        truth.class_names[::-1],
        truth.category_ids[::-1],
    )
    assert figures_of(turned) == pytest.approx(expected, abs=1e-12, nan_ok=True)


@pytest.mark.parametrize("part", ["absent", "not_exhaustive", "frequencies"])
def test_each_rule_changes_the_figures(truth, expected, part):
    def without(verified: Verified) -> Verified:
        return replace(verified, **{part: np.zeros(0, np.int32)})

    if part == "frequencies":
        figures = figures_of(replace(truth, frequencies={}))
        assert expected.keys() - figures.keys() == {"AP_rare", "AP_common", "AP_frequent"}
        return
    pictures = [replace(each, verified=without(each.verified)) for each in truth.pictures]
    assert figures_of(replace(truth, pictures=pictures))["AP"] != pytest.approx(expected["AP"])


def test_without_lists_the_figures_are_those_of_coco(truth):
    pictures = [replace(picture, verified=None) for picture in truth.pictures]
    plain = MadeDataset(pictures, truth.class_names, truth.category_ids)
    figures = figures_of(plain)
    assert "AR@100" in figures
    assert "AP_rare" not in figures


def test_the_table_names_the_figures_of_lvis(truth, expected):
    rows = [cells(line) for line in lines_of(detection_table(figures_of(truth)))]
    for name, meaning in LVIS_MEANINGS.items():
        assert [name, meaning, f"{expected[name]:.3f}"] in rows


@pytest.mark.parametrize("key", ["neg_category_ids", "not_exhaustive_category_ids"])
@pytest.mark.parametrize("value", [[2, 4000], ["x"], [None], 7])
def test_a_list_of_anything_else_is_an_error(key, value, tmp_path):
    coco = json.loads((CASE / "annotations.json").read_text())
    coco["images"][3][key] = value
    path = tmp_path / "a.json"
    path.write_text(json.dumps(coco))
    number = coco["images"][3]["id"]
    with pytest.raises(UserError, match=rf"image {number}: '{key}' is .*, must be a list of cat"):
        read_coco(path, clip_boxes=True)
