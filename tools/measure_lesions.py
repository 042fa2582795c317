"""Measure drawn diameters and magnetic moments against simulated truth.

    python tools/measure_lesions.py --work FOLDER [ukb:901 3T:902 3T:905:5 ...]

Each argument is a protocol and a seed, and the median diameter of the cores where it is not to be
the simulation's own (mm): simulate a scan with 40 microbleeds and many calcifications, process it
as the pipeline does, with the true brain mask. A twin, the same scan without lesions, tells how
large each lesion looks by itself: what it took away from the image, to half depth, without the
dark structures it lies in or next to. Lesions are measured at their true places, as drawn from
their true places, and as found by candidates and network. Prints the diameter's bias, how many
lesions are large enough to count, the moment's bias, spread, coverage and sign by size, and how
calls and moments agree. All figures are of simulated scans.
Processed scans are kept in FOLDER.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import ndimage
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from cmb_bids.candidates import find_candidates
from cmb_bids.interfaces.classify import classify_candidates
from cmb_bids.lesion_size import equivalent_diameter
from cmb_bids.lesions import CALCIFICATION, MICROBLEED, segment_lesions
from cmb_bids.moments import Phase, describe_phase, measure_moments
from cmb_bids.phase import SwiResult, process_complex
from cmb_bids.simulate import SimulatedScan, SubjectSpec, sample_subject, simulate_scan
from cmb_bids.training.processed import normalise
from cmb_bids.volumes import voxel_sizes, world_to_voxel

# The dipole model of cmb_bids.moments was chosen on the first three.
SCANS = ("ukb:901", "3T:902", "1.5T:903", "ukb:904")
GROUPS = ("haemodialysis", "stroke", "tbi")  # take turns
OVERSAMPLING = {"ukb": (1.5, 1.5, 3.0)}  # of the simulation; the protocol's own where not named
MICROBLEEDS = 40
MIMIC_LOAD = 5.0
IMAGES = ("normalized", "unwrapped", "highpass", "swi")
REACH_MM = 5.0
CORE_CLASSES = (0, 1.5, 2, 3, 4, 9)
APPARENT_CLASSES = (0, 2, 3, 4, 6, 16)
LOST_SIGNAL = 0.3  # no lesion can be seen where less of the brain's median is left without it
FAINTEST = 0.1  # share of the signal a lesion must take away to have a diameter of its own
FAR_OFF_MM = 2.0
# Susceptibility (ppm) of the tissue a simulated lesion displaces, by base id of the atlas; grey
# matter, white matter and nuclei as cmb_bids.simulate has them. Fluid is about zero.
TISSUE_PPM = {
    **dict.fromkeys((1, 2, 3, 4, 5), 0.02),
    **dict.fromkeys((11, 12, 13, 14, 25, 26, 27, 28, 31, 32), -0.03),
    **{21: 0.04, 22: 0.04, 23: 0.13, 24: 0.02},
}


class Scan(NamedTuple):
    """A processed simulated scan: images by name, mask, true labels, affine, phase and truth."""

    name: str
    images: dict[str, np.ndarray]
    mask: np.ndarray
    labels: np.ndarray
    affine: np.ndarray
    phase: Phase
    truth: pd.DataFrame


def load_scan(named: str, work: Path) -> Scan:
    """The scan of a protocol, seed and perhaps core diameter, from the folder or simulated."""
    name = named.replace(":", "-")
    path = work / f"{name}.npz"
    if not path.exists():
        protocol, seed, *core = named.split(":")
        simulate(protocol, int(seed), path, *map(float, core))
    with np.load(path) as stored:
        images = {image: stored[image] for image in IMAGES}
        radians, wrapped = stored["phase"]
        phase = Phase(images["unwrapped"], float(radians), bool(wrapped))
        mask, labels, affine = stored["mask"], stored["labels"], stored["affine"]
    return Scan(name, images, mask, labels, affine, phase, pd.read_csv(path.with_suffix(".csv")))


def simulate(protocol: str, seed: int, path: Path, core_mm: float | None = None) -> None:
    """Simulate and process a scan; keep what lesions are measured on."""
    spec = sample_subject(
        seed, protocol, GROUPS[seed % 3], microbleeds=MICROBLEEDS, mimic_load=MIMIC_LOAD
    )
    if core_mm is not None:
        spec = replace(spec, microbleed_diameter_mm=core_mm)
    scan, result = simulate_and_process(spec)
    described = describe_phase(result.report, spec.protocol.field_strength_t)
    if isinstance(described, str):
        raise SystemExit(f"{path.stem}: {described}")
    # Random numbers of one stage do not depend on another: nothing else changes in the twin.
    _, without = simulate_and_process(replace(spec, microbleeds=0, mimic_load=0.0))
    truth = truth_with_moments(scan.truth, scan.regions, scan.affine)
    for name in ("magnitude", "swi"):
        truth[f"{name}_mm"] = own_diameters(
            truth, getattr(result, name), getattr(without, name), scan.brain_mask, scan.affine
        )
    truth.to_csv(path.with_suffix(".csv"), index=False)
    np.savez(
        path,
        normalized=normalise(result.magnitude, scan.brain_mask, scan.affine, True),
        unwrapped=result.unwrapped,
        highpass=result.highpass,
        swi=result.swi,
        mask=scan.brain_mask,
        labels=scan.lesion_labels.astype(np.int16),
        affine=scan.affine,
        phase=np.array(described, dtype=float),
    )
    print(f"simulated {path.stem}", flush=True)


def simulate_and_process(spec: SubjectSpec) -> tuple[SimulatedScan, SwiResult]:
    """A scan and what the pipeline's phase stage makes of it."""
    protocol = spec.protocol
    scan = simulate_scan(spec, oversampling=OVERSAMPLING.get(protocol.name))
    images = (scan.magnitudes, scan.phases, scan.echo_times_s, scan.affine)
    return scan, process_complex(*images, field_strength_t=protocol.field_strength_t)


