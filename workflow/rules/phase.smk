"""Phase and magnitude to the images lesions are looked for on."""


rule phase:
    """Scale, unwrap and filter the phase; weight the magnitude with it."""
    input:
        scan=f"{STATE}/{{folder}}/{{prefix}}/complex_phase.json",
        raw=raw_files,
    output:
        magnitude=temp(f"{WORK}/{{folder}}/{{prefix}}/{{suffix}}_magnitude.nii.gz"),
        unwrapped=f"{OUT}/{{folder}}/anat/{{prefix}}_part-phase_desc-unwrapped_{{suffix}}.nii.gz",
        unwrapped_sidecar=f"{OUT}/{{folder}}/anat/{{prefix}}_part-phase_desc-unwrapped_{{suffix}}.json",
        highpass=f"{OUT}/{{folder}}/anat/{{prefix}}_part-phase_desc-highpass_{{suffix}}.nii.gz",
        highpass_sidecar=f"{OUT}/{{folder}}/anat/{{prefix}}_part-phase_desc-highpass_{{suffix}}.json",
        swi=f"{OUT}/{{folder}}/anat/{{prefix}}_desc-swi_{{suffix}}.nii.gz",
        swi_sidecar=f"{OUT}/{{folder}}/anat/{{prefix}}_desc-swi_{{suffix}}.json",
        minip=f"{OUT}/{{folder}}/anat/{{prefix}}_desc-minip_{{suffix}}.nii.gz",
        minip_sidecar=f"{OUT}/{{folder}}/anat/{{prefix}}_desc-minip_{{suffix}}.json",
        report=f"{STATE}/{{folder}}/{{prefix}}/{{suffix}}_phase.json",
    params:
        interface="cmb_bids.interfaces.phase:PhaseToSWI",
    log:
        f"{LOGS}/{{folder}}/{{prefix}}_{{suffix}}_phase.log",
    threads: 2
    resources:
        mem_mb=2500,
        runtime=20,
    script:
        "../scripts/stage.py"


rule magnitude:
    """Combine the echoes of a scan without phase."""
    input:
        scan=f"{STATE}/{{folder}}/{{prefix}}/magnitude_phase.json",
        raw=raw_files,
    output:
        magnitude=temp(f"{WORK}/{{folder}}/{{prefix}}/{{suffix}}_magnitude.nii.gz"),
        minip=f"{OUT}/{{folder}}/anat/{{prefix}}_desc-minip_{{suffix}}.nii.gz",
        minip_sidecar=f"{OUT}/{{folder}}/anat/{{prefix}}_desc-minip_{{suffix}}.json",
        report=f"{STATE}/{{folder}}/{{prefix}}/{{suffix}}_phase.json",
    params:
        interface="cmb_bids.interfaces.phase:MagnitudeOnly",
    log:
        f"{LOGS}/{{folder}}/{{prefix}}_{{suffix}}_phase.log",
    threads: 1
    resources:
        mem_mb=1500,
        runtime=10,
    script:
        "../scripts/stage.py"
