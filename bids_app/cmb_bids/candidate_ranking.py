"""The order of the candidates: a small learnt function of a place's features.

A perceptron with two small hidden layers, in numpy: too small to need a framework, large enough to
weigh, say, depth against how near the place is to the brain's surface. It decides only
which places the network looks at. How it was fitted is in ``data/models/candidate-ranking.json``
beside its numbers; `cmb_bids.training.ranking` fits it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
import pandas as pd

WITH_PHASE, MAGNITUDE_ALONE = "with_phase", "magnitude_alone"
RANKING_FILE = "candidate-ranking.json"


@dataclass(frozen=True)
class Ranking:
    """Features in their order, how to standardise them, and the layers (weights, bias)."""

    features: tuple[str, ...]
    mean: np.ndarray
    scale: np.ndarray
    layers: tuple[tuple[np.ndarray, np.ndarray], ...]

    def score(self, table: pd.DataFrame) -> np.ndarray:
        """Rank score of each place.

        Parameters
        ----------
        table : DataFrame of n rows
            Holds at least the columns ``features``.

        Returns
        -------
        (n,) array
            Higher is more likely a lesion; no unit.
        """
        values = table[list(self.features)].to_numpy(dtype=float)
        # Beyond four spreads nothing was seen in fitting: no farther extrapolation.
        values = np.clip((values - self.mean) / self.scale, -4, 4)
        for weights, bias in self.layers[:-1]:
            values = np.tanh(values @ weights.T + bias)
        weights, bias = self.layers[-1]
        return (values @ weights.T + bias)[:, 0]

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Ranking:
        """From what `as_dict` returned."""
        return cls(
            tuple(stored["features"]),
            np.array(stored["mean"]),
            np.array(stored["scale"]),
            tuple((np.array(x["weights"]), np.array(x["bias"])) for x in stored["layers"]),
        )

    def as_dict(self) -> dict[str, Any]:
        """The ranking as numbers and text, four digits each."""
        return {
            "features": list(self.features),
            "mean": _digits(self.mean),
            "scale": _digits(self.scale),
            "layers": [{"weights": _digits(w), "bias": _digits(b)} for w, b in self.layers],
        }


def _digits(values: np.ndarray) -> Any:
    return np.round(np.asarray(values, dtype=float), 4).tolist()


@cache
def load_ranking(kind: str) -> Ranking:
    """The ranking that comes with the package, for scans `WITH_PHASE` or `MAGNITUDE_ALONE`."""
    path = files("cmb_bids") / "data" / "models" / RANKING_FILE
    return Ranking.from_dict(json.loads(path.read_text(encoding="utf-8"))[kind])
