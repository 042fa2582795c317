"""Who is compared: the shipped networks, the paper's four inputs, and older detectors.

All are given the same candidates of the same cases (`magnitude` its own, for without phase there
are others), calibrated on the same validation cases, with thresholds chosen there in the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from cmb_bids import __version__
from cmb_bids.errors import UsageError
from cmb_bids.resnet import (
    CONTRAST_AND_PHASE,
    CONTRAST_ONLY,
    SHIPPED,
    LoadedModel,
    MicrobleedNet,
    ModelDescription,
    load_model,
)
from cmb_bids.training.fit import Network
from cmb_bids.training.labels import CALCIFICATION, OTHER
from cmb_bids.training.residual2018 import ResidualNet2018
from cmb_bids.training.shards import CandidateSet
from cmb_bids.volumes import written_whole

PHASE_ONLY = ("highpass",)
# Of the network that is trained long enough to use them. The others keep the smaller ones of
# `ModelDescription`: those that are compared are short of steps.
WIDE, WIDE_RESIDUAL = (8, 32, 32), 16
FAINTEST = 1e-6  # added to a strength before its logarithm is taken


@dataclass(frozen=True)
class Contender:
    """One detector.

    Attributes
    ----------
    name, title : str
        In file names; in tables.
    kind : str
        Whose candidates: ``complex`` (with phase) or ``magnitude``.
    channels : tuple of str
        What its network sees; empty where it is no network.
    baselines : tuple of str
        Where it is no network: which stored strengths it may rank by; the best of them on the
        validation cases is taken. ``score`` is the pipeline's own.
    shipped : bool
        Trained at full length on all cases, calibrated with the candidate's score, written with
        its card. The others are compared on equal terms, without that score.
    wide : bool
        Whether its network has about twice the features.
    mimics_elsewhere : float or None
        How many times as common mimics are on scans that the simulator did not make, as
        `cmb_bids.training.elsewhere` measured it. None: not known, or compared on its own ground.
    """

    name: str
    title: str
    kind: str = "complex"
    channels: tuple[str, ...] = ()
    baselines: tuple[str, ...] = ()
    shipped: bool = False
    wide: bool = False
    mimics_elsewhere: float | None = None


SHIPPED_NETWORKS = (
    Contender(
        SHIPPED[CONTRAST_AND_PHASE],
        "shipped, SWI + phase",
        "complex",
        CONTRAST_AND_PHASE,
        shipped=True,
        wide=True,
        mimics_elsewhere=4.5,
    ),
    Contender(
        SHIPPED[CONTRAST_ONLY], "shipped, magnitude", "magnitude", CONTRAST_ONLY, shipped=True
    ),
)
REFERENCE = "swi-and-phase"
COMPARED = (
    Contender(REFERENCE, "SWI + phase", "complex", CONTRAST_AND_PHASE),
    Contender("swi", "SWI alone", "complex", CONTRAST_ONLY),
    Contender("phase", "phase alone", "complex", PHASE_ONLY),
    Contender("magnitude", "magnitude alone", "magnitude", CONTRAST_ONLY),
    Contender("residual-2018", "residual network of 2018, SWI", "complex", CONTRAST_ONLY),
)
BASELINES = (
    Contender("frst", "FRST alone", baselines=("frst_magnitude", "frst_swi", "frst_phase")),
    Contender(
        "laplacian-of-gaussian", "Laplacian of Gaussian", baselines=("laplacian_of_gaussian",)
    ),
    Contender("candidate-score", "candidate score alone", baselines=("score",)),
)
CONTENDERS = {one.name: one for one in (*SHIPPED_NETWORKS, *COMPARED, *BASELINES)}


def new_network(contender: Contender, seed: int) -> Network:
    """A network with the starting weights of this seed."""
    torch.manual_seed(seed)
    if contender.name == "residual-2018":
        return ResidualNet2018()
    description = ModelDescription(contender.channels, name=contender.name, version=__version__)
    if contender.wide:
        description = replace(description, widths=WIDE, residual_width=WIDE_RESIDUAL)
    return MicrobleedNet(description)


def started_from(contender: Contender, init: str) -> tuple[Network, LoadedModel]:
    """A shipped network that goes on from weights there are already, and these.

    Parameters
    ----------
    contender : Contender
        One of the shipped.
    init : str
        ``shipped``, a file or a directory, as in `cmb_bids.resnet.load_model`.

    Raises
    ------
    UsageError
        Its widths are not those of the contender.
    """
    before = load_model(init, contender.channels)
    network = new_network(contender, 0)
    try:
        network.load_state_dict(before.network.state_dict())
    except RuntimeError as error:
        raise UsageError(
            "--init",
            f"{before.path} has other layers than {contender.name} has now",
            "Leave --init out: the network is then trained from the beginning",
        ) from error
    return network, before


def save_weights(network: Network, path: Path) -> None:
    """Write the weights alone (safetensors), whole or not at all."""
    state = {key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()}
    with written_whole(path) as beside:
        save_file(state, str(beside))


def load_weights(contender: Contender, path: Path) -> Network:
    """The trained network of a contender, in evaluation mode."""
    network = new_network(contender, 0)
    network.load_state_dict(load_file(str(path)))
    return network.eval()


def patches_seen(contender: Contender, found: CandidateSet) -> np.ndarray:
    """The stored patches (n, channels, ...) in the channels that the contender sees."""
    wanted = [CONTRAST_AND_PHASE.index(name) for name in contender.channels]
    return found.patches if len(wanted) == found.patches.shape[1] else found.patches[:, wanted]


def strengths(found: CandidateSet, name: str) -> np.ndarray | None:
    """Logarithm (n,) of a classical detector's strength at each candidate; None if not stored."""
    if name == "score":
        return np.asarray(found.scores, dtype=float)  # a logarithm already
    if name not in found.baselines:
        return None
    return np.log(np.maximum(np.asarray(found.baselines[name], dtype=float), 0) + FAINTEST)


def targets(contender: Contender, labels: np.ndarray) -> np.ndarray:
    """Labels to train on: the network of 2018 and older detectors know microbleeds and all else."""
    binary = contender.name == "residual-2018" or not contender.channels
    return np.where(labels == CALCIFICATION, OTHER, labels) if binary else labels


def named(names: Sequence[str]) -> list[Contender]:
    """Contenders by name."""
    return [CONTENDERS[name] for name in names]
