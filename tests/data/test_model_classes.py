"""The classes of a dataset become those of a detector."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from rpn_jax.config import Config, ModelConfig, RoIHeadConfig
from rpn_jax.data.model_classes import check_classes, with_classes
from rpn_jax.errors import UserError

DETECTOR = Config(name="mine", model=ModelConfig(roi=RoIHeadConfig()))


@dataclass
class Classes:
    """A dataset without pictures."""

    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    pictures: tuple = ()


CELLS = Classes(("RBC", "WBC"), (4, 9))


def test_the_second_stage_gets_the_names_and_ids_of_the_dataset() -> None:
    config = with_classes(DETECTOR, CELLS, "train")
    roi = config.model.roi
    assert roi is not None
    assert (roi.num_classes, roi.class_names, roi.category_ids) == (2, ("RBC", "WBC"), (4, 9))
    check_classes(config, CELLS, "test")


def test_an_rpn_is_unchanged_and_evaluates_on_any_classes() -> None:
    assert with_classes(Config(), CELLS, "train") == Config()
    check_classes(Config(), CELLS, "test")


def test_a_detector_needs_classes() -> None:
    with pytest.raises(UserError, match=r"^train: has no classes, which config mine needs\."):
        with_classes(DETECTOR, Classes((), ()), "train")


@pytest.mark.parametrize("names", [("WBC", "RBC"), ("RBC",), ("RBC", "WBC", "Platelets")])
def test_other_classes_or_another_order_are_refused(names: tuple[str, ...]) -> None:
    config = with_classes(DETECTOR, CELLS, "train")
    other = Classes(names, tuple(range(len(names))))
    with pytest.raises(UserError, match=r"^test: has the classes .*, but the model has RBC, WBC\."):
        check_classes(config, other, "test")
