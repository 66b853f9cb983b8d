"""Report what a conversion did, as a table on the console and as JSON."""

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
    """The source of converted weights, and how each key was used."""

    source: str
    """The source as the user named it."""
    sha256: str
    """SHA-256 of the source's file, in hexadecimal."""
    size_bytes: int
    """Size of the source's file."""
    digits_in_name: Literal["match", "differ", "none"]
    """Whether the digits in the file name match the SHA-256. 'none': it has no digits."""
    zoo: str
    """Name of the model zoo that uses these keys."""
    kind: Literal["detector", "backbone"]
    """'detector': the file holds one or both stages. 'backbone': it holds only the backbone."""
    config: str
    """Name of the config that the weights match."""
    config_chosen_by: ChosenBy
    """How the config was chosen: by the user, or from which hint."""
    class_names: tuple[str, ...]
    """Names of the classes. Empty if the weights have no second stage."""
    architecture: str
    """Description of the architecture, from keys and shapes."""
    numbers: int
    """Number of values in all used tensors."""
    dtypes: dict[str, int]
    """Number of tensors of each dtype in the file. All are converted to float32."""
    used: dict[str, str]
    """Key in the file, by parameter."""
    assumed: dict[str, float]
    """Values of statistics that the file does not hold because its norms only scale and shift."""
    initialised: tuple[str, ...]
    """Parameters that the file does not hold. Training initialises them with random values."""
    left_out: dict[str, str]
    """Reason why a key in the file was not used, by key."""
    metadata: dict[str, Any]
    """Metadata in the file."""


def write_report(report: Report, folder: Path) -> None:
    """Write ``report.json``."""
    write_json(folder / REPORT_FILE, dataclasses.asdict(report))


def print_report(report: Report, console: Console) -> None:
    """Print a report as a table. Long metadata is only in ``report.json``."""
    from rich.table import Table
    from rich.text import Text

    # Text is not parsed as markup: a path or metadata may contain square brackets.
    table = Table(title=Text(f"{report.source} -> {report.config}"), show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for label, text in _rows(report):
        table.add_row(Text(label), Text(text))
    console.print(table)


def _rows(report: Report) -> list[tuple[str, str]]:
    rows = [
        ("file", f"{report.size_bytes:,} bytes, SHA-256 {report.sha256}"),
        ("digits in the name", _digits_text(report)),
        ("zoo", f"{report.zoo} ({report.kind})"),
        ("architecture", report.architecture),
        ("config", f"{report.config} (chosen by {report.config_chosen_by})"),
        *([("classes", _examples(report.class_names))] if report.class_names else []),
        ("used", f"{len(report.used)} tensors with {report.numbers:,} values"),
    ]
    if any(dtype != "float32" for dtype in report.dtypes):
        rows.append(("dtypes", ", ".join(f"{n} {dtype}" for dtype, n in report.dtypes.items())))
    if report.assumed:
        rows.append(("assumed", f"mean 0, variance 1: {len(report.assumed)} statistics of norms"))
    if report.initialised:
        rows.append(("not in the file", f"{_examples(report.initialised)}: random initial values"))
    for reason, keys in _by_reason(report.left_out).items():
        rows.append(("not used", f"{_examples(keys)}: {reason}"))
    rows += [(f"metadata {name}", text) for name, text in _short_metadata(report.metadata)]
    return rows


def _digits_text(report: Report) -> str:
    texts = {
        "match": "match its SHA-256",
        "differ": "DIFFER from its SHA-256: the file was changed or is not the published one",
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
    """Return the entries that fit on a line, without lists such as class names."""
    rows = []
    for name, value in metadata.items():
        if isinstance(value, dict):
            rows += _short_metadata(value, f"{prefix}{name}.")
        elif not isinstance(value, list) and len(str(value)) <= SHORT_TEXT:
            rows.append((f"{prefix}{name}", str(value)))
    return rows
