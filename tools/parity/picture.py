"""Compare the proposals for a picture file with those of the reference's test pipeline."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import SingleDeviceSharding

from rpn_jax.config import Config
from rpn_jax.data.files import SUFFIXES, PictureFiles, find_pictures
from rpn_jax.data.loading import Slot, load_picture
from rpn_jax.data.plan import plan_layout, with_exact_padding
from rpn_jax.inference.forward import detect_pictures, prepare_variables, run_network
from rpn_jax.inference.proposer import Proposer
from rpn_jax.inference.results import picture_proposals
from rpn_jax.models.rpn.proposals import propose
from rpn_jax.structures import Batch, Variables
from tools.parity.cases import Case
from tools.parity.compare import (
    compare_proposals,
    count_found,
    detection_rows,
    proposal_rows,
)
from tools.parity.quantities import Quantity, rows_of
from tools.parity.rows import Bar, Measured, Row
from tools.parity.ties import settle_ties
from tools.parity.weights import variables_by_rule

if TYPE_CHECKING:
    from jaxtyping import Float
    from numpy import ndarray


PICTURES = Path(__file__).resolve().parents[2] / "examples" / "bccd" / "test"
"""Where the picture is if it is not in the folder of cases."""
PATCH = (slice(100, 132), slice(200, 232))
"""Rows and columns of the network's input that a case contains."""


@dataclass(frozen=True)
class Ours:
    """Results of this package for the picture."""

    batch: Batch
    """The network's input: a batch of this picture."""
    proposals: Float[ndarray, "n 5"]
    """xyxy and score, in original pixels."""
    settled_proposals: Float[ndarray, "n 5"]
    """Proposals with equal scores in the reference's order, see `tools.parity.ties`."""


@dataclass(frozen=True)
class OursOfDetector:
    """Results of this package for the picture, from a detector of two stages."""

    batch: Batch
    """The network's input: a batch of this picture."""
    detections: Float[ndarray, "n 6"]
    """xyxy in original pixels, score and class."""


def picture_rows(case: Case, picture: Path) -> list[Row]:
    """Run the whole pipeline on a picture file.

    Raises:
      UserError: the file cannot be read or is not a picture.
    """
    if case.config.model.roi is not None:
        return rows_of(case, DETECTOR_QUANTITIES, run_detector(case, picture))
    return rows_of(case, QUANTITIES, run(case, picture))


def default_picture(folder: Path) -> Path | None:
    """Return the first picture by name in ``folder``, or else in `PICTURES`, or None."""
    for place in (folder, PICTURES):
        if place.is_dir() and any(path.suffix.lower() in SUFFIXES for path in place.iterdir()):
            return find_pictures([str(place)])[0]
    return None


def run(case: Case, path: Path) -> Ours:
    """Load a picture and compute its proposals."""
    config, batch = _load(case, path)
    variables = variables_by_rule(config, case.seed)
    (proposed,) = Proposer(config, variables)([path])
    proposals = settled = proposal_rows(proposed)
    reference = case.fields.get("proposals")
    if reference is not None and compare_proposals(proposals, reference).found < 1:
        settled = _settled(config, variables, batch, reference)
    return Ours(batch, proposals, settled)


def run_detector(case: Case, path: Path) -> OursOfDetector:
    """Load a picture and compute its detections."""
    config, batch = _load(case, path)
    prepared = _on_one_device(config, variables_by_rule(config, case.seed))
    detections = jax.jit(partial(detect_pictures, config))(
        prepared, batch.images, batch.image_sizes, batch.scale_factors
    )
    return OursOfDetector(batch, detection_rows(detections)[0])


def _load(case: Case, path: Path) -> tuple[Config, Batch]:
    """Return the config with the picture's own canvas, and a batch of the picture."""
    dataset = PictureFiles([path])
    config = replace(case.config, data=with_exact_padding(dataset, case.config.data))
    canvas = config.data.canvases[0]  # the picture's own; those of the config follow
    height, width = plan_layout(dataset.pictures, config.data).sizes[0].tolist()
    return config, load_picture(dataset, Slot(0, (height, width), canvas, num_boxes=0))


