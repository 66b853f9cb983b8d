"""Kernels of compiled programs are counted by kind."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from rpn_jax.config import Config, save_config
from tools import kernels

PROGRAM = """\
HloModule jit_f, is_scheduled=true

%fused_add (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  ROOT %add.1 = f32[8]{0} add(%p, %p)
}

%body (s: (f32[8], s32[])) -> (f32[8], s32[]) {
  %s = (f32[8]{0}, s32[]) parameter(0)
  %x = f32[8]{0} get-tuple-element(%s), index=0
  %loop_add_fusion.1 = f32[8]{0} fusion(%x), kind=kLoop, calls=%fused_add
  ROOT %t = (f32[8]{0}, s32[]) tuple(%loop_add_fusion.1, %i)
}

%condition (s.1: (f32[8], s32[])) -> pred[] {
  %s.1 = (f32[8]{0}, s32[]) parameter(0)
  ROOT %wrapped_compare = pred[] fusion(%s.1), kind=kLoop, calls=%fused_compare
}

%command_buffer (a: f32[8]) -> f32[8] {
  %a = f32[8]{0} parameter(0)
  %conv.2 = f32[8]{0} custom-call(%a), custom_call_target="__cudnn$convBiasActivationForward"
  %conv.3 = f32[8]{0} custom-call(%a), custom_call_target="__cudnn$convForward"
  %gemm_fusion.1 = f32[8]{0} fusion(%a), kind=kCustom, metadata={op_name="jit(f)/dot_general"}
  ROOT %input_transpose_fusion = f32[8]{0} fusion(%a), kind=kInput, calls=%fused_add
}

ENTRY %main (Arg_0: f32[8]) -> f32[8] {
  %Arg_0 = f32[8]{0} parameter(0)
  %loop_convert_fusion = bf16[8]{0} fusion(%Arg_0), kind=kLoop, calls=%fused_add
  %fusion.14 = (f32[8]{0}, s32[8]{0}) fusion(%x), kind=kCustom, metadata={op_name="jit/top_k"}
  %call = f32[8]{0} call(%Arg_0), to_apply=%command_buffer
  %while.1 = (f32[8]{0}, s32[]) while(%tuple), condition=%condition, body=%body
  ROOT %copy.1 = f32[8]{0} copy(%call)
}
"""


def test_counts_by_kind() -> None:
    assert kernels.count_kernels(PROGRAM) == {
        "kernels": 7,
        "conv_fused": 1,
        "conv_plain": 1,
        "matmul": 1,
        "sort": 1,
        "copy_or_transpose": 2,
        "in_loops": 2,
    }


def test_counts_a_compiled_program() -> None:
    def f(x: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, 3, lambda _, y: jnp.sort(jnp.sin(y) + x), x)

    counts = kernels.count_kernels(jax.jit(f).lower(jnp.ones(64)).compile().as_text())
    assert counts["in_loops"] > 0


@pytest.fixture
def tiny(tiny_config: Config, tmp_path: Path) -> str:
    save_config(tiny_config, tmp_path / "tiny.json")
    return str(tmp_path / "tiny.json")


def test_prints_a_row_for_each_program(tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert kernels.main([tiny, "--size", "64", "64", "--batch-sizes", "2"]) == 0
    out = capsys.readouterr().out
    for name in ("normalise + network", "post-processing", "end to end"):
        assert f"| {name} " in out


def test_the_training_step_is_one_program(tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = [tiny, "--train", "--size", "64", "64", "--batch-sizes", "2"]
    assert kernels.main(words) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if " float32 " in line]
    assert len(rows) == 1
    assert rows[0].startswith("| training step |")


@pytest.mark.parametrize("content", [None, "no description"])
def test_a_wrong_target_gets_an_error_message_of_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None
) -> None:
    target = tmp_path / "gpu.txtpb"
    if content is not None:
        target.write_text(content)
    assert kernels.main(["rpn_demo", "--size", "64", "64", "--target", str(target)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert str(target) in error
