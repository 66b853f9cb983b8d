"""The classes of a dataset become those of a detector."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from rpn_jax.config import Config, ModelConfig, RoIHeadConfig
from rpn_jax.data.model_classes import match_classes, with_classes
from rpn_jax.errors import UserError
from tests.evaluation.cases import picture_of

DETECTOR = Config(name="mine", model=ModelConfig(roi=RoIHeadConfig()))


@dataclass
class Classes:
    """A dataset without pixels."""

    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    pictures: tuple = ()


CELLS = Classes(("RBC", "WBC"), (4, 9))


def test_the_second_stage_gets_the_names_and_ids_of_the_dataset() -> None:
    config = with_classes(DETECTOR, CELLS, "train")
    roi = config.model.roi
    assert roi is not None
    assert (roi.num_classes, roi.class_names, roi.category_ids) == (2, ("RBC", "WBC"), (4, 9))
    assert match_classes(config, CELLS, "test") is CELLS


def test_an_rpn_is_unchanged_and_evaluates_on_any_classes() -> None:
    assert with_classes(Config(), CELLS, "train") == Config()
    assert match_classes(Config(), CELLS, "test") is CELLS


def test_a_detector_needs_classes() -> None:
    with pytest.raises(UserError, match=r"^train: has no classes, which config mine needs\."):
        with_classes(DETECTOR, Classes((), ()), "train")


def with_labels(names: tuple[str, ...], labels: list[int]) -> Classes:
    annotations = [
        {"id": k, "bbox": [0, 0, 9, 9], "category_id": label} for k, label in enumerate(labels)
    ]
    ids = tuple(range(1, 1 + len(names)))
    return Classes(names, ids, (picture_of(1, annotations),))


def test_fewer_classes_in_another_order_get_the_labels_of_the_model() -> None:
    config = with_classes(DETECTOR, Classes(("a", "b", "c"), (4, 9, 7)), "train")
    other = match_classes(config, with_labels(("c", "a"), [0, 1, 0]), "test")
    assert (other.class_names, other.category_ids) == (("a", "b", "c"), (4, 9, 7))
    assert other.pictures[0].objects.labels.tolist() == [2, 0, 2]


def test_a_class_that_the_model_does_not_have_is_refused() -> None:
    config = with_classes(DETECTOR, CELLS, "train")
    other = with_labels(("RBC", "WBC", "Platelets"), [])
    expected = r"^test: has .* The model has RBC, WBC, and not 'Platelets'\. Rename classes with"
    with pytest.raises(UserError, match=expected):
        match_classes(config, other, "test")
