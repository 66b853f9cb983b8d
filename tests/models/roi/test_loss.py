"""The loss of the second stage: against a plain loop, without positives, and over devices."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rpn_jax.models.roi.loss import class_accuracy, roi_loss
from rpn_jax.models.roi.targets import RoITargets
from rpn_jax.structures import RoIOutputs

CLASSES = 4
BATCH, BOXES = 4, 10


def random_case(seed: int, positives: float = 0.4) -> tuple[RoIOutputs, RoITargets]:
    rng = np.random.default_rng(seed)
    shape = (BATCH, BOXES)
    sampled = rng.random(shape) < 0.8
    is_positive = sampled & (rng.random(shape) < positives)
    labels = np.where(is_positive, rng.integers(0, CLASSES, shape), CLASSES).astype(np.int32)
    deltas = np.where(is_positive[..., None], rng.normal(size=(*shape, 4)), 0)
    targets = RoITargets(
        jnp.zeros((*shape, 4)), jnp.asarray(sampled), jnp.asarray(labels), jnp.float32(deltas)
    )
    logits = 10 * rng.normal(size=(*shape, CLASSES + 1))
    return RoIOutputs(
        jnp.float32(logits), jnp.float32(rng.normal(size=(*shape, CLASSES, 4)))
    ), targets


def looped(outputs: RoIOutputs, targets: RoITargets) -> tuple[float, float, float]:
    cross_entropy = box_error = right = 0.0
    count = 0
    logits, deltas = np.float64(outputs.class_logits), np.float64(outputs.deltas)
    for i, j in zip(*np.nonzero(np.asarray(targets.sampled)), strict=True):
        label = int(targets.labels[i, j])
        cross_entropy += np.logaddexp.reduce(logits[i, j]) - logits[i, j, label]
        right += logits[i, j].argmax() == label
        if label < CLASSES:
            box_error += np.abs(deltas[i, j, label] - np.float64(targets.deltas[i, j])).sum()
        count += 1
    return cross_entropy / count, box_error / count, 100 * right / count


@pytest.mark.parametrize("seed", range(3))
def test_against_the_loop(seed: int) -> None:
    outputs, targets = random_case(seed)
    losses = jax.jit(roi_loss)(outputs, targets)
    cross_entropy, box_error, accuracy = looped(outputs, targets)
    assert set(losses) == {"loss_cls", "loss_bbox"}
    np.testing.assert_allclose(losses["loss_cls"], cross_entropy, rtol=1e-5)
    np.testing.assert_allclose(losses["loss_bbox"], box_error, rtol=1e-5)
    np.testing.assert_allclose(jax.jit(class_accuracy)(outputs, targets), accuracy, rtol=1e-6)
    assert {loss.dtype for loss in losses.values()} == {jnp.dtype("float32")}


def test_without_positives_the_box_loss_is_zero() -> None:
    outputs, targets = random_case(0, positives=0)
    losses = roi_loss(outputs, targets)
    assert losses["loss_bbox"] == 0
    np.testing.assert_allclose(losses["loss_cls"], looped(outputs, targets)[0], rtol=1e-5)


def test_without_samples_both_losses_and_their_gradients_are_zero() -> None:
    outputs, targets = random_case(0)
    nothing = targets._replace(sampled=targets.sampled & False)

    def total(outputs: RoIOutputs) -> jax.Array:
        return sum(roi_loss(outputs, nothing).values(), jnp.zeros(()))

    loss, gradient = jax.value_and_grad(total)(outputs)
    assert loss == 0
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient))


def test_gradient_reaches_sampled_boxes_and_the_deltas_of_their_class_only() -> None:
    outputs, targets = random_case(1)

    def total(outputs: RoIOutputs) -> jax.Array:
        return sum(roi_loss(outputs, targets).values(), jnp.zeros(()))

    gradient = jax.grad(total)(outputs)
    reaches = np.any(np.asarray(gradient.class_logits) != 0, axis=-1)
    np.testing.assert_array_equal(reaches, targets.sampled)
    of_class = np.arange(CLASSES) == np.asarray(targets.labels)[..., None]
    np.testing.assert_array_equal(np.any(np.asarray(gradient.deltas) != 0, axis=-1), of_class)


def test_large_logits_stay_finite() -> None:
    outputs, targets = random_case(2)
    large = RoIOutputs(outputs.class_logits * 1e4, outputs.deltas)
    losses = roi_loss(large, targets)
    np.testing.assert_allclose(losses["loss_cls"], looped(large, targets)[0], rtol=1e-5)


def test_bfloat16_outputs_give_a_float32_loss() -> None:
    outputs, targets = random_case(3)
    rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16), outputs)
    for key, loss in roi_loss(rounded, targets).items():
        assert loss.dtype == jnp.float32
        widened = jax.tree.map(lambda x: x.astype(jnp.float32), rounded)
        assert loss == roi_loss(widened, targets)[key]


def test_the_mean_over_devices_is_the_loss_of_the_batch() -> None:
    outputs, targets = random_case(4)
    whole = roi_loss(outputs, targets)
    halves = jax.tree.map(lambda x: x.reshape(2, BATCH // 2, *x.shape[1:]), (outputs, targets))
    of_device = partial(roi_loss, axis_name="devices")
    losses = jax.vmap(of_device, axis_name="devices")(*halves)
    samples = np.sum(halves[1].sampled, axis=(1, 2))
    assert samples[0] != samples[1]  # Otherwise the average would not matter.
    for key, loss in losses.items():
        np.testing.assert_allclose(np.mean(loss), whole[key], rtol=1e-6)
