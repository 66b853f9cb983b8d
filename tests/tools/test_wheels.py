"""The folder of wheels."""

from __future__ import annotations

from pathlib import Path

import pytest

from rpn_jax.errors import UserError
from tools.wheels import PACKAGES, check_size, download_command


def test_size_is_checked_against_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "small.whl").write_bytes(b"0" * 1000)
    (tmp_path / "large.whl").write_bytes(b"0" * 2000)
    assert check_size(tmp_path) == pytest.approx(0.003)
    monkeypatch.setattr("tools.wheels.MAX_MEGABYTES", 0.0025)
    with pytest.raises(UserError, match=r"take 0\.0 MB.*The largest is large\.whl"):
        check_size(tmp_path)


def test_wheels_are_those_of_the_other_machine(tmp_path: Path) -> None:
    command = download_command(tmp_path, "3.12", ["one", "two"])
    words = " ".join(command)
    assert "--only-binary :all:" in words
    assert "--python-version 3.12" in words
    assert "--platform one --platform two" in words
    assert command[-len(PACKAGES) :] == list(PACKAGES)
