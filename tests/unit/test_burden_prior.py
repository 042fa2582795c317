"""The rest of the scan weighs in on each candidate as a gamma-Poisson rate does."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from cmb_bids.burden_prior import (
    expected_look_alikes,
    expected_others,
    weigh_by_burden,
    weigh_by_look_alikes,
)


def probabilities_of(*microbleed, calcification=0.0):
    p = np.array(microbleed, dtype=float)
    return np.stack([p, np.full_like(p, calcification), 1 - p - calcification], axis=1)


def apart(n, distance=20.0):
    return np.arange(n)[:, None] * np.array([[distance, 0, 0]])


def test_others_are_counted_once_a_spot_and_never_with_oneself():
    points = np.array([[0.0, 0, 0], [0, 0, 4], [50, 0, 0], [90, 0, 0]])
    others = expected_others(np.array([0.9, 0.3, 0.5, 0.1]), points)
    np.testing.assert_allclose(others, [0.6, 0.6, 1.0, 1.4])


def test_odds_rise_as_one_more_than_the_others():
    alone = weigh_by_burden(probabilities_of(0.5), apart(1), usual_burden=1.0)
    assert np.isclose(alone[0, 0] / (1 - alone[0, 0]), 0.5)
    many = weigh_by_burden(probabilities_of(0.5, *[1.0] * 9), apart(10), usual_burden=1.0)
    assert np.isclose(many[0, 0] / (1 - many[0, 0]), 10 / 2)


def test_beside_the_usual_burden_nothing_changes():
    p = probabilities_of(0.5, 1.0, 1.0, calcification=0.0)
    np.testing.assert_allclose(weigh_by_burden(p, apart(3), 2.0)[0], p[0])


def test_look_alikes_are_what_may_be_a_microbleed_and_is_none():
    points = np.array([[0.0, 0, 0], [0, 0, 4], [50, 0, 0], [90, 0, 0], [140, 0, 0]])
    found = expected_look_alikes(np.array([0.9, 0.3, 0.6, 0.09, 1.0]), points)
    np.testing.assert_allclose(found, [0.4, 0.4, 0.1, 0.5, 0.5])


def test_odds_fall_as_one_more_than_the_look_alikes():
    alone = weigh_by_look_alikes(probabilities_of(0.5), apart(1), 4.0)
    assert np.isclose(alone[0, 0] / (1 - alone[0, 0]), 1 / 4)
    many = weigh_by_look_alikes(probabilities_of(0.5, *[0.4] * 5), apart(6), 4.0)
    assert np.isclose(many[0, 0] / (1 - many[0, 0]), 1 / (4 * (1 + 5 * 0.6)))


def test_sure_microbleeds_are_no_look_alikes():
    p = probabilities_of(0.5, 1.0, 1.0, 1.0)
    weighed = weigh_by_look_alikes(p, apart(4), 1.0)
    np.testing.assert_allclose(weighed, p)


def test_no_candidates():
    for weigh in (weigh_by_burden, weigh_by_look_alikes):
        assert weigh(np.zeros((0, 3)), np.zeros((0, 3)), 1.0).shape == (0, 3)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 0.89), min_size=1, max_size=12), st.floats(0.05, 50))
def test_probabilities_stay_probabilities_and_certainty_stays_certain(chances, usual):
    p = probabilities_of(*chances, calcification=0.1)
    for weigh in (weigh_by_burden, weigh_by_look_alikes):
        weighed = weigh(p, apart(len(p)), usual)
        np.testing.assert_allclose(weighed.sum(axis=1), 1)
        assert (weighed >= 0).all()
        np.testing.assert_allclose(weighed[:, 1] * p[:, 2], weighed[:, 2] * p[:, 1], atol=1e-12)
        assert (weighed[p[:, 0] == 0, 0] == 0).all()
