"""A model as one file: written by the example, and run by a program without rpn_jax."""

from __future__ import annotations

import runpy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rpn_jax
from rpn_jax.config import Config, RoIHeadConfig

pytest.importorskip("flatbuffers")

ROOT = Path(__file__).parents[1]
PROGRAM = """
import sys
import jax
import numpy as np
from jax import export

model = export.deserialize(bytearray(open("model.jax", "rb").read()))
arrays = jax.jit(model.call)(*np.load("pictures.npz").values())
np.savez("results.npz", *arrays)
assert "rpn_jax" not in sys.modules
"""


@pytest.mark.parametrize("classes", [0, 3])
def test_the_file_gives_the_boxes_of_the_model(
    classes: int, tiny_config: Config, tmp_path: Path
) -> None:
    proposals = replace(tiny_config.rpn_proposals, nms_pre=50, max_proposals=20)
    config = replace(tiny_config, rpn_proposals=proposals)
    if classes:
        roi = RoIHeadConfig(classes, ("a", "b", "c"), (1, 2, 3), channels=16, pooled_size=3)
        config = replace(config, model=replace(config.model, roi=roi))
    rpn_jax.save_variables(tmp_path / "weights", config, rpn_jax.init_variables(config, seed=1))
    main = runpy.run_path(str(ROOT / "examples" / "export_model.py"))["main"]
    main(str(tmp_path / "weights"), tmp_path / "model.jax", 2, ("cpu", "cuda"))

    pictures = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)
    sizes, factors = np.full((2, 2), 64, np.int32), np.ones((2, 2), np.float32)
    np.savez(tmp_path / "pictures.npz", pictures, sizes, factors)
    subprocess.run([sys.executable, "-c", PROGRAM], cwd=tmp_path, check=True)

    results = list(np.load(tmp_path / "results.npz").values())
    kind: Any = rpn_jax.Detector if classes else rpn_jax.Proposer
    for index, expected in enumerate(kind.load(tmp_path / "weights")(list(pictures))):
        boxes, scores, *labels, valid = (array[index] for array in results)
        assert valid.sum() == len(expected.scores) > 0
        np.testing.assert_allclose(boxes[valid], expected.boxes_xyxy, atol=1e-3)
        np.testing.assert_allclose(scores[valid], expected.scores, atol=1e-5)
        if classes:
            np.testing.assert_array_equal(labels[0][valid], expected.labels)
