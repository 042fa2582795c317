"""One simulated scan, in memory: anatomy, vessels and lesions through the physics."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from cmb_bids.simulate import lesions as lesion_module
from cmb_bids.simulate import physics, veins
from cmb_bids.simulate.head import (
    DISPLACEMENT_SPACING_MM,
    NUCLEI_SUSCEPTIBILITY_PPM,
    TISSUES,
    HeadModel,
    Pose,
    TissueContrast,
    fill_tissue,
    load_head,
    make_displacement,
    sample_labels,
    template_to_world,
    tissue_channels,
)
from cmb_bids.simulate.subject import SubjectSpec, spec_rng

AIR_SUSCEPTIBILITY_PPM = 9.4
BONE_SUSCEPTIBILITY_PPM = -2.0
COARSE_MM = 2.0
PADDING_MM = 60.0
HEAD_TOP_MARGIN_MM = 7.0

Maps = tuple[np.ndarray, np.ndarray, np.ndarray]  # signal, R2* (1/s), susceptibility (ppm)

T1_S = {1.5: (0.60, 0.95, 3.2), 3.0: (0.85, 1.35, 3.8), 7.0: (1.2, 1.9, 4.2)}  # white grey fluid
RATES_PER_S = {1.5: (14.0, 11.5, 2.5), 3.0: (20.0, 16.5, 4.0), 7.0: (36.0, 29.0, 7.0)}


@dataclass(frozen=True)
class SimulatedScan:
    """A scan and its truth.

    Attributes
    ----------
    magnitudes, phases : list of (x, y, z) float32
        One per echo; phases in radians, right-handed, wrapped, before any vendor scaling.
    echo_times_s : tuple of float
    affine : (4, 4)
        Voxel to scanner RAS+ mm.
    brain_mask : (x, y, z) bool
        Brain with its sulci and ventricles.
    regions : (x, y, z) uint8
        Atlas ids (left = base id, right = +100).
    lesion_labels : (x, y, z) uint16
        Truth ``index`` of each microbleed and calcification.
    truth : DataFrame
        One row per microbleed, calcification and vein crossing.
    noise_sd : float
        Of the real and imaginary part, in the units of the magnitudes.
    spec : SubjectSpec
    """

    magnitudes: list[np.ndarray]
    phases: list[np.ndarray]
    echo_times_s: tuple[float, ...]
    affine: np.ndarray
    brain_mask: np.ndarray
    regions: np.ndarray
    lesion_labels: np.ndarray
    truth: pd.DataFrame
    noise_sd: float
    spec: SubjectSpec


def rotation(degrees: tuple[float, ...] | np.ndarray) -> np.ndarray:
    """Rotation matrix: about x, then y, then z."""
    a, b, c = np.deg2rad(np.asarray(degrees, dtype=float))
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    about_z = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


def box_frame(spec: SubjectSpec, rng: np.random.Generator) -> np.ndarray:
    """Rotation from acquisition axes to world; its slice normal is `obliquity_deg` off z."""
    # Mostly a nod, as slices are tilted to the anterior and posterior commissures.
    direction = np.deg2rad(rng.normal(0, 20))
    sign = -1.0 if rng.random() < 0.5 else 1.0
    angle = sign * np.deg2rad(spec.obliquity_deg)
    axis = np.array([np.cos(direction), np.sin(direction), 0.0])
    cross = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def grid_affine(
    frame: np.ndarray, shape: tuple[int, ...], field_of_view_mm: tuple[float, ...]
) -> np.ndarray:
    """Voxel to world of a grid that fills the field of view, centred on the world's origin."""
    spacing = np.asarray(field_of_view_mm) / np.asarray(shape)
    affine = np.eye(4)
    affine[:3, :3] = frame * spacing
    affine[:3, 3] = -affine[:3, :3] @ ((np.asarray(shape) - 1) / 2)
    return affine