def _on_one_device(config: Config, variables: Variables) -> Variables:
    return prepare_variables(config, variables, SingleDeviceSharding(jax.local_devices()[0]))


def _settled(
    config: Config, variables: Variables, batch: Batch, reference: Float[ndarray, "m 5"]
) -> Float[ndarray, "n 5"]:
    sizes, factors = jnp.asarray(batch.image_sizes), jnp.asarray(batch.scale_factors)
    prepared = _on_one_device(config, variables)
    outputs = jax.jit(partial(run_network, config))(prepared, batch.images, sizes)
    settled = settle_ties(config, outputs, sizes, factors, [reference])
    proposals = jax.jit(partial(propose, config))(settled, sizes, factors)
    (picture,) = picture_proposals([1], proposals)
    return proposal_rows(picture)


def _size(case: Case, ours: Ours | OursOfDetector) -> Measured:
    (size,), (factors,) = np.asarray(ours.batch.image_sizes), np.asarray(ours.batch.scale_factors)
    reference = np.concatenate([case.fields["img_shape"], case.fields["scale_factor"]])
    difference = np.abs(np.concatenate([size, factors]) - reference).max()
    return Measured(float(difference), f"{size[0]}x{size[1]} (height x width)")


def _patch(case: Case, ours: Ours) -> Measured:
    """Return the largest difference of the two inputs, without normalisation, in grey levels."""
    pixels = case.config.pixels
    patch = np.asarray(ours.batch.images)[0][PATCH].astype(np.float64)
    channels = patch[..., ::-1] if pixels.order == "bgr" else patch
    normalized = case.fields["input_patch"].transpose(1, 2, 0).astype(np.float64)
    grey_levels = normalized * np.array(pixels.std) + np.array(pixels.mean)
    if grey_levels.shape != channels.shape:
        return Measured(np.inf, f"patch of {channels.shape}, the reference has {grey_levels.shape}")
    return Measured(float(np.abs(channels - grey_levels).max()))


def _found(case: Case, ours: Ours) -> Measured:
    settled, as_proposed = (
        compare_proposals(proposals, case.fields["proposals"]).found
        for proposals in (ours.settled_proposals, ours.proposals)
    )
    return Measured(settled, f"{as_proposed:g} with equal scores in our order")


def _out_of_order(case: Case, ours: Ours) -> Measured:
    return Measured(compare_proposals(ours.proposals, case.fields["proposals"]).out_of_order)


def _repeated(case: Case, ours: Ours) -> Measured:
    return Measured(compare_proposals(ours.proposals, case.fields["proposals"]).repeated)


def _detections_found(case: Case, ours: OursOfDetector) -> Measured:
    reference = case.fields["detections"]
    found = count_found(ours.detections, reference)
    total = max(len(ours.detections), len(reference), 1)
    return Measured(found / total, f"{found} of {total}")


QUANTITIES: tuple[Quantity[Ours], ...] = (
    Quantity("resize", Bar(1e-6, "px"), ("img_shape", "scale_factor"), _size),
    Quantity("input patch", Bar(1, "grey levels"), ("input_patch",), _patch),
    Quantity("proposals found", Bar(0.99, at_least=True), ("proposals",), _found),
    Quantity("proposals out of order", Bar(0), ("proposals",), _out_of_order),
    Quantity("proposals repeated", Bar(0), ("proposals",), _repeated),
)
"""Quantities of a picture's case, in the order of the rows."""

DETECTOR_QUANTITIES: tuple[Quantity[OursOfDetector], ...] = (
    Quantity("resize", Bar(1e-6, "px"), ("img_shape", "scale_factor"), _size),
    Quantity("detections found", Bar(0.98, at_least=True), ("detections",), _detections_found),
)
"""Quantities of a picture's case of two stages, in the order of the rows."""
