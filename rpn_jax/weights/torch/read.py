"""A file of weights as arrays, without running anything that is written in it.

``.pth`` files, zip and pre-zip, go through ``torch.load(weights_only=True)``; detectron2's pickles
through an unpickler that makes arrays and plain containers only. Whatever else a file asks for is
refused, and nothing turns that off.
"""

from __future__ import annotations

import io
import math
import pickle
import re
import zipfile
from collections import Counter, OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from rpn_jax.errors import UserError, reading
from rpn_jax.weights.torch.download import sha256_of
from rpn_jax.weights.torch.tables import (
    ENTRIES_LEFT_OUT,
    STATE_DICT_ENTRIES,
    TRAINING_LOG_OBJECTS,
)

PRE_ZIP_MAGIC = b"\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"
"""The magic number 0x1950a86a20f9469cfc6c, pickled first in a pre-zip ``.pth``."""
PICKLE_START = b"\x80"


@dataclass(frozen=True)
class Checkpoint:
    """A file of weights, read."""

    arrays: dict[str, np.ndarray]
    """Every tensor under the file's own key, floating ones as float32."""
    dtypes: dict[str, int]
    """How many tensors of each dtype the file holds."""
    left_out: dict[str, str]
    """Entries beside the weights, and why they are not read."""
    metadata: dict[str, Any]
    """What the file says about itself, plain values only."""
    size_bytes: int
    sha256: str


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a ``.pth`` or ``.pkl`` file.

    Raises:
      UserError: a file that cannot be read, is truncated, of another kind, without tensors, or
        that asks for anything but tensors and plain values.
    """
    content = _load(path)
    if not isinstance(content, dict):
        raise UserError(f"weights {path}: holds a {type(content).__name__}, not a state dict")
    weights, beside = _split(content)
    weights = _without_module_prefix(weights)
    arrays, dtypes = {}, Counter[str]()
    for key, value in weights.items():
        if not isinstance(key, str):
            raise UserError(f"weights {path}: has the key {key!r}, where a text is wanted")
        arrays[key], dtype = _to_array(value, key, path)
        dtypes[dtype] += 1
    if not arrays:
        raise UserError(f"weights {path}: holds no tensors")
    left_out, metadata = _sort_beside(beside)
    return Checkpoint(
        arrays=arrays,
        dtypes=dict(dtypes),
        left_out=left_out,
        metadata=metadata,
        size_bytes=path.stat().st_size,
        sha256=sha256_of(path),
    )


def _load(path: Path) -> Any:
    with reading(f"weights {path}"), path.open("rb") as file:
        head = file.read(64)
    if zipfile.is_zipfile(path):
        _check_sums(path)
        return _load_torch(path)
    if PRE_ZIP_MAGIC in head:
        return _load_torch(path)
    if head.startswith(PICKLE_START):
        return _load_pickle(path)
    raise UserError(
        f"weights {path}: is neither a PyTorch file nor a pickle; it may be truncated or a web page"
    )


def _check_sums(path: Path) -> None:
    """Refuse a zip whose records disagree with their CRC-32; PyTorch's reader does not look."""
    try:
        with zipfile.ZipFile(path) as records:
            damaged = records.testzip()
    except Exception as error:  # a broken or hostile file can make a reader raise anything
        _refuse(path, error)
    if damaged is not None:
        raise UserError(f"weights {path}: was altered: the sum of its record '{damaged}' is wrong")


def _load_torch(path: Path) -> Any:
    try:
        import torch
    except ImportError:
        raise UserError(
            f"weights {path}: reading it needs PyTorch: pip install 'rpn-jax[torch]'"
        ) from None
    stand_ins = [(InertObject, name) for name in TRAINING_LOG_OBJECTS]
    try:
        with torch.serialization.safe_globals(stand_ins):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken or hostile file can make a reader raise anything
        _refuse(path, error)


def _load_pickle(path: Path) -> Any:
    try:
        return ArrayUnpickler(io.BytesIO(path.read_bytes()), encoding="latin1").load()
    except Exception as error:  # a broken or hostile file can make a reader raise anything
        _refuse(path, error)


