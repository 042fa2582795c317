"""The classification stage as a file contract: candidates and images in, probabilities out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    SimpleInterface,
    TraitedSpec,
    isdefined,
    traits,
)

from cmb_bids.errors import BadData
from cmb_bids.volumes import (
    read_json,
    read_on_grid,
    read_table,
    read_volume,
    write_json,
    write_table,
)

COLUMNS_DESCRIBED = {
    "index": {"Description": "Label of the candidate in the candidates image"},
    "p_microbleed": {"Description": "Calibrated probability of being a microbleed"},
    "p_calcification": {"Description": "Calibrated probability of being a calcification"},
    "p_other": {"Description": "Calibrated probability of being neither"},
}


def classify_candidates(
    candidates: pd.DataFrame,
    normalized: np.ndarray,
    mask: np.ndarray,
    affine: np.ndarray,
    swi: np.ndarray | None = None,
    highpass: np.ndarray | None = None,
    model: str | Path = "shipped",
    threads: int | None = None,
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Probabilities of all candidates of one scan.

    Parameters
    ----------
    candidates : DataFrame
        Columns ``index``, ``x``, ``y``, ``z`` (scanner mm), ``score``; may be empty.
    normalized : (x, y, z) array
        Magnitude relative to brain, used where there is no phase.
    mask : (x, y, z) array
        Brain mask.
    affine : (4, 4) array
    swi, highpass : (x, y, z) arrays, optional
        Susceptibility-weighted image; high-passed phase in right-handed radians. With both, the
        two-channel network is used, else the single-channel one on the magnitude.
    model : str or path
        ``"shipped"`` or a safetensors file.
    threads : int, optional

    Returns
    -------
    table : DataFrame
        ``index p_microbleed p_calcification p_other``, a row per candidate.
    report : dict
        Model name, version, sha256, channels, thresholds, and whether phase was used.
    """
    # torch takes seconds to import: whoever only describes the workflow should not wait for it.
    from cmb_bids.patches import classifier_patches
    from cmb_bids.resnet import CONTRAST_AND_PHASE, CONTRAST_ONLY, load_model, predict

    with_phase = swi is not None and highpass is not None
    loaded = load_model(model, CONTRAST_AND_PHASE if with_phase else CONTRAST_ONLY)
    contrast = swi if swi is not None and with_phase else normalized
    points = candidates[["x", "y", "z"]].to_numpy(dtype=float).reshape(-1, 3)
    patches = classifier_patches(
        contrast,
        highpass if with_phase else None,
        mask,
        affine,
        points,
        loaded.description.geometry,
    )
    scores = candidates["score"].to_numpy(dtype=float)
    probabilities = predict(loaded, patches, scores, threads, points_mm=points)
    table = pd.DataFrame(
        {"index": candidates["index"].to_numpy(dtype=int)}
        | {
            name: np.round(probabilities[:, column], 5)
            for column, name in enumerate(("p_microbleed", "p_calcification", "p_other"))
        }
    )
    calibration = loaded.description.calibration
    report = {
        "model": loaded.description.name,
        "version": loaded.description.version,
        "sha256": loaded.sha256,
        "channels": ["swi", "highpass"] if with_phase else ["magnitude"],
        "phase_used": with_phase,
        "note": "SWI and high-passed phase"
        if with_phase
        else "magnitude alone: without phase, calcification cannot be told from microbleeds",
        "thresholds": {"definite": calibration.definite, "possible": calibration.possible},
        "usual_burden": calibration.usual_burden,
        "mimics_elsewhere": calibration.mimics_elsewhere,
        "candidates": len(table),
        "trained_on": "simulated data only",
    }
    return table, report


class _ClassifyInputSpec(BaseInterfaceInputSpec):
    scan = File(exists=True, mandatory=True, desc="scan.json")
    normalized = File(exists=True, mandatory=True, desc="magnitude relative to brain")
    mask = File(exists=True, mandatory=True, desc="brain mask")
    candidates = File(exists=True, mandatory=True, desc="table of candidates")
    swi = File(exists=True, desc="susceptibility-weighted image")
    highpass = File(exists=True, desc="high-passed phase, radians, right-handed")
    model = traits.Str(desc="'shipped' or a safetensors file; default: the scan's configuration")
    threads = traits.Int(1, usedefault=True, desc="CPU threads")
    out_table = traits.Str(mandatory=True, desc="probabilities.tsv")
    out_report = traits.Str(mandatory=True, desc="classify.json")


class _ClassifyOutputSpec(TraitedSpec):
    out_table = File(exists=True, desc="index p_microbleed p_calcification p_other")
    out_report = File(exists=True, desc="model, channels, thresholds")


class Classify(SimpleInterface):
    """Tell microbleeds, calcifications and other mimics apart among the candidates of a scan."""

    input_spec = _ClassifyInputSpec
    output_spec = _ClassifyOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        inputs = self.inputs
        normalized = read_volume(inputs.normalized)
        candidates = read_table(inputs.candidates)
        _require_columns(candidates, inputs.candidates)
        table, report = classify_candidates(
            candidates,
            normalized.data,
            read_on_grid(inputs.mask, normalized.data.shape),
            normalized.affine,
            swi=_if_given(inputs.swi, normalized.data.shape),
            highpass=_if_given(inputs.highpass, normalized.data.shape),
            model=self._model(),
            threads=inputs.threads,
        )
        write_table(inputs.out_table, table)
        write_json(inputs.out_report, report)
        self._results["out_table"] = inputs.out_table
        self._results["out_report"] = inputs.out_report
        return runtime

    def _model(self) -> str:
        """From the input, else the scan's configuration, else the shipped one."""
        if isdefined(self.inputs.model):
            return self.inputs.model
        config = read_json(self.inputs.scan).get("config", {})
        return (config.get("network") or {}).get("model") or "shipped"


def _if_given(path: Any, shape: tuple[int, ...]) -> np.ndarray | None:
    return read_on_grid(path, shape) if isdefined(path) else None


def _require_columns(table: pd.DataFrame, path: str) -> None:
    missing = {"index", "x", "y", "z", "score"} - set(table.columns)
    if missing:
        raise BadData(
            path,
            f"lacks the columns {', '.join(sorted(missing))}",
            "Remove the working directory and run again",
        )
