"""Backbones that are not part of rpn_jax: attached, trained, saved and resumed."""

from dataclasses import replace
from types import MappingProxyType

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.tree_util import keystr, tree_leaves_with_path

from rpn_jax.config import (
    AnchorConfig,
    BackboneConfig,
    Config,
    ModelConfig,
    OptimConfig,
    RPNHeadConfig,
)
from rpn_jax.devices import devices_for_batch
from rpn_jax.errors import UserError
from rpn_jax.models import RPN, build_detector, variable_shapes
from rpn_jax.models.folding import fold_norms
from rpn_jax.models.layers import ConvWeights, FrozenNorm
from rpn_jax.structures import Batch
from rpn_jax.training.gradients import DEVICE_AXIS
from rpn_jax.training.objectives import rpn_loss_function
from rpn_jax.training.optim import make_optimizer, trainable_parameters
from rpn_jax.training.step import continued_state, initial_state, make_step, split_batch
from rpn_jax.weights.checkpoints import Checkpoints, restore_newest

PICTURES = 2 * jax.local_device_count()


class SmallCNN(nn.Module):
    """Two convolutions, the first one frozen, a batch norm, and a statistic that is no float."""

    strides = (8, 16)
    norm_of = None

    @nn.compact
    def __call__(self, images, train=False):
        x = nn.relu(nn.Conv(8, (8, 8), strides=8, name="stem")(images))
        y = nn.Conv(12, (3, 3), strides=2, name="conv")(x)
        y = nn.BatchNorm(use_running_average=not train, name="norm")(y)
        calls = self.variable("batch_stats", "calls", jnp.zeros, (), jnp.int32)
        if train:
            calls.value += 1
        return x, nn.relu(y)

    def trains(self, path):
        return path[0] != "stem"


class PlainViT(nn.Module):
    """A plain ViT whose last feature map becomes a simple pyramid (Li et al. 2022, ViTDet)."""

    strides = (8, 16, 32)
    norm_of = None

    @nn.compact
    def __call__(self, images, train=False):
        x = nn.Conv(16, (16, 16), strides=16, name="patches")(images)
        batch, rows, columns, width = x.shape
        x += self.param("positions", nn.initializers.normal(0.02), (rows, columns, width))
        tokens = x.reshape(batch, -1, width)
        for _ in range(2):
            tokens += nn.MultiHeadDotProductAttention(2)(nn.LayerNorm()(tokens))
            hidden = nn.gelu(nn.Dense(4 * width)(nn.LayerNorm()(tokens)))
            tokens += nn.Dense(width)(hidden)
        x = tokens.reshape(batch, rows, columns, width)
        finer = nn.ConvTranspose(width, (2, 2), strides=(2, 2))(x)
        coarser = nn.max_pool(x, (2, 2), strides=(2, 2))
        return tuple(nn.Conv(8, (1, 1))(level) for level in (finer, x, coarser))

    def trains(self, path):
        return True


def config_for(neck, strides):
    rpn = RPNHeadConfig(channels=8, anchors=AnchorConfig(strides=strides, scales=(2.0,)))
    return Config(model=ModelConfig(neck=neck, neck_channels=8, rpn=rpn))


CASES = pytest.mark.parametrize(
    ("backbone", "config"),
    [
        (SmallCNN(), config_for("fpn", (8, 16, 32))),
        (PlainViT(), config_for("none", (8, 16, 32))),
    ],
    ids=["cnn", "vit"],
)


def random_batch():
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 32, (PICTURES, 1, 2))
    return Batch(
        images=rng.integers(0, 256, (PICTURES, 64, 64, 3), np.uint8),
        image_sizes=np.full((PICTURES, 2), 64, np.int32),
        scale_factors=np.ones((PICTURES, 2), np.float32),
        boxes_xyxy=np.concatenate([corners, corners + 24], axis=-1).astype(np.float32),
        box_mask=np.ones((PICTURES, 1), bool),
        labels=np.zeros((PICTURES, 1), np.int32),
        indices=np.arange(PICTURES, dtype=np.int32),
    )


def changed_names(before, after):
    return {
        keystr(path, simple=True, separator=".")
        for (path, old), new in zip(
            tree_leaves_with_path(before), jax.tree.leaves(after), strict=True
        )
        if not np.array_equal(old, new)
    }


