"""What it is all worth: metrics, comparison, cards, the page on accuracy."""

from cmb_bids.training.cli import command_of

CONTENDERS = [*NETWORKS, *config["baselines"]]


rule model:
    """Write a shipped network with its calibration, and its metrics."""
    input:
        summary=f"{OUT}/cases.json",
        weights=f"{OUT}/weights/{{name}}.safetensors",
        scores=f"{OUT}/scores/{{name}}.npz",
    output:
        output=f"{OUT}/{{name}}.json",
        weights_with_calibration=f"{OUT}/{{name}}.safetensors",
    params:
        step="cmb_bids.training.steps:finish_model",
        name="{name}",
        command=command_of(config),
    log:
        f"{OUT}/logs/{{name}}_model.log",
    wildcard_constraints:
        name=one_of(config["shipped"]),
    threads: 1
    resources:
        mem_mb=1500,
        runtime=20,
    script:
        STEP


rule compare:
    """Compare all detectors on the test cases, with intervals and paired tests."""
    input:
        expand(f"{OUT}/scores/{{name}}.npz", name=CONTENDERS),
        summary=f"{OUT}/cases.json",
    output:
        output=f"{OUT}/comparison.json",
        table=f"{OUT}/comparison_table.tsv",
    params:
        step="cmb_bids.training.comparison:compare",
        names=CONTENDERS,
        folder=OUT,
        command=command_of(config),
    log:
        f"{OUT}/logs/comparison.log",
    threads: 1
    resources:
        mem_mb=1500,
        runtime=20,
    script:
        STEP


rule card:
    """Write the model card of a shipped network."""
    input:
        metrics=f"{OUT}/{{name}}.json",
        comparison=f"{OUT}/comparison.json",
    output:
        output=f"{OUT}/{{name}}.md",
    params:
        step="cmb_bids.training.card:write_card",
    log:
        f"{OUT}/logs/{{name}}_card.log",
    wildcard_constraints:
        name=one_of(config["shipped"]),
    threads: 1
    resources:
        mem_mb=500,
        runtime=5,
    script:
        STEP


rule failures:
    """Show the misses and false alarms of the first shipped network on the test cases."""
    input:
        summary=f"{OUT}/cases.json",
        scores=f"{OUT}/scores/{config['shipped'][0]}.npz",
    output:
        picture=f"{OUT}/failures.png",
        listed=f"{OUT}/failures.json",
    params:
        step="cmb_bids.training.failures:draw_failures",
        name=config["shipped"][0],
    log:
        f"{OUT}/logs/failures.log",
    threads: 1
    resources:
        mem_mb=1500,
        runtime=10,
    script:
        STEP


rule accuracy:
    """Write the page on accuracy from the metrics."""
    input:
        expand(f"{OUT}/{{name}}.json", name=config["shipped"]),
        f"{OUT}/comparison.json",
        f"{OUT}/failures.json",
    output:
        output=f"{OUT}/accuracy.md",
    params:
        step="cmb_bids.training.accuracy:write_page",
        models=OUT,
    log:
        f"{OUT}/logs/accuracy.log",
    threads: 1
    resources:
        mem_mb=500,
        runtime=5,
    script:
        STEP
