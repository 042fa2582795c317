"""Stages with the file contracts of the real ones and next to nothing in them."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    SimpleInterface,
    TraitedSpec,
    isdefined,
)

from cmb_bids.errors import BadData
from cmb_bids.volumes import read_json, read_volume, write_json, write_table, write_volume

# As much of a PNG as says how large it is.
PICTURE = b"\x89PNG\r\n\x1a\n" + bytes([0, 0, 0, 13]) + b"IHDR" + bytes([0, 0, 0, 9, 0, 0, 0, 9])
COLUMNS = ["index", "name", "x", "y", "z", "probability"]


def _specs(inputs: dict[str, bool], outputs: list[str]):
    """Trait classes: input name -> mandatory, and output names."""
    traits = {name: File(exists=True, mandatory=need) for name, need in inputs.items()}
    traits |= {f"out_{name}": File(mandatory=True) for name in outputs}
    given = type("Inputs", (BaseInterfaceInputSpec,), traits)
    made = type("Outputs", (TraitedSpec,), {f"out_{name}": File() for name in outputs})
    return given, made


class _Stage(SimpleInterface):
    def _run_interface(self, runtime):
        scan = read_json(self.inputs.scan)
        if os.environ.get("STUB_FAIL") == f"{scan['id']}:{type(self).__name__}":
            raise RuntimeError("a fault nobody foresaw")
        self.work(scan)
        return runtime

    def save(self, image, *names):
        for name in names:
            write_volume(getattr(self.inputs, f"out_{name}"), image.data, image.affine)

    def report(self, name, **content):
        write_json(getattr(self.inputs, f"out_{name}"), content)


class PhaseToSWI(_Stage):
    input_spec, output_spec = _specs(
        {"scan": True}, ["magnitude", "unwrapped", "highpass", "swi", "minip", "report"]
    )

    def work(self, scan):
        echo = scan["echoes"][0]
        magnitude = read_volume(echo["magnitude"] or echo["real"])
        phase = read_volume(echo["phase"] or echo["imaginary"])
        if magnitude.data.shape != phase.data.shape:
            raise BadData(echo["phase"], "is not on the magnitude's grid", "Convert it again")
        self.save(magnitude, "magnitude", "unwrapped", "highpass", "swi", "minip")
        self.report("report", config=scan["config"])


class MagnitudeOnly(_Stage):
    input_spec, output_spec = _specs({"scan": True}, ["magnitude", "minip", "report"])

    def work(self, scan):
        self.save(read_volume(scan["echoes"][0]["magnitude"]), "magnitude", "minip")
        self.report("report")


class BrainMask(_Stage):
    input_spec, output_spec = _specs(
        {"scan": True, "magnitude": True}, ["mask", "normalized", "regions", "report"]
    )

    def work(self, scan):
        image = read_volume(self.inputs.magnitude)
        self.save(image, "normalized")
        self.save(image._replace(data=np.ones(image.data.shape, np.uint8)), "mask")
        self.save(image._replace(data=np.ones(image.data.shape, np.int16)), "regions")
        self.report("report", given=scan["mask"])


class FindCandidates(_Stage):
    input_spec, output_spec = _specs(
        {"scan": True, "magnitude": True, "mask": True, "swi": False, "highpass": False},
        ["image", "table"],
    )

    def work(self, scan):
        image = read_volume(self.inputs.magnitude)
        self.save(image._replace(data=np.zeros(image.data.shape, np.int16)), "image")
        columns = {name: {"Description": name} for name in COLUMNS[1:]}
        write_table(self.inputs.out_table, pd.DataFrame(columns=COLUMNS), columns)


class Classify(_Stage):
    input_spec, output_spec = _specs(
        {
            "scan": True,
            "normalized": True,
            "mask": True,
            "candidates": True,
            "swi": False,
            "highpass": False,
        },
        ["table", "report"],
    )

    def work(self, scan):
        assert isdefined(self.inputs.swi) == (scan["kind"] == "complex")
        write_table(self.inputs.out_table, pd.DataFrame({"index": []}))
        self.report("report")


class Lesions(_Stage):
    input_spec, output_spec = _specs(
        {
            **dict.fromkeys(("scan", "magnitude", "mask", "regions", "candidates"), True),
            **dict.fromkeys(("probabilities", "phase_report", "brain_report"), True),
            **dict.fromkeys(("normalized", "classify_report"), True),
            **dict.fromkeys(("swi", "highpass", "unwrapped"), False),
        },
        [
            *("microbleeds_image", "microbleeds_table"),
            *("calcifications_image", "calcifications_table", "row"),
        ],
    )

    def work(self, scan):
        image = read_volume(self.inputs.normalized)
        empty = image._replace(data=np.zeros(image.data.shape, np.int16))
        self.save(empty, "microbleeds_image", "calcifications_image")
        for name in ("microbleeds_table", "calcifications_table"):
            write_table(getattr(self.inputs, f"out_{name}"), pd.DataFrame(columns=COLUMNS))
        self.report(
            "row",
            filename=scan["filename"],
            source_filename=scan["source_filename"],
            **dict.fromkeys(("cmb_definite", "cmb_possible", "cmb_lobar", "cmb_deep"), 0),
            cmb_infratentorial=0,
            calcification=0,
            pattern="none",
            qc_status="pass",
            qc_reason="n/a",
        )


class ScanFigures(_Stage):
    input_spec, output_spec = _specs(
        {
            **dict.fromkeys(("scan", "minip", "mask"), True),
            **dict.fromkeys(("microbleeds_table", "calcifications_table"), True),
            **dict.fromkeys(("swi", "highpass"), False),
        },
        ["overview", "microbleeds", "calcifications"],
    )

    def work(self, scan):
        for name in ("overview", "microbleeds", "calcifications"):
            Path(getattr(self.inputs, f"out_{name}")).write_bytes(PICTURE)
