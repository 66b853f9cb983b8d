"""List the key names of each model zoo. A new zoo is a new entry.

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


BATCH_COUNTER = (r"\.num_batches_tracked$", "number of training batches, which is not needed")
CLASSIFIER = "the ImageNet classifier"
BIAS_BEFORE_NORM = "bias of a convolution before a norm, which the original network does not have"

SECOND_STAGE = r"roi_head\.(bbox_head\.(?!\d)|shared_head\.)"
"""Beginning of the keys of a Faster R-CNN's second stage. A Cascade R-CNN numbers its box heads."""

ZOOS = (
    Zoo(
        name="MMDetection",
        kind="detector",
        key_patterns=(r"^backbone\.", r"^(rpn_head|bbox_head)\.rpn_cls\."),
        renames=((r"^bbox_head\.rpn_(conv|cls|reg)\.", r"rpn_head.rpn_\1."),),
        left_out=(
            BATCH_COUNTER,
            (
                rf"^(?!{SECOND_STAGE}|bbox_head\.rpn_)(roi_head|bbox_head|mask_head|mask_iou_head"
                r"|semantic_head|shared_head|bbox_roi_extractor|mask_roi_extractor)\.",
                "part of a second stage that is not a Faster R-CNN's",
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
