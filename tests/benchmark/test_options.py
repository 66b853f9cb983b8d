"""The benchmark's flags and options: defaults, parts, and error messages."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest

from rpn_jax.benchmark import command
from rpn_jax.benchmark.figures import Row
from rpn_jax.benchmark.models import load_measured
from rpn_jax.benchmark.options import Options, check_options
from rpn_jax.cli import main
from rpn_jax.cli import parse as parse_verb
from rpn_jax.config import Config, load_config, replace
from rpn_jax.errors import UserError
from rpn_jax.models import variable_shapes
from rpn_jax.verbs import Benchmark
from rpn_jax.weights.folders import save_variables
from tests.made_variables import assert_bit_equal

R50 = "rpn_r50_fpn_1x_coco"


def parse(words: str) -> Benchmark:
    options = parse_verb(["benchmark", *words.split()])
    assert isinstance(options, Benchmark)
    check_options(options)
    return options


def test_the_flags_have_the_defaults_of_the_python_interface() -> None:
    assert vars(parse(R50)) == vars(Options(R50))
    assert parse(R50).measures_inference


@pytest.mark.parametrize("part", ["train", "matching", "growth", "files", "process"])
def test_selecting_another_part_deselects_inference(part: str) -> None:
    alone, both = parse(f"{R50} --{part}"), parse(f"{R50} --{part} --inference")
    assert getattr(alone, part)
    assert getattr(both, part)
    assert not alone.measures_inference
    assert both.measures_inference


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
        ("", "needs a CONFIG, --weights or --all"),
        (f"{R50} --all", "needs a CONFIG, --weights or --all"),
        ("--all --growth", "--all measures inference and training only"),
        ("--all --peers", "--all measures inference"),
        (f"{R50} --matching --peers", "--peers needs --inference or --train"),
        (f"{R50} --pictures jpegs", "--pictures needs --files"),
        (f"{R50} --rnus 3", "unknown flag '--rnus'; did you mean '--runs'?"),
        (f"{R50} stray", "stray"),
        (f"{R50} --run 3", "did you mean '--runs'?"),
        (f"{R50} --runs 0", "--runs 0: must be 1 or more"),
        (f"{R50} --runs many", "many"),
        (f"{R50} --seconds nan", "--seconds nan: must be 0 or more"),
        (f"{R50} --seconds -1", "--seconds -1.0: must be 0 or more"),
        (f"{R50} --batch-sizes 1 -2", "--batch-sizes -2: must be 1 or more"),
        (f"{R50} --batch-sizes", "--batch-sizes: is empty"),
        (f"{R50} --precisions", "--precisions: is empty"),
        (f"{R50} --size 800 1333", "--size 1333: must be a multiple of 32 pixels"),
        (f"{R50} --size 0 32", "--size 0: must be a multiple of 32 pixels"),
        (f"{R50} --size 800", "size"),
        (f"{R50} --precisions float16", "float16"),
        (f"{R50} --platform tpu", "tpu"),
    ],
    ids=str,
)
def test_wrong_flags_get_an_error_message_of_one_line(words: str, wanted: str) -> None:
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


def test_the_benchmark_runs_from_python_without_the_packages_of_the_command_line() -> None:
    code = (
        "import sys\n"
        "for name in ('tyro', 'cv2', 'grain', 'jaxtyping', 'matplotlib', 'PIL', 'pycocotools',"
        " 'tensorboardX', 'torch'):\n"
        "    sys.modules[name] = None\n"
        "from rpn_jax.benchmark.command import run\n"
        "from rpn_jax.benchmark.options import Options\n"
        "run(Options('rpn_demo', matching=True, size=(64, 64), runs=1, platform='cpu'))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "### matching" in done.stdout


def test_the_command_reports_wrong_input_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", "rpn_r50_fpn_1x", "--platform", "cpu"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: config 'rpn_r50_fpn_1x'")
    assert f"did you mean '{R50}'?" in error
    assert error.count("\n") == 1


def test_weights_bring_their_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config("rpn_demo")
    shapes = variable_shapes(config)
    variables = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.5, leaf.dtype), shapes)
    save_variables(tmp_path, replace(config, name="mine"), variables)
    measured: list[tuple[Options, Config | None]] = []

    def measure(options: Options, config: Config | None) -> Iterator[Row]:
        measured.append((options, config))
        return iter(())

    monkeypatch.setattr(command, "_measurements", measure)
    assert main(["benchmark", "--weights", str(tmp_path), "--batch-sizes", "2"]) == 0
    [(options, used)] = measured
    assert used is not None
    assert (options.batch_sizes, used.name, options.config) == ((2,), "mine", str(tmp_path))
    loaded = load_measured(str(tmp_path))
    assert loaded[0] == used
    assert_bit_equal(loaded[1], variables)
