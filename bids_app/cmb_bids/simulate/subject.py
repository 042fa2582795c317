"""Who is scanned and how: everything that is drawn at random before any image is made."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cmb_bids.errors import UsageError
from cmb_bids.simulate.protocols import Protocol, get_protocol

GROUPS = ("healthy", "haemodialysis", "tbi", "stroke", "population")
PAPER_COHORT = {"haemodialysis": 13, "tbi": 9, "stroke": 9, "healthy": 10}
AGE_RANGES = {
    "healthy": (25, 75),
    "haemodialysis": (35, 80),
    "tbi": (18, 60),
    "stroke": (50, 88),
    "population": (46, 82),
}


@dataclass(frozen=True)
class SubjectSpec:
    """One participant and one scan. `seed` decides everything that is not named here."""

    seed: int
    protocol: Protocol
    group: str
    age: int
    sex: str
    echo_times_s: tuple[float, ...]
    obliquity_deg: float = 0.0
    signal_to_noise: float = 20.0
    lesion_load: float = 1.0
    mimic_load: float = 1.0
    microbleeds: int | None = None  # drawn from the group's distribution when None
    microbleed_diameter_mm: float = 2.1  # median of the core
    microbleed_diameter_spread: float = 0.42  # of its logarithm
    microbleeds_by_vein: float = 0.1  # share of them
    microbleeds_at_border: float = 0.0  # share of them at the surface of the brain's tissue
    head_scale: tuple[float, float, float] = (0.95, 0.95, 0.95)
    head_rotation_deg: tuple[float, float, float] = (0.0, 0.0, 0.0)
    head_shift_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)
    deformation_mm: float = 2.5
    ventricles_mm: float = 1.0
    fluid_threshold: float = 0.2
    iron: float = 1.0
    vein_density: float = 1.0
    vein_calibre: float = 1.0
    vein_susceptibility_ppm: float = 0.43
    vein_thinning: float = 1.0  # share of the loose ends of veins that thin out
    short_veins: int = 0  # pieces of veins, seen for some millimetres
    haematocrit_rate_per_s: float = 40.0
    bias: float = 0.3
    coil_phase_rad: float = 4.0
    shim: float = 0.95
    pneumatisation: float = 0.7
    taper: float = 0.1
    partial_fourier: float = 1.0  # share of the phase-encoding lines that is acquired
    elliptical_shutter: bool = False  # the corners of the phase-encoding plane are left out
    ghost: float = 0.0
    motion_mm: float = 0.0
    flip_first_axis: bool = False


def spec_rng(spec: SubjectSpec, stream: int) -> np.random.Generator:
    """Independent random numbers per stage: a change in one stage leaves the others as they are."""
    return np.random.default_rng([spec.seed, stream])


def sample_subject(
    seed: int,
    protocol: str | Protocol = "ukb",
    group: str = "population",
    *,
    obliquity_deg: float | None = None,
    signal_to_noise: float | None = None,
    noise: float = 1.0,
    lesion_load: float = 1.0,
    mimic_load: float = 1.0,
    microbleeds: int | None = None,
) -> SubjectSpec:
    """Draw a participant and the conditions of the scan.

    Parameters
    ----------
    seed : int
        Decides every random number; the same arguments give the same scan.
    protocol : str or Protocol
        1.5T, 3T, ukb or 7T.
    group : str
        healthy, haemodialysis, tbi, stroke or population (UK Biobank-like prevalence).
    obliquity_deg : float, optional
        Angle between slice normal and main field; drawn within 0-25 when absent.
    signal_to_noise : float, optional
        Of white matter at the first echo; drawn from the protocol's range when absent.
    noise : float
        Multiplier of the noise, for the drawn signal-to-noise.
    lesion_load, mimic_load : float
        Multipliers of the expected number of microbleeds, and of calcifications.
    microbleeds : int, optional
        Exact number to place, instead of a draw from the group's distribution.

    Raises
    ------
    UsageError
        Unknown protocol or group.
    """
    protocol = get_protocol(protocol)
    if group not in GROUPS:
        raise UsageError("group", f"knows no group '{group}'", f"Use one of {', '.join(GROUPS)}")
    rng = np.random.default_rng([seed, 0])
    low, high = AGE_RANGES[group]
    age = int(rng.integers(low, high + 1))
    old = float(np.clip((age - 40) / 40, 0, 1.2))
    size = rng.normal(0.94, 0.025)
    scale = np.clip(size * (1 + rng.normal(0, 0.015, 3)), 0.89, 1.0)
    rotation = rng.normal(0, [4.0, 2.5, 3.0])
    shift = rng.normal(0, [2.0, 2.5, 1.5])
    echo_times = protocol.echo_times_s
    if protocol.echo_time_range_s is not None:
        echo_times = (round(float(rng.uniform(*protocol.echo_time_range_s)), 4),)
    drawn_obliquity = float(np.clip(np.abs(rng.normal(0, 11)), 0, 28))
    drawn_snr = float(rng.uniform(*protocol.signal_to_noise))
    return SubjectSpec(
        seed=int(seed),
        protocol=protocol,
        group=group,
        age=age,
        sex="F" if rng.random() < 0.5 else "M",
        echo_times_s=echo_times,
        obliquity_deg=drawn_obliquity if obliquity_deg is None else float(obliquity_deg),
        signal_to_noise=(drawn_snr if signal_to_noise is None else signal_to_noise) / noise,
        lesion_load=lesion_load,
        mimic_load=mimic_load,
        microbleeds=microbleeds,
        head_scale=(float(scale[0]), float(scale[1]), float(scale[2])),
        head_rotation_deg=(float(rotation[0]), float(rotation[1]), float(rotation[2])),
        head_shift_mm=(float(shift[0]), float(shift[1]), float(shift[2])),
        deformation_mm=float(rng.uniform(1.2, 2.6)),
        ventricles_mm=float(np.clip(rng.normal(0.3 + 2.6 * old, 0.8), -0.8, 4.5)),
        fluid_threshold=float(np.clip(rng.normal(0.22 + 0.10 * old, 0.04), 0.12, 0.40)),
        iron=float(np.clip(rng.normal(0.7 + 0.5 * old, 0.2), 0.3, 1.8)),
        vein_density=float(np.exp(rng.normal(0, 0.3))),
        vein_calibre=float(np.exp(rng.normal(0, 0.15))),
        vein_susceptibility_ppm=float(rng.uniform(0.3, 0.6)),
        haematocrit_rate_per_s=float(rng.uniform(25, 55)),
        bias=float(rng.uniform(0.1, 0.5)),
        coil_phase_rad=float(rng.uniform(1.0, 6.0)),
        shim=float(rng.uniform(0.8, 1.0)),
        pneumatisation=float(rng.uniform(0.4, 0.95)),
        taper=float(rng.choice([0.0, rng.uniform(0.05, 0.4)])),
        ghost=float(rng.uniform(0.01, 0.04)) if rng.random() < 0.2 else 0.0,
        motion_mm=float(rng.uniform(0.2, 0.9)) if rng.random() < 0.15 else 0.0,
        flip_first_axis=bool(rng.random() < 0.5),
        vein_thinning=float(rng.uniform(0.7, 1.0)),
        short_veins=draw_short_veins(rng, most=150),
    )


def draw_short_veins(rng: np.random.Generator, most: int) -> int:
    """Number of a head's short pieces of veins: in a third of heads none, in some very many."""
    some = int(np.exp(rng.uniform(np.log(3), np.log(most))))
    return 0 if rng.random() < 1 / 3 else some
