"""The verbs of the command line: each is a dataclass whose fields are its flags.

`run` calls the function behind a verb. It is imported there, because importing JAX would make
``--help`` slow.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from rpn_jax.benchmark.options import Options
from rpn_jax.config import Config
from rpn_jax.devices import use_platform
from rpn_jax.errors import UserError
from rpn_jax.hosts.group import run_on_hosts
from rpn_jax.hosts.settings import HostFlags

Overrides = Annotated[Config, tyro.conf.arg(name="")]
Switch = Annotated[bool, tyro.conf.FlagCreatePairsOff]
OptionalPath = Annotated[Path | None, tyro.conf.DisallowNone]
Platform = Annotated[
    Literal["auto", "cpu", "gpu"],
    tyro.conf.arg(help="Device to compute on. 'auto' lets JAX choose: a GPU if there is one."),
]

Weights = Annotated[
    str,
    tyro.conf.arg(
        help="Weights: a folder of weights, the work directory of a training run (its best "
        "checkpoint is used), or what 'convert' reads: a .pth or .pkl file, an https URL, or a "
        "name such as mmdetection://rpn_r50_fpn_1x_coco. Without CONFIG, the config of the weights "
        "is used."
    ),
]
Pictures = Annotated[
    tuple[str, ...],
    tyro.conf.Positional,
    tyro.conf.arg(
        metavar="[PICTURES]",
        help="Pictures, URLs of pictures, folders of pictures, or globs in quotes. Do not put "
        "flags between them. Without any, the pictures of data.eval-split are used, with their "
        "image ids.",
    ),
]
ExactPadding = Annotated[
    bool,
    tyro.conf.FlagCreatePairsOff,
    tyro.conf.arg(
        help="Pad each picture only to a multiple of 32 pixels, as MMDetection does. The program "
        "is then compiled for each picture size."
    ),
]
Hosts = Annotated[HostFlags, tyro.conf.arg(name=""), tyro.conf.DisallowNone]
Maximum = Annotated[int | None, tyro.conf.DisallowNone]
Engine = Annotated[
    Literal["plain", "ray"],
    tyro.conf.arg(
        help="'ray' shares the work over the GPUs of a Ray cluster, or over --ray-workers "
        "processes. It writes Parquet files. PICTURES can also be Parquet files with a column "
        "'path'."
    ),
]
Workers = Annotated[
    int | None,
    tyro.conf.DisallowNone,
    tyro.conf.arg(
        help="Number of workers of --engine ray. The default is one for each GPU, or one without "
        "GPUs."
    ),
]

Given = tyro.conf.Suppress[tyro.conf.Fixed[tuple[str, ...]]]
"""Dotted keys of the config's fields that the command sets. It is not a flag."""

SCORE = ["--score"]
"""Short form of --min-score."""


@dataclass(frozen=True)
class Train:
    """Train a model. Evaluate it and save checkpoints during training."""

    config: Overrides
    workdir: Path = tyro.MISSING
    """Folder for the run's config, metrics and checkpoints."""
    resume: Switch = False
    """Continue the run in the work directory after its last checkpoint."""
    auto_scale_lr: Switch = False
    """Short form of --optim.auto-scale-lr."""
    profile: Annotated[int | None, tyro.conf.DisallowNone] = None
    """Short form of --train.profile-steps."""
    auto: Switch = False
    """Choose the length, the schedule, the picture size and the evaluations from the dataset. Every
    choice is printed with its reason. A flag that you give is kept."""
    given: Given = ()
    wandb: Switch = False
    """Send the figures to Weights & Biases too. WANDB_MODE=offline keeps them on this machine."""
    mlflow: Switch = False
    """Send the figures to MLflow too: to $MLFLOW_TRACKING_URI, or a file in the work directory."""
    platform: Platform = "auto"
    hosts: Hosts = field(default_factory=HostFlags)

    def run(self) -> int:
        return run_on_hosts(self.hosts, self.platform, self._train)

    def _train(self) -> None:
        from rpn_jax import commands

        optim = self.config.optim
        scaled = replace(optim, auto_scale_lr=optim.auto_scale_lr or self.auto_scale_lr)
        config = replace(self.config, optim=scaled)
        if self.profile is not None:
            config = replace(config, train=replace(config.train, profile_steps=self.profile))
        given = self.given if self.auto else None
        wanted = {"wandb": self.wandb, "mlflow": self.mlflow}
        trackers = tuple(name for name, is_wanted in wanted.items() if is_wanted)
        commands.train(config, self.workdir, self.resume, given, trackers=trackers)


