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
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.resources import files
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from cmb_bids.burden_prior import weigh_by_burden, weigh_by_look_alikes
from cmb_bids.errors import BadData, InputMissing, UsageError
from cmb_bids.patches import PatchGeometry
from cmb_bids.volumes import written_whole

CLASSES = ("microbleed", "calcification", "other")
CONTRAST_ONLY = ("contrast",)
CONTRAST_AND_PHASE = ("contrast", "highpass")
SHIPPED = {CONTRAST_AND_PHASE: "microbleed-two-channel", CONTRAST_ONLY: "microbleed-one-channel"}
PATCHES_PER_BATCH = 32
RESIDUAL_BLOCKS = 5
# Right-left, back-front, up-down and all their combinations.
MIRRORED_AXES: tuple[tuple[int, ...], ...] = tuple(
    axes for count in range(4) for axes in combinations((2, 3, 4), count)
)
AS_IT_IS: tuple[tuple[int, ...], ...] = ((),)  # no mirror image
# Log odds of a lesion of either kind, at first sight, from which a patch is seen in all its mirror
# images: `tools/measure_looks.py` shows what is saved and what it changes.
DOUBTFUL_LOG_ODDS = -2.0
LEAK = 0.1  # of the hidden rectifiers: ten plain ones can all fall silent, and nothing is learnt
FORMAT = "cmb-bids-resnet-3"


@dataclass(frozen=True)
class Calibration:
    """From scores to probabilities and calls.

    ``probability = softmax(logits / temperature + bias + score_weights * score)``, where ``score``
    is the candidate's own (radial symmetry and depth, measured at full resolution and against the
    noise of the whole brain, which a patch does not show). Where ``usual_burden`` is a number, the
    scan's other microbleeds then weigh in, and where ``mimics_elsewhere`` is one, the scan's other
    look-alikes (`cmb_bids.burden_prior`). A candidate is a definite microbleed from ``definite``
    on, a possible one from ``possible`` on.
    """

    temperature: float = 1.0
    bias: tuple[float, float, float] = (0.0, 0.0, 0.0)
    score_weights: tuple[float, float, float] = (0.0, 0.0, 0.0)
    usual_burden: float | None = None
    mimics_elsewhere: float | None = None
    definite: float = 0.5
    possible: float = 0.25


@dataclass(frozen=True)
class ModelDescription:
    """Everything about a network but its weights.

    ``widths`` are the features at full resolution and of the two convolutions after the residual
    blocks; ``residual_width`` those of the blocks, None: as at full resolution.
    """

    channels: tuple[str, ...] = CONTRAST_AND_PHASE
    widths: tuple[int, int, int] = (8, 16, 22)
    hidden: int = 32
    geometry: PatchGeometry = field(default_factory=PatchGeometry)
    calibration: Calibration = field(default_factory=Calibration)
    name: str = "untrained"
    version: str = "0"
    dropout: float = 0.1  # of the hidden features, in training
    residual_width: int | None = None