def make_pose(spec: SubjectSpec, head: HeadModel, frame: np.ndarray) -> Pose:
    """Head in the field of view: centred, its vertex a little below the upper edge."""
    rng = spec_rng(spec, 1)
    turn = frame @ rotation(spec.head_rotation_deg) @ np.diag(spec.head_scale)
    occupied = np.argwhere(head.tissue[::4, ::4, ::4] != TISSUES["air"]) * 4 + head.origin_mm
    in_box = occupied @ (frame.T @ turn).T
    top = in_box[:, 2].max()
    upper = in_box[in_box[:, 2] > top - 120 * spec.head_scale[2]]
    half = np.asarray(spec.protocol.field_of_view_mm) / 2
    middle = (upper.min(axis=0) + upper.max(axis=0)) / 2
    centre = np.array([middle[0], middle[1], top + HEAD_TOP_MARGIN_MM - half[2]])
    affine = np.eye(4)
    affine[:3, :3] = turn
    affine[:3, 3] = -frame @ centre + frame @ np.asarray(spec.head_shift_mm)
    displacement = make_displacement(head, rng, spec.deformation_mm, spec.ventricles_mm)
    origin = head.origin_mm - 2 * DISPLACEMENT_SPACING_MM
    return Pose(affine, displacement, origin, DISPLACEMENT_SPACING_MM)


def make_contrast(spec: SubjectSpec, rng: np.random.Generator) -> TissueContrast:
    """Signal and R2* of the tissues at the protocol's field, varied among subjects."""
    protocol = spec.protocol
    times = np.array(T1_S[protocol.field_strength_t]) * np.exp(rng.normal(0, 0.06, 3))
    times[2] *= rng.uniform(0.3, 0.9)  # inflow and partial excitation brighten the fluid
    density = np.array([0.70, 0.89, 1.0]) * (1 + rng.normal(0, 0.025, 3))
    decay = np.exp(-protocol.repetition_time_s / times)
    flip = np.deg2rad(protocol.flip_angle_deg)
    white, grey, fluid = density * np.sin(flip) * (1 - decay) / (1 - np.cos(flip) * decay)
    rates = np.array(RATES_PER_S[protocol.field_strength_t]) * np.exp(rng.normal(0, 0.07, 3))
    field = protocol.field_strength_t / 3.0
    return TissueContrast(
        fluid / white,
        grey / white,
        1.0,
        rates[2],
        rates[1],
        rates[0],
        30.0 * field,
        float(rng.uniform(0.0, 0.02)),
        0.02,
        -0.03,
        220.0 * field,
        spec.fluid_threshold,
    )


def bulk_field(
    head: HeadModel, pose: Pose, frame: np.ndarray, spec: SubjectSpec, device: torch.device
) -> tuple[torch.Tensor, list[tuple[int, float, float]]]:
    """Field (ppm) of air and bone on a coarse padded grid, shimmed over the brain.

    Air and bone are large and smooth from afar, so 2 mm suffices; the padding keeps the periodic
    images of the head away.

    Returns
    -------
    field : (x, y, z) tensor
    axes : size, first centre (box mm) and step of each axis
    """
    extent = np.asarray(spec.protocol.field_of_view_mm) + 2 * PADDING_MM
    x, y, z = (int(2 * np.ceil(e / COARSE_MM / 2)) for e in extent)
    shape = (x, y, z)
    extent = np.array(shape) * COARSE_MM
    susceptibility = np.zeros(shape, np.float32)
    table = np.zeros(len(TISSUES), np.float32)
    table[TISSUES["air"]] = AIR_SUSCEPTIBILITY_PPM
    # Air cells of the skull base: septa and mucosa take up some of their volume.
    table[TISSUES["sinus_air"]] = AIR_SUSCEPTIBILITY_PPM * spec.pneumatisation
    table[TISSUES["skull"]] = BONE_SUSCEPTIBILITY_PPM
    affine = grid_affine(frame, shape, tuple(extent))
    brain = np.zeros(shape, bool)
    # Eight samples a voxel: boundaries as partial volumes, not as steps.
    for offset in np.ndindex(2, 2, 2):
        moved = affine.copy()
        moved[:3, 3] += affine[:3, :3] @ ((np.array(offset) - 0.5) / 2)
        tissue, _, inside = sample_labels(head, pose, moved, shape)
        susceptibility += table[tissue] / 8
        brain |= inside
    b0 = frame.T @ np.array([0.0, 0.0, 1.0])
    source = torch.from_numpy(susceptibility).to(device)
    field = physics.dipole_field(source, (COARSE_MM,) * 3, b0, 0.8)
    axes = [(n, -(n - 1) / 2 * COARSE_MM, COARSE_MM) for n in shape]
    return shim(field, torch.from_numpy(brain).to(device), spec.shim), axes


