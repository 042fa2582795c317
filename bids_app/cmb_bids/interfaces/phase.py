"""File contracts of the first stage: a scan's echoes in, magnitude, phase, SWI and report out."""

from __future__ import annotations

import os
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    SimpleInterface,
    TraitedSpec,
    traits,
)

from cmb_bids.errors import BadData, InputMissing, UsageError
from cmb_bids.phase import PhaseConfig, process_complex, process_magnitude
from cmb_bids.phase_scaling import combine_real_imaginary, mend_alternate_slices, scale_phase
from cmb_bids.swi import SwiConfig
from cmb_bids.volumes import (
    read_json,
    read_stored,
    read_volume,
    slice_axis,
    voxel_sizes,
    write_json,
    write_volume,
)

SAME_GRID = 1e-3  # of a voxel
LONGEST_ECHO_TIME_S = 1.0
Config = TypeVar("Config", PhaseConfig, SwiConfig)


class _PhaseToSWIInputSpec(BaseInterfaceInputSpec):
    scan = File(exists=True, mandatory=True, desc="scan.json: echoes, sidecars, configuration")
    threads = traits.Int(desc="threads to use; otherwise OMP_NUM_THREADS, otherwise one")
    out_magnitude = File(mandatory=True, desc="magnitude combined over echoes")
    out_unwrapped = File(mandatory=True, desc="unwrapped phase, radians")
    out_highpass = File(mandatory=True, desc="high-pass filtered phase, radians")
    out_swi = File(mandatory=True, desc="susceptibility-weighted image")
    out_minip = File(mandatory=True, desc="its minimum-intensity projection")
    out_report = File(mandatory=True, desc="what was found and done (JSON)")


class _PhaseToSWIOutputSpec(TraitedSpec):
    out_magnitude = File(exists=True)
    out_unwrapped = File(exists=True)
    out_highpass = File(exists=True)
    out_swi = File(exists=True)
    out_minip = File(exists=True)
    out_report = File(exists=True)


class PhaseToSWI(SimpleInterface):
    """Complex scan to combined magnitude, phase, SWI and minimum-intensity projection."""

    input_spec = _PhaseToSWIInputSpec
    output_spec = _PhaseToSWIOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        scan = read_json(self.inputs.scan)
        phase_config = configured(PhaseConfig, scan, "phase")
        swi_config = configured(SwiConfig, scan, "swi")
        echoes = read_complex(scan, phase_config)
        result = process_complex(
            echoes.magnitudes,
            echoes.phases,
            echoes.echo_times_s,
            echoes.affine,
            phase_config,
            swi_config,
            field_strength_t=scan.get("field_strength_t"),
            across_slices=echoes.across_slices,
            n_threads=threads_given(self.inputs.threads),
        )
        names = ("magnitude", "unwrapped", "highpass", "swi", "minip")
        for name in names:
            path = getattr(self.inputs, f"out_{name}")
            write_volume(path, getattr(result, name), echoes.affine)
            self._results[f"out_{name}"] = os.path.abspath(path)
        report = {"scan": scan.get("id"), **result.report, **echoes.report}
        write_json(self.inputs.out_report, report)
        self._results["out_report"] = os.path.abspath(self.inputs.out_report)
        return runtime


class _MagnitudeOnlyInputSpec(BaseInterfaceInputSpec):
    scan = File(exists=True, mandatory=True, desc="scan.json: echoes, sidecars, configuration")
    out_magnitude = File(mandatory=True, desc="magnitude combined over echoes")
    out_minip = File(mandatory=True, desc="its minimum-intensity projection")
    out_report = File(mandatory=True, desc="what was found and done (JSON)")


class _MagnitudeOnlyOutputSpec(TraitedSpec):
    out_magnitude = File(exists=True)
    out_minip = File(exists=True)
    out_report = File(exists=True)


