"""Measure all configs of the reference, a row each."""

from __future__ import annotations

import fnmatch
import itertools
from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING

from rpn_jax.benchmark.device import measured_peaks
from rpn_jax.benchmark.figures import Row, case_columns, row_or_failure
from rpn_jax.benchmark.inputs import Canvas
from rpn_jax.benchmark.options import Options
from rpn_jax.benchmark.progress import say
from rpn_jax.benchmark.stages import whole_row
from rpn_jax.benchmark.timing import Effort
from rpn_jax.benchmark.training import training_rows
from rpn_jax.config import Config, Precision, config_names, load_config, with_precision
from rpn_jax.models import init_variables

if TYPE_CHECKING:
    from rpn_jax.structures import Variables

REFERENCE = "*_coco"
"""Pattern of the names of the reference's configs."""


def config_rows(options: Options) -> Iterator[Row]:
    """Measure each config of the reference, for each precision and batch size."""
    effort = Effort(options.runs, options.seconds)
    measured: dict[tuple[object, ...], Row] = {}
    for name in fnmatch.filter(config_names(), REFERENCE):
        config = load_config(name)
        canvas = options.canvas_of(config)
        for precision, batch_size in itertools.product(options.precisions, options.batch_sizes):
            network = (config.model, config.pixels, config.rpn_proposals, config.roi_detections)
            key = (*network, precision, batch_size)
            if key not in measured:
                say(f"{name} in {precision}, batch {batch_size}")
                measured[key] = _config_figures(
                    config, precision, batch_size, canvas, options.train, effort
                )
            yield {
                "config": name,
                "detector": "RPN" if config.model.roi is None else "Faster R-CNN",
                "backbone": backbone_name(config),
                "style": config.model.backbone.style,
                **case_columns(precision, batch_size, canvas),
                **measured[key],
            }


def _config_figures(
    config: Config,
    precision: Precision,
    batch_size: int,
    canvas: Canvas,
    train: bool,
    effort: Effort,
) -> Row:
    variables = _last_variables(config)
    config = with_precision(config, precision)

    def inference() -> Row:
        whole = whole_row(config, variables, batch_size, canvas, measured_peaks(precision), effort)
        return {
            "memory_mb": whole["memory_mb"],
            "fps": whole["pictures_per_s"],
            "gflop_per_picture": whole.get("gflop_per_picture"),
            "share_of_roofline": whole.get("share_of_roofline"),
        }

    def training() -> Row:
        (step, *_), _ = training_rows(
            config, variables, batch_size, canvas, measured_peaks(precision), effort
        )
        return {
            "train_memory_mb": step["memory_mb"],
            "train_pictures_per_s": step["pictures_per_s"],
        }

    figures = row_or_failure({}, inference)
    return {**figures, **row_or_failure({}, training)} if train else figures


@lru_cache(maxsize=1)
def _last_variables(config: Config) -> Variables:
    """Return random weights of the config that is being measured, made once for all its rows."""
    return init_variables(config)


def backbone_name(config: Config) -> str:
    """Return the backbone's name in the published table: R-50-FPN, X-101-32x4d-FPN, R-50-C4.

    One of the user's own has the name of its class.
    """
    if config.model.backbone_class:
        return config.model.backbone_class.rpartition(":")[2]
    backbone = config.model.backbone
    last = f"{'DC' if backbone.dilate_last_stage else 'C'}{backbone.num_stages + 1}"
    neck = "FPN" if config.model.neck == "fpn" else last
    if backbone.groups == 1:
        return f"R-{backbone.depth}-{neck}"
    return f"X-{backbone.depth}-{backbone.groups}x{backbone.base_width}d-{neck}"
