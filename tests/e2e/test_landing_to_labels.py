"""An ordinary day: an acquisition is copied into the landing folder, and labels come out."""

from __future__ import annotations

import pytest

from tests.e2e.day import spend_a_day


@pytest.mark.slow
def test_an_acquisition_that_lands_becomes_merged_labels_without_a_click(tmp_path):
    print(f"\n{spend_a_day(tmp_path / 'home')}")
