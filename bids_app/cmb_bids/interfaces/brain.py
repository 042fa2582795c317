"""The brain stage as a file contract: a magnitude in; mask, normalized magnitude, regions out."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    SimpleInterface,
    TraitedSpec,
)

from cmb_bids.errors import BadData, UsageError
from cmb_bids.volumes import read_json, read_volume, write_json, write_volume


def read_given_mask(path: str | Path, shape: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
    """A brain mask made elsewhere, on the scan's grid.

    Parameters
    ----------
    path : path-like
        A NIfTI mask on any grid; it is resampled through scanner space.
    shape, affine
        The scan's grid.

    Raises
    ------
    InputMissing, BadData
        The file is absent, unreadable, empty, or does not overlap the scan.
    """
    from cmb_bids.brain import resample_mask

    volume = read_volume(path)
    if not (np.nan_to_num(volume.data) > 0).any():
        raise BadData(path, "is an empty brain mask", "Replace it or leave it out")
    mask = resample_mask(volume.data, volume.affine, shape, affine)
    if not mask.any():
        raise BadData(
            path,
            "is a brain mask that does not overlap the scan",
            "Check that it belongs to this scan and is in its space",
        )
    return mask


def _settings(scan: dict[str, Any]) -> Any:
    """The section ``brain`` of the scan's configuration."""
    from cmb_bids.brain import BrainConfig

    section = scan.get("config", {}).get("brain", {})
    unknown = set(section) - {field.name for field in fields(BrainConfig)}
    if unknown:
        raise UsageError(
            "brain",
            f"the configuration has unknown keys: {', '.join(sorted(unknown))}",
            "See config/README.md",
        )
    return BrainConfig(**section)


class _BrainMaskInputSpec(BaseInterfaceInputSpec):
    scan = File(exists=True, mandatory=True, desc="scan description (JSON)")
    magnitude = File(exists=True, mandatory=True, desc="magnitude, echoes combined")
    out_mask = File(mandatory=True, desc="brain mask to write")
    out_normalized = File(mandatory=True, desc="bias-corrected magnitude over its median to write")
    out_regions = File(mandatory=True, desc="region labels to write")
    out_report = File(mandatory=True, desc="volume, coverage and gate (JSON) to write")


class _BrainMaskOutputSpec(TraitedSpec):
    out_mask = File(exists=True)
    out_normalized = File(exists=True)
    out_regions = File(exists=True)
    out_report = File(exists=True)


class BrainMask(SimpleInterface):
    """Outline the brain of one scan; see `cmb_bids.brain.extract_brain`."""

    input_spec = _BrainMaskInputSpec
    output_spec = _BrainMaskOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        from cmb_bids.brain import extract_brain

        scan = read_json(self.inputs.scan)
        magnitude = read_volume(self.inputs.magnitude)
        given = None
        if scan.get("mask"):
            given = read_given_mask(scan["mask"], magnitude.data.shape, magnitude.affine)
        result = extract_brain(
            magnitude.data,
            magnitude.affine,
            _settings(scan),
            given_mask=given,
            random_seed=int(scan.get("random_seed") or 0),
        )
        outputs = {
            "out_mask": (result.mask, np.uint8),
            "out_normalized": (result.normalized, np.float32),
            "out_regions": (result.regions, np.int16),
        }
        for name, (data, kind) in outputs.items():
            path = getattr(self.inputs, name)
            write_volume(path, data, magnitude.affine, dtype=kind)
            self._results[name] = path
        write_json(self.inputs.out_report, result.report)
        self._results["out_report"] = self.inputs.out_report
        return runtime
