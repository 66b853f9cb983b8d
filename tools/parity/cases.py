"""Cases: what the reference computed, with which config and weights.

A case is a file ``NAME.npz``. Its config and the seed of its weights are those of the command
line, or else its own fields ``config`` and ``seed``, or its entry in the folder's ``cases.json``,
``{"NAME": {"config": "rpn_r50_fpn_1x_coco", "seed": 1}}``, or its entry in `KNOWN_CASES`. A config
is a name, or the path of a ``.py`` or ``.json`` file, relative to the folder or as it stands.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rpn_jax.config import Config, load_config
from rpn_jax.errors import UserError, nearest, reading
from rpn_jax.files import read_json

if TYPE_CHECKING:
    from jaxtyping import Bool, Float32, Int32

    from rpn_jax.ops.convolution import Precision

CASES_FILE = "cases.json"
PICTURE_PREFIX = "image_"
"""Cases of this name hold the whole way of a picture file to its proposals."""


@dataclass(frozen=True)
class Source:
    """What a network is built from."""

    config: str
    """Name, or path of a file."""
    seed: int
    """Of the weights, see `tools.parity.weights`."""


KNOWN_CASES = {
    "r50_pytorch": Source("rpn_r50_fpn_1x_coco", 1),
    "r50_caffe": Source("rpn_r50-caffe_fpn_1x_coco", 2),
    "x101_32x4d": Source("rpn_x101-32x4d_fpn_1x_coco", 3),
    "r101_pytorch": Source("rpn_r101_fpn_2x_coco", 4),
    "r50_caffe_c4": Source("rpn_r50-caffe-c4_1x_coco", 5),
    "image_r50_pytorch": Source("rpn_r50_fpn_1x_coco", 1),
    "image_r50_caffe": Source("rpn_r50-caffe_fpn_1x_coco", 2),
}
"""The cases that this suite began with."""


@dataclass(frozen=True)
class Case:
    """One case: a config and the seed of its weights, and the figures of the reference."""

    name: str
    config: Config
    """In the precision to measure, and with every positive and negative anchor sampled."""
    seed: int
    fields: dict[str, np.ndarray]
    """The reference's arrays, in PyTorch's layout."""

    def indexed(self, prefix: str) -> list[int]:
        """Numbers i, ascending, of the fields ``{prefix}i``."""
        endings = [key.removeprefix(prefix) for key in self.fields if key.startswith(prefix)]
        return sorted(int(ending) for ending in endings if ending.isdecimal())

    @property
    def images(self) -> Float32[np.ndarray, "B H W 3"]:
        """The network's input: normalised and padded."""
        return np.ascontiguousarray(self.fields["images"].transpose(0, 2, 3, 1))

    @property
    def image_sizes(self) -> Int32[np.ndarray, "B 2"]:
        """(height, width) of each picture; the whole canvas where the case does not say."""
        images = self.fields["images"]
        whole = np.tile(np.array(images.shape[2:], np.int32), (len(images), 1))
        return self.fields.get("image_sizes", whole).astype(np.int32)

    @property
    def boxes(self) -> tuple[Float32[np.ndarray, "B G 4"], Bool[np.ndarray, "B G"]]:
        """Ground truth xyxy of each picture, padded, and which boxes exist."""
        none = np.zeros((0, 4), np.float32)
        pictures = range(len(self.fields["images"]))
        boxes = [self.fields.get(f"gt_{i}", none).reshape(-1, 4) for i in pictures]
        counts = np.array([len(rows) for rows in boxes])
        padded = np.zeros((len(boxes), max(1, *counts), 4), np.float32)
        for row, rows in zip(padded, boxes, strict=True):
            row[: len(rows)] = rows
        return padded, np.arange(padded.shape[1]) < counts[:, None]


def case_names(folder: Path) -> list[str]:
    """Names of the cases in a folder, sorted. Raises UserError where there is no such folder."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    return sorted(path.stem for path in folder.glob("*.npz"))


def load_case(
    folder: Path, name: str, config: str | None, seed: int | None, precision: Precision
) -> Case:
    """Load ``folder/NAME.npz``.

    Args:
      folder: of the cases.
      name: of the case.
      config: its config; None where the case tells it itself.
      seed: of its weights; None where the case tells it itself.
      precision: to run it in, whatever its config asks for.

    Raises:
      UserError: a file that is no such archive, or nothing that tells its config or seed.
    """
    path = folder / f"{name}.npz"
    with reading(path):
        try:
            with np.load(path) as file:
                fields = {key: file[key] for key in file.files}
        except (ValueError, zipfile.BadZipFile) as error:
            raise UserError(f"{path}: is no archive of NumPy arrays ({error})") from None
    source = _source(folder, name, fields, config, seed)
    beside = folder / source.config
    loaded = load_config(beside if beside.is_file() else source.config)
    measured = replace(
        loaded,
        model=replace(loaded.model, precision=precision),
        rpn_loss=replace(loaded.rpn_loss, samples_per_image=0),
    )
    return Case(name, measured, source.seed, fields)


def _source(
    folder: Path, name: str, fields: dict[str, np.ndarray], config: str | None, seed: int | None
) -> Source:
    told: dict[str, object] = {}
    if name in KNOWN_CASES:
        told |= vars(KNOWN_CASES[name])
    told |= _listed(folder).get(name, {})
    told |= {key: fields[key].item() for key in ("config", "seed") if key in fields}
    told |= {key: value for key, value in (("config", config), ("seed", seed)) if value is not None}
    found, number = told.get("config"), told.get("seed")
    if not isinstance(found, str) or not isinstance(number, int):
        key = "seed" if isinstance(found, str) else "config"
        raise UserError(
            f"case {name}: {key} = {told.get(key)}: give it with --{key}, as the field '{key}' of "
            f"{name}.npz, or in {folder / CASES_FILE}"
        )
    return Source(found, number)


def _listed(folder: Path) -> dict[str, dict[str, object]]:
    path = folder / CASES_FILE
    if not path.is_file():
        return {}
    listed = read_json(path)
    if not isinstance(listed, dict) or not all(isinstance(v, dict) for v in listed.values()):
        raise UserError(f'{path}: must be {{"NAME": {{"config": NAME_OR_PATH, "seed": NUMBER}}}}')
    for entry in listed.values():
        for key in set(entry) - {"config", "seed"}:
            raise UserError(f"{path}: unknown key '{key}'{nearest(key, ['config', 'seed'])}")
    return listed
