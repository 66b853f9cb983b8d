"""Load cases: figures of the reference, and the config and seed that they were computed with.

The format
==========
A case is a file ``NAME.npz``. These fields say what the network was built from:

``config``       name of a config, or path of a ``.py`` or ``.json`` file. A path is looked up in
                 the folder of the case first, then from the current directory.
``seed``         whole number; `tools.parity.weights` fills the weights from it.
``num_classes``  whole number: classes of the second stage, without background. A case of an RPN
                 does not have this field.

Cases without ``config`` and ``seed`` need an entry in a list of cases, ``FOLDER/cases.json``:
``{"NAME": {"config": "rpn_r50_fpn_1x_coco", "seed": 1}}``. For a folder without a list, the list
``tests/golden/cases.json`` of this repository is used. The fields of a file override the list, and
the flags ``--config`` and ``--seed`` override both.

All other fields are optional. In their names, i is the number of a picture and j of a level.

``images`` [B, 3, H, W], ``image_sizes`` [B, 2]
    The network's input, normalised and padded with 0, and the (height, width) of each picture
    before padding.
``gt_i`` [G, 4], ``gt_labels_i`` [G]
    Ground-truth boxes, xyxy in pixels, and for two stages the class of each box, from 0.
``c_mean_j``, ``feat_mean_j`` [B, C]
    Spatial means of the backbone's outputs and of the pyramid's.
``cls_j`` [B, A, h, w], ``reg_j`` [B, 4A, h, w]
    Head outputs. The channels of ``reg_j`` are anchor-major.
``anchors``, ``anchors_stride``
    Every ``anchors_stride``-th anchor of the canvas.
``assigned_i``
    Labels of all anchors before sampling: -2 no such anchor, -1 ignored, 0 negative, k positive for
    box k - 1.
``proposals_i`` [N, 5]
    xyxy and score, best first, in pixels of the canvas.
``loss_cls``, ``loss_bbox``
    Both losses with every positive and every negative anchor sampled.
``grad_names``, ``grad_norms``
    L2 norm of that loss's gradient for each trained parameter.
``sgd_losses`` [4]
    Total loss before each of three SGD steps (learning rate 1e-4, momentum 0.9, weight decay 0.05)
    and after the last.
``sgd_names``, ``sgd_moves``
    L2 distance that each trained parameter moved in these steps.

A case named ``image_*`` holds the results for one picture file: ``img_shape`` (height, width),
``scale_factor`` (width, height), ``input_patch`` [3, 32, 32] (rows 100 to 131 and columns 200 to
231 of the network's input), and ``proposals`` [N, 5] in pixels of the file.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from rpn_jax.config import Config, Precision, config_names, load_config, with_precision
from rpn_jax.errors import UserError, nearest, reading
from rpn_jax.files import read_json
from rpn_jax.structures import RPNOutputs

if TYPE_CHECKING:
    from jaxtyping import Bool, Float32, Int32, Shaped

CASES_FILE = "cases.json"
OWN_CASES_FILE = Path(__file__).parents[2] / "tests" / "golden" / CASES_FILE
"""List of this repository's cases."""
PICTURE_PREFIX = "image_"
"""Cases of this name hold the results for one picture file."""


class UnknownConfigError(UserError):
    """A case states a config that this package does not have."""

    def __init__(self, name: str) -> None:
        names = config_names()
        super().__init__(
            f"config '{name}': is no known name{nearest(name, names)} (known: {', '.join(names)})"
        )
        self.name = name


@dataclass(frozen=True)
class Source:
    """The config, seed and class count that a case was computed with."""

    config: str
    """Name of a config, or path of a file."""
    seed: int
    """Seed of the weights, see `tools.parity.weights`."""
    num_classes: int | None = None
    """Number of classes of the second stage; None for an RPN."""


