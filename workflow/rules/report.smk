"""Pages to read: each scan in pictures, each participant on a page."""


def projection(wildcards):
    """The scan's minimum-intensity projection."""
    suffix = scan_of(wildcards)["output_suffix"]
    return f"{OUT}/{wildcards.folder}/anat/{wildcards.prefix}_desc-minip_{suffix}.nii.gz"


def scans_of(participant):
    """The scans of a participant in this run."""
    return [scan for scan in SCANS.values() if scan["folder"].split("/")[0] == participant]


def pictures(wildcards):
    """The pictures of every scan of a participant in this run."""
    found = [scan_figures(s["folder"], s["prefix"]) for s in scans_of(wildcards.participant)]
    return [f"{OUT}/{name}" for figures in found for name in figures.values()]


def tables(wildcards):
    """The scans tables of a participant: with them its rows are complete."""
    folders = {scan["folder"] for scan in scans_of(wildcards.participant)}
    return [f"{OUT}/{scans_table(folder)}" for folder in sorted(folders)]


rule report:
    """Draw a scan with its lesions circled, and each lesion from near."""
    input:
        unpack(phase_images("swi", "highpass")),
        scan=scan_file("report"),
        minip=projection,
        mask=f"{OUT}/{{folder}}/anat/{{prefix}}_desc-brain_mask.nii.gz",
        microbleeds_table=f"{OUT}/{{folder}}/anat/{{prefix}}_desc-cmb_dseg.tsv",
        calcifications_table=f"{OUT}/{{folder}}/anat/{{prefix}}_desc-calcification_dseg.tsv",
    output:
        overview=f"{OUT}/{{folder}}/figures/{{prefix}}_desc-overview.png",
        microbleeds=f"{OUT}/{{folder}}/figures/{{prefix}}_desc-cmb.png",
        calcifications=f"{OUT}/{{folder}}/figures/{{prefix}}_desc-calcification.png",
    params:
        interface="cmb_bids.interfaces.report:ScanFigures",
    log:
        f"{LOGS}/{{folder}}/{{prefix}}_report.log",
    threads: 1
    resources:
        mem_mb=1000,
        runtime=10,
    script:
        "../scripts/stage.py"


rule page:
    """Put the scans of a participant on a page."""
    input:
        pictures,
        tables,
    output:
        f"{OUT}/{{participant}}.html",
    params:
        output_dir=OUT,
        participant="{participant}",
    log:
        f"{LOGS}/{{participant}}/{{participant}}_page.log",
    wildcard_constraints:
        participant=r"sub-[0-9a-zA-Z+]+",
    resources:
        mem_mb=300,
        runtime=5,
    script:
        "../scripts/page.py"
