"""Measure the simulator: ``python -m cmb_bids.simulate.measure [PROTOCOL ...] [--growth]``.

Prints, per protocol and in a process of its own, wall time, processor time and peak memory of a
scan after a first one (compilation and loading are paid once per process), and with ``--growth``
how much an isolated microbleed's volume on SWI grows from an echo time of 20 to 40 ms.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time

import numpy as np

from cmb_bids.simulate.protocols import PROTOCOLS


def measure(protocol: str) -> str:
    """Cost of one scan, as a line of text."""
    from cmb_bids.simulate import sample_subject, simulate_scan

    simulate_scan(sample_subject(1, protocol, "stroke"), oversampling=1)
    wall, processor = time.perf_counter(), time.process_time()
    simulate_scan(sample_subject(2, protocol, "stroke"))
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return f"{protocol:5s} wall {wall:6.1f} s  processor {processor:6.1f} s  peak {peak:.2f} GB"


def swi_of_sphere(
    echo_time_s: float, diameter_mm: float, susceptibility_ppm: float, field_t: float = 3.0
) -> np.ndarray:
    """SWI (high-pass of the local phase not needed: nothing else is there) of one microbleed.

    Returns
    -------
    (x, y, z) array at 0.5 x 0.5 x 2 mm, tissue at 1
    """
    import torch

    from cmb_bids.simulate import physics

    matrix, fine, voxel = (64, 64, 24), (192, 192, 96), (1 / 6, 1 / 6, 0.5)
    axes = [(np.arange(n) - (n - 1) / 2) * v for n, v in zip(fine, voxel, strict=True)]
    distance = np.sqrt(sum(np.square(np.ix_(*axes)[i]) for i in range(3)))
    inside = (distance <= diameter_mm / 2).astype(np.float32)
    field = physics.dipole_field(
        torch.from_numpy(inside * susceptibility_ppm), voxel, np.array([0, 0, 1.0])
    )
    rate = 20 + inside * (127 * susceptibility_ppm + 3) * field_t / 3
    block = physics.gradient_echo_blocks(
        torch.ones(fine), torch.from_numpy(rate.astype(np.float32)), field, echo_time_s, field_t
    )
    image = torch.fft.ifftn(physics.acquire(block, fine, matrix, torch.device("cpu"))).numpy()
    phase = np.angle(image)
    mask = np.where(phase > 0, 1 - phase / np.pi, 1.0) ** 4
    return np.abs(image) * mask / np.exp(-echo_time_s * 20)


def growth(diameter_mm: float, susceptibility_ppm: float) -> float:
    """Volume below half the tissue's signal at 40 ms over that at 20 ms."""
    short, long = (swi_of_sphere(t, diameter_mm, susceptibility_ppm) for t in (0.020, 0.040))
    return float((long < 0.5).sum() / max((short < 0.5).sum(), 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("protocols", nargs="*", choices=[[], *PROTOCOLS], metavar="PROTOCOL")
    parser.add_argument("--growth", action="store_true")
    options = parser.parse_args()
    if options.growth:
        for diameter in (1.5, 2.0, 3.0, 4.0):
            for susceptibility in (0.4, 0.8):
                ratio = growth(diameter, susceptibility)
                print(f"{diameter} mm {susceptibility} ppm: SWI volume grows {ratio:.2f} times")
        return
    names = options.protocols or [*PROTOCOLS]
    if len(names) == 1:
        print(measure(names[0]), flush=True)
        return
    for name in names:
        subprocess.run([sys.executable, "-m", __spec__.name, name], check=True)


if __name__ == "__main__":
    main()
