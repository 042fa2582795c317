"""The model card: what a network was made from and what it is worth, said without flattery."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cmb_bids.volumes import read_json, write_text

LIMITS = """\
- Trained and measured on **simulated** scans only. No real labelled scan was seen. The figures
  say how the network does on the simulator's idea of lesions and mimics; on real scans expect
  worse, and never set them beside figures from patients (such as the 70.9 % precision of Liu et
  al. 2019).
- Research use only; not a medical device.
- Probabilities are calibrated to the simulated mix of cases, in which lesions are commoner than
  in a population study.
- Training cases have simulated coil shading but a simulated brain mask, randomly displaced: the
  registration that makes the mask of real scans takes too long for thousands of cases."""
TUNED_LIMITS = """\
- Started from a network trained on simulated scans, then fine-tuned on the labelled scans above.
- The figures are of participants left out of the tuning, as labelled by whoever made the labels.
- Research use only; not a medical device."""
METRIC_NAMES = {
    "sensitivity": "sensitivity",
    "precision": "precision",
    "f1": "F1",
    "false_positives_per_case": "false positives per case",
    "false_positives_per_lesion_free_case": "false positives per lesion-free case",
    "calcifications_called_microbleed": "calcification candidates called microbleed",
}
# The same in what `cmb_bids.training.scoring.evaluate_cases` returns, where it is named otherwise.
KEY_IN_TEST = {
    "false_positives_per_lesion_free_case": "false_positives_per_case_without_microbleeds"
}


def write_card(metrics: Path, comparison: Path, output: Path) -> None:
    """Write the card of one network from its metrics and the comparison."""
    write_text(output, model_card(read_json(metrics), read_json(comparison)))


def model_card(metrics: Mapping[str, Any], comparison: Mapping[str, Any] | None = None) -> str:
    """The card (Markdown) of the metrics that `cmb_bids.training.steps` writes beside the weights.

    Parameters
    ----------
    metrics : mapping
        Keys ``model``, ``data``, ``training``, ``calibration``, ``test``.
    comparison : mapping, optional
        What `cmb_bids.training.comparison.compare` wrote.
    """
    simulated = "simulated " if metrics["simulated"] else ""
    parts = [
        f"# {metrics['model']['name']} {metrics['model']['version']}",
        _what(metrics["model"]),
        f"## {simulated.capitalize()}test cases" if simulated else "## Test cases",
        _headline(metrics, simulated),
        f"By protocol (definite calls{', simulated' if simulated else ''}):",
        _by_protocol(metrics["test"]["by_protocol"]),
        "By diameter of the lesion's core, which looks larger in the image:",
        _by_size(metrics["test"]["by_core_diameter"]),
    ]
    if comparison is not None:
        parts += ["## Beside other detectors", compared(comparison)]
    parts += ["## Made from", _made_from(metrics)]
    parts += ["## Limits", LIMITS if simulated else TUNED_LIMITS]
    return "\n\n".join(parts) + "\n"


def _what(model: Mapping[str, Any]) -> str:
    geometry = model["geometry"]
    size = " x ".join(str(n) for n in geometry["shape"])
    spacing = " x ".join(f"{mm:g}" for mm in geometry["spacing_mm"])
    return (
        "Tells microbleeds from calcifications and other mimics among the candidates that "
        f"cmb-bids finds. Input: patches of {size} voxels of {spacing} mm, channels "
        f"{' and '.join(model['channels'])}. Output: probabilities of microbleed, calcification "
        f"and other. Residual network, {model['parameters']:,} weights, safetensors."
    )


def _headline(metrics: Mapping[str, Any], simulated: str) -> str:
    test = metrics["test"]
    columns = [test["definite"], test["possible_and_definite"]]
    rows = [["threshold", *(shown(column["threshold"]) for column in columns)]]
    for name, said in METRIC_NAMES.items():
        key = KEY_IN_TEST.get(name, name)
        rows.append([said, *(shown(column[key]) for column in columns)])
    rates = test["froc_sensitivity_at_false_positives_per_case"]
    return "\n".join(
        [
            f"{test['definite']['cases']} {simulated}cases with {test['definite']['microbleeds']} "
            "microbleeds, of participants not used in training or calibration; a hit is a "
            "one-to-one match within 5 mm, lesions without a candidate count as missed.",
            "",
            table([simulated.strip() or "measure", "definite", "definite + possible"], rows),
            "",
            table(
                ["false positives per case", *rates],
                [[f"{simulated}sensitivity", *(shown(value) for value in rates.values())]],
            ),
            "",
            f"Microbleeds with a candidate: {shown(test['candidate_recall'])}, which no network "
            f"can exceed; candidates per case: {shown(test['candidates_per_case'])}; expected "
            "calibration error of the microbleed probability: "
            f"{shown(test['expected_calibration_error'])}.",
        ]
    )


def compared(comparison: Mapping[str, Any]) -> str:
    """All detectors in one table, and what the columns mean (Markdown)."""
    rows = []
    for entry in comparison["contenders"]:
        metrics, against = entry["metrics"], entry.get("against_reference", {})
        rows.append(
            [
                _title(entry),
                *(interval(metrics[name]) for name in METRIC_NAMES),
                shown(entry["froc"]["1"]),
                shown(against.get("f1", {}).get("p")),
            ]
        )
    header = ["simulated", *METRIC_NAMES.values(), "sensitivity at 1 false positive per case"]
    reference = next(
        (e["title"] for e in comparison["contenders"] if e["name"] == comparison["reference"]), "-"
    )
    swi = comparison["cases_with_swi_for_magnitude"]
    return "\n".join(
        [
            f"The same {comparison['cases']} simulated test cases with "
            f"{comparison['microbleeds']} microbleeds for all, thresholds chosen on the same "
            "validation cases; 95 % intervals from "
            f"{comparison['bootstrap_resamples']} bootstrap resamples of participants; *p* of the "
            f"F1 against {reference} from {comparison['random_swaps']} random swaps within "
            "participants. Networks other than the shipped ones had the same training cases and "
            f"budget ({_budget(comparison)}), are calibrated without the candidate's score and see "
            "each patch once, not in eight mirror images. "
            "Magnitude has candidates of its own"
            + (f"; in {swi} cases they are those of a scanner's SWI." if swi else "."),
            "",
            table([*header, "p (F1)"], rows),
        ]
    )


def _title(entry: Mapping[str, Any]) -> str:
    contrast = entry.get("ranked_by")
    return f"{entry['title']} ({contrast})" if contrast not in (None, "score") else entry["title"]


def _budget(comparison: Mapping[str, Any]) -> str:
    for entry in comparison["contenders"]:
        if entry["name"] == comparison["reference"] and "training" in entry:
            return f"{entry['training']['cases']} cases, {entry['training']['steps']} steps"
    return "see comparison.json"


def _by_size(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = []
    for row in rows:
        upper = f"-{row['below_mm']:g}" if row["below_mm"] else " and more"
        figures = (row["microbleeds"], row["candidate_recall"], row["sensitivity"])
        lines.append([f"{row['from_mm']:g}{upper} mm", *(shown(value) for value in figures)])
    return table(["core", "microbleeds", "with a candidate", "sensitivity, definite"], lines)


def _by_protocol(protocols: Mapping[str, Mapping[str, Any]]) -> str:
    keys = ("cases", "microbleeds", "sensitivity", "precision", "false_positives_per_case")
    return table(
        ["protocol", *(key.replace("_", " ") for key in keys)],
        [[name, *(shown(values[key]) for key in keys)] for name, values in protocols.items()],
    )


def _start(training: Mapping[str, Any]) -> str:
    before = training.get("initialised_from")
    return f"from {before['name']} {before['sha256'][:8]} on, " if before else ""


def _made_from(metrics: Mapping[str, Any]) -> str:
    data, training, calibration = metrics["data"], metrics["training"], metrics["calibration"]
    again = training.get("measured_again")
    counts = ", ".join(f"{n} {name}" for name, n in training["candidates"].items())
    learned = _source(training["data"] if again else data)
    lines = [
        f"- Data: {learned}; training candidates: {counts}.",
        f"- Training: seed {training['seed']}, {_start(training)}{training['steps']} steps of "
        f"{training['batch_size']} patches, {training['minutes']:g} minutes on "
        f"{training['device']}; {training['transplanted']:.0%} of the microbleeds that can be "
        "seen there put where a mimic is; veins drawn into "
        f"{training['drawn_veins']:.0%} of the patches.",
        f"- Code: version {metrics['model']['version']}, commit {training['commit']}.",
        f"- Command: `{training['command']}`",
    ]
    if again:
        lines += [
            f"- Calibrated and measured again, weights unchanged ({again['sha256'][:8]}): "
            f"{_source(data)}; commit {again['commit']}.",
            f"- Command: `{again['command']}`",
        ]
    return "\n".join([*lines, _calibration(calibration)])


def _source(data: Mapping[str, Any]) -> str:
    """Scans, and how they are split."""
    if "keys" in data:
        keys = ", ".join(f"`{key}`" for key in data["keys"])
        scans = f"{data['made']} simulated scans (seed {data['seed']}, code {keys})"
    else:
        scans = f"{data['made']} labelled scans, {data['description']}"
    split = ", ".join(f"{n} {name}" for name, n in data["split"].items())
    return f"{scans}, split by participant ({split})"


def _calibration(calibration: Mapping[str, Any]) -> str:
    return (
        f"- Calibration on held-out cases: temperature {calibration['temperature']:.4g}, "
        f"offsets {_numbers(calibration['bias'])}, weights of the candidate score "
        f"{_numbers(calibration['score_weights'])}; {_usual_burden(calibration)}; "
        f"{_mimics_elsewhere(calibration)}."
    )


def last_measured(training: Mapping[str, Any]) -> Mapping[str, Any]:
    """The ``command`` behind a network's figures and its ``commit``, which has the network."""
    measured: Mapping[str, Any] = training.get("measured_again", training)
    return measured


