"""One step of training: the rule's inputs, outputs and parameters by name are its arguments."""

from pathlib import Path

from cmb_bids.training.jobs import run_step

run_step(snakemake, log=Path(snakemake.log[0]))
