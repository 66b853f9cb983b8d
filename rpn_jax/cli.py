"""The command line: ``rpn-jax VERB CONFIG [flags]``.

Each verb is a dataclass of `verbs`. Its fields are the flags of the verb, and the fields of its
config are flags too, with the config's values as defaults. tyro makes a parser and the ``--help``
text from both. Wrong arguments give an error message of one line.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import itertools
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import tyro

from rpn_jax import __version__
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
from rpn_jax.hosts.settings import HostFlags, find_hosts
from rpn_jax.suggestions import suggestion
from rpn_jax.verbs import (
    SCORE,
    VERBS,
    CheckData,
    Detect,
    Evaluate,
    Pack,
    Train,
    Verb,
    WithoutConfig,
    WithWeights,
)

T = TypeVar("T")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Args:
      arguments: words after the program's name. None takes them from `sys.argv`.

    Returns:
      0, or 2 for bad input (with one line on stderr), or 130 after an interrupt, or 141 if the
      reader of the output has ended. 'check-data' returns 1 after warnings, 'doctor' after a
      problem. A process whose peer is lost ends with 3.

    Raises:
      SystemExit: with code 0, after ``--help`` or ``--version`` was printed.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):  # A file name may not be text in its encoding.
        sys.stdout.reconfigure(errors="backslashreplace")

    # As with ``python -m``. `model.backbone_class` can name a class of a file there.
    if "" not in sys.path:
        sys.path.append("")  # the current folder

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
    if issubclass(verb, WithoutConfig):
        return read_flags(verb(), rest, f"rpn-jax {name}")
    if issubclass(verb, Train | CheckData | Pack):
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
    program = f"rpn-jax {name} [CONFIG]"
    if _begins_with_config(verb, words) or {"-h", "--help"} & set(words):
        config, words = leading_config(name, words)
        return read_flags(verb(config=config), words, program)
    every_section = Config(model=replace(Config().model, roi=RoIHeadConfig()))
    _check_flags(words, _flags_of(verb(config=every_section)))  # before a long conversion
    weights = _value_of("--weights", words)
    if weights is None:
        raise UserError(
            f"{name}: --weights is missing. Give a folder of weights, a work directory, or what "
            f"'rpn-jax {name} --help' names."
        )
    if verb is Evaluate and not Path(weights).is_dir():
        _check_one_process(weights, words)
    folder = _model_folder(weights, words)
    parsed = read_flags(verb(config=load_config(folder)), words, program)
    return replace(parsed, weights=folder)


def _begins_with_config(verb: type[WithWeights], words: list[str]) -> bool:
    """Return whether the first word names a config. It may also be a picture or a flag."""
    word = words[0] if words else "-"
    if word.startswith("-"):
        return False
    if verb is Evaluate or word.endswith((".py", ".json", ".yaml", ".yml")):
        return True
    if word in config_names() or config_file_of(Path(word)) is not None:
        return True
    is_name = re.fullmatch(r"[\w-]+", word) is not None and not Path(word).exists()
    return is_name and nearest(word, config_names()) != ""


def _model_folder(weights: str, words: list[str]) -> str:
    """Return the folder of weights and their config. Convert other weights into the cache folder.

    Args:
      weights: value of --weights.
      words: the command.
    """
    if not Path(weights).is_dir():
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


def _check_one_process(weights: str, words: list[str]) -> None:
    """Refuse weights that several processes would have to convert before they meet."""
    names = [f"--{each.name.replace('_', '-')}" for each in fields(HostFlags)]
    values = {name: _value_of(name, words) for name in names}
    given = [f"{name}={value}" for name, value in values.items() if value is not None]
    hosts = read_flags(HostFlags(), given, "rpn-jax evaluate")
    if find_hosts(hosts, os.environ) is not None:
        raise UserError(
            f"--weights {weights}: several processes need a CONFIG, or a folder that "
            "'rpn-jax convert' or 'rpn-jax train' wrote."
        )


def _value_of(flag: str, words: list[str]) -> str | None:
    """Return the last value of a flag of one word, as tyro does, or None without a value."""
    value = None
    for word, following in itertools.pairwise([*words, ""]):
        if word == flag:
            value = following
        elif word.startswith(f"{flag}="):
            value = word.removeprefix(f"{flag}=")
    return value or None


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
        plain = key.removeprefix("config.").removeprefix("hosts.")
        section, _, name = plain.replace("_", "-").rpartition(".")
        prefix = f"--{section}." if section else "--"
        # Only the switches of a config can be set to false: those of a verb are false by default.
        has_opposite = isinstance(value, bool) and section != ""
        names = [name, f"no-{name}"] if has_opposite else [name]
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
    text = re.sub(r"^Error parsing (config[\w.-]*: )?", "", text)
    # Python's messages for texts that are not numbers.
    text = re.sub(r"invalid literal for int.*: ('.*?')", r"\1 is not a whole number", text)
    return re.sub(r"could not convert string to float: ('.*?')", r"\1 is not a number", text)


def _is_rule(row: str) -> bool:
    return set(row) <= set("─╰╯-")


if __name__ == "__main__":
    sys.exit(main())
