"""The network: names and shapes of the reference, padding, initial values, precisions."""

import json
import zlib
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from rpn_jax.config import AnchorConfig, BackboneConfig, Config, ModelConfig, load_config
from rpn_jax.models import RPN, init_variables, variable_shapes

GOLDEN = Path(__file__).resolve().parents[2].parent / "shared" / "golden"
needs_golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason="no reference figures beside here")

ELEVEN = [
    "rpn_r50-caffe_fpn_1x_coco",
    "rpn_r50_fpn_1x_coco",
    "rpn_r50_fpn_2x_coco",
    "rpn_r101-caffe_fpn_1x_coco",
    "rpn_r101_fpn_1x_coco",
    "rpn_r101_fpn_2x_coco",
    "rpn_x101-32x4d_fpn_1x_coco",
    "rpn_x101-32x4d_fpn_2x_coco",
    "rpn_x101-64x4d_fpn_1x_coco",
    "rpn_x101-64x4d_fpn_2x_coco",
    "rpn_r50-caffe-c4_1x_coco",
]
TORCH_LEAF = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}


def torch_key(path):
    return ".".join((*path[1:-1], TORCH_LEAF[path[-1]]))


def torch_shape(shape):
    return [shape[3], shape[2], shape[0], shape[1]] if len(shape) == 4 else list(shape)


def reference_value(seed, key, shape):
    """The rule by which the reference's weights were filled."""
    rng = np.random.RandomState(zlib.crc32(f"{seed}:{key}".encode()))
    if len(shape) == 4:
        gain = {"rpn_head.rpn_cls.weight": 1.0, "rpn_head.rpn_reg.weight": 0.02}.get(key, 2.0)
        gain = 0.01 if "lateral_convs" in key else gain
        value = rng.standard_normal(shape) * np.sqrt(gain / np.prod(shape[1:]))
    elif key.endswith("running_var") or (
        key.endswith("weight") and ("bn" in key or "downsample.1" in key)
    ):
        value = rng.uniform(0.5, 1.5, shape) * (0.3 if key.endswith("bn3.weight") else 1.0)
    else:
        value = rng.standard_normal(shape) * 0.1
    return value.astype(np.float32)


def reference_variables(config, seed):
    flat = {}
    for path, leaf in flatten_dict(variable_shapes(config)).items():
        value = reference_value(seed, torch_key(path), torch_shape(leaf.shape))
        flat[path] = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value
    return unflatten_dict(flat)


def small_model(**backbone):
    return Config(model=ModelConfig(backbone=BackboneConfig(**{"depth": 18, **backbone})))


def two_stages(**backbone):
    trunk = BackboneConfig(depth=18, num_stages=2, **backbone)
    return Config(model=ModelConfig(backbone=trunk, anchors=AnchorConfig(strides=(4, 8, 16))))


@needs_golden
@pytest.mark.parametrize("name", ELEVEN)
def test_has_exactly_the_parameters_of_the_reference(name):
    expected = json.loads((GOLDEN / "keys" / f"{name}.json").read_text())
    expected = {k: s for k, s in expected.items() if not k.endswith("num_batches_tracked")}
    flat = flatten_dict(variable_shapes(load_config(name)))
    assert {torch_key(path): torch_shape(leaf.shape) for path, leaf in flat.items()} == expected


@needs_golden
def test_head_outputs_equal_the_reference():
    config = load_config("rpn_r50_fpn_1x_coco")
    case = np.load(GOLDEN / "r50_pytorch.npz")
    images = case["images"].transpose(0, 2, 3, 1)
    outputs = jax.jit(RPN(config.model).apply)(reference_variables(config, 1), images)
    for level in range(5):
        objectness = np.asarray(outputs.objectness[level]).transpose(0, 3, 1, 2)
        deltas = np.asarray(outputs.deltas[level])
        deltas = deltas.reshape(*deltas.shape[:3], -1).transpose(0, 3, 1, 2)
        assert relative_l2(objectness, case[f"cls_{level}"]) < 1e-5
        assert relative_l2(deltas, case[f"reg_{level}"]) < 1e-5


def relative_l2(value, expected):
    return np.linalg.norm(value - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize("size", [(64, 96), (75, 101)])
def test_levels_have_the_sizes_of_their_strides(size):
    config = small_model()
    outputs = jax.eval_shape(
        lambda v, x: RPN(config.model).apply(v, x),
        variable_shapes(config),
        jax.ShapeDtypeStruct((2, *size, 3), jnp.float32),
    )
    for stride, objectness, deltas in zip(
        config.model.anchors.strides, outputs.objectness, outputs.deltas, strict=True
    ):
        rows, columns = -(-size[0] // stride), -(-size[1] // stride)
        assert objectness.shape == (2, rows, columns, 3)
        assert deltas.shape == (2, rows, columns, 3, 4)
        assert objectness.dtype == deltas.dtype == jnp.float32


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
    config = small_model()
    first, again, other = (init_variables(config, seed) for seed in (1, 1, 2))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    kernels = [v["params"]["backbone"]["conv1"]["kernel"] for v in (first, other)]
    assert not np.array_equal(*kernels)


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


@pytest.mark.parametrize("precision", ["tf32", "bfloat16"])
def test_other_precisions_stay_near_and_return_float32(precision):
    config = small_model()
    variables = init_variables(config)
    image = jax.random.normal(jax.random.key(0), (1, 64, 64, 3))
    exact = RPN(config.model).apply(variables, image)
    fast = RPN(replace(config.model, precision=precision)).apply(variables, image)
    for a, b in zip(jax.tree.leaves(exact), jax.tree.leaves(fast), strict=True):
        assert b.dtype == jnp.float32
        assert relative_l2(np.asarray(b), np.asarray(a)) < 0.03
