"""Training, calibration, scores of the held-out cases."""


def steps_of(wildcards):
    """Networks that are compared share one budget; shipped ones have their own."""
    return config["steps" if wildcards.name in config["shipped"] else "comparison_steps"]


def start_of(wildcards):
    """Only shipped networks go on from earlier ones: what is compared starts alike."""
    return config.get("init", "") if wildcards.name in config["shipped"] else ""


def training_memory(wildcards, attempt):
    """Patches of all training cases, and the network."""
    return attempt * (2000 + MB_PER_CASE * len(NUMBERS))


rule network:
    """Train one network; a run that was broken off goes on."""
    input:
        summary=f"{OUT}/cases.json",
    output:
        weights=f"{OUT}/weights/{{name}}.safetensors",
        record=f"{OUT}/weights/{{name}}.json",
    params:
        step="cmb_bids.training.steps:train",
        name="{name}",
        steps=steps_of,
        init=start_of,
        seed=config["seed"],
        device=config["device"],
        precision=config["precision"],
    log:
        f"{OUT}/logs/{{name}}_network.log",
    wildcard_constraints:
        name=one_of(NETWORKS),
    threads: config["threads"]
    resources:
        mem_mb=training_memory,
        runtime=600,
        gpu=int(config["device"] != "cpu"),
    script:
        STEP


rule network_scores:
    """Calibrate a network on the validation cases; score validation and test cases."""
    input:
        summary=f"{OUT}/cases.json",
        weights=f"{OUT}/weights/{{name}}.safetensors",
    output:
        output=f"{OUT}/scores/{{name}}.npz",
    params:
        step="cmb_bids.training.steps:calibrate_and_score",
        name="{name}",
    log:
        f"{OUT}/logs/{{name}}_scores.log",
    wildcard_constraints:
        name=one_of(NETWORKS),
    threads: config["threads"]
    resources:
        mem_mb=2000,
        runtime=60,
    script:
        STEP


rule baseline_scores:
    """Calibrate a detector that is no network on the validation cases; score the test cases."""
    input:
        summary=f"{OUT}/cases.json",
    output:
        output=f"{OUT}/scores/{{name}}.npz",
    params:
        step="cmb_bids.training.steps:calibrate_and_score",
        name="{name}",
    log:
        f"{OUT}/logs/{{name}}_scores.log",
    wildcard_constraints:
        name=one_of(config["baselines"]),
    threads: 1
    resources:
        mem_mb=1500,
        runtime=20,
    script:
        STEP
