"""Load the model that a run of the benchmark measures."""

from __future__ import annotations

from pathlib import Path

from rpn_jax.config import Config, load_config
from rpn_jax.models import init_variables
from rpn_jax.structures import Variables


def load_measured(source: str) -> tuple[Config, Variables]:
    """Return a config with random weights, or the config and the weights of a folder.

    Args:
      source: name or file of a config, a folder of weights, or a work directory of training.

    Raises:
      UserError: the config does not exist, or the folder cannot be read.
    """
    config = load_config(source)
    if not Path(source).is_dir():
        return config, init_variables(config)
    from rpn_jax.weights.folders import load_variables  # needs more packages than the benchmark

    return config, load_variables(source)
