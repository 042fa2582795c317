"""What every column of the lesion and scans tables means, for the JSON beside them.

Imports nothing heavy, so that the command line and the group level can read it quickly.
"""

from __future__ import annotations

from typing import Any

PASS, WARN, FAIL = "pass", "warn", "fail"

MARS_REGIONS = {
    "frontal": "Frontal lobe",
    "parietal": "Parietal lobe",
    "temporal": "Temporal lobe",
    "occipital": "Occipital lobe",
    "insula": "Insula",
    "basal_ganglia": "Caudate, putamen or pallidum",
    "thalamus": "Thalamus",
    "internal_capsule": "Internal capsule",
    "external_capsule": "External capsule",
    "corpus_callosum": "Corpus callosum",
    "deep_white_matter": "Deep and periventricular white matter",
    "brainstem": "Brainstem",
    "cerebellum": "Cerebellum",
}
BOMBS_REGIONS = {
    "cortex": "Cortex and grey-white junction",
    "subcortical_white_matter": "Subcortical white matter",
    "basal_ganglia": "Caudate, putamen or pallidum",
    "internal_external_capsule": "Internal or external capsule",
    "thalamus": "Thalamus",
    "brainstem": "Brainstem",
    "cerebellum": "Cerebellum",
}

LESION_COLUMNS: dict[str, dict[str, Any]] = {
    "index": {"Description": "Label of the lesion in the image of the same name."},
    "name": {"Description": "Kind of lesion and its label; unique in the table."},
    "x": {
        "Description": (
            "Centroid, scanner right; the candidate's place where that is more than 3 mm away."
        ),
        "Units": "mm",
    },
    "y": {"Description": "The same, scanner anterior.", "Units": "mm"},
    "z": {"Description": "The same, scanner superior.", "Units": "mm"},
    "probability": {
        "Description": "The network's probability that this is a microbleed, from 0 to 1, "
        "the scan's other microbleeds and the sign of its magnetic moment taken into account."
    },
    "p_calcification": {
        "Description": "The network's probability that this is a calcification, from 0 to 1, "
        "the sign of its magnetic moment taken into account."
    },
    "certainty": {
        "Description": "How sure the network is of the kind of lesion.",
        "Levels": {
            "definite": "At or above the definite threshold of the model or configuration",
            "possible": "Below that, at or above the possible threshold; of a calcification, that "
            "it is not likelier than not or its magnetic moment not clearly other than zero",
        },
    },
    "counted": {
        "Description": (
            "Whether the lesion enters the counts of the scans table: within the STRIVE range "
            "(extent_mm at least 2 and diameter_mm at most 10 unless configured otherwise) and the "
            "scan's brain mask passed its check. Lesions that are not counted are listed all the "
            "same."
        ),
        "Levels": {"true": "Counted", "false": "Listed only"},
    },
    "diameter_mm": {
        "Description": (
            "Apparent diameter: that of the sphere with the volume in volume_mm3. It includes "
            "blooming and grows with field strength and echo time."
        ),
        "Units": "mm",
    },
    "volume_mm3": {
        "Description": (
            "Volume of the voxels at least half as dark as the darkest one, against the tissue "
            "around; on the susceptibility-weighted image for microbleeds where there is one, "
            "else on the magnitude."
        ),
        "Units": "mm^3",
    },
    "hemisphere": {
        "Description": "Side of the brain.",
        "Levels": {"left": "Left", "right": "Right", "midline": "On the midline"},
    },
    "mars_region": {
        "Description": "Region of the Microbleed Anatomical Rating Scale.",
        "Levels": MARS_REGIONS,
    },
    "mars_class": {
        "Description": "Class of the Microbleed Anatomical Rating Scale.",
        "Levels": {
            "lobar": "Cortex and subcortical white matter of a lobe, or insula",
            "deep": "Deep grey nuclei, capsules, corpus callosum, deep white matter",
            "infratentorial": "Brainstem or cerebellum",
        },
    },
    "bombs_region": {
        "Description": "Region of the Brain Observer MicroBleed Scale.",
        "Levels": BOMBS_REGIONS,
    },
    "bombs_class": {
        "Description": "Class of the Brain Observer MicroBleed Scale.",
        "Levels": {
            "lobar": "Cortex, grey-white junction or subcortical white matter",
            "deep": "Basal ganglia, capsules or thalamus",
            "posterior_fossa": "Brainstem or cerebellum",
        },
    },
    "extent_mm": {
        "Description": (
            "Greatest distance between two corners of the lesion's voxels: the longest diameter a "
            "reader could measure. It includes the edges of the voxels, so it is never smaller "
            "than the diagonal of one."
        ),
        "Units": "mm",
    },
    "structure": {
        "Description": (
            "Name of the structure the lesion lies in or next to, in the words of the "
            "parcellation that named it (see region_source)."
        )
    },
    "region_source": {
        "Description": "What named structure and regions.",
        "Levels": {
            "atlas": "The built-in atlas, registered to the scan",
            "parcellation": "The user's own parcellation",
            "parcellation+atlas": (
                "The user's own parcellation, whose structure the built-in atlas divided, such "
                "as the undivided white matter of the cerebrum"
            ),
        },
    },
    "x_mni": {"Description": "Centroid in MNI152 space, right.", "Units": "mm"},
    "y_mni": {"Description": "Centroid in MNI152 space, anterior.", "Units": "mm"},
    "z_mni": {"Description": "Centroid in MNI152 space, superior.", "Units": "mm"},
    "moment_ppm_mm3": {
        "Description": (
            "Magnetic moment: susceptibility against the tissue around times volume, from a dipole "
            "fitted to the unwrapped phase around the lesion. Positive is paramagnetic (blood), "
            "negative diamagnetic (calcium). It does not grow with field strength or echo time."
        ),
        "Units": "ppm*mm^3",
    },
    "moment_sd_ppm_mm3": {
        "Description": (
            "Standard deviation of moment_ppm_mm3, from the fit, from fits where the scan shows no "
            "lesion, and 6 % of the moment per mm of the longest voxel edge (at least 10 %) for "
            "what a dipole cannot describe."
        ),
        "Units": "ppm*mm^3",
    },
    "moment_status": {
        "Description": "Whether a moment could be fitted, and if not why.",
        "Levels": {
            "fitted": "There is a moment",
            "no_phase": "The scan has no phase",
            "filtered_phase": "The scanner had filtered the phase, no one knows how",
            "no_field_strength": "The sidecar gives no MagneticFieldStrength",
            "few_voxels": "Too few voxels around the lesion are in the brain and have signal",
        },
    },
    "moment_verdict": {
        "Description": (
            "Whether the sign of the moment agrees with the kind of lesion, on which it had its "
            "say: a clear one changes the odds of blood against calcium by 50."
        ),
        "Levels": {
            "agrees": "Same sign, at least 2 standard deviations from zero",
            "unclear": "Within 2 standard deviations of zero",
            "contradicts": "Opposite sign, at least 2 standard deviations from zero",
        },
    },
}

