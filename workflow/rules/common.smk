"""The manifest of the scans, and where a rule finds a scan's files."""

from snakemake.exceptions import WorkflowError

# With cmb-bids the manifest is made before Snakemake starts; without it, here, and once.
try:
    if "manifest" in config:
        MANIFEST = read_manifest(config["manifest"])
    else:
        MANIFEST = prepare_direct(config, workflow.is_main_process)
except CmbError as error:
    raise WorkflowError(str(error))

OUT, WORK, LOGS = (MANIFEST[key] for key in ("output_dir", "work_dir", "log_dir"))
STATE = f"{OUT}/logs/scans"
SCANS = {(scan["folder"], scan["prefix"]): scan for scan in MANIFEST["scans"]}
FOLDERS = sorted({scan["folder"] for scan in SCANS.values()})


wildcard_constraints:
    folder=r"sub-[0-9a-zA-Z+]+(/ses-[0-9a-zA-Z+]+)?",
    prefix=r"sub-[0-9a-zA-Z+_-]+",
    suffix="T2starw|MEGRE",


def scan_of(wildcards):
    """The scan a job works on."""
    return SCANS[wildcards.folder, wildcards.prefix]


def scan_file(stage):
    """Where a rule finds the scan's description for `stage`."""

    def path(wildcards):
        kind = scan_of(wildcards)["kind"]
        return f"{STATE}/{wildcards.folder}/{wildcards.prefix}/{kind}_{stage}.json"

    return path


def raw_files(wildcards):
    """The scan's images in the raw dataset."""
    return scan_of(wildcards)["raw"]


def magnitude(wildcards):
    """The combined magnitude, whichever rule made it."""
    suffix = scan_of(wildcards)["output_suffix"]
    return f"{WORK}/{wildcards.folder}/{wildcards.prefix}/{suffix}_magnitude.nii.gz"


def phase_images(*names):
    """Those of the images made from phase that the scan has: all, or with magnitude alone none."""
    endings = {
        "swi": "desc-swi",
        "highpass": "part-phase_desc-highpass",
        "unwrapped": "part-phase_desc-unwrapped",
    }

    def paths(wildcards):
        scan = scan_of(wildcards)
        if scan["kind"] == "magnitude":
            return {}
        anat = f"{OUT}/{scan['folder']}/anat/{scan['prefix']}"
        return {name: f"{anat}_{endings[name]}_{scan['output_suffix']}.nii.gz" for name in names}

    return paths


def with_snakemake_alone(step):
    """Do what cmb-bids does before and after a run, where it is not what started the run."""
    if "manifest" not in config:
        step(MANIFEST)
