"""Sections of a config that define the optimiser and the course of a training run.

The string below each field is its help text on the command line.
"""

from __future__ import annotations

from dataclasses import dataclass

from rpn_jax.config.checks import check, check_types


@dataclass(frozen=True)
class OptimConfig:
    """SGD with momentum, a linear warm-up and a learning rate that decays in steps."""

    learning_rate: float = 0.02
    """Learning rate after the warm-up, for batches of base_batch_size pictures."""
    momentum: float = 0.9
    """Momentum of SGD."""
    weight_decay: float = 1e-4
    """Weight decay (L2) of every trained parameter."""
    warmup_steps: int = 500
    """Number of steps of the linear warm-up."""
    warmup_ratio: float = 0.001
    """Fraction of the learning rate at the first step."""
    decay_epochs: tuple[int, ...] = (8, 11)
    """Epochs after which the learning rate is multiplied by decay_factor."""
    decay_factor: float = 0.1
    """Factor of each decay of the learning rate."""
    base_batch_size: int = 16
    """Batch size, in pictures, for which learning_rate is set."""
    auto_scale_lr: bool = False
    """Multiply learning_rate by data.batch_size / base_batch_size."""
    clip_norm: float = 0.0
    """Largest L2 norm of the whole gradient. Longer gradients are scaled down. 0 turns this off."""

    def __post_init__(self) -> None:
        check_types("optim", self)
        check(self.learning_rate > 0, "optim.learning_rate", self.learning_rate, "above 0")
        check(0 <= self.momentum < 1, "optim.momentum", self.momentum, "0 to below 1")
        check(self.weight_decay >= 0, "optim.weight_decay", self.weight_decay, "0 or more")
        check(self.warmup_steps >= 0, "optim.warmup_steps", self.warmup_steps, "0 or more")
        for key in ("warmup_ratio", "decay_factor"):
            value = getattr(self, key)
            check(0 < value <= 1, f"optim.{key}", value, "above 0, at most 1")
        check(
            list(self.decay_epochs) == sorted(set(self.decay_epochs))
            and all(epoch >= 1 for epoch in self.decay_epochs),
            "optim.decay_epochs",
            self.decay_epochs,
            "epochs from 1 in ascending order",
        )
        check(self.base_batch_size >= 1, "optim.base_batch_size", self.base_batch_size, "1 or more")
        check(self.clip_norm >= 0, "optim.clip_norm", self.clip_norm, "0 or more")


@dataclass(frozen=True)
class TrainConfig:
    """Length, start, evaluation and checkpoints of a training run."""

    epochs: int = 12
    """Number of passes over the training split."""
    seed: int = 0
    """Random seed of the initial weights, the order of the data, the flips and the sampling."""
    init_weights: str = ""
    """Weights to start from: a folder, a .pth or .pkl file, an https URL, or a name such as
    torchvision://resnet50 or mmdetection://faster-rcnn_r50_fpn_1x_coco. Modules that they do not
    hold start from random values. So do the layers with outputs for each class, if the weights have
    another number of classes. By default all weights start from random values."""
    eval_every: int = 1
    """Number of epochs between evaluations. The last epoch is evaluated too. 0 never evaluates."""
    log_every: int = 10
    """Number of steps between two lines of metrics."""
    save_every_steps: int = 0
    """Number of steps between checkpoints. One is saved at the end of each epoch too. 0 turns this
    off."""
    save_every_minutes: float = 30.0
    """Minutes between checkpoints within an epoch. 0 turns this off."""
    keep_last: int = 2
    """Number of latest checkpoints to keep. The best one is kept too. With 2 or more, a run can
    continue if the last one is damaged."""
    gradient_parts: int = 1
    """Number of equal parts in which each device takes its pictures of a batch, one after the other
    (gradient accumulation). The step is that of the whole batch, with less memory."""
    ema_decay: float = 0.0
    """Decay of the moving average of the weights (EMA) in each step, for example 0.999. Evaluations
    and checkpoints then hold the average. 0 keeps none."""
    patience: int = 0
    """Number of evaluations without a better main figure (AR@1000, or AP of a detector) after which
    the run ends early. 0 never ends it early."""
    profile_steps: int = 0
    """Number of steps to record with JAX's profiler, soon after the start. The trace is in the
    folder profile of the work directory. 0 records none."""

    def __post_init__(self) -> None:
        check_types("train", self)
        check(self.epochs >= 1, "train.epochs", self.epochs, "1 or more")
        check(0 <= self.seed < 2**32, "train.seed", self.seed, "0 to 2**32 - 1")
        check(self.eval_every >= 0, "train.eval_every", self.eval_every, "0 or more")
        check(self.log_every >= 1, "train.log_every", self.log_every, "1 or more")
        for key in ("save_every_steps", "save_every_minutes"):
            value = getattr(self, key)
            check(value >= 0, f"train.{key}", value, "0 or more")
        check(self.gradient_parts >= 1, "train.gradient_parts", self.gradient_parts, "1 or more")
        check(0 <= self.ema_decay < 1, "train.ema_decay", self.ema_decay, "0 or more, below 1")
        check(self.patience >= 0, "train.patience", self.patience, "0 or more")
        check(self.profile_steps >= 0, "train.profile_steps", self.profile_steps, "0 or more")
        check(self.keep_last >= 1, "train.keep_last", self.keep_last, "1 or more")
