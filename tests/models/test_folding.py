"""Weights for inference give what the variables they were made of give."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rpn_jax.config import BackboneConfig, Config, load_config
from rpn_jax.models import RPN, variable_shapes
from rpn_jax.models.folding import fold_norms

BACKBONES = {
    "basic blocks": BackboneConfig(depth=18, num_stages=2),
    "batch norm": BackboneConfig(depth=18, num_stages=2, norm="batch"),
    "bottlenecks with groups": BackboneConfig(depth=50, num_stages=2, groups=32, base_width=4),
    "group norm": BackboneConfig(depth=18, num_stages=2, norm="group", frozen_stages=-1),
}


def config_with(backbone: BackboneConfig, precision: str) -> Config:
    config = load_config("rpn_demo")
    strides = config.model.rpn.anchors.strides[: backbone.num_stages + 1]
    anchors = replace(config.model.rpn.anchors, strides=strides)
    model = replace(
        config.model,
        backbone=backbone,
        precision=precision,
        rpn=replace(config.model.rpn, anchors=anchors),
        neck_channels=16,
    )
    return replace(config, model=model)


def random_variables(config: Config) -> dict:
    leaves, tree = jax.tree.flatten(variable_shapes(config))
    keys = jax.random.split(jax.random.key(0), len(leaves))
    # Positive, as variances must be.
    values = [
        jax.random.uniform(key, leaf.shape, minval=0.01, maxval=0.1)
        for key, leaf in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(tree, values)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("backbone", BACKBONES.values(), ids=BACKBONES.keys())
def test_folded_weights_give_the_same_outputs(backbone, precision, request):
    if precision == "bfloat16":
        # Both programs round at the same places only where they are optimised.
        request.getfixturevalue("all_optimizations")
    config = config_with(backbone, precision)
    variables = random_variables(config)
    images = jax.random.normal(jax.random.key(1), (2, 32, 32, 3))
    expected = jax.jit(RPN(config.model).apply)(variables, images)
    # Batch norm rounds to bfloat16 before its own scale as well, where it is not folded.
    tolerance = 1e-2 if (precision, backbone.norm) == ("bfloat16", "batch") else 1e-6
    for kernels_ohwi in (False, True):
        weights = fold_norms(RPN(config.model), variables, kernels_ohwi)
        outputs = jax.jit(RPN(config.model, folded=True).apply)(weights, images)
        assert jax.tree.structure(outputs) == jax.tree.structure(expected)
        for level, other in zip(jax.tree.leaves(outputs), jax.tree.leaves(expected), strict=True):
            assert jnp.linalg.norm(level - other) <= tolerance * jnp.linalg.norm(other)


def test_folded_weights_hold_no_norm_and_no_float32_kernel():
    config = config_with(BACKBONES["basic blocks"], "bfloat16")
    weights = fold_norms(RPN(config.model), random_variables(config), kernels_ohwi=True)
    assert list(weights) == ["params"]
    block = weights["params"]["backbone"]["layer2"]["0"]
    assert sorted(block) == ["conv1", "conv2", "downsample"]
    assert {name: leaf.dtype for name, leaf in block["conv1"].items()} == {
        "kernel_ohwi": jnp.bfloat16,
        "bias": jnp.bfloat16,
    }
    assert block["conv1"]["kernel_ohwi"].shape == (128, 3, 3, 64)
    assert weights["params"]["rpn_head"]["rpn_cls"]["bias"].dtype == np.float32
