"""Write a trained model as one file, which runs without rpn_jax.

python examples/export_model.py runs/mine model.jax
python examples/export_model.py runs/mine model.jax --platforms cpu cuda --batch-size 8

The file holds the network as StableHLO, with its weights. The programs that write and read it need
JAX and ``pip install flatbuffers``. Another program runs it like this:

    import jax
    from jax import export

    model = export.deserialize(bytearray(open("model.jax", "rb").read()))
    arrays = jax.jit(model.call)(images, image_sizes, scale_factors)

Arguments of the function:

    images          uint8[B, H, W, 3], RGB. A picture is resized to fit, in the upper left corner,
                    with zeros beyond it.
    image_sizes     int32[B, 2], (height, width) of each picture after the resize
    scale_factors   float32[B, 2], (width, height) after the resize divided by those before it

It returns boxes (xyxy, pixels of the pictures before the resize), scores, the class of each box if
the model has classes, and True where a box exists.
"""

import sys
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import tyro
from jax import export
from jax.sharding import SingleDeviceSharding

from rpn_jax.errors import exit_code, writing
from rpn_jax.inference.forward import detect_pictures, prepare_variables, propose_pictures
from rpn_jax.weights.models import load_model


def main(
    weights: tyro.conf.Positional[str],
    out: tyro.conf.Positional[Path],
    batch_size: int = 1,
    platforms: tuple[Literal["cpu", "cuda"], ...] = ("cpu",),
) -> None:
    """Write the model of a folder of weights, a run or a .pth file to one file.

    Args:
      weights: what --weights of the commands takes.
      out: file to write.
      batch_size: number of pictures B in a batch.
      platforms: what the file can run on.
    """
    config, variables = load_model(weights)
    prepared = prepare_variables(config, variables, SingleDeviceSharding(jax.devices()[0]))

    def run(*pictures: jax.Array) -> tuple[jax.Array, ...]:
        if config.model.roi is None:
            proposals = propose_pictures(config, prepared, *pictures)
            return proposals.boxes, proposals.scores, proposals.valid
        found = detect_pictures(config, prepared, *pictures)
        return found.boxes, found.scores, found.labels, found.valid

    height, width = config.data.canvases[0]
    exported = export.export(jax.jit(run), platforms=platforms)(
        jax.ShapeDtypeStruct((batch_size, height, width, 3), jnp.uint8),
        jax.ShapeDtypeStruct((batch_size, 2), jnp.int32),
        jax.ShapeDtypeStruct((batch_size, 2), jnp.float32),
    )
    with writing(out):
        out.write_bytes(exported.serialize())
    print(f"{out}: batches of {batch_size} pictures of {height}x{width} pixels (height x width)")


if __name__ == "__main__":
    sys.exit(exit_code(lambda: tyro.cli(main) or 0))
