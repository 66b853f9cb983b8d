"""The words of the benchmark: defaults, parts, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from rpn_jax.benchmark.options import Options, parse_options
from rpn_jax.errors import UserError

R50 = "rpn_r50_fpn_1x_coco"


def parse(words: str) -> Options:
    return parse_options(words.split(), "benchmark")


def test_a_config_alone_measures_inference() -> None:
    options = parse(R50)
    assert options == Options(
        config=R50,
        all=False,
        inference=True,
        train=False,
        matching=False,
        growth=False,
        files=False,
        process=False,
        peers=False,
        batch_sizes=(1,),
        size=None,
        precisions=("float32",),
        runs=50,
        seconds=60.0,
        pictures=None,
        out=None,
        platform="auto",
    )


@pytest.mark.parametrize("part", ["train", "matching", "growth", "files", "process"])
def test_a_part_is_measured_alone_unless_inference_is_asked_for(part: str) -> None:
    alone, both = parse(f"{R50} --{part}"), parse(f"{R50} --{part} --inference")
    assert getattr(alone, part)
    assert getattr(both, part)
    assert not alone.inference
    assert both.inference


def test_values_are_read() -> None:
    options = parse(
        f"--batch-sizes 1 16 --size 800 1344 --precisions float32 bfloat16 --runs 7 --seconds 1.5 "
        f"--out results --files --pictures jpegs --inference --peers --platform cpu {R50}"
    )
    assert options.batch_sizes == (1, 16)
    assert options.size == (800, 1344)
    assert options.precisions == ("float32", "bfloat16")
    assert (options.runs, options.seconds) == (7, 1.5)
    assert (options.out, options.pictures) == (Path("results"), Path("jpegs"))
    assert options.peers
    assert options.platform == "cpu"


def test_all_needs_no_config() -> None:
    options = parse("--all --train")
    assert options.config is None
    assert options.all
    assert options.train


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("", "name one CONFIG, or pass --all"),
        (f"{R50} --all", "name one CONFIG, or pass --all"),
        ("--all --growth", "--all measures inference and, with --train, training only"),
        ("--all --peers", "--all measures inference"),
        (f"{R50} --matching --peers", "--peers stand beside --inference or --train"),
        (f"{R50} --pictures jpegs", "--pictures are for --files"),
        (f"{R50} --rnus 3", "unknown word '--rnus'; did you mean '--runs'?"),
        (f"{R50} stray", "unknown word 'stray'"),
        (f"{R50} --run 3", "did you mean '--runs'?"),
        (f"{R50} --runs 0", "'0' must be a whole number, 1 or more"),
        (f"{R50} --runs many", "'many' must be a whole number, 1 or more"),
        (f"{R50} --seconds nan", "'nan' must be a number, 0 or more"),
        (f"{R50} --batch-sizes 1 -2", "'-2' must be a whole number, 1 or more"),
        (f"{R50} --size 800 1333", "'1333' must be a whole number, 32 or more, in multiples of 32"),
        (f"{R50} --size 800", "--size"),
        (f"{R50} --precisions float16", "float16"),
        (f"{R50} --platform tpu", "tpu"),
    ],
    ids=str,
)
def test_bad_words_are_one_line(words: str, wanted: str) -> None:
    with pytest.raises(UserError) as raised:
        parse(words)
    assert wanted in str(raised.value)
    assert "\n" not in str(raised.value)


def test_help_explains_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        parse("--help")
    assert done.value.code == 0
    text = capsys.readouterr().out
    for name in Options.__dataclass_fields__:
        assert name == "config" or f"--{name.replace('_', '-')}" in text


def test_the_module_runs_without_the_packages_of_the_command_line() -> None:
    code = (
        "import sys\n"
        "for name in ('tyro', 'cv2', 'grain', 'jaxtyping', 'matplotlib', 'PIL', 'pycocotools',"
        " 'tensorboardX', 'torch'):\n"
        "    sys.modules[name] = None\n"
        "from rpn_jax.benchmark.__main__ import main\n"
        "sys.exit(main('rpn_demo --matching --size 64 64 --runs 1 --platform cpu'.split()))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "### matching" in done.stdout


def test_the_module_tells_bad_input_in_one_line() -> None:
    words = [sys.executable, "-m", "rpn_jax.benchmark", "rpn_r50_fpn_1x", "--platform", "cpu"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: config 'rpn_r50_fpn_1x'")
    assert f"did you mean '{R50}'?" in done.stderr
    assert done.stderr.count("\n") == 1
