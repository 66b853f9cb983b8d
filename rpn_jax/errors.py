"""The one exception for bad input, and its way to whoever typed the command.

Everything a person can get wrong (a path, a key, a box, a weights folder) is raised as a
`UserError` whose text is one line: what was read, its value, and what would be right. `exit_code`
prints that line and makes it code 2; anything else that escapes is a bug and keeps its traceback.
"""

from __future__ import annotations

import difflib
import os
import select
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager


class UserError(ValueError):
    """Bad input, told in one line that names the file, key or box, its value, and the remedy."""


@contextmanager
def reading(where: object) -> Iterator[None]:
    """Turn an OSError of the block into the UserError ``WHERE: cannot be read (REASON)``."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{where}: cannot be read ({error.strerror or error})") from None


@contextmanager
def writing(where: object, remedy: str = "") -> Iterator[None]:
    """Turn an OSError of the block into the UserError ``WHERE: cannot be written (REASON)``.

    Args:
      where: what the block writes: a path, with its kind where that is not obvious.
      remedy: sentence that says what to do. The message ends with it.
    """
    try:
        yield
    except OSError as error:
        ending = f". {remedy}" if remedy else ""
        reason = error.strerror or error
        raise UserError(f"{where}: cannot be written ({reason}){ending}") from None


def nearest(word: str, known: Sequence[str]) -> str:
    """``; did you mean 'x'?`` for the entry of ``known`` nearest to ``word``, or nothing."""
    matches = difflib.get_close_matches(word, known, n=1, cutoff=0.4)
    return f"; did you mean '{matches[0]}'?" if matches else ""


def exit_code(command: Callable[[], int]) -> int:
    """Run a command; its own exit code, or that of what stopped it, told in one line on stderr.

    2 for a `UserError` and for a device whose memory is full, 130 for Ctrl-C, 141 where whoever
    read the output has enough, as ``| head``.
    """
    try:
        try:
            return command()
        finally:
            if sys.stdout is not None:  # closed by whoever started the process, as by >&-
                sys.stdout.flush()
    except BrokenPipeError:
        if not _reader_left():
            raise
        # Python writes what is left when it ends, and that must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        reason = str(error).partition("\n")[0]
        remedy = (
            "a smaller data.batch-size, data.eval-batch-size or model.precision bfloat16 may help"
        )
        print(f"error: the device's memory is full ({reason}); {remedy}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _reader_left() -> bool:
    """Whether it is stdout, and no other pipe or socket, that nobody reads any more."""
    if sys.stdout is None:
        return False
    stdout = select.poll()
    stdout.register(sys.stdout, select.POLLOUT)
    gone = select.POLLERR | select.POLLHUP | select.POLLNVAL
    return any(events & gone for _, events in stdout.poll(0))