@dataclass(frozen=True)
class Case:
    """A config, the seed of its weights, and the figures of the reference."""

    name: str
    config: Config
    """Config in the precision to measure, with every anchor and every proposal sampled."""
    seed: int
    """Seed of the weights."""
    fields: dict[str, np.ndarray]
    """The reference's arrays, in PyTorch's layout."""
    num_classes: int | None = None
    """Number of classes of the second stage; None for an RPN."""

    def indexed(self, prefix: str) -> list[int]:
        """Return the numbers i, ascending, of the fields ``{prefix}i``."""
        endings = [key.removeprefix(prefix) for key in self.fields if key.startswith(prefix)]
        return sorted(int(ending) for ending in endings if ending.isdecimal())

    @property
    def images(self) -> Float32[np.ndarray, "B H W 3"]:
        """The network's input: normalised and padded pictures."""
        return np.ascontiguousarray(self.fields["images"].transpose(0, 2, 3, 1))

    @property
    def image_sizes(self) -> Int32[np.ndarray, "B 2"]:
        """(height, width) of each picture; the whole canvas if the case does not say."""
        images = self.fields["images"]
        whole = np.tile(np.array(images.shape[2:], np.int32), (len(images), 1))
        return self.fields.get("image_sizes", whole).astype(np.int32)

    @property
    def boxes(self) -> tuple[Float32[np.ndarray, "B G 4"], Bool[np.ndarray, "B G"]]:
        """Ground truth xyxy of each picture, padded, and a mask of the boxes that exist."""
        return self._padded("gt_", (4,), np.float32)

    @property
    def labels(self) -> Int32[np.ndarray, "B G"]:
        """Class of each box of `boxes`, padded with zeros."""
        return self._padded("gt_labels_", (), np.int32)[0]

    @property
    def given(self) -> tuple[Float32[np.ndarray, "B N 4"], Bool[np.ndarray, "B N"]]:
        """Given boxes xyxy of each picture, padded, and a mask of the boxes that exist."""
        return self._padded("given_", (4,), np.float32)

    def _padded(
        self, prefix: str, row: tuple[int, ...], dtype: type
    ) -> tuple[Shaped[np.ndarray, "B N *row"], Bool[np.ndarray, "B N"]]:
        """Return the rows ``{prefix}i`` of each picture, padded with zeros, and their mask."""
        none: np.ndarray = np.zeros((0, *row), dtype)
        pictures = range(len(self.fields["images"]))
        rows = [self.fields.get(f"{prefix}{i}", none).reshape(-1, *row) for i in pictures]
        counts = np.array([len(of_picture) for of_picture in rows])
        padded = np.zeros((len(rows), max(1, *counts), *row), dtype)
        for target, of_picture in zip(padded, rows, strict=True):
            target[: len(of_picture)] = of_picture
        return padded, np.arange(padded.shape[1]) < counts[:, None]

    @property
    def outputs(self) -> RPNOutputs:
        """The reference's head outputs, in this package's layout."""
        objectness = [_channels_last(self.fields[f"cls_{j}"]) for j in self.indexed("cls_")]
        deltas = [_channels_last(self.fields[f"reg_{j}"]) for j in self.indexed("reg_")]
        return RPNOutputs(
            tuple(map(jnp.asarray, objectness)),
            tuple(jnp.asarray(level.reshape(*level.shape[:3], -1, 4)) for level in deltas),
        )


def case_names(folder: Path) -> list[str]:
    """Return the sorted names of the cases in a folder.

    Raises:
      UserError: the folder does not exist.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    return sorted(path.stem for path in folder.glob("*.npz"))


def load_case(
    folder: Path, name: str, config: str | None, seed: int | None, precision: Precision
) -> Case:
    """Load ``folder/NAME.npz``.

    Args:
      folder: folder of the case.
      name: name of the case.
      config: name or path of the config; None uses the case's own.
      seed: seed of the weights; None uses the case's own.
      precision: precision to run the network in. It replaces the config's.

    Raises:
      UserError: the file cannot be read or is not such an archive, or its config or seed is
        missing or has a wrong type.
    """
    path = folder / f"{name}.npz"
    try:
        with reading(path), np.load(path) as file:
            fields = {key: file[key] for key in file.files}
    except (ValueError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: is not an archive of NumPy arrays ({error})") from None
    source = _source(folder, name, fields, {"config": config, "seed": seed})
    local = folder / source.config
    loaded = load_config(local) if local.is_file() else _load_config(source.config)
    every_box = replace(
        loaded,
        rpn_loss=replace(loaded.rpn_loss, samples_per_image=0),
        roi_loss=replace(loaded.roi_loss, samples_per_image=0),
    )
    measured = with_precision(_with_classes(every_box, source.num_classes), precision)
    return Case(name, measured, source.seed, fields, source.num_classes)


def _load_config(name: str) -> Config:
    is_name = not Path(name).suffix
    if is_name and name not in config_names():
        raise UnknownConfigError(name)
    return load_config(name)


def _with_classes(config: Config, num_classes: int | None) -> Config:
    if config.model.roi is None or num_classes is None:
        return config
    roi = replace(config.model.roi, num_classes=num_classes, class_names=())
    return replace(config, model=replace(config.model, roi=roi))


def _source(
    folder: Path, name: str, fields: dict[str, np.ndarray], flags: dict[str, str | int | None]
) -> Source:
    values: dict[str, Any] = {
        **_listed(folder).get(name, {}),
        **{key: fields[key].item() for key in ("config", "seed", "num_classes") if key in fields},
        **{key: value for key, value in flags.items() if value is not None},
    }
    for key, kind in (("config", str), ("seed", int)):
        if not isinstance(values.get(key), kind):
            raise UserError(
                f"case {name}: {key} = {values.get(key)}: must be "
                f"{'a text' if kind is str else 'a whole number'}. Pass --{key}, or add the field "
                f"'{key}' to {name}.npz or to an entry in {folder / CASES_FILE}."
            )
    return Source(**values)


def _listed(folder: Path) -> dict[str, dict[str, object]]:
    """Return the entries of the folder's list of cases, or of this repository's list."""
    path = folder / CASES_FILE
    if not path.is_file():
        path = OWN_CASES_FILE
    listed = read_json(path)
    if not isinstance(listed, dict) or not all(isinstance(v, dict) for v in listed.values()):
        raise UserError(f'{path}: must be {{"NAME": {{"config": NAME_OR_PATH, "seed": NUMBER}}}}')
    for entry in listed.values():
        for key in set(entry) - {"config", "seed"}:
            raise UserError(f"{path}: unknown key '{key}'{nearest(key, ['config', 'seed'])}")
    return listed


def _channels_last(array: Float32[np.ndarray, "B C h w"]) -> Float32[np.ndarray, "B h w C"]:
    return np.ascontiguousarray(array.transpose(0, 2, 3, 1))
