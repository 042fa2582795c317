"""Which lesions go into a scan, and where."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from cmb_bids.implant.effect import Effect, lesion_effect, seen_diameter_mm
from cmb_bids.simulate.lesions import Lesion, draw_blob
from cmb_bids.simulate.protocols import get_protocol
from cmb_bids.simulate.subject import SubjectSpec, sample_subject
from cmb_bids.volumes import b0_direction, voxel_sizes, world_to_voxel

MICROBLEED, CALCIFICATION = "microbleed", "calcification"
DEPTH_MM = 2.5  # below the surface of the mask
APART_MM = 12.0  # from each other: none changes what is seen of another
FROM_KNOWN_MM = 10.0  # from what has been found in the scan before
TISSUE = (0.8, 1.3)  # contrast relative to the surroundings, smoothed: neither vein nor fluid
SMOOTHED_MM, SURROUNDINGS_MM = 0.8, 6.0
LOOKS_MM = (2.0, 10.0)  # what readers count as a microbleed (STRIVE)
MEDIAN_CORE_MM, SPREAD_OF_CORE, CORE_MM = 2.2, 0.45, (0.9, 6.0)
STRENGTH_PPM = {MICROBLEED: (0.3, 1.5), CALCIFICATION: (0.3, 2.5)}
SIGN = {MICROBLEED: 1.0, CALCIFICATION: -1.0}
TRIES, PLACES_TRIED = 40, 5


@dataclass(frozen=True)
class Acquisition:
    """The grid of a scan and how it was taken: what decides how a lesion looks."""

    shape: tuple[int, ...]
    affine: np.ndarray
    echo_times_s: tuple[float, ...]
    field_strength_t: float

    def effect(self, lesion: Lesion) -> Effect:
        """What the lesion does to the signal here."""
        return lesion_effect(
            lesion,
            self.shape,
            voxel_sizes(self.affine),
            b0_direction(self.affine),
            self.echo_times_s,
            self.field_strength_t,
        )


def free_tissue(contrast: np.ndarray, mask: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Where (x, y, z) a lesion may go: inside the brain, in neither vein nor fluid.

    Parameters
    ----------
    contrast : (x, y, z) array
        SWI, or magnitude.
    mask : (x, y, z) array of bool
        The brain.
    affine : (4, 4) array
    """
    sizes = voxel_sizes(affine)
    mask = mask > 0
    weight = ndimage.gaussian_filter(mask.astype(np.float32), SURROUNDINGS_MM / sizes)
    inside = np.where(mask, np.nan_to_num(contrast), 0).astype(np.float32)
    around = ndimage.gaussian_filter(inside, SURROUNDINGS_MM / sizes) / np.maximum(weight, 1e-3)
    near = ndimage.gaussian_filter(inside, SMOOTHED_MM / sizes)
    even = (near > TISSUE[0] * around) & (near < TISSUE[1] * around)
    # What lies beyond the image is not brain: a voxel of nothing round it.
    deep = ndimage.distance_transform_edt(np.pad(mask, 1), sampling=sizes)[1:-1, 1:-1, 1:-1]
    return even & (deep > DEPTH_MM)


def draw_lesions(
    name: str,
    count: int,
    free: np.ndarray,
    acquisition: Acquisition,
    known: np.ndarray,
    rng: np.random.Generator,
) -> list[tuple[Lesion, Effect]]:
    """Lesions and what they do: fewer than asked for where there is no room, or none is seen.

    Core diameters are log-normal, susceptibilities log-uniform (microbleeds .3 to 1.5 ppm); a
    lesion that does not look 2 to 10 mm wide on SWI is drawn again.

    Parameters
    ----------
    name : str
        microbleed or calcification.
    count : int
    free : (x, y, z) array of bool
        Where they may go, as `free_tissue` says.
    acquisition : Acquisition
    known : (n, 3) array
        Scanner mm of what is in the scan already: kept away from.
    rng : Generator
    """
    sizes = voxel_sizes(acquisition.affine)
    known = world_to_voxel(acquisition.affine, known) * sizes
    room = _away_from(np.flatnonzero(free), free.shape, sizes, known, FROM_KNOWN_MM)
    spec = _conditions(acquisition, rng)
    done: list[tuple[Lesion, Effect]] = []
    invisible = 0
    while len(done) < count and len(room) and invisible < PLACES_TRIED:
        place = np.array(np.unravel_index(rng.choice(room), free.shape))
        centre = (place + rng.uniform(-0.5, 0.5, 3)) * sizes
        found = _one_that_is_seen(name, centre, acquisition, spec, rng)
        if found is None:
            invisible += 1
            continue
        done.append(found)
        room = _away_from(room, free.shape, sizes, centre[None], APART_MM)
    return done


def _one_that_is_seen(
    name: str,
    centre: np.ndarray,
    acquisition: Acquisition,
    spec: SubjectSpec,
    rng: np.random.Generator,
) -> tuple[Lesion, Effect] | None:
    """A lesion at ``centre`` (voxel-axis mm) as large as readers count; None where none is."""
    for _ in range(TRIES):
        diameter = np.exp(rng.normal(np.log(MEDIAN_CORE_MM), SPREAD_OF_CORE))
        chi = SIGN[name] * np.exp(rng.uniform(*np.log(STRENGTH_PPM[name])))
        lesion = draw_blob(
            name, centre, float(np.clip(diameter, *CORE_MM)), chi, 0, "implanted", spec, rng
        )
        effect = acquisition.effect(lesion)
        looks = seen_diameter_mm(effect, voxel_sizes(acquisition.affine))
        if LOOKS_MM[0] <= looks <= LOOKS_MM[1]:
            return lesion, effect
    return None


def _away_from(
    room: np.ndarray,
    shape: tuple[int, ...],
    sizes: np.ndarray,
    points: np.ndarray,
    distance_mm: float,
) -> np.ndarray:
    """Which places (flat indices) are that far from all points (n, 3), voxel-axis mm."""
    for point in points:
        where = np.stack(np.unravel_index(room, shape), axis=1) * sizes
        room = room[np.linalg.norm(where - point, axis=1) > distance_mm]
    return room


def _conditions(acquisition: Acquisition, rng: np.random.Generator) -> SubjectSpec:
    """A simulated participant scanned at the scan's field strength, on which R2* depends."""
    protocol = dataclasses.replace(
        get_protocol("ukb"), name="given", field_strength_t=acquisition.field_strength_t
    )
    return sample_subject(int(rng.integers(2**31)), protocol)
