"""``python -m tools.parity FOLDER``: compare this package with the reference."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from rpn_jax.cli import read_flags
from rpn_jax.config import Precision
from rpn_jax.devices import use_platform
from rpn_jax.errors import UserError, exit_code, nearest
from rpn_jax.files import check_out_file
from rpn_jax.runtime import set_up_compiling
from rpn_jax.verbs import OptionalPath
from tools.parity.cases import PICTURE_PREFIX, UnknownConfigError, case_names, load_case
from tools.parity.folder import AP, KEYS, RECALL, ap_row, keys_row, recall_row
from tools.parity.network_rows import network_rows
from tools.parity.picture import default_picture, picture_rows
from tools.parity.rows import Row, table, write_rows
from tools.parity.second_stage_rows import second_stage_rows


@dataclass(frozen=True)
class Options:
    """Compare this package with figures that the original computed.

    The exit code is 0 if every figure passes, 1 if a figure fails or if a picture or config is
    missing, and 2 for wrong input. docs/parity.md describes the folder.
    """

    folder: Annotated[Path, tyro.conf.Positional] = tyro.MISSING
    """Folder of cases, NAME.npz."""
    cases: tuple[str, ...] = ()
    """Names of cases to run, also 'keys', 'recall' and 'ap'. The default is all in the folder."""
    config: Annotated[str | None, tyro.conf.DisallowNone] = None
    """Name or path of a config for all cases. The default is each case's own."""
    seed: Annotated[int | None, tyro.conf.DisallowNone] = None
    """Seed of the weights for all cases. The default is each case's own."""
    precision: Precision = "float32"
    """Precision of the network. It replaces the configs'. The limits are those of float32."""
    picture: OptionalPath = None
    """Picture file of the cases image_*. The default is the first in the folder, or the first in
    examples/bccd/test."""
    out: OptionalPath = None
    """JSON file to write the rows to."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command on ``arguments`` (by default the process's) and return its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    return exit_code(lambda: _run(read_flags(Options(), words, "python -m tools.parity")))


def _run(options: Options) -> int:
    console = Console()
    use_platform("auto")
    set_up_compiling()
    names = _chosen(options)
    if options.out is not None:
        check_out_file(options.out)
    picture = options.picture or default_picture(options.folder)
    rows, without_picture, without_config = [], [], []
    for name in names:
        if name.startswith(PICTURE_PREFIX) and picture is None:
            without_picture.append(name)
            continue
        console.print(f"{name} ...", style="dim")
        try:
            rows += _rows(options, name, picture)
        except UnknownConfigError as error:
            without_config.append(f"{name} ({error.name})")
    if options.out is not None:
        write_rows(options.out, rows)
    failed = sum(row.failed for row in rows)
    console.print(table(rows))
    console.print(f"{failed} of {sum(row.measured is not None for row in rows)} figures fail")
    if without_picture:
        console.print(f"not measured, pass --picture: {', '.join(without_picture)}")
    if without_config:
        console.print(f"not measured, no such config: {', '.join(without_config)}")
    return int(failed > 0 or bool(without_picture or without_config))


def _chosen(options: Options) -> list[str]:
    """Return the names of the cases to run, also 'keys', 'recall' and 'ap'."""
    available = [
        *(name for name in (KEYS,) if (options.folder / name).is_dir()),
        *case_names(options.folder),
        *(name for name in (RECALL, AP) if (options.folder / name).is_dir()),
    ]
    for name in options.cases:
        if name not in available:
            raise UserError(
                f"--cases {name}: {options.folder} has no such case{nearest(name, available)}"
            )
    if not available:
        raise UserError(f"{options.folder}: contains no case, that is no file NAME.npz")
    return list(options.cases) or available


def _rows(options: Options, name: str, picture: Path | None) -> list[Row]:
    if name == KEYS:
        return [keys_row(options.folder)]
    if name == RECALL:
        return [recall_row(options.folder)]
    if name == AP:
        return [ap_row(options.folder)]
    case = load_case(options.folder, name, options.config, options.seed, options.precision)
    if picture is not None and name.startswith(PICTURE_PREFIX):
        return picture_rows(case, picture)
    return network_rows(case) if case.num_classes is None else second_stage_rows(case)


if __name__ == "__main__":
    sys.exit(main())