@dataclass(frozen=True)
class Evaluate:
    """Measure the recall of proposals and, of a detector, the AP of boxes, on data.eval-split."""

    config: Overrides
    weights: Weights = tyro.MISSING
    out: OptionalPath = None
    """File (.json) for the figures, or a folder for figures.json and the proposals.json and
    detections.json that they were computed from."""
    exact_padding: ExactPadding = False
    platform: Platform = "auto"
    hosts: Hosts = field(default_factory=HostFlags)

    def run(self) -> int:
        return run_on_hosts(self.hosts, self.platform, self._evaluate)

    def _evaluate(self) -> None:
        from rpn_jax import commands

        commands.evaluate(self.config, self.weights, self.out, self.exact_padding)


@dataclass(frozen=True)
class CheckData:
    """Check every annotation and every picture of a dataset, and count what it contains."""

    config: Overrides
    out: OptionalPath = None
    """JSON file to write all problems and counts to."""

    def run(self) -> int:
        use_platform("cpu")
        from rpn_jax import commands

        return commands.check_data(self.config, self.out)


@dataclass(frozen=True)
class Pack:
    """Write the pictures of a dataset once, resized, into files that are read fast."""

    config: Overrides
    out: Path = tyro.MISSING
    """Folder for the packed dataset. It can be used with --data.dataset packed --data.root OUT."""
    encoding: Literal["jpeg", "png"] = "jpeg"
    """Encoding of the pixels: 'jpeg' of quality 95, or 'png', which is exact and slower to read."""

    def run(self) -> None:
        use_platform("cpu")
        from rpn_jax import commands

        commands.pack(self.config, self.out, self.encoding)


@dataclass(frozen=True)
class Propose:
    """Write the proposals of pictures: boxes without classes. No annotations are needed."""

    config: Overrides
    pictures: Pictures = ()
    weights: Weights = tyro.MISSING
    out: Path = tyro.MISSING
    """Folder for proposals.json (COCO results format), pictures.json and the drawn pictures."""
    draw: int = 0
    """Number of best proposals to draw on a copy of each picture. 0 draws nothing."""
    min_score: float = 0.0
    """Only proposals with a higher score are written."""
    max: Maximum = None
    """Largest number of proposals in a picture. The default is that of the config."""
    exact_padding: ExactPadding = False
    engine: Engine = "plain"
    ray_workers: Workers = None
    platform: Platform = "auto"

    def run(self) -> None:
        _check_inference(self)
        settings = self.config.rpn_proposals
        if self.max is not None:
            settings = replace(settings, max_proposals=self.max)
        config = replace(self.config, rpn_proposals=settings)
        if self.engine == "ray":
            _run_on_ray(self, config, detects=False, min_score=self.min_score)
            return
        use_platform(self.platform)
        from rpn_jax.inference import command

        command.propose(
            config,
            self.weights,
            list(self.pictures),
            self.out,
            self.draw,
            self.min_score,
            self.exact_padding,
        )


@dataclass(frozen=True)
class Detect:
    """Write the named boxes of pictures. The model needs a second stage, as Faster R-CNN has."""

    config: Overrides
    pictures: Pictures = ()
    weights: Weights = tyro.MISSING
    out: Path = tyro.MISSING
    """Folder for detections.json (COCO results format), pictures.json and the drawn pictures."""
    draw: int = 0
    """Number of best boxes to draw on a copy of each picture. 0 draws nothing."""
    min_score: Annotated[float | None, tyro.conf.DisallowNone, tyro.conf.arg(aliases=SCORE)] = None
    """Only boxes with a higher score are written. The default is that of the config."""
    max: Maximum = None
    """Largest number of boxes in a picture. The default is that of the config."""
    exact_padding: ExactPadding = False
    engine: Engine = "plain"
    ray_workers: Workers = None
    platform: Platform = "auto"

    def run(self) -> None:
        _check_inference(self)
        settings = self.config.roi_detections
        if self.min_score is not None:
            settings = replace(settings, min_score=self.min_score)
        if self.max is not None:
            settings = replace(settings, max_detections=self.max)
        config = replace(self.config, roi_detections=settings)
        if self.engine == "ray":
            _run_on_ray(self, config, detects=True, min_score=settings.min_score)
            return
        use_platform(self.platform)
        from rpn_jax.inference import command

        command.detect(
            config,
            self.weights,
            list(self.pictures),
            self.out,
            self.draw,
            self.exact_padding,
        )


