"""The reference's figures: made by the original implementation."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np

from rpn_jax.config import (
    AnchorConfig,
    BackboneConfig,
    Config,
    ModelConfig,
    ProposalConfig,
    RPNHeadConfig,
    RPNLossConfig,
)
from rpn_jax.ops import anchor_validity, grid_anchors
from rpn_jax.structures import RPNOutputs
from tests.golden_files import FOLDER

CASES = ("r50_pytorch", "r50_caffe", "x101_32x4d", "r101_pytorch", "r50_caffe_c4")


@dataclass(frozen=True)
class Case:
    """One case: a config with every anchor sampled, head outputs, and what should come of them."""

    config: Config
    outputs: RPNOutputs
    image_sizes: np.ndarray
    boxes_xyxy: np.ndarray
    box_mask: np.ndarray
    fields: dict[str, np.ndarray]

    def anchors(self) -> np.ndarray:
        """What `grid_anchors` makes of this case, f32[K, 4]."""
        levels = jax.jit(
            lambda: grid_anchors(self.outputs.level_shapes, self.config.model.rpn.anchors)
        )()
        return np.concatenate(levels)

    def validity(self) -> np.ndarray:
        """What `anchor_validity` makes of this case, bool[B, K]."""
        config = self.config.model.rpn.anchors
        return np.asarray(
            jax.jit(lambda: anchor_validity(self.outputs.level_shapes, config, self.image_sizes))()
        )


@cache
def load_case(name: str) -> Case:
    with np.load(FOLDER / f"{name}.npz") as file:
        fields = {key: file[key] for key in file.files}
    config = _c4_config() if name.endswith("c4") else Config()
    config = Config(
        model=config.model,
        rpn_proposals=config.rpn_proposals,
        rpn_loss=RPNLossConfig(samples_per_image=0),
    )
    levels = range(len(config.model.rpn.anchors.strides))
    boxes = [fields[f"gt_{i}"] for i in range(len(fields["image_sizes"]))]
    padded = np.zeros((len(boxes), max(map(len, boxes)) + 2, 4), np.float32)
    for row, picture in zip(padded, boxes, strict=True):
        row[: len(picture)] = picture
    counts = np.array([len(picture) for picture in boxes])
    return Case(
        config=config,
        outputs=RPNOutputs(
            objectness=tuple(jnp.asarray(_channels_last(fields[f"cls_{j}"])) for j in levels),
            deltas=tuple(jnp.asarray(_deltas(fields[f"reg_{j}"])) for j in levels),
        ),
        image_sizes=fields["image_sizes"].astype(np.int32),
        boxes_xyxy=padded,
        box_mask=np.arange(padded.shape[1]) < counts[:, None],
        fields=fields,
    )


def _c4_config() -> Config:
    return Config(
        model=ModelConfig(
            backbone=BackboneConfig(style="caffe", num_stages=3, train_norm=False),
            neck="none",
            rpn=RPNHeadConfig(
                anchors=AnchorConfig(strides=(16,), scales=(2.0, 4.0, 8.0, 16.0, 32.0))
            ),
        ),
        rpn_proposals=ProposalConfig(nms_pre=12000, max_proposals=2000),
    )


def _channels_last(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array.transpose(0, 2, 3, 1))


def _deltas(array: np.ndarray) -> np.ndarray:
    channels_last = _channels_last(array)
    return channels_last.reshape(*channels_last.shape[:3], -1, 4)
