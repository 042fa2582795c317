"""Running the workflow: configuration, resources, environment, Snakemake, and what came of it."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import pwd
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from cmb_bids import __version__, naming
from cmb_bids.columns import SCAN_COLUMNS
from cmb_bids.errors import BadData, CannotCreate, CmbError, InputMissing, UsageError
from cmb_bids.inputs import (
    REPORT,
    STAGE_SECTIONS,
    Selection,
    derivative_paths,
    index_dataset,
    read_filters,
    read_manifest,
    scan_state,
    write_manifest,
)
from cmb_bids.interfaces.base import FAILED
from cmb_bids.volumes import read_json, write_json, write_table, write_text

logger = logging.getLogger(__name__)

SCIENCE = ("phase", "swi", "brain", "candidates", "network", "lesions", "quality", "group")
# Rules that --reports-only runs again: what is made from images and lesions that are there.
REPORT_RULES = ("scans_table", "report", "page")
# Environment of a container under an arbitrary user id: caches that libraries insist on.
CACHES = {
    "XDG_CACHE_HOME": "cache",
    "XDG_CONFIG_HOME": "config",
    "NUMBA_CACHE_DIR": "numba",
    "MPLCONFIGDIR": "matplotlib",
}


# -------------------------------------------------------------------------- the project


def project_root() -> Path:
    """Where ``Snakefile``, ``workflow`` and ``config`` are: the checkout, or the wheel's copy."""
    package = Path(__file__).resolve().parent
    for root in (package.parents[1], package / "_project"):
        if (root / "workflow" / "Snakefile").is_file() and (root / "Snakefile").is_file():
            return root
    raise InputMissing(
        package, "the workflow that belongs to this package is missing", "Install cmb-bids again"
    )


def load_config(path: Path | None = None) -> dict[str, Any]:
    """The science configuration: the defaults, with the sections of ``path`` laid over.

    Raises
    ------
    InputMissing
        ``path`` does not exist.
    BadData
        It is no YAML, or a key or value is refused by the schema.
    """
    config = _read_yaml(project_root() / "config" / "config.yaml")
    if path is not None:
        # A section whose keys are all commented out is read as nothing.
        given = {key: values for key, values in _read_yaml(path).items() if values is not None}
        check_config(given, path)
        for section, values in given.items():
            config[section] = {**config[section], **values}
    check_config(config, path or project_root() / "config" / "config.yaml")
    return resolve_model(config)


