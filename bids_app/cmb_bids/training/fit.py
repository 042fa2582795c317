"""Training: balanced batches, augmentation, a schedule, checkpoints that resume exactly.

Every batch is drawn from a generator seeded by (seed, step), and the learning rate is a function
of the step, so that an interrupted run resumed from its checkpoint ends as an uninterrupted one.
"""

from __future__ import annotations

import copy
import json
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from cmb_bids.resnet import MicrobleedNet
from cmb_bids.training.augmentation import augment, transplanted
from cmb_bids.training.drawn_veins import with_veins
from cmb_bids.training.labels import OTHER
from cmb_bids.training.residual2018 import ResidualNet2018

Network = MicrobleedNet | ResidualNet2018

log = logging.getLogger(__name__)

MARGIN_VOXELS = (2, 2, 2)  # stored around each patch, so that it can be shifted
CLASS_SHARES = (0.30, 0.20, 0.50)  # of a batch; candidates are nine tenths 'other'
HARDNESS = 0.4  # mimics whose lesion odds are e times higher are drawn e^0.4 = 1.5 times as often
HARDNESS_SCORES = (-6.0, 3.0)  # beyond, they are drawn no more rarely or often
TRANSPLANTED = 0.25  # of the microbleeds that can be seen elsewhere: put where there is a mimic
DRAWN_VEINS = 0.3  # of the mimics a vein is drawn through, and of the lesions one beside
LAYOUT = torch.channels_last_3d  # a third faster on CPUs


@dataclass(frozen=True)
class FitConfig:
    """How to train."""

    seed: int = 0
    batch_size: int = 64
    steps: int | None = None
    epochs: float = 12.0  # where no steps are given
    peak_learning_rate: float = 3e-3
    weight_decay: float = 0.02
    focal_gamma: float = 0.0
    label_smoothing: float = 0.0
    average_decay: float = 0.995
    transplanted: float = TRANSPLANTED
    drawn_veins: float = DRAWN_VEINS
    phase_mask_power: int = 4  # of the contrast that is seen; 0 where it is the magnitude
    checkpoint_every: int = 200
    device: str = "cpu"
    precision: str = "float32"  # or bfloat16: of the convolutions, not of weights and loss


@dataclass(frozen=True)
class Patches:
    """What a network learns from.

    Parameters
    ----------
    patches : (n, channels, X + 4, Y + 4, Z + 4) float16 or float32 array
        Cut with the network's geometry and `MARGIN_VOXELS` around.
    labels : (n,) integer array
        0 microbleed, 1 calcification, 2 other; negative ones are not used.
    weights : (n,) array, optional
        How often each is drawn, relative to the others of its class; by default all alike.
    slice_mm : (n,) array, optional
        Thickness of the slices that each was cut from, where it is known.
    """

    patches: np.ndarray
    labels: np.ndarray
    weights: np.ndarray | None = None
    slice_mm: np.ndarray | None = None

    def take(self, chosen: np.ndarray) -> Patches:
        """Those of these numbers, or where a mask (n,) is true."""
        return Patches(
            *(None if part is None else part[chosen] for part in vars(self).values())  # type: ignore[arg-type]
        )

    @classmethod
    def join(cls, parts: Sequence[Patches]) -> Patches:
        """All of these, one after the other; weights and slices where all parts have them."""
        columns = zip(*(vars(part).values() for part in parts), strict=True)
        return cls(
            *(None if any(part is None for part in c) else np.concatenate(c) for c in columns)  # type: ignore[arg-type]
        )


