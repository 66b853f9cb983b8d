"""Settings that --auto chooses: the documented rules, on made datasets."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rpn_jax import cli, commands
from rpn_jax.config import Config, load_config
from rpn_jax.data.catalog import open_train_data
from rpn_jax.data.dataset import Dataset
from rpn_jax.errors import UserError
from rpn_jax.training import recipe
from rpn_jax.training.recipe import choose_settings
from tests.evaluation.cases import MadeDataset, picture_of
from tests.golden_files import BCCD

SMALL = load_config("rpn_r18_fpn_gn_small")
R50 = load_config("rpn_r50_fpn_1x_coco")
KEYS = {
    "data.scale",
    "train.epochs",
    "optim.decay_epochs",
    "optim.warmup_steps",
    "optim.auto_scale_lr",
    "train.eval_every",
}


def made(count: int, size: tuple[int, int] = (480, 640), side: float = 200) -> MadeDataset:
    """Return pictures of one size (height, width) with one square box each."""
    box = {"id": 1, "bbox": [10, 10, side, side], "area": side**2}
    pictures = [
        replace(picture_of(number, [box]), height=size[0], width=size[1]) for number in range(count)
    ]
    return MadeDataset(pictures, ("a",), (1,))


def chosen(config: Config, dataset: Dataset, *given: str) -> Config:
    result, choices = choose_settings(config, dataset, given)
    assert {choice.key for choice in choices} == KEYS - set(given)
    assert all(choice.reason for choice in choices)
    for choice in choices:
        section, _, name = choice.key.partition(".")
        assert getattr(getattr(result, section), name) == choice.value
    return result


@pytest.mark.parametrize("name", ["rpn_r18_fpn_gn_small", "faster-rcnn_r18_fpn_gn_small"])
def test_bccd_keeps_the_schedule_that_was_measured(name: str) -> None:
    config = load_config(name)
    config = replace(config, data=replace(config.data, root=str(BCCD)))
    expected = replace(config, optim=replace(config.optim, auto_scale_lr=True))
    assert chosen(config, open_train_data(config.data)) == expected
    assert config.optim.base_batch_size == config.data.batch_size  # so the rate is the same


def test_a_small_dataset_gets_600_steps_and_12_evaluations() -> None:
    config = chosen(R50, made(100))  # 7 steps an epoch
    assert (config.train.epochs, config.train.eval_every) == (86, 8)
    assert config.optim.decay_epochs == (57, 78)
    assert config.optim.warmup_steps == 86 * 7 // 6
    assert config.data.scale == (1280, 800)


def test_a_large_dataset_keeps_the_schedule_of_the_config() -> None:
    config = chosen(R50, made(2000, size=(800, 1200)))
    assert (config.train, config.data) == (R50.train, R50.data)
    assert (config.optim.decay_epochs, config.optim.warmup_steps) == ((8, 11), 250)


@pytest.mark.parametrize(
    ("size", "side", "expected"),
    [
        ((100, 150), 60, (320, 224)),  # at most twice the picture, rounded up to 32
        ((480, 640), 200, (320, 240)),
        ((480, 640), 20, (640, 480)),  # 10 pixels, which no anchor reaches
        ((3000, 4000), 60, (1066, 800)),  # not above the largest size
    ],
)
def test_the_picture_size_follows_from_pictures_and_boxes(size, side, expected) -> None:
    config = chosen(SMALL, made(300, size, side))
    assert config.data.scale == expected


@pytest.mark.parametrize(
    ("scale", "size", "expected"),
    [
        ((320, 240), (490, 654), (653, 489)),
        ((333, 200), (375, 500), (499, 300)),
        ((1000, 600), (700, 1001), (1000, 600)),
    ],
)
def test_a_side_that_can_grow_by_less_than_a_pixel_ends_the_search(scale, size, expected) -> None:
    config = replace(SMALL, data=replace(SMALL.data, scale=scale))
    assert chosen(config, made(100, size, 3)).data.scale == expected


def test_a_given_size_is_not_searched(monkeypatch) -> None:
    monkeypatch.setitem(recipe.RULES, "data.scale", lambda *_: pytest.fail("searched"))
    chosen(SMALL, made(100, (490, 654), 3), "data.scale")


def test_flags_are_kept_and_the_other_settings_follow_them() -> None:
    train = replace(R50.train, epochs=6)
    config = chosen(replace(R50, train=train), made(100), "train.epochs", "data.scale")
    assert (config.train.epochs, config.train.eval_every) == (6, 1)
    assert config.optim.decay_epochs == (4, 5)
    assert (config.optim.warmup_steps, config.data.scale) == (7, (1333, 800))
    every = sorted(KEYS)
    assert chosen(R50, made(100), *every) == R50


def test_multi_scale_configs_keep_their_size_and_runs_without_evaluation_have_none() -> None:
    data = replace(R50.data, short_sides=(640, 800))
    config = replace(R50, data=data, train=replace(R50.train, eval_every=0))
    result = chosen(config, made(50, size=(100, 100), side=40))
    assert result.data == data
    assert result.train.eval_every == 0


@pytest.mark.parametrize("pictures", [[], [picture_of(1, [])]])
def test_a_dataset_without_boxes_is_an_error(pictures) -> None:
    with pytest.raises(UserError, match="no picture to train on"):
        choose_settings(R50, MadeDataset(pictures, ("a",), (1,)), ())


@pytest.mark.parametrize(
    ("words", "given"),
    [
        ([], None),
        (["--auto"], ()),
        (["--auto", "--train.epochs", "3", "--data.root=x"], ("train.epochs", "data.root")),
        (["--auto", "--optim.no-auto-scale-lr"], ("optim.auto_scale_lr",)),
        (["--auto", "--optim.warmup_steps", "9"], ("optim.warmup_steps",)),
    ],
)
def test_the_command_passes_on_the_fields_that_the_user_sets(words, given, monkeypatch) -> None:
    passed = []
    monkeypatch.setattr(commands, "train", lambda *arguments, trackers: passed.append(arguments[3]))
    assert cli.main(["train", "rpn_demo", "--workdir", "w", *words]) == 0
    assert passed == [given]


def test_given_is_not_a_flag(capsys) -> None:
    assert cli.main(["train", "rpn_demo", "--workdir", "w", "--given", "a"]) == 2
    assert "unknown flag '--given'" in capsys.readouterr().err
