"""Tissue properties on the simulation grid, and the field they make."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as tf
from scipy import fft as sfft

from second_simulator.head import Anatomy, Grid, _resample_axis, tissue_fractions
from second_simulator.settings import (
    AIR_PPM,
    BONE_PPM,
    FAT_PPM,
    FAT_SHIFT_PPM,
    GREY_PPM,
    TISSUES,
    WHITE_PPM,
    Protocol,
)
from second_simulator.vessels import _draw_tubes


class Properties(NamedTuple):
    """Volumes (z, y, x): signal at echo time 0, R2* (1/s), susceptibility, chemical shift (ppm)."""

    amplitude: np.ndarray
    decay: np.ndarray
    chi: np.ndarray
    shift: np.ndarray
    brain: np.ndarray


def tissue_signals(protocol: Protocol, flip_deg: float) -> dict[str, tuple[float, float]]:
    """Signal at echo time 0 (Ernst equation) and R2* of each tissue at this field."""
    which = int(protocol.field_t > 2)
    angle = np.deg2rad(flip_deg)
    signals = {}
    for name, (t1, density, decay) in TISSUES.items():
        left = np.exp(-protocol.repetition_time / t1[which])
        steady = np.sin(angle) * (1 - left) / (1 - np.cos(angle) * left)
        signals[name] = (density * steady, decay[which])
    signals["artery"] = (TISSUES["vein"][1] * np.sin(angle) * 0.55, TISSUES["grey"][2][which])
    return signals


def fine_slabs(volume: np.ndarray, grid: Grid, mode: str = "bilinear", slab: int = 8) -> Any:
    """Yield (slice, tensor) of a coarse block (channels, z, y, x) interpolated to a fine grid."""
    block = torch.from_numpy(np.ascontiguousarray(volume, dtype=np.float32))
    places = np.linspace(0, block.shape[1] - 1, grid.shape[0])
    for start in range(0, grid.shape[0], slab):
        part = slice(start, min(start + slab, grid.shape[0]))
        if mode == "bicubic":
            lines = torch.from_numpy(_resample_axis(block.numpy(), 1, places[part]))
        else:
            base = np.minimum(places[part].astype(int), block.shape[1] - 2)
            t = torch.from_numpy((places[part] - base).astype(np.float32))[None, :, None, None]
            lines = torch.lerp(block[:, base], block[:, base + 1], t)
        size = (grid.shape[1], grid.shape[2])
        yield part, tf.interpolate(lines, size=size, mode=mode, align_corners=True)


CHANNELS = ("brain", "cavity", "skull", "head", "air", "fat", "eye", "iron", "edge", "texture",
            "atrophy")  # fmt: skip


def paint(
    anatomy: Anatomy, grid: Grid, maps: dict[str, np.ndarray], signals: dict[str, Any],
    field_t: float,
) -> Properties:  # fmt: skip
    """Tissue properties of the whole head on the fine grid, without vessels and lesions."""
    block = np.stack([m[anatomy.inner] for m in anatomy.mni]
                     + [anatomy.layers[name][anatomy.inner] for name in CHANNELS])  # fmt: skip
    volumes = Properties(*(np.zeros(grid.shape, np.float32) for _ in range(4)),
                         np.zeros(grid.shape, bool))  # fmt: skip
    soft = float(grid.spacing.mean())
    for part, channels in fine_slabs(block, grid):
        layer = dict(zip(CHANNELS, channels[3:], strict=True))
        grey, white, csf = _tissue_in_cavity(maps, channels[:3], layer)
        inside = {n: (0.5 - layer[n] / soft).clamp(0, 1) for n in ("cavity", "skull", "head")}
        share = {"grey": grey, "white": white, "csf": csf}
        share = {name: fraction * inside["cavity"] for name, fraction in share.items()}
        bone = inside["skull"] - inside["skull"] * inside["cavity"]
        depth = layer["cavity"] / (layer["cavity"] - layer["skull"]).clamp(min=1)
        spongy = (1 - (depth - 0.5).abs() / 0.28).clamp(0, 1)
        soft_tissue = inside["head"] * (1 - inside["skull"])
        deep_skin = (-layer["head"] / 1.2 - 0.8).clamp(0, 1) * layer["fat"]
        fluid = (0.5 - layer["eye"] / soft).clamp(0, 1) * soft_tissue
        soft_tissue = soft_tissue - fluid
        share["csf"] = share["csf"] + fluid
        share["marrow"], share["bone"] = bone * spongy, bone * (1 - spongy)
        share["fat"], share["muscle"] = soft_tissue * deep_skin, soft_tissue * (1 - deep_skin)
        filled = 1 - (0.5 - layer["air"] / soft).clamp(0, 1)
        amplitude = sum(share[n] * signals[n][0] for n in share) * filled
        decay = sum(share[n] * signals[n][1] for n in share)
        texture = 1 + 0.025 * layer["texture"] * inside["cavity"]
        volumes.amplitude[part] = (amplitude * texture).numpy()
        volumes.decay[part] = (decay + 125 * field_t / 3 * layer["iron"]).numpy()
        chi = GREY_PPM * share["grey"] + WHITE_PPM * share["white"] + layer["iron"]
        volumes.chi[part] = (chi + 0.003 * layer["texture"] * inside["cavity"]).numpy()
        volumes.shift[part] = (FAT_SHIFT_PPM * (share["fat"] + share["marrow"])).numpy()
        volumes.brain[part] = (layer["brain"] < 0).numpy()
    return volumes


def _tissue_in_cavity(
    maps: dict[str, np.ndarray], mni: torch.Tensor, layer: dict[str, torch.Tensor]
) -> torch.Tensor:
    """`tissue_fractions` (3, z, y, x), worked out only in the rectangle that holds the cavity."""
    result = torch.zeros_like(mni)
    held = layer["cavity"].amin(0) < 1
    rows, columns = torch.nonzero(held.any(1))[:, 0], torch.nonzero(held.any(0))[:, 0]
    if len(rows):
        part = (..., slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
        needed = {name: layer[name][part] for name in ("edge", "atrophy")}
        for i, fraction in enumerate(tissue_fractions(maps, list(mni[part]), needed)):
            result[i][part] = fraction
    return result


def blend_tubes(
    volumes: Properties, grid: Grid, segments: np.ndarray, signal: tuple[float, float],
    chi: float,
) -> None:  # fmt: skip
    """Put vessels of one kind into the tissue, in place."""
    filled = np.zeros(grid.shape, np.uint8)
    _draw_tubes(filled, np.ascontiguousarray(segments, dtype=float), grid.spacing, grid.first)
    where = np.flatnonzero(filled.ravel())
    share = filled.ravel()[where].astype(np.float32) / 255
    for volume, value in zip(volumes[:3], (*signal, chi), strict=True):
        flat = volume.reshape(-1)
        flat[where] += share * (value - flat[where])


def dipole_field(chi: np.ndarray, spacing: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """Field shift (ppm) of a susceptibility map (z, y, x); ``direction`` (x, y, z): that of B0."""
    spectrum = sfft.rfftn(chi)
    kz = sfft.fftfreq(chi.shape[0], spacing[2]).astype(np.float32)[:, None, None]
    ky = sfft.fftfreq(chi.shape[1], spacing[1]).astype(np.float32)[:, None]
    kx = sfft.rfftfreq(chi.shape[2], spacing[0]).astype(np.float32)
    b = direction.astype(np.float32)
    for start in range(0, chi.shape[0], 16):
        part = slice(start, start + 16)
        along = kx * b[0] + ky * b[1] + kz[part] * b[2]
        square = kx**2 + ky**2 + kz[part] ** 2
        if start == 0:
            square[0, 0, 0] = 1
        kernel = np.float32(1 / 3) - along**2 / square
        if start == 0:
            kernel[0, 0, 0] = 0
        spectrum[part] *= kernel
    return sfft.irfftn(spectrum, s=chi.shape, overwrite_x=True)


def bulk_field(anatomy: Anatomy, direction: np.ndarray) -> np.ndarray:
    """Field (ppm) of air, bone and fat on the coarse grid, shimmed to second order in the brain."""
    layers, grid = anatomy.layers, anatomy.grid
    edge = grid.spacing.mean()

    def inside(name: str) -> np.ndarray:
        return np.clip(0.5 - layers[name] / edge, 0, 1)

    air = np.maximum(1 - inside("head"), inside("air"))
    bone = np.clip(inside("skull") - inside("cavity"), 0, 1)
    fat = np.clip(inside("head") - inside("skull"), 0, 1) * layers["fat"]
    chi = (1 - air) * (BONE_PPM * bone + FAT_PPM * fat - AIR_PPM)
    shape = [sfft.next_fast_len(int(1.4 * n), real=True) for n in chi.shape]
    padded = np.zeros(shape, np.float32)
    padded[tuple(slice(0, n) for n in chi.shape)] = chi
    result = dipole_field(padded, grid.spacing, direction)[tuple(slice(0, n) for n in chi.shape)]
    x, y, z = (np.broadcast_to(a / 100, grid.shape)[anatomy.inner] for a in grid.axes())
    result = result[anatomy.inner]
    brain = layers["brain"][anatomy.inner] < -2
    terms = [np.ones_like(x), x, y, z, x * x, y * y, z * z, x * y, x * z, y * z]
    matrix = np.stack([t[brain][::7] for t in terms], axis=1)
    weights, *_ = np.linalg.lstsq(matrix, result[brain][::7], rcond=None)
    return (result - sum(w * t for w, t in zip(weights, terms, strict=True))).astype(np.float32)
