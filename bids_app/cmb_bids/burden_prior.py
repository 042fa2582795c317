"""What the rest of a scan says about one candidate: who has microbleeds tends to have several.

Their number differs between people far more than chance alone would have it: most have none, some
have dozens. Where each person has a rate of their own and rates are spread as a gamma distribution
of shape ``SHAPE`` (counts are then negative binomial), the rate to expect of someone with ``n``
others is proportional to ``SHAPE + n`` (Gelman et al., Bayesian Data Analysis, 2.6). So are the
odds that an ambiguous spot is one more of them. A spot in a scan without any sure lesion has to
look more like a microbleed than one beside twenty.
"""

from __future__ import annotations

import numpy as np
from scipy.spatial.distance import cdist

from cmb_bids.same_lesion import FARTHEST_MM, suppress_neighbours

SHAPE = 1.0  # calibration hardly changes from 0.3 to 2


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
    points_mm = np.asarray(points_mm, dtype=float).reshape(-1, 3)
    spots = suppress_neighbours(points_mm, chances, FARTHEST_MM)
    apart = cdist(points_mm, points_mm[spots]) > FARTHEST_MM
    return apart @ np.asarray(chances, dtype=float)[spots]


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
    weighed = probabilities.copy()
    weighed[:, 0] *= (SHAPE + others) / (SHAPE + usual_burden)
    return weighed / weighed.sum(axis=1, keepdims=True)
