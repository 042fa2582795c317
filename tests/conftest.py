"""Fixtures that more than one test module uses."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def realdata() -> Path:
    """Real complex gradient-echo scans in BIDS; they are not part of the repository."""
    default = CHECKOUT.parent / "shared" / "realdata"
    folder = Path(os.environ.get("CMB_BIDS_REALDATA", default))
    if not (folder / "dataset_description.json").is_file():
        pytest.skip("no real scans: set CMB_BIDS_REALDATA to their BIDS folder")
    return folder
