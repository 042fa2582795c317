"""The SLURM profile on a real cluster of at least one node: same tables as on this machine.

Skipped where no SLURM answers, or where the executor is not installed.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from engines import CHECKOUT, run, tables

CMB_BIDS = Path(sys.executable).with_name("cmb-bids")
PLUGIN = "snakemake_executor_plugin_slurm"


def answers(*command: str) -> str | None:
    """What a command prints; None where it is not there or fails."""
    if shutil.which(command[0]) is None:
        return None
    done = subprocess.run(command, timeout=60, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


@pytest.fixture(scope="session")
def slurm_options() -> list[str]:
    """Snakemake's options for the SLURM of this machine."""
    partitions = answers("sinfo", "--noheader", "--format=%P") if shutil.which("sbatch") else None
    if not partitions:
        pytest.skip("no SLURM: sbatch is not installed or sinfo shows no partition")
    if importlib.util.find_spec(PLUGIN) is None:
        pytest.skip(f"no {PLUGIN}: see workflow/profiles/slurm for the version to install")
    names = partitions.split()
    default = next((name for name in names if name.endswith("*")), names[0]).rstrip("*")
    options = ["--profile", str(CHECKOUT / "workflow" / "profiles" / "slurm")]
    options += ["--default-resources", f"slurm_partition={default}", "mem_mb=1500", "runtime=30"]
    if answers("sacct", "--noheader", "--allocations") is None:
        options += ["--slurm-no-account", "--slurm-status-command", "squeue"]
    return [*options, "--slurm-init-seconds-before-status-checks", "3", "--latency-wait", "5"]


def test_slurm_gives_the_tables_that_this_machine_gives(slurm_options, demo, participant, tmp_path):
    level = ["participant", "--participant-label", participant]
    run([CMB_BIDS, demo, tmp_path / "slurm", *level, "--", *slurm_options], 1800)
    run([CMB_BIDS, demo, tmp_path / "here", *level], 1800)
    for name in ("slurm", "here"):
        run([CMB_BIDS, demo, tmp_path / name, "group"], 300)
    found = tables(tmp_path / "slurm")
    assert f"sub-{participant}/sub-{participant}_scans.tsv" in found
    assert found == tables(tmp_path / "here")
    logs = (tmp_path / "slurm").glob("logs/*/snakemake.log")
    said = "".join(log.read_text() for log in logs)
    assert "SLURM" in said, "no trace of a SLURM job: did it run on this machine instead?"
