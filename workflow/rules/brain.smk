"""Where the brain is, and which part of it."""


def given_files(wildcards):
    """Mask and parcellation from --derivatives, where there are any; the scan's file names them."""
    scan = scan_of(wildcards)
    parcellation = scan["parcellation"] or {}
    given = [scan["mask"], parcellation.get("image"), parcellation.get("table")]
    return [path for path in given if path]


rule brain:
    """Mask the brain, even out the magnitude in it, label its regions."""
    input:
        scan=scan_file("brain"),
        magnitude=magnitude,
        raw=given_files,
    output:
        mask=f"{OUT}/{{folder}}/anat/{{prefix}}_desc-brain_mask.nii.gz",
        brain_sidecar=f"{OUT}/{{folder}}/anat/{{prefix}}_desc-brain_mask.json",
        normalized=temp(f"{WORK}/{{folder}}/{{prefix}}/normalized.nii.gz"),
        regions=temp(f"{WORK}/{{folder}}/{{prefix}}/regions.nii.gz"),
        report=f"{STATE}/{{folder}}/{{prefix}}/brain.json",
    params:
        interface="cmb_bids.interfaces.brain:BrainMask",
    log:
        f"{LOGS}/{{folder}}/{{prefix}}_brain.log",
    threads: 1 # more would make registration depend on how its threads take turns
    resources:
        mem_mb=2500,
        runtime=30,
    script:
        "../scripts/stage.py"