def own_diameters(
    truth: pd.DataFrame,
    image: np.ndarray,
    without: np.ndarray,
    brain: np.ndarray,
    affine: np.ndarray,
) -> np.ndarray:
    """Diameter (mm) of what each lesion took away from an image, to half of the most it took.

    Compared with the same image without lesions, so that no vein, nucleus or edge of the brain is
    taken for the lesion. NaN where there is no signal to take away, or hardly any was taken.
    """
    visible = brain & (without > LOST_SIGNAL * np.median(without[brain]))
    taken = np.where(visible, 1 - image / np.where(visible, without, 1), 0)
    sizes = voxel_sizes(affine)
    diameters = np.full(len(truth), np.nan)
    points = world_to_voxel(affine, truth[["x", "y", "z"]].to_numpy())
    for row, (point, core) in enumerate(zip(points, truth["diameter_mm"], strict=True)):
        centre, reach = np.rint(point).astype(int), np.ceil(12 / sizes).astype(int)
        first = np.maximum(centre - reach, 0)
        box = taken[tuple(slice(a, b) for a, b in zip(first, centre + reach + 1, strict=True))]
        steps = np.stack(np.meshgrid(*map(np.arange, box.shape), indexing="ij"), -1)
        distance = np.linalg.norm((steps + first - point) * sizes, axis=-1)
        near = distance <= max(core / 2, sizes.max() / 2)
        most = np.unravel_index(np.argmax(np.where(near, box, -np.inf)), box.shape)
        if box[most] >= FAINTEST:
            parts, _ = ndimage.label(box >= box[most] / 2)
            diameters[row] = equivalent_diameter((parts == parts[most]).sum() * sizes.prod())
    return diameters


def truth_with_moments(
    truth: pd.DataFrame, regions: np.ndarray, affine: np.ndarray
) -> pd.DataFrame:
    """Lesions of the truth table with their moment against the tissue they displace (ppm mm3)."""
    truth = truth[truth["name"] != "vein"].reset_index(drop=True)
    at = np.rint(world_to_voxel(affine, truth[["x", "y", "z"]].to_numpy())).astype(int)
    at = np.clip(at, 0, np.subtract(regions.shape, 1))
    tissue = np.array([TISSUE_PPM.get(int(code) % 100, 0.0) for code in regions[tuple(at.T)]])
    volume = np.pi / 6 * truth["diameter_mm"] ** 3
    return truth.assign(moment=(truth["susceptibility_ppm"] - tissue) * volume)


def at_true_places(scan: Scan) -> pd.DataFrame:
    """Truth with the moments fitted at the true places."""
    points = scan.truth[["x", "y", "z"]].to_numpy()
    fitted = measure_moments(
        points, scan.labels, scan.phase, scan.images["normalized"], scan.mask, scan.affine
    )
    return pd.concat([scan.truth.reset_index(drop=True), fitted], axis=1).assign(scan=scan.name)