def measured_by(training: Mapping[str, Any]) -> str:
    """The command behind a network's figures."""
    return str(last_measured(training)["command"])


def _usual_burden(calibration: Mapping[str, Any]) -> str:
    burden = calibration["usual_burden"]
    if burden is None:
        return "the scan's burden does not weigh"
    return f"odds unchanged beside {burden:.2g} other microbleeds"


def _mimics_elsewhere(calibration: Mapping[str, Any]) -> str:
    mimics = calibration.get("mimics_elsewhere")
    if mimics is None:
        return "nothing changed for scans from elsewhere"
    return f"mimics taken to be {mimics:.2g} times as common elsewhere, more so beside others"


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def gain_table(title: str, result: Mapping[str, Any]) -> str:
    """What `cmb_bids.training.comparison.before_and_after` found, as a table (Markdown)."""
    rows = [
        [
            said,
            interval(result["before"][name]),
            interval(result["after"][name]),
            shown(result["difference"][name]["p"]),
        ]
        for name, said in METRIC_NAMES.items()
    ]
    errors = result["calibration_error"]
    rows.append(
        ["expected calibration error", shown(errors["before"]), shown(errors["after"]), "-"]
    )
    return table([title, "before", "after tuning", "p"], rows)


def shown(value: float | None) -> str:
    """A figure, or a dash where there is none."""
    return "-" if value is None else f"{value:.4g}"


def interval(row: Mapping[str, float | None]) -> str:
    """A figure with its interval."""
    if row["value"] is None:
        return "-"
    return f"{row['value']:.3f} ({row['low']:.2f}-{row['high']:.2f})"
