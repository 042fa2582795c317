"""From a Snakemake job to an interface: threads, log, sidecars, provenance, exit code.

Imports nothing heavy, because the number of threads must be set before numpy, ITK, numba and
torch are loaded.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cmb_bids import __version__
from cmb_bids.errors import BadData, CmbError

FAILED = "FAILED:"  # starts the last line of a failed job's log
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS",
)
SIDECAR = "_sidecar"
_UNEXPECTED = "This is a fault of cmb-bids: report it with the log"


def run_stage(snakemake: Any, interface: str) -> None:
    """Run one stage for one scan, as the job of a rule.

    The rule's inputs become traits of the same name, its outputs traits ``out_<name>``; inputs
    named ``raw`` only tell Snakemake what the job depends on. An output ``<name>_sidecar`` is the
    JSON beside the image ``<name>``; columns the interface described there are kept.

    Parameters
    ----------
    snakemake : object
        What Snakemake gives to a script.
    interface : str
        ``module:Class``; imported only here, once threads are limited.
    """
    limit_threads(snakemake.threads)
    stage = snakemake.rule

    def work() -> dict[str, Any]:
        scan = _read_scan(snakemake.input.scan)
        outputs = dict(snakemake.output.items())
        _run_interface(interface, dict(snakemake.input.items()), outputs, snakemake.threads)
        _write_sidecars(scan, outputs)
        return {"interface": interface, "threads": snakemake.threads}

    record = Path(snakemake.input.scan).parent / f"provenance_{_stage_name(snakemake)}.json"
    run_job(work, log=Path(snakemake.log[0]), record=record, stage=stage)


def run_job(
    work: Callable[[], dict[str, Any] | None], *, log: Path, record: Path | None, stage: str
) -> None:
    """Run ``work`` with its output in ``log``; leave a record, or exit with the error's code.

    Parameters
    ----------
    work : callable
        Returns what to add to the record.
    log : Path
        Everything written to standard output and error, also by compiled code, ends up here;
        after a failure its last line says what went wrong.
    record : Path or None
        Provenance, as JSON: times, wall time, peak memory, version.
    stage : str
        Name in the record.
    """
    started = _process_start()
    with _output_to(log):
        try:
            more = work() or {}
        except KeyboardInterrupt:
            _fail("interrupted", 130)
        except BaseException as error:  # a job's last word must reach its log
            _fail(*explain(error))
    if record is not None:
        from cmb_bids.volumes import write_json

        write_json(record, {"stage": stage, **_resources(started), **more})


def explain(error: BaseException) -> tuple[str, int]:
    """Message and exit code of whatever went wrong; prints a traceback of what is unexpected."""
    known = _cause(error)
    if known is not None:
        return str(known), known.exit_code
    if isinstance(error, MemoryError):
        return "memory ran out. Lower --n-cpus or raise --mem-mb so that fewer jobs run at once", 75
    traceback.print_exception(error)
    if isinstance(error, OSError):
        what = f"{error.filename or 'a file'}: {error.strerror or error}"
        return f"{what}. Check free space and permissions", 74
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:500]}. {_UNEXPECTED}", 70


def _cause(error: BaseException | None) -> CmbError | None:
    """The error of ours among an exception and what led to it."""
    while error is not None:
        if isinstance(error, CmbError):
            return error
        error = error.__cause__ or error.__context__
    return None


def _fail(message: str, code: int) -> None:
    print(f"{FAILED} {message}", flush=True)
    sys.exit(code)


def limit_threads(threads: int) -> None:
    """Hold every library of this process and its children to ``threads``."""
    for name in THREAD_VARIABLES:
        os.environ[name] = str(threads)


@contextmanager
def _output_to(log: Path) -> Iterator[None]:
    """Send file descriptors 1 and 2 to ``log``: ITK and niimath do not know Python's."""
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    with log.open("w", buffering=1, encoding="utf-8", errors="replace") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
        try:
            with redirect_stdout(stream), redirect_stderr(stream):
                yield
        finally:
            stream.flush()
            for target, descriptor in zip((1, 2), saved, strict=True):
                os.dup2(descriptor, target)
                os.close(descriptor)


def _read_scan(path: str) -> dict[str, Any]:
    scan: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
    if scan.get("problem"):
        raise BadData(scan["id"], scan["problem"], "Mend the dataset; other scans are not affected")
    return scan


def _stage_name(snakemake: Any) -> str:
    """``phase`` for both rules that begin a scan."""
    return Path(snakemake.input.scan).stem.partition("_")[2]


def _run_interface(
    interface: str, inputs: Mapping[str, Any], outputs: Mapping[str, Any], threads: int
) -> None:
    module, _, name = interface.partition(":")
    stage = getattr(importlib.import_module(module), name)()
    if "threads" in stage.inputs.copyable_trait_names():
        stage.inputs.threads = threads
    for key, value in inputs.items():
        if key != "raw":
            setattr(stage.inputs, key, os.path.abspath(value))
    for key, value in outputs.items():
        if not key.endswith(SIDECAR):
            setattr(stage.inputs, f"out_{key}", os.path.abspath(value))
    stage.run()


def _write_sidecars(scan: Mapping[str, Any], outputs: Mapping[str, str]) -> None:
    """Write the JSON beside each image, round the columns its interface described."""
    from cmb_bids.naming import describe_image
    from cmb_bids.volumes import read_json, write_json

    for key, path in outputs.items():
        if key.endswith(SIDECAR):
            described = read_json(path) if Path(path).exists() else {}
            name = key.removesuffix(SIDECAR)
            write_json(path, {**describe_image(name, scan), **described})


def _process_start() -> float:
    """When this process began; imports count as part of a job."""
    import psutil

    return psutil.Process().create_time()


def _resources(started: float) -> dict[str, Any]:
    """Times, and the peak memory of this process or its largest child, in MB."""
    everybody = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    peaks = [resource.getrusage(who).ru_maxrss for who in everybody]
    ended = time.time()
    return {
        "version": __version__,
        "status": "done",
        "started": datetime.fromtimestamp(started, UTC).isoformat(timespec="milliseconds"),
        "ended": datetime.fromtimestamp(ended, UTC).isoformat(timespec="milliseconds"),
        "wall_time_s": round(ended - started, 2),
        "peak_memory_mb": round(max(peaks) / 1024),
    }
