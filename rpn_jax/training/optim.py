"""The reference's SGD: learning-rate schedule, parameters that train, and the update."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from rpn_jax.config import Config, OptimConfig
from rpn_jax.errors import UserError
from rpn_jax.models import build_detector
from rpn_jax.models.backbone import Backbone


def detector_optimizer(
    config: Config, params: Any, steps_per_epoch: int, batch_size: int
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """Return the optimiser and the schedule of a config's detector.

    Args:
      config: ``config.model`` says which parameters train, ``config.optim`` how.
      params: the nested dicts of `rpn_jax.init_variables`, or their shapes.
      steps_per_epoch, batch_size: as in `build_optimizer`.
    """
    trainable = trainable_parameters(params, build_detector(config.model).backbone)
    return build_optimizer(config.optim, trainable, steps_per_epoch, batch_size)


def build_optimizer(
    optim: OptimConfig, trainable: Any, steps_per_epoch: int, batch_size: int
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """Return the optimiser of `make_optimizer` and its `learning_rate_schedule`.

    Args:
      optim: settings of the optimiser and the schedule.
      trainable: the tree that `trainable_parameters` returned.
      steps_per_epoch: steps of one pass over the training split.
      batch_size: pictures in a step, over all devices.
    """
    schedule = learning_rate_schedule(optim, steps_per_epoch, batch_size)
    return make_optimizer(optim, schedule, trainable), schedule


def learning_rate_schedule(
    optim: OptimConfig, steps_per_epoch: int, batch_size: int
) -> optax.Schedule:
    """Return the function from a step, counted from 0, to its learning rate.

    The warm-up rises linearly from ``warmup_ratio`` to 1 over ``warmup_steps``. At the end of each
    of ``decay_epochs`` the rate is multiplied by ``decay_factor`` (MMDetection 2.x: LrUpdaterHook
    with policy 'step'). With ``auto_scale_lr`` the rate is also multiplied by ``batch_size /
    base_batch_size`` (Goyal et al. 2017). Arguments are those of `build_optimizer`.
    """
    scale = batch_size / optim.base_batch_size if optim.auto_scale_lr else 1.0
    decay = optax.piecewise_constant_schedule(
        optim.learning_rate * scale,
        {epoch * steps_per_epoch: optim.decay_factor for epoch in optim.decay_epochs},
    )
    if optim.warmup_steps == 0:
        return decay

    def schedule(step: ArrayLike) -> jax.Array:
        progress = jnp.minimum(jnp.asarray(step) / optim.warmup_steps, 1.0)
        warmup = optim.warmup_ratio + (1 - optim.warmup_ratio) * progress
        return warmup * decay(step)

    return schedule


def trainable_parameters(params: Any, backbone: Backbone) -> Any:
    """Return a tree like ``params`` with True for each parameter that trains.

    The backbone decides for its own parameters, which are under the key "backbone", and for its
    last stage in a second stage's head. All others train.

    Args:
      params: the nested dicts of `rpn_jax.init_variables`, or their shapes.
      backbone: the backbone of the model, such as ``build_detector(config.model).backbone``.
    """

    def trains(path: tuple[jax.tree_util.DictKey, ...], _: Any) -> bool:
        names = tuple(entry.key for entry in path)
        for owner in (("backbone",), ("roi_head", "shared_head")):
            if names[: len(owner)] == owner:
                path_in_backbone = names[len(owner) :]
                is_trained = backbone.trains(path_in_backbone)
                if not isinstance(is_trained, bool):
                    raise UserError(
                        f"backbone: trains({path_in_backbone}) returns {is_trained!r}: must be "
                        "True or False"
                    )
                return is_trained
        return True

    return jax.tree_util.tree_map_with_path(trains, params)


def make_optimizer(
    optim: OptimConfig, schedule: optax.Schedule, trainable: Any
) -> optax.GradientTransformation:
    """Return PyTorch's SGD: ``m = momentum * m + (g + weight_decay * p); p -= learning_rate * m``.

    ``m`` does not contain the learning rate, so a new rate takes effect at once. If ``clip_norm``
    is set, gradients are first scaled so that their L2 norm, over all trained parameters, is at
    most ``clip_norm``. Parameters that do not train get an update of zero and have no state.

    Args:
      optim: momentum, weight decay and clipping.
      schedule: learning rate of each step.
      trainable: the tree that `trainable_parameters` returned.
    """
    # Both have an empty state, so a run can be resumed with another clip_norm.
    clip = optax.clip_by_global_norm(optim.clip_norm) if optim.clip_norm else optax.identity()
    sgd = optax.chain(
        clip,
        optax.add_decayed_weights(optim.weight_decay),
        optax.trace(optim.momentum),
        optax.scale_by_learning_rate(schedule),
    )
    labels = jax.tree.map(lambda trains: "trained" if trains else "frozen", trainable)
    return optax.partition({"trained": sgd, "frozen": optax.set_to_zero()}, labels)
