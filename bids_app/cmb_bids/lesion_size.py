"""How large drawn lesions are, and where their middle is."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import ndimage
from scipy.spatial import ConvexHull
from scipy.spatial.distance import pdist

from cmb_bids.volumes import voxel_to_world


def equivalent_diameter(volume_mm3: np.ndarray | float) -> np.ndarray | float:
    """Diameter (mm) of the sphere of a volume (mm3)."""
    return np.cbrt(6 * np.asarray(volume_mm3) / np.pi)


def greatest_extent(voxels: np.ndarray, affine: np.ndarray) -> float:
    """Greatest distance (mm) between two corners of a set of voxels (Feret diameter).

    Parameters
    ----------
    voxels : (n, 3) integer array
        Indices of one voxel or more; each is a parallelepiped with corners half a step away.
    affine : (4, 4) array
        Voxel to scanner mm.
    """
    half = np.stack(np.meshgrid(*[[-0.5, 0.5]] * 3, indexing="ij"), -1).reshape(8, 3)
    corners = np.unique((voxels[:, None] + half).reshape(-1, 3), axis=0)
    # The two farthest points of a set are corners of its hull, which are few.
    hull = corners[ConvexHull(corners).vertices]
    return float(pdist(hull @ np.asarray(affine, dtype=float)[:3, :3].T).max())


def measure_labels(labels: np.ndarray, count: int, affine: np.ndarray) -> pd.DataFrame:
    """Centroid (scanner mm), diameter, volume and extent of labels 1 to ``count``."""
    centroids, voxels, extent = np.zeros((count, 3)), np.zeros(count), np.zeros(count)
    for position, box in enumerate(ndimage.find_objects(labels, max_label=count)):
        where = np.argwhere(labels[box] == position + 1)
        centroids[position] = where.mean(axis=0) + [s.start for s in box]
        voxels[position] = len(where)
        extent[position] = greatest_extent(where, affine)
    world = voxel_to_world(affine, centroids)
    volume = voxels * abs(np.linalg.det(np.asarray(affine, dtype=float)[:3, :3]))
    return pd.DataFrame(
        {
            "x": world[:, 0].round(2),
            "y": world[:, 1].round(2),
            "z": world[:, 2].round(2),
            "diameter_mm": np.round(equivalent_diameter(volume), 2),
            "volume_mm3": volume.round(2),
            "extent_mm": extent.round(2),
        }
    )
