"""The command line: ``rpn-jax VERB CONFIG [flags]``.

A verb is a dataclass: its fields are its flags, and the fields of its config follow them with that
config's values as defaults. tyro turns both into a parser and into ``--help``. This file makes one
line of whatever is wrong with the words; the work is done in `commands`, which is imported only
after parsing, so that ``--help`` is quick.
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
from rpn_jax.benchmark.options import Options, parse_options
from rpn_jax.config import Config, config_fields, config_names, load_config
from rpn_jax.devices import use_platform
from rpn_jax.errors import UserError, exit_code, nearest

Overrides = Annotated[Config, tyro.conf.arg(name="")]
Switch = Annotated[bool, tyro.conf.FlagCreatePairsOff]
OptionalPath = Annotated[Path | None, tyro.conf.DisallowNone]
Platform = Annotated[
    Literal["auto", "cpu", "gpu"],
    tyro.conf.arg(help="Device to compute on; 'auto' takes the one that JAX prefers."),
]

T = TypeVar("T")


@dataclass(frozen=True)
class Train:
    """Train a model, evaluating and keeping checkpoints on the way."""

    config: Overrides
    workdir: Path = tyro.MISSING
    """Folder of the run: its config, metrics and checkpoints."""
    resume: Switch = False
    """Go on from the last checkpoint in the work directory."""
    auto_scale_lr: Switch = False
    """The same as --optim.auto-scale-lr."""
    platform: Platform = "auto"

    def run(self) -> None:
        use_platform(self.platform)
        from rpn_jax import commands

        optim = self.config.optim
        scaled = replace(optim, auto_scale_lr=optim.auto_scale_lr or self.auto_scale_lr)
        commands.train(replace(self.config, optim=scaled), self.workdir, self.resume)


@dataclass(frozen=True)
class Evaluate:
    """Measure the recall of a model's proposals on data.eval-split."""

    config: Overrides
    weights: Path = tyro.MISSING
    """Folder of weights, or a work directory of 'train'."""
    out: OptionalPath = None
    """JSON file to write the results to."""
    exact_padding: Switch = False
    """Pad each picture to a multiple of 32 pixels and no further, as the reference does; compiles
    once a size."""
    platform: Platform = "auto"

    def run(self) -> None:
        use_platform(self.platform)
        from rpn_jax import commands

        commands.evaluate(self.config, self.weights, self.out, self.exact_padding)


@dataclass(frozen=True)
class Propose:
    """Write the proposals for pictures, folders of pictures or globs; no annotations needed."""

    config: Overrides
    pictures: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PICTURES")
    ] = tyro.MISSING
    """Pictures, folders of pictures, or globs in quotes, all in one place."""
    weights: Path = tyro.MISSING
    """Folder of weights, or a work directory of 'train'."""
    out: Path = tyro.MISSING
    """Folder to write to: proposals.json, in COCO results format, and drawn pictures."""
    draw: int = 0
    """Proposals to draw on a copy of each picture, the best ones; 0 draws none."""
    exact_padding: Switch = False
    """Pad each picture to a multiple of 32 pixels and no further, as the reference does; compiles
    once a size."""
    platform: Platform = "auto"

    def run(self) -> None:
        if not self.pictures:
            raise UserError("propose: no picture given; name pictures, folders or globs in quotes")
        if self.draw < 0:
            raise UserError(f"--draw {self.draw}: must be 0 or more")
        use_platform(self.platform)
        from rpn_jax import commands

        commands.propose(
            self.config,
            self.weights,
            list(self.pictures),
            self.out,
            self.draw,
            self.exact_padding,
        )


@dataclass(frozen=True)
class Convert:
    """Turn a published PyTorch file into a folder of weights, or such a folder back into a file."""

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")] = tyro.MISSING
    """A .pth or .pkl file, an https URL, or a name such as torchvision://resnet50; with --to-torch
    a folder of weights or a work directory."""
    out: Annotated[
        Path | None, tyro.conf.Positional, tyro.conf.DisallowNone, tyro.conf.arg(metavar="[OUT]")
    ] = None
    """Folder to write, a new one."""
    config: Annotated[str | None, tyro.conf.DisallowNone] = None
    """Name or path of the config that the weights are for; by default the one that they fit."""
    to_torch: OptionalPath = None
    """The .pth file to write the weights of SOURCE to, under the original's key names."""
    platform: Platform = "auto"

    def run(self) -> None:
        if (self.out is None) == (self.to_torch is None):
            raise UserError(
                "convert: give a folder OUT to write, or --to-torch FILE.pth, one of both"
            )
        use_platform(self.platform)
        from rpn_jax import commands

        if self.out is not None:
            commands.convert(self.source, self.out, self.config)
        elif self.to_torch is not None:
            commands.convert_to_torch(Path(self.source), self.to_torch)


@dataclass(frozen=True)
class Benchmark:
    """Time a model's stages, its training step, and PyTorch beside them."""

    options: Options
    """Read without tyro: ``python -m rpn_jax.benchmark`` runs where tyro is not installed."""

    def run(self) -> None:
        from rpn_jax.benchmark import command

        command.run(self.options)


