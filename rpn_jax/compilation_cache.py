"""JAX's persistent cache of compiled programs."""

from __future__ import annotations

import os
from pathlib import Path

import jax

MIN_COMPILE_SECONDS = 1.0


def use_compilation_cache() -> None:
    """Keep compiled programs between runs, in ``$XDG_CACHE_HOME/rpn_jax/xla``.

    A folder that the user gave JAX (``JAX_COMPILATION_CACHE_DIR``) is left as it is.
    """
    if jax.config.values["jax_compilation_cache_dir"] is not None:
        return
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    jax.config.update("jax_compilation_cache_dir", str(home / "rpn_jax" / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", MIN_COMPILE_SECONDS)
