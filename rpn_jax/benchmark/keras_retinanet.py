"""Measure KerasHub's RetinaNet with ResNet-50-FPN on Keras's JAX backend.

It is another detector of about the same cost under the same compiler: one stage, 80 classes, levels
3 to 7. It runs in a child process, because Keras reads its backend when it is imported.
"""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import Any

import jax

from rpn_jax.benchmark.figures import Row, timing_columns
from rpn_jax.benchmark.inputs import Canvas, make_pictures
from rpn_jax.benchmark.process import NO_PREALLOCATION, answer, ask_child
from rpn_jax.benchmark.stages import NETWORK, WHOLE
from rpn_jax.benchmark.timing import Effort, compile_program, time_calls
from rpn_jax.config import Precision

PEER = "KerasHub RetinaNet"
CLASSES = 80
KERAS_DTYPES = {"float32": "float32", "tf32": "float32", "bfloat16": "bfloat16"}
"""Keras's name of the type of activations."""


def retinanet_rows(
    precision: Precision, batch_size: int, canvas: Canvas, effort: Effort
) -> list[Row]:
    """Measure the network, and the network with decoding and NMS, in a new process.

    Raises:
      ChildError: the process failed.
    """
    request = {
        "precision": precision,
        "batch_size": batch_size,
        "canvas": canvas,
        "effort": asdict(effort),
    }
    return ask_child(__name__, request, {"KERAS_BACKEND": "jax", **NO_PREALLOCATION})


def _child_rows(request: dict[str, Any]) -> list[Row]:
    precision, batch_size = request["precision"], request["batch_size"]
    height, width = request["canvas"]
    effort = Effort(**request["effort"])
    if precision == "float32":
        jax.config.update("jax_default_matmul_precision", "highest")
    model = _model((height, width), KERAS_DTYPES[precision])
    images = jax.numpy.asarray(make_pictures(batch_size, (height, width), seed=0), "float32")
    weights = (
        [variable.value for variable in model.trainable_variables],
        [variable.value for variable in model.non_trainable_variables],
    )

    def network(weights: Any, images: jax.Array) -> Any:
        return model.stateless_call(*weights, images)[0]

    def boxes(weights: Any, images: jax.Array) -> Any:
        return model.decode_predictions(network(weights, images), images)

    rows = []
    for stage, function in ((NETWORK, network), (WHOLE, boxes)):
        program = compile_program(jax.jit(function), weights, images)
        timing = time_calls(partial(program.run, weights, images), effort)
        rows.append({"stage": stage, **timing_columns(timing, batch_size)})
    return [{"peer": f"{PEER} {precision}", "batch": batch_size, **row} for row in rows]


def _model(canvas: Canvas, dtype: str) -> Any:
    import keras_hub

    models, shape = keras_hub.models, (*canvas, 3)
    resnet50 = models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[7],
        stackwise_num_filters=[64, 128, 256, 512],
        stackwise_num_blocks=[3, 4, 6, 3],
        stackwise_num_strides=[1, 2, 2, 2],
        block_type="bottleneck_block",
        image_shape=shape,
        dtype=dtype,
    )
    backbone = models.RetinaNetBackbone(
        image_encoder=resnet50,
        min_level=3,
        max_level=7,
        use_p5=False,
        image_shape=shape,
        dtype=dtype,
    )
    return models.RetinaNetObjectDetector(
        backbone=backbone, num_classes=CLASSES, bounding_box_format="xyxy", dtype=dtype
    )


if __name__ == "__main__":
    answer(_child_rows)
