"""The figures of a detector's results, by the format of its data."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rpn_jax.config import Config, ModelConfig, RoIHeadConfig
from rpn_jax.evaluation.voc import voc_average_precision
from rpn_jax.inference.results import PictureProposals
from rpn_jax.training.tasks import Figures, faster_rcnn_task
from tests.evaluation.cases import MadeDataset, box, dataset, detections_of

FOUND = detections_of(1, [[0, 0, 50, 50], [100, 0, 150, 50]], [0.9, 0.8], [0, 1])
PROPOSALS = PictureProposals(1, FOUND.boxes_xyxy, FOUND.scores)


def figures_of(truth: MadeDataset, data_format: str) -> Figures:
    config = Config(model=ModelConfig(roi=RoIHeadConfig(num_classes=3)))
    config = replace(config, data=replace(config.data, dataset=data_format))
    return faster_rcnn_task(config).figures(truth, [(FOUND, PROPOSALS)])


def test_data_of_pascal_voc_have_its_average_precision_too() -> None:
    truth = dataset(box(1, 0), box(2, 100, label=1), classes=3)
    figures, others = figures_of(truth, "voc"), figures_of(truth, "coco")
    expected = voc_average_precision(truth, [FOUND], inclusive=True)
    assert figures == pytest.approx(others | expected, nan_ok=True)
    assert not expected.keys() & others.keys()


def test_difficult_boxes_alone_leave_vocs_average_precision_out() -> None:
    truth = dataset(box(1, 0, ignore=1), classes=3)
    assert all(picture.objects.is_difficult.all() for picture in truth.pictures)
    assert not any(name.startswith("voc") for name in figures_of(truth, "voc"))
