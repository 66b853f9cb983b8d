"""Context managers for system errors, suggestions, and the exit codes of commands."""

from __future__ import annotations

import errno
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

from rpn_jax.errors import UserError, exit_code, nearest, reading, writing


def test_nearest_suggests_one_name_or_nothing() -> None:
    assert nearest("learning_rte", ["momentum", "learning_rate"]) == (
        "; did you mean 'learning_rate'?"
    )
    assert nearest("zzz", ["momentum", "learning_rate"]) == ""


def test_reading_and_writing_turn_system_errors_into_user_errors() -> None:
    full = OSError(errno.ENOSPC, "No space left on device", "file that the system names")
    with pytest.raises(UserError) as refusal, reading("weights W"):
        raise full
    assert str(refusal.value) == "weights W: cannot be read (No space left on device)"
    with pytest.raises(UserError) as refusal, writing("a.json"):
        raise OSError("an error without a number")
    assert str(refusal.value) == "a.json: cannot be written (an error without a number)"
    with pytest.raises(UserError) as refusal, writing("a.json", "Choose another file."):
        raise full
    assert str(refusal.value) == (
        "a.json: cannot be written (No space left on device). Choose another file."
    )


@pytest.mark.parametrize("context", [reading, writing])
@pytest.mark.parametrize("error", [UserError("a.json: is empty"), KeyError("a bug")])
def test_reading_and_writing_keep_other_errors(
    context: Callable[[str], AbstractContextManager[None]], error: Exception
) -> None:
    with pytest.raises(type(error)) as raised, context("a.json"):
        raise error
    assert raised.value is error


def exit_code_after(error: BaseException) -> int:
    def command() -> int:
        raise error

    return exit_code(command)


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("a.json: no such file"), 2, "error: a.json: no such file\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_an_error_of_a_command_is_an_exit_code_and_one_line(
    error: BaseException, code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code_after(error) == code
    assert capsys.readouterr().err == line


def test_full_device_memory_is_an_error_and_other_exceptions_are_raised(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert exit_code_after(RuntimeError("RESOURCE_EXHAUSTED: 8 GB\nlong list")) == 2
    printed = capsys.readouterr().err
    assert "the memory of the device is full (RESOURCE_EXHAUSTED: 8 GB)" in printed
    assert printed.count("\n") == 1
    with pytest.raises(RuntimeError, match="a bug"):
        exit_code_after(RuntimeError("a bug"))


def test_the_exit_code_of_a_successful_command_is_returned(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert [exit_code(lambda: 0), exit_code(lambda: 1)] == [0, 1]
    assert capsys.readouterr().err == ""


PRINTING = "print('words ' * 100_000)"
RICH_PRINTING = "[make_console().print('words') for _ in range(3)]"


def program_of(command: str) -> str:
    imports = "from rpn_jax.console import make_console; from rpn_jax.errors import exit_code"
    return f"import sys; {imports}; sys.exit(exit_code(lambda: ({command}, 0)[1]))"


@pytest.mark.parametrize("command", [PRINTING, RICH_PRINTING])
def test_a_closed_pipe_ends_the_command_without_a_message(command: str) -> None:
    program = program_of(command)
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        printed = process.stderr.read()
    assert (process.returncode, printed) == (141, b"")


@pytest.mark.parametrize("command", [PRINTING, RICH_PRINTING])
@pytest.mark.parametrize("flag", ["-b", "-u"])  # -u: stdout has no buffer
def test_a_full_disk_of_stdout_is_one_line(command: str, flag: str) -> None:
    with open("/dev/full", "w") as full:
        process = subprocess.run(
            [sys.executable, flag, "-c", program_of(command)],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert process.returncode == 2
    assert process.stderr == (
        "error: stdout or an output file cannot be written (No space left on device). Free space "
        "on its disk.\n"
    )


def test_a_full_disk_of_a_file_is_one_line_without_stdout(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    assert exit_code_after(OSError(errno.ENOSPC, "No space left on device")) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_closed_stdout_does_not_change_the_exit_code() -> None:
    program = "import sys; from rpn_jax.cli import main; sys.exit(main(['--help']))"
    process = subprocess.run(
        ["sh", "-c", f'exec {sys.executable} -c "$0" >&-', program],
        capture_output=True,
        check=False,
    )
    assert (process.returncode, process.stderr) == (0, b"")


def test_another_broken_pipe_is_raised() -> None:
    with pytest.raises(BrokenPipeError, match="of a socket"):
        exit_code_after(BrokenPipeError("of a socket"))
