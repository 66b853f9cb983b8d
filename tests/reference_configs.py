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
