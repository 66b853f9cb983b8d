"""Packed datasets: pictures resized and encoded once, in ArrayRecord files that are read fast.

A packed folder holds for each split a COCO file with the original annotations, and records with the
pixels. Sizes, boxes and ids are those of the original pictures. The pixels have the size that
training resizes to, or their own size if that is smaller.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import cv2
import grain
import msgspec
import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from rpn_jax.data.bad_pictures import BadPictures
from rpn_jax.data.coco_file import coco_images, read_coco
from rpn_jax.data.dataset import Dataset, Picture, class_frequencies
from rpn_jax.data.images import decode_image
from rpn_jax.data.transforms import resize, resized_sizes
from rpn_jax.errors import UserError, reading
from rpn_jax.files import read_file, written_whole
from rpn_jax.runtime import loader_threads

if TYPE_CHECKING:
    from jaxtyping import UInt8

    from rpn_jax.config import DataConfig

Encoding = Literal["jpeg", "png"]

PICTURES_PER_FILE = 10_000
"""Number of pictures in an ArrayRecord file."""
WINDOW = 256
"""Number of encoded pictures that wait to be written."""
JPEG_QUALITY = 95


class _Info(msgspec.Struct):
    scale: tuple[int, int]
    files: list[str]


class _Packed(msgspec.Struct):
    info: _Info


@dataclass(frozen=True, eq=False)
class PackedDataset:
    """A split of a packed folder (a `Dataset`)."""

    pictures: Sequence[Picture]
    """All pictures. Their sizes and boxes are those of the original pictures."""
    class_names: tuple[str, ...]
    """Name of each class."""
    category_ids: tuple[int, ...]
    """Id of each class in files of ground truth and results."""
    records: grain.sources.ArrayRecordDataSource
    """Encoded pictures, in the order of ``pictures``."""
    scale: tuple[int, int]
    """Largest (long side, short side) of a packed picture, pixels."""
    source: str
    """File of the annotations, for messages."""
    frequencies: Mapping[str, str]
    """'r', 'c' or 'f' (rare, common, frequent) by the name of the class, in LVIS."""

    def load_image(self, index: int) -> UInt8[np.ndarray, "h w 3"]:
        """Return RGB pixels, whose size can be smaller than that of the picture.

        Raises:
          UserError: the record is damaged.
        """
        name = self.pictures[index].name
        with _reading_records(f"{self.source}: the record of {name}"):
            record = self.records[index]
        return decode_image(record, name)


def open_packed(root: Path, split: str) -> PackedDataset:
    """Open a split of a folder that `pack_split` wrote.

    Args:
      root: folder of the dataset.
      split: name of the split.

    Raises:
      UserError: the split does not exist or is damaged.
    """
    file = root / f"{split}.json"
    if not file.is_file():
        names = ", ".join(sorted(path.stem for path in root.glob("*.json"))) or "none"
        raise UserError(f"split '{split}': there is no {file}. Splits there: {names}.")
    try:
        info = msgspec.json.decode(read_file(file), type=_Packed).info
    except msgspec.DecodeError as error:
        raise UserError(
            f"{file}: is not a file of a packed dataset ({error}). Write it with 'rpn-jax pack'."
        ) from None
    truth = read_coco(file, clip_boxes=True)  # The boxes were checked before they were packed.
    paths = [root / name for name in info.files]
    for path in paths:
        with reading(path):
            path.stat()
    with _reading_records(f"{root}: a file of split '{split}'"):
        records = grain.sources.ArrayRecordDataSource([str(path) for path in paths])
    if len(records) != len(truth.pictures):
        raise UserError(
            f"{file}: names {len(truth.pictures)} pictures, but {root} holds {len(records)}. Pack "
            "the dataset again."
        )
    return PackedDataset(
        truth.pictures,
        truth.class_names,
        truth.category_ids,
        records,
        info.scale,
        str(file),
        truth.frequencies,
    )


@contextmanager
def _reading_records(where: str) -> Iterator[None]:
    """Turn an error of ArrayRecord into the UserError ``WHERE: cannot be read (REASON)``."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split()) or "it is truncated"
        raise UserError(f"{where} cannot be read ({reason}). Pack the dataset again.") from None


