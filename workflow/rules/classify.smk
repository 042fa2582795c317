"""What each candidate is."""


rule classify:
    """Sort the candidates into microbleeds, calcifications and others with the network."""
    input:
        unpack(phase_images("swi", "highpass")),
        scan=scan_file("classify"),
        normalized=f"{WORK}/{{folder}}/{{prefix}}/normalized.nii.gz",
        mask=f"{OUT}/{{folder}}/anat/{{prefix}}_desc-brain_mask.nii.gz",
        candidates=f"{OUT}/{{folder}}/anat/{{prefix}}_desc-candidates_dseg.tsv",
    output:
        table=f"{STATE}/{{folder}}/{{prefix}}/probabilities.tsv",
        report=f"{STATE}/{{folder}}/{{prefix}}/classify.json",
    params:
        interface="cmb_bids.interfaces.classify:Classify",
    log:
        f"{LOGS}/{{folder}}/{{prefix}}_classify.log",
    threads: 2
    resources:
        mem_mb=2500,
        runtime=15,
    script:
        "../scripts/stage.py"
