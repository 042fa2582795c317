"""Simulated scans through the pipeline: candidates, their labels, their patches."""


def blocks(wildcards):
    """The record of every block of cases: the first number, the last, how many of them are wanted.

    Runs that want other cases between the same two have a record of their own.
    """
    size = config["block_size"]
    parts = [NUMBERS[place : place + size] for place in range(0, len(NUMBERS), size)]
    return [f"{SHARDS}/blocks/{part[0]}-{part[-1]}-{len(part)}.json" for part in parts]


rule block:
    """Simulate a block of scans, find the candidates as the pipeline does, cut patches."""
    output:
        record=f"{SHARDS}/blocks/{{first}}-{{last}}-{{wanted}}.json",
    params:
        step="cmb_bids.training.steps:make_block",
        shards=SHARDS,
        first="{first}",
        last="{last}",
        settings=SETTINGS,
        training_cases=config.get("training_cases"),
        processed=config.get("processed"),
    log:
        f"{OUT}/logs/block_{{first}}-{{last}}-{{wanted}}.log",
    wildcard_constraints:
        first="[0-9]+",
        last="[0-9]+",
        wanted="[0-9]+",
    threads: 1
    resources:
        mem_mb=4500,
        runtime=60,
    script:
        STEP


rule all_cases:
    """Say which cases there are, or that too many failed."""
    input:
        blocks,
    output:
        output=f"{OUT}/cases.json",
    params:
        step="cmb_bids.training.steps:summarise_cases",
        shards=SHARDS,
        cases=config["cases"],
        training_cases=config.get("training_cases"),
        settings=SETTINGS,
    log:
        f"{OUT}/logs/cases.log",
    threads: 1
    resources:
        mem_mb=1000,
        runtime=10,
    script:
        STEP
