"""The precisions command: its figures against plain NumPy, and its error messages."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rpn_jax import RPN, Proposer, init_variables
from rpn_jax.config import Config, save_config, with_precision
from rpn_jax.data import transforms
from rpn_jax.data.coco import open_coco
from rpn_jax.data.dataset import Dataset
from rpn_jax.devices import jit_inference
from rpn_jax.evaluation.recall import coco_recall
from rpn_jax.inference.results import PictureProposals
from rpn_jax.ops import normalize_images
from rpn_jax.structures import Variables
from rpn_jax.weights.folders import save_variables
from tests.tools.parity.loops import loop_match
from tools.parity.precisions import main, share_found


@pytest.fixture(scope="module")
def variables(pyramid_config: Config) -> Variables:
    """Return random weights and biases, so that even a black picture has head outputs."""
    rng = np.random.default_rng(0)
    start = init_variables(pyramid_config, seed=0)
    noisy = jax.tree.map(lambda leaf: leaf + rng.normal(0, 0.05, leaf.shape), start)
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), noisy)


@pytest.fixture(scope="module")
def words(
    pyramid_config: Config, variables: Variables, tmp_path_factory: pytest.TempPathFactory
) -> list[str]:
    folder = tmp_path_factory.mktemp("precisions")
    save_variables(folder / "weights", pyramid_config, variables)
    save_config(pyramid_config, folder / "tiny.json")
    return [str(folder / "tiny.json"), "--weights", str(folder / "weights")]


def rows_of(words: list[str], out: Path) -> dict[str, dict[str, Any]]:
    assert main([*words, "--out", str(out)]) == 0
    return {row["precision"]: row for row in json.loads(out.read_text())["rows"]}


def head_outputs(config: Config, variables: Variables, dataset: Dataset) -> dict[str, np.ndarray]:
    """Compute the outputs picture by picture. Return one vector for each level and kind."""
    found: dict[str, list[np.ndarray]] = {}
    for index, picture in enumerate(dataset.pictures):
        sizes = np.array([(picture.height, picture.width)])
        (size,) = transforms.resized_sizes(sizes, config.data.scale).tolist()
        resized = transforms.resize(dataset.load_image(index), size)
        image = transforms.pad_to(resized, config.data.canvases[0])[None]
        normalized = normalize_images(jnp.asarray(image), jnp.array([size]), config.pixels)
        outputs = jit_inference(RPN(config.model).apply)(variables, normalized)
        for kind in ("objectness", "deltas"):
            for stride, level in zip((4, 8, 16), getattr(outputs, kind), strict=True):
                found.setdefault(f"{kind}, stride {stride}", []).append(np.ravel(level))
    return {name: np.concatenate(levels).astype(np.float64) for name, levels in found.items()}


def proposals(config: Config, variables: Variables, dataset: Dataset) -> list[PictureProposals]:
    images = [dataset.load_image(index) for index in range(len(dataset.pictures))]
    found = Proposer(config, variables)(images)
    ids = [picture.image_id for picture in dataset.pictures]
    return [replace(entry, image_id=id_) for entry, id_ in zip(found, ids, strict=True)]


def as_rows(picture: PictureProposals) -> np.ndarray:
    return np.column_stack([picture.boxes_xyxy, picture.scores])


def test_figures_equal_plain_numpy_ones(
    pyramid_config: Config,
    variables: Variables,
    words: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = rows_of([*words, "--precisions", "bfloat16"], tmp_path / "deep" / "rows.json")
    assert list(rows) == ["float32", "bfloat16"]
    row = rows["bfloat16"]
    exact, rounded = (with_precision(pyramid_config, name) for name in ("float32", "bfloat16"))
    dataset = open_coco(Path(pyramid_config.data.root), "test", clip_boxes=False)

    reference = head_outputs(exact, variables, dataset)
    for name, outputs in head_outputs(rounded, variables, dataset).items():
        error = np.sqrt(np.sum((outputs - reference[name]) ** 2) / np.sum(reference[name] ** 2))
        assert row["head_outputs"][name] == pytest.approx(error, rel=1e-3)
    assert len(row["head_outputs"]) == 6

    theirs, ours = (proposals(config, variables, dataset) for config in (exact, rounded))
    partners = [
        loop_match(as_rows(a), as_rows(b), 1.0, 0.01) for a, b in zip(ours, theirs, strict=True)
    ]
    share = np.mean([partner >= 0 for picture in partners for partner in picture])
    assert 0 < share < 1
    assert row["found"] == pytest.approx(share, abs=2e-3)
    for precision, found in (("float32", theirs), ("bfloat16", ours)):
        expected = coco_recall(dataset.pictures, found)
        for count in (100, 300, 1000):
            figure = rows[precision]["recall"][f"AR@{count}"]
            assert figure == pytest.approx(expected[f"AR@{count}"], abs=0.01)

    said = capsys.readouterr().out
    assert "tiny on 3 pictures of 'test'" in said
    assert f"{row['found']:.2%}" in said


def test_tf32_rounds_less_than_bfloat16_and_the_config_has_no_effect(
    words: list[str], tmp_path: Path
) -> None:
    rows = rows_of([*words, "--model.precision", "bfloat16"], tmp_path / "rows.json")
    assert list(rows) == ["float32", "tf32", "bfloat16"]
    assert set(rows["float32"]["head_outputs"].values()) == {0.0}
    for level, error in rows["tf32"]["head_outputs"].items():
        assert 1e-5 < error < rows["bfloat16"]["head_outputs"][level] / 2
    assert rows["bfloat16"]["found"] < rows["tf32"]["found"] <= rows["float32"]["found"] == 1


def test_the_share_is_of_float32_s_proposals_of_all_pictures() -> None:
    def picture(*rows: tuple[float, ...]) -> PictureProposals:
        array = np.array(rows, np.float32).reshape(-1, 5)
        return PictureProposals(1, array[:, :4], array[:, 4])

    box = (10.0, 20.0, 30.0, 40.0, 0.9)
    near = (10.0, 20.0, 30.0, 40.75, 0.905)
    too_far = (10.0, 20.0, 30.0, 41.25, 0.9)
    too_low = (10.0, 20.0, 30.0, 40.0, 0.885)
    assert share_found([picture(near)], [picture(box)]) == 1
    assert share_found([picture(too_far, too_low)], [picture(box)]) == 0
    assert share_found([picture(near)], [picture(box, box)]) == 0.5
    assert share_found([picture(box, box, near)], [picture(box)]) == 1
    assert share_found([picture(box), picture()], [picture(box), picture(*[box] * 3)]) == 0.25
    assert share_found([picture(box)], [picture()]) == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--precisions", "fp16"], "fp16"),
        (["--precision", "tf32"], "unknown flag '--precision'; did you mean '--model.precision'?"),
        (["--weights", "nowhere"], "weights nowhere: no such file or folder"),
        (["--data.eval-split", "tset"], "split 'tset'"),
        (["--model.rpn.channels", "48"], "do not match the config"),
        (["--pixels.order", "bgr"], "pixels.order is 'rgb' in the weights and 'bgr' in the config"),
        (["--out", "file/rows.json"], "folder file: cannot be written"),
    ],
)
def test_wrong_input_gets_an_error_message_of_one_line(
    words: list[str],
    flags: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("no folder")
    assert main([*words, *flags]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_an_empty_split_and_a_missing_config_get_an_error_message_of_one_line(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "annotations").mkdir()
    (tmp_path / "test").mkdir()
    empty = json.dumps({"images": [], "annotations": [], "categories": []})
    (tmp_path / "annotations" / "instances_test.json").write_text(empty)
    assert main([*words, "--data.root", str(tmp_path)]) == 2
    assert capsys.readouterr().err == ("error: data.eval_split = 'test': contains no pictures\n")
    assert main([*words, "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err == (
        f"error: {tmp_path}: is a folder. Choose the path of a file.\n"
    )
    assert main([]) == 2
    assert capsys.readouterr().err.startswith("error: precisions: CONFIG is missing")
