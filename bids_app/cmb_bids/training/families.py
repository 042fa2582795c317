"""What varies between simulated cases, family by family, and in which cases it does."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from cmb_bids.errors import UsageError
from cmb_bids.highpass import HALF_HEIGHT_PER_MM
from cmb_bids.simulate import PROTOCOLS, SubjectSpec
from cmb_bids.swi import SwiConfig
from cmb_bids.training.recipes import COARSE_OVERSAMPLING, Recipe, draw_recipe
from cmb_bids.training.shards import load_case

LEAST_CHANGE = 0.15  # of the logarithm of a quantity that varies


@dataclass(frozen=True)
class Family:
    """Something that varies between cases: what it is, and whether it does in a case.

    ``varies`` is asked of the participant with the scan, and of how both are processed. Where a
    quantity has no usual value, the cases in its upper half vary.
    """

    what: str
    varies: Callable[[SubjectSpec, Recipe], bool]


def _apart(value: float, usual: float, least: float = LEAST_CHANGE) -> bool:
    """Whether two positive numbers differ by more than this in their logarithms."""
    return abs(math.log(value / usual)) > least


def _echo(spec: SubjectSpec, recipe: Recipe) -> bool:
    return _apart(spec.echo_times_s[-1], PROTOCOLS[recipe.protocol].echo_times_s[-1])


def _grid(spec: SubjectSpec, recipe: Recipe) -> bool:
    usual = PROTOCOLS[recipe.protocol].voxel_mm
    return any(_apart(a, b, 0.2) for a, b in zip(spec.protocol.voxel_mm, usual, strict=True))


def _interpolation(spec: SubjectSpec, recipe: Recipe) -> bool:
    return max(recipe.zero_filling) > 1 or spec.protocol.slice_gap is not None


def _noise(spec: SubjectSpec, recipe: Recipe) -> bool:
    low, high = PROTOCOLS[recipe.protocol].signal_to_noise
    return not low <= spec.signal_to_noise <= high


def _contrast(spec: SubjectSpec, recipe: Recipe) -> bool:
    return _apart(spec.protocol.flip_angle_deg, PROTOCOLS[recipe.protocol].flip_angle_deg, 0.22)


def _filter(spec: SubjectSpec, recipe: Recipe) -> bool:
    wide = _apart(recipe.homodyne_half_height_per_mm, HALF_HEIGHT_PER_MM, 0.25)
    return recipe.highpass != "homodyne" or wide


def _coarse(spec: SubjectSpec, recipe: Recipe) -> bool:
    return recipe.oversampling == COARSE_OVERSAMPLING[recipe.protocol]


FAMILIES: dict[str, Family] = {
    "field": Family("field strength: 1.5T beside 3T and 7T", lambda s, r: r.protocol == "1.5T"),
    "echo": Family("echo time", _echo),
    "grid": Family("voxel size, slice thickness", _grid),
    "interpolation": Family("interpolated images, slices with gaps", _interpolation),
    "slab": Family("slabs that end short of the brain", lambda s, r: max(r.uncovered) > 0.03),
    "noise": Family("signal to noise beyond the protocol's range", _noise),
    "contrast": Family("T1 and proton-density contrast (flip angle)", _contrast),
    "shading": Family(
        "strong bias field, or one left in", lambda s, r: s.bias > 0.35 or not r.shading_corrected
    ),
    "coil-phase": Family("phase of the coils", lambda s, r: s.coil_phase_rad > 3.5),
    "k-space": Family(
        "partial Fourier, k-space without its corners",
        lambda s, r: s.partial_fourier < 1 or s.elliptical_shutter,
    ),
    "motion": Family("motion and flow ghosts", lambda s, r: s.motion_mm > 0 or s.ghost > 0),
    "filter": Family("high-pass filter of the phase and its width", _filter),
    "swi": Family("power of the phase mask in SWI", lambda s, r: r.swi_power != SwiConfig().power),
    "mask": Family(
        "errors of the brain mask",
        lambda s, r: abs(r.mask_shift_mm) > 1.0 or r.mask_wobble_mm > 1.5,
    ),
    "veins": Family(
        "number and calibre of veins",
        lambda s, r: _apart(s.vein_density, 1.0, 0.4) or _apart(s.vein_calibre, 1.0, 0.3),
    ),
    "blunt-veins": Family("veins that end bluntly", lambda s, r: s.vein_thinning < 0.5),
    "short-veins": Family("pieces of veins, short and coiled", lambda s, r: s.short_veins > 20),
    "lesions": Family("size of the lesions", lambda s, r: _apart(s.microbleed_diameter_mm, 2.3)),
    "faint-lesions": Family("small lesions fainter than physics has them", _coarse),
    "calcifications": Family("many calcifications", lambda s, r: s.mimic_load > 5.5),
    "iron": Family("iron of the deep nuclei", lambda s, r: s.iron > 1.1),
    "atrophy": Family("wide ventricles and sulci", lambda s, r: s.ventricles_mm > 2.0),
    "pose": Family("head turned by more than 4.5 degrees", lambda s, r: _turned(s) > 4.5),
    "tilt": Family(
        "slices tilted against the field by more than 10 degrees",
        lambda s, r: s.obliquity_deg > 10.0,
    ),
    "air": Family("wide air cells at the skull base", lambda s, r: s.pneumatisation > 0.7),
}


def _turned(spec: SubjectSpec) -> float:
    """The largest of a head's three rotations, degrees."""
    return max(abs(angle) for angle in spec.head_rotation_deg)


@cache  # every family asks every case
def drawn_again(path: Path, seed: int) -> tuple[SubjectSpec, Recipe]:
    """Who is scanned in a training case and how, all of it: a case's file holds only a part.

    Parameters
    ----------
    path : path
        Of a training case.
    seed : int
        That the cases were simulated with.

    Raises
    ------
    UsageError
        The case is of another seed, or of a simulator that drew otherwise.
    """
    case = load_case(path, ())
    spec, recipe = draw_recipe(np.random.default_rng([seed, case.index]), training=True)
    known = case.recipe
    same = known.get("seed") == recipe.seed and math.isclose(
        known.get("signal_to_noise", 0.0), spec.signal_to_noise, rel_tol=1e-6
    )
    if not same:
        raise UsageError(
            path,
            f"was not simulated with seed {seed} by this version",
            "Give its seed with --cases-seed, or simulate it again",
        )
    return spec, recipe


def cases_in_which_it_varies(paths: Sequence[Path], family: Family, seed: int) -> list[Path]:
    """Those training cases in which a family varies."""
    return [path for path in paths if family.varies(*drawn_again(path, seed))]