def resolve_model(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with the network's file, where one is named, as an absolute path.

    Raises
    ------
    InputMissing
        There is no such file.
    """
    model = (config.get("network") or {}).get("model", "shipped")
    if model == "shipped":
        return dict(config)
    path = Path(model).resolve()
    if not path.is_file():
        raise InputMissing(path, "the network's file does not exist", "Check network.model")
    return {**config, "network": {**config["network"], "model": str(path)}}


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except FileNotFoundError:
        raise InputMissing(path, "the file does not exist", "Check --config-file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        text = " ".join(str(error).split())
        raise BadData(path, f"is not valid YAML ({text})", "Mend the file") from error
    if not isinstance(content, dict):
        raise BadData(path, "does not hold sections with keys", "See config/README.md")
    return content


def check_config(config: Mapping[str, Any], path: Path | str, science_only: bool = True) -> None:
    """Hold a configuration against the schema.

    Raises
    ------
    BadData
        Names the first key or value that is refused.
    """
    import jsonschema

    schema = _read_yaml(project_root() / "workflow" / "schemas" / "config.schema.yaml")
    if science_only:
        schema["properties"] = {key: schema["properties"][key] for key in SCIENCE}
    errors = sorted(
        jsonschema.Draft202012Validator(schema).iter_errors(config), key=lambda e: list(e.path)
    )
    if errors:
        where = ".".join(str(step) for step in errors[0].absolute_path) or "the top level"
        raise BadData(path, f"{where}: {errors[0].message}", "See config/README.md for every key")


# ------------------------------------------------------------------------- the machine


def available_cpus() -> int:
    """Cores this process may use: its affinity, and the quota of its control group."""
    count = len(os.sched_getaffinity(0))
    with suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            count = min(count, max(1, int(int(quota) / int(period))))
    with suppress(OSError, ValueError):
        cpu = Path("/sys/fs/cgroup/cpu")
        quota_us = int((cpu / "cpu.cfs_quota_us").read_text())
        if quota_us > 0:
            period_us = int((cpu / "cpu.cfs_period_us").read_text())
            count = min(count, max(1, quota_us // period_us))
    return count


def available_memory_mb() -> int:
    """Memory this process may use: the machine's, or the limit of its control group."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):
            total = min(total, int((Path("/sys/fs/cgroup") / name).read_text()))
    return total // 2**20


def safe_environment(scratch: Path) -> dict[str, str]:
    """This process's environment, with a home and caches that can be written.

    A container started under a user id that it does not know has no home, and no name for the
    user: matplotlib, numba, nipype and Snakemake each stop at that.
    """
    environment = {**os.environ, "NO_ET": "1"}
    home = Path(environment.get("HOME") or "/")
    poor = not os.access(home, os.W_OK) or str(home) == "/"
    if poor:
        environment["HOME"] = str(scratch)
    for name, folder in CACHES.items():
        value = environment.get(name)
        writable = value and os.access(value, os.W_OK)
        if (value and not writable) or (poor and not value):
            environment[name] = str(scratch / folder)
            (scratch / folder).mkdir(parents=True, exist_ok=True)
    try:
        pwd.getpwuid(os.getuid())
    except KeyError:
        for name in ("USER", "LOGNAME", "USERNAME"):
            environment.setdefault(name, "cmb-bids")
    return environment


# ---------------------------------------------------------------------- the output directory


def new_run_name() -> str:
    """Name of a run: when it began, and a few letters so that no two are alike."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}_{uuid.uuid4().hex[:6]}"


def check_output(bids_dir: Path, output_dir: Path) -> None:
    """Create the output directory; refuse one that holds or could become input.

    Raises
    ------
    UsageError
        It is the dataset itself, or one of its participants.
    CannotCreate
        It cannot be made or written to, or holds a raw dataset.
    """
    inside = output_dir.is_relative_to(bids_dir)
    if output_dir == bids_dir or (
        inside and output_dir.relative_to(bids_dir).parts[0].startswith("sub-")
    ):
        raise UsageError(
            output_dir,
            "outputs cannot be mixed with the raw data",
            f"Choose another directory, such as {bids_dir / 'derivatives' / 'cmb-bids'}",
        )
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        probe = output_dir / f".cmb-bids-{uuid.uuid4().hex}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise CannotCreate(
            output_dir,
            f"cannot be written to ({error.strerror})",
            "Check its permissions and free space, or give another OUTPUT_DIR",
        ) from error
    description = output_dir / "dataset_description.json"
    if description.is_file() and read_json(description).get("DatasetType") != "derivative":
        raise CannotCreate(
            output_dir, "holds a raw BIDS dataset", "Give another directory as OUTPUT_DIR"
        )


def write_if_changed(path: Path, content: Any) -> None:
    """Write text, or a dictionary as JSON, unless the file holds just that."""
    is_text = isinstance(content, str)
    if path.is_file():
        with suppress(BadData, ValueError):
            old = path.read_text(encoding="utf-8") if is_text else read_json(path)
            if old == content:
                return
    write_text(path, content) if is_text else write_json(path, content)


def write_dataset_files(manifest: Mapping[str, Any]) -> None:
    """Write the files at the top of the derivative dataset, and the methods text."""
    bids_dir, output_dir = Path(manifest["bids_dir"]), Path(manifest["output_dir"])
    raw = bids_dir / "dataset_description.json"
    description = {}
    with suppress(BadData, InputMissing):
        description = read_json(raw)
    for name, content in naming.dataset_files(bids_dir, output_dir, description).items():
        write_if_changed(output_dir / name, content)
    write_if_changed(output_dir / "logs" / "CITATION.md", naming.methods_text(manifest["config"]))


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock file, so that runs into one output directory take turns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as stream:
        with suppress(OSError):  # a file system without locks: go on, as one run would
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def write_participants(bids_dir: Path, output_dir: Path) -> None:
    """Write ``participants.tsv``: the raw dataset's rows of everybody processed so far.

    Made afresh from what is in the output directory, under a lock, so that runs on different
    participants into one directory lose nobody. Values are copied as they are written.
    """
    with locked(output_dir / "logs" / ".participants.lock"):
        labels = sorted(path.name for path in output_dir.glob("sub-*") if path.is_dir())
        raw = bids_dir / "participants.tsv"
        # A raw dataset without one leaves the covariates that somebody put into the output.
        header, rows = _read_participants(raw if raw.is_file() else output_dir / raw.name)
        missing = ["n/a"] * (len(header) - 1)
        table = [header, *([label, *rows.get(label, missing)] for label in labels)]
        text = "".join("\t".join(row) + "\n" for row in table)
        write_if_changed(output_dir / "participants.tsv", text)
        described = bids_dir / "participants.json"
        if described.is_file():
            with suppress(BadData):
                write_if_changed(output_dir / "participants.json", read_json(described))


def _read_participants(path: Path) -> tuple[list[str], dict[str, list[str]]]:
    """Header, and the other columns by participant; a table that cannot be used counts as none."""
    if not path.is_file():
        return ["participant_id"], {}
    lines = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    table = [line.split("\t") for line in lines if line.strip()]
    if not table or table[0][0] != "participant_id" or len({len(row) for row in table}) > 1:
        logger.warning(
            "%s is not used: it is no table with participant_id as its first column", path
        )
        return ["participant_id"], {}
    rows = {row[0]: row[1:] for row in table[1:]}
    if len(rows) < len(table) - 1:
        logger.warning("%s names a participant twice; the last row is used", path)
    return table[0], rows


def write_scans_table(output_dir: Path, folder: str) -> None:
    """Write the table of one participant (and session) from the rows of its complete scans.

    No table is left where no scan is complete: no row means not processed. ``scans.json``, which
    describes the columns of all these tables, is there when one of them is.
    """
    import pandas as pd

    path = output_dir / naming.scans_table(folder)
    # One level deep: the rows of sessions belong to the sessions' own tables.
    rows = sorted((output_dir / "logs" / "scans" / folder).glob("*/scan_row.json"))
    if not rows:
        path.unlink(missing_ok=True)
        if not any(output_dir.glob("sub-*/**/*_scans.tsv")):
            (output_dir / "scans.json").unlink(missing_ok=True)
        return
    # As objects: a count beside a missing one stays a whole number.
    table = pd.DataFrame([read_json(row) for row in rows], dtype=object)
    first = [name for name in SCAN_COLUMNS if name in table.columns]
    table = table[[*first, *(name for name in table.columns if name not in first)]]
    write_table(path, table.sort_values("filename"))
    write_if_changed(output_dir / "scans.json", SCAN_COLUMNS)


def write_page(output_dir: Path, participant: str) -> None:
    """Write the page of a participant (with ``sub-``) from its complete scans; none without any."""
    from cmb_bids.report.participant_page import gather_scans, render_participant

    page = output_dir / naming.participant_page(participant)
    scans = gather_scans(output_dir, participant)
    if not scans:
        page.unlink(missing_ok=True)
        return
    methods = output_dir / "logs" / "CITATION.md"
    text = methods.read_text(encoding="utf-8") if methods.is_file() else ""
    write_text(page, render_participant(participant, scans, text))


def write_stale_pages(output_dir: Path, participants: Iterable[str], broken: set[str]) -> None:
    """Write the pages that no job has written.

    Parameters
    ----------
    output_dir : Path
        The derivative dataset.
    participants : iterable of str
        With ``sub-``. A page that is missing or older than a scan it shows is written.
    broken : set of str
        Participants with a scan that failed: no job writes their page, and what it shows may be
        gone.
    """
    for participant in participants:
        page = output_dir / naming.participant_page(participant)
        rows = list((output_dir / "logs" / "scans" / participant).rglob("scan_row.json"))
        newest = max((row.stat().st_mtime_ns for row in rows), default=0)
        stale = not page.is_file() or page.stat().st_mtime_ns < newest or participant in broken
        if stale and (rows or page.is_file()):
            try:
                write_page(output_dir, participant)
            except CmbError as error:
                logger.warning("%s has no page: %s", participant, error)


def run_group(
    bids_dir: Path,
    output_dir: Path,
    section: Mapping[str, Any] | None = None,
    covariates: Sequence[str] | None = None,
) -> Any:
    """The group level over everybody in the output directory.

    Parameters
    ----------
    bids_dir, output_dir : Path
    section : mapping, optional
        Section ``group`` of the configuration.
    covariates : sequence of str, optional
        In place of the configuration's.

    Returns
    -------
    cmb_bids.cohort.GroupSummary
    """
    from cmb_bids.cohort import collect_group

    write_participants(bids_dir, output_dir)
    return collect_group(output_dir, section, covariates)


# ------------------------------------------------------------------------- before Snakemake


@dataclass(frozen=True)
class Settings:
    """What to process, from the command line or from Snakemake's ``--config``."""

    bids_dir: Path
    output_dir: Path
    work_dir: Path | None = None
    participants: tuple[str, ...] | None = None
    sessions: tuple[str, ...] | None = None
    filter_file: Path | None = None
    derivatives: tuple[str, ...] = ()
    database_dir: Path | None = None
    skip_validation: bool = False
    random_seed: int = 0


def prepare(settings: Settings, config: Mapping[str, Any], run: str) -> dict[str, Any]:
    """Index the dataset and write the manifest of a run.

    Returns
    -------
    dict
        The manifest.

    Raises
    ------
    CmbError
        As `index_dataset`, `check_output`, `read_filters`, `derivative_paths`.
    """
    filters = read_filters(settings.filter_file) if settings.filter_file else {}
    index = index_dataset(
        settings.bids_dir,
        Selection(settings.participants, settings.sessions, filters),
        derivative_paths(settings.derivatives),
        settings.database_dir,
        settings.skip_validation,
    )
    check_output(settings.bids_dir, settings.output_dir)
    log_dir = settings.output_dir / "logs" / run
    for warning in index.warnings:
        logger.warning("%s", warning)
    return write_manifest(
        index,
        log_dir / "manifest.json",
        bids_dir=settings.bids_dir,
        output_dir=settings.output_dir,
        work_dir=place_of_work(settings.output_dir, settings.work_dir),
        config=config,
        random_seed=settings.random_seed,
    )


def place_of_work(output_dir: Path, work_dir: Path | None) -> Path:
    """Where large intermediate files go: ``work`` in the output, or a folder of its own in -w.

    Runs into different output directories may share one work directory, also from containers
    that see them under the same path; the output's inode tells them apart.

    Raises
    ------
    CannotCreate
        It cannot be made.
    """
    place = output_dir / "work"
    if work_dir is not None:
        place = work_dir / f"cmb-bids-{output_dir.stat().st_ino:x}"
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CannotCreate(
            place, f"cannot be created ({error.strerror})", "Check --work-dir"
        ) from error
    return place


def _labels(value: Any) -> tuple[str, ...] | None:
    """Labels from Snakemake's ``--config``, where 01 arrives as a number and one as itself."""
    if value in (None, "", []):
        return None
    return tuple(str(label) for label in (value if isinstance(value, list) else [value]))


def prepare_direct(config: Mapping[str, Any], is_main_process: bool) -> dict[str, Any]:
    """The manifest for ``snakemake --config bids_dir=... output_dir=...``.

    The main process makes it; jobs on a cluster, which parse the workflow again, read it.
    """
    for key in ("bids_dir", "output_dir"):
        if not config.get(key):
            raise UsageError(
                "--config", f"{key} is missing", "Give bids_dir=... and output_dir=..."
            )
    output_dir = Path(config["output_dir"]).resolve()
    path = output_dir / "logs" / "snakemake" / "manifest.json"
    if not is_main_process:
        return read_manifest(path)

    def optional(key: str) -> Path | None:
        return Path(config[key]).resolve() if config.get(key) else None

    settings = Settings(
        bids_dir=Path(config["bids_dir"]).resolve(),
        output_dir=output_dir,
        work_dir=optional("work_dir"),
        participants=_labels(config.get("participant_label")),
        sessions=_labels(config.get("session_label")),
        filter_file=optional("bids_filter_file"),
        derivatives=_labels(config.get("derivatives")) or (),
        database_dir=optional("bids_database_dir"),
        skip_validation=bool(config.get("skip_bids_validation")),
        random_seed=int(config.get("random_seed") or 0),
    )
    science = {section: dict(config.get(section) or {}) for section in SCIENCE}
    return prepare(settings, resolve_model(science), path.parent.name)


# ------------------------------------------------------------------------------ Snakemake


FLAGS_OF_A_PART = ("--until", "-U", "--omit-from", "-O")  # of Snakemake: not the whole workflow


@dataclass(frozen=True)
class Resources:
    """What Snakemake may use; None leaves it to the profile."""

    cpus: int | None
    memory_mb: int | None


def names_any(arguments: Sequence[str], flags: Sequence[str]) -> bool:
    """Whether one of these flags is among the arguments, alone or as ``--flag=value``."""
    return any(argument.partition("=")[0] in flags for argument in arguments)


def snakemake_command(
    manifest: Path,
    run_dir: Path,
    resources: Resources,
    *,
    dry_run: bool,
    stop_early: bool,
    reports_only: bool = False,
    extra: Sequence[str] = (),
) -> list[str]:
    """The command line of Snakemake for the participant level, or its tables and pages alone."""
    command = [
        *(sys.executable, "-m", "snakemake", "participant"),
        *("--snakefile", str(project_root() / "Snakefile")),
        *("--directory", str(run_dir)),
        *("--rerun-triggers", "mtime"),
        *("--scheduler", "greedy"),
        *("--drop-metadata", "--nocolor"),
        # Lists of every job's files would make the log unreadable; a failed job's are shown.
        *("--quiet", "host", "reason", *([] if dry_run else ["rules"])),
    ]
    if resources.cpus:
        command += ["--cores", str(resources.cpus)]
    if resources.memory_mb:
        command += ["--resources", f"mem_mb={resources.memory_mb}"]
    if not stop_early:
        command.append("--keep-going")
    if dry_run:
        command.append("--dry-run")
    if reports_only:
        command += ["--allowed-rules", "participant", *REPORT_RULES, "--forcerun", *REPORT_RULES]
    if names_any(extra, FLAGS_OF_A_PART):
        # What the rest of the workflow will read must outlast a run of its first part.
        command.append("--notemp")
    return [*command, *extra, "--config", f"manifest={manifest}"]


class Terminated(KeyboardInterrupt):
    """Asked to stop by a signal that only this process got, as ``docker stop`` does."""


def stop_when_asked() -> None:
    """Take SIGTERM for an interrupt, so that jobs are stopped and unfinished files removed."""

    def stop(number: int, frame: Any) -> None:
        raise Terminated

    signal.signal(signal.SIGTERM, stop)


def run_snakemake(command: Sequence[str], log: Path, environment: Mapping[str, str]) -> int:
    """Run Snakemake with its messages in ``log``; report progress; return its exit status.

    An interrupt from the keyboard reaches Snakemake as well, being in the same process group; a
    signal to this process alone is passed on. It is given time to stop its jobs and remove what
    they left unfinished.
    """
    with log.open("w", encoding="utf-8") as stream:
        process = subprocess.Popen(
            command,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        assert process.stdout is not None
        try:
            for line in process.stdout:
                stream.write(line)
                stream.flush()
                if line.rstrip().endswith("done") and " steps (" in line:
                    logger.info("%s", line.strip())
            return process.wait()
        except KeyboardInterrupt as request:
            if isinstance(request, Terminated):
                process.terminate()
            with suppress(subprocess.TimeoutExpired):
                stream.write(process.communicate(timeout=60)[0] or "")
            if process.poll() is None:
                process.terminate()
                process.wait(timeout=30)
            raise


def show_dry_run(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Let Snakemake say what it would do."""
    return subprocess.run(command, env=dict(environment), check=False).returncode


# ------------------------------------------------------------------------- what came of it


@dataclass(frozen=True)
class Failure:
    """A scan that is not complete: which, its log, and the last message in it."""

    scan: str
    participant: str
    log: Path
    message: str


def has_outputs(scan: Mapping[str, Any], manifest: Mapping[str, Any]) -> bool:
    """Whether every output of a scan is there, whatever it was made with."""
    output_dir = Path(manifest["output_dir"])
    return all((output_dir / name).is_file() for name in naming.scan_outputs(scan))


def is_complete(scan: Mapping[str, Any], manifest: Mapping[str, Any]) -> bool:
    """Whether every output of a scan is there and none is older than what it was made from."""
    if not has_outputs(scan, manifest):
        return False
    state = scan_state(Path(manifest["output_dir"]), scan)
    stages = [stage for stage in STAGE_SECTIONS if stage != REPORT]
    sources = [state / f"{scan['kind']}_{stage}.json" for stage in stages]
    newest = max(path.stat().st_mtime_ns for path in sources)
    return (state / "scan_row.json").stat().st_mtime_ns >= newest


def has_pictures(scan: Mapping[str, Any], manifest: Mapping[str, Any]) -> bool:
    """Whether the pictures for the participant's page are there."""
    figures = naming.scan_figures(scan["folder"], scan["prefix"]).values()
    return all((Path(manifest["output_dir"]) / name).is_file() for name in figures)


def finish(manifest: Mapping[str, Any]) -> list[Failure]:
    """Put tables and pages right after a run, whole or broken off; say what is not complete.

    A scan without its pictures keeps its counts.
    """
    output_dir = Path(manifest["output_dir"])
    failures = []
    broken = set()
    for scan in manifest["scans"]:
        if not is_complete(scan, manifest):
            (scan_state(output_dir, scan) / "scan_row.json").unlink(missing_ok=True)
            failures.append(_failure(scan, manifest))
            broken.add(scan["folder"])
    for folder in sorted(broken):
        write_scans_table(output_dir, folder)
    return [*failures, *finish_pages(manifest, {folder.partition("/")[0] for folder in broken})]


def finish_pages(manifest: Mapping[str, Any], broken: set[str]) -> list[Failure]:
    """Put the pages right; say which scans that were counted have no pictures.

    ``broken``: participants with a scan that failed.
    """
    output_dir = Path(manifest["output_dir"])
    people = sorted({scan["folder"].partition("/")[0] for scan in manifest["scans"]})
    write_stale_pages(output_dir, people, broken)
    write_participants(Path(manifest["bids_dir"]), output_dir)
    failures = []
    for scan in manifest["scans"]:
        if has_outputs(scan, manifest) and not has_pictures(scan, manifest):
            failure = _failure(scan, manifest)
            message = f"counted, but without pictures on its page: {failure.message}"
            failures.append(replace(failure, message=message))
    return failures


def _failure(scan: Mapping[str, Any], manifest: Mapping[str, Any]) -> Failure:
    """The log that tells why a scan is not complete."""
    log_dir = Path(manifest["log_dir"])
    participant = scan["folder"].partition("/")[0]
    logs = sorted(
        (log_dir / scan["folder"]).glob(f"{scan['prefix']}_*.log"), key=lambda p: p.stat().st_mtime
    )
    for log in reversed(logs):
        lines = log.read_text(errors="replace").splitlines()
        said = [line for line in lines if line.startswith(FAILED)]
        if said:
            return Failure(scan["id"], participant, log, said[-1].removeprefix(FAILED).strip())
    if logs and not _has_ended(logs[-1], scan, manifest):
        message = "the job was killed, perhaps for want of memory: see --mem-mb and --n-cpus"
        return Failure(scan["id"], participant, logs[-1], message)
    return Failure(scan["id"], participant, log_dir / "snakemake.log", "was not run to its end")


def _has_ended(log: Path, scan: Mapping[str, Any], manifest: Mapping[str, Any]) -> bool:
    stage = log.stem.rpartition("_")[2]
    record = scan_state(manifest["output_dir"], scan) / f"provenance_{stage}.json"
    return record.is_file() and record.stat().st_mtime_ns >= log.stat().st_mtime_ns


def select_for_reports(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest with those scans that have results, also on disk.

    Results that were made with other settings are shown as they are.

    Raises
    ------
    InputMissing
        There are none.
    """
    found = [scan for scan in manifest["scans"] if has_outputs(scan, manifest)]
    if not found:
        shutil.rmtree(manifest["log_dir"], ignore_errors=True)
        raise InputMissing(
            manifest["output_dir"],
            "holds no complete scan to report on",
            "Run the participant level without --reports-only first",
        )
    for scan in manifest["scans"]:
        if scan not in found:
            logger.warning("%s is not complete: it has no page", scan["id"])
        elif not is_complete(scan, manifest):
            logger.warning("%s: the settings have changed since it was processed", scan["id"])
    selected = {**manifest, "scans": found}
    write_json(Path(manifest["log_dir"]) / "manifest.json", selected)
    return selected


def clean_up(run_dir: Path, work_dir: Path) -> None:
    """Remove the run's directory, and folders of the work directory that have become empty."""
    shutil.rmtree(run_dir, ignore_errors=True)
    for folder, _, _ in os.walk(work_dir, topdown=False):
        with suppress(OSError):
            os.rmdir(folder)


def write_provenance(manifest: Mapping[str, Any], arguments: Iterable[str], started: float) -> None:
    """Write what this run was: command, versions, times, configuration."""
    from importlib.metadata import PackageNotFoundError, version

    packages = {}
    for name in ("snakemake", "nipype", "numpy", "scipy", "antspyx", "torch", "niimath", "numba"):
        with suppress(PackageNotFoundError):
            packages[name] = version(name)
    log_dir = Path(manifest["log_dir"])
    write_text(log_dir / "config.yaml", yaml.safe_dump(manifest["config"], sort_keys=False))
    content = {
        "version": __version__,
        "arguments": list(arguments),
        "python": sys.version.split()[0],
        "packages": packages,
        "random_seed": manifest["random_seed"],
        "started": datetime.fromtimestamp(started, UTC).isoformat(timespec="seconds"),
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
        "wall_time_s": round(time.time() - started, 1),
        "scans": [scan["id"] for scan in manifest["scans"]],
    }
    write_json(log_dir / "provenance.json", json.loads(json.dumps(content)))
