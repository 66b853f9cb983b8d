"""Reading of weights files in every layout, and errors for code in them."""

from __future__ import annotations

import builtins
import collections
import io
import os
import pickle
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rpn_jax.errors import UserError
from rpn_jax.weights.torch.read import read_checkpoint

WEIGHTS = {
    "a.weight": torch.arange(24, dtype=torch.float32).reshape(4, 3, 2, 1),
    "a.bias": torch.tensor([1.5, -2.0]),
    "a.num_batches_tracked": torch.tensor(7),
}
ZIP_AND_PRE_ZIP = pytest.mark.parametrize("as_zip", [True, False], ids=["zip", "pre-zip"])


def save(content: object, path: Path, as_zip: bool = True) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=as_zip)
    return path


def assert_is_weights(arrays: dict[str, np.ndarray]) -> None:
    assert list(arrays) == list(WEIGHTS)
    for key, tensor in WEIGHTS.items():
        np.testing.assert_array_equal(arrays[key], tensor.numpy())


def test_an_unreadable_file_is_an_error(tmp_path: Path, forbid: Callable[[Path], None]) -> None:
    path = save(WEIGHTS, tmp_path / "w.pth")
    forbid(path)
    with pytest.raises(UserError, match=r"w\.pth: cannot be read \(Permission denied\)$"):
        read_checkpoint(path)


@ZIP_AND_PRE_ZIP
@pytest.mark.parametrize(
    "wrap",
    [
        lambda weights: weights,
        lambda weights: collections.OrderedDict(weights),
        lambda weights: {"state_dict": weights},
        lambda weights: {"model": weights, "__author__": "a zoo"},
        lambda weights: {"state_dict": {f"module.{key}": weights[key] for key in weights}},
        lambda weights: {f"module.module.{key}": weights[key] for key in weights},
    ],
    ids=["bare", "ordered", "nested", "model", "module.", "module.module."],
)
def test_every_layout_is_read(wrap, as_zip: bool, tmp_path: Path) -> None:
    path = save(wrap(WEIGHTS), tmp_path / "w.pth", as_zip)
    checkpoint = read_checkpoint(path)
    assert_is_weights(checkpoint.arrays)
    assert checkpoint.dtypes == {"float32": 2, "int64": 1}
    assert checkpoint.size_bytes == len(path.read_bytes())


@ZIP_AND_PRE_ZIP
def test_training_state_is_left_out_and_metadata_is_read(as_zip: bool, tmp_path: Path) -> None:
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([parameter], lr=0.1, momentum=0.9)
    parameter.sum().backward()
    optimizer.step()
    content = {
        "meta": {"epoch": 12, "CLASSES": ("cat", "dog"), "best": float("nan")},
        "state_dict": WEIGHTS,
        "optimizer": optimizer.state_dict(),
        "ema_state_dict": {f"module.{key}": tensor for key, tensor in WEIGHTS.items()},
        "teacher": {"a.weight": torch.ones(1)},
    }
    checkpoint = read_checkpoint(save(content, tmp_path / "w.pth", as_zip))
    assert_is_weights(checkpoint.arrays)
    assert set(checkpoint.left_out) == {"optimizer", "ema_state_dict", "teacher"}
    assert checkpoint.metadata == {"meta": {"epoch": 12, "CLASSES": ["cat", "dog"], "best": "nan"}}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floating_dtypes_become_float32(dtype: torch.dtype, tmp_path: Path) -> None:
    tensor = torch.tensor([0.1, -3.25]).to(dtype)
    checkpoint = read_checkpoint(save({"a": tensor}, tmp_path / "w.pth"))
    assert checkpoint.arrays["a"].dtype == np.float32
    np.testing.assert_array_equal(checkpoint.arrays["a"], tensor.float().numpy())
    assert checkpoint.dtypes == {str(dtype).removeprefix("torch."): 1}


