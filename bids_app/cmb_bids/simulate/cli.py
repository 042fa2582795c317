"""``cmb-lab simulate``: arguments, and the run."""

from __future__ import annotations

import argparse
from pathlib import Path

from cmb_bids.errors import UsageError
from cmb_bids.simulate.protocols import PROTOCOLS
from cmb_bids.simulate.subject import GROUPS, PAPER_COHORT
from cmb_bids.simulate.vendor import PHASE_SCALES

DEFAULT_MIX = "healthy,haemodialysis,tbi,stroke"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``cmb-lab simulate``."""
    parser.add_argument("output_dir", type=Path, metavar="OUTPUT_DIR", help="dataset to write")
    parser.add_argument(
        "--participants",
        type=int,
        default=None,
        metavar="N",
        help="number of participants (default: 4, or all 41 of --cohort paper)",
    )
    parser.add_argument(
        "--protocol",
        nargs="+",
        default=["ukb"],
        choices=[*PROTOCOLS],
        metavar="NAME",
        help=f"one or more of {', '.join(PROTOCOLS)}; several take turns (default: ukb)",
    )
    groups = parser.add_mutually_exclusive_group()
    groups.add_argument(
        "--group-mix",
        default=DEFAULT_MIX,
        metavar="GROUP[=N],...",
        help=f"clinical groups that take turns, =N repeating one: {', '.join(GROUPS)} "
        f"(default: {DEFAULT_MIX})",
    )
    groups.add_argument(
        "--cohort",
        choices=["paper", "population"],
        help="paper: 13 haemodialysis, 9 TBI, 9 stroke, 10 healthy; "
        "population: UK Biobank-like prevalence",
    )
    parser.add_argument(
        "--polarity",
        default="vendor",
        choices=["vendor", "right-handed", "left-handed", "mixed"],
        help="sign of stored phase; right-handed: paramagnetic positive (default: the vendor's)",
    )
    parser.add_argument(
        "--phase-scale",
        "--vendor",
        default="siemens",
        choices=[*PHASE_SCALES, "mixed"],
        help="how phase is stored (default: siemens, integers within +-4096)",
    )
    parser.add_argument(
        "--obliquity",
        type=float,
        metavar="DEGREES",
        help="angle between the slice normal and the main field (default: varies, 0 to 25)",
    )
    parser.add_argument(
        "--snr",
        type=float,
        metavar="RATIO",
        help="signal-to-noise of white matter, first echo (default: varies by protocol)",
    )
    parser.add_argument("--noise", type=float, default=1.0, help="multiplier of the noise")
    parser.add_argument(
        "--lesion-load", type=float, default=1.0, help="multiplier of the number of microbleeds"
    )
    parser.add_argument(
        "--mimic-load", type=float, default=1.0, help="multiplier of the number of calcifications"
    )
    parser.add_argument("--magnitude-only", action="store_true", help="write no phase")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same files (default: 0)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument(
        "--oversampling",
        type=float,
        nargs="+",
        metavar="RATIO",
        help="simulation grid over acquisition grid, one value or three (default: the protocol's)",
    )
    parser.add_argument(
        "--workers", type=int, default=1, help="participants simulated at once (default: 1)"
    )


def parse_groups(text: str) -> tuple[str, ...]:
    """``healthy=2,tbi`` to the turns (healthy, tbi, healthy)."""
    counts: dict[str, int] = {}
    for part in text.split(","):
        name, _, number = part.strip().partition("=")
        if name not in GROUPS or (number and not number.isdigit()):
            raise UsageError(
                "--group-mix",
                f"cannot read '{part.strip()}'",
                f"Write GROUP or GROUP=N with the groups {', '.join(GROUPS)}",
            )
        counts[name] = int(number or 1)
    return interleave(counts)


def interleave(counts: dict[str, int]) -> tuple[str, ...]:
    """Spread groups evenly, so that any first few participants hold all of them."""
    turns = sorted(
        ((turn + 0.5) / number, name) for name, number in counts.items() for turn in range(number)
    )
    if not turns:
        raise UsageError("--group-mix", "names nobody", "Give at least one group")
    return tuple(name for _, name in turns)


def check(options: argparse.Namespace) -> None:
    """Refuse impossible values, naming the option."""
    rules = [
        ("--participants", options.participants is None or options.participants >= 1, "at least 1"),
        ("--workers", options.workers >= 1, "at least 1"),
        ("--snr", options.snr is None or options.snr > 0, "more than 0"),
        ("--noise", options.noise > 0, "more than 0"),
        ("--lesion-load", options.lesion_load >= 0, "0 or more"),
        ("--mimic-load", options.mimic_load >= 0, "0 or more"),
        ("--seed", options.seed >= 0, "0 or more"),
        ("--obliquity", options.obliquity is None or 0 <= options.obliquity <= 60, "0 to 60"),
        (
            "--oversampling",
            options.oversampling is None
            or (len(options.oversampling) in (1, 3) and min(options.oversampling) >= 1),
            "one value or three, each at least 1",
        ),
    ]
    for name, fine, allowed in rules:
        if not fine:
            raise UsageError(name, "is out of range", f"Give {allowed}")


def run(options: argparse.Namespace) -> int:
    """Simulate the dataset that the options describe.

    Raises
    ------
    UsageError, CannotCreate
        Impossible options, or an output directory that cannot be used.
    """
    check(options)
    import torch

    from cmb_bids.simulate.dataset import CohortPlan, simulate_dataset

    if options.device.startswith("cuda") and not torch.cuda.is_available():
        raise UsageError("--device", "cuda is not available here", "Use --device cpu")
    participants = options.participants
    if options.cohort == "paper":
        groups = interleave(PAPER_COHORT)
        participants = participants or sum(PAPER_COHORT.values())
    elif options.cohort == "population":
        groups = ("population",)
    else:
        groups = parse_groups(options.group_mix)
    plan = CohortPlan(
        participants=participants or 4,
        protocols=tuple(options.protocol),
        groups=groups,
        polarity=options.polarity,
        phase_scale=options.phase_scale,
        obliquity_deg=options.obliquity,
        signal_to_noise=options.snr,
        noise=options.noise,
        lesion_load=options.lesion_load,
        mimic_load=options.mimic_load,
        seed=options.seed,
        magnitude_only=options.magnitude_only,
    )
    oversampling = options.oversampling
    if oversampling is not None:
        oversampling = oversampling[0] if len(oversampling) == 1 else tuple(oversampling)
    done = simulate_dataset(
        options.output_dir,
        plan,
        device=options.device,
        oversampling=oversampling,
        workers=options.workers,
        report=lambda label: print(f"sub-{label} written", flush=True),
    )
    left = plan.participants - len(done)
    print(f"{options.output_dir}: {len(done)} participants simulated, {left} already there")
    return 0