class MagnitudeOnly(SimpleInterface):
    """Scan without phase to combined magnitude and minimum-intensity projection."""

    input_spec = _MagnitudeOnlyInputSpec
    output_spec = _MagnitudeOnlyOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        scan = read_json(self.inputs.scan)
        magnitudes, echo_times, affine, axis = read_magnitudes(scan)
        config = configured(SwiConfig, scan, "swi")
        result = process_magnitude(magnitudes, echo_times, affine, config, axis)
        for name in ("magnitude", "minip"):
            path = getattr(self.inputs, f"out_{name}")
            write_volume(path, getattr(result, name), affine)
            self._results[f"out_{name}"] = os.path.abspath(path)
        write_json(self.inputs.out_report, {"scan": scan.get("id"), **result.report})
        self._results["out_report"] = os.path.abspath(self.inputs.out_report)
        return runtime


class ComplexEchoes(NamedTuple):
    """Echoes as read: magnitudes, phases (radians), echo times (s), grid, and what was noted."""

    magnitudes: list[np.ndarray]
    phases: list[np.ndarray]
    echo_times_s: list[float]
    affine: np.ndarray
    across_slices: int
    report: dict[str, Any]


def read_complex(scan: dict[str, Any], config: PhaseConfig) -> ComplexEchoes:
    """Read magnitude and phase, or real and imaginary, of every echo of a scan.

    Raises
    ------
    BadData
        Scale not recognised, echo time missing or in the wrong unit, grids that differ, a
        magnitude without signal, a broken file.
    InputMissing
        A file, or the phase of an echo, is not there.
    """
    magnitudes, phases, times, rules, flips = [], [], [], [], []
    grid: _Grid | None = None
    missing_phase = 0.0
    for echo in scan["echoes"]:
        times.append(echo_time(echo))
        if echo.get("phase"):
            path = Path(echo["magnitude"])
            magnitude = read_volume(path)
            stored = read_stored(echo["phase"])
            grid = _on_grid(grid, path, magnitude.data.shape, magnitude.affine, magnitude.header)
            _on_grid(grid, Path(echo["phase"]), stored.stored.shape, stored.affine, None)
            units = (echo.get("phase_sidecar") or {}).get("Units")
            scaled = scale_phase(
                stored.stored, stored.slope, stored.intercept, units, config.scale, echo["phase"]
            )
            # Where phase is not known the voxel has no complex signal.
            values = np.where(scaled.valid, magnitude.data, 0)
            phase, flipped = mend_alternate_slices(values, scaled.radians, grid.axis)
            rules.append(scaled.rule)
            missing_phase = max(missing_phase, 1 - float(scaled.valid.mean()))
        elif echo.get("real") and echo.get("imaginary"):
            path = Path(echo["real"])
            real, imaginary = read_volume(path), read_volume(echo["imaginary"])
            grid = _on_grid(grid, path, real.data.shape, real.affine, real.header)
            _on_grid(grid, Path(echo["imaginary"]), imaginary.data.shape, imaginary.affine, None)
            values, phase, flipped = combine_real_imaginary(real.data, imaginary.data, grid.axis)
            if echo.get("magnitude"):
                path = Path(echo["magnitude"])
                given = read_volume(path)
                _on_grid(grid, path, given.data.shape, given.affine, None)
                values = given.data
            rules.append("real-imaginary")
        else:
            raise InputMissing(
                echo.get("magnitude") or scan.get("id", "scan"),
                f"echo {echo.get('echo')} has neither phase nor real and imaginary part",
                "Add the missing part, or remove it from all echoes to run on magnitude alone",
            )
        _check_signal(values, path)
        flips.append(flipped)
        magnitudes.append(values)
        phases.append(phase)
    if grid is None:
        raise InputMissing(scan.get("id", "scan"), "has no echoes", "Check the dataset")
    _check_different(times, scan)
    report = {
        "scaling_rule": rules[0] if len(set(rules)) == 1 else rules,
        "alternate_slices_flipped": any(flips),
        "voxels_without_phase": round(missing_phase, 6),
    }
    return ComplexEchoes(magnitudes, phases, times, grid.affine, grid.axis, report)


