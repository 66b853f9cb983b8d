"""Count the collectives of inference on all local devices, and compare with one device.

A separate program, because the number of devices is fixed when JAX starts. It compiles the forms
of operations that GPUs run, and prints JSON.
"""

import json
import re
import sys
from dataclasses import replace
from functools import partial

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from rpn_jax.config import BackboneConfig, Config, load_config
from rpn_jax.devices import device_mesh
from rpn_jax.inference.batches import PICTURE_AXIS, on_all_devices
from rpn_jax.inference.forward import prepare_variables, propose_pictures
from rpn_jax.inference.proposer import make_propose_function
from rpn_jax.models import init_variables
from tools.gpu.forms import use_default_forms

COLLECTIVE = re.compile(
    r"= \S+ (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)"
)
SIDE, PICTURES = 64, 4
BACKBONES = {
    "resnet": BackboneConfig(depth=18, num_stages=2),
    "resnext": BackboneConfig(depth=50, num_stages=2, groups=32, base_width=4),
}


def small_config(name: str) -> Config:
    config = load_config("rpn_demo")
    config = replace(config, rpn_proposals=replace(config.rpn_proposals, nms_pre=100))
    anchors = replace(config.model.rpn.anchors, strides=(4, 8, 16))
    rpn = replace(config.model.rpn, anchors=anchors)
    return replace(config, model=replace(config.model, backbone=BACKBONES[name], rpn=rpn))


def main() -> None:
    use_default_forms()
    config = small_config(sys.argv[1])
    rng = np.random.default_rng(0)
    host_batch = (
        rng.integers(0, 256, (PICTURES, SIDE, SIDE, 3), np.uint8),
        np.array([[64, 64], [50, 64], [64, 40], [33, 33]], np.int32),
        np.ones((PICTURES, 2), np.float32),
    )
    pictures = NamedSharding(device_mesh(PICTURE_AXIS), PartitionSpec(PICTURE_AXIS))
    prepared = prepare_variables(config, init_variables(config), on_all_devices())
    arguments = (prepared, *jax.device_put(host_batch, pictures))
    shared = make_propose_function(config).lower(*arguments).compile()  # type: ignore[attr-defined]
    partitioned = jax.jit(partial(propose_pictures, config)).lower(*arguments).compile()
    first = jax.local_devices()[0]
    alone = jax.jit(partial(propose_pictures, config))(*jax.device_put(arguments, first))
    found = shared(*arguments)
    print(
        json.dumps(
            {
                "devices": jax.local_device_count(),
                "collectives": len(COLLECTIVE.findall(shared.as_text())),
                "collectives_without_shard_map": len(COLLECTIVE.findall(partitioned.as_text())),
                "same_boxes": np.array_equal(found.valid, alone.valid)
                and np.allclose(found.boxes, alone.boxes, atol=1e-3),
                "valid": int(found.valid.sum()),
            }
        )
    )


if __name__ == "__main__":
    main()
