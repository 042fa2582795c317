"""From a Snakemake job of the training workflow to its step."""

from __future__ import annotations

import importlib
import inspect
import logging
import sys
from pathlib import Path
from typing import Any

from cmb_bids.interfaces.base import limit_threads, run_job


def run_step(snakemake: Any, log: Path) -> None:
    """Call the step that ``params.step`` names (``module:function``).

    Its arguments are the rule's named inputs and outputs, as paths, and parameters; those the
    function does not take only tell Snakemake what depends on what. Integers that come from file
    names arrive as text and are converted where the function says ``int``.
    """
    limit_threads(snakemake.threads)

    def work() -> None:
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stdout)
        module, _, name = snakemake.params.step.partition(":")
        step = getattr(importlib.import_module(module), name)
        files = {**dict(snakemake.input.items()), **dict(snakemake.output.items())}
        given = {
            **{key: Path(value) for key, value in files.items()},
            **dict(snakemake.params.items()),
            "threads": snakemake.threads,
        }
        step(**arguments_for(step, given))

    run_job(work, log=log, record=None, stage=snakemake.rule)


def arguments_for(step: Any, given: dict[str, Any]) -> dict[str, Any]:
    """Those of the given values that a function takes, as the types that it names."""
    convert = {"int": int, "Path": Path}
    taken = {
        name: parameter.annotation
        for name, parameter in inspect.signature(step).parameters.items()
        if name in given
    }
    return {name: convert.get(kind, _same)(given[name]) for name, kind in taken.items()}


def _same(value: Any) -> Any:
    return value
