"""What a conversion did: for people on the screen, for programs as JSON."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rpn_jax.files import write_json

if TYPE_CHECKING:
    from rich.console import Console

ChosenBy = Literal["--config", "file name", "published name", "metadata", "keys", "shapes"]

REPORT_FILE = "report.json"
EXAMPLES = 3
SHORT_TEXT = 60


@dataclass(frozen=True)
class Report:
    """Where weights came from and what became of every key."""

    source: str
    """As it was named."""
    sha256: str
    """Of the source's file."""
    size_bytes: int
    """Of the source's file."""
    digits_in_name: Literal["match", "differ", "none"]
    """Whether the file's name ends in the first digits of its SHA-256."""
    zoo: str
    """Where its keys are from."""
    kind: Literal["detector", "backbone"]
    """'detector': every parameter is from the file; 'backbone': those of the backbone."""
    config: str
    """Name of the config that the weights are for."""
    config_chosen_by: ChosenBy
    """'--config', or what made it the only one of this package that fits."""
    architecture: str
    """What keys and shapes tell of it."""
    numbers: int
    """Weights and statistics taken, counted one by one."""
    dtypes: dict[str, int]
    """Tensors of the file by dtype; all become float32."""
    used: dict[str, str]
    """Parameter -> key in the file."""
    assumed: dict[str, float]
    """Statistics that the file does not hold, as its norms only scale and shift -> value."""
    initialised: tuple[str, ...]
    """Parameters that the file does not hold and training fills at random."""
    left_out: dict[str, str]
    """Key in the file -> why it was not used."""
    metadata: dict[str, Any]
    """What the file says about itself."""


def write_report(report: Report, folder: Path) -> None:
    """Write ``report.json``."""
    write_json(folder / REPORT_FILE, dataclasses.asdict(report))


def print_report(report: Report, console: Console) -> None:
    """Print the counts, what was left out and why, and the source's own metadata."""
    from rich.table import Table
    from rich.text import Text

    # Text, as square brackets in a path or in metadata would be taken for markup.
    table = Table(title=Text(f"{report.source} -> {report.config}"), show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for label, text in _rows(report):
        table.add_row(Text(label), Text(text))
    console.print(table)


def _rows(report: Report) -> list[tuple[str, str]]:
    rows = [
        ("file", f"{report.size_bytes:,} bytes, SHA-256 {report.sha256}"),
        ("digits in its name", _digits_text(report)),
        ("zoo", f"{report.zoo} ({report.kind})"),
        ("architecture", report.architecture),
        ("config", f"{report.config} (chosen by {report.config_chosen_by})"),
        ("used", f"{len(report.used)} tensors, {report.numbers:,} numbers"),
    ]
    if any(dtype != "float32" for dtype in report.dtypes):
        rows.append(("dtypes", ", ".join(f"{n} {dtype}" for dtype, n in report.dtypes.items())))
    if report.assumed:
        rows.append(
            ("assumed", f"{len(report.assumed)} statistics: mean 0, variance 1 (affine norms)")
        )
    if report.initialised:
        rows.append(("not in the file", f"{_examples(report.initialised)}: training fills them"))
    for reason, keys in _by_reason(report.left_out).items():
        rows.append(("left out", f"{_examples(keys)}: {reason}"))
    rows += [(f"its {name}", text) for name, text in _short_metadata(report.metadata)]
    return rows


def _digits_text(report: Report) -> str:
    texts = {
        "match": "agree with its SHA-256",
        "differ": "DISAGREE with its SHA-256: it was altered, or is not the published file",
        "none": "none",
    }
    return texts[report.digits_in_name]


def _by_reason(left_out: Mapping[str, str]) -> dict[str, list[str]]:
    keys = defaultdict(list)
    for key, reason in left_out.items():
        keys[reason].append(key)
    return keys


def _examples(keys: list[str] | tuple[str, ...]) -> str:
    shown = ", ".join(keys[:EXAMPLES])
    return shown if len(keys) <= EXAMPLES else f"{shown} and {len(keys) - EXAMPLES} more"


def _short_metadata(metadata: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """The entries that fit on a line; config texts and class lists are in the JSON."""
    rows = []
    for name, value in metadata.items():
        if isinstance(value, dict):
            rows += _short_metadata(value, f"{prefix}{name}.")
        elif not isinstance(value, list) and len(str(value)) <= SHORT_TEXT:
            rows.append((f"{prefix}{name}", str(value)))
    return rows
