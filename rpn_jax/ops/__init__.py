"""Array operations of detectors: pure functions with fixed shapes, for jit and vmap."""

from rpn_jax.ops.anchors import anchor_validity, base_anchors, grid_anchors, level_validity
from rpn_jax.ops.assign import assign_anchors
from rpn_jax.ops.box_coder import decode_boxes, encode_boxes
from rpn_jax.ops.boxes import box_area, box_iou, clip_boxes
from rpn_jax.ops.nms import nms, nms_per_class, nms_per_level
from rpn_jax.ops.pixels import normalize_images
from rpn_jax.ops.resize import resize_bilinear
from rpn_jax.ops.roi_align import assign_levels, roi_align
from rpn_jax.ops.sample import sample_anchors
from rpn_jax.ops.topk import masked_top_k

__all__ = [
    "anchor_validity",
    "assign_anchors",
    "assign_levels",
    "base_anchors",
    "box_area",
    "box_iou",
    "clip_boxes",
    "decode_boxes",
    "encode_boxes",
    "grid_anchors",
    "level_validity",
    "masked_top_k",
    "nms",
    "nms_per_class",
    "nms_per_level",
    "normalize_images",
    "resize_bilinear",
    "roi_align",
    "sample_anchors",
]
