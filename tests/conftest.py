"""What every test shares: a cache of its own, and a small dataset in COCO format."""

import os

# On a GPU, each worker and each process that a test starts takes only the memory that it uses.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import tests.shape_checks  # noqa: F401

# isort: split
# The line above must run before any other import of rpn_jax.
import errno
import json
from dataclasses import replace
from pathlib import Path

import cv2
import jax
import jaxtyping
import pytest

from rpn_jax.config import (
    AnchorConfig,
    BackboneConfig,
    Config,
    DataConfig,
    ModelConfig,
    RPNHeadConfig,
)
from rpn_jax.data.coco_file import coco_images
from rpn_jax.data.shapes import Shapes
from rpn_jax.ops.cpu import roi_align
from tests.data.coco_folder import coco_annotations
from tools.gpu.forms import use_default_forms

CELLS_OF_BIN = roi_align.CELLS_OF_BIN


def pytest_addoption(parser):
    parser.addoption(
        "--default-forms",
        action="store_true",
        help="run the forms of operations for GPUs: every lax.platform_dependent takes its default",
    )


def pytest_configure(config):
    config.addinivalue_line(
        "markers", "cpu_forms: the test is about the forms of operations that CPUs run"
    )
    if config.getoption("--default-forms"):
        use_default_forms()


def pytest_collection_modifyitems(config, items):
    if config.getoption("--default-forms"):
        skip = pytest.mark.skip(reason="the test is about the forms that CPUs run")
        for item in items:
            if item.get_closest_marker("cpu_forms"):
                item.add_marker(skip)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Return the number of test processes for ``-n auto``: one for each core and 4.5 GB of memory.

    One worker was measured to need about 4.5 GB.
    """
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(1, min(os.cpu_count() or 1, int(memory / 4.5e9)))


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """Compiled programs and downloads of tests never meet those of the user.

    A program is compiled once a session, also for the processes that tests start. Two workers of
    pytest-xdist do not share a cache, because JAX may read a half-written file.
    RPN_JAX_TEST_CACHE names a folder that keeps compiled programs for the next session.

    LLVM optimises little, because compiling takes long. Tests with the fixture
    ``all_optimizations`` are the exception.
    """
    folder = tmp_path_factory.mktemp("cache")
    options = {
        "jax_compilation_cache_dir": os.environ.get("RPN_JAX_TEST_CACHE", str(folder / "xla")),
        "jax_persistent_cache_min_compile_time_secs": 0.1,
        "jax_disable_most_optimizations": True,
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        for name, value in options.items():
            patch.setenv(name.upper(), str(value))
            jax.config.update(name, value)
        yield


@pytest.fixture(scope="session", autouse=True)
def _one_group_of_roi_align():
    """RoIAlign of a CPU has one small group of boxes, which compiles sooner.

    Boxes with larger bins are pooled by its matrix products. Tests with the fixture
    ``all_groups_of_roi_align`` have all groups.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(roi_align, "CELLS_OF_BIN", ((2, 2),))
        yield


@pytest.fixture
def no_shape_checks():
    """Functions get arguments that do not fit their annotations, as some callers pass them."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def all_groups_of_roi_align(monkeypatch):
    """RoIAlign of a CPU has the groups of boxes that it has for users."""
    monkeypatch.setattr(roi_align, "CELLS_OF_BIN", CELLS_OF_BIN)


@pytest.fixture
def all_optimizations():
    """Programs are compiled as users compile them."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture
def forbid(monkeypatch):
    """Makes a file or folder unreadable, to root as well, whom the system lets read everything."""

    def denying(method, forbidden):
        def denied(path, *arguments, **options):
            itself = path == forbidden and method.__name__ != "stat"
            if itself or forbidden in path.parents:
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            return method(path, *arguments, **options)

        return denied

    def forbid_path(forbidden):
        for name in ("stat", "iterdir", "open"):
            monkeypatch.setattr(Path, name, denying(getattr(Path, name), forbidden))

    return forbid_path


@pytest.fixture(scope="session")
def coco_root(tmp_path_factory):
    """A folder in COCO format: 5 pictures in 'train', 3 in 'test'."""
    root = tmp_path_factory.mktemp("coco")
    (root / "annotations").mkdir()
    for split, source, count in (("train", "train", 5), ("test", "eval", 3)):
        write_split(root, split, Shapes(source), count)
    return root


def write_split(root, split, shapes, count):
    (root / split).mkdir()
    pictures = shapes.pictures[:count]
    images = coco_images(pictures)
    for index, image in enumerate(images):
        image["file_name"] = f"{image['id']}.png"
        rgb = shapes.load_image(index)
        assert cv2.imwrite(str(root / split / image["file_name"]), rgb[..., ::-1])
    content = {
        "images": images,
        "annotations": coco_annotations(pictures, shapes.category_ids),
        "categories": [
            {"id": number, "name": name}
            for number, name in zip(shapes.category_ids, shapes.class_names, strict=True)
        ],
    }
    (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))


@pytest.fixture(scope="session")
def tiny_config(coco_root):
    """One stage of a ResNet without a neck, on pictures of 64x64 pixels. It compiles in seconds."""
    config = Config(
        name="tiny",
        model=ModelConfig(
            backbone=BackboneConfig(depth=18, num_stages=1, norm="group", frozen_stages=-1),
            neck="none",
            rpn=RPNHeadConfig(channels=32, anchors=AnchorConfig(strides=(4,), scales=(4.0,))),
        ),
        data=DataConfig(
            root=str(coco_root),
            train_split="train",
            eval_split="test",
            scale=(64, 64),
            batch_size=2,
            eval_batch_size=2,
        ),
    )
    return replace(
        config,
        optim=replace(config.optim, learning_rate=0.01, warmup_steps=2, decay_epochs=(1,)),
        train=replace(config.train, epochs=2, log_every=1),
    )


@pytest.fixture(scope="session")
def pyramid_config(tiny_config):
    """`tiny_config` with a second stage of the ResNet and a pyramid of three levels."""
    model = ModelConfig(
        backbone=replace(tiny_config.model.backbone, num_stages=2),
        neck_channels=32,
        rpn=RPNHeadConfig(channels=32, anchors=AnchorConfig(strides=(4, 8, 16), scales=(4.0,))),
    )
    return replace(tiny_config, model=model)
