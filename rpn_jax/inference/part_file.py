"""Keep finished results in a file, so that interrupted work continues after its last whole batch.

The first line describes the work. Each other line holds the results of one picture, as they go into
the final file. Pictures are processed in a fixed order, so the lines are the first batches of it.
The final file is in the order of the dataset and is written from the lines, one picture at a time.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import msgspec
import numpy as np

from rpn_jax.data.dataset import Dataset
from rpn_jax.errors import UserError, reading, writing
from rpn_jax.inference.work import check_same_work, file_states

if TYPE_CHECKING:
    from jaxtyping import Int, Int64

FORMAT = 2
"""Number of the format, in the first line of a part file."""


class PartLine(msgspec.Struct):
    """Results of one picture."""

    position: int
    """Position in the dataset."""
    file: tuple[int, int]
    """State of the picture's file, see `file_states`."""
    rows: list[msgspec.Raw] | None
    """Its entries of the final file, as JSON. None if the picture was skipped."""


class _Header(msgspec.Struct):
    format: int
    work: dict[str, str]


@dataclass
class PartFile:
    """An open part file. `open_part_file` creates it."""

    path: Path
    file: BinaryIO
    offsets: Int[np.ndarray, " N"]
    """Byte at which the line of each picture begins. -1 without a line."""
    states: Int64[np.ndarray, "N 2"]
    """State of the file of each picture, from before its pixels are read. See `file_states`."""
    finished: int = 0
    """Number of finished batches."""
    skipped: set[int] = field(default_factory=set)
    """Positions of the pictures that were skipped."""

    @property
    def num_pictures(self) -> int:
        """Number of pictures in the finished batches."""
        return int((self.offsets >= 0).sum())

    @property
    def num_results(self) -> int:
        """Number of finished pictures without the skipped ones."""
        return self.num_pictures - len(self.skipped)

    def append(self, batch: Sequence[int], rows: Mapping[int, Iterable[str]]) -> None:
        """Add the results of a whole batch.

        Args:
          batch: positions of the batch's pictures in the dataset.
          rows: entries of the final file, as JSON, by position. Skipped pictures have none.

        Raises:
          UserError: the file cannot be written.
        """
        with writing(self.path):
            start = self.file.seek(0, os.SEEK_END)
            lines = []
            for position in batch:
                self.offsets[position] = start
                if position not in rows:
                    self.skipped.add(position)
                text = f"[{', '.join(rows[position])}]" if position in rows else "null"
                state = self.states[position].tolist()
                line = f'{{"position": {position}, "file": {state}, "rows": {text}}}\n'
                lines.append(line.encode())
                start += len(lines[-1])
            self.file.write(b"".join(lines))
            self.file.flush()
        self.finished += 1

    def results(self) -> Iterator[tuple[int, list[msgspec.Raw]]]:
        """Yield (position, entries) of each finished picture in the order of the dataset.

        Skipped pictures are left out.

        Raises:
          UserError: the file cannot be read.
        """
        for position in np.flatnonzero(self.offsets >= 0).tolist():
            with reading(self.path):
                self.file.seek(self.offsets[position])
                line = msgspec.json.decode(self.file.readline(), type=PartLine)
            if line.rows is not None:
                yield position, line.rows


@contextmanager
def open_part_file(
    path: Path, work: dict[str, str], batches: Iterable[Sequence[int]], dataset: Dataset
) -> Iterator[PartFile]:
    """Open a part file, or create it. A last batch that is not whole is cut off.

    The file is removed when the block succeeds, and also after an error if it has no whole batch.

    Args:
      path: file. Its folder exists.
      work: settings that determine the results, by name. Their text must be that of the file.
      batches: positions of the pictures of each batch, in the order of the work.
      dataset: pictures.

    Raises:
      UserError: the file holds results of other work or of a picture that was changed, is in use,
        or cannot be read or written.
    """
    with writing(path):
        file = open(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b")  # noqa: SIM115
    with file:
        _lock(file, path)
        part = PartFile(path, file, np.full(len(dataset.pictures), -1), file_states(dataset))
        with reading(path):
            header = file.readline()
            has_results = file.readline().endswith(b"\n")
            if has_results:
                _check_same_work(path, header, work)
                file.seek(len(header))
                _read_finished(part, batches, dataset)
        with writing(path):
            if not has_results:  # The work before was killed in its first batch, or never began.
                file.seek(0)
                file.truncate()
                file.write(json.dumps({"format": FORMAT, "work": work}).encode() + b"\n")
                file.flush()
        try:
            yield part
        except BaseException:
            if not part.finished:
                path.unlink(missing_ok=True)
            raise
        path.unlink(missing_ok=True)


def _lock(file: BinaryIO, path: Path) -> None:
    """Lock the file until it is closed. The system also releases it when the process is killed."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(
            f"{path}: another command writes to it. Wait until it ends, or choose another --out."
        ) from None


def _check_same_work(path: Path, line: bytes, work: dict[str, str]) -> None:
    try:
        header = msgspec.json.decode(line, type=_Header)
    except msgspec.DecodeError:
        header = None
    if header is None or header.format != FORMAT:
        raise UserError(f"{path}: is not a part file of this version. Remove it to start again.")
    check_same_work(path, header.work, work)


def _read_finished(part: PartFile, batches: Iterable[Sequence[int]], dataset: Dataset) -> None:
    """Read the whole batches, and cut off what follows them."""
    end = part.file.tell()
    for batch in batches:
        starts, lines = [], []
        for position in batch:
            starts.append(part.file.tell())
            line = _read_line(part.file, position)
            if line is None:
                part.file.truncate(end)
                return
            lines.append(line)
        for line in lines:
            _check_unchanged(part, line, dataset)
        part.offsets[list(batch)] = starts
        part.skipped.update(line.position for line in lines if line.rows is None)
        part.finished += 1
        end = part.file.tell()
    part.file.truncate(end)


def _read_line(file: BinaryIO, position: int) -> PartLine | None:
    """Read a line. Return None if it is not whole or belongs to another picture."""
    content = file.readline()
    try:
        line = msgspec.json.decode(content, type=PartLine)
    except msgspec.DecodeError:
        return None
    return line if content.endswith(b"\n") and line.position == position else None


def _check_unchanged(part: PartFile, line: PartLine, dataset: Dataset) -> None:
    if line.file != tuple(part.states[line.position].tolist()):
        raise UserError(
            f"{part.path}: holds unfinished results of {dataset.pictures[line.position].name}, but "
            "this picture was changed after them. Remove the file to start again, or choose "
            "another --out."
        )