def check_packed_scale(dataset: PackedDataset, scale: tuple[int, int]) -> None:
    """Raise a UserError if the pictures are packed for a smaller scale than the one in use.

    Args:
      dataset: packed dataset.
      scale: largest long and short side that pictures will be resized to, pixels.
    """
    if any(used > packed for used, packed in zip(scale, dataset.scale, strict=True)):
        raise UserError(
            f"{dataset.source}: its pictures are packed for --data.scale {_text(dataset.scale)}, "
            f"which is smaller than {_text(scale)}. Use that scale, or pack the dataset again."
        )


def pack_split(
    dataset: Dataset,
    config: DataConfig,
    root: Path,
    split: str,
    encoding: Encoding,
    on_pictures: Callable[[int], None],
) -> int:
    """Write a dataset as a split of a packed folder and return the number of packed pictures.

    The split exists when all its pictures are written. `check_new_split` comes first. Pictures that
    cannot be read are left out if ``data.on_bad_picture`` is 'skip'.

    Args:
      dataset: pictures and their ground truth.
      config: ``scale`` to resize to, number of threads, and what to do with bad pictures.
      root: folder to write to. It exists.
      split: name of the split.
      encoding: 'jpeg' (quality `JPEG_QUALITY`), or 'png' without loss.
      on_pictures: called with the number of pictures done since the last call.

    Raises:
      UserError: a picture cannot be read, or a file cannot be written.
    """
    file = root / f"{split}.json"
    frequencies = class_frequencies(dataset)
    kept: list[Picture] = []
    names: list[str] = []
    records = _records(dataset, config, encoding, on_pictures)
    try:
        for first in records:
            names.append(f"{split}-{len(names):05}.array_record")
            part = chain([first], islice(records, PICTURES_PER_FILE - 1))
            kept += _write_records(root / names[-1], part)
        content = {
            "info": {"scale": config.scale, "files": names},
            "images": [
                {**image, **_verified(picture, dataset.category_ids)}
                for image, picture in zip(coco_images(kept), kept, strict=True)
            ],
            "annotations": _annotations(kept, dataset.category_ids),
            "categories": [
                {"id": number, "name": name, "frequency": frequencies.get(name)}
                for number, name in zip(dataset.category_ids, dataset.class_names, strict=True)
            ],
        }
        with written_whole(file) as temporary:
            temporary.write_bytes(msgspec.json.encode(content))
    except BaseException:
        for name in names:
            (root / name).unlink(missing_ok=True)
        raise
    return len(kept)


def split_names(config: DataConfig) -> tuple[str, str]:
    """Return the names of the packed splits for training and evaluation, which are file names.

    'train[:10%]' becomes 'train_10'. The two names are equal only if the data are the same.
    """
    train, evaluation = (
        re.sub(r"[^\w.-]+", "_", Path(name).stem).strip("_")
        for name in (config.train_name, config.eval_name)
    )
    train_data = config.train_sources, config.train_classes
    if train != evaluation or train_data == ((config.eval_source,), config.eval_classes):
        return train, evaluation
    return f"train_{train}", f"eval_{evaluation}"


def check_new_split(root: Path, split: str) -> None:
    """Raise a UserError if a packed folder holds this split."""
    file = root / f"{split}.json"
    if file.exists():
        raise UserError(f"{file}: exists. Remove this split, or choose another --out.")


