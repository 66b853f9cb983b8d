"""List the published weights files, by name."""

from __future__ import annotations

from dataclasses import dataclass

from rpn_jax.config import PixelConfig
from rpn_jax.weights.torch.tables import Style


@dataclass(frozen=True)
class NamedFile:
    """A published weights file."""

    url: str
    style: Style
    pixels: PixelConfig | None = None
    """Normalisation of pixels that the file was trained with. None: that of the matching config."""


TORCHVISION_URL = "https://download.pytorch.org/models"
OPEN_MMLAB_URL = "https://download.openmmlab.com/pretrain/third_party"
MMDETECTION_RPN_URL = "https://download.openmmlab.com/mmdetection/v2.0/rpn"
MMDETECTION_FASTER_RCNN_URL = "https://download.openmmlab.com/mmdetection/v2.0/faster_rcnn"
DETECTRON2_URL = "https://dl.fbaipublicfiles.com/detectron2"

FASTER_RCNNS = {
    "r50_fpn_1x_coco": ("r50_fpn_1x_coco", "_20200130-047c8118"),
    "r50_fpn_2x_coco": ("r50_fpn_2x_coco", "_bbox_mAP-0.384_20200504_210434-a5d8aa15"),
    "r50-caffe_fpn_1x_coco": ("r50_caffe_fpn_1x_coco", "_bbox_mAP-0.378_20200504_180032-c5925ee5"),
    "r101_fpn_1x_coco": ("r101_fpn_1x_coco", "_20200130-f513f705"),
    "r101_fpn_2x_coco": ("r101_fpn_2x_coco", "_bbox_mAP-0.398_20200504_210455-1d2dac9c"),
    "r101-caffe_fpn_1x_coco": (
        "r101_caffe_fpn_1x_coco",
        "_bbox_mAP-0.398_20200504_180057-b269e9dd",
    ),
    "x101-32x4d_fpn_1x_coco": ("x101_32x4d_fpn_1x_coco", "_20200203-cff10310"),
    "x101-32x4d_fpn_2x_coco": (
        "x101_32x4d_fpn_2x_coco",
        "_bbox_mAP-0.412_20200506_041400-64a12c0b",
    ),
    "x101-64x4d_fpn_1x_coco": ("x101_64x4d_fpn_1x_coco", "_20200204-833ee192"),
    "x101-64x4d_fpn_2x_coco": ("x101_64x4d_fpn_2x_coco", "_20200512_161033-5961fa95"),
    "r50-caffe_c4-1x_coco": ("r50_caffe_c4_1x_coco", "_20220316_150152-3f885b85"),
    "r50-caffe-c4_ms-1x_coco": ("r50_caffe_c4_mstrain_1x_coco", "_20220316_150527-db276fed"),
    "r50-caffe-dc5_1x_coco": ("r50_caffe_dc5_1x_coco", "_20201030_151909-531f0f43"),
    "r50-caffe-dc5_ms-1x_coco": ("r50_caffe_dc5_mstrain_1x_coco", "_20201028_233851-b33d21b9"),
    "r50-caffe-dc5_ms-3x_coco": ("r50_caffe_dc5_mstrain_3x_coco", "_20201028_002107-34a53b2c"),
    "r50-caffe_fpn_ms-2x_coco": (
        "r50_caffe_fpn_mstrain_2x_coco",
        "_bbox_mAP-0.397_20200504_231813-10b2de58",
    ),
    "r50-caffe_fpn_ms-3x_coco": ("r50_caffe_fpn_mstrain_3x_coco", "_20210526_095054-1f77628b"),
    "r50_fpn_ms-3x_coco": ("r50_fpn_mstrain_3x_coco", "_20210524_110822-e10bd31c"),
    "r101_fpn_ms-3x_coco": ("r101_fpn_mstrain_3x_coco", "_20210524_110822-4d4d2ca8"),
    "r101-caffe_fpn_ms-3x_coco": ("r101_caffe_fpn_mstrain_3x_coco", "_20210526_095742-a7ae426d"),
    "x101-32x4d_fpn_ms-3x_coco": ("x101_32x4d_fpn_mstrain_3x_coco", "_20210524_124151-16b9b260"),
    "x101-32x8d_fpn_ms-3x_coco": ("x101_32x8d_fpn_mstrain_3x_coco", "_20210604_182954-002e082a"),
    "x101-64x4d_fpn_ms-3x_coco": ("x101_64x4d_fpn_mstrain_3x_coco", "_20210524_124528-26c63de6"),
}
"""Folder and rest of the file name of MMDetection's Faster R-CNNs, both without "faster_rcnn_"."""

TRAINED_ON_RGB = ("r101_caffe_fpn_mstrain_3x_coco",)
"""Folders whose config combines a backbone of the style 'caffe' with the pixels of 'pytorch'."""


def _faster_rcnn(folder: str, rest: str) -> NamedFile:
    url = f"{MMDETECTION_FASTER_RCNN_URL}/faster_rcnn_{folder}/faster_rcnn_{folder}{rest}.pth"
    pixels = PixelConfig() if folder in TRAINED_ON_RGB else None
    return NamedFile(url, "caffe" if "caffe" in folder else "pytorch", pixels)


