"""The network: shapes, initial values, what trains, precisions; tests/parity has its numbers."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from rpn_jax.config import (
    AnchorConfig,
    BackboneConfig,
    Config,
    ModelConfig,
    RPNHeadConfig,
    load_config,
)
from rpn_jax.errors import UserError
from rpn_jax.models import RPN, init_variables, variable_shapes
from rpn_jax.models.rpn.head import RPNHead
from rpn_jax.models.rpn.proposals import propose
from rpn_jax.ops.cpu import convolution
from tools.parity.compare import compare_proposals


def small_model(**backbone):
    return Config(model=ModelConfig(backbone=BackboneConfig(**{"depth": 18, **backbone})))


def two_stages(**backbone):
    trunk = BackboneConfig(**{"depth": 18, "num_stages": 2, **backbone})
    return Config(
        model=ModelConfig(
            backbone=trunk, rpn=RPNHeadConfig(anchors=AnchorConfig(strides=(4, 8, 16)))
        )
    )


def relative_l2(value, expected):
    return np.linalg.norm(value - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize("size", [(64, 96), (96, 160)])
def test_levels_have_the_sizes_of_their_strides(size):
    config = small_model()
    outputs = jax.eval_shape(
        lambda v, x: RPN(config.model).apply(v, x),
        variable_shapes(config),
        jax.ShapeDtypeStruct((2, *size, 3), jnp.float32),
    )
    for stride, objectness, deltas in zip(
        config.model.rpn.anchors.strides, outputs.objectness, outputs.deltas, strict=True
    ):
        rows, columns = -(-size[0] // stride), -(-size[1] // stride)
        assert objectness.shape == (2, rows, columns, 3)
        assert deltas.shape == (2, rows, columns, 3, 4)
        assert objectness.dtype == deltas.dtype == jnp.float32


@pytest.mark.usefixtures("no_shape_checks")
@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        ((1, 64, 64, 3), jnp.uint8, r"dtype uint8, .* Use rpn_jax\.normalize_images\."),
        ((1, 64, 65, 3), jnp.float32, r"have 64x65 pixels .* multiples of 32"),
        ((1, 63, 64, 3), jnp.float32, r"have 63x64 pixels .* multiples of 32"),
    ],
)
def test_pictures_that_give_wrong_boxes_are_refused(shape, dtype, message):
    config = small_model()
    variables = variable_shapes(config)
    images = jax.ShapeDtypeStruct(shape, dtype)
    with pytest.raises(UserError, match=rf"^images: .*{message}"):
        jax.eval_shape(RPN(config.model).apply, variables, images)


@pytest.mark.parametrize("norm", ["frozen", "batch", "group"])
def test_all_is_float32_where_jax_has_64_bits(norm):
    model = RPN(two_stages(norm=norm).model)
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    with jax.enable_x64():
        variables = jax.eval_shape(model.init, jax.random.key(0), images)
        outputs = jax.eval_shape(model.apply, variables, images)
    assert {leaf.dtype for leaf in jax.tree.leaves((variables, outputs))} == {np.dtype("float32")}


def test_initial_values_follow_the_published_rules():
    variables = init_variables(load_config("rpn_r18_fpn_gn_small"), seed=3)
    params = variables["params"]
    kernel = np.asarray(params["backbone"]["layer2"]["0"]["conv2"]["kernel"])
    np.testing.assert_allclose(kernel.std(), np.sqrt(2 / (9 * 128)), rtol=0.02)
    block = params["backbone"]["layer2"]["1"]
    assert np.all(np.asarray(block["gn1"]["scale"]) == 1)
    assert np.all(np.asarray(block["gn2"]["scale"]) == 0)
    lateral = np.asarray(params["neck"]["lateral_convs"]["0"]["conv"]["kernel"])
    bound = np.sqrt(6 / (64 + 256))
    assert 0.98 * bound < np.abs(lateral).max() <= bound
    np.testing.assert_allclose(
        np.asarray(params["rpn_head"]["rpn_conv"]["kernel"]).std(), 0.01, rtol=0.02
    )
    assert np.all(np.asarray(params["rpn_head"]["rpn_cls"]["bias"]) == 0)


def test_the_same_seed_gives_the_same_weights_and_another_seed_others():
    config = two_stages()
    first, again, other = (init_variables(config, seed) for seed in (1, 1, 2))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    kernels = [v["params"]["backbone"]["conv1"]["kernel"] for v in (first, other)]
    assert not np.array_equal(*kernels)


DEVICES_OF_NEW_WEIGHTS = """
import json

