"""Define `UserError`, the exception for wrong input, and the exit codes of commands.

Wrong input is a path, a config key, a box or a weights folder that cannot be used. The message is
one line: ``WHERE: what is wrong. What to do.`` `exit_code` prints that line and returns 2. All
other exceptions are bugs and keep their tracebacks.
"""

from __future__ import annotations

import difflib
import errno
import os
import select
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager


class UserError(ValueError):
    """Wrong input. The message is one line with the name, the value and what to do.

    Line breaks are escaped: the name of a file may contain them.
    """

    def __init__(self, message: str) -> None:
        super().__init__("\\n".join(message.splitlines()))


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
    """Return ``; did you mean 'x'?`` for the entry of ``known`` that is most similar, or ''."""
    matches = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"; did you mean '{matches[0]}'?" if matches else ""


def exit_code(command: Callable[[], int]) -> int:
    """Run a command and return its exit code. An error prints one line on stderr.

    The code is 2 after a `UserError` or if the memory of the device or the disk is full, 130 after
    Ctrl-C, and 141 if the program that reads the output has ended, as in ``| head``.
    """
    try:
        try:
            return command()
        finally:
            if sys.stdout is not None:  # None if the shell closed it with >&-
                sys.stdout.flush()
    except BrokenPipeError:
        if not _reader_has_ended():
            raise
        _discard_output()
        return 141
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        _discard_output()
        print(
            f"error: stdout or an output file cannot be written ({error.strerror}). Free space on "
            "its disk.",
            file=sys.stderr,
        )
        return 2
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        reason = str(error).partition("\n")[0]
        remedy = "Reduce data.batch-size or data.eval-batch-size, or use model.precision bfloat16."
        print(f"error: the memory of the device is full ({reason}). {remedy}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _discard_output() -> None:
    """Discard what is not yet written to stdout. Python flushes it at its end, and would fail."""
    if sys.stdout is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _reader_has_ended() -> bool:
    """Return whether no program reads stdout any more. Otherwise another pipe is broken."""
    if sys.stdout is None:
        return False
    stdout = select.poll()
    stdout.register(sys.stdout, select.POLLOUT)
    gone = select.POLLERR | select.POLLHUP | select.POLLNVAL
    return any(events & gone for _, events in stdout.poll(0))
