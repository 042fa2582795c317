"""A small three-dimensional residual network that tells microbleeds from what looks like them.

Residual learning after He et al. (CVPR 2016), in the role it has in Liu et al. (NeuroImage 2019,
doi 10.1016/j.neuroimage.2019.05.046): susceptibility-weighted image and high-passed phase in,
false positives out. Depth, width, input and training are this project's own. Three classes,
because calcification is the mimic that only the sign of the phase can tell.

Weights are safetensors files whose metadata hold all that is needed to use them; nothing is ever
unpickled.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from cmb_bids.errors import BadData, InputMissing, UsageError
from cmb_bids.patches import PatchGeometry
from cmb_bids.volumes import written_whole

CLASSES = ("microbleed", "calcification", "other")
CONTRAST_ONLY = ("contrast",)
CONTRAST_AND_PHASE = ("contrast", "highpass")
SHIPPED = {CONTRAST_AND_PHASE: "microbleed-two-channel", CONTRAST_ONLY: "microbleed-one-channel"}
PATCHES_PER_BATCH = 32
MIRRORED_AXES: tuple[tuple[int, ...], ...] = ((), (2,), (3,), (2, 3))  # right-left, back-front
NEAR_SHAPE = (20, 20, 8)  # of the patch, looked at in full resolution
FORMAT = "cmb-bids-resnet-2"


@dataclass(frozen=True)
class Calibration:
    """From scores to probabilities and calls.

    ``probability = softmax(logits / temperature + bias + score_weights * score)``, where ``score``
    is the candidate's own (radial symmetry and depth, measured at full resolution and against the
    noise of the whole brain, which a patch does not show). A candidate is a definite microbleed
    from ``definite`` on, a possible one from ``possible`` on.
    """

    temperature: float = 1.0
    bias: tuple[float, float, float] = (0.0, 0.0, 0.0)
    score_weights: tuple[float, float, float] = (0.0, 0.0, 0.0)
    definite: float = 0.5
    possible: float = 0.25


@dataclass(frozen=True)
class ModelDescription:
    """Everything about a network but its weights."""

    channels: tuple[str, ...] = CONTRAST_AND_PHASE
    widths: tuple[int, int, int] = (16, 32, 64)
    geometry: PatchGeometry = field(default_factory=PatchGeometry)
    calibration: Calibration = field(default_factory=Calibration)
    name: str = "untrained"
    version: str = "0"


class ResidualBlock(nn.Module):
    """Two convolutions and a way round them.

    The first has the given kernel and stride, the second is 3 x 3 x 3.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, kernel: tuple[int, int, int]):
        super().__init__()
        padding = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
        self.first = nn.Conv3d(inputs, outputs, kernel, stride, padding, bias=False)
        self.first_norm = nn.BatchNorm3d(outputs)
        self.second = nn.Conv3d(outputs, outputs, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm3d(outputs)
        self.around: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.around = nn.Sequential(
                nn.Conv3d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm3d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        """(n, inputs, X, Y, Z) -> (n, outputs, X/stride, Y/stride, Z/stride)."""
        y = functional.relu(self.first_norm(self.first(x)))
        return functional.relu(self.second_norm(self.second(y)) + self.around(x))


class MicrobleedNet(nn.Module):
    """Residual network on patches, (n, channels, 32, 32, 12) -> logits (n, 3).

    It looks twice. *Near*: the middle of the patch (20 x 20 x 8 voxels, 15 x 15 x 16 mm) at full
    resolution, for a small microbleed is a few voxels; *around*: the whole patch at half the
    in-plane resolution, for what a vein is shows in where it goes. Pooled features alone would not
    know whether a dark spot is the candidate or its neighbour, so the distance from the centre is
    given as a channel, and the centre's features are handed on beside the mean.
    """

    centre: Tensor

    def __init__(self, description: ModelDescription | None = None):
        super().__init__()
        self.description = description or ModelDescription()
        narrow, middle, wide = self.description.widths
        inputs = len(self.description.channels) + 1
        self.register_buffer("centre", _centre_channel(self.description.geometry), False)
        self.near = nn.Sequential(
            *convolved(inputs, narrow),
            ResidualBlock(narrow, narrow, 1, (3, 3, 1)),
            ResidualBlock(narrow, middle, 2, (3, 3, 3)),
            ResidualBlock(middle, wide, 2, (3, 3, 3)),
        )
        self.around = nn.Sequential(
            nn.AvgPool3d((2, 2, 1)),
            *convolved(inputs, narrow),
            ResidualBlock(narrow, middle, 2, (3, 3, 3)),
            ResidualBlock(middle, middle, 2, (3, 3, 3)),
        )
        self.dropout = nn.Dropout(0.3)
        self.head = nn.Linear(2 * wide + middle, len(CLASSES))

    def forward(self, patches: Tensor) -> Tensor:
        """Logits (n, 3) of patches (n, channels, X, Y, Z)."""
        centre = self.centre.expand(len(patches), -1, -1, -1, -1)
        seen = torch.cat([patches, centre], dim=1)
        near = self.near(seen[:, :, *middle_of(seen.shape[2:], NEAR_SHAPE)])
        at_centre = near[:, :, *middle_of(near.shape[2:], (3, 3, 2))].mean(dim=(2, 3, 4))
        around = self.around(seen)
        pooled = [near.mean(dim=(2, 3, 4)), at_centre, around.mean(dim=(2, 3, 4))]
        return self.head(self.dropout(torch.cat(pooled, dim=1)))


def middle_of(shape: Sequence[int], wanted: Sequence[int]) -> tuple[slice, ...]:
    """Slices of the middle ``wanted`` voxels of a grid of ``shape``; all of it where it is less."""
    starts = [max(have - want, 0) // 2 for have, want in zip(shape, wanted, strict=True)]
    return tuple(slice(first, have - first) for first, have in zip(starts, shape, strict=True))


def convolved(inputs: int, outputs: int) -> tuple[nn.Module, nn.Module, nn.Module]:
    """A 3 x 3 x 3 convolution that keeps the grid, normalisation, and what is positive."""
    convolution = nn.Conv3d(inputs, outputs, 3, padding=1, bias=False)
    return convolution, nn.BatchNorm3d(outputs), nn.ReLU()


def _centre_channel(geometry: PatchGeometry) -> Tensor:
    """(1, 1, X, Y, Z): a Gaussian of 4 mm around the patch's centre."""
    squared = torch.zeros(geometry.shape)
    for axis, (count, spacing) in enumerate(zip(geometry.shape, geometry.spacing_mm, strict=True)):
        offset = (torch.arange(count) - (count - 1) / 2) * spacing
        squared += offset.reshape([-1 if a == axis else 1 for a in range(3)]) ** 2
    return torch.exp(-squared / (2 * 4.0**2))[None, None]


@dataclass(frozen=True)
class LoadedModel:
    """A network ready for use, and where it comes from."""

    network: MicrobleedNet
    path: Path | None
    sha256: str

    @property
    def description(self) -> ModelDescription:
        """Channels, patch geometry, calibration, name and version."""
        return self.network.description


def shipped_path(channels: tuple[str, ...]) -> Path:
    """The weights that come with the package for these channels."""
    if channels not in SHIPPED:
        raise UsageError(
            "network.model",
            f"no network is shipped for the channels {', '.join(channels)}",
            f"Use one of: {'; '.join(', '.join(known) for known in SHIPPED)}",
        )
    return Path(str(files("cmb_bids") / "data" / "models" / f"{SHIPPED[channels]}.safetensors"))


def load_model(
    model: str | Path = "shipped", channels: tuple[str, ...] = CONTRAST_AND_PHASE
) -> LoadedModel:
    """Load weights.

    Parameters
    ----------
    model : str or path
        ``"shipped"``, a safetensors file that `save_model` wrote, or a directory that holds
        both models under their shipped names.
    channels : tuple of str
        What the patches will hold: ``("contrast", "highpass")`` or ``("contrast",)``.

    Returns
    -------
    LoadedModel
        In evaluation mode.

    Raises
    ------
    InputMissing
        The file does not exist.
    BadData
        It is not such a file.
    UsageError
        It was trained on other channels.
    """
    path = shipped_path(channels) if str(model) == "shipped" else Path(model)
    if path.is_dir() and channels in SHIPPED:
        path = path / f"{SHIPPED[channels]}.safetensors"
    if not path.is_file():
        raise InputMissing(path, "there are no weights here", "Check network.model or reinstall")
    try:
        with safe_open(str(path), framework="pt") as weights:
            metadata = weights.metadata() or {}
            state = {key: weights.get_tensor(key) for key in weights.keys()}  # noqa: SIM118
        description = _description_from(metadata)
        network = MicrobleedNet(description)
        network.load_state_dict(state)
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise BadData(
            path, f"is not a network of cmb-bids ({error})", "Train it with cmb-lab train"
        ) from error
    if description.channels != channels:
        raise UsageError(
            path,
            f"was trained on {', '.join(description.channels)}, not on {', '.join(channels)}",
            "Give a network for the images there are",
        )
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return LoadedModel(network.eval(), path, digest)


def _description_from(metadata: dict[str, str]) -> ModelDescription:
    if metadata.get("format") != FORMAT:
        raise ValueError(f"format is {metadata.get('format')!r}, not {FORMAT!r}")
    content = json.loads(metadata["description"])
    geometry, calibration = content["geometry"], content["calibration"]
    for name in ("bias", "score_weights"):
        calibration[name] = tuple(calibration.get(name, (0.0, 0.0, 0.0)))
    return ModelDescription(
        channels=tuple(content["channels"]),
        widths=tuple(content["widths"]),
        geometry=PatchGeometry(tuple(geometry["shape"]), tuple(geometry["spacing_mm"])),
        calibration=Calibration(**calibration),
        name=content["name"],
        version=content["version"],
    )


def save_model(network: MicrobleedNet, path: Path, provenance: dict[str, Any]) -> None:
    """Write weights and description as safetensors.

    Parameters
    ----------
    network : MicrobleedNet
    path : path
        Ends in ``.safetensors``.
    provenance : dict
        JSON-serialisable: seed, data, command.
    """
    state = {key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()}
    metadata = {
        "format": FORMAT,
        "description": json.dumps(asdict(network.description)),
        "provenance": json.dumps(provenance),
    }
    with written_whole(path) as beside:
        save_file(state, str(beside), metadata=metadata)


def predict_logits(
    network: nn.Module, patches: np.ndarray, mirrors: Sequence[tuple[int, ...]] = MIRRORED_AXES
) -> np.ndarray:
    """Uncalibrated scores (n, 3) of patches (n, channels, X, Y, Z).

    The mean over the patch and its in-plane mirror images, which show the same lesion: what the
    network makes of the side a vein lies on should not decide. ``mirrors`` are the axes flipped for
    each of them.
    """
    batches = range(0, len(patches), PATCHES_PER_BATCH)
    device = next(network.parameters()).device
    logits = []
    with torch.inference_mode():
        for start in batches:
            batch = torch.from_numpy(patches[start : start + PATCHES_PER_BATCH]).float().to(device)
            seen = [network(torch.flip(batch, axes) if axes else batch) for axes in mirrors]
            logits.append(torch.stack(seen).mean(dim=0))
    return torch.cat(logits).cpu().numpy() if logits else np.zeros((0, len(CLASSES)), np.float32)


def calibrate(
    logits: np.ndarray, calibration: Calibration, scores: np.ndarray | None = None
) -> np.ndarray:
    """Probabilities (n, 3) from logits (n, 3) and the candidates' scores (n,).

    Raises
    ------
    ValueError
        The calibration uses scores and none are given.
    """
    scaled = np.asarray(logits, dtype=float) / calibration.temperature + calibration.bias
    if any(calibration.score_weights):
        if scores is None:
            raise ValueError("this network was calibrated with the candidates' scores: give them")
        scaled = scaled + np.outer(np.asarray(scores, dtype=float), calibration.score_weights)
    scaled = np.exp(scaled - scaled.max(axis=1, keepdims=True, initial=-np.inf))
    return scaled / scaled.sum(axis=1, keepdims=True)


def predict(
    model: LoadedModel,
    patches: np.ndarray,
    scores: np.ndarray | None = None,
    threads: int | None = None,
) -> np.ndarray:
    """Calibrated probabilities of the three classes.

    Parameters
    ----------
    model : LoadedModel
    patches : (n, channels, X, Y, Z) float32 array
        As `cmb_bids.patches.classifier_patches` cuts them with the model's geometry.
    scores : (n,) array, optional
        Of the candidates, as `cmb_bids.candidates.find_candidates` gives them; needed by networks
        that were calibrated with them, the shipped ones among them.
    threads : int, optional
        CPU threads to use; default: as many as torch is set to.

    Returns
    -------
    (n, 3) float array
        Microbleed, calcification, other; rows sum to one.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        logits = predict_logits(model.network, np.ascontiguousarray(patches, dtype=np.float32))
    finally:
        torch.set_num_threads(before)
    return calibrate(logits, model.description.calibration, scores)
