"""How each simulated case is scanned and processed: every random choice of training.

Scans to train on carry more lesions and more varied grids than any cohort; scans to calibrate and
test on keep the protocols as they are and the lesion loads of a patient cohort, so that the figures
mean something.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from cmb_bids.simulate import PAPER_COHORT, PROTOCOLS, Protocol, SubjectSpec, sample_subject
from cmb_bids.simulate.subject import draw_short_veins

PROTOCOL_SHARES = {"ukb": 0.38, "3T": 0.30, "1.5T": 0.28, "7T": 0.04}
# Voxels of training scans, relative to the protocol's: in-plane, across slices.
VOXEL_FACTORS = {
    "ukb": ((0.85, 1.2), (0.75, 1.1)),
    "3T": ((1.0, 1.5), (0.8, 1.4)),
    "1.5T": ((0.9, 1.3), (0.9, 1.4)),
    "7T": ((1.2, 1.9), (1.1, 1.8)),
}
# Ratio of simulation to acquisition grid. On the coarse ones small lesions come out fainter than
# physics has them, as they may be where blood is dilute; some training scans are made on them.
OVERSAMPLING = {
    "ukb": (2.0, 2.0, 4.0),
    "3T": (1.25, 1.25, 2.5),
    "1.5T": (1.0, 2.0, 3.0),
    "7T": (1.2, 1.2, 1.2),
}
COARSE_OVERSAMPLING = {
    "ukb": (1.0, 1.0, 2.0),
    "3T": (1.0, 1.0, 1.5),
    "1.5T": (1.0, 1.25, 1.5),
    "7T": (1.0, 1.0, 1.0),
}
COARSE_SHARE = 0.25
SLICES_SHARE = 0.12  # of training scans made of slices with gaps rather than of a slab
SLICE_GAP = (0.03, 0.3)  # of the distance between slices
SHORT_SLAB_SHARE = 0.2  # of training scans that do not cover the whole brain
UNCOVERED = ((0.0, 0.4), (0.0, 0.3))  # of their slices, below and above
MAGNITUDE_SHARE = 0.4  # of the training cases also serve the one-channel model: it saves time


@dataclass(frozen=True)
class Recipe:
    """How one case is made; every random choice but those of the simulator itself."""

    protocol: str
    group: str
    seed: int
    oversampling: tuple[float, float, float]
    left_handed: bool
    phase_levels: int
    highpass: str
    homodyne_half_height_per_mm: float
    gaussian_sigma_mm: float
    swi_power: int
    zero_filling: tuple[float, float, float]
    uncovered: tuple[float, float]
    mask_shift_mm: float
    mask_wobble_mm: float
    shading_corrected: bool
    magnitude_too: bool
    swi_as_magnitude: bool


def draw_recipe(rng: np.random.Generator, training: bool) -> tuple[SubjectSpec, Recipe]:
    """A participant, a scan and a way of processing it."""
    name = str(rng.choice(list(PROTOCOL_SHARES), p=list(PROTOCOL_SHARES.values())))
    groups = list(PAPER_COHORT)
    shares = np.array([PAPER_COHORT[group] for group in groups], dtype=float)
    group = str(rng.choice(groups, p=shares / shares.sum()))
    seed = int(rng.integers(2**31))
    protocol = PROTOCOLS[name]
    if training:
        protocol = varied_protocol(protocol, VOXEL_FACTORS[name], rng)
    spec = sample_subject(seed, protocol, group)
    if training:
        spec = enriched(spec, rng)
    recipe = draw_processing(rng, name, group, seed, training)
    if training and rng.random() < COARSE_SHARE:
        recipe = dataclasses.replace(recipe, oversampling=COARSE_OVERSAMPLING[name])
    return spec, recipe


def draw_processing(
    rng: np.random.Generator, protocol: str, group: str, seed: int, training: bool
) -> Recipe:
    """How a scan is stored, filtered, masked and corrected.

    Held-out scans are filtered as the pipeline does by default three times in four; what is
    varied about the others, and about all training scans, a user may find in the field or set.
    """
    plain = not training and bool(rng.random() < 0.75)
    wide = 1.0 if training else 0.5
    half_height = 0.0625 * float(np.exp(rng.uniform(-0.5, 0.5) * wide))
    return Recipe(
        protocol=protocol,
        group=group,
        seed=seed,
        oversampling=OVERSAMPLING[protocol],
        left_handed=bool(rng.random() < 0.3),
        phase_levels=int(rng.choice([4096, 6284, 8192])),
        highpass="gaussian" if rng.random() < 0.25 and not plain else "homodyne",
        homodyne_half_height_per_mm=0.0625 if plain else half_height,
        gaussian_sigma_mm=4.0 * float(np.exp(rng.uniform(-0.6, 0.6) * wide)),
        swi_power=4 if plain else int(rng.choice([3, 4, 4, 5] if training else [4])),
        zero_filling=_draw_zero_filling(rng, protocol, training),
        uncovered=_draw_uncovered(rng) if training else (0.0, 0.0),
        mask_shift_mm=float(np.clip(rng.normal(0.4, 1.2), -2.5, 3.0)),
        mask_wobble_mm=float(rng.uniform(0, 2.5)),
        shading_corrected=bool(rng.random() < 0.85),
        magnitude_too=not training or bool(rng.random() < MAGNITUDE_SHARE),
        swi_as_magnitude=bool(rng.random() < 0.3),
    )


def _draw_zero_filling(
    rng: np.random.Generator, protocol: str, training: bool
) -> tuple[float, float, float]:
    """How much finer the scanner stores the images than it acquired them, by axis."""
    chance, in_plane, across = rng.random(), rng.uniform(1.2, 1.8), rng.uniform(1.3, 2.0)
    if not training or protocol == "7T":
        return (1.0, 1.0, 1.0)
    if chance < 0.12:
        return (float(in_plane), float(in_plane), 1.0)
    return (1.0, 1.0, float(across)) if chance < 0.3 else (1.0, 1.0, 1.0)


def _draw_uncovered(rng: np.random.Generator) -> tuple[float, float]:
    """Shares of the slices that were never acquired, at the lower and the upper end."""
    below, above = (float(rng.uniform(*most)) for most in UNCOVERED)
    return (below, above) if rng.random() < SHORT_SLAB_SHARE else (0.0, 0.0)


def varied_protocol(
    protocol: Protocol,
    factors: tuple[tuple[float, float], tuple[float, float]],
    rng: np.random.Generator,
) -> Protocol:
    """The protocol with other voxels over the same field of view."""
    in_plane, across = rng.uniform(*factors[0]), rng.uniform(*factors[1])
    wanted = np.array(protocol.voxel_mm) * [in_plane, in_plane, across]
    field_of_view = np.array(protocol.field_of_view_mm)
    matrix = 2 * np.round(field_of_view / wanted / 2).astype(int)
    voxel = field_of_view / matrix
    return dataclasses.replace(
        protocol,
        matrix=(int(matrix[0]), int(matrix[1]), int(matrix[2])),
        voxel_mm=(float(voxel[0]), float(voxel[1]), float(voxel[2])),
    )


def enriched(spec: SubjectSpec, rng: np.random.Generator) -> SubjectSpec:
    """More lesions than a cohort has, and every condition beyond what a cohort varies."""
    microbleeds = int(min(60, 4 + rng.geometric(1 / 28))) if rng.random() < 0.88 else 0
    factor = float(rng.uniform(0.7, 1.4))
    gap = float(rng.uniform(*SLICE_GAP))
    protocol = dataclasses.replace(
        spec.protocol,
        flip_angle_deg=spec.protocol.flip_angle_deg * float(rng.uniform(0.6, 1.5)),
        slice_gap=gap if rng.random() < SLICES_SHARE else None,
    )
    return dataclasses.replace(
        spec,
        protocol=protocol,
        microbleeds=microbleeds,
        microbleed_diameter_mm=float(rng.uniform(1.7, 3.0)),
        microbleed_diameter_spread=float(rng.uniform(0.3, 0.6)),
        microbleeds_by_vein=0.15,
        microbleeds_at_border=0.15,
        mimic_load=float(rng.uniform(2.0, 9.0)),
        echo_times_s=tuple(round(t * factor, 5) for t in spec.echo_times_s),
        signal_to_noise=spec.signal_to_noise * float(rng.uniform(0.6, 1.25)),
        vein_density=spec.vein_density * float(np.exp(rng.normal(0, 0.3))),
        vein_calibre=spec.vein_calibre * float(np.exp(rng.normal(0, 0.2))),
        vein_susceptibility_ppm=float(rng.uniform(0.2, 0.7)),
        ghost=float(rng.uniform(0.01, 0.06)) if rng.random() < 0.3 else 0.0,
        motion_mm=float(rng.uniform(0.2, 1.2)) if rng.random() < 0.25 else 0.0,
        partial_fourier=float(rng.uniform(0.7, 0.9)) if rng.random() < 0.25 else 1.0,
        elliptical_shutter=bool(rng.random() < 0.3),
        # Other simulators' veins, and vessels cut by a mask, end bluntly.
        vein_thinning=float(rng.uniform(0.0, 1.0)),
        short_veins=draw_short_veins(rng, most=250),
    )
