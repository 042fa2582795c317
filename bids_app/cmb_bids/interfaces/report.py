"""File contract of a scan's pictures: images and lesion tables in, three PNG files out."""

from __future__ import annotations

from pathlib import Path
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

from cmb_bids.errors import BadData
from cmb_bids.lesions import CALCIFICATION, MICROBLEED, POSSIBLE
from cmb_bids.report.scan_figures import Mark, draw_close_ups, draw_overview, pictures_of
from cmb_bids.volumes import read_json, read_on_grid, read_table, read_volume, written_whole

SLAB_MM = 8.0
_NEEDED = ("index", "x", "y", "z", "certainty")


class _ScanFiguresInputSpec(BaseInterfaceInputSpec):
    scan = File(exists=True, mandatory=True, desc="scan.json: echoes, configuration")
    minip = File(exists=True, mandatory=True, desc="minimum-intensity projection")
    mask = File(exists=True, mandatory=True, desc="brain mask")
    microbleeds_table = File(exists=True, mandatory=True, desc="table of microbleeds")
    calcifications_table = File(exists=True, mandatory=True, desc="table of calcifications")
    swi = File(exists=True, desc="susceptibility-weighted image (absent: magnitude only)")
    highpass = File(exists=True, desc="high-pass filtered phase, radians")
    out_overview = traits.Str(mandatory=True, desc="projection with the lesions circled, PNG")
    out_microbleeds = traits.Str(mandatory=True, desc="close-ups of the microbleeds, PNG")
    out_calcifications = traits.Str(mandatory=True, desc="close-ups of the calcifications, PNG")


class _ScanFiguresOutputSpec(TraitedSpec):
    out_overview = File(desc="projection with the lesions circled")
    out_microbleeds = File(desc="close-ups of the microbleeds")
    out_calcifications = File(desc="close-ups of the calcifications")


class ScanFigures(SimpleInterface):
    """Pictures of one scan for its participant's page.

    Raises
    ------
    BadData
        Images are on different grids, or a table lacks a column.
    """

    input_spec = _ScanFiguresInputSpec
    output_spec = _ScanFiguresOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        scan = read_json(self.inputs.scan)
        minip = read_volume(self.inputs.minip)
        mask = read_on_grid(self.inputs.mask, minip.data.shape) > 0.5
        tables = {
            MICROBLEED: _read_lesions(self.inputs.microbleeds_table),
            CALCIFICATION: _read_lesions(self.inputs.calcifications_table),
        }
        marks = [mark for kind, table in tables.items() for mark in _marks(table, kind)]
        slab = (scan.get("config") or {}).get("swi", {}).get("minimum_projection_mm", SLAB_MM)
        overview = draw_overview(minip.data, mask, minip.affine, marks, slab)
        pictures = pictures_of(self._images(scan, minip.data.shape), mask)
        _write(self.inputs.out_overview, overview)
        for kind, path in (
            (MICROBLEED, self.inputs.out_microbleeds),
            (CALCIFICATION, self.inputs.out_calcifications),
        ):
            positions = tables[kind][["x", "y", "z"]].to_numpy(dtype=float)
            _write(path, draw_close_ups(pictures, minip.affine, positions))
        for name in self.output_spec().copyable_trait_names():
            self._results[name] = getattr(self.inputs, name)
        return runtime

    def _images(self, scan: dict[str, Any], shape: tuple[int, ...]) -> dict[str, np.ndarray]:
        """What close-ups show, always the same rows for one kind of scan."""
        images = {}
        if isdefined(self.inputs.swi):
            images["SWI"] = read_on_grid(self.inputs.swi, shape)
        if isdefined(self.inputs.highpass):
            images["phase"] = read_on_grid(self.inputs.highpass, shape)
        magnitude = last_magnitude(scan)
        if magnitude is not None:
            images["magnitude"] = read_on_grid(magnitude, shape)
        return images or {"projection": read_on_grid(self.inputs.minip, shape)}


def last_magnitude(scan: dict[str, Any]) -> Path | None:
    """The raw magnitude of the longest echo that has one; None for real and imaginary exports."""
    found = [
        (echo.get("echo_time_s") or 0.0, echo["magnitude"])
        for echo in scan.get("echoes", [])
        if echo.get("magnitude") and Path(echo["magnitude"]).is_file()
    ]
    return Path(max(found)[1]) if found else None


def _read_lesions(path: str) -> Any:
    table = read_table(path)
    missing = [name for name in _NEEDED if name not in table]
    if missing:
        raise BadData(
            path,
            f"lacks columns {', '.join(missing)}",
            "Remove it and run the participant level again",
        )
    return table


def _marks(table: Any, kind: str) -> list[Mark]:
    """What is circled: microbleeds by their label, calcifications by C and theirs."""
    prefix = "C" if kind == CALCIFICATION else ""
    return [
        Mark((row.x, row.y, row.z), kind, f"{prefix}{row.index_}", row.certainty != POSSIBLE)
        for row in table.rename(columns={"index": "index_"}).itertuples()
    ]


def _write(path: str, content: bytes) -> None:
    with written_whole(path) as beside:
        beside.write_bytes(content)
