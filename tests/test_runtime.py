"""Folder of the compilation cache, and the release of memory after a compilation."""

import ctypes
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from rpn_jax import runtime
from rpn_jax.runtime import MIN_COMPILE_SECONDS, loader_threads, set_up_compiling

FREED_BYTES = 100 << 20
# Runs in a separate process. The resident memory of this one also changes for other reasons.
SCRIPT = f"""
import ctypes, sys
from pathlib import Path
import jax, jax.numpy as jnp
from rpn_jax.runtime import return_memory_after_compiling

def resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

if sys.argv[1] == "return":
    return_memory_after_compiling()
    return_memory_after_compiling()
c = ctypes.CDLL(None)
c.malloc.restype = ctypes.c_void_p
c.memset.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t)
c.free.argtypes = (ctypes.c_void_p,)
pieces = [c.malloc(1024) for _ in range({FREED_BYTES} // 1024)]
for piece in pieces:
    c.memset(piece, 1, 1024)
pieces.pop()  # stays allocated: free memory at the end is returned without a trim
for piece in pieces:
    c.free(piece)
before = resident_bytes()
jax.block_until_ready(jax.jit(lambda x: x + 1)(jnp.ones(3)))
print(before - resident_bytes())
"""


@pytest.mark.skipif(
    not sys.platform.startswith("linux") or not hasattr(ctypes.CDLL(None), "malloc_trim"),
    reason="only glibc has malloc_trim",
)
def test_freed_memory_is_returned_after_a_compilation() -> None:
    def returned_bytes(how: str) -> int:
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, how], capture_output=True, text=True, check=True
        )
        return int(done.stdout)

    assert returned_bytes("return") > FREED_BYTES / 2
    assert returned_bytes("keep") < FREED_BYTES / 4


DIRECTORY, SECONDS = "jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs"


@pytest.mark.parametrize("given", [None, "given"])
def test_the_compilation_cache_is_ours_or_the_one_of_the_user(
    given: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    before = {name: jax.config.values[name] for name in (DIRECTORY, SECONDS)}
    try:
        jax.config.update(DIRECTORY, given)
        set_up_compiling()
        found = tuple(jax.config.values[name] for name in before)
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
    ours = (str(tmp_path / "rpn_jax" / "xla"), MIN_COMPILE_SECONDS)
    assert found == (ours if given is None else (given, before[SECONDS]))


@pytest.mark.parametrize(
    ("cores", "wanted", "expected"), [(1, 0, 4), (16, 0, 16), (192, 0, 32), (16, 1, 1), (2, 64, 64)]
)
def test_the_number_of_loader_threads_follows_the_cores(
    cores: int, wanted: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "cpu_cores", lambda: cores)
    assert loader_threads(wanted) == expected
