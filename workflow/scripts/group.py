"""The group level."""

from pathlib import Path

from cmb_bids.interfaces.base import run_job
from cmb_bids.run import run_group


def work():
    summary = run_group(
        Path(snakemake.params.bids_dir),
        Path(snakemake.params.output_dir),
        snakemake.params.settings,
    )
    for problem in summary.problems:
        print(problem.message)


run_job(work, log=Path(snakemake.log[0]), record=None, stage="group")
