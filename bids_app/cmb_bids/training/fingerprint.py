"""Fingerprints of the code that made data, so that data of other code are never mistaken for it."""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

MODULES_BEHIND_IMAGES = (
    "simulate",
    "phase.py",
    "phase_scaling.py",
    "unwrapping.py",
    "highpass.py",
    "swi.py",
    "intensity.py",
    "head.py",
    "training/recipes.py",
    "training/processed.py",
)
MODULES_BEHIND_DATA = (
    *MODULES_BEHIND_IMAGES,
    "candidates.py",
    "candidate_ranking.py",
    "data/models/candidate-ranking.json",
    "screening.py",
    "data/models/screening-one-channel.safetensors",
    "data/models/screening-two-channel.safetensors",
    "place_features.py",
    "frst.py",
    "patches.py",
    "same_lesion.py",
    "training/cases.py",
    "training/labels.py",
)


def data_key(settings: dict[str, Any]) -> str:
    """Fingerprint of all that decides what a case holds: settings and the code behind it."""
    return fingerprint(settings, MODULES_BEHIND_DATA)


def fingerprint(settings: dict[str, Any], modules: Sequence[str]) -> str:
    """Twelve digits that change with the settings and with what these modules do.

    Parameters
    ----------
    settings : dict
        JSON-serialisable.
    modules : sequence of str
        Files or folders of the package. Comments, docstrings and layout do not count.
    """
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    root = Path(str(files("cmb_bids")))
    for name in modules:
        path = root / name
        for source in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            stored = source.read_bytes()
            python = source.suffix == ".py"
            digest.update(what_it_does(stored.decode()).encode() if python else stored)
    return digest.hexdigest()[:12]


def what_it_does(source: str) -> str:
    """Source code without what does not run: comments, layout, docstrings."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(
            node
        ):
            node.body = node.body[1:]
    return ast.dump(tree)
