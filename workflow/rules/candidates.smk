"""Spots that may be microbleeds."""


rule candidates:
    """Find dark, round spots by fast radial symmetry."""
    input:
        unpack(phase_images("swi", "highpass")),
        scan=scan_file("candidates"),
        magnitude=f"{WORK}/{{folder}}/{{prefix}}/normalized.nii.gz",
        mask=f"{OUT}/{{folder}}/anat/{{prefix}}_desc-brain_mask.nii.gz",
    output:
        image=f"{OUT}/{{folder}}/anat/{{prefix}}_desc-candidates_dseg.nii.gz",
        table=f"{OUT}/{{folder}}/anat/{{prefix}}_desc-candidates_dseg.tsv",
        candidates_sidecar=f"{OUT}/{{folder}}/anat/{{prefix}}_desc-candidates_dseg.json",
    params:
        interface="cmb_bids.interfaces.candidates:FindCandidates",
    log:
        f"{LOGS}/{{folder}}/{{prefix}}_candidates.log",
    threads: 2
    resources:
        mem_mb=2500,
        runtime=15,
    script:
        "../scripts/stage.py"
