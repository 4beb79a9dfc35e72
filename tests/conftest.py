"""What all tests share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, settings

# The same examples every time, so that the tests are green or red for everybody alike.
settings.register_profile(
    "default",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    print_blob=True,
    derandomize=True,
    database=None,
)
settings.register_profile(
    "nightly", settings.get_profile("default"), max_examples=1000, derandomize=False
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"
"""Real images with ground truth; beside the checkout, never in it."""


@pytest.fixture(autouse=True)
def _own_environment() -> Iterator[None]:
    """Undo what commands that are called in this process set for those they start."""
    with patch.dict(os.environ):
        yield


@pytest.fixture(scope="session")
def shared_data() -> Path:
    if not SHARED_DATA.is_dir():
        pytest.skip("the real images with ground truth are not beside this checkout")
    return SHARED_DATA


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave slow tests out, and say so, where not all are asked for."""
    if os.environ.get("PATCHWORKS_TESTS") == "all":
        return
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.skip(reason="slow; PATCHWORKS_TESTS=all runs it"))
