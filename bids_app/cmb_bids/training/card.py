"""The model card: what a network was made from and what it is worth, said without flattery."""

from __future__ import annotations

from typing import Any

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


def model_card(metrics: dict[str, Any]) -> str:
    """The card (Markdown) of the metrics that `cmb_bids.training.cli` writes beside the weights.

    Parameters
    ----------
    metrics : dict
        Keys ``model``, ``data``, ``training``, ``calibration``, ``test``, ``symmetry_ranking`` and,
        where it was measured, ``frst_alone``.
    """
    parts = [
        f"# {metrics['model']['name']} {metrics['model']['version']}",
        _what(metrics["model"]),
        "## Simulated test cases",
        _headline(metrics),
        "By protocol (definite calls, simulated):",
        _by_protocol(metrics["test"]["by_protocol"]),
        "By diameter of the lesion's core, which looks larger in the image (simulated):",
        _by_size(metrics["test"]["by_core_diameter"]),
        "## Made from",
        _made_from(metrics),
        "## Limits",
        LIMITS,
    ]
    return "\n\n".join(parts) + "\n"


def _what(model: dict[str, Any]) -> str:
    geometry = model["geometry"]
    size = " x ".join(str(n) for n in geometry["shape"])
    spacing = " x ".join(f"{mm:g}" for mm in geometry["spacing_mm"])
    return (
        "Tells microbleeds from calcifications and other mimics among the candidates that "
        f"cmb-bids finds. Input: patches of {size} voxels of {spacing} mm, channels "
        f"{' and '.join(model['channels'])}. Output: probabilities of microbleed, calcification "
        f"and other. Residual network, {model['parameters']:,} weights, safetensors."
    )


def _headline(metrics: dict[str, Any]) -> str:
    test = metrics["test"]
    rankings = {"candidate score alone": metrics["symmetry_ranking"]}
    if "frst_alone" in metrics:
        rankings["FRST alone"] = metrics["frst_alone"]
    columns = [test["definite"], test["possible_and_definite"]]
    rows = [
        ("threshold", "threshold"),
        ("sensitivity", "sensitivity"),
        ("precision", "precision"),
        ("F1", "f1"),
        ("false positives per case", "false_positives_per_case"),
        (
            "false positives per lesion-free case",
            "false_positives_per_case_without_microbleeds",
        ),
        ("calcification candidates called microbleed", "calcifications_called_microbleed"),
    ]
    lines = [
        f"{test['definite']['cases']} simulated cases with {test['definite']['microbleeds']} "
        "microbleeds, of participants not used in training or calibration; a hit is a one-to-one "
        "match within 5 mm, lesions without a candidate count as missed.",
        "",
        f"| simulated | definite | definite + possible | {' | '.join(rankings)} |",
        "|---" * (3 + len(rankings)) + "|",
    ]
    alone = {"f1": "best_f1", "sensitivity": "sensitivity_there", "precision": "precision_there"}
    for said, key in rows:
        values = [column[key] for column in columns]
        values += [ranking[alone[key]] if key in alone else None for ranking in rankings.values()]
        lines.append(f"| {said} | {' | '.join(_shown(value) for value in values)} |")
    lines += ["", _froc_table(test, rankings), "", _other_figures(metrics)]
    return "\n".join(lines)


def _froc_table(test: dict[str, Any], rankings: dict[str, dict[str, Any]]) -> str:
    key = "froc_sensitivity_at_false_positives_per_case"
    rates = list(test[key])
    return "\n".join(
        [
            f"| sensitivity (simulated) at false positives per case | {' | '.join(rates)} |",
            "|---" * (len(rates) + 1) + "|",
            *(
                f"| {name} | {' | '.join(_shown(said[key][r]) for r in rates)} |"
                for name, said in {"network": test, **rankings}.items()
            ),
        ]
    )


def _other_figures(metrics: dict[str, Any]) -> str:
    test = metrics["test"]
    frst = (
        " FRST alone ranks all places the transform proposes by its strength in one contrast "
        f"({metrics['frst_alone']['contrast']}, the best one on these cases)."
        if "frst_alone" in metrics
        else ""
    )
    return (
        f"Microbleeds with a candidate: {_shown(test['candidate_recall'])}, which no network can "
        f"exceed; candidates per case: {_shown(test['candidates_per_case'])}; expected calibration "
        f"error of the microbleed probability: {_shown(test['expected_calibration_error'])}. "
        "The candidate score (radial symmetry and depth) ranks the same candidates without a "
        "network; its threshold was chosen on the test cases themselves, in its favour."
    ) + frst


def _by_size(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| core | microbleeds | with a candidate | sensitivity, definite |",
        "|---|---|---|---|",
    ]
    for row in rows:
        upper = f"-{row['below_mm']:g}" if row["below_mm"] else " and more"
        figures = (row["microbleeds"], row["candidate_recall"], row["sensitivity"])
        lines.append(
            f"| {row['from_mm']:g}{upper} mm | {' | '.join(_shown(value) for value in figures)} |"
        )
    return "\n".join(lines)


def _by_protocol(protocols: dict[str, dict[str, Any]]) -> str:
    lines = [
        "| protocol | cases | microbleeds | sensitivity | precision | false positives per case |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {name} | {m['cases']} | {m['microbleeds']} | {_shown(m['sensitivity'])} | "
        f"{_shown(m['precision'])} | {_shown(m['false_positives_per_case'])} |"
        for name, m in protocols.items()
    ]
    return "\n".join(lines)


def _made_from(metrics: dict[str, Any]) -> str:
    data, training, calibration = metrics["data"], metrics["training"], metrics["calibration"]
    counts = ", ".join(f"{n} {name}" for name, n in data["training_candidates"].items())
    split = ", ".join(f"{n} {name}" for name, n in data["split"].items())
    keys = ", ".join(f"`{key}`" for key in data["keys"])
    return "\n".join(
        [
            f"- Data: {data['cases']} simulated scans (seed {data['seed']}, data key {keys}, "
            f"code key `{data['code_key']}`), "
            f"split by participant ({split}); training candidates: {counts}.",
            f"- Training: seed {training['seed']}, {training['steps']} steps of "
            f"{training['batch_size']} patches, {training['minutes']:g} minutes on "
            f"{training['device']}.",
            f"- Calibration on the validation cases: temperature {calibration['temperature']}, "
            f"offsets {calibration['bias']}, weights of the candidate score "
            f"{calibration['score_weights']}.",
            f"- Code: version {metrics['model']['version']}, commit {training['commit']}.",
            f"- Command: `{training['command']}`",
        ]
    )


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:g}"
