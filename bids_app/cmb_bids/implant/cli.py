"""``cmb-lab implant``: arguments, and the run."""

from __future__ import annotations

import argparse
from pathlib import Path

from cmb_bids.errors import UsageError

SOME_FAILED = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``cmb-lab implant``."""
    parser.add_argument("bids_dir", type=Path, metavar="BIDS_DIR", help="raw scans with phase")
    parser.add_argument(
        "results_dir", type=Path, metavar="RESULTS", help="what cmb-bids made of these scans"
    )
    parser.add_argument("output_dir", type=Path, metavar="OUTPUT_DIR", help="dataset to write")
    parser.add_argument("--participant-label", nargs="+", help="only these participants")
    parser.add_argument(
        "--microbleeds", type=int, default=8, metavar="N", help="into each scan (default: 8)"
    )
    parser.add_argument(
        "--calcifications", type=int, default=2, metavar="N", help="into each scan (default: 2)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of everything random (default: 0)")
    parser.add_argument(
        "--field-strength",
        type=float,
        metavar="TESLA",
        help="of scans whose sidecar does not say",
    )


def run(options: argparse.Namespace) -> int:
    """Put lesions into the scans of a dataset.

    Raises
    ------
    UsageError, CannotCreate, InputMissing, InvalidDataset, NothingMatched
        As `cmb_bids.implant.dataset.implant_dataset`.
    """
    for name, value in (
        ("--microbleeds", options.microbleeds),
        ("--calcifications", options.calcifications),
        ("--seed", options.seed),
    ):
        if value < 0:
            raise UsageError(name, "is out of range", "Give 0 or more")
    if options.microbleeds + options.calcifications == 0:
        raise UsageError("--microbleeds", "and --calcifications are both 0", "Ask for some")
    from cmb_bids.implant.dataset import ImplantPlan, implant_dataset

    plan = ImplantPlan(
        options.microbleeds, options.calcifications, options.seed, options.field_strength
    )
    labels = options.participant_label
    failed = implant_dataset(
        options.bids_dir,
        options.results_dir,
        options.output_dir,
        plan,
        tuple(labels) if labels else None,
        report=lambda text: print(text, flush=True),
    )
    truth = options.output_dir / "derivatives" / "truth"
    print(f"next: cmb-bids {options.output_dir} FOUND participant")
    print(f"      cmb-lab evaluate FOUND {truth}")
    return SOME_FAILED if failed else 0
