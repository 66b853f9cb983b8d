"""Average recall against the reference's figures, against COCOeval itself, and by hand."""

from __future__ import annotations

import io
import json
import math
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from rpn_jax.data.dataset import Picture
from rpn_jax.errors import UserError
from rpn_jax.evaluation.matching import IOU_THRESHOLDS
from rpn_jax.evaluation.recall import (
    PROPOSAL_COUNTS,
    coco_recall,
    evaluate,
    fast_recall,
    greedy_match,
    pairwise_iou,
)
from rpn_jax.evaluation.tables import recall_line, recall_table
from rpn_jax.files import json_figures
from rpn_jax.inference.results import PictureProposals
from tests.evaluation.cases import pictures_of, run_cocoeval, truth_of


def proposals_of(image_id: int, boxes_xyxy: Any, scores: Any) -> PictureProposals:
    return PictureProposals(
        image_id, np.array(boxes_xyxy, np.float32).reshape(-1, 4), np.array(scores, np.float32)
    )


def random_case(seed: int, proposals: int) -> tuple[dict[str, Any], list[PictureProposals]]:
    """Pictures with crowds, boxes of all size classes, near and far proposals, tied scores."""
    rng = np.random.default_rng(seed)
    annotations: list[dict] = []
    pictures = []
    for image_id in range(12):
        count = int(rng.integers(0, 9))
        corners = rng.uniform(0, 300, (count, 2))
        sizes = rng.lognormal(4, 0.9, (count, 2)).clip(4, 300)
        for corner, size in zip(corners, sizes, strict=True):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": int(rng.integers(1, 4)),
                    "bbox": [*corner.tolist(), *size.tolist()],
                    "area": float(size.prod() * rng.uniform(0.5, 1)),
                    "iscrowd": int(rng.random() < 0.15),
                }
            )
        boxes = np.concatenate([corners, corners + sizes], axis=1)
        near = boxes.repeat(proposals // 60, axis=0)
        near = near + rng.normal(0, 6, near.shape)
        far = rng.uniform(0, 300, (proposals - len(near), 2))
        far = np.concatenate([far, far + rng.uniform(1, 200, far.shape)], axis=1)
        found = np.concatenate([near, far])[rng.permutation(proposals)].astype(np.float32)
        found[:, 2:] = np.maximum(found[:, 2:], found[:, :2] + 1)
        scores = rng.uniform(0, 1, proposals).round(2).astype(np.float32)
        if image_id != 3:
            pictures.append(PictureProposals(image_id, found, scores))
    return {
        "images": [{"id": image_id} for image_id in range(12)],
        "annotations": annotations,
        "categories": [{"id": number, "name": str(number)} for number in (1, 2, 3)],
    }, pictures


def plain_cocoeval(
    annotations: dict[str, Any], pictures: list[PictureProposals]
) -> dict[str, float]:
    """Return COCOeval's recall of every proposal."""
    results = [
        {
            "image_id": picture.image_id,
            "category_id": 1,
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "score": score,
        }
        for picture in pictures
        for (x1, y1, x2, y2), score in zip(
            picture.boxes_xyxy.tolist(), picture.scores.tolist(), strict=True
        )
    ]
    evaluator = run_cocoeval(annotations, results, use_classes=False, counts=list(PROPOSAL_COUNTS))
    names = ("AR@100", "AR@300", "AR@1000", "AR_small@1000", "AR_medium@1000", "AR_large@1000")
    return dict(zip(names, evaluator.stats[6:], strict=True))


def loop_fast_recall(
    annotations: dict[str, Any], pictures: list[PictureProposals], count: int
) -> float:
    """Protocol proposal_fast with plain loops."""
    found, total = [], 0
    by_image = {picture.image_id: picture for picture in pictures}
    for image in annotations["images"]:
        boxes = [
            [x, y, x + w, y + h]
            for annotation in annotations["annotations"]
            if annotation["image_id"] == image["id"] and not annotation["iscrowd"]
            for x, y, w, h in [annotation["bbox"]]
        ]
        total += len(boxes)
        picture = by_image.get(image["id"])
        if picture is None:
            continue
        order = sorted(range(len(picture.scores)), key=lambda i: -picture.scores[i])[:count]
        pairs = {
            (row, column): loop_iou(boxes[row], picture.boxes_xyxy[index].tolist())
            for row in range(len(boxes))
            for column, index in enumerate(order)
        }
        while pairs:
            (row, column), best = max(pairs.items(), key=lambda item: item[1])
            found.append(best)
            pairs = {key: v for key, v in pairs.items() if key[0] != row and key[1] != column}
    return float(np.mean([sum(iou >= t for iou in found) / total for t in IOU_THRESHOLDS]))


def loop_iou(box: list[float], other: list[float]) -> float:
    width = min(box[2], other[2]) - max(box[0], other[0])
    height = min(box[3], other[3]) - max(box[1], other[1])
    overlap = max(width, 0) * max(height, 0)
    area = (box[2] - box[0]) * (box[3] - box[1])
    return overlap / (area + (other[2] - other[0]) * (other[3] - other[1]) - overlap)


@pytest.mark.parametrize("seed", range(3))
def test_coco_recall_equals_cocoeval_on_every_proposal(
    seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    annotations, pictures = random_case(seed, proposals=350)
    figures = coco_recall(pictures_of(annotations), pictures)
    assert capsys.readouterr().out == ""
    assert figures == pytest.approx(plain_cocoeval(annotations, pictures), abs=1e-9)
    assert figures["AR@100"] < figures["AR@300"] < figures["AR@1000"]


@pytest.mark.parametrize("seed", range(3))
def test_fast_recall_equals_a_plain_loop(seed: int) -> None:
    annotations, pictures = random_case(seed, proposals=120)
    figures = fast_recall(pictures_of(annotations), pictures)
    for count in (100, 300):
        expected = loop_fast_recall(annotations, pictures, count)
        assert figures[f"fast_AR@{count}"] == pytest.approx(expected, abs=1e-9)


def test_the_two_protocols_differ_where_a_better_score_takes_the_worse_box() -> None:
    annotations = truth_of({1: [[0, 0, 10, 10], [0, 0, 10, 20]]})
    pictures = [proposals_of(1, [[0, 0, 10, 13.2], [0, 0, 10, 10]], [0.9, 0.8])]
    # IoU with the two boxes: 0.758 and 0.66 of the first proposal, 1 and 0.5 of the second.
    # By score, the first takes box 1 up to 0.75, and leaves the second box 2 at 0.5 only.
    assert coco_recall(annotations, pictures)["AR@100"] == pytest.approx((1 + 9 * 0.5) / 10)
    # By IoU, the second takes box 1, and the first box 2 up to 0.65.
    assert fast_recall(annotations, pictures)["fast_AR@100"] == pytest.approx((4 + 6 * 0.5) / 10)


@pytest.mark.parametrize(
    ("height", "thresholds_met"),
    [(49.9, 0), (50, 1), (69.9, 4), (70, 5), (70.1, 5), (94.9, 9), (95, 10)],
)
def test_a_threshold_counts_from_itself_on(height: float, thresholds_met: int) -> None:
    annotations = truth_of({1: [[0, 0, 100, 100]]})
    pictures = [proposals_of(1, [[0, 0, 100, height]], [1.0])]
    figures = evaluate(annotations, pictures)
    assert figures["AR@100"] == pytest.approx(thresholds_met / 10)
    assert figures["fast_AR@100"] == pytest.approx(thresholds_met / 10)


def test_a_count_takes_the_best_scores_only() -> None:
    annotations = truth_of({1: [[0, 0, 50, 50]]})
    boxes = [[200, 200, 210, 210]] * 100 + [[0, 0, 50, 50]]
    last = [proposals_of(1, boxes, np.linspace(1, 0, 101))]
    first = [proposals_of(1, boxes, np.linspace(0, 1, 101))]
    for name in ("AR@{}", "fast_AR@{}"):
        assert evaluate(annotations, last)[name.format(100)] == 0
        assert evaluate(annotations, last)[name.format(300)] == 1
        assert evaluate(annotations, first)[name.format(100)] == 1


def test_a_box_with_id_0_is_found_like_any_other() -> None:
    annotations = truth_of({1: [[0, 0, 50, 50]]})
    assert annotations[0].objects.ids.tolist() == [0]
    assert coco_recall(annotations, [proposals_of(1, [[0, 0, 50, 50]], [1])])["AR@100"] == 1


def test_difficult_boxes_count_in_protocol_proposal_only() -> None:
    easy, difficult = truth_of({1: [[0, 0, 50, 50]]}), truth_of({2: [[0, 0, 9, 9]]}, False, True)
    figures = evaluate([*easy, *difficult], [proposals_of(1, [[0, 0, 50, 50]], [1])])
    assert figures["AR@100"] == 0.5
    assert figures["fast_AR@100"] == 1


def test_the_line_names_the_figures_of_all_sizes() -> None:
    figures = {"AR@100": 0.1234, "AR@300": 0.5, "AR@1000": 1.0, "AR_small@1000": math.nan}
    assert recall_line(figures) == "AR@100 0.123, AR@300 0.500, AR@1000 1.000 (proposal)"


def test_pictures_without_proposals_count_as_missed() -> None:
    annotations = truth_of({1: [[0, 0, 50, 50]], 2: [[0, 0, 50, 50]], 3: []})
    pictures = [
        proposals_of(1, [[0, 0, 50, 50]], [1]),
        proposals_of(2, [], []),
        proposals_of(3, [[0, 0, 9, 9]], [1]),
    ]
    for given in (pictures, pictures[:1]):
        figures = evaluate(annotations, given)
        assert figures["AR@100"] == figures["fast_AR@100"] == 0.5
    assert evaluate(annotations, [])["fast_AR@1000"] == evaluate(annotations, [])["AR@1000"] == 0


def test_a_size_class_without_boxes_is_nan_null_and_a_dash() -> None:
    figures = evaluate(truth_of({1: [[0, 0, 50, 50]]}), [proposals_of(1, [[0, 0, 50, 50]], [1])])
    assert math.isnan(figures["AR_small@1000"])
    assert math.isnan(figures["AR_large@1000"])
    assert figures["AR_medium@1000"] == 1
    assert json.loads(json.dumps(json_figures(figures), allow_nan=False))["AR_small@1000"] is None
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(recall_table(figures))
    lines = console.export_text().splitlines()
    small = next(line for line in lines if "AR_small@1000" in line)
    assert [cell.strip() for cell in small.split("│")[3:5]] == ["-", "-"]
    best = next(line for line in lines if "AR@100 " in line)
    assert [cell.strip() for cell in best.split("│")[3:5]] == ["1.000", "1.000"]
    assert any("proposal_fast" in line for line in lines)


@pytest.mark.parametrize(
    ("annotations", "pictures", "message"),
    [
        ([], [], "no box, or only crowds"),
        (truth_of({1: []}), [], "no box, or only crowds"),
        (truth_of({1: [[0, 0, 5, 5]]}, is_crowd=True), [], "no box, or only crowds"),
        (truth_of({1: [[0, 0, 5, 5]]}), [proposals_of(7, [], [])], "image 7"),
        (truth_of({1: [[0, 0, 5, 5]]}), [proposals_of(1, [], [])] * 2, "two sets"),
    ],
)
def test_input_without_a_recall_is_refused(
    annotations: list[Picture], pictures: list[PictureProposals], message: str
) -> None:
    for recall in (coco_recall, fast_recall):
        with pytest.raises(UserError, match=message) as error:
            recall(annotations, pictures)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("seed", range(3))
def test_pairwise_iou_equals_a_plain_loop(seed: int) -> None:
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, 50, (2, 30, 2)).astype(np.float32)
    boxes, others = np.concatenate([corners, corners + rng.uniform(1, 60, corners.shape)], axis=2)
    expected = [[loop_iou(box, other) for other in others.tolist()] for box in boxes.tolist()]
    np.testing.assert_allclose(pairwise_iou(boxes, others), expected, atol=1e-6)


def test_a_box_of_one_pixel_overlaps_itself_by_exactly_1() -> None:
    """The guard against a division by zero must not change the IoU of small boxes."""
    box = np.array([[5, 5, 6, 6]], np.float32)
    assert pairwise_iou(box, box) == 1


def test_pairwise_iou_of_boxes_without_area_is_0() -> None:
    point = np.array([[5, 5, 5, 5]], np.float32)
    assert pairwise_iou(point, point) == 0


def test_greedy_match_removes_rows_and_columns() -> None:
    ious = np.array([[0.9, 0.8, 0.1], [0.95, 0.2, 0.3]], np.float32)
    np.testing.assert_allclose(greedy_match(ious), [0.95, 0.8])
    np.testing.assert_allclose(greedy_match(ious[:, :1]), [0.95, -1])
    assert greedy_match(ious[:, :0]).tolist() == [-1, -1]
    assert ious[1, 0] == np.float32(0.95), "the input is unchanged"
