"""The command that checks everything on a GPU, in its smallest form."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rpn_jax.errors import UserError
from tools.gpu import __main__ as command
from tools.gpu.child import MISSING_PACKAGE
from tools.gpu.results import SectionResult, markdown, summary

ROOT = Path(__file__).resolve().parents[3]


def run(out: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tools.gpu", "--out", str(out), *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


def test_smallest_form_passes_and_writes_both_files(tmp_path: Path) -> None:
    done = run(tmp_path, "--tiny", "--sections", "environment", "operations")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].endswith("sections 2 passed, 0 failed, 0 skipped")
    content = json.loads((tmp_path / "results.json").read_text())
    assert content["options"]["small"]
    assert [section["status"] for section in content["sections"].values()] == ["passed", "passed"]
    checks = content["sections"]["operations"]["rows"]
    assert len(checks) == 10
    assert all(row["passed"] for row in checks)
    assert "| NMS, a chain" in (tmp_path / "results.md").read_text()


@pytest.fixture
def _signal_handler_as_before() -> Iterator[None]:
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


@pytest.mark.usefixtures("_signal_handler_as_before")
def test_a_section_that_reaches_its_limit_fails_and_the_next_one_runs(tmp_path: Path) -> None:
    words = ["--out", str(tmp_path), "--small", "--sections", "parity", "goals"]
    assert command.main([*words, "--minutes", "0.01"]) == 1
    sections = json.loads((tmp_path / "results.json").read_text())["sections"]
    assert list(sections) == ["parity", "goals"]
    assert sections["parity"]["status"] == "failed"
    assert sections["parity"]["message"].startswith("stopped at its limit of")


def test_folder_without_wheels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"contains no \.whl file"):
        command._environment(tmp_path, tmp_path)


@pytest.mark.parametrize(
    ("code", "rows", "status", "message"),
    [
        (0, [{"passed": True}, {"figure": 1}], "passed", ""),
        (1, [{"passed": True}, {"passed": False}], "failed", "1 of 2 rows failed"),
        (0, [{"failed": "no memory"}], "failed", "1 of 1 rows failed"),
        (-11, [{"passed": True}], "failed", "exit code -11: the last line"),
        (None, [], "failed", "stopped at its limit of 7 s"),
        (MISSING_PACKAGE, [], "skipped", "the last line"),
    ],
)
def test_status_follows_exit_code_and_rows(
    code: int | None, rows: list[dict[str, object]], status: str, message: str
) -> None:
    assert command._judge(code, rows, 7.0, "first\nthe last line\n\n") == (status, message)


def test_a_row_that_is_cut_off_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n{"a": 2')
    assert command._read_rows(path) == [{"a": 1}]
    assert command._read_rows(tmp_path / "missing") == []


def test_report_of_an_interrupted_run_counts_the_sections_that_did_not_run() -> None:
    results = [SectionResult("parity", "About.", "failed", "exit code 1", 2.0, [{"figure": 3}])]
    assert summary(Path("out"), results, 3).endswith("0 passed, 1 failed, 0 skipped, 2 not run")
    text = markdown(results)
    assert "exit code 1" in text
    assert "### parity" in text


def test_sections_import_where_optional_packages_are_missing() -> None:
    missing = ["cv2", "grain", "jaxtyping", "matplotlib", "msgspec", "PIL"]
    missing += ["pycocotools", "simplejpeg", "tensorboardX", "torchvision", "tyro"]
    code = f"import sys; sys.modules.update(dict.fromkeys({missing}))\nimport tools.gpu.sections"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
