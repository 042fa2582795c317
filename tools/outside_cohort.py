"""One labelled cohort of participants from every independent simulator in this folder.

    python tools/outside_cohort.py COHORT --participants 8 --seed 161 --workers 2
    cmb-bids COHORT RESULTS participant
    cmb-lab evaluate RESULTS COHORT/derivatives/truth --output EVALUATION

``--participants`` counts for each simulator. ``participants.tsv`` has a column ``simulator``, so
that ``cmb-lab evaluate`` gives the figures of all of them together and of each. Participants that
are there already are left as they are: a run that broke off goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd

TOOLS = Path(__file__).resolve().parent
SIMULATORS = ("second", "analytic", "random_walk", "whole_head")
TRUTH = Path("derivatives", "truth")
DATASET = {
    "Name": "Cohort of independent simulators",
    "BIDSVersion": "1.10.0",
    "DatasetType": "raw",
    "License": "CC0",
}
# Suffixes that scanners' converters write and BIDS does not know.
IGNORED = "**/*_swi.*\n**/*_GRE.*\n"


class SimulatorFailed(Exception):
    """A simulator ended with an error; the message is its own."""


def label_of(simulator: str, label: str) -> str:
    """A participant's label in the cohort: ``second01`` for 01 of the second simulator."""
    return simulator.replace("_", "") + label


def rename(folder: Path, label: str, new: str) -> None:
    """Give the files of a participant another label, in their names and sidecars."""
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        if path.suffix == ".json":
            text = path.read_text(encoding="utf-8")
            path.write_text(text.replace(f"sub-{label}", f"sub-{new}"), encoding="utf-8")
        path.rename(path.with_name(path.name.replace(f"sub-{label}", f"sub-{new}", 1)))


def add_participant(cohort: Path, simulator: str, participants: int, seed: int, label: str) -> None:
    """Simulate a participant and add it to the cohort with its truth."""
    new = label_of(simulator, label)
    with TemporaryDirectory(dir=cohort, prefix=".") as scratch:
        command = [sys.executable, str(TOOLS / f"{simulator}_simulator"), scratch]
        command += ["--participants", str(participants), "--seed", str(seed), "--only", label]
        done = subprocess.run(
            command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        if done.returncode:
            raise SimulatorFailed(f"{' '.join(command)}:\n{done.stderr.strip()}")
        made = Path(scratch)
        rows = pd.read_csv(made / "participants.tsv", sep="\t", dtype=str, keep_default_na=False)
        row = rows[rows.participant_id == f"sub-{label}"].assign(
            participant_id=f"sub-{new}", simulator=simulator
        )
        row.to_csv(cohort / ".rows" / f"sub-{new}.tsv", sep="\t", index=False)
        # The raw images come last: where they are, the participant is whole.
        for part in (TRUTH, Path()):
            rename(made / part / f"sub-{label}", label, new)
            target = cohort / part / f"sub-{new}"
            shutil.rmtree(target, ignore_errors=True)
            (made / part / f"sub-{label}").rename(target)
    print(f"sub-{new}: {done.stdout.strip().splitlines()[-1]}", flush=True)


def write_dataset_files(cohort: Path, command: str) -> None:
    """What BIDS asks for beside the participants; the descriptions keep the command."""
    generators = {"GeneratedBy": [{"Name": "outside_cohort (simulated)", "Description": command}]}
    raw = DATASET | generators
    truth = raw | {"Name": "Truth of the cohort", "DatasetType": "derivative",
                   "DatasetLinks": {"raw": "../.."}}  # fmt: skip
    for folder, content in ((cohort, raw), (cohort / TRUTH, truth)):
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(content, indent=2) + "\n"
        (folder / "dataset_description.json").write_text(text, encoding="utf-8")
    (cohort / ".rows").mkdir(exist_ok=True)
    (cohort / ".bidsignore").write_text(IGNORED, encoding="utf-8")
    (cohort / "README").write_text(
        "Simulated gradient-echo scans, no human data: see docs/accuracy.md\n", encoding="utf-8"
    )


def build(cohort: Path, simulators: list[str], participants: int, seed: int, workers: int) -> None:
    """Write the cohort, or what is missing of it."""
    write_dataset_files(
        cohort,
        f"python tools/outside_cohort.py COHORT --participants {participants} --seed {seed} "
        f"--simulators {' '.join(simulators)}",
    )
    labels = [f"{i + 1:0{max(2, len(str(participants)))}d}" for i in range(participants)]
    missing = [
        (name, label)
        for label in labels
        for name in simulators
        if not (cohort / f"sub-{label_of(name, label)}").is_dir()
    ]
    with ThreadPoolExecutor(workers) as pool:
        begun = [
            pool.submit(add_participant, cohort, name, participants, seed, label)
            for name, label in missing
        ]
        for one in begun:
            one.result()
    rows = [
        pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False)
        for path in sorted((cohort / ".rows").glob("*.tsv"))
    ]
    table = pd.concat(rows, ignore_index=True).fillna("n/a").replace({"group": {"TBI": "tbi"}})
    table.to_csv(cohort / "participants.tsv", sep="\t", index=False)


def main(arguments: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="outside_cohort", description=__doc__.splitlines()[0])
    parser.add_argument("cohort", type=Path, help="BIDS dataset to write")
    parser.add_argument("--participants", type=int, default=8, metavar="N", help="of each")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same files")
    parser.add_argument("--simulators", nargs="+", choices=SIMULATORS, default=list(SIMULATORS))
    parser.add_argument("--workers", type=int, default=1, help="participants at a time")
    given = parser.parse_args(arguments)
    try:
        build(given.cohort, given.simulators, given.participants, given.seed, given.workers)
    except SimulatorFailed as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
