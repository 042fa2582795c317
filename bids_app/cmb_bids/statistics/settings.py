"""What the user may choose about the group statistics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cmb_bids.errors import UsageError

AGE_BANDS = (45.0, 55.0, 65.0, 75.0, 85.0)


@dataclass(frozen=True)
class Detector:
    """How often the detector is right about a *participant* (any microbleed or none).

    Attributes
    ----------
    sensitivity : float
        Share called positive among ``n_with`` participants who have a microbleed.
    specificity : float
        Share called negative among ``n_without`` participants who have none.
    n_with, n_without : int
        Sizes of the sample the shares were measured in.
    source : str
        Where they were measured, in words for the reader.
    """

    sensitivity: float
    n_with: int
    specificity: float
    n_without: int
    source: str

    def __post_init__(self) -> None:
        where = "configuration, group.detector"
        if not (0 <= self.sensitivity <= 1 and 0 <= self.specificity <= 1):
            raise UsageError(
                where, "sensitivity and specificity are shares from 0 to 1", "Change them"
            )
        if self.n_with < 1 or self.n_without < 1:
            raise UsageError(
                where,
                "the numbers of participants behind sensitivity and specificity are missing",
                "Give n_with and n_without, at least 1 each",
            )
        if self.sensitivity + self.specificity <= 1:
            raise UsageError(
                where,
                f"sensitivity {self.sensitivity:g} and specificity {self.specificity:g} are no "
                "better than chance, so that nothing can be corrected with them",
                "Leave group.detector out",
            )


@dataclass(frozen=True)
class AnalysisSettings:
    """Choices of the group statistics (section ``group`` of the configuration).

    Attributes
    ----------
    covariates : tuple of str, optional
        Columns the models adjust for; None takes age and sex where they are recognised.
    age, sex, site : str, optional
        Names of these columns; None recognises them by their common names.
    age_bands : tuple of float
        Where one age band ends and the next begins, years, rising.
    detector : Detector, optional
        None where prevalence cannot be corrected.
    reference : bool
        Whether to fit reference curves.
    levels : mapping
        Column -> code -> meaning, as ``Levels`` of participants.json.
    """

    covariates: tuple[str, ...] | None = None
    age: str | None = None
    sex: str | None = None
    site: str | None = None
    age_bands: tuple[float, ...] = AGE_BANDS
    detector: Detector | None = None
    reference: bool = True
    levels: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rising = all(a < b for a, b in zip(self.age_bands, self.age_bands[1:], strict=False))
        if not self.age_bands or not rising:
            raise UsageError(
                "configuration, group.age_bands", "the ages do not rise", "Give rising ages"
            )

    @classmethod
    def from_config(
        cls,
        section: Mapping[str, Any] | None,
        covariates: Sequence[str] | None = None,
        descriptions: Mapping[str, Any] | None = None,
    ) -> AnalysisSettings:
        """Settings from the configuration, the command line and participants.json.

        Parameters
        ----------
        section : mapping, optional
            Section ``group`` of the configuration; absent keys keep their defaults.
        covariates : sequence of str, optional
            From the command line; they replace those of the configuration.
        descriptions : mapping, optional
            participants.json.

        Raises
        ------
        UsageError
            The detector's figures are impossible, or age bands do not rise.
        """
        section = dict(section or {})
        named = section.get("covariates") if covariates is None else covariates
        detector = section.get("detector")
        levels = {
            name: {str(code): str(text) for code, text in said["Levels"].items()}
            for name, said in (descriptions or {}).items()
            if isinstance(said, Mapping) and isinstance(said.get("Levels"), Mapping)
        }
        return cls(
            covariates=None if named is None else tuple(dict.fromkeys(named)),
            age=section.get("age_column"),
            sex=section.get("sex_column"),
            site=section.get("site_column"),
            age_bands=tuple(float(age) for age in section.get("age_bands") or AGE_BANDS),
            detector=Detector(**detector) if detector else None,
            reference=bool(section.get("reference", True)),
            levels=levels,
        )
