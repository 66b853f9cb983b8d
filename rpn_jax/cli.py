"""The command line: ``rpn-jax VERB CONFIG [flags]``.

Each verb is a dataclass. Its fields are the flags of the verb, and the fields of its config are
flags too, with the config's values as defaults. tyro makes a parser and the ``--help`` text from
both. Wrong arguments give an error message of one line.

The functions behind the verbs are in `commands`. That module is imported after parsing, because
importing JAX would make ``--help`` slow.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import itertools
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, TypeVar

import tyro

from rpn_jax import __version__
from rpn_jax.benchmark.options import Options
from rpn_jax.config import (
    Config,
    RoIHeadConfig,
    config_fields,
    config_file_of,
    config_names,
    load_config,
)
from rpn_jax.devices import use_platform
from rpn_jax.errors import UserError, exit_code, nearest
from rpn_jax.hosts.group import run_on_hosts
from rpn_jax.hosts.settings import HostFlags
from rpn_jax.suggestions import suggestion

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
        help="Pictures, folders of pictures, or globs in quotes. Do not put flags between them. "
        "Without any, the pictures of data.eval-split are used, with their image ids.",
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
Coordinator = Annotated[
    str | None,
    tyro.conf.DisallowNone,
    tyro.conf.arg(
        help="HOST:PORT of process 0, where several processes meet. The default is "
        "$RPN_JAX_COORDINATOR, or comes from SLURM."
    ),
]
ProcessId = Annotated[
    int | None,
    tyro.conf.DisallowNone,
    tyro.conf.arg(
        help="Number of this process, from 0. The default is $RPN_JAX_PROCESS_ID, or comes from "
        "SLURM."
    ),
]
ProcessCount = Annotated[
    int | None,
    tyro.conf.DisallowNone,
    tyro.conf.arg(
        help="Number of processes. 1 ignores SLURM. The default is $RPN_JAX_PROCESS_COUNT, or "
        "comes from SLURM, or is 1."
    ),
]
PeerTimeout = Annotated[
    int,
    tyro.conf.arg(
        help="Seconds without a sign of life after which another process counts as lost. Then "
        "this process ends with exit code 3."
    ),
]
PEER_TIMEOUT = HostFlags().peer_timeout
Maximum = Annotated[int | None, tyro.conf.DisallowNone]

Given = tyro.conf.Suppress[tyro.conf.Fixed[tuple[str, ...]]]
"""Dotted keys of the config's fields that the command sets. It is not a flag."""

SCORE = ["--score"]
"""Short form of --min-score."""

T = TypeVar("T")


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
    auto: Switch = False
    """Choose the length, the schedule, the picture size and the evaluations from the dataset. Every
    choice is printed with its reason. A flag that you give is kept."""
    given: Given = ()
    platform: Platform = "auto"
    coordinator: Coordinator = None
    process_id: ProcessId = None
    process_count: ProcessCount = None
    peer_timeout: PeerTimeout = PEER_TIMEOUT

    def run(self) -> int:
        return run_on_hosts(_host_flags(self), self.platform, self._train)

    def _train(self) -> None:
        from rpn_jax import commands

        optim = self.config.optim
        scaled = replace(optim, auto_scale_lr=optim.auto_scale_lr or self.auto_scale_lr)
        given = self.given if self.auto else None
        commands.train(replace(self.config, optim=scaled), self.workdir, self.resume, given)


