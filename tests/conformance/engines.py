"""Helpers of the checks on real engines."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]


def run(command: Sequence[object], seconds: float, code: int = 0) -> str:
    """Run a command, show what it said where its exit code is another than expected."""
    done = subprocess.run(
        [str(part) for part in command],
        timeout=seconds,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == code, f"{command}: exit code {done.returncode}\n{done.stdout[-6000:]}"
    return done.stdout


def tables(output_dir: Path) -> dict[str, str]:
    """The tables of a derivative dataset by relative path."""
    found = [*output_dir.glob("sub-*/**/*.tsv"), *output_dir.glob("phenotype/*.tsv")]
    found += output_dir.glob("*.csv")
    return {str(path.relative_to(output_dir)): path.read_text() for path in sorted(found)}
