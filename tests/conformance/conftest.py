"""What the checks on real engines share: a small simulated dataset."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from engines import CHECKOUT, run


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data of ``make demo`` where it was run, else one simulated participant."""
    made = CHECKOUT / "demo" / "bids"
    if (made / "dataset_description.json").is_file():
        return made
    folder = tmp_path_factory.mktemp("demo") / "bids"
    lab = Path(sys.executable).with_name("cmb-lab")
    run([lab, "simulate", folder, "--participants", 1, "--protocol", "ukb", "--seed", 20], 600)
    return folder


@pytest.fixture(scope="session")
def participant(demo: Path) -> str:
    """The label of the first participant; one is enough to see that an engine works."""
    return min(folder.name for folder in demo.glob("sub-*")).removeprefix("sub-")
