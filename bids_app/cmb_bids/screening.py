"""A first look of a small network at many places, to choose the candidates among them.

The ranking (`cmb_bids.candidate_ranking`) knows a place by some fifty numbers. Where those mislead,
as on a plain dark spot beside the steep field of the skull base, the picture does not. A network of
the classifier's kind on smaller patches (12 mm) is quick enough to look at more than a thousand
places. It decides only which of them are candidates. `cmb_bids.training.screening` fits it.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

import numpy as np

from cmb_bids.patches import PatchGeometry

if TYPE_CHECKING:
    from cmb_bids.resnet import LoadedModel

SCREENING_GEOMETRY = PatchGeometry((16, 16, 12), (0.75, 0.75, 1.0))
SCREENING_NETWORKS = {2: "screening-two-channel", 1: "screening-one-channel"}
LEAST_PROBABILITY = 1e-9  # keeps the odds finite


@cache
def screening_network(channels: int) -> LoadedModel:
    """The network that comes with the package, for two channels or one."""
    # torch takes seconds to import: whoever only describes the workflow should not wait for it.
    from cmb_bids.resnet import CONTRAST_AND_PHASE, CONTRAST_ONLY, load_model

    folder = files("cmb_bids") / "data" / "models"
    path = str(folder / f"{SCREENING_NETWORKS[channels]}.safetensors")
    return load_model(path, CONTRAST_AND_PHASE if channels == 2 else CONTRAST_ONLY)


def lesion_log_odds(
    contrast: np.ndarray,
    highpass: np.ndarray | None,
    mask: np.ndarray,
    affine: np.ndarray,
    points_mm: np.ndarray,
    scores: np.ndarray,
    threads: int | None = None,
) -> np.ndarray:
    """How likely each place is a lesion, a microbleed or a calcification.

    Parameters
    ----------
    contrast : (x, y, z) array
        SWI where there is phase, else the normalised magnitude.
    highpass : (x, y, z) array or None
        High-passed phase, radians, right-handed.
    mask : (x, y, z) array
        Brain mask.
    affine : (4, 4) array
    points_mm : (n, 3) array
        Places, scanner mm.
    scores : (n,) array
        Of the ranking.
    threads : int, optional
        CPU threads; default: as many as torch is set to.

    Returns
    -------
    (n,) array
        Logarithm of the odds, natural, calibrated on simulated places.
    """
    from cmb_bids.patches import classifier_patches
    from cmb_bids.resnet import AS_IT_IS, predict

    model = screening_network(1 if highpass is None else 2)
    patches = classifier_patches(
        contrast, highpass, mask, affine, points_mm, model.description.geometry
    )
    other = predict(model, patches, scores, threads, AS_IT_IS)[:, 2]
    other = np.clip(other, LEAST_PROBABILITY, 1 - LEAST_PROBABILITY)
    return np.log1p(-other) - np.log(other)