def listed_truth(scan: Scan) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Candidates and probabilities as a faultless detector would give them."""
    index = np.arange(1, len(scan.truth) + 1)
    bleeds = (scan.truth["name"] == MICROBLEED).to_numpy(dtype=float)
    candidates = scan.truth[["x", "y", "z"]].reset_index(drop=True)
    candidates = candidates.assign(index=index, radius_mm=2.0)
    probabilities = {"index": index, "p_microbleed": bleeds, "p_calcification": 1 - bleeds}
    return candidates, pd.DataFrame(probabilities)


def listed_found(scan: Scan) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Candidates of the pipeline and probabilities of the shipped network."""
    images = scan.images
    arguments = (images["normalized"], scan.mask, scan.affine, images["swi"], images["highpass"])
    candidates = find_candidates(*arguments)
    return candidates, classify_candidates(candidates, *arguments)[0]


def drawn(scan: Scan, listed: tuple[pd.DataFrame, pd.DataFrame]) -> pd.DataFrame:
    """Lesions as drawn, each with the truth it was matched to (missing where there is none)."""
    images = scan.images
    table, _ = segment_lesions(
        *listed,
        images["normalized"],
        scan.mask,
        scan.affine,
        swi=images["swi"],
        phase=scan.phase,
    )
    truth = scan.truth.reset_index(drop=True)
    distance = cdist(table[["x", "y", "z"]].to_numpy(dtype=float), truth[["x", "y", "z"]])
    rows, columns = linear_sum_assignment(np.where(distance <= REACH_MM, distance, 1e3))
    near = distance[rows, columns] <= REACH_MM
    matched = pd.Series(np.nan, index=range(len(table)))
    matched[rows[near]] = columns[near]
    kept = ["name", "diameter_mm", "magnitude_mm", "swi_mm", "moment"]
    true = truth[kept].add_prefix("true_").reindex(matched.to_numpy()).reset_index(drop=True)
    return pd.concat([table, true], axis=1).assign(scan=scan.name)


def classes(values: pd.Series, edges: tuple[float, ...]) -> pd.Series:
    names = [f"{a:g}-{b:g} mm" for a, b in pairwise(edges)]
    return pd.cut(values, edges, right=False, labels=names)


def describe_moments(table: pd.DataFrame, true: str, by: list[str]) -> pd.DataFrame:
    """Bias, spread, coverage and sign of fitted moments, by groups."""
    table = table[table["moment_status"] == "fitted"]
    error = table["moment_ppm_mm3"] - table[true]
    table = table.assign(
        relative=error / table[true].abs() * np.sign(table[true]),
        deviation=error / table["moment_sd_ppm_mm3"],
        relative_sd=table["moment_sd_ppm_mm3"] / table[true].abs(),
    )
    rows = {}
    for key, group in table.groupby(by, observed=True):
        deviation = group["deviation"]
        signed = np.sign(group["moment_ppm_mm3"]) == np.sign(group[true])
        far = (group["moment_ppm_mm3"].abs() >= 2 * group["moment_sd_ppm_mm3"]).astype(bool)
        rows[" ".join(map(str, key))] = {
            "n": len(group),
            "true": round(float(group[true].median()), 2),
            "bias": round(float(group["relative"].median()), 3),
            "spread": round(1.4826 * float((group["relative"]
                            - group["relative"].median()).abs().median()), 3),
            "sd stated": round(float(group["relative_sd"].median()), 3),
            "z spread": round(1.4826 * float((deviation - deviation.median()).abs().median()), 2),
            "within 95 %": round(float((deviation.abs() <= 1.96).mean()), 3),
            "sign right": round(float(signed.mean()), 3),
            "2 sd from 0": round(float(far.mean()), 3),
            "wrong at 2 sd": int((far & ~signed).sum()),
        }  # fmt: skip
    return pd.DataFrame(rows).T


def describe_diameters(table: pd.DataFrame, against: str, edges: tuple[float, ...]) -> pd.DataFrame:
    """Drawn diameter against a true one (mm), by kind and size.

    ``too_small`` and ``too_large`` count lesions that are more than 2 mm off.
    """
    table = table[table[against] > 0].assign(size=classes(table[against], edges))
    table = table.assign(error=table["diameter_mm"] - table[against])
    grouped = table.groupby(["true_name", "size"], observed=True)
    return grouped.agg(
        n=("error", "size"),
        true=(against, "median"),
        drawn=("diameter_mm", "median"),
        bias=("error", "median"),
        spread=("error", lambda e: 1.4826 * (e - e.median()).abs().median()),
        too_small=("error", lambda e: (e < -FAR_OFF_MM).sum()),
        too_large=("error", lambda e: (e > FAR_OFF_MM).sum()),
    ).round(2)


