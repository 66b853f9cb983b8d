"""List the key names of each model zoo and the published files. A new zoo is a new entry.

Keys are renamed to MMDetection's (``backbone.layer1.0.conv1.weight``, ``rpn_head.rpn_cls.bias``).
They differ from the paths of this package's variables only in the last part.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Style = Literal["pytorch", "caffe"]
"""Style of a backbone, as in `rpn_jax.config.BackboneConfig`. Both have the same shapes."""


@dataclass(frozen=True)
class Zoo:
    """A source of weights files, identified by their keys."""

    name: str
    """Name in reports and error messages."""
    kind: Literal["detector", "backbone"]
    """Parameters that a file holds: all of a detector, or those of its backbone."""
    key_patterns: tuple[str, ...]
    """Regular expressions. A file is of the first zoo in which each of them matches a key."""
    renames: tuple[tuple[str, str], ...]
    """(pattern, replacement) of each renaming. All are applied in this order."""
    left_out: tuple[tuple[str, str], ...]
    """(pattern, reason) of keys that are not used. The patterns match the zoo's names."""
    resnet_style: Style | None = None
    """Style of the ResNets, if all have the same. ResNeXts always have the style 'pytorch'."""


@dataclass(frozen=True)
class NamedFile:
    """A published weights file."""

    url: str
    style: Style


BATCH_COUNTER = (r"\.num_batches_tracked$", "number of training batches, which is not needed")
CLASSIFIER = "the ImageNet classifier"
BIAS_BEFORE_NORM = "bias of a convolution before a norm, which the original network does not have"

ZOOS = (
    Zoo(
        name="MMDetection",
        kind="detector",
        key_patterns=(r"^backbone\.", r"^(rpn_head|bbox_head)\.rpn_cls\."),
        renames=((r"^bbox_head\.rpn_(conv|cls|reg)\.", r"rpn_head.rpn_\1."),),
        left_out=(
            BATCH_COUNTER,
            (
                r"^(roi_head|bbox_head(?!\.rpn_)|mask_head|mask_iou_head|semantic_head|shared_head"
                r"|bbox_roi_extractor|mask_roi_extractor)\.",
                "second stage, which a region proposal network does not have",
            ),
            (
                r"^ema_(backbone|neck|rpn_head|roi_head|bbox_head)_",
                "buffer of the EMA hook with the weights of the last step; the averages have the "
                "normal keys",
            ),
            (r"^data_preprocessor\.", "pixel normalisation, which is set by the config"),
        ),
    ),
    Zoo(
        name="torchvision and open-mmlab ImageNet backbones",
        kind="backbone",
        key_patterns=(r"^conv1\.weight$", r"^layer1\.0\.conv1\.weight$"),
        renames=((r"^", "backbone."),),
        left_out=(
            BATCH_COUNTER,
            (r"^fc\.(weight|bias)$", CLASSIFIER),
            (r"(^|\.)(conv\d|downsample\.0)\.bias$", BIAS_BEFORE_NORM),
        ),
    ),
    Zoo(
        name="detectron2 ImageNet backbones",
        kind="backbone",
        key_patterns=(r"^stem\.conv1\.weight$", r"^res2\.0\.conv1\.weight$"),
        renames=(
            (r"^stem\.", ""),
            (r"^res2\.", "layer1."),
            (r"^res3\.", "layer2."),
            (r"^res4\.", "layer3."),
            (r"^res5\.", "layer4."),
            (r"shortcut\.norm\.", "downsample.1."),
            (r"shortcut\.", "downsample.0."),
            (r"conv(\d)\.norm\.", r"bn\1."),
            (r"^", "backbone."),
        ),
        left_out=(
            BATCH_COUNTER,
            (r"^(stem\.)?(fc|fc1000|linear)\.(weight|bias)$", CLASSIFIER),
            (r"(conv\d|shortcut)\.bias$", BIAS_BEFORE_NORM),
        ),
    ),
    Zoo(
        name="Detectron (Caffe2) ImageNet backbones",
        kind="backbone",
        key_patterns=(r"^conv1_w$", r"^res2_0_branch2a_w$"),
        renames=(
            (r"^conv1_", "conv1."),
            (r"^res_conv1_bn_", "bn1."),
            (r"^res2_(\d+)_", r"layer1.\1."),
            (r"^res3_(\d+)_", r"layer2.\1."),
            (r"^res4_(\d+)_", r"layer3.\1."),
            (r"^res5_(\d+)_", r"layer4.\1."),
            (r"branch1_bn_", "downsample.1."),
            (r"branch1_", "downsample.0."),
            (r"branch2a_bn_", "bn1."),
            (r"branch2b_bn_", "bn2."),
            (r"branch2c_bn_", "bn3."),
            (r"branch2a_", "conv1."),
            (r"branch2b_", "conv2."),
            (r"branch2c_", "conv3."),
            (r"\.(w|s|gamma)$", ".weight"),
            (r"\.(b|beta)$", ".bias"),
            (r"\.rm$", ".running_mean"),
            (r"\.riv$", ".running_var"),
            (r"^", "backbone."),
        ),
        left_out=(
            (r"^(fc1000|pred)_[wb]$", CLASSIFIER),
            (r"_momentum$", "the momentum of the optimiser"),
            (r"^(conv1|res\d_\d+_branch(1|2[abc]))_b$", BIAS_BEFORE_NORM),
        ),
        resnet_style="caffe",
    ),
)

STATE_DICT_ENTRIES = ("state_dict", "model", "blobs")
"""Entries that hold the weights, in files of PyTorch and MMDetection, detectron2, Detectron."""

ENTRIES_LEFT_OUT = {
    "optimizer": "the state of the optimiser",
    "optim_wrapper": "the state of the optimiser",
    "ema_state_dict": "weights of the last step; the EMA hook saves the averages in state_dict",
    "param_schedulers": "the state of the schedule",
    "message_hub": "the training log",
    "amp": "the state of the loss scaler",
}
"""Reasons why entries other than the weights are not read."""

TRAINING_LOG_OBJECTS = (
    "builtins.getattr",
    "mmengine.logging.history_buffer.HistoryBuffer",
    "numpy._core.multiarray._reconstruct",
    "numpy._core.multiarray.scalar",
    "numpy.core.multiarray._reconstruct",
    "numpy.core.multiarray.scalar",
    "numpy.dtype",
    "numpy.ndarray",
)
"""Objects in MMEngine's training logs and scores. A placeholder replaces each when a file is read,
and none of them is called."""

TORCHVISION_URL = "https://download.pytorch.org/models"
OPEN_MMLAB_URL = "https://download.openmmlab.com/pretrain/third_party"
MMDETECTION_RPN_URL = "https://download.openmmlab.com/mmdetection/v2.0/rpn"
DETECTRON2_URL = "https://dl.fbaipublicfiles.com/detectron2"

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
}
"""Published files by name. Backbones have the names in the configs of MMDetection and detectron2,
MMDetection's RPNs the names of their configs."""
