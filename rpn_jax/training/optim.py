"""The reference's SGD: learning-rate schedule, which parameters train, and the update."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import optax

if TYPE_CHECKING:
    from jax import Array
    from jax.typing import ArrayLike

    from rpn_jax.config import BackboneConfig, OptimConfig

STEM = 0


def learning_rate_schedule(
    optim: OptimConfig, steps_per_epoch: int, batch_size: int
) -> optax.Schedule:
    """Learning rate of each step, counted from 0.

    A linear warm-up from ``warmup_ratio`` to 1 over ``warmup_steps``, times ``decay_factor`` from
    the end of each of ``decay_epochs`` on (MMDetection 2.x: LrUpdaterHook with policy 'step').
    With ``auto_scale_lr`` all of it is scaled by ``batch_size / base_batch_size`` (Goyal et al.
    2017).

    Args:
      optim: the schedule's parameters.
      steps_per_epoch: steps of one pass over the training split.
      batch_size: pictures a step, over all devices.
    """
    scale = batch_size / optim.base_batch_size if optim.auto_scale_lr else 1.0
    decay = optax.piecewise_constant_schedule(
        optim.learning_rate * scale,
        {epoch * steps_per_epoch: optim.decay_factor for epoch in optim.decay_epochs},
    )
    if optim.warmup_steps == 0:
        return decay

    def schedule(step: ArrayLike) -> Array:
        progress = jnp.minimum(jnp.asarray(step) / optim.warmup_steps, 1.0)
        warmup = optim.warmup_ratio + (1 - optim.warmup_ratio) * progress
        return warmup * decay(step)

    return schedule


def trainable_parameters(params: Any, backbone: BackboneConfig) -> Any:
    """Which parameters train: a tree like ``params`` of bools.

    Untrained are the stem and the first stages of the backbone up to ``frozen_stages``, and all
    of the backbone's norms unless ``train_norm``.

    Args:
      params: the nested dicts of `rpn_jax.init_variables`, or their shapes.
      backbone: the config that ``params`` belong to.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, _: _trains([entry.key for entry in path], backbone), params
    )


def make_optimizer(
    optim: OptimConfig, schedule: optax.Schedule, trainable: Any
) -> optax.GradientTransformation:
    """SGD as PyTorch's: ``m = momentum * m + (g + weight_decay * p); p -= learning_rate * m``.

    The learning rate is that of the step and not part of ``m``. Gradients are first clipped to
    ``clip_norm``, the L2 norm over all trained parameters, if it is set. Parameters that do not
    train get an update of zero and have no state.

    Args:
      optim: momentum, weight decay and clipping.
      schedule: learning rate of each step.
      trainable: the tree of `trainable_parameters`.
    """
    # Either has an empty state, so a run may go on with another clip_norm.
    clip = optax.clip_by_global_norm(optim.clip_norm) if optim.clip_norm else optax.identity()
    sgd = optax.chain(
        clip,
        optax.add_decayed_weights(optim.weight_decay),
        optax.trace(optim.momentum),
        optax.scale_by_learning_rate(schedule),
    )
    labels = jax.tree.map(lambda trains: "trained" if trains else "frozen", trainable)
    return optax.partition({"trained": sgd, "frozen": optax.set_to_zero()}, labels)


def _trains(names: list[str], backbone: BackboneConfig) -> bool:
    if names[0] != "backbone":
        return True
    is_norm = names[-1] in ("scale", "bias")  # The backbone's convolutions have no bias.
    return _stage(names[1]) > backbone.frozen_stages and (backbone.train_norm or not is_norm)


def _stage(module: str) -> int:
    return int(module.removeprefix("layer")) if module.startswith("layer") else STEM
