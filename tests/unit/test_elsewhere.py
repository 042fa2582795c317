"""How many more mimics there are elsewhere is found again where it was put in."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from cmb_bids.burden_prior import weigh_by_look_alikes
from cmb_bids.errors import BadData
from cmb_bids.training import elsewhere
from cmb_bids.training.scoring import ScoredCase


def drawn_cases(number, mimics_elsewhere, seed):
    """Scans whose spots are microbleeds with the probability that holds elsewhere."""
    rng = np.random.default_rng(seed)
    cases = []
    for index in range(number):
        said = rng.beta(0.5, 0.5, 30)
        points = np.arange(30)[:, None] * np.array([[20.0, 0, 0]])
        table = np.stack([said, (1 - said) / 2, (1 - said) / 2], axis=1)
        true = weigh_by_look_alikes(table, points, mimics_elsewhere)[:, 0]
        labels = np.where(rng.random(30) < true, 0, 2)
        lesions = pd.DataFrame(points[labels == 0], columns=["x", "y", "z"])
        cases.append(ScoredCase(index, "ukb", "tbi", points, labels, table, lesions))
    return cases


def test_the_number_that_was_put_in_is_found():
    assert elsewhere.fit_mimics(drawn_cases(150, 4.0, 0)) == pytest.approx(4.0, rel=0.2)
    assert elsewhere.fit_mimics(drawn_cases(150, 0.5, 1)) == pytest.approx(0.5, rel=0.2)


def test_candidates_without_a_label_say_nothing():
    cases = drawn_cases(20, 4.0, 0)
    before = elsewhere.fit_mimics(cases)
    for case in cases:
        case.labels[case.labels == 2] = -1
    said, was = elsewhere.said_elsewhere(cases[0], None)
    assert was.all()
    assert len(said) == len(cases[0].microbleeds)
    assert elsewhere.fit_mimics(cases) < before


def test_each_group_is_judged_with_the_number_of_the_others():
    groups = [elsewhere.Group(name, drawn_cases(80, 4.0, i)) for i, name in enumerate("abc")]
    result = elsewhere.measure(groups)
    assert result["simulated"] is True
    assert result["mimics_elsewhere"] == pytest.approx(4.0, rel=0.2)
    for row in result["groups"]:
        assert row["mimics_elsewhere"] == pytest.approx(4.0, rel=0.3)
        assert row["after"]["error_of_all"] < 0.03 < row["before"]["error_of_all"]
        assert row["after"]["listed"] < row["before"]["listed"]
    assert elsewhere.described(result).count("\n") == 6
    with pytest.raises(BadData, match="one origin"):
        elsewhere.measure(groups[:1])


def test_the_command_groups_scans_by_their_simulator(tmp_path, monkeypatch, capsys):
    cases = drawn_cases(40, 4.0, 0)
    people = pd.DataFrame({"participant_id": [f"sub-{i:02d}" for i in range(40)]})
    people["simulator"] = ["second", "analytic"] * 20
    monkeypatch.setattr(
        elsewhere, "read_cohort", lambda results, labels: SimpleNamespace(scans=people)
    )
    monkeypatch.setattr(
        elsewhere, "read_cases", lambda *given: (cases, people["participant_id"].tolist())
    )

    def judged_before(network, given):
        # Fitted for what the validation cases say, whatever the network says of elsewhere.
        assert network.description.calibration.mimics_elsewhere is None
        return given

    monkeypatch.setattr(elsewhere, "judged_before", judged_before)
    written = tmp_path / "elsewhere.json"
    words = ["--outside", str(tmp_path), str(tmp_path), "--output", str(written)]
    assert elsewhere.main(words) == 0
    found = json.loads(written.read_text())
    assert [row["group"] for row in found["groups"]] == ["analytic", "second"]
    assert [row["scans"] for row in found["groups"]] == [20, 20]
    assert "| analytic | 20 |" in capsys.readouterr().out
    people.drop(columns="simulator", inplace=True)
    assert elsewhere.main(words) == BadData("", "", "").exit_code