@dataclass(frozen=True)
class Convert:
    """Convert a PyTorch weights file to a folder of weights, or a folder to a PyTorch file."""

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")] = tyro.MISSING
    """Weights to convert: a .pth or .pkl file, an https URL, or a name such as
    torchvision://resnet50. With --to-torch: a folder of weights, or a work directory."""
    out: Annotated[
        Path | None, tyro.conf.Positional, tyro.conf.DisallowNone, tyro.conf.arg(metavar="[OUT]")
    ] = None
    """Folder to write. It must not exist yet."""
    config: Annotated[str | None, tyro.conf.DisallowNone] = None
    """Name or path of the config that the weights belong to. By default it is detected."""
    to_torch: OptionalPath = None
    """PyTorch file (.pth) to write, with the key names of MMDetection."""
    platform: Platform = "auto"

    def run(self) -> None:
        if (self.out is None) == (self.to_torch is None):
            raise UserError(
                "convert: needs a folder OUT to write or --to-torch FILE.pth, and not both."
            )
        use_platform(self.platform)
        from rpn_jax import commands

        if self.out is not None:
            commands.convert(self.source, self.out, self.config)
        elif self.to_torch is not None:
            commands.convert_to_torch(Path(self.source), self.to_torch)


@tyro.conf.configure(tyro.conf.FlagCreatePairsOff, tyro.conf.DisallowNone)
@dataclass(frozen=True)
class Benchmark(Options):
    """Measure the speed of a model's stages and its training step, and compare with PyTorch."""

    config: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="[CONFIG]")] = None
    """Name of a config, path of a .py or .json file, or a folder of weights."""

    def run(self) -> None:
        from rpn_jax.benchmark import command

        command.run(self)


@dataclass(frozen=True)
class Replay:
    """Run a training step again whose loss was not finite, and print its losses."""

    file: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")] = tyro.MISSING
    """File WORKDIR/step_NUMBER.npz that the run wrote."""
    platform: Platform = "auto"

    def run(self) -> None:
        use_platform(self.platform)
        from rpn_jax import commands

        commands.replay(self.file)


@dataclass(frozen=True)
class Doctor:
    """Print versions and devices, run a small training step, and say what is missing."""

    platform: Platform = "auto"

    def run(self) -> int:
        use_platform(self.platform)
        from rpn_jax import commands

        return commands.doctor()


@dataclass(frozen=True)
class Demo:
    """Train a small model on built-in pictures, evaluate it and draw its boxes, in minutes."""

    detector: Switch = False
    """Train a Faster R-CNN, which also names the shapes in the pictures, instead of an RPN."""
    workdir: OptionalPath = None
    """Folder for the run's config, metrics, checkpoints and drawn pictures. The default is
    runs/demo, or runs/demo_detector with --detector."""
    platform: Platform = "auto"

    def run(self) -> None:
        use_platform(self.platform)
        from rpn_jax import commands

        default = Path("runs/demo_detector" if self.detector else "runs/demo")
        commands.demo(self.workdir or default, self.detector)


WithoutConfig = Convert | Benchmark | Replay | Doctor | Demo
Verb = Train | Evaluate | CheckData | Pack | Propose | Detect | WithoutConfig
WithWeights = Evaluate | Propose | Detect
VERBS: dict[str, type[Verb]] = {
    "train": Train,
    "evaluate": Evaluate,
    "check-data": CheckData,
    "pack": Pack,
    "propose": Propose,
    "detect": Detect,
    "convert": Convert,
    "benchmark": Benchmark,
    "replay": Replay,
    "doctor": Doctor,
    "demo": Demo,
}


def _check_inference(verb: Propose | Detect) -> None:
    if verb.draw < 0:
        raise UserError(f"--draw {verb.draw}: must be 0 or more.")
    if verb.min_score is not None and not 0 <= verb.min_score < 1:
        raise UserError(f"--min-score {verb.min_score}: must be 0 to below 1.")
    if verb.ray_workers is not None and (verb.engine != "ray" or verb.ray_workers < 1):
        raise UserError(f"--ray-workers {verb.ray_workers}: must be 1 or more, with --engine ray.")
    if verb.engine == "ray" and (verb.draw or verb.exact_padding):
        flag = "--draw" if verb.draw else "--exact-padding"
        raise UserError(f"{flag}: not with --engine ray. Leave one of the two out.")


def _run_on_ray(verb: Propose | Detect, config: Config, detects: bool, min_score: float) -> None:
    from rpn_jax.inference.ray_engine import CHUNK_PICTURES, Job, run_on_ray

    folder = verb.out / ("detections.parquet" if detects else "proposals.parquet")
    job = Job(config, verb.weights, folder, detects, min_score, verb.platform)
    run_on_ray(job, verb.pictures, verb.out, verb.ray_workers, CHUNK_PICTURES)