def shim(field: torch.Tensor, brain: torch.Tensor, strength: float) -> torch.Tensor:
    """Remove the second-order polynomial fit over the brain, as a scanner's shims do."""
    axes = [torch.linspace(-1, 1, n, device=field.device) for n in field.shape]
    index = brain.nonzero()[::7]
    if len(index) < 50:
        return field

    def terms(x, y, z):
        return [x * 0 + 1, x, y, z, x * y, x * z, y * z, x * x - y * y, 2 * z * z - x * x - y * y]

    at = [axes[i][index[:, i]] for i in range(3)]
    basis = torch.stack(terms(*at), dim=1).double()
    values = field[index[:, 0], index[:, 1], index[:, 2]].double()
    solution = torch.linalg.lstsq(basis, values[:, None]).solution[:, 0].float()
    solution[1:] *= strength
    x, y, z = axes[0][:, None, None], axes[1][None, :, None], axes[2][None, None, :]
    for weight, term in zip(solution, terms(x, y, z), strict=True):
        field = field - weight * term
    return field


def smooth_polynomial(
    shape: tuple[int, ...], order: int, rng: np.random.Generator, device: torch.device
) -> torch.Tensor:
    """Random polynomial over the field of view, within about +-1."""
    weights = np.zeros((order + 1,) * 3, np.float32)
    for powers in np.ndindex(weights.shape):
        if 0 < sum(powers) <= order:
            weights[powers] = rng.normal(0, 1.0 / sum(powers) ** 1.5)
    bases = [
        torch.linspace(-1, 1, n, device=device)[:, None] ** torch.arange(order + 1, device=device)
        for n in shape
    ]
    total = torch.einsum("abc,xa->xbc", torch.from_numpy(weights).to(device), bases[0])
    total = torch.einsum("xbc,yb->xyc", total, bases[1])
    total = torch.einsum("xyc,zc->xyz", total, bases[2])
    return total / max(float(total.abs().max()), 1e-6)


def insert_vessels(
    maps: Maps,
    tree: veins.VesselTree,
    spacing: np.ndarray,
    chi: float,
    rate: float,
    signal: float,
) -> None:
    """Blend vessels into the signal, R2* and susceptibility maps by their share of each voxel."""
    share = veins.rasterise(tree, maps[0].shape, tuple(spacing))
    flat = np.flatnonzero(share.ravel() > 1e-3)
    weight = share.ravel()[flat]
    for volume, value in zip(maps, (signal, rate, chi), strict=True):
        view = volume.reshape(-1)
        view[flat] = view[flat] * (1 - weight) + weight * value


def insert_lesions(
    maps: Maps,
    placed: list[lesion_module.Lesion],
    spacing: np.ndarray,
    half: np.ndarray,
) -> None:
    """Blend lesions into the maps; signal is lowered relative to the tissue they sit in."""
    signal, rate, chi = maps
    for lesion in placed:
        drawn = lesion_module.occupancy(lesion, signal.shape, spacing, half)
        if drawn is None:
            continue
        where, share = drawn
        signal[where] *= 1 - share * (1 - lesion.signal)
        rate[where] = rate[where] * (1 - share) + share * lesion.rate_per_s
        chi[where] = chi[where] * (1 - share) + share * lesion.susceptibility_ppm


def fine_shape(
    spec: SubjectSpec, oversampling: float | tuple[float, float, float] | None
) -> tuple[int, int, int]:
    """Simulation grid: matrix times oversampling, rounded up to even numbers of small factors."""
    if oversampling is None:
        oversampling = spec.protocol.oversampling
    factors = np.broadcast_to(np.asarray(oversampling, dtype=float), 3)
    x, y, z = (
        good_size(round(float(n * f))) for n, f in zip(spec.protocol.matrix, factors, strict=True)
    )
    return x, y, z


def good_size(size: int) -> int:
    """Next even length made of the factors 2, 3, 5 and 7 (fast transforms)."""
    size += size % 2
    while True:
        rest = size
        for factor in (2, 3, 5, 7):
            while rest % factor == 0:
                rest //= factor
        if rest == 1:
            return size
        size += 2