def draw_weights(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Weights (n,) with which the mimics that look most like lesions are drawn most often.

    Most candidates are easy, and teach nothing after the first thousands. ``scores`` (n,) are log
    odds of screening. The weights are a power of the odds, so that what they do to a network's
    probabilities is a weight of the score, which its calibration fits (`fit_calibration`).
    """
    odds = np.clip(np.asarray(scores, dtype=float), *HARDNESS_SCORES)
    return np.where(labels == OTHER, np.exp(HARDNESS * odds), 1.0)


def without_margin(stored: np.ndarray) -> np.ndarray:
    """What a network sees (n, channels, X, Y, Z) float32 of patches stored with their margin."""
    x, y, z = (slice(margin, -margin) for margin in MARGIN_VOXELS)
    return stored[:, :, x, y, z].astype(np.float32)


def sample_batch(
    labels: np.ndarray, size: int, rng: np.random.Generator, weights: np.ndarray | None = None
) -> np.ndarray:
    """Indices (size,) with fixed shares of the classes; a class that is absent is left out.

    Within a class all are drawn alike, or in proportion to ``weights`` (n,).
    """
    present = [c for c in range(len(CLASS_SHARES)) if (labels == c).any()]
    shares = np.array([CLASS_SHARES[c] for c in present])
    drawn = rng.choice(present, size=size, p=shares / shares.sum())
    members = {c: np.flatnonzero(labels == c) for c in present}
    if weights is None:
        return np.array([rng.choice(members[c]) for c in drawn])
    chances = {c: weights[m] / weights[m].sum() for c, m in members.items()}
    return np.array([rng.choice(members[c], p=chances[c]) for c in drawn])


def focal_loss(logits: Tensor, labels: Tensor, gamma: float, smoothing: float) -> Tensor:
    """Cross-entropy in which what is already right weighs less (Lin et al., ICCV 2017)."""
    plain = nn.functional.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)
    with torch.no_grad():
        right = torch.softmax(logits, dim=1).gather(1, labels[:, None])[:, 0]
    return ((1 - right) ** gamma * plain).mean()


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Up for a tenth of the run, then down along a cosine to a hundredth of the peak."""
    warm = max(1, steps // 10)
    if step < warm:
        return peak * (step + 1) / warm
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - warm) / (steps - warm))))


@dataclass
class Progress:
    """A run's state: the network trained, its running average, the optimiser and the step."""

    network: Network
    average: Network
    optimiser: torch.optim.AdamW
    step: int = 0
    steps: int = 0

    @classmethod
    def start(cls, network: Network, config: FitConfig) -> Progress:
        """Begin from this network."""
        network = network.to(config.device, memory_format=LAYOUT)  # type: ignore[call-overload]
        average = copy.deepcopy(network)
        optimiser = torch.optim.AdamW(
            network.parameters(), lr=config.peak_learning_rate, weight_decay=config.weight_decay
        )
        return cls(network, average, optimiser)

    def save(self, path: Path) -> None:
        """Write a checkpoint (safetensors: nothing to unpickle)."""
        tensors = {f"network.{k}": v for k, v in self.network.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in self.average.state_dict().items()}
        for index, state in self.optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{index}.{k}": v for k, v in state.items()}
        tensors = {k: v.detach().cpu().clone().contiguous() for k, v in tensors.items()}
        beside = path.with_name(f".{path.name}.partial")
        save_file(
            tensors,
            str(beside),
            metadata={"progress": json.dumps({"step": self.step, "steps": self.steps})},
        )
        beside.replace(path)

    def resume(self, path: Path) -> None:
        """Go on from a checkpoint."""
        with safe_open(str(path), framework="pt") as file:
            self.step, self.steps = json.loads(file.metadata()["progress"]).values()
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118

        def part(name: str) -> dict[str, Tensor]:
            return {k.removeprefix(name): v for k, v in tensors.items() if k.startswith(name)}

        self.network.load_state_dict(part("network."))
        self.average.load_state_dict(part("average."))
        state = self.optimiser.state_dict()
        for key, value in part("optimiser.").items():
            index, name = key.split(".", 1)
            state["state"].setdefault(int(index), {})[name] = value
        self.optimiser.load_state_dict(state)


