"""An epoch and its evaluation on all local devices, resized on the host and on the devices.

This is a separate program, because JAX fixes the number of devices when it starts. Arguments: a
config and a folder to write to. For each way of resizing it writes the metrics and the proposals,
and the shape of one device's part of the pictures that the devices resized.
"""

import json
import sys
from pathlib import Path

import jax

from rpn_jax import Proposer, commands, load_config, load_variables
from rpn_jax.config import replace
from rpn_jax.data.catalog import open_dataset
from rpn_jax.data.on_device import finish_resize
from rpn_jax.data.pipeline import train_batches
from rpn_jax.data.plan import plan_training
from rpn_jax.training.metrics import METRICS_FILE
from rpn_jax.training.step import split_batch


def shard_shape(data):
    dataset = open_dataset(data, data.train_split)
    plan = plan_training(dataset, data)
    batch = finish_resize(split_batch(next(train_batches(dataset, plan, seed=0, first_step=0))))
    (shape,) = {shard.data.shape for shard in batch.images.addressable_shards}
    return shape


def main(config_file, folder):
    config = load_config(config_file)
    pictures = sorted(Path(config.data.root, config.data.eval_split).iterdir())
    metrics, proposals = {}, {}
    for name, resize in (("host", "host"), ("device", "device"), ("again", "device")):
        resized = replace(config, data=replace(config.data, resize=resize))
        workdir = folder / name
        commands.train(resized, workdir, resume=False)
        metrics[name] = [json.loads(x) for x in (workdir / METRICS_FILE).read_text().splitlines()]
        found = Proposer(resized, load_variables(folder / "host"))(pictures)
        proposals[name] = [
            {"boxes": each.boxes_xyxy.tolist(), "scores": each.scores.tolist()} for each in found
        ]
    results = {
        "devices": jax.device_count(),
        "metrics": metrics,
        "proposals": proposals,
        "shard": shard_shape(replace(config.data, resize="device")),
    }
    (folder / "results.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