def _records(
    dataset: Dataset, config: DataConfig, encoding: Encoding, on_pictures: Callable[[int], None]
) -> Iterator[tuple[Picture, bytes]]:
    """Yield each readable picture with its encoded pixels, in the order of the dataset."""
    bad_pictures = BadPictures(config)

    def encode(index: int) -> bytes | None:
        return bad_pictures.attempt(index, lambda: encode_whole(index))

    def encode_whole(index: int) -> bytes:
        image = _shrink(dataset.load_image(index), config.scale)
        return _encode(image, encoding, dataset.pictures[index])

    count = len(dataset.pictures)
    with ThreadPoolExecutor(loader_threads(config.loader_threads)) as threads:
        for start in range(0, count, WINDOW):
            window = range(start, min(start + WINDOW, count))
            for index, record in zip(window, threads.map(encode, window), strict=True):
                on_pictures(1)
                if record is not None:
                    yield dataset.pictures[index], record


def _shrink(
    image: UInt8[np.ndarray, "H W 3"], scale: tuple[int, int]
) -> UInt8[np.ndarray, "h w 3"]:
    """Resize a picture to ``scale``. A picture that would become larger is returned unchanged."""
    size = np.array([image.shape[:2]])
    ((height, width),) = resized_sizes(size, scale).tolist()
    return resize(image, (height, width)) if height * width < size.prod() else image


def _encode(image: UInt8[np.ndarray, "h w 3"], encoding: Encoding, picture: Picture) -> bytes:
    options = {"jpeg": (".jpg", [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]), "png": (".png", [])}
    suffix, parameters = options[encoding]
    done, encoded = cv2.imencode(suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR), parameters)
    if not done:
        raise UserError(f"{picture.name}: cannot be encoded as {encoding}. Use another --encoding.")
    return encoded.tobytes()


def _write_records(path: Path, records: Iterable[tuple[Picture, bytes]]) -> list[Picture]:
    """Write a file of records and return their pictures."""
    pictures: list[Picture] = []
    with written_whole(path) as temporary:
        # One record in a group: each picture can be read without its neighbours.
        writer = ArrayRecordWriter(str(temporary), "group_size:1")
        for picture, record in records:
            with _writing_records(path):
                writer.write(record)
            pictures.append(picture)
        with _writing_records(path):
            writer.close()
    return pictures


@contextmanager
def _writing_records(path: Path) -> Iterator[None]:
    """Raise ArrayRecord's error, such as that of a full disk, as a UserError."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).partition(";")[0].removeprefix("write() failed: ")
        raise UserError(f"{path}: cannot be written ({reason})") from None


def _verified(picture: Picture, category_ids: Sequence[int]) -> dict[str, list[int]]:
    """Return LVIS's lists of categories of a picture, if it has them."""
    if picture.verified is None:
        return {}
    labels = {
        "neg_category_ids": picture.verified.absent,
        "not_exhaustive_category_ids": picture.verified.not_exhaustive,
    }
    return {name: [category_ids[label] for label in each] for name, each in labels.items()}


def _annotations(pictures: Sequence[Picture], category_ids: Sequence[int]) -> list[dict[str, Any]]:
    """Return the 'annotations' of a COCO file. Ids that are not unique are numbered from 1."""
    ids = np.concatenate([np.zeros(0, np.int64), *(picture.objects.ids for picture in pictures)])
    if len(np.unique(ids)) < len(ids):
        ids = np.arange(1, len(ids) + 1)
    rows = (
        (picture.image_id, *row)
        for picture in pictures
        for row in zip(
            picture.objects.labels.tolist(),
            picture.objects.boxes_xywh.tolist(),
            picture.objects.areas.tolist(),
            picture.objects.is_crowd.tolist(),
            picture.objects.is_difficult.tolist(),
            strict=True,
        )
    )
    return [
        {
            "id": number,
            "image_id": image_id,
            "category_id": category_ids[label],
            "bbox": bbox,
            "area": area,
            "iscrowd": int(is_crowd),
            "ignore": int(is_difficult),
        }
        for number, (image_id, label, bbox, area, is_crowd, is_difficult) in zip(
            ids.tolist(), rows, strict=True
        )
    ]


def _text(scale: tuple[int, int]) -> str:
    return " ".join(map(str, scale))
