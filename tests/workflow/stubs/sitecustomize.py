"""Puts the stub stages in place of the real ones, in every Python that has this on its path."""

import importlib.util
import sys
from pathlib import Path

STAGES = ("phase", "brain", "candidates", "classify", "lesions", "report")


class StubFinder:
    """Finds stub_stages.py under the names of the real modules."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name in {f"cmb_bids.interfaces.{stage}" for stage in STAGES}:
            file = Path(__file__).with_name("stub_stages.py")
            return importlib.util.spec_from_file_location(name, file)
        return None


sys.meta_path.insert(0, StubFinder)
