"""Compare parameter names with published files, and recall and AP with the reference's figures."""

from __future__ import annotations

from pathlib import Path

from rpn_jax.config import config_names, load_config
from rpn_jax.data.annotated_files import AnnotatedFiles
from rpn_jax.data.coco_file import read_coco
from rpn_jax.evaluation.average_precision import evaluate_detections
from rpn_jax.evaluation.recall import evaluate
from rpn_jax.files import read_json
from rpn_jax.inference.results_file import read_detections, read_results
from rpn_jax.models import variable_shapes
from rpn_jax.weights.torch.names import flat_by_torch_key, torch_shape
from tools.parity.compare import worst
from tools.parity.rows import Bar, Measured, Row

KEYS = "keys"
"""Folder with ``CONFIG.json``: every key of a published file, with its shape."""
RECALL = "recall"
"""Folder with annotations, proposals and their recall."""
AP = "ap"
"""Folder with annotations, detections and their average precision."""
COUNTER = ".num_batches_tracked"
"""Keys with this ending count training steps and have no parameter here."""


def keys_row(folder: Path) -> Row:
    """Compare names and shapes of the parameters of every config that the folder has keys for."""
    files = {path.stem: path for path in sorted((folder / KEYS).glob("*.json"))}
    configs = [name for name in config_names() if name in files]
    different = {name: different_keys(name, read_json(files[name])) for name in configs}
    named = "; ".join(f"{name}: {keys[0]}" for name, keys in different.items() if keys)
    total = sum(map(len, different.values()))
    measured = Measured(total, named or f"{len(configs)} configs") if configs else None
    return Row(KEYS, "parameters of the configs", Bar(0, "different"), measured)


def different_keys(config: str, reference: dict[str, list[int]]) -> list[str]:
    """Return the sorted keys that only one side has, or whose shapes differ."""
    theirs = {key: tuple(shape) for key, shape in reference.items() if not key.endswith(COUNTER)}
    ours = {
        key: torch_shape(key, leaf.shape)
        for key, (_, leaf) in flat_by_torch_key(variable_shapes(load_config(config))).items()
    }
    return sorted(key for key in ours | theirs if ours.get(key) != theirs.get(key))


def recall_row(folder: Path) -> Row:
    """Compare every recall figure in ``recall/expected.json``."""
    return Row(RECALL, "average recall", Bar(1e-6), _recall(folder / RECALL))


def _recall(folder: Path) -> Measured | None:
    if not folder.is_dir():
        return None
    expected = read_json(folder / "expected.json")
    truth = read_coco(folder / "annotations.json", clip_boxes=True)
    figures = evaluate(truth.pictures, read_results(folder / "proposals.json"))
    return worst({name: abs(figures[name] - value) for name, value in expected.items()})


def ap_row(folder: Path) -> Row:
    """Compare COCO's twelve box figures, and the AP of each class, in ``ap/expected.json``.

    VOC's figures in that file depend on the order of equal scores, which the reference's sort does
    not define. The tests of `rpn_jax.evaluation.voc` compare them with the range of all orders.
    """
    return Row(AP, "box AP, all figures", Bar(1e-6), _average_precision(folder / AP))


def _average_precision(folder: Path) -> Measured | None:
    if not folder.is_dir():
        return None
    file = folder / "annotations.json"
    truth = read_coco(file, clip_boxes=True)
    dataset = AnnotatedFiles(
        truth.pictures, truth.class_names, truth.category_ids, folder, source=str(file)
    )
    detections = read_detections(folder / "detections.json", truth.category_ids)
    figures = evaluate_detections(dataset, detections)
    expected = read_json(folder / "expected.json")
    return worst(
        {
            name: abs(figures[name] - value)
            for name, value in expected.items()
            if not name.startswith("voc_")
        }
    )
