"""The page of one participant."""

from pathlib import Path

from cmb_bids.interfaces.base import run_job
from cmb_bids.run import write_page


def work():
    write_page(Path(snakemake.params.output_dir), snakemake.params.participant)


run_job(work, log=Path(snakemake.log[0]), record=None, stage="page")