class ResidualBlock(nn.Module):
    """Two 3 x 3 x 3 convolutions and a way round them."""

    def __init__(self, width: int):
        super().__init__()
        self.first = nn.Conv3d(width, width, 3, padding=1, bias=False)
        self.first_norm = nn.BatchNorm3d(width)
        self.second = nn.Conv3d(width, width, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm3d(width)

    def forward(self, x: Tensor) -> Tensor:
        """(n, width, X, Y, Z) -> the same shape."""
        y = functional.relu(self.first_norm(self.first(x)))
        return functional.relu(self.second_norm(self.second(y)) + x)


class MicrobleedNet(nn.Module):
    """Residual network on patches, (n, channels, X, Y, Z) -> logits (n, 3).

    Two convolutions at full resolution, for a small microbleed is a few voxels; residual blocks at
    half of it; two wider convolutions, halved again; then two dense layers that know where in the
    patch a feature lies, and so whether a dark spot is the candidate or its neighbour. The layout
    is that of the network that Chen et al. described in 2018 (ISMRM, 0432), its dense layer wider.
    """

    def __init__(self, description: ModelDescription | None = None):
        super().__init__()
        self.description = description or ModelDescription()
        channels = len(self.description.channels)
        self.stem, self.residual, self.pooled = trunk(
            channels, self.description.widths, (2, 2, 2), self.description.residual_width
        )
        places = math.prod(n // 2 // 2 for n in self.description.geometry.shape)
        self.hidden = nn.Linear(self.description.widths[-1] * places, self.description.hidden)
        self.dropout = nn.Dropout(self.description.dropout)
        self.head = nn.Linear(self.description.hidden, len(CLASSES))

    def forward(self, patches: Tensor) -> Tensor:
        """Logits (n, 3) of patches (n, channels, X, Y, Z)."""
        features = self.pooled(self.residual(self.stem(patches)))
        hidden = functional.leaky_relu(self.hidden(features.flatten(1)), LEAK)
        return self.head(self.dropout(hidden))


def trunk(
    channels: int,
    widths: tuple[int, int, int],
    first_pooling: tuple[int, int, int],
    residual_width: int | None = None,
) -> tuple[nn.Sequential, nn.Sequential, nn.Sequential]:
    """What comes before the dense layers: at full resolution, residual, and widened.

    The first ends in max-pooling by ``first_pooling``, the last by two along each axis. The
    widths are those of `ModelDescription`.
    """
    narrow, middle, wide = widths
    deep = narrow if residual_width is None else residual_width
    stem = (*convolved(channels, narrow), *convolved(narrow, deep))
    residual = (ResidualBlock(deep) for _ in range(RESIDUAL_BLOCKS))
    return (
        nn.Sequential(*stem, nn.MaxPool3d(first_pooling)),
        nn.Sequential(*residual),
        nn.Sequential(*convolved(deep, middle), *convolved(middle, wide), nn.MaxPool3d(2)),
    )


def convolved(inputs: int, outputs: int) -> tuple[nn.Module, nn.Module, nn.Module]:
    """A 3 x 3 x 3 convolution that keeps the grid, normalisation, and what is positive."""
    convolution = nn.Conv3d(inputs, outputs, 3, padding=1, bias=False)
    return convolution, nn.BatchNorm3d(outputs), nn.ReLU()


@dataclass(frozen=True)
class LoadedModel:
    """A network ready for use, and where it comes from."""

    network: MicrobleedNet
    path: Path | None
    sha256: str
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def description(self) -> ModelDescription:
        """Channels, patch geometry, calibration, name and version."""
        return self.network.description

    @property
    def identity(self) -> dict[str, str]:
        """Which network this is: its name and the digest of its file."""
        return {"name": self.description.name, "sha256": self.sha256}


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
        provenance = json.loads(metadata.get("provenance", "{}"))
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
    return LoadedModel(network.eval(), path, digest, provenance)


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
        residual_width=content.get("residual_width"),
        hidden=int(content["hidden"]),
        geometry=PatchGeometry(tuple(geometry["shape"]), tuple(geometry["spacing_mm"])),
        calibration=Calibration(**calibration),
        name=content["name"],
        version=content["version"],
        dropout=float(content.get("dropout", 0.0)),
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
    network: nn.Module,
    patches: np.ndarray,
    mirrors: Sequence[tuple[int, ...]] = MIRRORED_AXES,
    doubtful_log_odds: float = DOUBTFUL_LOG_ODDS,
) -> np.ndarray:
    """Uncalibrated scores (n, 3) of patches (n, channels, X, Y, Z).

    The mean over the patch and its mirror images, which show the same lesion: what the network
    makes of the side a vein lies on should not decide. ``mirrors`` are the axes flipped for
    each of them. What is plainly no lesion in the first of them is not seen in the others.
    """
    first, *others = mirrors
    logits = _seen(network, patches, [first])
    if not others or not len(logits):
        return logits
    doubtful = lesion_log_odds(logits) >= doubtful_log_odds
    again = _seen(network, patches[doubtful], others)
    logits[doubtful] = (logits[doubtful] + len(others) * again) / len(mirrors)
    return logits


def lesion_log_odds(logits: np.ndarray) -> np.ndarray:
    """Uncalibrated log odds (n,) of a lesion of either kind, from logits (n, 3)."""
    return np.logaddexp(logits[:, 0], logits[:, 1]) - logits[:, 2]


def _seen(
    network: nn.Module, patches: np.ndarray, mirrors: Sequence[tuple[int, ...]]
) -> np.ndarray:
    """The mean over the mirror images of each patch, (n, 3)."""
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


def calibrate_scan(
    logits: np.ndarray,
    calibration: Calibration,
    scores: np.ndarray | None = None,
    points_mm: np.ndarray | None = None,
) -> np.ndarray:
    """Probabilities (n, 3) of the candidates of one scan, the rest of it weighed in.

    Raises
    ------
    ValueError
        The calibration uses scores or the rest of the scan, and scores or positions are not given.
    """
    probabilities = calibrate(logits, calibration, scores)
    if calibration.usual_burden is None and calibration.mimics_elsewhere is None:
        return probabilities
    if points_mm is None:
        raise ValueError("this network was calibrated with the rest of the scan: give positions")
    if calibration.usual_burden is not None:
        probabilities = weigh_by_burden(probabilities, points_mm, calibration.usual_burden)
    if calibration.mimics_elsewhere is not None:
        probabilities = weigh_by_look_alikes(probabilities, points_mm, calibration.mimics_elsewhere)
    return probabilities


def predict(
    model: LoadedModel,
    patches: np.ndarray,
    scores: np.ndarray | None = None,
    threads: int | None = None,
    mirrors: Sequence[tuple[int, ...]] = MIRRORED_AXES,
    points_mm: np.ndarray | None = None,
) -> np.ndarray:
    """Calibrated probabilities of the three classes for the candidates of one scan.

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
    mirrors : sequence of tuple, optional
        Of `predict_logits`: those that the network was calibrated with.
    points_mm : (n, 3) array, optional
        Where the candidates are; needed by networks whose calibration weighs the rest of the scan.

    Returns
    -------
    (n, 3) float array
        Microbleed, calcification, other; rows sum to one.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        seen = np.ascontiguousarray(patches, dtype=np.float32)
        logits = predict_logits(model.network, seen, mirrors)
    finally:
        torch.set_num_threads(before)
    return calibrate_scan(logits, model.description.calibration, scores, points_mm)