# Structures that reach across the midline; of all others a lesion is on one side.
_MIDLINE_REGIONS = frozenset(
    ("corpus_callosum", "brainstem", "cerebellum", "subcortical_white_matter")
)
_SIDES = {"left": "left", "right": "right", "midline": "on the midline"}
# On either scale, what this tool calls definite has no suffix.
MARS_CERTAINTIES = {"definite": "", "possible": "_possible"}
BOMBS_CERTAINTIES = {"definite": "", "possible": "_uncertain"}
BOMBS_SIZES = {"below_5mm": "below 5 mm", "from_5mm": "of 5 mm and more"}
BOMBS_SIZE_LIMIT_MM = 5.0


def sides_of(region: str) -> tuple[str, ...]:
    """The values of ``hemisphere`` that a region of either scale has columns for."""
    return tuple(_SIDES) if region in _MIDLINE_REGIONS else ("left", "right")


def mars_columns(certainty: str) -> dict[tuple[str, str], str]:
    """Column of each MARS region and side, for a certainty (``definite`` or ``possible``)."""
    return {
        (region, side): f"mars_{region}_{side}{MARS_CERTAINTIES[certainty]}"
        for region in MARS_REGIONS
        for side in sides_of(region)
    }


def bombs_columns(certainty: str) -> dict[tuple[str, str, str], str]:
    """Column of each BOMBS region, side and size (`BOMBS_SIZES`), for a certainty."""
    return {
        (region, side, size): f"bombs_{region}_{side}_{size}{BOMBS_CERTAINTIES[certainty]}"
        for region in BOMBS_REGIONS
        for side in sides_of(region)
        for size in BOMBS_SIZES
    }


def unplaced_column(scale: str, certainty: str) -> str:
    """Name of the column of lesions without a place on a scale (``mars`` or ``bombs``)."""
    suffixes = MARS_CERTAINTIES if scale == "mars" else BOMBS_CERTAINTIES
    return f"{scale}_unplaced{suffixes[certainty]}"


