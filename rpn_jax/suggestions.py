"""Find the flag that a user meant: a similar one, or ours for that of another detection tool."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

CLOSE = 0.75
"""Smallest similarity, from 0 to 1, of a flag that is suggested."""

ANNOTATIONS = "use --data.train-annotations FILE to train, --data.eval-annotations FILE to evaluate"

FIELDS = "every field of the config is a flag, such as --optim.learning-rate 0.01"

FLAGS_OF_OTHER_TOOLS: dict[str, tuple[str, ...]] = {
    "--accumulate": ("--train.gradient-parts",),
    "--amp": ("--model.precision bfloat16", "--precisions bfloat16"),
    "--batch": ("--data.batch-size", "--batch-sizes"),
    "--batch-size": ("--data.batch-size", "--batch-sizes"),
    "--checkpoint": ("--weights", "--train.init-weights"),
    "--ckpt": ("--weights", "--train.init-weights"),
    "--conf": ("--min-score",),
    "--conf-thres": ("--min-score",),
    "--data": ("--data.root",),
    "--data-root": ("--data.root",),
    "--dataset": ("--data.root",),
    "--device": ("--platform",),
    "--ema": ("--train.ema-decay",),
    "--epochs": ("--train.epochs",),
    "--fp16": ("--model.precision bfloat16", "--precisions bfloat16"),
    "--freeze": ("--model.backbone.frozen-stages",),
    "--half": ("--model.precision bfloat16", "--precisions bfloat16"),
    "--img-scale": ("--data.scale LONG SHORT", "--size HEIGHT WIDTH"),
    "--img-size": ("--data.scale LONG SHORT", "--size HEIGHT WIDTH"),
    "--imgsz": ("--data.scale LONG SHORT", "--size HEIGHT WIDTH"),
    "--iou": ("--roi-detections.nms-iou", "--rpn-proposals.nms-iou"),
    "--load-from": ("--weights", "--train.init-weights"),
    "--lr": ("--optim.learning-rate",),
    "--lr0": ("--optim.learning-rate",),
    "--max-det": ("--max",),
    "--max-epochs": ("--train.epochs",),
    "--model": ("--weights", "--train.init-weights"),
    "--num-workers": ("--data.loader-threads",),
    "--out-dir": ("--out", "--workdir"),
    "--output": ("--out", "--workdir"),
    "--output-dir": ("--out", "--workdir"),
    "--pretrained": ("--train.init-weights", "--weights"),
    "--project": ("--workdir", "--out"),
    "--resume-from": ("--resume", "--weights"),
    "--score-thr": ("--min-score",),
    "--show": ("--draw N",),
    "--show-dir": ("--draw N",),
    "--warmup": ("--optim.warmup-steps",),
    "--wd": ("--optim.weight-decay",),
    "--work-dir": ("--workdir", "--out"),
    "--workers": ("--data.loader-threads",),
}
"""Flags of MMDetection, detectron2 and Ultralytics, with our flags for the same, best first.

A flag is only suggested where the command has it.
"""

ADVICE = {
    "--ann-file": ANNOTATIONS,
    "--annotations": ANNOTATIONS,
    "--cfg": "Put CONFIG behind the verb: a name, or the path of a .py or .json file",
    "--cfg-options": FIELDS,
    "--config": "Put CONFIG behind the verb: a name, or the path of a .py or .json file",
    "--config-file": "Put CONFIG behind the verb: a name, or the path of a .py or .json file",
    "--eval-only": "use the verb 'evaluate'",
    "--gpu-ids": "choose GPUs with the environment variable CUDA_VISIBLE_DEVICES",
    "--gpus": "all GPUs are used. Choose them with the environment variable CUDA_VISIBLE_DEVICES",
    "--input": "name the pictures without a flag",
    "--launcher": "none is needed, all GPUs are used",
    "--num-gpus": "all GPUs are used. Choose them with CUDA_VISIBLE_DEVICES",
    "--options": FIELDS,
    "--opts": FIELDS,
    "--source": "name the pictures without a flag",
}
"""What to do instead of a flag for which no flag of ours is the answer."""


def suggestion(flag: str, known: Sequence[str]) -> str:
    """Return what to type instead of an unknown flag, as the end of a message, or ''.

    Args:
      flag: the unknown flag, with dashes, for example ``--lr``.
      known: flags of the command.
    """
    if flag in ADVICE:
        return f": {ADVICE[flag]}"
    # The flag of another tool may have a section of ours in front of it, as in --optim.lr.
    theirs = flag if flag in FLAGS_OF_OTHER_TOOLS else f"--{_last_part(flag)}"
    for ours in FLAGS_OF_OTHER_TOOLS.get(theirs, ()):
        if ours.partition(" ")[0] in known:
            return f"; use '{ours}'"
    for candidates in _by_closeness(flag, known):
        if candidates:
            return f"; did you mean '{candidates[0]}'?"
    return ""


def _by_closeness(flag: str, known: Sequence[str]) -> list[list[str]]:
    """Return the flags with the same last part, the similar ones, and those with a similar part."""
    last = _last_part(flag)
    ends = difflib.get_close_matches(last, [_last_part(name) for name in known], 1, CLOSE)
    return [
        [name for name in known if _last_part(name) == last],
        difflib.get_close_matches(flag, known, 1, CLOSE),
        [name for name in known if ends and _last_part(name) == ends[0]],
    ]


def _last_part(flag: str) -> str:
    return flag.removeprefix("--").rpartition(".")[2]