def mmengine_log(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Install a module like MMEngine's. Its buffers record when one is rebuilt."""
    module = types.ModuleType("mmengine.logging.history_buffer")

    class HistoryBuffer:
        rebuilt = 0

        def __init__(self) -> None:
            self.log_history = np.arange(5.0)
            self.statistics_methods = {"min": HistoryBuffer.min}

        def min(self) -> float:
            return self.log_history.min()

        def __setstate__(self, state: dict) -> None:
            HistoryBuffer.rebuilt += 1

    HistoryBuffer.__module__ = module.__name__
    HistoryBuffer.__qualname__ = "HistoryBuffer"
    HistoryBuffer.min.__module__ = module.__name__
    HistoryBuffer.min.__qualname__ = "HistoryBuffer.min"
    module.HistoryBuffer = HistoryBuffer  # type: ignore[attr-defined]
    for name in ("mmengine", "mmengine.logging"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return HistoryBuffer


@ZIP_AND_PRE_ZIP
def test_training_logs_of_mmengine_are_left_out(
    as_zip: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    history_buffer = mmengine_log(monkeypatch)
    content = {
        "meta": {"epoch": 1, "best": np.float64(0.5)},
        "state_dict": WEIGHTS,
        "message_hub": {"log_scalars": collections.OrderedDict(loss=history_buffer())},
    }
    path = save(content, tmp_path / "epoch_1.pth", as_zip)
    torch.load(path, weights_only=False)
    assert history_buffer.rebuilt == 1, "the file does hold a live log"
    checkpoint = read_checkpoint(path)
    assert history_buffer.rebuilt == 1
    assert_is_weights(checkpoint.arrays)
    assert set(checkpoint.left_out) == {"message_hub"}
    assert checkpoint.metadata["meta"] == {"epoch": 1, "best": "<InertObject>"}


def test_reading_does_not_change_what_torch_allows(tmp_path: Path) -> None:
    before = set(torch.serialization.get_safe_globals())
    read_checkpoint(save(WEIGHTS, tmp_path / "w.pth"))
    assert set(torch.serialization.get_safe_globals()) == before


class Payload:
    """Object whose unpickling calls ``function`` with ``arguments``."""

    def __init__(self, function, *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def payloads(marker: Path) -> dict[str, Payload]:
    return {
        "system": Payload(os.system, f"touch {marker}"),
        "exec": Payload(builtins.exec, f"open({str(marker)!r}, 'w').close()"),
        "mkdir": Payload(os.mkdir, str(marker)),
    }


PAYLOADS = pytest.mark.parametrize("payload", ["system", "exec", "mkdir"])


def assert_refused_without_running(path: Path, run, marker: Path) -> None:
    with pytest.raises(UserError, match=r"contains code to execute \('[a-z_.]+'\)") as caught:
        read_checkpoint(path)
    assert "\n" not in str(caught.value)
    assert not marker.exists(), "the payload ran"
    run()
    assert marker.exists(), "the payload was no payload"


@PAYLOADS
@ZIP_AND_PRE_ZIP
def test_a_malicious_pth_is_an_error(payload: str, as_zip: bool, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    content = {"state_dict": WEIGHTS, "meta": payloads(marker)[payload]}
    path = save(content, tmp_path / "evil.pth", as_zip)
    assert_refused_without_running(path, lambda: torch.load(path, weights_only=False), marker)


@PAYLOADS
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_malicious_pickle_is_an_error(payload: str, protocol: int, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    content = {"model": {"a": np.ones(2)}, "extra": payloads(marker)[payload]}
    path = tmp_path / "evil.pkl"
    path.write_bytes(b"\x80\x02" + pickle.dumps(content, protocol).removeprefix(b"\x80\x02"))
    assert_refused_without_running(path, lambda: pickle.loads(path.read_bytes()), marker)


def test_a_malicious_pickle_named_pth_is_an_error(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    path = tmp_path / "evil.pth"
    magic = pickle.dumps(torch.serialization.MAGIC_NUMBER, 2)
    evil = pickle.dumps(payloads(marker)["system"], 2)
    path.write_bytes(magic + evil)

    def run() -> None:
        stream = io.BytesIO(path.read_bytes())
        pickle.load(stream)
        pickle.load(stream)

    assert_refused_without_running(path, run, marker)


def as_python_2_wrote(content: object) -> bytes:
    """Pickle with protocol 2 and the module names of NumPy 1."""
    return pickle.dumps(content, 2).replace(b"numpy._core", b"numpy.core")


@pytest.mark.parametrize("dumps", [pickle.dumps, as_python_2_wrote], ids=["now", "python 2"])
@pytest.mark.parametrize("entry", ["model", "blobs"])
def test_pickles_of_arrays_are_read(dumps, entry: str, tmp_path: Path) -> None:
    arrays = {"conv1_w": np.arange(6, dtype=np.float32).reshape(2, 3), "n": np.arange(3)}
    path = tmp_path / "R-50.pkl"
    path.write_bytes(dumps({entry: arrays, "__author__": "Caffe2", "lr": np.float64(0.5)}))
    checkpoint = read_checkpoint(path)
    assert set(checkpoint.arrays) == set(arrays)
    for key, array in arrays.items():
        np.testing.assert_array_equal(checkpoint.arrays[key], array)
    assert checkpoint.metadata == {"__author__": "Caffe2", "lr": 0.5}


@ZIP_AND_PRE_ZIP
@pytest.mark.parametrize("share", [0.02, 0.5, 0.9, 0.999])
def test_truncated_files_are_errors(share: float, as_zip: bool, tmp_path: Path) -> None:
    path = save({"state_dict": {"a": torch.ones(1000)}}, tmp_path / "w.pth", as_zip)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(UserError, match="damaged") as caught:
        read_checkpoint(path)
    assert "\n" not in str(caught.value)


def test_one_changed_bit_in_the_weights_of_a_zip_is_an_error(tmp_path: Path) -> None:
    path = save({"state_dict": {"a": torch.ones(1000)}}, tmp_path / "w.pth")
    content = bytearray(path.read_bytes())
    content[content.index(torch.ones(1000).numpy().tobytes()) + 2000] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="is damaged, the checksum of"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ({7: torch.zeros(2)}, "the key 7 is not a string"),
        ([torch.ones(1)], "holds a list, not a state dict"),
        ({}, "holds no tensors"),
        ({"state_dict": {"a": [1, 2]}}, "'a' is a list, not a tensor"),
        ({"a": torch.ones(2, dtype=torch.complex64)}, "'a' has dtype complex64"),
        ({"a": torch.eye(2).to_sparse()}, "'a' is not a dense tensor"),
    ],
)
def test_the_error_for_other_content_describes_it(
    content: object, complaint: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=complaint):
        read_checkpoint(save(content, tmp_path / "w.pth"))


def test_arrays_of_objects_are_errors(tmp_path: Path) -> None:
    path = tmp_path / "w.pkl"
    path.write_bytes(pickle.dumps({"a": np.array([{"b": 1}], dtype=object)}))
    with pytest.raises(UserError, match="'a' has dtype object, which is not a real number"):
        read_checkpoint(path)


def test_a_web_page_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    path.write_text("<html>404</html>")
    with pytest.raises(UserError, match="is no PyTorch file and no pickle"):
        read_checkpoint(path)