def _refuse(path: Path, error: Exception) -> NoReturn:
    text = str(error)
    asked = re.search(r"GLOBAL ([\w.]+)", text)
    if asked:
        raise UserError(
            f"weights {path}: refused: it asks to run '{asked[1]}'; a file of weights holds "
            "tensors and plain values only, so get it from its publisher"
        ) from None
    cause = re.search(r"WeightsUnpickler error: (.*)", text)
    reason = cause[1] if cause else text.partition("\n")[0] or type(error).__name__
    raise UserError(
        f"weights {path}: cannot be read ({reason}); it may be truncated or altered"
    ) from None


class InertObject:
    """Takes the place of an object of a training log: accepts any state, keeps and does nothing."""

    def __new__(cls, *arguments: object) -> InertObject:
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None:
        pass


class ArrayUnpickler(pickle.Unpickler):
    """Makes NumPy arrays and plain containers, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        made = {
            "collections.OrderedDict": OrderedDict,
            "numpy.core.multiarray._reconstruct": _RECONSTRUCT,
            "numpy._core.multiarray._reconstruct": _RECONSTRUCT,
            "numpy.core.multiarray.scalar": _SCALAR,
            "numpy._core.multiarray.scalar": _SCALAR,
            "numpy.ndarray": np.ndarray,
            "numpy.dtype": np.dtype,
            "_codecs.encode": _latin1_bytes,
        }.get(f"{module}.{name}")
        if made is None:
            raise pickle.UnpicklingError(f"GLOBAL {module}.{name}")
        return made


# NumPy's own functions for unpickling, by a way that does not depend on its private modules.
_RECONSTRUCT = np.empty(0).__reduce__()[0]
_SCALAR = np.float64(0).__reduce__()[0]


def _latin1_bytes(text: str, encoding: str) -> bytes:
    """``codecs.encode`` as Python 2's and 3's pickles of bytes use it, for that encoding only."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes in encoding '{encoding}'")
    return text.encode("latin1")


def _split(content: dict[Any, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(weights, entries beside them); a bare state dict has nothing beside it."""
    for entry in STATE_DICT_ENTRIES:
        if isinstance(content.get(entry), dict):
            return content[entry], {key: content[key] for key in content if key != entry}
    return content, {}


def _without_module_prefix(weights: dict[str, Any]) -> dict[str, Any]:
    """Without the ``module.`` that PyTorch's parallel wrappers put before every key."""
    while weights and all(str(key).startswith("module.") for key in weights):
        weights = {str(key).removeprefix("module."): value for key, value in weights.items()}
    return weights


def _to_array(value: Any, key: str, path: Path) -> tuple[np.ndarray, str]:
    """(array, dtype in the file); floating dtypes become float32."""
    if isinstance(value, np.ndarray):
        dtype = str(value.dtype)
        array = value
    elif hasattr(value, "detach"):
        dtype = str(value.dtype).removeprefix("torch.")
        try:
            dense = value.detach()
            array = (dense.float() if dense.is_floating_point() else dense).numpy()
        except (RuntimeError, TypeError, NotImplementedError):
            raise UserError(f"weights {path}: '{key}' is no plain dense tensor") from None
    else:
        raise UserError(
            f"weights {path}: '{key}' holds a {type(value).__name__}, where a tensor is wanted"
        )
    if array.dtype.kind not in "fiub":
        raise UserError(f"weights {path}: '{key}' holds {dtype}, where real numbers are wanted")
    return (array.astype(np.float32, copy=False) if array.dtype.kind == "f" else array), dtype


def _sort_beside(beside: dict[str, Any]) -> tuple[dict[str, str], dict[str, Any]]:
    """(left out with the reason, metadata) of the entries beside the weights."""
    left_out, metadata = {}, {}
    for name, value in beside.items():
        if name in ENTRIES_LEFT_OUT:
            left_out[str(name)] = ENTRIES_LEFT_OUT[name]
        elif _holds_arrays(value):
            left_out[str(name)] = "tensors beside the weights"
        else:
            metadata[str(name)] = _plain(value)
    return left_out, metadata


def _holds_arrays(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_holds_arrays, value.values()))
    if isinstance(value, list | tuple):
        return any(map(_holds_arrays, value))
    return isinstance(value, np.ndarray) or hasattr(value, "detach")


def _plain(value: Any) -> Any:
    """``value`` as JSON can hold it; what it cannot hold is named by its type."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(item) for item in value]
    return f"<{type(value).__name__}>"
