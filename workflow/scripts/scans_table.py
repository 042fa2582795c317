"""The table of one participant's scans."""

from pathlib import Path

from cmb_bids.interfaces.base import run_job
from cmb_bids.run import write_scans_table


def work():
    write_scans_table(Path(snakemake.params.output_dir), snakemake.params.folder)


run_job(work, log=Path(snakemake.log[0]), record=None, stage="scans_table")
