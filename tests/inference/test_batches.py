"""How many pictures an evaluation batch has."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from rpn_jax.config import Config
from rpn_jax.errors import UserError
from rpn_jax.inference import batches


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