@dataclass(frozen=True)
class Evaluate:
    """Measure the recall of a model's proposals on data.eval-split."""

    config: Overrides
    weights: Weights = tyro.MISSING
    out: OptionalPath = None
    """JSON file to write the figures to."""
    exact_padding: ExactPadding = False
    platform: Platform = "auto"
    coordinator: Coordinator = None
    process_id: ProcessId = None
    process_count: ProcessCount = None
    peer_timeout: PeerTimeout = PEER_TIMEOUT

    def run(self) -> int:
        return run_on_hosts(_host_flags(self), self.platform, self._evaluate)

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
    platform: Platform = "auto"

    def run(self) -> None:
        _check_draw(self.draw)
        use_platform(self.platform)
        from rpn_jax import commands

        settings = self.config.rpn_proposals
        if self.max is not None:
            settings = replace(settings, max_proposals=self.max)
        commands.propose(
            replace(self.config, rpn_proposals=settings),
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
    platform: Platform = "auto"

    def run(self) -> None:
        _check_draw(self.draw)
        use_platform(self.platform)
        from rpn_jax import commands

        settings = self.config.roi_detections
        if self.min_score is not None:
            settings = replace(settings, min_score=self.min_score)
        if self.max is not None:
            settings = replace(settings, max_detections=self.max)
        commands.detect(
            replace(self.config, roi_detections=settings),
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
                "convert: needs either a folder OUT to write, or --to-torch FILE.pth, not both."
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
    """Name of a config, or path of a .py or .json file."""

    def run(self) -> None:
        from rpn_jax.benchmark import command

        command.run(self)


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


Verb = Train | Evaluate | CheckData | Propose | Detect | Convert | Benchmark | Demo
WithWeights = Evaluate | Propose | Detect
VERBS: dict[str, type[Verb]] = {
    "train": Train,
    "evaluate": Evaluate,
    "check-data": CheckData,
    "propose": Propose,
    "detect": Detect,
    "convert": Convert,
    "benchmark": Benchmark,
    "demo": Demo,
}


def _host_flags(verb: Train | Evaluate) -> HostFlags:
    return HostFlags(verb.coordinator, verb.process_id, verb.process_count, verb.peer_timeout)


def _check_draw(count: int) -> None:
    if count < 0:
        raise UserError(f"--draw {count}: must be 0 or more.")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Args:
      arguments: words after the program's name. None takes them from `sys.argv`.

    Returns:
      0, or 2 for bad input (with one line on stderr), or 130 after an interrupt. 'check-data'
      returns 1 after warnings. A process whose peer is lost ends with 3.

    Raises:
      SystemExit: with code 0, after ``--help`` or ``--version`` was printed.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)

    def command() -> int:
        return parse(words).run() or 0

    return exit_code(command)


def parse(words: list[str]) -> Verb:
    """Return the verb that the words name, with its config and flags.

    Raises:
      UserError: the words or a value of the config are wrong.
      SystemExit: after the help or the version was printed.
    """
    name, *rest = words or [""]
    if name in ("-h", "--help"):
        _print_and_exit(_overview())
    if name == "--version":
        _print_and_exit(f"rpn-jax {__version__}")
    if name not in VERBS:
        hint = nearest(name, list(VERBS)) or "."
        problem = f"unknown verb '{name}'{hint}" if name else "no verb."
        raise UserError(f"{problem} Choose one of: {', '.join(VERBS)}. See 'rpn-jax --help'.")
    verb = VERBS[name]
    if issubclass(verb, Convert | Benchmark | Demo):
        return read_flags(verb(), rest, f"rpn-jax {name}")
    if issubclass(verb, Train | CheckData):
        config, rest = leading_config(name, rest)
        parsed = read_flags(verb(config=config), rest, f"rpn-jax {name} CONFIG")
        return replace(parsed, given=_given(rest)) if isinstance(parsed, Train) else parsed
    return _with_weights(name, verb, rest)


def _given(words: list[str]) -> tuple[str, ...]:
    """Return the dotted keys of the config's fields that the words set."""
    flags = [word.partition("=")[0] for word in words if word.startswith("--")]
    keys = [flag.removeprefix("--").replace("-", "_") for flag in flags]
    return tuple(key.replace(".no_", ".") for key in keys if "." in key)


def _with_weights(name: str, verb: type[WithWeights], words: list[str]) -> WithWeights:
    """Return a verb that uses weights. Without CONFIG, it gets the config of the weights."""
    weights = _value_of("--weights", words)
    program = f"rpn-jax {name} [CONFIG]"
    if weights is None or _begins_with_config(verb, words) or {"-h", "--help"} & set(words):
        config, words = leading_config(name, words)
        return read_flags(verb(config=config), words, program)
    folder = _model_folder(verb, weights, words)
    parsed = read_flags(verb(config=load_config(folder)), words, program)
    return replace(parsed, weights=folder)


def _begins_with_config(verb: type[WithWeights], words: list[str]) -> bool:
    """Return whether the first word names a config. It may also be a picture or a flag."""
    word = words[0]
    if word.startswith("-"):
        return False
    if verb is Evaluate or word.endswith((".py", ".json", ".yaml", ".yml")):
        return True
    if word in config_names() or config_file_of(Path(word)) is not None:
        return True
    is_name = re.fullmatch(r"[\w-]+", word) is not None and not Path(word).exists()
    return is_name and nearest(word, config_names()) != ""


def _model_folder(verb: type[WithWeights], weights: str, words: list[str]) -> str:
    """Return the folder of weights and their config. Convert other weights into the cache folder.

    Args:
      verb, words: the command. Wrong flags are an error before the conversion.
      weights: value of --weights.
    """
    if not Path(weights).is_dir():
        every_section = Config(model=replace(Config().model, roi=RoIHeadConfig()))
        _check_flags(words, _flags_of(verb(config=every_section)))
        platform = _value_of("--platform", words)
        use_platform(platform if platform in ("cpu", "gpu") else "auto")
        from rpn_jax.weights.models import weights_folder

        return str(weights_folder(weights, config=None))
    if config_file_of(Path(weights)) is None:
        raise UserError(
            f"weights {weights}: no config.json in this folder. Name a CONFIG, or choose a folder "
            "that `convert` or `train` wrote."
        )
    return weights


def _value_of(flag: str, words: list[str]) -> str | None:
    """Return the value of a flag of one word, or None without the flag or a value."""
    for word, following in itertools.pairwise([*words, ""]):
        if word == flag:
            return following or None
        if word.startswith(f"{flag}="):
            return word.removeprefix(f"{flag}=")
    return None


def _overview() -> str:
    verbs = "\n".join(f"  {name:12}{inspect.getdoc(verb)}" for name, verb in VERBS.items())
    configs = "\n".join(f"  {name}" for name in config_names())
    return f"""\
usage: rpn-jax VERB [CONFIG] [flags]

verbs:
{verbs}

CONFIG is the path of a .py or .json file, or one of these names:
{configs}

'rpn-jax VERB --help' explains the flags of a verb.
'rpn-jax VERB CONFIG --help' also shows the values of that config.
'rpn-jax --version' prints the version."""


def _print_and_exit(text: str) -> NoReturn:
    print(text)
    raise SystemExit(0)


def leading_config(verb: str, words: list[str]) -> tuple[Config, list[str]]:
    """Return the config that the first word names, and the other words.

    Without a config, ``--help`` shows the default values.
    """
    if words and not words[0].startswith("-"):
        return load_config(words[0]), words[1:]
    if "-h" in words or "--help" in words:
        return Config(), words
    raise UserError(
        f"{verb}: CONFIG is missing. Put it first: a name, or the path of a .py or .json file. "
        "'rpn-jax --help' lists the names."
    )


def read_flags(defaults: T, words: list[str], program: str) -> T:
    """Return a copy of the dataclass ``defaults`` with the values of the flags in ``words``.

    Raises:
      UserError: a flag is unknown, or its value has the wrong type or is impossible.
      SystemExit: after the help was printed.
    """
    _check_flags(words, _flags_of(defaults))
    output = io.StringIO()
    try:
        with contextlib.redirect_stderr(output):
            # An optional section is no subcommand: its flags exist if the config has the section.
            conf = (tyro.conf.AvoidSubcommands,)
            return tyro.cli(type(defaults), default=defaults, args=words, prog=program, config=conf)
    except SystemExit as stop:
        if stop.code == 0:
            raise
        raise UserError(_one_line(output.getvalue())) from None


def _flags_of(defaults: Any) -> list[str]:
    """Return every flag of a verb: --workdir, --data.clip-boxes, --data.no-clip-boxes ..."""
    flags = []
    for key, value in config_fields(defaults).items():
        if key == "given":
            continue
        section, _, name = key.removeprefix("config.").replace("_", "-").rpartition(".")
        prefix = f"--{section}." if section else "--"
        names = [name, f"no-{name}"] if isinstance(value, bool) else [name]
        flags += [prefix + name for name in names]
    return flags + (SCORE if isinstance(defaults, Detect) else [])


def _check_flags(words: list[str], known: list[str]) -> None:
    """Raise UserError for the first unknown flag, with the nearest known one.

    Checked before tyro parses, because tyro can report another error first.
    """
    for word in words:
        flag = word.partition("=")[0].replace("_", "-")
        if flag.startswith("--") and flag not in ("--help", *known):
            raise UserError(f"unknown flag '{flag}'{suggestion(flag, known)}")


def _one_line(box: str) -> str:
    """Return tyro's error message as one line.

    tyro draws a box with a title. The message ends at the first horizontal rule. The flag with the
    type of its value follows below ``Argument helptext:``.
    """
    plain = re.sub(r"\x1b\[[\d;]*m", "", box)
    rows = [row.strip("│ ") for row in plain.splitlines()[1:]]
    body = itertools.dropwhile(_is_rule, rows)  # Without Unicode, the title is followed by a rule.
    text = " ".join(itertools.takewhile(lambda row: not _is_rule(row), body))
    if "Argument helptext:" in rows:
        text += f". Usage: {rows[rows.index('Argument helptext:') + 1]}"
    # The error of a config section already names its key.
    return re.sub(r"^Error parsing (config[\w.]*: )?", "", text)


def _is_rule(row: str) -> bool:
    return set(row) <= set("─╰╯-")
