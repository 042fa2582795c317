"""Statistics over a cohort: prevalence, adjusted models, reference curves, and their limits.

Functions here take data frames and give numbers; they know no files. docs/statistics.md says
what each method is, where it comes from and what it cannot do.
"""

from cmb_bids.statistics.settings import AnalysisSettings, Detector

__all__ = ["AnalysisSettings", "Detector"]
