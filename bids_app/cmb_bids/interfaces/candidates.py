"""File contract of the candidate stage."""

from __future__ import annotations

from typing import Any

from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    SimpleInterface,
    TraitedSpec,
    isdefined,
    traits,
)

from cmb_bids.candidates import CandidateConfig, find_candidates, label_candidates
from cmb_bids.volumes import read_json, read_on_grid, read_volume, write_table, write_volume


class _FindCandidatesInputSpec(BaseInterfaceInputSpec):
    scan = File(exists=True, mandatory=True, desc="scan.json")
    magnitude = File(exists=True, mandatory=True, desc="bias-normalised magnitude")
    mask = File(exists=True, mandatory=True, desc="brain mask")
    swi = File(exists=True, desc="susceptibility-weighted image (absent: magnitude only)")
    highpass = File(exists=True, desc="high-pass filtered phase, radians")
    threads = traits.Int(1, usedefault=True, desc="CPU threads")
    out_image = traits.Str(mandatory=True, desc="label image to write")
    out_table = traits.Str(mandatory=True, desc="point table to write")


class _FindCandidatesOutputSpec(TraitedSpec):
    out_image = File(desc="label image: a small region per candidate, labelled by its index")
    out_table = File(desc="point table, best candidate first")


class FindCandidates(SimpleInterface):
    """Candidates of one scan, from files to files.

    Raises
    ------
    BadData
        An image's grid differs from the magnitude's.
    """

    input_spec = _FindCandidatesInputSpec
    output_spec = _FindCandidatesOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        config = CandidateConfig(**read_json(self.inputs.scan)["config"].get("candidates", {}))
        magnitude = read_volume(self.inputs.magnitude)
        images = {
            name: read_on_grid(getattr(self.inputs, name), magnitude.data.shape)
            for name in ("mask", "swi", "highpass")
            if isdefined(getattr(self.inputs, name))
        }
        mask = images.pop("mask") > 0.5
        table = find_candidates(
            magnitude.data,
            mask,
            magnitude.affine,
            config=config,
            threads=self.inputs.threads,
            **images,
        )
        labels = label_candidates(table, magnitude.data.shape, magnitude.affine)
        write_volume(self.inputs.out_image, labels, magnitude.affine)
        write_table(self.inputs.out_table, table)
        self._results["out_image"] = self.inputs.out_image
        self._results["out_table"] = self.inputs.out_table
        return runtime
