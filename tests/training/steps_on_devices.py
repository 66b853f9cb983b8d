"""Three steps of a small RPN, every anchor sampled, on all local devices; prints its losses.

A separate program, because the number of devices is fixed when JAX starts.
"""

import json
from dataclasses import replace

import jax
import numpy as np

from rpn_jax.config import AnchorConfig, BackboneConfig, Config, ModelConfig, RPNHeadConfig
from rpn_jax.devices import devices_for_batch
from rpn_jax.models import RPN, init_variables
from rpn_jax.structures import Batch
from rpn_jax.training.objectives import rpn_loss_function
from rpn_jax.training.optim import build_optimizer, trainable_parameters
from rpn_jax.training.step import initial_state, make_step, replicate, split_batch

PICTURES, SIDE, BOXES, STEPS = 4, 64, 3, 3


def random_batch(rng):
    corners = rng.uniform(0, SIDE / 2, (PICTURES, BOXES, 2))
    sizes = rng.uniform(8, SIDE / 2, (PICTURES, BOXES, 2))
    return Batch(
        images=rng.integers(0, 256, (PICTURES, SIDE, SIDE, 3), np.uint8),
        image_sizes=np.array([[64, 64], [50, 64], [64, 40], [33, 33]], np.int32),
        scale_factors=np.ones((PICTURES, 2), np.float32),
        boxes_xyxy=np.concatenate([corners, corners + sizes], -1).astype(np.float32),
        labels=np.zeros((PICTURES, BOXES), np.int32),
        box_mask=np.arange(BOXES) < np.array([3, 1, 0, 2])[:, None],
        indices=np.arange(PICTURES, dtype=np.int32),
    )


def main():
    config = Config(
        model=ModelConfig(
            backbone=BackboneConfig(depth=18, num_stages=2, norm="batch", frozen_stages=-1),
            neck_channels=32,
            rpn=RPNHeadConfig(channels=32, anchors=AnchorConfig(strides=(4, 8, 16), scales=(4.0,))),
        )
    )
    config = replace(config, rpn_loss=replace(config.rpn_loss, samples_per_image=0))
    variables = init_variables(config)
    trainable = trainable_parameters(variables["params"], RPN(config.model).backbone)
    optimizer, schedule = build_optimizer(config.optim, trainable, 10, PICTURES)
    devices = devices_for_batch(PICTURES)
    step = make_step(rpn_loss_function(config), optimizer, schedule, seed=0, devices=devices)
    state = replicate(initial_state(variables, optimizer), devices)
    rng = np.random.default_rng(0)
    losses = []
    for _ in range(STEPS):
        state, metrics = step(state, split_batch(random_batch(rng)))
        losses.append([float(metrics[key]) for key in ("loss_rpn_cls", "loss_rpn_bbox")])
    norms = [float(np.linalg.norm(leaf)) for leaf in jax.tree.leaves(state.variables)]
    print(json.dumps({"devices": len(devices), "losses": losses, "weight_norms": norms}))


if __name__ == "__main__":
    main()