@dataclass(frozen=True)
class Demo:
    """Train, evaluate and draw a small model on the built-in pictures, in minutes on a CPU."""

    workdir: Path = Path("runs/demo")
    """Folder of the run: its config, metrics, checkpoints and drawn pictures."""
    platform: Platform = "auto"

    def run(self) -> None:
        use_platform(self.platform)
        from rpn_jax import commands

        commands.demo(self.workdir)


Verb = Train | Evaluate | Propose | Convert | Benchmark | Demo
VERBS: dict[str, type[Verb]] = {
    "train": Train,
    "evaluate": Evaluate,
    "propose": Propose,
    "convert": Convert,
    "benchmark": Benchmark,
    "demo": Demo,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command of the words ``arguments`` (those of the process by default).

    Returns the exit code: 0, 2 for bad input (told in one line on stderr), 130 when interrupted.
    Raises SystemExit(0) after printing what ``--help`` or ``--version`` ask for.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)

    def command() -> int:
        parse(words).run()
        return 0

    return exit_code(command)


def parse(words: list[str]) -> Verb:
    """What the words ask for: a verb with its config and flags.

    Raises:
      UserError: anything wrong with the words, or with a config's values.
      SystemExit: after printing help or version.
    """
    name, *rest = words or [""]
    if name in ("-h", "--help"):
        _print_and_exit(_overview())
    if name == "--version":
        _print_and_exit(f"rpn-jax {__version__}")
    if name not in VERBS:
        verbs = ", ".join(VERBS)
        said = f"unknown verb '{name}'{nearest(name, list(VERBS))}" if name else "no verb"
        raise UserError(f"{said} (verbs: {verbs}; 'rpn-jax --help' explains them)")
    verb = VERBS[name]
    if issubclass(verb, Benchmark):
        return verb(parse_options(rest, f"rpn-jax {name}"))
    if issubclass(verb, Convert | Demo):
        return read_flags(verb(), rest, f"rpn-jax {name}")
    config, rest = leading_config(name, rest)
    return read_flags(verb(config=config), rest, f"rpn-jax {name} CONFIG")


def _overview() -> str:
    verbs = "\n".join(f"  {name:10}{inspect.getdoc(verb)}" for name, verb in VERBS.items())
    configs = "\n".join(f"  {name}" for name in config_names())
    return f"""\
usage: rpn-jax VERB [CONFIG] [flags]

verbs:
{verbs}

configs, each a name, or the path of a .py or .json file:
{configs}

'rpn-jax VERB --help' explains a verb's flags; 'rpn-jax VERB CONFIG --help' with the values of
that config. 'rpn-jax --version' prints the version."""


def _print_and_exit(text: str) -> NoReturn:
    print(text)
    raise SystemExit(0)


def leading_config(verb: str, words: list[str]) -> tuple[Config, list[str]]:
    """The config that the words begin with (for plain ``--help`` the defaults), and the rest."""
    if words and not words[0].startswith("-"):
        return load_config(words[0]), words[1:]
    if "-h" in words or "--help" in words:
        return Config(), words
    raise UserError(
        f"{verb}: CONFIG comes first, a name or the path of a .py or .json file "
        "('rpn-jax --help' lists the names)"
    )


def read_flags(defaults: T, words: list[str], program: str) -> T:
    """``defaults``, a dataclass, with the values that the words' flags give.

    Raises:
      UserError: an unknown flag, a value of another type, or an impossible one.
      SystemExit: after printing help.
    """
    _check_flags(words, _flags_of(defaults))
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(type(defaults), default=defaults, args=words, prog=program)
    except SystemExit as done:
        if done.code == 0:
            raise
        raise UserError(_one_line(complaint.getvalue())) from None


def _flags_of(defaults: Any) -> list[str]:
    """Return every flag of a verb: --workdir, --data.clip-boxes, --data.no-clip-boxes ..."""
    flags = []
    for key, value in config_fields(defaults).items():
        section, _, name = key.removeprefix("config.").replace("_", "-").rpartition(".")
        prefix = f"--{section}." if section else "--"
        names = [name, f"no-{name}"] if isinstance(value, bool) else [name]
        flags += [prefix + name for name in names]
    return flags


def _check_flags(words: list[str], known: list[str]) -> None:
    """Refuse a flag that no field has, naming the nearest; tyro may report other faults first."""
    for word in words:
        flag = word.partition("=")[0].replace("_", "-")
        if flag.startswith("--") and flag not in ("--help", *known):
            raise UserError(f"unknown flag '{flag}'{nearest(flag, known)}")


def _one_line(box: str) -> str:
    """What tyro drew in a titled box: the text down to its first rule, and the flag's form."""
    plain = re.sub(r"\x1b\[[\d;]*m", "", box)
    rows = [row.strip("│ ") for row in plain.splitlines()[1:]]
    body = itertools.dropwhile(_is_rule, rows)  # without Unicode a rule follows the title
    text = " ".join(itertools.takewhile(lambda row: not _is_rule(row), body))
    if "Argument helptext:" in rows:
        text += f"; it goes {rows[rows.index('Argument helptext:') + 1]}"
    return re.sub(r"^Error parsing config[\w.]*: ", "", text)  # a config's own refusal


def _is_rule(row: str) -> bool:
    return set(row) <= set("─╰╯-")