def simulate_scan(
    spec: SubjectSpec,
    device: str | torch.device = "cpu",
    oversampling: float | tuple[float, float, float] | None = None,
) -> SimulatedScan:
    """Simulate one scan.

    Parameters
    ----------
    spec : SubjectSpec
        From `sample_subject`; ``dataclasses.replace`` changes single conditions.
    device : str or torch.device
        Where the fields and transforms are computed.
    oversampling : float or three floats, optional
        Ratio of simulation to acquisition grid; the protocol's own when absent. Smaller is
        cheaper and less exact (at least 1).

    Returns
    -------
    SimulatedScan
    """
    device = torch.device(device)
    protocol = spec.protocol
    head = load_head()
    frame = box_frame(spec, spec_rng(spec, 2))
    pose = make_pose(spec, head, frame)
    fov = protocol.field_of_view_mm
    affine = grid_affine(frame, protocol.matrix, fov)
    voxel = np.asarray(protocol.voxel_mm)
    tissue, regions, brain = sample_labels(head, pose, affine, protocol.matrix)

    shape = fine_shape(spec, oversampling)
    spacing = np.asarray(fov) / np.asarray(shape)
    half = (np.asarray(shape) - 1) / 2 * spacing
    contrast = make_contrast(spec, spec_rng(spec, 3))
    iron_rng = spec_rng(spec, 4)
    iron = {
        name: value * spec.iron * float(np.exp(iron_rng.normal(0, 0.15)))
        for name, value in NUCLEI_SUSCEPTIBILITY_PPM.items()
    }
    channels = tissue_channels(head, iron, iron_rng, texture=0.03)
    maps = fill_tissue(head, pose, channels, contrast, grid_affine(frame, shape, fov), shape)
    del channels

    field_scale = protocol.field_strength_t / 3.0
    to_box = lambda points: template_to_world(pose, points) @ frame  # noqa: E731
    vein_tree = veins.grow_veins(
        spec_rng(spec, 5),
        spec.vein_density,
        spec.vein_calibre,
        spec.vein_thinning,
        spec.short_veins,
    )
    vein_tree = vein_tree.moved(to_box(vein_tree.points))
    artery_rng = spec_rng(spec, 6)
    artery_tree = veins.grow_arteries(artery_rng, spec.vein_calibre)
    artery_tree = artery_tree.moved(to_box(artery_tree.points))
    insert_vessels(
        maps,
        artery_tree.moved(artery_tree.points + half),
        spacing,
        -0.02,
        18 * field_scale,
        float(artery_rng.uniform(1.0, 1.8)),
    )
    insert_vessels(
        maps,
        vein_tree.moved(vein_tree.points + half),
        spacing,
        spec.vein_susceptibility_ppm,
        spec.haematocrit_rate_per_s * field_scale,
        float(artery_rng.uniform(0.85, 1.1)),
    )
    placer = lesion_module.Placer(regions, tissue, voxel, brain)
    near_arteries = artery_tree.points[:: max(1, len(artery_tree.points) // 500)]
    calcifications = lesion_module.place_calcifications(
        spec, placer, near_arteries, spec_rng(spec, 7)
    )
    near_veins = vein_tree.points[:: max(1, len(vein_tree.points) // 2000)]
    microbleeds = lesion_module.place_microbleeds(spec, placer, near_veins, spec_rng(spec, 8))
    placed = microbleeds + calcifications
    insert_lesions(maps, placed, spacing, half)

    kspaces = _kspaces(spec, head, pose, frame, maps, spacing, device)
    magnitudes, phases, noise_sd = _images(spec, kspaces, brain, device)
    labels = draw_labels(placed, protocol.matrix, voxel)
    truth = truth_table(spec, placed, vein_tree, magnitudes[-1], noise_sd, placer, frame)
    scan = SimulatedScan(
        magnitudes, phases, spec.echo_times_s, affine, brain, regions, labels, truth, noise_sd, spec
    )
    return flip_first_axis(scan) if spec.flip_first_axis else scan


def _kspaces(
    spec: SubjectSpec,
    head: HeadModel,
    pose: Pose,
    frame: np.ndarray,
    maps: Maps,
    spacing: np.ndarray,
    device: torch.device,
) -> list[torch.Tensor]:
    """k-space of each echo (noise free)."""
    signal, rate, chi = (torch.from_numpy(m).to(device) for m in maps)
    b0 = frame.T @ np.array([0.0, 0.0, 1.0])
    field = physics.dipole_field(chi, tuple(spacing), b0)
    del chi
    coarse, axes = bulk_field(head, pose, frame, spec, device)
    weights = [
        physics.cubic_weights(*axis, (np.arange(n) - (n - 1) / 2) * s)
        for axis, n, s in zip(axes, signal.shape, spacing, strict=True)
    ]
    physics.add_interpolated(field, coarse, weights)
    protocol = spec.protocol
    if protocol.slice_gap is None:
        # The slab's edges are excited less; this also keeps the neck from ringing into the vertex.
        z = (torch.arange(signal.shape[2], device=device) + 0.5) * float(spacing[2])
        edge = torch.minimum(z, z[-1] + z[0] - z) / 6.0
        signal *= edge.clamp(0, 1).mul(np.pi / 2).sin()[None, None]
    return [
        physics.acquire(
            physics.gradient_echo_blocks(signal, rate, field, echo_time, protocol.field_strength_t),
            maps[0].shape,
            protocol.matrix,
            device,
            protocol.slice_gap,
        )
        for echo_time in spec.echo_times_s
    ]


def _images(
    spec: SubjectSpec, kspaces: list[torch.Tensor], brain: np.ndarray, device: torch.device
) -> tuple[list[np.ndarray], list[np.ndarray], float]:
    """Receive coil, motion, noise, and the step from k-space to magnitude and phase."""
    rng = spec_rng(spec, 9)
    matrix = spec.protocol.matrix
    encoded = 3 if spec.protocol.slice_gap is None else 2  # axes along which k-space is filtered
    window = [physics.tukey_window(n, spec.taper, device) for n in matrix[:encoded]]
    bias = torch.exp(spec.bias * smooth_polynomial(matrix, 3, rng, device))
    coil = spec.coil_phase_rad * smooth_polynomial(matrix, 3, rng, device)
    receive = torch.polar(bias, coil)
    del bias, coil
    jolt = rng.normal(0, 1, 3) * spec.motion_mm
    jolt_lines = sorted(rng.uniform(-0.9, 0.9, 2))
    ghost_shift = int(matrix[1] * rng.uniform(0.15, 0.5))
    ghost_phase = float(rng.uniform(0, 2 * np.pi))
    inside = torch.from_numpy(brain).to(device)
    magnitudes, phases, noise_sd = [], [], 0.0
    for echo, spectrum in enumerate(kspaces):
        for axis, taps in enumerate(window):
            spectrum = spectrum * taps.reshape([-1 if a == axis else 1 for a in range(3)])
        _leave_out(spectrum, spec)
        if spec.motion_mm:
            _jolt(spectrum, jolt, jolt_lines, spec.protocol.field_of_view_mm)
        image = torch.fft.ifftn(spectrum).mul_(receive)
        if spec.ghost:
            image = image + spec.ghost * np.exp(1j * ghost_phase) * image.roll(ghost_shift, 1)
        if echo == 0:
            noise_sd = float(image.abs()[inside].median()) / spec.signal_to_noise
        noise = rng.standard_normal((*matrix, 2), dtype=np.float32) * np.float32(noise_sd)
        image += torch.view_as_complex(torch.from_numpy(noise).to(device))
        magnitudes.append(image.abs().cpu().numpy())
        phases.append(image.angle().cpu().numpy())
    return magnitudes, phases, noise_sd


def _leave_out(spectrum: torch.Tensor, spec: SubjectSpec) -> None:
    """Zero what is not acquired: late phase-encoding lines, the corners of the plane."""
    y, z = (torch.fft.fftfreq(n, 0.5, device=spectrum.device) for n in spectrum.shape[1:])
    if spec.partial_fourier < 1:
        # Frequencies run over -1..1: lines beyond this are the last of them.
        spectrum[:, y > 2 * spec.partial_fourier - 1] = 0
    if spec.elliptical_shutter and spec.protocol.slice_gap is None:
        spectrum[:, y[:, None] ** 2 + z[None, :] ** 2 > 1] = 0


def _jolt(
    spectrum: torch.Tensor, shift_mm: np.ndarray, lines: list[float], fov: tuple[float, ...]
) -> None:
    """The head lies `shift_mm` off while a band of phase-encoding lines is acquired."""
    n = spectrum.shape[1]
    ky = torch.fft.fftfreq(n, 1.0 / n, device=spectrum.device)
    band = (ky / (n / 2) > lines[0]) & (ky / (n / 2) < lines[1])
    angle = torch.zeros((), device=spectrum.device)
    for axis in range(3):
        size = spectrum.shape[axis]
        k = torch.fft.fftfreq(size, 1.0 / size, device=spectrum.device) / fov[axis]
        angle = angle + k.reshape([-1 if a == axis else 1 for a in range(3)]) * float(
            shift_mm[axis]
        )
    ramp = torch.polar(torch.ones_like(angle), 2 * np.pi * angle)
    spectrum[:, band] *= ramp[:, band]


def draw_labels(
    placed: list[lesion_module.Lesion], matrix: tuple[int, int, int], voxel: np.ndarray
) -> np.ndarray:
    """Truth index of each lesion's core on the acquisition grid (at least its centre voxel)."""
    labels = np.zeros(matrix, np.uint16)
    half = (np.asarray(matrix) - 1) / 2 * voxel
    for index, lesion in enumerate(placed, start=1):
        drawn = lesion_module.occupancy(lesion, matrix, voxel, half)
        if drawn is not None:
            where, share = drawn
            labels[where][share >= 0.4] = index
        i, j, k = np.rint((lesion.centre_mm + half) / voxel).astype(int)
        labels[i, j, k] = index
    return labels


TRUTH_COLUMNS = [
    "index",
    "name",
    "x",
    "y",
    "z",
    "diameter_mm",
    "apparent_diameter_mm",
    "susceptibility_ppm",
    "contrast_to_noise",
    "hemisphere",
    "mars_region",
    "mars_class",
    "site",
]


def truth_table(
    spec: SubjectSpec,
    placed: list[lesion_module.Lesion],
    vein_tree: veins.VesselTree,
    magnitude: np.ndarray,
    noise_sd: float,
    placer: lesion_module.Placer,
    frame: np.ndarray,
) -> pd.DataFrame:
    """One row per lesion (index as in the label image), then one per vein crossing."""
    voxel = np.asarray(spec.protocol.voxel_mm)
    rows = []
    index_of = veins.crossings(vein_tree, np.array([0.0, 0.0, 1.0]), spec_rng(spec, 10))
    things = [
        (p.name, p.centre_mm, p.diameter_mm, p.susceptibility_ppm, p.site, p.region) for p in placed
    ]
    for i in index_of:
        point = vein_tree.points[i]
        if placer.inside(point) and placer.brain[placer.voxel(point)]:
            things.append(
                (
                    "vein",
                    point,
                    2 * vein_tree.radii[i],
                    spec.vein_susceptibility_ppm,
                    "vein",
                    placer.region_at(point),
                )
            )
    for index, (name, point, diameter, chi, site, region) in enumerate(things, start=1):
        cnr, apparent = lesion_module.measure_lesion(
            magnitude, noise_sd, voxel, (point + placer.half) / voxel, diameter / 2
        )
        x, y, z = frame @ point
        known = lesion_module.mars_class(region) is not None
        rows.append(
            (
                index,
                name,
                x,
                y,
                z,
                diameter,
                apparent,
                chi,
                cnr,
                ("right" if region > 100 else "left") if region else None,
                lesion_module.MARS_REGION[region % 100] if known else None,
                lesion_module.mars_class(region),
                site,
            )
        )
    table = pd.DataFrame(rows, columns=TRUTH_COLUMNS)
    numbers = ["x", "y", "z", "diameter_mm", "apparent_diameter_mm", "susceptibility_ppm"]
    table[[*numbers, "contrast_to_noise"]] = (
        table[[*numbers, "contrast_to_noise"]].astype(float).round(3)
    )
    return table


def flip_first_axis(scan: SimulatedScan) -> SimulatedScan:
    """Store the first axis the other way (right to left), as many scanners' files do."""
    n = scan.brain_mask.shape[0]
    mirror = np.diag([-1.0, 1.0, 1.0, 1.0])
    mirror[0, 3] = n - 1

    def turned(array: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(array[::-1])

    return SimulatedScan(
        [turned(m) for m in scan.magnitudes],
        [turned(p) for p in scan.phases],
        scan.echo_times_s,
        scan.affine @ mirror,
        turned(scan.brain_mask),
        turned(scan.regions),
        turned(scan.lesion_labels),
        scan.truth,
        scan.noise_sd,
        scan.spec,
    )
