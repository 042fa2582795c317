"""Score detections of any tool against labels: ``cmb-lab evaluate``.

Rules
-----
* A detection hits a lesion when their centres are within 5 mm; each lesion is hit at most once
  and each detection hits at most one lesion (Hungarian assignment: as many pairs as possible,
  then the least total distance).
* Possible lesions and lesions over 10 mm are neither hit nor missed, and a detection on one is
  neither hit nor false. A detection that is only possible, or is not counted, is left out too.
* Every scan that was processed and labelled counts, lesion-free ones included; false positives
  there are punished, and also given on their own. A labelled scan without a result is never
  dropped in silence: it is named, and its lesions are missed in ``sensitivity_all_labelled``.
* Intervals come from resampling participants, not lesions: lesions of one brain are alike.

Figures from simulated scans say how the parts of the method compare. They are not comparable with
figures published on patients.

Modules: `files`, `points`, `grouping` and `cohort` read; `matching` pairs points; `counts`,
`froc` and `calibration` reduce a matched scan to sums; `metrics` turns sums into figures;
`bootstrap` resamples them; `scored`, `subsets`, `details` and `score` put a cohort together,
`comparison` two; `crops` and `gallery` draw errors, `tables` writes, `cli` is the command.
"""

from cmb_bids.evaluate.matching import MATCHING_DISTANCE_MM, match_points
from cmb_bids.evaluate.score import evaluate_cohort, evaluate_derivatives

__all__ = ["MATCHING_DISTANCE_MM", "evaluate_cohort", "evaluate_derivatives", "match_points"]
