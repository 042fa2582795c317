"""What the rest of a scan says about one candidate: who has microbleeds tends to have several.

Their number differs between people far more than chance alone would have it: most have none, some
have dozens. Where each person has a rate of their own and rates are spread as a gamma distribution
of shape ``SHAPE`` (counts are then negative binomial), the rate to expect of someone with ``n``
others is proportional to ``SHAPE + n`` (Gelman et al., Bayesian Data Analysis, 2.6). So are the
odds that an ambiguous spot is one more of them. A spot in a scan without any sure lesion has to
look more like a microbleed than one beside twenty.

The same holds for what only looks like a microbleed. On scanners, and simulators, that the network
was not trained on there are mimics that it has not met: more of them, and far more in some scans
than in others. A scan that has many doubtful spots has many such mimics, so that each is likelier
to be one more of them.
"""

from __future__ import annotations

import numpy as np
from scipy.spatial.distance import cdist

from cmb_bids.same_lesion import FARTHEST_MM, suppress_neighbours

SHAPE = 1.0  # calibration hardly changes from 0.3 to 2
DOUBTFUL = 0.1  # a spot that is a microbleed with this probability looks like one


def expected_others(chances: np.ndarray, points_mm: np.ndarray) -> np.ndarray:
    """How many other microbleeds to expect in the scan, for each candidate.

    Candidates within 5 mm of one another are one spot, which counts as its likeliest.

    Parameters
    ----------
    chances : (n,) array
        Of being a microbleed.
    points_mm : (n, 3) array

    Returns
    -------
    (n,) array
    """
    return _sum_over_others(chances, chances, points_mm)


def expected_look_alikes(chances: np.ndarray, points_mm: np.ndarray) -> np.ndarray:
    """How many other spots of the scan to expect to look like a microbleed and be none.

    Parameters
    ----------
    chances : (n,) array
        Of being a microbleed.
    points_mm : (n, 3) array

    Returns
    -------
    (n,) array
        For each candidate, as `expected_others` counts spots.
    """
    chances = np.asarray(chances, dtype=float)
    return _sum_over_others(np.where(chances >= DOUBTFUL, 1 - chances, 0.0), chances, points_mm)


def _sum_over_others(values: np.ndarray, chances: np.ndarray, points_mm: np.ndarray) -> np.ndarray:
    """Sum (n,) of values (n,) over the spots that are not the candidate's own."""
    points_mm = np.asarray(points_mm, dtype=float).reshape(-1, 3)
    spots = suppress_neighbours(points_mm, chances, FARTHEST_MM)
    apart = cdist(points_mm, points_mm[spots]) > FARTHEST_MM
    return apart @ np.asarray(values, dtype=float)[spots]


def weigh_by_burden(
    probabilities: np.ndarray, points_mm: np.ndarray, usual_burden: float
) -> np.ndarray:
    """Probabilities with the scan's other candidates taken into account.

    Parameters
    ----------
    probabilities : (n, 3) array
        Of microbleed, calcification, other, each candidate seen by itself.
    points_mm : (n, 3) array
    usual_burden : float
        The number of others at which nothing changes.

    Returns
    -------
    (n, 3) array
        Rows sum to one; calcification and other keep their ratio.
    """
    probabilities = np.asarray(probabilities, dtype=float)
    if not len(probabilities):
        return probabilities
    return weigh_by_others(
        probabilities, expected_others(probabilities[:, 0], points_mm), usual_burden
    )


def weigh_by_others(
    probabilities: np.ndarray, others: np.ndarray, usual_burden: float
) -> np.ndarray:
    """The same where the expected number of others (n,) is known already."""
    return _with_odds(probabilities, (SHAPE + others) / (SHAPE + usual_burden))


def weigh_by_look_alikes(
    probabilities: np.ndarray, points_mm: np.ndarray, mimics_elsewhere: float
) -> np.ndarray:
    """Probabilities where mimics are more common than among the scans of the calibration.

    The odds of a microbleed are divided by ``mimics_elsewhere`` and by ``SHAPE`` and the number of
    other look-alikes: the rate of mimics to expect of a scan that has so many.

    Parameters
    ----------
    probabilities : (n, 3) array
        Of microbleed, calcification, other.
    points_mm : (n, 3) array
    mimics_elsewhere : float
        How many times as common mimics are in a scan without another look-alike.

    Returns
    -------
    (n, 3) array
        Rows sum to one; calcification and other keep their ratio.
    """
    probabilities = np.asarray(probabilities, dtype=float)
    if not len(probabilities):
        return probabilities
    look_alikes = expected_look_alikes(probabilities[:, 0], points_mm)
    return _with_odds(probabilities, 1 / (mimics_elsewhere * (SHAPE + look_alikes)))


def _with_odds(probabilities: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """Probabilities (n, 3) with the odds of a microbleed changed by a factor (n,)."""
    weighed = probabilities.copy()
    weighed[:, 0] *= factor
    return weighed / weighed.sum(axis=1, keepdims=True)
