"""Freed memory goes back to the system when something was compiled; in a process of its own."""

import ctypes
import subprocess
import sys

import pytest

FREED_BYTES = 100 << 20
SCRIPT = f"""
import ctypes, sys
from pathlib import Path
import jax, jax.numpy as jnp
from rpn_jax.compiling import return_memory_after_compiling

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
pieces.pop()  # what lies behind is not given back by itself
for piece in pieces:
    c.free(piece)
before = resident_bytes()
jax.block_until_ready(jax.jit(lambda x: x + 1)(jnp.ones(3)))
print(before - resident_bytes())
"""


@pytest.mark.skipif(
    not sys.platform.startswith("linux") or not hasattr(ctypes.CDLL(None), "malloc_trim"),
    reason="only glibc keeps what is freed, and can be told not to",
)
def test_freed_memory_goes_back_after_compiling() -> None:
    def given_back(how: str) -> int:
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, how], capture_output=True, text=True, check=True
        )
        return int(done.stdout)

    assert given_back("return") > FREED_BYTES / 2
    assert given_back("keep") < FREED_BYTES / 4
