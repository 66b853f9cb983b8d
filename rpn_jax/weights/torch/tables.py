"""The names that weights have in each zoo, as data. A further zoo is a further entry.

Keys are brought to MMDetection's names (``backbone.layer1.0.conv1.weight``,
``rpn_head.rpn_cls.bias``), which are those of this package but for the last word.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Style = Literal["pytorch", "caffe"]
"""Where a bottleneck strides, as `rpn_jax.config.BackboneConfig` has it; shapes do not tell."""


@dataclass(frozen=True)
class Zoo:
    """Where a file may come from, told by its keys."""

    name: str
    """For reports and errors."""
    kind: Literal["detector", "backbone"]
    """A detector fills every parameter; a backbone fills the backbone's."""
    marks: tuple[str, ...]
    """Patterns that some key each must match; the first zoo with all its marks is taken."""
    renames: tuple[tuple[str, str], ...]
    """(pattern, replacement), all applied, in this order."""
    left_out: tuple[tuple[str, str], ...]
    """(pattern, reason) for keys that are rightly not used, tried on the zoo's own names."""
    resnet_style: Style | None = None
    """Of its ResNets, where all have the same; ResNeXts stride as PyTorch's do everywhere."""


@dataclass(frozen=True)
class NamedFile:
    """A published file."""

    url: str
    style: Style


BATCH_COUNTER = (r"\.num_batches_tracked$", "counts training batches; nothing reads it")
CLASSIFIER = "the ImageNet classifier"
BIAS_BEFORE_NORM = "bias of a convolution before a norm; the original has none there and drops it"

ZOOS = (
    Zoo(
        name="MMDetection",
        kind="detector",
        marks=(r"^backbone\.", r"^(rpn_head|bbox_head)\.rpn_cls\."),
        renames=((r"^bbox_head\.rpn_(conv|cls|reg)\.", r"rpn_head.rpn_\1."),),
        left_out=(
            BATCH_COUNTER,
            (
                r"^(roi_head|bbox_head(?!\.rpn_)|mask_head|mask_iou_head|semantic_head|shared_head"
                r"|bbox_roi_extractor|mask_roi_extractor)\.",
                "second stage; a region proposal network ends before it",
            ),
            (
                r"^ema_(backbone|neck|rpn_head|roi_head|bbox_head)_",
                "buffer of the EMA hook, which saves the averages under the plain keys "
                "and the last step's weights here",
            ),
            (r"^data_preprocessor\.", "pixel normalisation; the config's pixels hold it"),
        ),
    ),
    Zoo(
        name="torchvision and open-mmlab ImageNet backbones",
        kind="backbone",
        marks=(r"^conv1\.weight$", r"^layer1\.0\.conv1\.weight$"),
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
        marks=(r"^stem\.conv1\.weight$", r"^res2\.0\.conv1\.weight$"),
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
        marks=(r"^conv1_w$", r"^res2_0_branch2a_w$"),
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
            (r"_momentum$", "the optimiser's momentum"),
            (r"^(conv1|res\d_\d+_branch(1|2[abc]))_b$", BIAS_BEFORE_NORM),
        ),
        resnet_style="caffe",
    ),
)

STATE_DICT_ENTRIES = ("state_dict", "model", "blobs")
"""Entries of a file that hold its weights: PyTorch and MMDetection, detectron2, Detectron."""

ENTRIES_LEFT_OUT = {
    "optimizer": "the optimiser's state",
    "optim_wrapper": "the optimiser's state",
    "ema_state_dict": "the EMA hook saves the averages in state_dict and the last step's weights "
    "here",
    "param_schedulers": "the schedule's state",
    "message_hub": "the training log",
    "amp": "the loss scaler's state",
}
"""Entries beside the weights, and why they are not read."""

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
"""What MMEngine's training logs and scores name in a ``.pth`` file; an inert stand-in is put in
for each, and none of them is ever called."""

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
"""Published files by name: backbones as MMDetection's and detectron2's configs write them, and
MMDetection's RPNs by the names of their configs."""
