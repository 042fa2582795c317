"""Acquisition protocols: what the scanner is set to, and nothing about the subject."""

from __future__ import annotations

from dataclasses import dataclass

from cmb_bids.errors import UsageError

GYROMAGNETIC_RATIO_HZ_PER_T = 42.577478518e6


@dataclass(frozen=True)
class Protocol:
    """A spoiled gradient-echo protocol, flow compensated, axial.

    ``oversampling`` is the default ratio of simulation to acquisition grid on each axis and
    ``signal_to_noise`` the range of white matter signal-to-noise at the first echo. ``slice_gap``
    is the share of the distance between slices that is not excited where slices are acquired one
    by one; None: three-dimensional.
    """

    name: str
    field_strength_t: float
    echo_times_s: tuple[float, ...]
    repetition_time_s: float
    flip_angle_deg: float
    voxel_mm: tuple[float, float, float]
    matrix: tuple[int, int, int]
    oversampling: tuple[float, float, float]
    signal_to_noise: tuple[float, float]
    echo_time_range_s: tuple[float, float] | None = None
    slice_gap: float | None = None

    @property
    def suffix(self) -> str:
        """BIDS suffix: MEGRE for several echoes, T2starw for one."""
        return "MEGRE" if len(self.echo_times_s) > 1 else "T2starw"

    @property
    def field_of_view_mm(self) -> tuple[float, float, float]:
        x, y, z = (n * v for n, v in zip(self.matrix, self.voxel_mm, strict=True))
        return (x, y, z)


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            "1.5T",
            1.5,
            (0.040,),
            0.049,
            15.0,
            (0.5, 1.0, 2.0),
            (384, 224, 86),
            (1.5, 3.0, 4.0),
            (20.0, 32.0),
        ),
        Protocol(
            "3T",
            3.0,
            (0.020,),
            0.028,
            15.0,
            (0.5, 0.5, 2.0),
            (384, 448, 86),
            (1.5, 1.5, 3.0),
            (14.0, 26.0),
        ),
        Protocol(
            "ukb",
            3.0,
            (0.0094, 0.020),
            0.027,
            15.0,
            (0.8, 0.8, 3.0),
            (224, 270, 58),
            (2.0, 2.0, 4.0),
            (28.0, 50.0),
        ),
        Protocol(
            "7T",
            7.0,
            (0.014,),
            0.030,
            12.0,
            (0.4, 0.4, 1.2),
            (480, 560, 140),
            (1.25, 1.25, 1.5),
            (14.0, 26.0),
            (0.010, 0.017),
        ),
    )
}


def get_protocol(name: str | Protocol) -> Protocol:
    """The protocol of that name.

    Raises
    ------
    UsageError
        No such protocol.
    """
    if isinstance(name, Protocol):
        return name
    try:
        return PROTOCOLS[name]
    except KeyError:
        known = ", ".join(PROTOCOLS)
        raise UsageError(
            "--protocol", f"knows no protocol '{name}'", f"Use one of {known}"
        ) from None
