"""Random boxes for tests."""

from __future__ import annotations

import numpy as np


def random_boxes(rng: np.random.Generator, *shape: int, size: float = 100.0) -> np.ndarray:
    """f32[*shape, 4] xyxy boxes with an area, in a picture of ``size`` pixels a side."""
    corners = rng.uniform(0, size * 0.8, (*shape, 2))
    sides = rng.uniform(size * 0.02, size * 0.5, (*shape, 2))
    return np.concatenate([corners, corners + sides], axis=-1).astype(np.float32)


def grid_boxes(rng: np.random.Generator, *shape: int, cells: int = 8) -> np.ndarray:
    """f32[*shape, 4] xyxy boxes with corners on a coarse grid: many equal IoUs, some no area."""
    corners = np.sort(rng.integers(0, cells, (*shape, 2, 2)), axis=-2)
    return corners.reshape(*shape, 4).astype(np.float32)
