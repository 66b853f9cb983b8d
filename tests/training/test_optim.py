"""Schedule, freezing and SGD against the reference's formulas, a NumPy loop and PyTorch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rpn_jax.config import BackboneConfig, OptimConfig
from rpn_jax.models.resnet import ResNet
from rpn_jax.training.optim import learning_rate_schedule, make_optimizer, trainable_parameters

OPTIM = OptimConfig(learning_rate=0.1, warmup_steps=5, warmup_ratio=0.01, decay_epochs=(2, 3))


def reference_learning_rate(optim: OptimConfig, step: int, steps_per_epoch: int) -> float:
    """MMDetection 2.x: StepLrUpdaterHook with a linear warm-up, by epoch."""
    rate = optim.learning_rate
    for epoch in optim.decay_epochs:
        if step // steps_per_epoch >= epoch:
            rate *= optim.decay_factor
    if step < optim.warmup_steps:
        rate *= 1 - (1 - step / optim.warmup_steps) * (1 - optim.warmup_ratio)
    return rate


@pytest.mark.parametrize("steps_per_epoch", [1, 4, 7])
@pytest.mark.parametrize(
    "optim",
    [
        OPTIM,
        replace(OPTIM, warmup_steps=0),
        replace(OPTIM, warmup_steps=1),
        replace(OPTIM, decay_epochs=()),
        replace(OPTIM, warmup_ratio=1.0),
        replace(OPTIM, warmup_steps=12),
    ],
)
def test_schedule_equals_the_reference(optim: OptimConfig, steps_per_epoch: int) -> None:
    schedule = learning_rate_schedule(optim, steps_per_epoch, batch_size=3)
    steps = np.arange(30)
    expected = [reference_learning_rate(optim, int(step), steps_per_epoch) for step in steps]
    np.testing.assert_allclose(jax.jit(jax.vmap(schedule))(steps), expected, rtol=1e-6)
    np.testing.assert_allclose(schedule(3), expected[3], rtol=1e-6)


def test_first_last_and_neighbouring_steps_of_the_default_schedule() -> None:
    schedule = learning_rate_schedule(OptimConfig(auto_scale_lr=True), 1000, batch_size=16)
    by_step = {0: 2e-5, 500: 0.02, 7999: 0.02, 8000: 2e-3, 10999: 2e-3, 11000: 2e-4}
    for step, rate in by_step.items():
        assert float(schedule(step)) == pytest.approx(rate, rel=1e-6)


def test_auto_scale_goes_with_the_batch_size() -> None:
    for batch_size, factor in ((4, 0.25), (16, 1.0), (64, 4.0)):
        scaled = learning_rate_schedule(replace(OPTIM, auto_scale_lr=True), 4, batch_size)
        plain = learning_rate_schedule(OPTIM, 4, batch_size)
        for step in (0, 6, 9):
            assert float(scaled(step)) == pytest.approx(factor * float(plain(step)), rel=1e-6)


def backbone_params() -> dict[str, Any]:
    """One leaf of every kind, under the names of the models."""
    block = {
        "conv1": {"kernel": 0.0},
        "bn1": {"scale": 0.0, "bias": 0.0},
        "downsample": {"0": {"kernel": 0.0}, "1": {"scale": 0.0, "bias": 0.0}},
    }
    return {
        "backbone": {
            "conv1": {"kernel": 0.0},
            "bn1": {"scale": 0.0, "bias": 0.0},
            **{f"layer{stage}": {"0": block} for stage in (1, 2, 3, 4)},
        },
        "neck": {"lateral_convs": {"0": {"conv": {"kernel": 0.0, "bias": 0.0}}}},
        "rpn_head": {"rpn_conv": {"kernel": 0.0, "bias": 0.0}},
    }


def trained_names(backbone: BackboneConfig) -> set[str]:
    flags = trainable_parameters(backbone_params(), ResNet(backbone, "float32"))
    return {
        jax.tree_util.keystr(path, simple=True, separator=".")
        for path, trains in jax.tree_util.tree_leaves_with_path(flags)
        if trains
    }


ALL_NAMES = trained_names(BackboneConfig(frozen_stages=-1))


def test_nothing_is_frozen_without_frozen_stages() -> None:
    assert len(ALL_NAMES) == len(jax.tree.leaves(backbone_params()))


@pytest.mark.parametrize("frozen_stages", range(5))
def test_frozen_stages_are_the_stem_and_the_first_stages(frozen_stages: int) -> None:
    stages = [f"backbone.layer{stage}." for stage in range(1, frozen_stages + 1)]
    frozen = ("backbone.conv1.", "backbone.bn1.", *stages)
    expected = {name for name in ALL_NAMES if not name.startswith(frozen)}
    assert trained_names(BackboneConfig(frozen_stages=frozen_stages)) == expected


def test_norms_of_the_backbone_alone_are_frozen_without_train_norm() -> None:
    trained = trained_names(BackboneConfig(frozen_stages=-1, train_norm=False))
    assert ALL_NAMES - trained == {
        name
        for name in ALL_NAMES
        if name.startswith("backbone.") and name.endswith((".scale", ".bias"))
    }


def test_a_group_norm_stem_is_stage_0() -> None:
    params = {"backbone": {"gn1": {"scale": 0.0}, "layer1": {"0": {"gn1": {"scale": 0.0}}}}}
    flags = trainable_parameters(params, ResNet(BackboneConfig(frozen_stages=0), "float32"))
    assert flags["backbone"]["gn1"]["scale"] is False
    assert flags["backbone"]["layer1"]["0"]["gn1"]["scale"] is True


SHAPES = {"a": (3, 2), "b": (4,), "frozen": (2, 2)}
TRAINABLE = {"a": True, "b": True, "frozen": False}
STEPS = 9


def random_trees(seed: int) -> tuple[dict[str, np.ndarray], list[dict[str, np.ndarray]]]:
    rng = np.random.default_rng(seed)

    def tree() -> dict[str, np.ndarray]:
        return {key: rng.normal(size=shape).astype(np.float32) for key, shape in SHAPES.items()}

    return tree(), [tree() for _ in range(STEPS)]


def run(optim: OptimConfig, params: Any, gradients: list[Any]) -> list[dict[str, np.ndarray]]:
    """Parameters after each step, with a rate that changes at every step or two."""
    schedule = learning_rate_schedule(optim, 2, batch_size=16)
    optimizer = make_optimizer(optim, schedule, TRAINABLE)
    state = optimizer.init(params)
    history = []

    @jax.jit
    def step(params: Any, state: Any, gradient: Any) -> Any:
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    for gradient in gradients:
        params, state = step(params, state, gradient)
        history.append(jax.device_get(params))
    return history


def numpy_sgd(optim: OptimConfig, params: Any, gradients: list[Any]) -> list[dict[str, np.ndarray]]:
    params = {key: value.astype(np.float64) for key, value in params.items()}
    buffers = {key: 0.0 for key in params if TRAINABLE[key]}
    history = []
    for step, gradient in enumerate(gradients):
        rate = reference_learning_rate(optim, step, 2)
        norm = np.sqrt(sum((gradient[key].astype(np.float64) ** 2).sum() for key in buffers))
        clip = min(1.0, optim.clip_norm / norm) if optim.clip_norm else 1.0
        for key in buffers:
            decayed = clip * gradient[key] + optim.weight_decay * params[key]
            buffers[key] = optim.momentum * buffers[key] + decayed
            params[key] = params[key] - rate * buffers[key]
        history.append(dict(params))
    return history


OPTIMS = [
    OPTIM,
    replace(OPTIM, weight_decay=0.1),
    replace(OPTIM, momentum=0.0),
    replace(OPTIM, weight_decay=0.0),
    replace(OPTIM, clip_norm=0.7, weight_decay=0.1),
    replace(OPTIM, clip_norm=1e6),
]


@pytest.mark.parametrize("optim", OPTIMS)
def test_sgd_equals_a_numpy_loop(optim: OptimConfig) -> None:
    params, gradients = random_trees(0)
    expected = numpy_sgd(optim, params, gradients)
    for found, wanted in zip(run(optim, params, gradients), expected, strict=True):
        for key in SHAPES:
            np.testing.assert_allclose(found[key], wanted[key], rtol=2e-5, atol=1e-6)
        np.testing.assert_array_equal(found["frozen"], params["frozen"])


@pytest.mark.parametrize("optim", OPTIMS)
def test_sgd_equals_pytorch(optim: OptimConfig) -> None:
    torch = pytest.importorskip("torch")
    params, gradients = random_trees(1)
    history = run(optim, params, gradients)
    tensors = {key: torch.tensor(params[key]) for key in params if TRAINABLE[key]}
    sgd = torch.optim.SGD(
        tensors.values(), lr=1.0, momentum=optim.momentum, weight_decay=optim.weight_decay
    )
    for step, gradient in enumerate(gradients):
        for key, tensor in tensors.items():
            tensor.grad = torch.tensor(gradient[key])
        if optim.clip_norm:
            torch.nn.utils.clip_grad_norm_(tensors.values(), optim.clip_norm)
        sgd.param_groups[0]["lr"] = reference_learning_rate(optim, step, 2)
        sgd.step()
        for key, tensor in tensors.items():
            np.testing.assert_allclose(history[step][key], tensor.numpy(), rtol=2e-5, atol=1e-6)


def test_frozen_parameters_have_no_state_and_do_not_count_in_the_norm() -> None:
    params, gradients = random_trees(2)
    optim = replace(OPTIM, clip_norm=0.7)
    optimizer = make_optimizer(optim, optax.constant_schedule(0.1), TRAINABLE)
    state = optimizer.init(params)
    shapes = sorted(leaf.shape for leaf in jax.tree.leaves(state))
    assert shapes == sorted([(), SHAPES["a"], SHAPES["b"]]), "a step counter and two buffers"
    large = [gradient | {"frozen": gradient["frozen"] * 1e6} for gradient in gradients]
    for plain, other in zip(run(optim, params, gradients), run(optim, params, large), strict=True):
        jax.tree.map(np.testing.assert_array_equal, plain, other)


def test_the_state_is_the_same_tree_with_and_without_clipping() -> None:
    params, _ = random_trees(2)
    structures = {
        jax.tree.structure(
            make_optimizer(
                replace(OPTIM, clip_norm=norm), optax.constant_schedule(0.1), TRAINABLE
            ).init(params)
        )
        for norm in (0.0, 5.0)
    }
    assert len(structures) == 1


def test_a_frozen_gradient_that_is_not_finite_moves_nothing() -> None:
    params, gradients = random_trees(3)
    broken = [gradient | {"frozen": np.full((2, 2), np.nan, np.float32)} for gradient in gradients]
    for state in run(OPTIM, params, broken):
        assert all(jnp.isfinite(value).all() for value in state.values())
