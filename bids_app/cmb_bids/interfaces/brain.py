"""The brain stage as a file contract: a magnitude in; mask, normalized magnitude, regions out.

A parcellation of the user's own comes before the built-in atlas. One that cannot be used never
costs the scan: the atlas stands in, and the report says why.
"""

from __future__ import annotations

from collections.abc import Mapping
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

from cmb_bids.anatomy import Place
from cmb_bids.errors import BadData, CmbError, UsageError
from cmb_bids.given_parcellations import FREESURFER
from cmb_bids.volumes import read_json, read_table, read_volume, write_json, write_volume


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


def add_parcellation(
    given: Mapping[str, Any] | None, atlas: np.ndarray, mask: np.ndarray, affine: np.ndarray
) -> tuple[np.ndarray, dict[str, Any]]:
    """Put the user's parcellation, where there is one that can be used, before the atlas.

    Parameters
    ----------
    given : mapping or None
        ``image``, ``table``, ``numbering`` of `cmb_bids.given_parcellations`, or why none of
        those given can be used (``refused``).
    atlas, mask : (x, y, z) arrays
        Atlas labels and brain mask on the scan's grid.
    affine : (4, 4) array
        Voxel to scanner mm.

    Returns
    -------
    regions : (x, y, z) int16 array
        Atlas labels, and codes of the parcellation.
    report : dict
        ``places`` (code to label, name, source; `read_places` reads them) and ``parcellation``
        (None, or ``file``, ``used``, ``reason``, ``inside``, ``shift_mm``, ``not_understood``).
    """
    if given is None:
        return atlas, {"places": {}, "parcellation": None}
    report: dict[str, Any] = {"file": given.get("image"), "used": False, "reason": ""}
    report |= {"inside": None, "shift_mm": None, "not_understood": []}
    places: dict[int, Place] = {}
    regions = atlas
    try:
        if given.get("refused"):
            raise UsageError("--derivatives", given["refused"], "The built-in atlas was used")
        regions, places = _merge(given, atlas, mask, affine, report)
    except CmbError as error:
        report["reason"] = f"parcellation not used: {error}"
    for line in (report["reason"], *report["not_understood"]):
        if line:
            print(f"parcellation: {line}")
    return regions, {
        "places": {str(code): list(place) for code, place in places.items()},
        "parcellation": report,
    }


def _merge(
    given: Mapping[str, Any],
    atlas: np.ndarray,
    mask: np.ndarray,
    affine: np.ndarray,
    report: dict[str, Any],
) -> tuple[np.ndarray, dict[int, Place]]:
    """Read, check and merge a parcellation; fills the report, raises where it cannot be used."""
    from cmb_bids.parcellation import (
        MAXIMUM_SHIFT_MM,
        MINIMUM_INSIDE,
        interpret_names,
        measure_alignment,
        merge_regions,
        resample_labels,
    )

    path = given["image"]
    labels, labels_affine = read_labels(path)
    names = read_names(given.get("table"), given.get("numbering"), path)
    structures, unknown = interpret_names(names)
    present = set(np.unique(labels).tolist()) - {0}
    if not present & set(structures):
        raise BadData(
            given.get("table") or path,
            "names no structure that the rating scales know",
            "Use the names of FreeSurfer or such as in docs/anatomy.md",
        )
    nameless = {label: f"label {label}" for label in present - set(names)}
    report["not_understood"] = [
        f"{name} (label {label}): not understood; the built-in atlas decides"
        for label, name in sorted({**unknown, **nameless}.items())
        if label in present
    ]
    resampled = resample_labels(labels, labels_affine, mask.shape, affine)
    tissue = np.isin(resampled, [k for k, s in structures.items() if min(s.labels) in range(1, 40)])
    alignment = measure_alignment(tissue, mask, affine)
    report |= {"inside": round(alignment.inside, 3), "shift_mm": alignment.shift_mm}
    if alignment.inside < MINIMUM_INSIDE:
        raise BadData(
            path,
            f"does not lie on this scan's brain (only {alignment.inside:.0%} of it is inside the "
            "brain mask): it is of another session or in another space",
            "Resample it to the scan with the transform between the two images",
        )
    report["used"] = True
    if alignment.shift_mm is not None and alignment.shift_mm > MAXIMUM_SHIFT_MM:
        report["reason"] = (
            f"{path}: lies {alignment.shift_mm:.0f} mm off the scan's brain mask; the head may "
            "have moved between the two images, so regions near a boundary may be wrong"
        )
    return merge_regions(resampled, structures, atlas, affine)


def read_labels(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """A label image (x, y, z) int32 and its affine.

    Raises
    ------
    InputMissing, BadData
        The file is absent, unreadable, or its values are no whole numbers.
    """
    volume = read_volume(path, np.float64)
    values = np.nan_to_num(volume.data)
    if not np.array_equal(values, np.rint(values)) or values.min() < 0:
        raise BadData(
            path,
            "holds values that are no labels (negative or fractional)",
            "Resample parcellations with nearest neighbours",
        )
    return values.astype(np.int32), volume.affine


def read_names(
    table: str | Path | None, numbering: str | None, image: str | Path
) -> dict[int, str]:
    """Names by label, from a lookup table or from a numbering that is known.

    Raises
    ------
    InputMissing, BadData
        The table is absent, no table, or lacks ``index`` or ``name``; or there is neither.
    """
    if table is None:
        from cmb_bids.parcellation import freesurfer_names

        if numbering == FREESURFER:
            return freesurfer_names()
        raise BadData(image, "has no lookup table", "Put a table with index and name beside it")
    content = read_table(table)
    columns = {str(name).strip().lower(): name for name in content.columns}
    lacking = [name for name in ("index", "name") if name not in columns]
    if lacking:
        raise BadData(
            table, f"has no column {' and no column '.join(lacking)}", "Name its columns so"
        )
    pairs = content[[columns["index"], columns["name"]]].dropna()
    try:
        return {int(index): str(name) for index, name in pairs.itertuples(index=False)}
    except ValueError as error:
        raise BadData(table, f"has an index that is no number ({error})", "Mend it") from error


def read_places(report: Mapping[str, Any]) -> dict[int, Place]:
    """What the codes of a region image stand for, from the report of the brain stage."""
    return {int(code): Place(*place) for code, place in report.get("places", {}).items()}


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
        regions, told = add_parcellation(
            scan.get("parcellation"), result.regions, result.mask, magnitude.affine
        )
        outputs = {
            "out_mask": (result.mask, np.uint8),
            "out_normalized": (result.normalized, np.float32),
            "out_regions": (regions, np.int16),
        }
        for name, (data, kind) in outputs.items():
            path = getattr(self.inputs, name)
            write_volume(path, data, magnitude.affine, dtype=kind)
            self._results[name] = path
        write_json(self.inputs.out_report, {**result.report, **told})
        self._results["out_report"] = self.inputs.out_report
        return runtime
