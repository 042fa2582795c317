"""Phase unwrapping: ROMEO (through niimath), Laplacian, and the temporary files ROMEO needs."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from scipy import fft

from cmb_bids.errors import IOFailure
from cmb_bids.phase_scaling import TURN, wrap

ROMEO_SECONDS = 900  # far beyond any scan; only so that a job cannot hang for ever


def romeo(
    phases: Sequence[np.ndarray],
    magnitudes: Sequence[np.ndarray],
    echo_times_s: Sequence[float],
    mask: np.ndarray,
    n_threads: int = 1,
) -> list[np.ndarray]:
    """Unwrap the phase of all echoes with ROMEO.

    Dymerska B et al., Magn Reson Med 2021;85:2294-2308, as ported in niimath.

    Parameters
    ----------
    phases, magnitudes : sequences of (x, y, z) arrays
        Wrapped radians and any unit, one per echo.
    echo_times_s : sequence of float
        Seconds.
    mask : (x, y, z) boolean array
        Where to unwrap.
    n_threads : int

    Returns
    -------
    list of (x, y, z) float32 arrays
        Radians, zero outside the mask. A value outside it is undefined.

    Raises
    ------
    IOFailure
        niimath could not run.
    """
    with tempfile.TemporaryDirectory(prefix="romeo-") as name:
        folder = Path(name)
        wrapped, magnitude = folder / "phase.nii", folder / "magnitude.nii"
        region, unwrapped = folder / "mask.nii", folder / "unwrapped.nii"
        _write_echoes(wrapped, phases)
        _write_echoes(magnitude, magnitudes)
        _write_echoes(region, [mask.astype(np.uint8)])
        times = ",".join(f"{1e3 * time:.6g}" for time in echo_times_s)
        # The phase is in radians already: a rescaling by its range would stretch it.
        # Each echo by itself (-i): carrying one echo to the next supposes phase that is zero at
        # echo time zero, and the coils' own phase makes false borders then.
        options = ["-t", times, "-i", "-k", str(region), "-no-phase-rescale", "-no-mask-out"]
        command = [_niimath(), str(wrapped), "-p", str(n_threads), "-romeo", str(magnitude)]
        _run([*command, *options, str(unwrapped)], folder, n_threads)
        # niimath takes the output's compression from the environment and the name.
        found = unwrapped if unwrapped.exists() else folder / "unwrapped.nii.gz"
        loaded: Any = nib.load(found)
        image = np.asarray(loaded.dataobj, dtype=np.float32)
    echoes = [image] if image.ndim == 3 else [image[..., e] for e in range(image.shape[3])]
    return [np.where(mask, np.nan_to_num(echo), 0).astype(np.float32) for echo in echoes]


def _niimath() -> str:
    import niimath

    return str(niimath.bin)


def _write_echoes(path: Path, images: Sequence[np.ndarray]) -> None:
    data = images[0] if len(images) == 1 else np.stack(images, axis=-1)
    # Geometry plays no part in ROMEO: an identity affine is enough.
    nib.save(nib.Nifti1Image(data, np.eye(4)), path)


def _run(command: list[str], folder: Path, n_threads: int) -> None:
    environment = dict(os.environ, OMP_NUM_THREADS=str(n_threads), FSLOUTPUTTYPE="NIFTI")
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=ROMEO_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise IOFailure(
            "niimath", f"could not run ({error})", "Set phase.unwrapping to laplacian"
        ) from error
    if done.returncode != 0 or not any(folder.glob("unwrapped.nii*")):
        said = (done.stderr or done.stdout).strip().splitlines()[-3:]
        raise IOFailure(
            "niimath",
            f"unwrapping ended with status {done.returncode}: {' '.join(said)}",
            "Check the free space of the temporary directory, or set phase.unwrapping to laplacian",
        )


def laplacian(
    phase: np.ndarray, mask: np.ndarray, sizes_mm: np.ndarray, n_threads: int = 1
) -> np.ndarray:
    """Smooth unwrapped phase: the least-squares fit to the wrapped phase differences.

    Poisson's equation for the divergence of the wrapped differences, solved by a cosine
    transform (free boundaries). Differences that leave the mask count as zero. Biased near
    voids and edges, but there are no open-ended fringe lines.

    Parameters
    ----------
    phase : (x, y, z) array
        Wrapped radians.
    mask : (x, y, z) boolean array
    sizes_mm : (3,) array
        Voxel edge lengths in mm.
    n_threads : int

    Returns
    -------
    (x, y, z) float32 array
        Radians, zero outside the mask, of the input's mean phase within it.
    """
    differences = []
    for axis in range(3):
        difference = wrap(np.diff(phase, axis=axis))
        difference *= _both(mask, axis)
        differences.append(difference)
    unwrapped = integrate_differences(differences, phase.shape, sizes_mm, n_threads)
    if mask.any():
        offset = np.angle(np.mean(np.exp(1j * (phase[mask] - unwrapped[mask]))))
        unwrapped += np.float32(offset)
    unwrapped[~mask] = 0
    return unwrapped


def _both(mask: np.ndarray, axis: int) -> np.ndarray:
    along = np.moveaxis(mask, axis, 0)
    return np.moveaxis(along[1:] & along[:-1], 0, axis)


def integrate_differences(
    differences: Sequence[np.ndarray],
    shape: tuple[int, ...],
    sizes_mm: np.ndarray,
    n_threads: int = 1,
) -> np.ndarray:
    """The image whose forward differences are closest to those given (least squares).

    Parameters
    ----------
    differences : three arrays
        Per axis, one shorter than ``shape`` along it.
    shape : (3,)
    sizes_mm : (3,) array
        Differences across a long voxel edge weigh less, as a gradient per mm would.
    n_threads : int

    Returns
    -------
    (x, y, z) float32 array
        Of zero mean.
    """
    divergence = np.zeros(shape, dtype=np.float32)
    eigenvalues = np.zeros(shape, dtype=np.float32)
    for axis, difference in enumerate(differences):
        weight = 1.0 / float(sizes_mm[axis]) ** 2
        into = np.moveaxis(divergence, axis, 0)
        step = np.moveaxis(difference, axis, 0) * np.float32(weight)
        into[:-1] -= step
        into[1:] += step
        length = shape[axis]
        value = 2 * weight * (1 - np.cos(np.pi * np.arange(length) / length))
        eigenvalues += np.moveaxis(value.astype(np.float32)[:, None, None], 0, axis)
    spectrum = fft.dctn(divergence, norm="ortho", workers=n_threads)
    eigenvalues.flat[0] = 1
    spectrum /= eigenvalues
    spectrum.flat[0] = 0
    return fft.idctn(spectrum, norm="ortho", workers=n_threads, overwrite_x=True)


def consistent_echoes(
    values: Sequence[np.ndarray], echo_times_s: Sequence[float]
) -> list[np.ndarray]:
    """Add whole turns to later echoes so that phase grows with echo time.

    Each echo is brought within half a turn of what the one before predicts. Only where the echo
    time at most trebles: noise grows with the same factor, and a wrong turn is worse than none.

    Parameters
    ----------
    values : sequence of (x, y, z) arrays
        Radians, in order of echo time.
    echo_times_s : sequence of float

    Returns
    -------
    list of (x, y, z) float32 arrays
    """
    agreed = [values[0]]
    for echo in range(1, len(values)):
        ratio = echo_times_s[echo] / echo_times_s[echo - 1]
        value = values[echo]
        if ratio <= 3:
            turns = np.round((agreed[-1] * np.float32(ratio) - value) / np.float32(TURN))
            value = value + turns * np.float32(TURN)
        agreed.append(value)
    return agreed