def describe_counts(table: pd.DataFrame) -> pd.DataFrame:
    """How many drawn lesions have the size to count, by protocol."""
    table = table.assign(
        small=table["diameter_mm"] < 2, too_short=table["extent_mm"] < 2,
        large=table["diameter_mm"] > 10,
    )  # fmt: skip
    grouped = table.groupby(["true_name", "protocol"])
    return grouped.agg(
        n=("counted", "size"),
        counted=("counted", "sum"),
        diameter_under_2=("small", "sum"),
        extent_under_2=("too_short", "sum"),
        diameter_over_10=("large", "sum"),
    )


def describe_rule(found: pd.DataFrame) -> pd.DataFrame:
    """Calls by what they truly are, and what the moment, which had its say, says of them."""
    expected = found["lesion_class"] == MICROBLEED
    rows = {}
    for deviations in (2, 3):
        far = found["moment_ppm_mm3"].abs() >= deviations * found["moment_sd_ppm_mm3"]
        against = far & ((found["moment_ppm_mm3"] > 0) != expected)
        what = found["true_name"].fillna("neither")
        for kind in (MICROBLEED, CALCIFICATION):
            for true in (MICROBLEED, CALCIFICATION, "neither"):
                here = (found["lesion_class"] == kind) & (what == true)
                row = rows.setdefault(f"called {kind}, is {true}", {"n": int(here.sum())})
                row[f"agrees at {deviations} sd"] = int((here & far & ~against).sum())
                row[f"contradicts at {deviations} sd"] = int((here & against).sum())
    return pd.DataFrame(rows).T


def show(title: str, table: pd.DataFrame) -> None:
    print(f"\n{title} (simulated)\n{table.to_string()}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="where processed scans are kept")
    parser.add_argument("scans", nargs="*", default=SCANS, help="such as ukb:901 or 3T:905:5")
    parser.add_argument("--without-network", action="store_true", help="skip candidates, network")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    true, ideal, found = [], [], []
    for named in arguments.scans:
        protocol = named.split(":")[0]
        scan = load_scan(named, arguments.work)
        true.append(at_true_places(scan).assign(protocol=protocol))
        ideal.append(drawn(scan, listed_truth(scan)).assign(protocol=protocol))
        if not arguments.without_network:
            found.append(drawn(scan, listed_found(scan)).assign(protocol=protocol))
    at_truth = pd.concat(true, ignore_index=True)
    as_drawn = pd.concat(ideal, ignore_index=True)
    at_truth["size"] = classes(at_truth["diameter_mm"], CORE_CLASSES)
    as_drawn = as_drawn[as_drawn["lesion_class"] == as_drawn["true_name"]]
    as_drawn = as_drawn.assign(size=classes(as_drawn["true_diameter_mm"], CORE_CLASSES))
    bleeds = as_drawn[as_drawn["true_name"] == MICROBLEED]
    for image, rows in (("magnitude", as_drawn), ("swi", bleeds)):  # only bleeds are drawn on SWI
        show(f"diameter against what the lesion took from the {image}",
             describe_diameters(rows, f"true_{image}_mm", APPARENT_CLASSES))  # fmt: skip
    show(
        "diameter against the core", describe_diameters(as_drawn, "true_diameter_mm", CORE_CLASSES)
    )
    show("lesions of a size to count", describe_counts(as_drawn))
    show("moments at true places", describe_moments(at_truth, "moment", ["name", "size"]))
    show("by protocol", describe_moments(at_truth, "moment", ["protocol", "name"]))
    show("moments of drawn lesions",
         describe_moments(as_drawn, "true_moment", ["true_name", "size"]))  # fmt: skip
    show("by protocol", describe_moments(as_drawn, "true_moment", ["protocol", "true_name"]))
    if found:
        calls = pd.concat(found, ignore_index=True)
        hits = calls[calls["true_name"].notna()]
        hits = hits.assign(size=classes(hits["true_diameter_mm"], CORE_CLASSES))
        show("moments of lesions found by candidates and network",
             describe_moments(hits, "true_moment", ["true_name", "size"]))  # fmt: skip
        show("calls of network and moments", describe_rule(calls))


if __name__ == "__main__":
    main()
