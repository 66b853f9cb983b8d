"""Values of the eleven configs of the reference."""

from __future__ import annotations

REFERENCE = {
    "rpn_r50-caffe_fpn_1x_coco": (50, 1, 64, "caffe", False, 12),
    "rpn_r50_fpn_1x_coco": (50, 1, 64, "pytorch", True, 12),
    "rpn_r50_fpn_2x_coco": (50, 1, 64, "pytorch", True, 24),
    "rpn_r101-caffe_fpn_1x_coco": (101, 1, 64, "caffe", False, 12),
    "rpn_r101_fpn_1x_coco": (101, 1, 64, "pytorch", True, 12),
    "rpn_r101_fpn_2x_coco": (101, 1, 64, "pytorch", True, 24),
    "rpn_x101-32x4d_fpn_1x_coco": (101, 32, 4, "pytorch", True, 12),
    "rpn_x101-32x4d_fpn_2x_coco": (101, 32, 4, "pytorch", True, 24),
    "rpn_x101-64x4d_fpn_1x_coco": (101, 64, 4, "pytorch", True, 12),
    "rpn_x101-64x4d_fpn_2x_coco": (101, 64, 4, "pytorch", True, 24),
    "rpn_r50-caffe-c4_1x_coco": (50, 1, 64, "caffe", False, 12),
}
"""(depth, groups, base width, style, trained norms, epochs) by name."""

ELEVEN = tuple(REFERENCE)

REFERENCE_DETECTORS = (
    *(f"faster-rcnn_{name.removeprefix('rpn_')}" for name in REFERENCE if "_fpn_" in name),
    "faster-rcnn_r50-caffe_c4-1x_coco",
    "faster-rcnn_r50-caffe-dc5_1x_coco",
)
"""Names of the two-stage configs of the reference."""

SIX_SIDES = (640, 672, 704, 736, 768, 800)
MULTI_SCALE = {
    "r50-caffe-c4_ms-1x": ("r50-caffe_c4-1x", SIX_SIDES, 12, (8, 11)),
    "r50-caffe-dc5_ms-1x": ("r50-caffe-dc5_1x", SIX_SIDES, 12, (8, 11)),
    "r50-caffe-dc5_ms-3x": ("r50-caffe-dc5_1x", SIX_SIDES, 36, (28, 34)),
    "r50-caffe_fpn_ms-1x": ("r50-caffe_fpn_1x", SIX_SIDES, 12, (8, 11)),
    "r50-caffe_fpn_ms-2x": ("r50-caffe_fpn_1x", SIX_SIDES, 24, (16, 23)),
    **{
        f"{backbone}_fpn_ms-3x": (f"{backbone}_fpn_1x", tuple(range(640, 801)), 36, (27, 33))
        for backbone in ("r50-caffe", "r50", "r101-caffe", "r101", "x101-32x4d", "x101-64x4d")
    },
}
"""(config of one scale, short sides, epochs, decays) of the reference's multi-scale configs.

Names are without "faster-rcnn_" and "_coco". The reference's ms-3x repeats the data three times in
each of 12 epochs, with decays after 9 and 11 of them.
"""

X101_32X8D = "faster-rcnn_x101-32x8d_fpn_ms-3x_coco"
"""The only multi-scale config whose model no config of one scale has."""

REFERENCE_MULTI_SCALE = (*(f"faster-rcnn_{name}_coco" for name in MULTI_SCALE), X101_32X8D)
