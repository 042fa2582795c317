"""File contract of the last stage of a scan: lesion tables, label images and the scans row."""

from __future__ import annotations

from typing import Any

import numpy as np
from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    SimpleInterface,
    TraitedSpec,
    isdefined,
    traits,
)

from cmb_bids.burden import summarise_scan
from cmb_bids.columns import LESION_COLUMNS, PASS
from cmb_bids.errors import BadData, UsageError
from cmb_bids.interfaces.brain import read_places
from cmb_bids.lesions import (
    CALCIFICATION,
    MICROBLEED,
    LesionConfig,
    decide_thresholds,
    segment_lesions,
    split_class,
)
from cmb_bids.moments import NO_PHASE, Phase, describe_phase
from cmb_bids.quality import QualityConfig, find_phase_encoding, measure_quality
from cmb_bids.volumes import (
    Volume,
    read_json,
    read_on_grid,
    read_table,
    read_volume,
    voxel_sizes,
    write_json,
    write_table,
    write_volume,
)

_REMEDY = "Remove the scan's intermediate files and run again"


class _LesionsInputSpec(BaseInterfaceInputSpec):
    scan = File(exists=True, mandatory=True, desc="scan.json")
    magnitude = File(exists=True, desc="combined magnitude, for the quality check")
    normalized = File(exists=True, mandatory=True, desc="bias-corrected magnitude")
    mask = File(exists=True, mandatory=True, desc="brain mask")
    regions = File(exists=True, mandatory=True, desc="atlas labels on the scan's grid")
    candidates = File(exists=True, mandatory=True, desc="table of candidates")
    probabilities = File(exists=True, mandatory=True, desc="table of class probabilities")
    brain_report = File(exists=True, mandatory=True, desc="report of the brain stage")
    classify_report = File(exists=True, mandatory=True, desc="report of the classifier")
    phase_report = File(exists=True, desc="report of the phase or magnitude stage")
    swi = File(exists=True, desc="susceptibility-weighted image (absent: magnitude only)")
    highpass = File(exists=True, desc="high-pass filtered phase, radians; not read yet")
    unwrapped = File(exists=True, desc="unwrapped phase, radians, right-handed: magnetic moments")
    out_microbleeds_image = traits.Str(mandatory=True, desc="label image to write")
    out_microbleeds_table = traits.Str(mandatory=True, desc="table to write")
    out_calcifications_image = traits.Str(mandatory=True, desc="label image to write")
    out_calcifications_table = traits.Str(mandatory=True, desc="table to write")
    out_row = traits.Str(mandatory=True, desc="row of the scans table to write, JSON")


class _LesionsOutputSpec(TraitedSpec):
    out_microbleeds_image = File(desc="label of each microbleed, definite or possible")
    out_microbleeds_table = File(desc="a row per label")
    out_calcifications_image = File(desc="label of each calcification")
    out_calcifications_table = File(desc="a row per label")
    out_row = File(desc="the scan's row of the scans table")


class Lesions(SimpleInterface):
    """Lesions of one scan, drawn, measured, placed and counted, from files to files.

    Raises
    ------
    BadData
        Images are on different grids, or the tables do not belong together.
    UsageError
        The configuration's thresholds contradict each other or the model's.
    """

    input_spec = _LesionsInputSpec
    output_spec = _LesionsOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        scan = read_json(self.inputs.scan)
        brain_report = read_json(self.inputs.brain_report)
        classify_report = read_json(self.inputs.classify_report)
        config = LesionConfig(**scan["config"].get("lesions", {}))
        thresholds = classify_report.get("thresholds")
        try:
            decide_thresholds(config, thresholds)
        except ValueError as error:
            raise UsageError(
                "configuration, section 'lesions'", str(error), "Change or remove them"
            ) from error
        normalized = read_volume(self.inputs.normalized)
        shape = normalized.data.shape
        candidates, probabilities = read_table(self.inputs.candidates), self._read_probabilities()
        phase_report = (
            read_json(self.inputs.phase_report) if isdefined(self.inputs.phase_report) else {}
        )
        table, labels = segment_lesions(
            candidates,
            probabilities,
            normalized.data,
            read_on_grid(self.inputs.mask, shape) > 0.5,
            normalized.affine,
            swi=read_on_grid(self.inputs.swi, shape) if isdefined(self.inputs.swi) else None,
            regions=read_on_grid(self.inputs.regions, shape, np.int16),
            config=config,
            model_thresholds=thresholds,
            gate_passed=brain_report.get("gate") == PASS,
            places=read_places(brain_report),
            mni_affine=brain_report.get("mni_affine"),
            phase=self._read_phase(scan, phase_report, shape),
        )
        microbleeds, microbleed_labels = split_class(table, labels, MICROBLEED)
        calcifications, calcification_labels = split_class(table, labels, CALCIFICATION)
        row = summarise_scan(
            {**scan, "voxel_size_mm": voxel_sizes(normalized.affine).tolist()},
            microbleeds,
            calcifications,
            candidates.merge(probabilities, on="index"),
            phase_report,
            brain_report,
            classify_report,
            self._measure_quality(scan, normalized),
            QualityConfig(**scan["config"].get("quality", {})),
        )
        write_volume(self.inputs.out_microbleeds_image, microbleed_labels, normalized.affine)
        write_table(self.inputs.out_microbleeds_table, microbleeds, LESION_COLUMNS)
        write_volume(self.inputs.out_calcifications_image, calcification_labels, normalized.affine)
        write_table(self.inputs.out_calcifications_table, calcifications, LESION_COLUMNS)
        # The row goes last: it says that the scan is complete.
        write_json(self.inputs.out_row, row)
        for name in self.output_spec().copyable_trait_names():
            self._results[name] = getattr(self.inputs, name)
        return runtime

    def _read_phase(
        self, scan: dict[str, Any], phase_report: dict[str, Any], shape: tuple[int, ...]
    ) -> Phase | str:
        """Unwrapped phase for the magnetic moments, or why there is none."""
        found = describe_phase(phase_report, scan.get("field_strength_t"))
        if isinstance(found, str) or not isdefined(self.inputs.unwrapped):
            return found if isinstance(found, str) else NO_PHASE
        radians, wrapped = found
        return Phase(read_on_grid(self.inputs.unwrapped, shape), radians, wrapped)

    def _measure_quality(self, scan: dict[str, Any], normalized: Volume) -> dict[str, Any]:
        """Quality of the magnitude, or of the bias-corrected one where no other was given."""
        given, shape = self.inputs, normalized.data.shape
        echoes = scan.get("echoes") or [{}]
        return measure_quality(
            read_on_grid(given.magnitude, shape) if isdefined(given.magnitude) else normalized.data,
            read_on_grid(given.mask, shape) > 0.5,
            normalized.affine,
            read_on_grid(given.highpass, shape) if isdefined(given.highpass) else None,
            find_phase_encoding(echoes[0].get("magnitude_sidecar") or {}),
        )

    def _read_probabilities(self) -> Any:
        """The probabilities; refused where they are not those of the candidates."""
        probabilities = read_table(self.inputs.probabilities)
        candidates = read_table(self.inputs.candidates)
        missing = {"index", "p_microbleed", "p_calcification"} - set(probabilities.columns)
        if missing:
            raise BadData(
                self.inputs.probabilities, f"lacks columns {', '.join(sorted(missing))}", _REMEDY
            )
        if sorted(probabilities["index"]) != sorted(candidates["index"]):
            raise BadData(
                self.inputs.probabilities,
                f"holds {len(probabilities)} rows that are not the {len(candidates)} candidates",
                _REMEDY,
            )
        return probabilities