@CASES
def test_training_changes_what_the_backbone_trains_and_resumes_exactly(tmp_path, backbone, config):
    model = RPN(config.model, backbone=backbone)
    variables = dict(model.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3))))
    before = jax.device_get(variables["params"])
    schedule = optax.constant_schedule(0.02)
    trainable = trainable_parameters(variables["params"], backbone)
    optimizer = make_optimizer(OptimConfig(), schedule, trainable)
    devices = devices_for_batch(PICTURES)
    loss_function = rpn_loss_function(config, backbone)
    step = make_step(loss_function, optimizer, schedule, seed=0, devices=devices)
    batch = split_batch(random_batch())

    state = initial_state(variables, optimizer)
    shapes = jax.eval_shape(lambda: state)
    losses = []
    for _ in range(2):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    with Checkpoints(tmp_path, keep_last=1, epoch_steps=2, best_by="AR@1000") as checkpoints:
        checkpoints.save(2, state.variables, state.opt_state)
    state, metrics = step(state, batch)
    losses.append(float(metrics["loss"]))

    restored = restore_newest(tmp_path, shapes.variables, shapes.opt_state)
    start = continued_state(2, restored.variables, restored.opt_state)
    resumed, resumed_metrics = step(start, batch)
    jax.tree.map(np.testing.assert_array_equal, resumed, state)
    assert float(resumed_metrics["loss"]) == losses[-1]
    assert losses[-1] < losses[0]
    names = {name for name, trains in flat_names(trainable) if trains}
    assert changed_names(before, state.variables["params"]) == names


def flat_names(tree):
    return [
        (keystr(path, simple=True, separator="."), leaf)
        for path, leaf in tree_leaves_with_path(tree)
    ]


@CASES
def test_folding_leaves_the_weights_of_such_a_backbone(backbone, config):
    images = jax.random.normal(jax.random.key(0), (1, 64, 64, 3))
    model = RPN(config.model, backbone=backbone)
    variables = model.init(jax.random.key(1), images)
    weights = fold_norms(model, variables, kernels_ohwi=True)
    folded = RPN(config.model, backbone=backbone, folded=True)
    expected = jax.jit(model.apply)(variables, images)
    for ours, theirs in zip(
        jax.tree.leaves(jax.jit(folded.apply)(weights, images)),
        jax.tree.leaves(expected),
        strict=True,
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("neck", "strides", "expected"),
    [("fpn", (8, 16), "(8, 16, 32)"), ("none", (8,), "(16,)"), ("none", (4, 8, 16), "(8, 16)")],
)
def test_anchors_must_have_the_strides_of_the_levels(neck, strides, expected):
    with pytest.raises(UserError, match=r"model\.rpn\.anchors\.strides = ") as error:
        RPN(config_for(neck, strides).model, backbone=SmallCNN())
    assert f"it must be {expected}" in str(error.value)


def test_a_pyramid_needs_strides_that_double():
    backbone = BackboneConfig(depth=50, dilate_last_stage=True)
    model = replace(config_for("fpn", (4, 8, 16, 16, 32)).model, backbone=backbone)
    with pytest.raises(UserError, match=r"strides are \(4, 8, 16, 16\), but each must be twice"):
        RPN(model)


def test_feature_maps_must_have_the_strides_that_the_backbone_states():
    class Coarse(SmallCNN):
        strides = (4, 8)

    model = RPN(config_for("none", (4, 8)).model, backbone=Coarse())
    message = r"^backbone: .* shapes \[\(1, 8, 8\), \(1, 4, 4\)\], .* must be \[\(1, 16, 16\), "
    with pytest.raises(UserError, match=message):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))


def test_heads_need_levels_of_equal_width():
    model = RPN(config_for("none", (8, 16)).model, backbone=SmallCNN())
    with pytest.raises(UserError, match=r"features have \[8, 12\] channels"):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))


def test_stored_statistics_are_averaged_over_the_devices():
    config = config_for("fpn", (8, 16, 32))
    model = RPN(config.model, backbone=SmallCNN())
    variables = dict(model.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3))))
    loss_function = rpn_loss_function(config, SmallCNN())

    def statistics_of(batch):
        updated = loss_function(variables, batch, jax.random.key(1), 0)[1]
        return updated["batch_stats"]["backbone"]["norm"]["mean"]

    batch = random_batch()
    one, other = (jax.tree.map(lambda x, i=i: x[i : i + 1], batch) for i in (0, 1))
    both = jax.tree.map(lambda *parts: jnp.stack(parts), one, other)
    on_two = jax.jit(jax.vmap(statistics_of, axis_name=DEVICE_AXIS))
    separate = jax.jit(jax.vmap(statistics_of, axis_name=DEVICE_AXIS, axis_size=1))
    alone = [separate(jax.tree.map(lambda x: x[None], part))[0] for part in (one, other)]
    assert not np.allclose(*alone)
    for mean in on_two(both):
        np.testing.assert_allclose(mean, np.mean(alone, axis=0), rtol=1e-6)


