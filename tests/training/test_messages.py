"""The lines that a run prints before its first step."""

from dataclasses import replace

import pytest

from rpn_jax.console import make_console
from rpn_jax.data.coco import open_coco
from rpn_jax.data.plan import plan_training
from rpn_jax.training.messages import print_start, warn_about_schedule
from tests.data.coco_folder import box_entry, image_entry, write_coco_folder


@pytest.mark.parametrize(
    ("optim", "batch_size", "warning"),
    [
        ({"warmup_steps": 6}, 16, "optim.warmup_steps = 6: the run has only 6 steps"),
        ({"warmup_steps": 5}, 16, None),
        (
            {"warmup_steps": 5, "learning_rate": 0.02},
            2,
            "Use --auto-scale-lr, or a rate near 0.0025",
        ),
        ({"warmup_steps": 5, "learning_rate": 0.02, "auto_scale_lr": True}, 2, None),
        ({"warmup_steps": 5, "learning_rate": 0.0025}, 2, None),
        ({"warmup_steps": 5, "learning_rate": 0.02, "base_batch_size": 2}, 2, None),
        ({"warmup_steps": 5, "learning_rate": 0.02}, 64, "or a rate near 0.08 (the linear rule)"),
    ],
)
def test_a_schedule_that_does_not_fit_causes_a_warning(
    tiny_config, capsys, optim, batch_size, warning
):
    config = replace(
        tiny_config,
        optim=replace(tiny_config.optim, **optim),
        data=replace(tiny_config.data, batch_size=batch_size),
    )
    warn_about_schedule(config, 6, make_console())
    said = capsys.readouterr().out
    assert said.count("warning") == (0 if warning is None else 1)
    assert (warning or "") in said


def test_the_start_counts_what_is_trained_on(tiny_config, capsys, tmp_path):
    images = [image_entry(1), image_entry(2, 20, 60), image_entry(3)]
    boxes = [box_entry(number, number, [1, 1, 9, 9]) for number in (1, 2)]
    root = write_coco_folder(tmp_path, images, boxes)
    dataset = open_coco(root, "train", clip_boxes=False)
    config = replace(tiny_config, data=replace(tiny_config.data, min_image_size=32))
    print_start(config, plan_training(dataset, config.data), None, make_console())
    said = capsys.readouterr().out
    assert "1 pictures with 1 boxes" in said
    assert "2 more pictures are not trained on: they have no object, or a side below" in said