import jax

from rpn_jax import Config, init_variables
from rpn_jax.config import AnchorConfig, BackboneConfig, ModelConfig, RPNHeadConfig

drawn = []
fetch = jax.device_get


def watched(values):
    drawn.extend(leaf.device.id for leaf in jax.tree.leaves(values))
    return fetch(values)


jax.device_get = watched
jax.config.update("jax_default_device", jax.devices()[1])
backbone = BackboneConfig(depth=18, num_stages=1)
rpn = RPNHeadConfig(channels=32, anchors=AnchorConfig(strides=(4,)))
model = ModelConfig(backbone=backbone, neck="none", rpn=rpn)
held = [leaf.device.id for leaf in jax.tree.leaves(init_variables(Config(model=model)))]
print(json.dumps([sorted(set(drawn)), sorted(set(held))]))
"""
"""Prints the devices that draw new weights, and those that hold them in the end."""


def test_the_first_cpu_draws_new_weights_and_the_default_device_holds_them():
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    done = subprocess.run(
        [sys.executable, "-c", DEVICES_OF_NEW_WEIGHTS],
        env={**environment, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [[0], [1]]


@pytest.mark.parametrize(
    ("frozen_stages", "expected"),
    [
        (-1, [True, True, True, True]),
        (0, [False, False, True, True]),
        (1, [False, False, False, True]),
        (2, [False, False, False, False]),
    ],
)
def test_no_gradient_reaches_frozen_stages(frozen_stages, expected):
    config = two_stages(frozen_stages=frozen_stages)
    variables = jax.tree.map(lambda x: x + 0.1, init_variables(config))
    image = jax.random.normal(jax.random.key(0), (1, 32, 32, 3))

    def loss(params):
        outputs = RPN(config.model).apply({**variables, "params": params}, image)
        return sum(x.sum() for x in outputs.objectness)

    grads = jax.jit(jax.grad(loss))(variables["params"])["backbone"]
    of_stem_and_stages = [
        grads["conv1"]["kernel"],
        grads["bn1"]["scale"],
        grads["layer1"]["0"]["conv1"]["kernel"],
        grads["layer2"]["0"]["downsample"]["0"]["kernel"],
    ]
    assert [bool(np.any(grad)) for grad in of_stem_and_stages] == expected


def test_norms_that_are_not_trained_get_no_gradient():
    config = two_stages(frozen_stages=-1, train_norm=False)
    variables = jax.tree.map(lambda x: x + 0.1, init_variables(config))
    image = jax.random.normal(jax.random.key(0), (1, 32, 32, 3))

    def loss(params):
        outputs = RPN(config.model).apply({**variables, "params": params}, image)
        return sum(x.sum() for x in outputs.objectness)

    flat = flatten_dict(jax.jit(jax.grad(loss))(variables["params"])["backbone"])
    for path, grad in flat.items():
        assert bool(np.any(grad)) == (path[-1] == "kernel"), path


def test_frozen_stages_keep_their_batch_statistics():
    config = two_stages(norm="batch", frozen_stages=1)
    variables = init_variables(config)
    image = jax.random.normal(jax.random.key(0), (2, 32, 32, 3)) + 1
    apply = partial(RPN(config.model).apply, train=True, mutable=["batch_stats"])
    _, updates = jax.jit(apply)(variables, image)
    before, after = (v["batch_stats"]["backbone"] for v in (variables, updates))
    for frozen in ("bn1", "layer1"):
        jax.tree.map(np.testing.assert_array_equal, before[frozen], after[frozen])
    moved = after["layer2"]["0"]["bn1"]["mean"]
    assert not np.array_equal(before["layer2"]["0"]["bn1"]["mean"], moved)


@pytest.mark.parametrize("precision", ["tf32", "bfloat16"])
def test_other_precisions_stay_near_and_return_float32(precision):
    config = small_model()
    variables = init_variables(config)
    image = jax.random.normal(jax.random.key(0), (1, 64, 64, 3))
    exact = jax.jit(RPN(config.model).apply)(variables, image)
    fast = jax.jit(RPN(replace(config.model, precision=precision)).apply)(variables, image)
    for a, b in zip(jax.tree.leaves(exact), jax.tree.leaves(fast), strict=True):
        assert b.dtype == jnp.float32
        assert relative_l2(np.asarray(b), np.asarray(a)) < 0.03


@pytest.mark.cpu_forms
def test_fast_forms_of_convolution_give_the_same_proposals(monkeypatch):
    # XLA's own forms pay in so small a picture. The limits below force the forms for CPUs.
    config = two_stages(depth=50, groups=4, base_width=32)
    variables = init_variables(config)
    images = jax.random.normal(jax.random.key(0), (1, 96, 128, 3))
    image_sizes = np.array([[96, 128]], np.int32)

    def run():
        @jax.jit
        def outputs_and_proposals(variables, images):
            outputs = RPN(config.model).apply(variables, images)
            return outputs, propose(config, outputs, image_sizes)

        program = outputs_and_proposals.lower(variables, images)
        outputs, proposals = program.compile()(variables, images)
        rows = np.column_stack([proposals.boxes[0], proposals.scores[0]])[proposals.valid[0]]
        return program.as_text().count("stablehlo.while"), outputs, rows

    plain_loops, plain_outputs, plain_proposals = run()
    monkeypatch.setattr(convolution, "MIN_PIXELS", 1)
    monkeypatch.setattr(convolution, "MIN_WINOGRAD_FLOPS", 1)
    fast_loops, fast_outputs, fast_proposals = run()
    assert fast_loops > plain_loops
    for fast, plain in zip(
        jax.tree.leaves(fast_outputs), jax.tree.leaves(plain_outputs), strict=True
    ):
        assert relative_l2(np.asarray(fast), np.asarray(plain)) < 4e-6
    agreement = compare_proposals(fast_proposals, plain_proposals)
    assert agreement.found > 0.99
    assert agreement.out_of_order == agreement.repeated == 0


@pytest.mark.cpu_forms
@pytest.mark.skipif(jax.default_backend() != "cpu", reason="a GPU rounds within its products")
def test_tf32_rounds_the_factors_of_the_head_s_last_product():
    head = {
        precision: RPNHead(anchors_per_cell=3, features=32, precision=precision)
        for precision in ("float32", "tf32")
    }
    # What the 3x3 convolution hands on is a copy of its input, with ten bits.
    x = jnp.round(jax.random.uniform(jax.random.key(0), (1, 5, 6, 32)) * 2**9) / 2**9
    params = jax.jit(head["float32"].init)(jax.random.key(1), (x,))["params"]
    params["rpn_conv"]["kernel"] = jnp.zeros((3, 3, 32, 32)).at[1, 1].set(jnp.eye(32))
    exact, rounded = (
        jax.jit(head[name].apply)({"params": params}, (x,)) for name in ("float32", "tf32")
    )
    for a, b in zip(jax.tree.leaves(exact), jax.tree.leaves(rounded), strict=True):
        assert 1e-5 < relative_l2(np.asarray(b), np.asarray(a)) < 1e-3
