"""Lesions: their extent, place, and what they add up to."""


def phase_report(wildcards):
    """What the first stage found out about the phase."""
    suffix = scan_of(wildcards)["output_suffix"]
    return f"{STATE}/{wildcards.folder}/{wildcards.prefix}/{suffix}_phase.json"


rule lesions:
    """Outline, measure and place the lesions; sum the scan up in a row."""
    input:
        unpack(phase_images("swi", "highpass", "unwrapped")),
        scan=scan_file("lesions"),
        magnitude=magnitude,
        normalized=f"{WORK}/{{folder}}/{{prefix}}/normalized.nii.gz",
        mask=f"{OUT}/{{folder}}/anat/{{prefix}}_desc-brain_mask.nii.gz",
        regions=f"{WORK}/{{folder}}/{{prefix}}/regions.nii.gz",
        candidates=f"{OUT}/{{folder}}/anat/{{prefix}}_desc-candidates_dseg.tsv",
        probabilities=f"{STATE}/{{folder}}/{{prefix}}/probabilities.tsv",
        phase_report=phase_report,
        brain_report=f"{STATE}/{{folder}}/{{prefix}}/brain.json",
        classify_report=f"{STATE}/{{folder}}/{{prefix}}/classify.json",
    output:
        microbleeds_image=f"{OUT}/{{folder}}/anat/{{prefix}}_desc-cmb_dseg.nii.gz",
        microbleeds_table=f"{OUT}/{{folder}}/anat/{{prefix}}_desc-cmb_dseg.tsv",
        cmb_sidecar=f"{OUT}/{{folder}}/anat/{{prefix}}_desc-cmb_dseg.json",
        calcifications_image=f"{OUT}/{{folder}}/anat/{{prefix}}_desc-calcification_dseg.nii.gz",
        calcifications_table=f"{OUT}/{{folder}}/anat/{{prefix}}_desc-calcification_dseg.tsv",
        calcification_sidecar=f"{OUT}/{{folder}}/anat/{{prefix}}_desc-calcification_dseg.json",
        row=f"{STATE}/{{folder}}/{{prefix}}/scan_row.json",
    params:
        interface="cmb_bids.interfaces.lesions:Lesions",
    log:
        f"{LOGS}/{{folder}}/{{prefix}}_lesions.log",
    threads: 1
    resources:
        mem_mb=2000,
        runtime=15,
    script:
        "../scripts/stage.py"
