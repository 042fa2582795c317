"""Toy candidates for the tests of training: dark balls of either phase, dark lines."""

import numpy as np

from cmb_bids.patches import PatchGeometry
from cmb_bids.training.fit import MARGIN_VOXELS
from cmb_bids.training.shards import CandidateSet, Case

STORED = PatchGeometry().with_margin(MARGIN_VOXELS).shape
STRENGTHS = ("frst_magnitude", "frst_swi", "frst_phase", "laplacian_of_gaussian")


def toy_patches(n, channels, rng):
    """Dark balls whose phase is positive (0), negative (1); dark lines (2)."""
    labels = np.arange(n) % 3
    patches = rng.normal(0, 0.05, (n, channels, *STORED)).astype(np.float32)
    patches[:, 0] += 1
    x, y, z = (np.arange(s) - (s - 1) / 2 for s in STORED)
    flatter = PatchGeometry().spacing_mm[2] / PatchGeometry().spacing_mm[0]
    ball = (x[:, None, None] ** 2 + y[:, None] ** 2 + (z * flatter) ** 2) < 16
    line = np.broadcast_to((x[:, None, None] ** 2 + y[:, None] ** 2) < 6, STORED)
    for patch, label in zip(patches, labels, strict=True):
        patch[0][line if label == 2 else ball] = 0.2
        if channels == 2:
            patch[1][line if label == 2 else ball] = -0.8 if label == 1 else 0.8
    return patches.astype(np.float16), labels.astype(np.int8)


def toy_case(index):
    """Nine candidates 20 mm apart, a microbleed, a calcification and a vein in turn."""
    rng = np.random.default_rng(index)
    points = np.arange(9)[:, None] * np.array([[20.0, 0, 0]])
    sets = {}
    for kind, channels in (("complex", 2), ("magnitude", 1)):
        patches, labels = toy_patches(9, channels, rng)
        strengths = {name: rng.random(9) + 2.0 * (labels == 0) for name in STRENGTHS}
        scores = rng.random(9).astype(np.float32)
        sets[kind] = CandidateSet(patches, points, labels, scores, strengths)
    truth = [
        {
            "name": name,
            "x": 20.0 * i,
            "y": 0.0,
            "z": 0.0,
            "diameter_mm": 1.0 + i / 2,
            "contrast_to_noise": 3.0 * i,
            "mars_class": "deep" if i < 4 else "lobar",
        }
        for i, name in enumerate(["microbleed", "calcification", "vein"] * 3)
    ]
    recipe = {
        "protocol": ("ukb", "3T")[index % 2],
        "group": ("tbi", "stroke")[index % 2],
        "swi_as_magnitude": False,
        "voxel_mm": [0.8, 0.8, (3.0, 2.0)[index % 2]],
        "highpass": ("homodyne", "gaussian")[index // 2 % 2],
        "homodyne_half_height_per_mm": 0.0625,
        "data_key": "toy",
    }
    return Case(index, recipe, truth, sets)
