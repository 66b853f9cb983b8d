"""What the tests of the benchmark share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module")
def one_thread_of_torch() -> Iterator[None]:
    """Small work of PyTorch is slower with several threads, above all on busy cores."""
    import torch

    count = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(count)
