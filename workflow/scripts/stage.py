"""One stage of one scan."""

from cmb_bids.interfaces.base import run_stage

run_stage(snakemake, snakemake.params.interface)
