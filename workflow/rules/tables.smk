"""Tables over scans and over participants."""


def rows_of(wildcards):
    """The rows of every scan of a participant (and session) in this run."""
    found = [scan["prefix"] for scan in SCANS.values() if scan["folder"] == wildcards.folder]
    return [f"{STATE}/{wildcards.folder}/{prefix}/scan_row.json" for prefix in found]


rule scans_table:
    """Put the scans of a participant (and session) into one table."""
    input:
        rows_of,
    output:
        f"{OUT}/{{folder}}/{{name}}_scans.tsv",
    params:
        output_dir=OUT,
        folder="{folder}",
    log:
        f"{LOGS}/{{folder}}/{{name}}_scans.log",
    wildcard_constraints:
        name=r"sub-[0-9a-zA-Z+_-]+",
    resources:
        mem_mb=300,
        runtime=5,
    script:
        "../scripts/scans_table.py"


rule group:
    """Tables, statistics and page of everybody."""
    input:
        [f"{OUT}/{scans_table(folder)}" for folder in FOLDERS],
    output:
        f"{OUT}/phenotype/microbleeds.tsv",
        f"{OUT}/phenotype/microbleeds.json",
        f"{OUT}/group_microbleeds.csv",
        f"{OUT}/group_lesions.csv",
        f"{OUT}/group_statistics.json",
        f"{OUT}/group.html",
    params:
        bids_dir=MANIFEST["bids_dir"],
        output_dir=OUT,
        settings=MANIFEST["config"].get("group", {}),
    log:
        f"{LOGS}/group.log",
    resources:
        mem_mb=2000,
        runtime=30,
    script:
        "../scripts/group.py"
