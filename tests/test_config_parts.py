"""A public function that gets the wrong part of a config says which part it needs."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import pytest

import rpn_jax
from rpn_jax.structures import RoIOutputs, RPNOutputs

CONFIG = rpn_jax.load_config("rpn_demo")
DETECTOR = rpn_jax.load_config("faster-rcnn_demo")
BOXES, MASK = jnp.zeros((1, 2, 4)), jnp.zeros((1, 2), bool)
LABELS, SIZES = jnp.zeros((1, 2), jnp.int32), jnp.full((1, 2), 32)
KEY = jax.random.key(0)
FIRST = RPNOutputs((jnp.zeros((1, 1, 1, 3)),), (jnp.zeros((1, 1, 1, 3, 4)),))
SECOND = RoIOutputs(jnp.zeros((1, 2, 3)), jnp.zeros((1, 2, 2, 4)))


pytestmark = pytest.mark.usefixtures("no_shape_checks")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rpn_jax.RPN(CONFIG), "of type Config: must be a ModelConfig. Use its part .model"),
        (lambda: rpn_jax.FasterRCNN(DETECTOR), "must be a ModelConfig. Use its part .model"),
        (lambda: rpn_jax.RPN("rpn_demo"), "of type str: must be a ModelConfig$"),
        (lambda: rpn_jax.init_variables(CONFIG.model), "of type ModelConfig: must be a Config$"),
        (
            lambda: rpn_jax.propose(CONFIG.rpn_proposals, FIRST, SIZES),
            "ProposalConfig: must be a Config$",
        ),
        (
            lambda: rpn_jax.rpn_loss(CONFIG.rpn_loss, FIRST, BOXES, MASK, SIZES, KEY),
            "RPNLossConfig: must be a Config$",
        ),
        (lambda: rpn_jax.detect(CONFIG.model, SECOND, BOXES, MASK, SIZES), "must be a Config"),
        (lambda: rpn_jax.Proposer(CONFIG.model, {}), "must be a Config"),
        (lambda: rpn_jax.Detector(CONFIG.model, {}), "must be a Config"),
        (
            lambda: rpn_jax.roi_targets(CONFIG.roi_loss, BOXES, MASK, BOXES, LABELS, MASK, KEY),
            "must be a Config",
        ),
        (
            lambda: rpn_jax.roi_targets(CONFIG, BOXES, MASK, BOXES, LABELS, MASK, KEY),
            "model.roi is None, but the targets are those of a second stage",
        ),
    ],
)
def test_a_wrong_part_is_named(call: Callable[[], object], message: str) -> None:
    with pytest.raises(rpn_jax.UserError, match=f"^config: .*{message}"):
        call()


def test_pixels_are_named_too() -> None:
    images = jnp.zeros((1, 32, 32, 3), jnp.uint8)
    message = "^pixels: is of type Config: must be a PixelConfig. Use its part .pixels$"
    with pytest.raises(rpn_jax.UserError, match=message):
        rpn_jax.normalize_images(images, SIZES, CONFIG)
