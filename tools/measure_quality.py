"""What the measures of quality say of simulated scans that are made worse and worse.

Each scan is simulated once and then spoilt: noise is added, a ghost, a jolt of the head while a
band of phase-encoding lines was acquired, a wrong phase scale. For each the measures are printed
and, with --detect, how many microbleeds the pipeline then finds and how many false ones (with the
simulated brain mask). Every scan is simulated, and so is every figure.

    .venv/bin/python tools/measure_quality.py --seeds 1 2 --detect
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable

import numpy as np
import pandas as pd
import torch

from cmb_bids.candidates import find_candidates
from cmb_bids.interfaces.classify import classify_candidates
from cmb_bids.lesions import MICROBLEED, segment_lesions
from cmb_bids.phase import PhaseConfig, process_complex
from cmb_bids.quality import measure_quality
from cmb_bids.simulate import SimulatedScan, sample_subject, simulate_scan
from cmb_bids.training.labels import ranked_hits
from cmb_bids.training.processed import normalise

Spoil = Callable[[list[np.ndarray], SimulatedScan], list[np.ndarray]]
GHOST_SHIFT = 0.3  # of the field of view
JOLTED = (0.1, 0.25)  # lines between these shares of the highest frequency
NOISY = (20, 10, 5)  # signal to noise of the first echo
MEASURES = (
    "true_signal_to_noise",
    "signal_to_noise",
    "motion_ghosting",
    "residual_phase_rad",
    "phase_jump_share",
)


def noise_of(scan: SimulatedScan, wanted: float | None) -> float:
    """Standard deviation of an echo's noise: as simulated, or what ``wanted`` asks for if more."""
    if wanted is None:
        return scan.noise_sd
    signal = float(np.median(scan.magnitudes[0][scan.brain_mask]))
    return max(scan.noise_sd, signal / wanted)


def with_noise(wanted: float) -> Spoil:
    """Noise up to a signal-to-noise of the first echo."""

    def spoil(echoes: list[np.ndarray], scan: SimulatedScan) -> list[np.ndarray]:
        rng = np.random.default_rng(0)
        more = np.sqrt(noise_of(scan, wanted) ** 2 - scan.noise_sd**2)
        parts = [rng.standard_normal((2, *echo.shape), dtype=np.float32) for echo in echoes]
        return [e + more * (p[0] + 1j * p[1]) for e, p in zip(echoes, parts, strict=True)]

    return spoil


def with_ghost(strength: float) -> Spoil:
    """The head once more, shifted along the phase-encoding axis."""

    def spoil(echoes: list[np.ndarray], scan: SimulatedScan) -> list[np.ndarray]:
        shift = round(GHOST_SHIFT * echoes[0].shape[1])
        return [echo + strength * np.roll(echo, shift, axis=1) for echo in echoes]

    return spoil


def with_jolt(shift_mm: float) -> Spoil:
    """The head moved along the phase-encoding axis for some of its lines."""

    def spoil(echoes: list[np.ndarray], scan: SimulatedScan) -> list[np.ndarray]:
        size = scan.spec.protocol.voxel_mm[1]
        lines = np.fft.fftfreq(echoes[0].shape[1])
        moved = (lines > JOLTED[0] / 2) & (lines < JOLTED[1] / 2)
        turn = np.where(moved, np.exp(2j * np.pi * lines * shift_mm / size), 1)[None, :, None]
        return [np.fft.ifft(np.fft.fft(echo, axis=1) * turn, axis=1) for echo in echoes]

    return spoil


def with_scale(factor: float) -> Spoil:
    """Phase of a scale that was misread."""

    def spoil(echoes: list[np.ndarray], scan: SimulatedScan) -> list[np.ndarray]:
        return [np.abs(e) * np.exp(1j * factor * np.angle(e)) for e in echoes]

    return spoil


def without_phase(echoes: list[np.ndarray], scan: SimulatedScan) -> list[np.ndarray]:
    """Phase that is noise and nothing else."""
    rng = np.random.default_rng(0)
    return [np.abs(e) * np.exp(1j * rng.uniform(-np.pi, np.pi, e.shape)) for e in echoes]


