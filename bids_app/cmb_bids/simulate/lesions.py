"""Microbleeds and calcifications: how many, where, how large, and drawing them on the grid."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from cmb_bids.simulate.head import TISSUES
from cmb_bids.simulate.subject import SubjectSpec

# Expected number in a carrier, and the share of carriers. The patients' counts are
# overdispersed (negative binomial); population and healthy carriers have mostly one.
GROUP_COUNTS = {
    "healthy": (0.08, 1.3),
    "haemodialysis": (0.9, 6.0),
    "tbi": (0.9, 10.0),
    "stroke": (0.85, 7.0),
    "population": (0.07, 1.9),
}
# Relative weights of lobar, deep and infratentorial (UK Biobank: 77, 18, 15 % of carriers).
GROUP_SHARES = {
    "healthy": (0.70, 0.16, 0.14),
    "population": (0.70, 0.16, 0.14),
    "haemodialysis": (0.55, 0.28, 0.17),
    "stroke": (0.48, 0.36, 0.16),
    "tbi": (0.78, 0.15, 0.07),
}
REGION_WEIGHTS = {
    "lobar": {1: 3.0, 2: 2.4, 3: 2.6, 4: 1.6, 5: 0.3, 11: 1.5, 12: 1.0, 13: 0.8, 14: 0.5},
    "deep": {21: 0.5, 22: 1.6, 23: 0.6, 24: 2.2, 25: 0.7, 26: 0.5, 27: 0.4, 28: 1.5},
    "infratentorial": {31: 0.9, 32: 1.3},
}
TBI_DEEP = {27: 3.0, 28: 1.5, 24: 0.5, 25: 0.5}
MARS_REGION = {
    1: "frontal",
    2: "parietal",
    3: "temporal",
    4: "occipital",
    5: "insula",
    11: "frontal",
    12: "parietal",
    13: "temporal",
    14: "occipital",
    21: "basal_ganglia",
    22: "basal_ganglia",
    23: "basal_ganglia",
    24: "thalamus",
    25: "internal_capsule",
    26: "external_capsule",
    27: "corpus_callosum",
    28: "deep_white_matter",
    31: "brainstem",
    32: "cerebellum",
}

IN_TISSUE, AT_BORDER_IN_TISSUE = 6, 4  # of seven places of a core


@dataclass(frozen=True)
class Lesion:
    """A blob in box mm: an irregular ellipsoid of `radii_mm` in the frame `axes` (rows)."""

    name: str
    centre_mm: np.ndarray
    radii_mm: np.ndarray
    axes: np.ndarray
    roughness: np.ndarray  # coefficients of the surface's second and third order wobble
    susceptibility_ppm: float
    rate_per_s: float
    signal: float
    region: int
    site: str

    @property
    def diameter_mm(self) -> float:
        """Of the sphere of equal volume."""
        return float(2 * np.prod(self.radii_mm) ** (1 / 3))


def mars_class(region: int) -> str | None:
    base = region % 100
    for name, weights in REGION_WEIGHTS.items():
        if base in weights:
            return name
    return None


def draw_count(spec: SubjectSpec, rng: np.random.Generator) -> int:
    """Number of microbleeds of a subject of the group, overdispersed."""
    carriers, mean = GROUP_COUNTS[spec.group]
    if spec.group in ("healthy", "population"):
        carriers *= float(np.clip(0.5 + (spec.age - 45) / 30, 0.3, 2.0))
    if rng.random() > min(1.0, carriers * spec.lesion_load):
        return 0
    extra = max(mean * max(spec.lesion_load, 1.0) - 1, 0.05)
    shape = 0.9
    return min(1 + int(rng.poisson(rng.gamma(shape, extra / shape))), 60)


def random_axes(rng: np.random.Generator) -> np.ndarray:
    q, _ = np.linalg.qr(rng.standard_normal((3, 3)))
    return q


def draw_blob(
    name: str,
    centre: np.ndarray,
    diameter_mm: float,
    chi: float,
    region: int,
    site: str,
    spec: SubjectSpec,
    rng: np.random.Generator,
) -> Lesion:
    """Shape and relaxation of a lesion of given size and susceptibility.

    R2* of a microbleed is 127 |chi| + 23 /s at 3T, in proportion to the field.
    """
    stretch = np.exp(rng.normal(0, 0.14, 3))
    stretch /= np.prod(stretch) ** (1 / 3)
    field = spec.protocol.field_strength_t / 3.0
    if name == "microbleed":
        rate = (127 * abs(chi) + 23) * field
        signal = rng.uniform(0.6, 0.95)
    else:
        rate = (60 * abs(chi) + 20) * field
        signal = rng.uniform(0.25, 0.75)
    return Lesion(
        name,
        centre,
        0.5 * diameter_mm * stretch,
        random_axes(rng),
        rng.normal(0, 0.09, 4),
        float(chi),
        float(rate),
        float(signal),
        int(region),
        site,
    )


class Placer:
    """Finds sites for lesions: in tissue, away from fluid, apart from one another."""

    def __init__(
        self, regions: np.ndarray, tissue: np.ndarray, voxel_mm: np.ndarray, brain: np.ndarray
    ) -> None:
        self.regions, self.tissue, self.brain = regions, tissue, brain
        self.voxel_mm = np.asarray(voxel_mm)
        self.half = (np.array(regions.shape) - 1) / 2 * self.voxel_mm
        self.base = regions % 100
        self.order = np.argsort(self.base.ravel(), kind="stable")
        self.edges = np.searchsorted(self.base.ravel()[self.order], np.arange(101))
        self.border: np.ndarray | None = None
        self.taken: list[tuple[np.ndarray, float]] = []

    def voxel(self, point: np.ndarray) -> tuple[int, int, int]:
        i, j, k = np.rint((point + self.half) / self.voxel_mm).astype(int)
        return int(i), int(j), int(k)

    def inside(self, point: np.ndarray) -> bool:
        index = np.array(self.voxel(point))
        return bool((index >= 2).all() and (index < np.array(self.regions.shape) - 2).all())

    def region_at(self, point: np.ndarray) -> int:
        return int(self.regions[self.voxel(point)]) if self.inside(point) else 0

    def random_in_region(self, label: int, rng: np.random.Generator) -> np.ndarray | None:
        low, high = self.edges[label], self.edges[label + 1]
        if high - low < 20:
            return None
        flat = self.order[rng.integers(low, high)]
        index = np.array(np.unravel_index(flat, self.regions.shape))
        return (index + rng.uniform(-0.5, 0.5, 3)) * self.voxel_mm - self.half

    def at_border(self, rng: np.random.Generator) -> np.ndarray | None:
        """A place in solid tissue within a voxel of fluid, dura or what lies outside the brain."""
        if self.border is None:
            solid = (self.base > 0) & (self.base != 41)
            self.border = np.flatnonzero(solid & ~ndimage.binary_erosion(solid))
        if not len(self.border):
            return None
        index = np.unravel_index(self.border[rng.integers(len(self.border))], self.base.shape)
        return (np.array(index) + rng.uniform(-0.5, 0.5, 3)) * self.voxel_mm - self.half

    def in_tissue(self, point: np.ndarray, radius_mm: float, least: int = IN_TISSUE) -> bool:
        """Solid brain tissue at the centre and at ``least`` of it and six places of the core."""
        reach = max(0.8 * radius_mm, 0.7)
        steps = reach * np.vstack([np.eye(3), -np.eye(3)])
        labels = [self.region_at(point + step) for step in steps] + [self.region_at(point)]
        solid = [label > 0 and label % 100 != 41 for label in labels]
        return solid[-1] and sum(solid) >= least

    def is_free(self, point: np.ndarray, radius_mm: float) -> bool:
        return all(
            np.linalg.norm(point - other) > 2.2 * (radius_mm + taken) + 2.0
            for other, taken in self.taken
        )

    def take(self, point: np.ndarray, radius_mm: float) -> None:
        self.taken.append((point, radius_mm))


def _choose_region(spec: SubjectSpec, rng: np.random.Generator) -> int:
    shares = np.array(GROUP_SHARES[spec.group])
    name = ("lobar", "deep", "infratentorial")[rng.choice(3, p=shares / shares.sum())]
    weights = TBI_DEEP if spec.group == "tbi" and name == "deep" else REGION_WEIGHTS[name]
    labels = list(weights)
    p = np.array([weights[label] for label in labels])
    return int(rng.choice(labels, p=p / p.sum()))


def place_microbleeds(
    spec: SubjectSpec, placer: Placer, vein_points: np.ndarray, rng: np.random.Generator
) -> list[Lesion]:
    """Microbleeds of the subject, fewer than drawn only where no free tissue is found.

    TBI lesions gather in one to three clusters at the grey-white junction. Shares of all lie beside
    a vein and at the border of the tissue, as ``spec`` says.
    """
    count = draw_count(spec, rng) if spec.microbleeds is None else spec.microbleeds
    lesions: list[Lesion] = []
    clusters: list[np.ndarray] = []
    if spec.group == "tbi":
        for _ in range(int(rng.integers(1, 4))):
            site = placer.random_in_region(int(rng.choice([11, 11, 13, 12, 27])), rng)
            if site is not None:
                clusters.append(site)
    for _ in range(count):
        middle, spread = np.log(spec.microbleed_diameter_mm), spec.microbleed_diameter_spread
        diameter = float(np.clip(np.exp(rng.normal(middle, spread)), 0.9, 6.0))
        chi = float(np.clip(np.exp(rng.normal(np.log(0.65), 0.45)), 0.25, 1.6))
        for _attempt in range(60):
            point, least = _draw_site(spec, placer, clusters, vein_points, rng)
            if point is None or not placer.in_tissue(point, diameter / 2, least):
                continue
            if placer.is_free(point, diameter / 2):
                placer.take(point, diameter / 2)
                region = placer.region_at(point)
                lesions.append(
                    draw_blob("microbleed", point, diameter, chi, region, "parenchyma", spec, rng)
                )
                break
    return lesions


def _draw_site(
    spec: SubjectSpec,
    placer: Placer,
    clusters: list[np.ndarray],
    vein_points: np.ndarray,
    rng: np.random.Generator,
) -> tuple[np.ndarray | None, int]:
    """A place for a microbleed, and at how many of seven places its core must be tissue."""
    if spec.microbleeds_at_border and rng.random() < spec.microbleeds_at_border:
        return placer.at_border(rng), AT_BORDER_IN_TISSUE
    if clusters and rng.random() < 0.65:
        return clusters[rng.integers(len(clusters))] + rng.normal(0, 9, 3), IN_TISSUE
    if len(vein_points) and rng.random() < spec.microbleeds_by_vein:
        return vein_points[rng.integers(len(vein_points))] + rng.normal(0, 1.5, 3), IN_TISSUE
    return placer.random_in_region(_choose_region(spec, rng), rng), IN_TISSUE


def _calcified_chi(rng: np.random.Generator) -> float:
    return -float(np.clip(np.exp(rng.normal(np.log(0.8), 0.7)), 0.1, 3.0))


def _tissue_points(placer: Placer, tissue: str) -> np.ndarray:
    index = np.argwhere(placer.tissue == TISSUES[tissue])
    return index * placer.voxel_mm - placer.half


def place_calcifications(
    spec: SubjectSpec, placer: Placer, artery_points: np.ndarray, rng: np.random.Generator
) -> list[Lesion]:
    """Calcifications: choroid plexus, pineal, pallidum, falx, vessels and, rarely, parenchyma."""
    old = float(np.clip((spec.age - 20) / 50, 0.1, 1.2))
    lesions: list[Lesion] = []

    def add(point: np.ndarray, diameter: float, site: str) -> None:
        if not placer.inside(point) or not placer.is_free(point, 0.25 * diameter):
            return
        placer.take(point, diameter / 2)
        lesions.append(
            draw_blob(
                "calcification",
                point,
                diameter,
                _calcified_chi(rng),
                placer.region_at(point),
                site,
                spec,
                rng,
            )
        )

    def scatter(tissue: str, expected: float, size: tuple[float, float], one_side: int = 0) -> None:
        points = _tissue_points(placer, tissue)
        if one_side:
            points = points[np.sign(points[:, 0]) == one_side]
        for _ in range(rng.poisson(expected)):
            if len(points):
                chosen = points[rng.integers(len(points))] + rng.normal(0, 0.4, 3)
                add(chosen, float(rng.uniform(*size)), tissue)

    load = spec.mimic_load
    if rng.random() < 0.6 * old * load:
        for side in (-1, 1):
            scatter("choroid_plexus", 1.8, (1.2, 4.5), side)
    if rng.random() < 0.55 * old * load:
        scatter("pineal", 1.5, (1.5, 4.0))
    if rng.random() < 0.25 * old * load:
        for side in (-1, 1):
            scatter("pallidum", 2.2, (0.9, 2.8), side)
    if rng.random() < 0.15 * old * load:
        scatter("falx", 1.5, (1.5, 4.0))
    if rng.random() < 0.12 * old * load:
        scatter("dentate", 2.0, (0.8, 2.4))
    if rng.random() < 0.15 * old * load and len(artery_points):
        for _ in range(1 + rng.poisson(1.0)):
            chosen = artery_points[rng.integers(len(artery_points))] + rng.normal(0, 0.5, 3)
            add(chosen, float(rng.uniform(1.0, 3.0)), "artery_wall")
    for _ in range(rng.poisson(0.8 * load)):
        diameter = float(np.clip(np.exp(rng.normal(np.log(1.9), 0.4)), 0.8, 5.0))
        for _attempt in range(40):
            label = int(rng.choice([1, 2, 3, 4, 11, 12, 13, 14, 28, 22, 24, 32]))
            site = placer.random_in_region(label, rng)
            if (
                site is not None
                and placer.in_tissue(site, diameter / 2)
                and placer.is_free(site, diameter / 2)
            ):
                add(site, diameter, "parenchyma")
                break
    return lesions


def occupancy(
    lesion: Lesion, shape: tuple[int, int, int], spacing_mm: np.ndarray, half_mm: np.ndarray
) -> tuple[tuple[slice, slice, slice], np.ndarray] | None:
    """Share of each fine voxel the lesion fills, and where: 3 x 3 x 3 samples per voxel.

    Returns
    -------
    (slices, share) or None where the lesion lies outside the grid
    """
    reach = 1.5 * lesion.radii_mm.max() + spacing_mm
    centre = (lesion.centre_mm + half_mm) / spacing_mm
    low = np.maximum(np.floor(centre - reach / spacing_mm).astype(int), 0)
    high = np.minimum(np.ceil(centre + reach / spacing_mm).astype(int) + 1, shape)
    if (high <= low).any():
        return None
    offsets = (np.arange(3) - 1) / 3
    axes = [
        ((np.arange(a, b)[:, None] + offsets) * s - h).ravel()
        for a, b, s, h in zip(low, high, spacing_mm, half_mm, strict=True)
    ]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1) - lesion.centre_mm
    local = points @ lesion.axes.T / lesion.radii_mm
    radius = np.linalg.norm(local, axis=-1)
    u = local / np.maximum(radius, 1e-6)[..., None]
    a, b, c, d = lesion.roughness
    surface = (
        1
        + a * (3 * u[..., 0] ** 2 - 1)
        + b * 2 * u[..., 1] * u[..., 2]
        + c * u[..., 0] * (5 * u[..., 0] ** 2 - 3)
        + d * 4 * u[..., 0] * u[..., 1] * u[..., 2]
    )
    inside = (radius <= surface).astype(np.float32)
    counts = high - low
    share = inside.reshape(counts[0], 3, counts[1], 3, counts[2], 3).mean(axis=(1, 3, 5))
    x, y, z = (slice(int(p), int(q)) for p, q in zip(low, high, strict=True))
    return (x, y, z), share


def measure_lesion(
    magnitude: np.ndarray,
    noise_sd: float,
    voxel_mm: np.ndarray,
    centre_voxel: np.ndarray,
    radius_mm: float,
) -> tuple[float, float]:
    """Contrast-to-noise and apparent diameter (mm) of a dark lesion in a magnitude image.

    Contrast is the median of a shell beyond the blooming minus the mean of the darkest core
    voxels; the apparent diameter is that of the sphere with the volume of the connected voxels
    below half contrast.
    """
    reach = np.ceil((radius_mm * 3 + 6) / voxel_mm).astype(int)
    nearest = np.rint(centre_voxel).astype(int)
    low = np.maximum(nearest - reach, 0)
    high = np.minimum(nearest + reach + 1, magnitude.shape)
    if (high <= low).any():
        return 0.0, 0.0
    box = magnitude[low[0] : high[0], low[1] : high[1], low[2] : high[2]]
    axes = [
        (np.arange(a, b) - c) * v
        for a, b, c, v in zip(low, high, centre_voxel, voxel_mm, strict=True)
    ]
    distance = np.sqrt(sum(np.square(np.ix_(*axes)[i]) for i in range(3)))
    shell = (distance > 2.2 * radius_mm + 2) & (distance < 2.2 * radius_mm + 5)
    core = distance <= max(radius_mm, 0.7 * float(voxel_mm.max()))
    if not shell.any() or not core.any():
        return 0.0, 0.0
    background = float(np.median(box[shell]))
    darkest = float(np.sort(box[core])[: max(1, core.sum() // 3)].mean())
    contrast = background - darkest
    dark = (box < background - 0.5 * contrast) & (distance < 3 * radius_mm + 3)
    labels, _ = ndimage.label(dark)
    hits = labels[core & dark]
    volume = float((labels == np.bincount(hits).argmax()).sum()) if hits.size else 0.0
    diameter = (6 * volume * float(np.prod(voxel_mm)) / np.pi) ** (1 / 3)
    return contrast / max(noise_sd, 1e-9), diameter
