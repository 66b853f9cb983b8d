"""Pictures that a user passes, and how many of them a batch has."""

from dataclasses import replace
from pathlib import Path, PurePath
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

from rpn_jax.config import Config
from rpn_jax.errors import UserError
from rpn_jax.inference import batches
from rpn_jax.inference.results import PictureProposals


@pytest.mark.parametrize(
    ("devices", "wanted", "pictures", "expected"),
    [(1, 0, 100, 8), (4, 0, 100, 32), (4, 6, 100, 8), (1, 6, 100, 6), (1, 0, 3, 4), (4, 0, 1, 4)],
)
def test_the_size_of_a_batch(
    devices: int, wanted: int, pictures: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight pictures a device by default, less if there are few, a multiple of the devices."""
    monkeypatch.setattr(batches, "device_mesh", lambda axis: SimpleNamespace(size=devices))
    config = Config()
    config = replace(config, data=replace(config.data, eval_batch_size=wanted))
    dataset: Any = SimpleNamespace(pictures=range(pictures))
    assert batches.evaluation_data(dataset, config).eval_batch_size == expected


def test_pictures_must_be_a_list() -> None:
    with pytest.raises(UserError, match=r"^pictures: is of type NoneType; give a list"):
        batches.listed_pictures(None, Config().data)
    pictures = np.zeros((2, 8, 8, 3), np.uint8)
    with pytest.raises(UserError, match=r"list\(pictures\) for an array of several$"):
        batches.listed_pictures(pictures, Config().data)
    assert len(batches.listed_pictures(list(pictures), Config().data).pictures) == 2


def test_a_picture_is_any_kind_of_path(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    assert cv2.imwrite(str(path), np.zeros((5, 7, 3), np.uint8))
    kinds = [path, str(path), PurePath(path)]
    pictures = batches.listed_pictures(kinds, Config().data).pictures
    assert [(each.name, each.height, each.width) for each in pictures] == [(str(path), 5, 7)] * 3
    with pytest.raises(UserError, match=r": is a folder\. It must be a file\.$"):
        batches.listed_pictures([tmp_path], Config().data)


def test_results_of_pictures_can_be_compared_by_identity() -> None:
    one, other = (PictureProposals(1, np.zeros((2, 4)), np.ones(2)) for _ in range(2))
    assert one == one
    assert one != other