CONDITIONS: dict[str, Spoil] = {
    "as simulated": lambda echoes, scan: echoes,
    **{f"signal to noise {wanted}": with_noise(wanted) for wanted in NOISY},
    "ghost of 5 %": with_ghost(0.05),
    "ghost of 10 %": with_ghost(0.1),
    "ghost of 20 %": with_ghost(0.2),
    "jolt of 0.5 mm": with_jolt(0.5),
    "jolt of 1 mm": with_jolt(1),
    "jolt of 2 mm": with_jolt(2),
    "phase scale doubled": with_scale(2),
    "phase of noise": without_phase,
}


def measure(scan: SimulatedScan, condition: str, detect: bool) -> dict[str, float | None]:
    """The measures, and with ``detect`` the definite calls: ``found`` and ``false``."""
    spoil = CONDITIONS[condition]
    pairs = zip(scan.magnitudes, scan.phases, strict=True)
    echoes = spoil([m * np.exp(1j * p) for m, p in pairs], scan)
    result = process_complex(
        [np.abs(e).astype(np.float32) for e in echoes],
        [np.angle(e).astype(np.float32) for e in echoes],
        scan.echo_times_s,
        scan.affine,
        # What is asked of the phase here needs neither unwrapping nor a search for its sign.
        PhaseConfig(unwrapping="none", polarity="right-handed"),
        field_strength_t=scan.spec.protocol.field_strength_t,
    )
    measured = measure_quality(
        result.magnitude, scan.brain_mask, scan.affine, result.highpass, phase_encoding_axis=1
    )
    wanted = {f"signal to noise {n}": n for n in NOISY}.get(condition)
    noise = noise_of(scan, wanted) * float(np.linalg.norm(result.report["echo_weights"]))
    signal = float(np.median(result.magnitude[scan.brain_mask]))
    measured = {"true_signal_to_noise": signal / noise, **measured}
    if not detect:
        return measured
    mask, affine = scan.brain_mask, scan.affine
    normalized = normalise(result.magnitude, mask, affine, True)
    found = find_candidates(normalized, mask, affine, result.swi, result.highpass)
    table, report = classify_candidates(
        found, normalized, mask, affine, result.swi, result.highpass, threads=1
    )
    lesions, _ = segment_lesions(
        found, table, normalized, mask, affine, result.swi, model_thresholds=report["thresholds"]
    )
    called = lesions[(lesions["lesion_class"] == MICROBLEED) & (lesions["certainty"] == "definite")]
    truth = scan.truth[scan.truth["name"] == "microbleed"][["x", "y", "z"]].to_numpy(dtype=float)
    points = called[["x", "y", "z"]].to_numpy(dtype=float).reshape(-1, 3)
    hits = ranked_hits(points, called["probability"].to_numpy(dtype=float), truth)
    return {**measured, "found": int(hits.sum()), "false": int((~hits).sum())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--protocol", default="ukb")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--microbleeds", type=int, default=12, help="in each scan")
    parser.add_argument("--detect", action="store_true")
    parser.add_argument("--conditions", nargs="+", choices=CONDITIONS, default=list(CONDITIONS))
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for seed in args.seeds:
        spec = sample_subject(seed, args.protocol, "stroke", microbleeds=args.microbleeds)
        spec = dataclasses.replace(spec, ghost=0.0, motion_mm=0.0)
        scan = simulate_scan(spec, oversampling=(1.0, 1.0, 2.0))
        for name in args.conditions:
            row = {"condition": name, **measure(scan, name, args.detect)}
            rows.append(row)
            print(seed, row, flush=True)
    table = pd.DataFrame(rows)
    print(f"\n{args.protocol}, seeds {args.seeds}, simulated; range over the scans\n")
    shown = [*MEASURES, *(["found", "false"] if args.detect else [])]
    print(f"| condition | {' | '.join(shown)} |\n|{'---|' * (len(shown) + 1)}")
    for name, group in table.groupby("condition", sort=False):
        cells = [
            f"{group[c].sum():g}"
            if c in ("found", "false")
            else f"{group[c].min():.3g} to {group[c].max():.3g}"
            for c in shown
        ]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
