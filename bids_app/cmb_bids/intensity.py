"""Magnitudes on one scale, whatever the scanner's: relative to the brain."""

from __future__ import annotations

import numpy as np


def normalize_magnitude(
    magnitude: np.ndarray, mask: np.ndarray, bias: np.ndarray | None = None
) -> np.ndarray:
    """Magnitude over bias field over its median inside the mask; float32, 1 is typical brain.

    Parameters
    ----------
    magnitude : (x, y, z) array
    mask : (x, y, z) boolean array
        Where it is empty, the median of all positive voxels is used.
    bias : (x, y, z) array, optional
        Multiplicative field, as `cmb_bids.brain.bias_field` returns it.
    """
    image = clean_magnitude(magnitude)
    if bias is not None:
        image = image / bias
    inside = image[mask & (image > 0)]
    if inside.size == 0:
        inside = image[image > 0]
    median = float(np.median(inside)) if inside.size else 1.0
    return (image / np.float32(median)).astype(np.float32, copy=False)


def clean_magnitude(magnitude: np.ndarray) -> np.ndarray:
    """float32, finite and not negative."""
    image = np.nan_to_num(magnitude.astype(np.float32, copy=False), posinf=0.0, neginf=0.0)
    return np.maximum(image, 0, out=image if image is not magnitude else None)