def fit(
    network: Network,
    data: Patches,
    config: FitConfig,
    checkpoint: Path | None = None,
    report: Callable[[Network, int], None] | None = None,
) -> tuple[Network, int]:
    """Train a network.

    Parameters
    ----------
    network : MicrobleedNet or ResidualNet2018
        Where to start from; its description says what the channels are.
    data : Patches
    config : FitConfig
        An epoch is as many patches as there are usable labels, divided by four: most are easy.
    checkpoint : path, optional
        Resumed from when it exists, and written to.
    report : callable, optional
        Called now and then with the averaged network and the step.

    Returns
    -------
    network
        The running average of the weights, in evaluation mode.
    int
        The number of steps.

    Raises
    ------
    ValueError
        Fewer than two classes are present.
    """
    usable = data.labels[data.labels >= 0]
    if len(np.unique(usable)) < 2:
        raise ValueError("training needs candidates of at least two classes; simulate more cases")
    progress = Progress.start(network, config)
    if checkpoint is not None and checkpoint.is_file():
        progress.resume(checkpoint)
        log.info("resumed at step %d of %d", progress.step, progress.steps)
    if not progress.steps:
        epoch = len(usable) / 4 / config.batch_size
        progress.steps = max(1, config.steps or round(config.epochs * epoch))
    started = time.monotonic()
    running = 0.0
    while progress.step < progress.steps:
        loss = _one_step(progress, data, config)
        progress.step += 1
        running = loss if progress.step == 1 else 0.98 * running + 0.02 * loss
        if progress.step % 50 == 0:
            minutes = (time.monotonic() - started) / 60
            log.info(
                "step %d/%d loss %.4f %.1f min", progress.step, progress.steps, running, minutes
            )
        if progress.step % config.checkpoint_every == 0 or progress.step == progress.steps:
            if checkpoint is not None:
                progress.save(checkpoint)
            if report is not None:
                report(progress.average.eval(), progress.step)
    return progress.average.eval().cpu(), progress.steps


def _one_step(progress: Progress, data: Patches, config: FitConfig) -> float:
    """Draw a batch, augment it, descend; returns the loss."""
    rng = np.random.default_rng([config.seed, progress.step])
    torch.manual_seed(int(rng.integers(2**31)))  # dropout
    chosen = sample_batch(data.labels, config.batch_size, rng, data.weights)
    drawn = data.take(chosen)
    stored, labels = torch.from_numpy(drawn.patches.astype(np.float32)), drawn.labels
    network, optimiser = progress.network.train(), progress.optimiser
    channels = network.description.channels
    stored = transplanted(stored, labels, config.transplanted, rng, channels, drawn.slice_mm)
    stored = with_veins(
        stored, labels, config.drawn_veins, rng, channels, config.phase_mask_power, drawn.slice_mm
    )
    batch = augment(stored, MARGIN_VOXELS, rng, channels)
    batch = batch.to(config.device, memory_format=LAYOUT)  # type: ignore[call-overload]
    target = torch.from_numpy(labels.astype(np.int64)).to(config.device)
    for group in optimiser.param_groups:
        group["lr"] = learning_rate(progress.step, progress.steps, config.peak_learning_rate)
    optimiser.zero_grad(set_to_none=True)
    with torch.autocast(batch.device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
        logits = network(batch)
    loss = focal_loss(logits.float(), target, config.focal_gamma, config.label_smoothing)
    loss.backward()
    nn.utils.clip_grad_norm_(network.parameters(), 2.0)
    optimiser.step()
    _update_average(progress, config.average_decay)
    return float(loss.detach())


def _update_average(progress: Progress, decay: float) -> None:
    """Move the running average towards the network; faster while it is young."""
    decay = min(decay, (1 + progress.step) / (10 + progress.step))
    with torch.no_grad():
        new = progress.network.state_dict()
        for key, value in progress.average.state_dict().items():
            if value.is_floating_point():
                value.lerp_(new[key], 1 - decay)
            else:
                value.copy_(new[key])
