"""Names: taken apart, put together, and what every scan is expected to leave."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmb_bids import naming

LABEL = st.text("abcXYZ019", min_size=1, max_size=6)
ENTITIES = st.dictionaries(st.sampled_from(list(naming.ENTITIES.values())), LABEL, min_size=1)


@given(ENTITIES)
def test_a_name_put_together_comes_apart_again(entities):
    name = naming.build_name(entities, "T2starw.nii.gz")
    assert naming.parse_name(name) == (entities, "T2starw", ".nii.gz")


@given(ENTITIES, st.randoms(use_true_random=False))
def test_the_order_of_entities_is_that_of_bids(entities, random):
    shuffled = list(entities.items())
    random.shuffle(shuffled)
    assert naming.build_name(dict(shuffled)) == naming.build_name(entities)
    keys = [pair.partition("-")[0] for pair in naming.build_name(entities).split("_")]
    assert keys == sorted(keys, key=list(naming.ENTITIES).index)


def test_subject_and_session_come_first_and_desc_last():
    name = naming.build_name({"desc": "swi", "run": "1", "session": "A", "subject": "01"}, "x.tsv")
    assert name == "sub-01_ses-A_run-1_desc-swi_x.tsv"


def test_a_name_without_entities_or_suffix_is_taken_as_it_is():
    assert naming.parse_name("README") == ({}, "README", "")
    assert naming.parse_name("T2starw.json") == ({}, "T2starw", ".json")


@pytest.mark.parametrize(("label", "clean"), [("sub-01", "01"), ("01", "01"), (" 01 ", "01")])
def test_labels_may_carry_their_key(label, clean):
    assert naming.clean_label(label, "sub") == clean


def scan(kind: str = "complex") -> dict:
    return {"folder": "sub-01/ses-A", "prefix": "sub-01_ses-A", "output_suffix": "T2starw",
            "kind": kind, "sources": ["bids:raw:x.nii.gz"],
            "echoes": [{"echo_time_s": 0.02}]}  # fmt: skip


def test_a_complex_scan_leaves_phase_images_and_a_magnitude_scan_does_not():
    complex_scan, magnitude = (naming.scan_outputs(scan(kind)) for kind in ("complex", "magnitude"))
    only = set(complex_scan) - set(magnitude)
    assert only == {
        f"sub-01/ses-A/anat/sub-01_ses-A_{name}_T2starw{extension}"
        for name in ("part-phase_desc-unwrapped", "part-phase_desc-highpass", "desc-swi")
        for extension in (".nii.gz", ".json")
    }
    assert "sub-01/ses-A/anat/sub-01_ses-A_desc-cmb_dseg.tsv" in magnitude


@pytest.mark.parametrize("name", naming.DESCRIPTIONS)
def test_every_image_but_masks_says_whether_it_is_skull_stripped(name):
    sidecar = naming.describe_image(name, scan())
    assert ("SkullStripped" in sidecar) == (name != "brain")
    assert sidecar["Sources"] == ["bids:raw:x.nii.gz"]
    assert sidecar["Description"]


def test_phase_is_in_radians_and_a_single_echo_keeps_its_time():
    sidecar = naming.describe_image("highpass", scan())
    assert sidecar["Units"] == "rad"
    assert sidecar["EchoTime"] == 0.02


def test_several_echoes_have_no_single_echo_time():
    two = {**scan(), "echoes": [{"echo_time_s": 0.01}, {"echo_time_s": 0.02}]}
    sidecar = naming.describe_image("swi", two)
    assert "EchoTime" not in sidecar
    assert sidecar["CombinedEchoTimes"] == [0.01, 0.02]


def test_no_line_of_bidsignore_ends_in_a_slash():
    files = naming.dataset_files(Path("/data"), Path("/out"), {"Name": "x"})
    assert not [line for line in files[".bidsignore"].splitlines() if line.endswith("/")]


def test_the_raw_dataset_is_linked_relatively_where_the_output_lies_inside_it():
    inside = naming.dataset_files(Path("/data"), Path("/data/derivatives/out"), {"Name": "x"})
    beside = naming.dataset_files(Path("/data"), Path("/out"), {"Name": "x"})
    assert inside["dataset_description.json"]["DatasetLinks"]["raw"] == "../../"
    assert beside["dataset_description.json"]["DatasetLinks"]["raw"] == "file:///data"


def test_the_description_names_its_maker_and_calls_itself_a_derivative():
    files = naming.dataset_files(Path("/data"), Path("/out"), {"Name": "x"})
    description = files["dataset_description.json"]
    assert description["GeneratedBy"][0]["Name"] == "cmb-bids"
    assert description["DatasetType"] == "derivative"
    for line in files["descriptions.tsv"].splitlines()[1:]:
        assert line.startswith("desc-")


@pytest.mark.parametrize("highpass", ["homodyne", "gaussian"])
@pytest.mark.parametrize("unwrapping", ["romeo", "laplacian", "none"])
def test_the_methods_text_follows_the_configuration(unwrapping, highpass):
    text = naming.methods_text({"phase": {"unwrapping": unwrapping, "highpass": highpass}})
    assert ("ROMEO" in text) == (unwrapping == "romeo")
    assert ("homodyne" in text) == (highpass == "homodyne")
    assert "simulated" in text