def _wide_columns() -> dict[str, dict[str, Any]]:
    """Counts by region and side on both scales: definite first, then possible."""
    texts: dict[str, str] = {}
    for certainty in MARS_CERTAINTIES:
        start = f"{certainty.capitalize()} counted microbleeds by MARS: "
        for (region, side), name in mars_columns(certainty).items():
            texts[name] = f"{start}{MARS_REGIONS[region]}, {_SIDES[side]}."
        texts[unplaced_column("mars", certainty)] = _describe_unplaced("MARS", certainty)
    for certainty, word in (("definite", "Certain"), ("possible", "Uncertain")):
        start = f"{word} ({certainty}) counted microbleeds"
        for (region, side, size), name in bombs_columns(certainty).items():
            place = f"{BOMBS_REGIONS[region]}, {_SIDES[side]}"
            texts[name] = f"{start} {BOMBS_SIZES[size]} by BOMBS: {place}."
        texts[unplaced_column("bombs", certainty)] = _describe_unplaced("BOMBS", certainty)
    return {name: {"Description": text} for name, text in texts.items()}


def _describe_unplaced(scale: str, certainty: str) -> str:
    return (
        f"{certainty.capitalize()} counted microbleeds without a region or side on {scale}. "
        f"With them the {scale} columns add up to cmb_{certainty}."
    )


