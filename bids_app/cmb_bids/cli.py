"""The command line ``cmb-bids BIDS_DIR OUTPUT_DIR {participant,group}``."""

from __future__ import annotations

import argparse
import logging
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

from cmb_bids import __version__
from cmb_bids.errors import CmbError, InputMissing, UnknownLevel, UsageError

logger = logging.getLogger("cmb_bids")

LEVELS = ("participant", "group")
SOME_FAILED = 1
SOFTWARE_FAULT = 70
IO_FAILURE = 74
INTERRUPTED = 130
MOST_NAMED = 20  # problems named one by one at the terminal
# Snakemake's own flags after which it, not this command, decides how many cores there are.
FLAGS_OF_A_CLUSTER = ("--executor", "-e", "--profile", "--workflow-profile", "--jobs", "-j")


class Parser(argparse.ArgumentParser):
    """Ends with exit code 64 instead of 2, as other BIDS Apps' wrappers expect of usage errors."""

    def error(self, message: str) -> NoReturn:
        raise UsageError("command line", message, f"See {self.prog} --help")


def make_parser() -> argparse.ArgumentParser:
    """The arguments, with fMRIPrep's spellings."""
    parser = Parser(
        prog="cmb-bids",
        description="Count cerebral microbleeds in susceptibility-weighted MRI (a BIDS App).",
        epilog="Snakemake's own flags may follow after --, e.g.: -- --profile slurm",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("bids_dir", type=Path, metavar="BIDS_DIR", help="the raw dataset")
    add("output_dir", type=Path, metavar="OUTPUT_DIR", help="the derivative dataset to make")
    add("level", metavar="{participant,group}", help="participant first, then group")
    add("--version", action="version", version=f"cmb-bids {__version__}")

    what = parser.add_argument_group("what to process")
    add = what.add_argument
    labels: dict[str, Any] = {"nargs": "+", "metavar": "LABEL"}
    add(
        *("--participant-label", "--participant_label"),
        **labels,
        help="participants, with or without sub-; or a file of them",
    )
    add(
        *("--session-label", "--session_label"),
        **labels,
        help="sessions, with or without ses-; or a file of them",
    )
    add("--bids-filter-file", type=Path, metavar="FILE", help="JSON: suffix -> entities to match")
    add(
        *("-d", "--derivatives"),
        nargs="+",
        default=[],
        metavar="PATH",
        help="datasets (or FreeSurfer's folder) with brain masks and parcellations to use",
    )
    add("--bids-database-dir", type=Path, metavar="DIR", help="where to remember the index")
    add("--skip-bids-validation", action="store_true", help="do not insist on a valid dataset")

    how = parser.add_argument_group("how")
    add = how.add_argument
    add("--config-file", type=Path, metavar="FILE", help="YAML: see config/README.md")
    add(
        "--covariates",
        nargs="+",
        metavar="COLUMN",
        help="group: columns of participants.tsv to adjust for (default: age and sex)",
    )
    add("--random-seed", type=_whole, default=0, metavar="N", help="default: 0")
    add("--n-cpus", "--nprocs", type=_positive, metavar="N", help="default: all it may use")
    add("--mem-mb", type=_positive, metavar="MB", help="default: all it may use")
    add("-w", "--work-dir", type=Path, metavar="DIR", help="default: OUTPUT_DIR/work")
    add("--stop-on-first-crash", action="store_true", help="do not go on with other scans")
    add("--dry-run", action="store_true", help="say what would be done")
    add("--reports-only", action="store_true", help="only make tables and pages anew")
    add("--boilerplate-only", action="store_true", help="only write logs/CITATION.md")
    return parser


def _whole(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text} is negative")
    return number


def _positive(text: str) -> int:
    if (number := _whole(text)) == 0:
        raise argparse.ArgumentTypeError("0 is too few")
    return number


def parse_arguments(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Options, and Snakemake's own flags after ``--``.

    Raises
    ------
    UsageError
        The command line is wrong.
    UnknownLevel
        The level is neither participant nor group.
    """
    own, extra = list(arguments), []
    if "--" in own:
        position = own.index("--")
        own, extra = own[:position], own[position + 1 :]
    options = make_parser().parse_args(own)
    if options.level not in LEVELS:
        raise UnknownLevel(options.level, "is no analysis level", f"Use {' or '.join(LEVELS)}")
    if extra and options.level == "group":
        raise UsageError("--", "the group level does not run Snakemake", "Leave the flags out")
    return options, extra


def read_labels(given: Sequence[str] | None) -> tuple[str, ...] | None:
    """Labels as given; a single name of a file stands for the labels in it.

    The file holds labels apart by white space or commas, or is a table with the labels in its
    first column (participants.tsv).
    """
    if given is None:
        return None
    if len(given) == 1 and Path(given[0]).is_file():
        lines = Path(given[0]).read_text(encoding="utf-8-sig").splitlines()
        if lines and lines[0].split("\t")[0] in ("participant_id", "session_id"):
            return tuple(line.split("\t")[0] for line in lines[1:] if line.strip())
        return tuple(" ".join(lines).replace(",", " ").split())
    return tuple(label for text in given for label in text.replace(",", " ").split())


# ------------------------------------------------------------------------------ the levels


def run_participant(
    options: argparse.Namespace, extra: Sequence[str], arguments: Sequence[str]
) -> int:
    """The participant level; returns the exit code."""
    from cmb_bids import run

    started = time.time()
    config = run.load_config(options.config_file)
    manifest = run.prepare(_settings(options), config, run.new_run_name())
    log_dir = Path(manifest["log_dir"])
    if options.boilerplate_only:
        run.write_dataset_files(manifest)
        shutil.rmtree(log_dir)
        print(f"Methods text: {options.output_dir / 'logs' / 'CITATION.md'}")
        return 0
    if options.reports_only:
        manifest = run.select_for_reports(manifest)
    try:
        status = _process(options, extra, manifest)
    finally:
        if options.dry_run:
            shutil.rmtree(log_dir, ignore_errors=True)
        else:
            pages_only = options.reports_only
            failures = run.finish_pages(manifest, set()) if pages_only else run.finish(manifest)
            run.write_provenance(manifest, arguments, started)
    return status if options.dry_run else _report(manifest, failures, status)


def _process(options: argparse.Namespace, extra: Sequence[str], manifest: dict[str, Any]) -> int:
    """Run Snakemake on the scans of a manifest; returns its exit status."""
    from cmb_bids import run

    work_dir, log_dir = Path(manifest["work_dir"]), Path(manifest["log_dir"])
    run_dir = work_dir / "runs" / manifest["run"]
    run_dir.mkdir(parents=True)
    command = run.snakemake_command(
        log_dir / "manifest.json",
        run_dir,
        _resources(options, extra),
        dry_run=options.dry_run,
        stop_early=options.stop_on_first_crash,
        reports_only=options.reports_only,
        extra=extra,
    )
    environment = run.safe_environment(run_dir)
    logger.info("%d scans; messages go to %s", len(manifest["scans"]), log_dir)
    try:
        if options.dry_run:
            return run.show_dry_run(command, environment)
        if not options.reports_only:  # the methods text stays that of the results
            run.write_dataset_files(manifest)
        return run.run_snakemake(command, log_dir / "snakemake.log", environment)
    finally:
        run.clean_up(run_dir, work_dir)


def _settings(options: argparse.Namespace) -> Any:
    from cmb_bids.run import Settings

    def absolute(path: Path | None) -> Path | None:
        return path.resolve() if path else None

    return Settings(
        bids_dir=options.bids_dir.resolve(),
        output_dir=options.output_dir.resolve(),
        work_dir=absolute(options.work_dir),
        participants=read_labels(options.participant_label),
        sessions=read_labels(options.session_label),
        filter_file=options.bids_filter_file,
        derivatives=tuple(options.derivatives),
        database_dir=absolute(options.bids_database_dir),
        skip_validation=options.skip_bids_validation,
        random_seed=options.random_seed,
    )


def _resources(options: argparse.Namespace, extra: Sequence[str]) -> Any:
    from cmb_bids.run import Resources, available_cpus, available_memory_mb, names_any

    if names_any(extra, FLAGS_OF_A_CLUSTER):
        return Resources(options.n_cpus, options.mem_mb)
    return Resources(options.n_cpus or available_cpus(), options.mem_mb or available_memory_mb())


def _report(manifest: dict[str, Any], failures: Sequence[Any], status: int) -> int:
    """Name what failed, last, where it is seen."""
    total = len(manifest["scans"])
    print(f"{total - len(failures)} of {total} scans complete: {manifest['output_dir']}")
    if failures:
        people = sorted({failure.participant for failure in failures})
        print(f"Failed participants ({len(people)}): {', '.join(people)}", file=sys.stderr)
        for failure in failures:
            print(f"  {failure.scan}: {failure.message}", file=sys.stderr)
            print(f"    log: {failure.log}", file=sys.stderr)
        return SOME_FAILED
    if status:
        log = Path(manifest["log_dir"]) / "snakemake.log"
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        print(f"Snakemake ended with status {status}; its log: {log}", file=sys.stderr)
        print("\n".join(lines[-5:]), file=sys.stderr)
        return SOME_FAILED
    return 0


def run_group(options: argparse.Namespace) -> int:
    """The group level; returns the exit code."""
    from cmb_bids import run
    from cmb_bids.inputs import check_dataset

    bids_dir, output_dir = options.bids_dir.resolve(), options.output_dir.resolve()
    check_dataset(bids_dir, options.skip_bids_validation)
    if not output_dir.is_dir():
        raise InputMissing(
            output_dir, "there is no such directory", "Run the participant level first"
        )
    run.check_output(bids_dir, output_dir)
    if options.dry_run:
        print(f"Would write phenotype/microbleeds.tsv, group_* and group.html in {output_dir}")
        return 0
    config = run.load_config(options.config_file)
    if options.boilerplate_only:
        run.write_text(
            output_dir / "logs" / "CITATION.md",
            run.naming.methods_text(config),
        )
        return 0
    summary = run.run_group(bids_dir, output_dir, config["group"], options.covariates)
    return _report_group(output_dir, summary)


def _report_group(output_dir: Path, summary: Any) -> int:
    """What was counted, where it is, and which tables could not be used."""
    print(
        f"{summary.positive} of {summary.participants} participants have a definite microbleed; "
        f"{summary.flagged} scans failed the quality check, {summary.not_processed} have no result."
    )
    print(f"Page:   {output_dir / 'group.html'}")
    print(f"Tables: {output_dir / 'phenotype' / 'microbleeds.tsv'}, {output_dir / 'group_*'}")
    if not summary.problems:
        return 0
    people = sorted({problem.participant_id for problem in summary.problems})
    print(f"Tables that could not be used, of {len(people)} participants:", file=sys.stderr)
    for problem in summary.problems[:MOST_NAMED]:
        print(f"  {problem.message}", file=sys.stderr)
    if len(summary.problems) > MOST_NAMED:
        print(f"  and {len(summary.problems) - MOST_NAMED} more", file=sys.stderr)
    return SOME_FAILED


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point: every way to end has its exit code and one message."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        options, extra = parse_arguments(arguments)
        if options.level == "group":
            return run_group(options)
        from cmb_bids.run import stop_when_asked

        stop_when_asked()
        return run_participant(options, extra, arguments)
    except CmbError as error:
        print(f"cmb-bids: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("cmb-bids: interrupted; the same command goes on from where it was", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:  # whatever it is, the user gets a message and the log a traceback
        return unexpected("cmb-bids", error, arguments)


def unexpected(program: str, error: Exception, arguments: Sequence[str]) -> int:
    """One line for the user, the traceback in a file; returns the exit code."""
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        print(
            f"{program}: {where}{error.strerror}. Check free space and permissions.",
            file=sys.stderr,
        )
        return IO_FAILURE
    when = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    text = f"{program} {__version__} {' '.join(arguments)}\n{traceback.format_exc()}"
    seen = "no log could be written"
    for folder in (_log_folder(arguments), Path.cwd(), Path(tempfile.gettempdir())):
        with suppress(OSError):
            if folder is not None:
                log = folder / f"crash-{when}.log"
                log.write_text(text, encoding="utf-8")
                seen = f"see {log}"
                break
    what = " ".join(f"{type(error).__name__}: {error}".split())[:500]
    print(f"{program}: {what}. This is a fault of the program; {seen}.", file=sys.stderr)
    return SOFTWARE_FAULT


def _log_folder(arguments: Sequence[str]) -> Path | None:
    """``logs`` in the output directory, where the command line got that far."""
    words = [word for word in arguments if not word.startswith("-")]
    folder = Path(words[1]) / "logs" if len(words) > 1 else None
    return folder if folder is not None and folder.is_dir() else None


if __name__ == "__main__":
    sys.exit(main())