def read_magnitudes(
    scan: dict[str, Any],
) -> tuple[list[np.ndarray], list[float | None], np.ndarray, int]:
    """Magnitudes, echo times (None where unknown), affine and slice axis of a scan."""
    magnitudes: list[np.ndarray] = []
    times: list[float | None] = []
    grid: _Grid | None = None
    for echo in scan["echoes"]:
        path = Path(echo["magnitude"])
        volume = read_volume(path)
        grid = _on_grid(grid, path, volume.data.shape, volume.affine, volume.header)
        _check_signal(volume.data, path)
        magnitudes.append(volume.data)
        times.append(echo_time(echo) if echo.get("echo_time_s") is not None else None)
    if grid is None:
        raise InputMissing(scan.get("id", "scan"), "has no echoes", "Check the dataset")
    return magnitudes, times, grid.affine, grid.axis


def echo_time(echo: dict[str, Any]) -> float:
    """Echo time of an echo in seconds, or a message about the sidecar that should hold it."""
    sidecar = sidecar_of(echo.get("magnitude") or echo.get("real") or "scan")
    value = echo.get("echo_time_s")
    if value is None:
        raise BadData(
            sidecar, "does not give EchoTime", "Add EchoTime in seconds, for example 0.02"
        )
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = float("nan")
    if not np.isfinite(seconds) or seconds <= 0:
        raise BadData(
            sidecar, f"gives EchoTime {value!r}", "Give EchoTime in seconds, for example 0.02"
        )
    if seconds > LONGEST_ECHO_TIME_S:
        raise BadData(
            sidecar,
            f"gives EchoTime {seconds:g}, which in seconds is no gradient echo",
            f"EchoTime is in seconds: {seconds:g} ms is {seconds / 1000:g}",
        )
    return seconds


def sidecar_of(path: str | Path) -> Path:
    """The JSON beside an image."""
    path = Path(path)
    return path.with_name(path.name.removesuffix(".gz").removesuffix(".nii") + ".json")


def threads_given(threads: Any) -> int:
    """Threads asked for, otherwise OMP_NUM_THREADS, otherwise one."""
    if isinstance(threads, int) and threads > 0:
        return threads
    said = os.environ.get("OMP_NUM_THREADS", "1").split(",")[0]
    return max(1, int(said)) if said.isdigit() else 1


def configured(kind: type[Config], scan: dict[str, Any], section: str) -> Config:
    """A stage's configuration out of a scan; `UsageError` names a key that no one knows."""
    given = (scan.get("config") or {}).get(section) or {}
    known = {field.name for field in fields(kind)}
    unknown = sorted(set(given) - known)
    if unknown:
        raise UsageError(
            f"{section}.{unknown[0]}",
            "is not a key of the configuration",
            f"Use {', '.join(sorted(known))}",
        )
    return kind(**given)


class _Grid(NamedTuple):
    shape: tuple[int, ...]
    affine: np.ndarray
    axis: int
    path: Path


def _on_grid(
    grid: _Grid | None, path: Path, shape: tuple[int, ...], affine: np.ndarray, header: Any
) -> _Grid:
    """The scan's grid; refuses an image that is not on it."""
    if grid is None:
        return _Grid(tuple(shape), affine, slice_axis(affine, header), path)
    if tuple(shape) != grid.shape:
        raise BadData(
            path,
            f"has shape {tuple(shape)}, but {grid.path.name} has {grid.shape}",
            "Magnitude and phase of all echoes must be on one grid: convert them again",
        )
    if np.abs(affine - grid.affine).max() > SAME_GRID * voxel_sizes(grid.affine).min():
        raise BadData(
            path,
            f"has another affine than {grid.path.name} (they differ by up to "
            f"{np.abs(affine - grid.affine).max():.4g} mm)",
            "Magnitude and phase of all echoes must be on one grid: convert them again",
        )
    return grid


def _check_signal(magnitude: np.ndarray, path: Path) -> None:
    if not (np.nan_to_num(magnitude, posinf=0, neginf=0) > 0).any():
        raise BadData(
            path, "has no signal: no value is above zero", "Convert it again or leave it out"
        )


def _check_different(times: list[float], scan: dict[str, Any]) -> None:
    if len(set(times)) != len(times):
        first = scan["echoes"][0]
        raise BadData(
            sidecar_of(first.get("magnitude") or first.get("real") or "scan"),
            f"two echoes of this scan share one EchoTime ({', '.join(f'{t:g}' for t in times)} s)",
            "Mend EchoTime in the sidecars",
        )
