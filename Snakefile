# The workflow, and what runs where no target is named: participant level, then group level.
#   snakemake --cores 2 --config bids_dir=/data output_dir=/data/derivatives/cmb-bids
include: "workflow/Snakefile"


rule all:
    default_target: True
    input:
        rules.participant.input,
        rules.group.output,