NAMED_FILES = {
    "torchvision://resnet18": NamedFile(f"{TORCHVISION_URL}/resnet18-f37072fd.pth", "pytorch"),
    "torchvision://resnet34": NamedFile(f"{TORCHVISION_URL}/resnet34-b627a593.pth", "pytorch"),
    "torchvision://resnet50": NamedFile(f"{TORCHVISION_URL}/resnet50-0676ba61.pth", "pytorch"),
    "torchvision://resnet101": NamedFile(f"{TORCHVISION_URL}/resnet101-63fe2227.pth", "pytorch"),
    "torchvision://resnet152": NamedFile(f"{TORCHVISION_URL}/resnet152-394f9c45.pth", "pytorch"),
    "open-mmlab://resnext101_32x4d": NamedFile(
        f"{OPEN_MMLAB_URL}/resnext101_32x4d-a5af3160.pth", "pytorch"
    ),
    "open-mmlab://resnext101_64x4d": NamedFile(
        f"{OPEN_MMLAB_URL}/resnext101_64x4d-ee2c6f71.pth", "pytorch"
    ),
    "open-mmlab://detectron2/resnext101_32x8d": NamedFile(
        f"{OPEN_MMLAB_URL}/resnext101_32x8d-1516f1aa.pth", "pytorch"
    ),
    "open-mmlab://detectron/resnet50_caffe": NamedFile(
        f"{OPEN_MMLAB_URL}/resnet50_caffe-788b5fa3.pth", "caffe"
    ),
    "open-mmlab://detectron/resnet101_caffe": NamedFile(
        f"{OPEN_MMLAB_URL}/resnet101_caffe-3ad79236.pth", "caffe"
    ),
    "open-mmlab://detectron2/resnet50_caffe": NamedFile(
        f"{OPEN_MMLAB_URL}/resnet50_msra-5891d200.pth", "caffe"
    ),
    "open-mmlab://detectron2/resnet101_caffe": NamedFile(
        f"{OPEN_MMLAB_URL}/resnet101_msra-6cc46731.pth", "caffe"
    ),
    "detectron2://ImageNetPretrained/MSRA/R-50.pkl": NamedFile(
        f"{DETECTRON2_URL}/ImageNetPretrained/MSRA/R-50.pkl", "caffe"
    ),
    "detectron2://ImageNetPretrained/MSRA/R-101.pkl": NamedFile(
        f"{DETECTRON2_URL}/ImageNetPretrained/MSRA/R-101.pkl", "caffe"
    ),
    "mmdetection://rpn_r50-caffe_fpn_1x_coco": NamedFile(
        f"{MMDETECTION_RPN_URL}/rpn_r50_caffe_fpn_1x_coco/"
        "rpn_r50_caffe_fpn_1x_coco_20200531-5b903a37.pth",
        "caffe",
    ),
    "mmdetection://rpn_r50_fpn_1x_coco": NamedFile(
        f"{MMDETECTION_RPN_URL}/rpn_r50_fpn_1x_coco/rpn_r50_fpn_1x_coco_20200218-5525fa2e.pth",
        "pytorch",
    ),
    "mmdetection://rpn_r50_fpn_2x_coco": NamedFile(
        f"{MMDETECTION_RPN_URL}/rpn_r50_fpn_2x_coco/rpn_r50_fpn_2x_coco_20200131-0728c9b3.pth",
        "pytorch",
    ),
    "mmdetection://rpn_r101-caffe_fpn_1x_coco": NamedFile(
        f"{MMDETECTION_RPN_URL}/rpn_r101_caffe_fpn_1x_coco/"
        "rpn_r101_caffe_fpn_1x_coco_20200531-0629a2e2.pth",
        "caffe",
    ),
    "mmdetection://rpn_r101_fpn_1x_coco": NamedFile(
        f"{MMDETECTION_RPN_URL}/rpn_r101_fpn_1x_coco/rpn_r101_fpn_1x_coco_20200131-2ace2249.pth",
        "pytorch",
    ),
    "mmdetection://rpn_r101_fpn_2x_coco": NamedFile(
        f"{MMDETECTION_RPN_URL}/rpn_r101_fpn_2x_coco/rpn_r101_fpn_2x_coco_20200131-24e3db1a.pth",
        "pytorch",
    ),
    "mmdetection://rpn_x101-32x4d_fpn_1x_coco": NamedFile(
        f"{MMDETECTION_RPN_URL}/rpn_x101_32x4d_fpn_1x_coco/"
        "rpn_x101_32x4d_fpn_1x_coco_20200219-b02646c6.pth",
        "pytorch",
    ),
    "mmdetection://rpn_x101-32x4d_fpn_2x_coco": NamedFile(
        f"{MMDETECTION_RPN_URL}/rpn_x101_32x4d_fpn_2x_coco/"
        "rpn_x101_32x4d_fpn_2x_coco_20200208-d22bd0bb.pth",
        "pytorch",
    ),
    "mmdetection://rpn_x101-64x4d_fpn_1x_coco": NamedFile(
        f"{MMDETECTION_RPN_URL}/rpn_x101_64x4d_fpn_1x_coco/"
        "rpn_x101_64x4d_fpn_1x_coco_20200208-cde6f7dd.pth",
        "pytorch",
    ),
    "mmdetection://rpn_x101-64x4d_fpn_2x_coco": NamedFile(
        f"{MMDETECTION_RPN_URL}/rpn_x101_64x4d_fpn_2x_coco/"
        "rpn_x101_64x4d_fpn_2x_coco_20200208-c65f524f.pth",
        "pytorch",
    ),
    **{
        f"mmdetection://faster-rcnn_{name}": _faster_rcnn(*parts)
        for name, parts in FASTER_RCNNS.items()
    },
}
"""Published files by name. Backbones have the names in the configs of MMDetection and detectron2,
MMDetection's detectors the names of their configs."""
