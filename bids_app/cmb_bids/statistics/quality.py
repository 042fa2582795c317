"""Quality of the scans by site, or by protocol where the site is not known."""

from __future__ import annotations

from typing import Any

import pandas as pd

from cmb_bids.columns import FAIL, PASS, WARN
from cmb_bids.statistics.covariates import as_numbers, as_text

UNKNOWN = "unknown"
SNR_COLUMN = "signal_to_noise"


def tabulate_quality(scans: pd.DataFrame, by: str, groups: pd.Series) -> dict[str, Any]:
    """Verdicts and medians by group.

    Parameters
    ----------
    scans : DataFrame
        A row per processed participant, with ``qc_status`` and, where known,
        ``signal_to_noise`` and ``mask_volume_ml``.
    by : str
        What the groups are: 'site', 'protocol' or 'all'.
    groups : Series
        Group of each row; missing is 'unknown'.

    Returns
    -------
    dict
        ``by`` and ``rows``: ``group``, ``n``, ``pass``, ``warn``, ``fail``, ``snr_median``,
        ``mask_volume_ml_median`` (None where nobody has it).
    """
    names = as_text(groups).map(lambda v: UNKNOWN if v is None else v)
    status = as_text(scans["qc_status"]) if "qc_status" in scans else pd.Series(None, scans.index)
    rows = []
    for name in sorted(names.unique()):
        inside = names == name
        rows.append(
            {
                "group": name,
                "n": int(inside.sum()),
                **{s: int((status[inside] == s).sum()) for s in (PASS, WARN, FAIL)},
                "snr_median": _median(scans, SNR_COLUMN, inside),
                "mask_volume_ml_median": _median(scans, "mask_volume_ml", inside),
            }
        )
    return {"by": by, "rows": rows}


def _median(scans: pd.DataFrame, column: str, inside: pd.Series) -> float | None:
    """Median of a column over some rows, None where there is none."""
    if column not in scans:
        return None
    values = as_numbers(scans.loc[inside, column]).dropna()
    return None if values.empty else float(values.median())