class Dropping(SmallCNN):
    """`SmallCNN` that loses half of its first features while it trains."""

    @nn.compact
    def __call__(self, images, train=False):
        x = nn.Conv(8, (8, 8), strides=8, name="stem")(images)
        x = nn.Dropout(0.5, deterministic=not train)(x)
        return x, nn.Conv(8, (3, 3), strides=2, name="conv")(x)


def test_dropout_has_another_key_in_each_step_and_in_each_part_of_a_batch():
    config = config_for("none", (8, 16))
    model = RPN(config.model, backbone=Dropping())
    variables = dict(model.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3))))
    loss_function = rpn_loss_function(config, Dropping())
    batch = jax.tree.map(jnp.asarray, random_batch())

    @jax.jit
    def loss(seed, first):
        one_device = jax.vmap(
            lambda batch: loss_function(variables, batch, jax.random.key(seed), first)[0],
            axis_name=DEVICE_AXIS,
        )
        return one_device(jax.tree.map(lambda x: x[None], batch))["loss_rpn_bbox"].total[0]

    assert loss(1, 0) == loss(1, 0)
    assert loss(1, 0) != loss(2, 0)
    assert loss(1, 0) != loss(1, 2)


class Folding(nn.Module):
    """A convolution and a norm with stored statistics, which is folded into it."""

    folded: bool = False
    strides = (16,)
    norm_of = MappingProxyType({"conv": "norm"})

    @nn.compact
    def __call__(self, images, train=False):
        kernel, bias = ConvWeights(3, 8, 16, use_bias=self.folded, name="conv")()
        axes = ("NHWC", "HWIO", "NHWC")
        y = jax.lax.conv_general_dilated(images, kernel, (16, 16), "VALID", dimension_numbers=axes)
        if self.folded:
            return (y + bias,)
        multiplier, shift = FrozenNorm(8, trainable=True, name="norm")()
        return (y * multiplier + shift,)

    def trains(self, path):
        return True


def test_a_class_whose_norms_are_folded_gives_the_same_outputs():
    name = f"{__name__}:Folding"
    config = replace(config_for("none", (16,)).model, backbone_class=name)
    images = jax.random.normal(jax.random.key(0), (1, 64, 64, 3))
    model = build_detector(config)
    variables = dict(model.init(jax.random.key(1), images))
    statistics = {"mean": jnp.full(8, 0.3), "var": jnp.full(8, 2.0)}
    variables["batch_stats"] = {"backbone": {"norm": statistics}}
    weights = fold_norms(model, variables, kernels_ohwi=True)
    assert weights["params"]["backbone"].keys() == {"conv"}
    folded = build_detector(config, folded=True)
    for ours, theirs in zip(
        jax.tree.leaves(folded.apply(weights, images)),
        jax.tree.leaves(model.apply(variables, images)),
        strict=True,
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


class Partitioned(SmallCNN):
    """Its kernels name the axes that a mesh can share them over."""

    @nn.compact
    def __call__(self, images, train=False):
        kernel_init = nn.with_partitioning(nn.initializers.lecun_normal(), (None, None, None, "x"))
        x = nn.Conv(8, (8, 8), strides=8, name="stem", kernel_init=kernel_init)(images)
        return x, nn.Conv(8, (3, 3), strides=2, name="conv")(x)


def test_names_of_axes_are_left_out_of_the_variables():
    name = f"{__name__}:Partitioned"
    config = replace(config_for("none", (8, 16)).model, backbone_class=name)
    variables = variable_shapes(Config(model=config))
    assert isinstance(variables["params"]["backbone"]["stem"]["kernel"], jax.ShapeDtypeStruct)
    trainable = trainable_parameters(variables["params"], build_detector(config).backbone)
    assert not trainable["backbone"]["stem"]["kernel"]
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    jax.eval_shape(build_detector(config).apply, variables, images)
