"""Measure detection on real tissue: known lesions in a real scan, one at a time.

    python tools/measure_real_background.py DATASET SCAN [--field-strength T] [--copies 60]
        [--calcifications] [--pictures FOLDER]

DATASET is a raw BIDS dataset, SCAN the name of a scan of it with magnitude and phase (for example
``sub-romeocrop_MEGRE``); a crop of a brain will do, and all of it is taken for brain. A copy of the
scan has one simulated lesion in its signal (`cmb_bids.implant`), at a place drawn at random;
it is processed, searched and classified as the pipeline does. Prints what is called without any
lesion, how often the lesion has a candidate and how often it is called a microbleed or a
calcification, by how wide it looks, and what else is called. The tissue is real, the lesions are
not. Where the field strength is not stated, give the one whose product with the echo time is that
of the protocol asked about: nothing else depends on it but the decay inside the lesion.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from cmb_bids.candidates import find_candidates
from cmb_bids.implant.effect import Effect, implant, seen_diameter_mm
from cmb_bids.implant.places import CALCIFICATION, MICROBLEED, Acquisition, draw_lesions
from cmb_bids.inputs import index_dataset
from cmb_bids.intensity import normalize_magnitude
from cmb_bids.interfaces.classify import classify_candidates
from cmb_bids.interfaces.phase import read_complex
from cmb_bids.phase import PhaseConfig, SwiResult, process_complex
from cmb_bids.simulate.lesions import Lesion
from cmb_bids.swi import SwiConfig
from cmb_bids.volumes import voxel_sizes, voxel_to_world

EDGE_MM = 5.0  # of a crop: farther in there is enough round a lesion to judge it by
SCORED_MM, SAME_MM = 5.0, 2.0
CALCIFIED = 0.5
LOOKS = (2, 3, 4, 5, 10)


class Judged(NamedTuple):
    """Candidates of one copy: places (n, 3) in scanner mm, and what the network says of each."""

    points: np.ndarray
    microbleed: np.ndarray
    calcification: np.ndarray
    definite: float
    images: SwiResult


class Scan:
    """A real scan as complex images, right-handed, and its copies with a lesion."""

    def __init__(self, dataset: Path, name: str, field_strength_t: float | None) -> None:
        scans = {scan["id"]: scan for scan in index_dataset(dataset.resolve()).scans}
        if name not in scans:
            raise SystemExit(f"{dataset} has no scan {name}: it has {', '.join(scans)}")
        self.echoes = read_complex(scans[name], PhaseConfig())
        field = field_strength_t or scans[name]["field_strength_t"]
        if not field:
            raise SystemExit(f"{name} does not say its field strength: give --field-strength")
        shape = self.echoes.magnitudes[0].shape
        times = tuple(self.echoes.echo_times_s)
        self.acquisition = Acquisition(shape, self.echoes.affine, times, float(field))
        self.mask = np.ones(shape, bool)
        pairs = zip(self.echoes.magnitudes, self.echoes.phases, strict=True)
        images = [(m * np.exp(1j * p)).astype(np.complex64) for m, p in pairs]
        found = self.processed(images, "auto")
        self.polarity = found.report["polarity_sign"]
        self.images = images if self.polarity > 0 else [image.conj() for image in images]

    def processed(self, images: list[np.ndarray], polarity: str) -> SwiResult:
        return process_complex(
            [np.abs(image) for image in images],
            [np.angle(image) for image in images],
            list(self.acquisition.echo_times_s),
            self.acquisition.affine,
            PhaseConfig(polarity=polarity),
            SwiConfig(),
            field_strength_t=self.acquisition.field_strength_t,
        )

    def judged(self, images: list[np.ndarray]) -> Judged:
        """Candidates and their probabilities, as the pipeline finds them."""
        result = self.processed(images, "right-handed")
        affine, mask = self.acquisition.affine, self.mask
        normalized = normalize_magnitude(result.magnitude, mask, None)
        found = find_candidates(normalized, mask, affine, result.swi, result.highpass)
        table, report = classify_candidates(
            found, normalized, mask, affine, result.swi, result.highpass
        )
        return Judged(
            found[["x", "y", "z"]].to_numpy(dtype=float),
            table["p_microbleed"].to_numpy(),
            table["p_calcification"].to_numpy(),
            report["thresholds"]["definite"],
            result,
        )

    def inner(self) -> np.ndarray:
        """Where (x, y, z) a lesion may go: not at the edge of the images."""
        edge = np.ceil(EDGE_MM / voxel_sizes(self.acquisition.affine)).astype(int)
        free = np.zeros(self.mask.shape, bool)
        free[tuple(slice(e, n - e) for e, n in zip(edge, free.shape, strict=True))] = True
        return free


def measure(scan: Scan, name: str, copies: int, seed: int) -> tuple[pd.DataFrame, list]:
    """A row per copy, and the copies whose lesion was not called what it is."""
    before = scan.judged(scan.images)
    called = before.microbleed > before.definite
    print(
        f"without a lesion: {len(before.points)} candidates, {called.sum()} called microbleed, "
        f"{(before.calcification > CALCIFIED).sum()} calcification"
    )
    rows, missed = [], []
    for copy in range(copies):
        rng = np.random.default_rng([seed, copy])
        nothing = np.zeros((0, 3))
        drawn = draw_lesions(name, 1, scan.inner(), scan.acquisition, nothing, rng)
        if not drawn:
            raise SystemExit("no lesion would be seen here: the echo time is too short")
        lesion, effect = drawn[0]
        now = scan.judged(implant(scan.images, [effect], rng))
        row = compare(scan, lesion, effect, before.points[called], now)
        rows.append(row)
        hit = row["called microbleed"] if name == MICROBLEED else row["called calcification"]
        if not hit:
            missed.append((lesion, row, now.images))
    return pd.DataFrame(rows), missed


def compare(
    scan: Scan, lesion: Lesion, effect: Effect, called_before: np.ndarray, now: Judged
) -> dict[str, float]:
    """What was said of the lesion, and what else is called that was not before."""
    sizes = voxel_sizes(scan.acquisition.affine)
    place = voxel_to_world(scan.acquisition.affine, (lesion.centre_mm / sizes)[None])[0]
    distance = np.linalg.norm(now.points - place, axis=1)
    here = distance <= SCORED_MM
    definite = now.microbleed > now.definite
    others = now.points[definite & ~here]
    new = [
        point
        for point in others
        if not len(called_before) or np.linalg.norm(called_before - point, axis=1).min() > SAME_MM
    ]
    return {
        "core_mm": lesion.diameter_mm,
        "ppm": lesion.susceptibility_ppm,
        "looks_mm": seen_diameter_mm(effect, sizes),
        "has a candidate": bool(here.any()),
        "called microbleed": bool((definite & here).any()),
        "called calcification": bool(((now.calcification > CALCIFIED) & here).any()),
        "other microbleeds called": len(new),
    }


def picture(scan: Scan, missed: list, folder: Path) -> None:
    """SWI and phase in the slice of each missed lesion, the lesion in the middle of a cross."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    sizes = voxel_sizes(scan.acquisition.affine)
    for number, (lesion, row, images) in enumerate(missed):
        x, y, z = np.rint(lesion.centre_mm / sizes).astype(int)
        panels = []
        for values, (low, high) in ((images.swi, (0, None)), (images.highpass, (-1.5, 1.5))):
            plane = values[:, :, z].T
            top = np.percentile(plane, 99) if high is None else high
            grey = np.clip((plane - low) / (top - low), 0, 1)
            grey[y, [0, 1, -2, -1]] = grey[[0, 1, -2, -1], x] = 1
            panels.append(np.kron(grey, np.ones((6, 6))))
        image = Image.fromarray((255 * np.hstack(panels)).astype(np.uint8))
        image.save(folder / f"{number:02d}_looks_{row['looks_mm']:.1f}_mm.png")


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("dataset", type=Path)
    parser.add_argument("scan")
    parser.add_argument("--field-strength", type=float, metavar="TESLA")
    parser.add_argument("--copies", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--calcifications", action="store_true", help="instead of microbleeds")
    parser.add_argument("--pictures", type=Path, metavar="FOLDER", help="of what is missed")
    args = parser.parse_args()
    scan = Scan(args.dataset, args.scan, args.field_strength)
    print(f"polarity of the stored phase: {'right' if scan.polarity > 0 else 'left'}-handed")
    name = CALCIFICATION if args.calcifications else MICROBLEED
    table, missed = measure(scan, name, args.copies, args.seed)
    print(f"{len(table)} copies of a real scan, each with one simulated {name}:")
    table["looks, mm"] = pd.cut(table["looks_mm"], LOOKS, include_lowest=True)
    shown = ["has a candidate", "called microbleed", "called calcification"]
    grouped = table.groupby("looks, mm", observed=True)
    by_size = grouped[shown].mean().assign(copies=grouped.size())
    print(by_size.round(3).to_string())
    print(table[[*shown, "other microbleeds called"]].mean().round(3).to_string())
    if args.pictures:
        picture(scan, missed, args.pictures)


if __name__ == "__main__":
    main()
