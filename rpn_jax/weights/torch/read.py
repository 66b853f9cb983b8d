"""Read a weights file as arrays, without executing code in it.

``.pth`` files of both formats (zip and older) are read by ``torch.load(weights_only=True)``.
detectron2's pickles are read by an unpickler that only creates arrays and plain containers. A file
that names any other object is an error. There is no option to change that.
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
"""The number 0x1950a86a20f9469cfc6c, which the older ``.pth`` format begins with."""
PICKLE_START = b"\x80"


@dataclass(frozen=True)
class Checkpoint:
    """The content of a weights file."""

    arrays: dict[str, np.ndarray]
    """All tensors by their keys in the file. Floating dtypes are converted to float32."""
    dtypes: dict[str, int]
    """Number of tensors of each dtype in the file."""
    left_out: dict[str, str]
    """Reason why an entry other than the weights is not read, by entry."""
    metadata: dict[str, Any]
    """Metadata in the file, as JSON values."""
    size_bytes: int
    sha256: str


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a ``.pth`` or ``.pkl`` file.

    Raises:
      UserError: the file cannot be read, is damaged, is of another kind, holds no tensors, or holds
        objects other than tensors and plain values.
    """
    content = _load(path)
    if not isinstance(content, dict):
        raise UserError(f"weights {path}: holds a {type(content).__name__}, not a state dict")
    weights, others = _split(content)
    weights = _without_module_prefix(weights)
    arrays, dtypes = {}, Counter[str]()
    for key, value in weights.items():
        if not isinstance(key, str):
            raise UserError(f"weights {path}: the key {key!r} is not a string")
        arrays[key], dtype = _to_array(value, key, path)
        dtypes[dtype] += 1
    if not arrays:
        raise UserError(f"weights {path}: holds no tensors")
    left_out, metadata = _sort_other_entries(others)
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
        _check_checksums(path)
        return _load_torch(path)
    if PRE_ZIP_MAGIC in head:
        return _load_torch(path)
    if head.startswith(PICKLE_START):
        return _load_pickle(path)
    raise UserError(
        f"weights {path}: is no PyTorch file and no pickle. It may be damaged, or a web page."
    )


def _check_checksums(path: Path) -> None:
    """Check the CRC-32 of each record of a zip file. PyTorch's reader does not check it."""
    try:
        with zipfile.ZipFile(path) as records:
            damaged = records.testzip()
    except Exception as error:  # damaged or malicious files can raise anything
        _raise_unreadable(path, error)
    if damaged is not None:
        raise UserError(f"weights {path}: is damaged, the checksum of '{damaged}' is wrong")


def _load_torch(path: Path) -> Any:
    try:
        import torch
    except ImportError:
        raise UserError(
            f"weights {path}: PyTorch is not installed. Run: pip install 'rpn-jax[torch]'"
        ) from None
    placeholders = [(InertObject, name) for name in TRAINING_LOG_OBJECTS]
    try:
        with torch.serialization.safe_globals(placeholders):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged or malicious files can raise anything
        _raise_unreadable(path, error)


def _load_pickle(path: Path) -> Any:
    try:
        return ArrayUnpickler(io.BytesIO(path.read_bytes()), encoding="latin1").load()
    except Exception as error:  # damaged or malicious files can raise anything
        _raise_unreadable(path, error)


def _raise_unreadable(path: Path, error: Exception) -> NoReturn:
    """Raise the UserError for an error of a reader."""
    text = str(error)
    code = re.search(r"GLOBAL ([\w.]+)", text)
    if code:
        raise UserError(
            f"weights {path}: contains code to execute ('{code[1]}'). A weights file holds only "
            "tensors and plain values. Get it from its publisher."
        ) from None
    cause = re.search(r"WeightsUnpickler error: (.*)", text)
    reason = cause[1] if cause else text.partition("\n")[0] or type(error).__name__
    raise UserError(
        f"weights {path}: cannot be read ({reason}). The file may be damaged."
    ) from None


class InertObject:
    """Placeholder for an object of a training log. It ignores its arguments and its state."""

    def __new__(cls, *arguments: object) -> InertObject:
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None:
        pass


class ArrayUnpickler(pickle.Unpickler):
    """An unpickler that creates only NumPy arrays and plain containers."""

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


# NumPy's functions for unpickling. Importing them would depend on its private modules.
_RECONSTRUCT = np.empty(0).__reduce__()[0]
_SCALAR = np.float64(0).__reduce__()[0]


def _latin1_bytes(text: str, encoding: str) -> bytes:
    """Do what ``codecs.encode`` does in pickles of bytes, which only use this encoding."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes in encoding '{encoding}'")
    return text.encode("latin1")


def _split(content: dict[Any, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return (weights, other entries). A plain state dict has no other entries."""
    for entry in STATE_DICT_ENTRIES:
        if isinstance(content.get(entry), dict):
            return content[entry], {key: content[key] for key in content if key != entry}
    return content, {}


def _without_module_prefix(weights: dict[str, Any]) -> dict[str, Any]:
    """Remove the prefix ``module.`` that PyTorch's parallel wrappers add to every key."""
    while weights and all(str(key).startswith("module.") for key in weights):
        weights = {str(key).removeprefix("module."): value for key, value in weights.items()}
    return weights


def _to_array(value: Any, key: str, path: Path) -> tuple[np.ndarray, str]:
    """Return (array, dtype in the file). Floating dtypes are converted to float32."""
    if isinstance(value, np.ndarray):
        dtype = str(value.dtype)
        array = value
    elif hasattr(value, "detach"):
        dtype = str(value.dtype).removeprefix("torch.")
        try:
            dense = value.detach()
            array = (dense.float() if dense.is_floating_point() else dense).numpy()
        except (RuntimeError, TypeError, NotImplementedError):
            raise UserError(f"weights {path}: '{key}' is not a dense tensor") from None
    else:
        raise UserError(f"weights {path}: '{key}' is a {type(value).__name__}, not a tensor")
    if array.dtype.kind not in "fiub":
        raise UserError(f"weights {path}: '{key}' has dtype {dtype}, which is not a real number")
    return (array.astype(np.float32, copy=False) if array.dtype.kind == "f" else array), dtype


def _sort_other_entries(others: dict[str, Any]) -> tuple[dict[str, str], dict[str, Any]]:
    """Split the other entries into (reasons of those left out, metadata)."""
    left_out, metadata = {}, {}
    for name, value in others.items():
        if name in ENTRIES_LEFT_OUT:
            left_out[str(name)] = ENTRIES_LEFT_OUT[name]
        elif _contains_arrays(value):
            left_out[str(name)] = "tensors outside the state dict"
        else:
            metadata[str(name)] = _json_value(value)
    return left_out, metadata


def _contains_arrays(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_contains_arrays, value.values()))
    if isinstance(value, list | tuple):
        return any(map(_contains_arrays, value))
    return isinstance(value, np.ndarray) or hasattr(value, "detach")


def _json_value(value: Any) -> Any:
    """Convert a value to JSON values. Other objects become the names of their types."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, dict):
        return {str(key): _json_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [_json_value(item) for item in value]
    return f"<{type(value).__name__}>"