# The first ten are a contract; later stages add columns at the end and rename none.
SCAN_COLUMNS: dict[str, dict[str, Any]] = {
    "filename": {
        "Description": (
            "The image of the scan's microbleeds, relative to the folder of this table; "
            "source_filename names the raw image."
        )
    },
    "cmb_definite": {
        "Description": "Number of definite microbleeds that are counted (2 to 10 mm)."
    },
    "cmb_possible": {
        "Description": (
            "Number of possible microbleeds that are counted, not included in cmb_definite."
        )
    },
    "cmb_lobar": {"Description": "Definite counted microbleeds whose MARS class is lobar."},
    "cmb_deep": {"Description": "Definite counted microbleeds whose MARS class is deep."},
    "cmb_infratentorial": {
        "Description": (
            "Definite counted microbleeds whose MARS class is infratentorial. The three classes "
            "add up to cmb_definite unless a lesion lies outside the atlas."
        )
    },
    "calcification": {
        "Description": (
            "Number of calcifications, definite and possible, of any size (rows of the "
            "calcification table). Without phase, blood and calcium are told apart by their look "
            "alone."
        )
    },
    "pattern": {
        "Description": (
            "Where the definite counted microbleeds lie (a flag for research, not a diagnosis)."
        ),
        "Levels": {
            "none": "No definite counted microbleed",
            "strictly_lobar": "Lobar only",
            "strictly_deep_infratentorial": "Deep or infratentorial, none lobar",
            "mixed": "Lobar, and deep or infratentorial",
        },
    },
    "qc_status": {
        "Description": "Whether the counts can be used.",
        "Levels": {
            PASS: "Nothing odd was seen",
            WARN: "Counted, but read qc_reason first",
            FAIL: "Not counted: counts and pattern are n/a",
        },
    },
    "qc_reason": {"Description": "Why qc_status is not pass; reasons are separated by '; '."},
    "source_filename": {"Description": "First magnitude image of the scan in the raw dataset."},
    "burden_class": {
        "Description": "Class of cmb_definite.",
        "Levels": {
            "0": "None",
            "1": "One",
            "2-4": "Two to four",
            "5-10": "Five to ten",
            ">10": "More than ten",
        },
    },
    "cmb_expected": {
        "Description": (
            "Expected number of microbleeds: sum of the probabilities of everything that could "
            "count. That is every listed lesion of a counted diameter, calcifications included, "
            "and every candidate below the possible threshold that is not part of a listed "
            "lesion."
        )
    },
    "p_ge_1": {
        "Description": (
            "Probability of at least one microbleed, from the same probabilities as cmb_expected, "
            "taken as independent (Poisson-binomial)."
        )
    },
    "p_ge_2": {"Description": "Probability of at least two microbleeds, as p_ge_1."},
    "p_gt_4": {"Description": "Probability of more than four microbleeds, as p_ge_1."},
    "p_gt_10": {"Description": "Probability of more than ten microbleeds, as p_ge_1."},
    "calcification_definite": {
        "Description": (
            "Number of definite calcifications of any size. Where moments can be fitted to the "
            "phase, those whose moment is clear."
        )
    },
    "cmb_not_counted": {
        "Description": (
            "Number of definite and possible microbleeds that are listed but not counted because "
            "of their diameter."
        )
    },
    "cmb_volume_mm3": {
        "Description": "Total volume of the definite counted microbleeds, with blooming.",
        "Units": "mm^3",
    },
    "input": {
        "Description": "What the scan offered to the network.",
        "Levels": {
            "complex": "Magnitude and phase",
            "magnitude": "Magnitude alone: blood and calcium cannot be told apart by phase",
        },
    },
    "channels": {"Description": "Images the network looked at, separated by '+'."},
    "model": {"Description": "Name and version of the network."},
    "version": {"Description": "Version of cmb-bids."},
    "field_strength_t": {"Description": "Field strength of the scanner.", "Units": "T"},
    # No "Units": BIDS takes a column with units for numbers, and this is a list of them.
    "echo_times_ms": {"Description": "Echo times in milliseconds, separated by commas."},
    "voxel_size_mm": {
        "Description": "Edges of a voxel in millimetres, in the order of its axes, separated by x."
    },
    "mask_source": {
        "Description": "Where the brain mask comes from.",
        "Levels": {
            "registration": "Registered whole-head template",
            "derivatives": "Given by the user",
            "signal": "Signal threshold, because the registered mask failed its check",
        },
    },
    "mask_volume_ml": {"Description": "Volume of the brain mask that was checked.", "Units": "mL"},
    "mask_coverage": {
        "Description": "Share of the brain inside the field of view, by the registered template."
    },
    "polarity": {
        "Description": "Sign convention the phase was stored with, as found or as configured.",
        "Levels": {
            "right-handed": "Paramagnetic positive",
            "left-handed": "Paramagnetic negative; the sign was turned",
        },
    },
    "polarity_confidence": {
        "Description": "How sure the sign of the phase is.",
        "Levels": {
            "certain": "Said by the configuration",
            "strong": "Clearly shown by the field of the head or by the veins",
            "moderate": "Shown by the field of the head or by the veins, not clearly",
            "conflicting": "Head and veins disagree; the clearer of the two was believed",
            "weak": (
                "Neither showed it by itself: what both hint at was believed, or, with evidence "
                "none, right-handed was assumed"
            ),
        },
    },
    "polarity_evidence": {
        "Description": "What showed the sign of the phase.",
        "Levels": {
            "configuration": "The configuration",
            "head": "The field of the head",
            "veins": "The veins",
            "head and veins": "Both, and they agree",
            "none": "Nothing",
        },
    },
    "polarity_head_correlation": {
        "Description": (
            "Correlation of the phase as stored with the field of the head itself, from -1 to 1; "
            "negative where the sign had to be turned. n/a where the head was not asked."
        )
    },
    "polarity_vein_score": {
        "Description": (
            "Mean susceptibility of the darkest small structures, in standard deviations of the "
            "tissue around, with the phase as stored; negative where the sign had to be turned. "
            "n/a where the voxels are too coarse or there is too little brain to see veins."
        )
    },
    "signal_to_noise": {
        "Description": (
            "Median of the brain over the standard deviation of the noise, in the magnitude that "
            "lesions are looked for in (echoes combined)."
        )
    },
    "residual_phase_rad": {
        "Description": (
            "Robust standard deviation of the high-passed phase inside the brain: what field and "
            "noise the filter has left."
        ),
        "Units": "rad",
    },
    "phase_jump_share": {
        "Description": (
            "Share of the brain where the high-passed phase jumps by more than pi from one voxel "
            "to the next: wraps that were left, or noise."
        )
    },
    "phase_missing_share": {
        "Description": "Share of the brain without phase: not finite, or exactly zero."
    },
    "brain_left_out_share": {
        "Description": (
            "Share of what looks like brain, without registration, that the brain mask leaves "
            "out: above the limit the mask is probably displaced and lesions are missed."
        )
    },
    "motion_ghosting": {
        "Description": (
            "Signal in the air along the phase-encoding direction from the brain beyond that in "
            "the air beside it, as a share of the brain's: ghosts of motion and flow. n/a where "
            "the image shows no air or where it was set to zero."
        )
    },
    "parcellation": {
        "Description": (
            "File name of the user's own parcellation that named the regions before the built-in "
            "atlas. n/a where the atlas alone did; qc_reason says why a given one was not used."
        )
    },
    **_wide_columns(),
}
