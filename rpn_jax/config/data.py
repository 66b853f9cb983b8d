"""Define the section of a config that names the datasets and says how pictures are loaded."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, cast, get_args

from rpn_jax.config.checks import check, check_types

CANVAS_MULTIPLE = 32
"""Canvas sizes, and the area that has anchors, are rounded up to this multiple, in pixels."""

MAX_SIDE = 16_384
"""Largest side of a resized picture and of a canvas, pixels."""
MAX_BATCH = 65_536
"""Largest number of pictures in a batch."""
MAX_THREADS = 1_024
"""Largest number of threads that read pictures."""
MAX_JITTER = 16
"""Largest factor of the scale jitter. The picture is resized by it before it is cropped."""
MAX_REPEATS = 10_000
"""Largest number of times that an epoch shows a picture."""

PLACE_AND_SPLIT = re.compile(r"(.*):((?:[^:\[\]]|\[[^\]]*\])*)")
"""The last colon outside of brackets is between them. A split can be like 'train[:80%]'."""

Format = Literal["coco", "voc", "yolo", "tfds", "packed", "shapes"]
Resize = Literal["host", "device"]


@dataclass(frozen=True)
class Source:
    """Where one dataset is."""

    dataset: Format
    root: str
    tfds_name: str
    split: str
    annotations: str = ""
    """COCO file that takes the place of a split of the root."""
    images: str = ""
    """Folder of the pictures of ``annotations``."""

    @property
    def name(self) -> str:
        """Name in messages and in maps of classes: the annotation file, or else the root."""
        return self.annotations or self.root

    @property
    def is_complete(self) -> bool:
        """Whether the format is known and all parts are given."""
        has_place = bool(self.root and self.split) or bool(self.annotations and self.images)
        return self.dataset in get_args(Format) and has_place


def read_source(text: str) -> Source:
    """Return the source that ``FORMAT:ROOT:SPLIT`` names, see ``DataConfig.train_also``."""
    name, _, rest = text.partition(":")
    dataset = cast(Format, name)  # `DataConfig` checks it
    match = PLACE_AND_SPLIT.fullmatch(rest)
    place, split = match.groups() if match else ("", "")
    if dataset == "coco" and place.endswith(".json"):
        return Source(dataset, "", "", "", annotations=place, images=split)
    if dataset == "tfds":
        root, _, tfds_name = place.rpartition(":")
        return Source(dataset, root, tfds_name, split)
    return Source(dataset, place, "", split)


@dataclass(frozen=True)
class DataConfig:
    """The dataset, and how its pictures are loaded and resized."""

    dataset: Format = "coco"
    """Format of the dataset.
    'coco': COCO annotations.
    'voc': Pascal VOC annotations, one XML file for each picture.
    'yolo': a data.yaml, and one text file of labels for each picture.
    'tfds': an object detection dataset that TensorFlow Datasets prepared in ArrayRecord format.
    'packed': a folder that 'rpn-jax pack' wrote.
    'shapes': synthetic pictures of simple shapes."""
    root: str = "data/coco"
    """Folder of the dataset. For 'coco' with annotations/instances_SPLIT.json and SPLIT/*.jpg, or
    as Roboflow exports it, or with all pictures in one folder."""
    tfds_name: str = "coco/2017"
    """Name of the dataset for 'tfds', for example voc/2007 or kitti. The root is its data_dir."""
    train_split: str = "train2017"
    """Name of the split to train on. With 'tfds', it can be a part like 'train[:80%]'."""
    eval_split: str = "val2017"
    """Name of the split to evaluate on."""
    train_annotations: str = ""
    """COCO file to train on, instead of a split of the root."""
    train_images: str = ""
    """Folder of the pictures of train_annotations."""
    eval_annotations: str = ""
    """COCO file to evaluate on, instead of a split of the root."""
    eval_images: str = ""
    """Folder of the pictures of eval_annotations."""
    train_classes: tuple[str, ...] = ()
    """Names of the classes whose objects are trained on, or one .txt file with a name on each line.
    Objects of other classes are left out, as if they were not annotated. By default all."""
    eval_classes: tuple[str, ...] = ()
    """Names of the classes whose objects are evaluated, or one .txt file. By default all."""
    train_also: tuple[str, ...] = ()
    """More datasets to train on, each as FORMAT:ROOT:SPLIT, for example voc:data/VOC2007:trainval.
    A COCO file is coco:FILE.json:PICTURES, and 'tfds' is tfds:ROOT:NAME:SPLIT. Classes with the
    same name become one."""
    train_repeats: tuple[float, ...] = ()
    """How often an epoch shows the pictures of each training dataset: that of the root first, then
    those of train_also. 0.5 shows another half of them in each epoch. By default 1 for each."""
    repeat_threshold: float = 0.0
    """Repeat-factor sampling: pictures with a class that is in less than this share of the pictures
    are shown more often, for example 0.001. 0 turns this off."""
    class_map: tuple[str, ...] = ()
    """Classes to rename in all datasets, each as OLD=NEW, or one .toml or .json file with a table
    of names. In a file, a table named like the root of a dataset holds for that dataset alone.
    Classes that get the same name become one."""
    scale: tuple[int, int] = (1333, 800)
    """Largest (long side, short side) of a resized picture, in pixels. The ratio is kept."""
    short_sides: tuple[int, ...] = ()
    """Short sides of training pictures in pixels, for multi-scale training. One is drawn for each
    picture, and takes the place of the scale's. They must not be above it."""
    short_side_range: tuple[int, ...] = ()
    """Smallest and largest short side in pixels, instead of short_sides. All whole numbers between
    them are drawn with the same probability."""
    scale_jitter: tuple[float, ...] = ()
    """Range of a random factor on the size of training pictures, for example 0.1 2.0 (large-scale
    jitter). A picture that becomes larger than without the factor is cropped to that size."""
    crop_share: float = 1.0
    """Smallest share of a training picture's height and width that a random crop keeps. 1 does not
    crop."""
    photometric_jitter: bool = False
    """Change brightness, contrast, saturation and hue of training pictures at random."""
    buckets: tuple[tuple[int, int], ...] = ()
    """Canvas sizes (height, width) in pixels. A picture is padded to the smallest that holds it.
    By default they follow from the scale: one for ratios up to 4:3 and one for all others, both
    also upright."""
    batch_size: int = 16
    """Number of pictures in a training batch, over all devices."""
    eval_batch_size: int = 0
    """Number of pictures in an evaluation batch, over all devices of a process. 0: 8 for each
    device."""
    flip_probability: float = 0.5
    """Probability that a training picture is flipped horizontally."""
    min_image_size: int = 32
    """Training skips pictures whose shorter side is below this, in pixels."""
    clip_boxes: bool = False
    """Clip boxes that extend beyond their picture. By default such a box is an error."""
    on_bad_picture: Literal["error", "skip"] = "error"
    """What to do with a picture that cannot be decoded, or has another size than annotated.
    'error': stop.
    'skip': print its name. Training takes another picture of the batch twice, and evaluation
    counts it as a picture without results."""
    max_bad_pictures: int = 100
    """Number of different bad pictures to skip before the run stops after all."""
    loader_threads: int = 0
    """Number of threads that read and resize pictures. 0: one for each core that the process may
    use, but at least 4 and at most 32."""
    resize: Resize = "host"
    """Where pictures are resized and flipped. The pixels are the same, except for rare differences
    of one grey level.
    'host': in the loader's threads.
    'device': on the GPU. Use it if data loading is the bottleneck. A picture of 640x480 pixels is
    sent in 1.0 MB instead of 2.6 MB. A picture that is larger than its canvas needs more."""

    def __post_init__(self) -> None:
        check_types("data", self)
        self._check_datasets()
        self._check_loading()
        self._check_sizes()
        self._check_augmentation()

    def _check(self, holds: bool, name: str, allowed: str) -> None:
        check(holds, f"data.{name}", getattr(self, name), allowed)

    def _check_datasets(self) -> None:
        for part in ("train", "eval"):
            annotations = getattr(self, f"{part}_annotations")
            self._check(
                bool(annotations) == bool(getattr(self, f"{part}_images")),
                f"{part}_images",
                f"the folder of the pictures of data.{part}_annotations = {annotations!r}",
            )
            self._check(
                not annotations or self.dataset == "coco",
                "dataset",
                f"'coco' with data.{part}_annotations",
            )
        self._check(
            all(source.is_complete for source in self.more_sources),
            "train_also",
            "datasets as FORMAT:ROOT:SPLIT, coco:FILE.json:PICTURES or tfds:ROOT:NAME:SPLIT. "
            f"FORMAT is one of {', '.join(get_args(Format))}",
        )
        count = 1 + len(self.train_also)
        self._check(
            len(self.train_repeats) in (0, count)
            and all(0 < number <= MAX_REPEATS for number in self.train_repeats),
            "train_repeats",
            f"one number for each training dataset ({count} here), above 0 and at most "
            f"{MAX_REPEATS}",
        )
        self._check(0 <= self.repeat_threshold <= 1, "repeat_threshold", "0 to 1")
        self._check(
            all(all(entry.partition("=")) for entry in self.class_map)
            or (len(self.class_map) == 1 and self.class_map[0].endswith((".toml", ".json"))),
            "class_map",
            "OLD=NEW for each class, or one .toml or .json file",
        )

    def _check_loading(self) -> None:
        self._check(1 <= self.batch_size <= MAX_BATCH, "batch_size", f"1 to {MAX_BATCH}")
        self._check(0 <= self.eval_batch_size <= MAX_BATCH, "eval_batch_size", f"0 to {MAX_BATCH}")
        self._check(
            0 <= self.loader_threads <= MAX_THREADS, "loader_threads", f"0 to {MAX_THREADS}"
        )
        self._check(self.max_bad_pictures >= 0, "max_bad_pictures", "0 or more")
        self._check(self.min_image_size >= 0, "min_image_size", "0 or more")
        self._check(
            self.resize == "host" or not (self.scale_jitter or self.crop_share < 1),
            "resize",
            "'host' with data.scale_jitter or data.crop_share: crops are taken after the resize",
        )

    def _check_sizes(self) -> None:
        long, short = self.scale
        self._check(
            MAX_SIDE >= long >= short >= 1, "scale", f"(long side, short side), 1 to {MAX_SIDE}"
        )
        self._check(
            all(1 <= side <= short for side in self.short_sides),
            "short_sides",
            f"1 to {short}, the short side of data.scale",
        )
        ends = (0, *self.short_side_range, short + 1)
        self._check(
            len(ends) in (2, 4) and all(low < high for low, high in pairwise(ends)),
            "short_side_range",
            f"two ascending numbers, 1 to {short}, the short side of data.scale",
        )
        self._check(
            not (self.short_sides and self.short_side_range),
            "short_side_range",
            "empty if data.short_sides are given",
        )
        sides = [side for size in self.buckets for side in size]
        self._check(
            all(1 <= side <= MAX_SIDE and side % CANVAS_MULTIPLE == 0 for side in sides),
            "buckets",
            f"sizes with sides that are multiples of {CANVAS_MULTIPLE}, at most {MAX_SIDE}",
        )
        for height, width in ((short, long), (long, short)):
            self._check(
                any(height <= rows and width <= columns for rows, columns in self.canvases),
                "buckets",
                f"sizes of which one holds {height}x{width} (height x width), as data.scale needs. "
                "Without data.buckets they follow from data.scale",
            )

    def _check_augmentation(self) -> None:
        ends = (0, *self.scale_jitter, MAX_JITTER)
        self._check(
            len(ends) in (2, 4) and ends[0] < ends[1] and list(ends) == sorted(ends),
            "scale_jitter",
            f"two ascending numbers above 0, at most {MAX_JITTER}",
        )
        self._check(0 < self.crop_share <= 1, "crop_share", "above 0, at most 1")
        self._check(0 <= self.flip_probability <= 1, "flip_probability", "0 to 1")

    @property
    def drawn_short_sides(self) -> tuple[int, ...]:
        """Short sides that training draws from, pixels. Empty without multi-scale training."""
        if self.short_side_range:
            low, high = self.short_side_range
            return tuple(range(low, high + 1))
        return self.short_sides

    @property
    def canvases(self) -> tuple[tuple[int, int], ...]:
        """Canvas sizes (height, width): ``buckets``, or those that follow from ``scale``."""
        if self.buckets:
            return self.buckets
        long, short = (-(-side // CANVAS_MULTIPLE) * CANVAS_MULTIPLE for side in self.scale)
        # 4:3 is the commonest ratio of photographs. At 1333x800 their canvas would have 24% more
        # pixels if it were that of all ratios.
        middle = -(-self.scale[1] * 4 // (3 * CANVAS_MULTIPLE)) * CANVAS_MULTIPLE
        sides = sorted({min(middle, long), long})
        canvases = [size for side in sides for size in ((short, side), (side, short))]
        return tuple(dict.fromkeys(canvases))

    @property
    def train_sources(self) -> tuple[Source, ...]:
        """The datasets to train on."""
        return (
            Source(
                self.dataset,
                self.root,
                self.tfds_name,
                self.train_split,
                self.train_annotations,
                self.train_images,
            ),
            *self.more_sources,
        )

    @property
    def more_sources(self) -> tuple[Source, ...]:
        """The datasets of ``train_also``."""
        return tuple(map(read_source, self.train_also))

    @property
    def eval_source(self) -> Source:
        """The dataset to evaluate on."""
        return Source(
            self.dataset,
            self.root,
            self.tfds_name,
            self.eval_split,
            self.eval_annotations,
            self.eval_images,
        )

    @property
    def train_name(self) -> str:
        """Name of the training data in messages: annotation file or split, and ``train_also``."""
        return " and ".join((self.train_annotations or self.train_split, *self.train_also))

    @property
    def eval_name(self) -> str:
        """Name of the evaluation data in messages: the annotation file, or else the split."""
        return self.eval_annotations or self.eval_split
