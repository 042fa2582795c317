"""A participant's head on its grid: where everything is, and what it is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from whole_head_simulator.brain import Brain, build_brain
from whole_head_simulator.frame import Frame, draw_frame
from whole_head_simulator.geometry import F, Grid, ramp
from whole_head_simulator.hulls import Hulls, build_hulls, callosal_ellipse
from whole_head_simulator.nuclei import DeepGrey, build_nuclei, white_matter_lesions
from whole_head_simulator.settings import AGEING, AIR_PPM
from whole_head_simulator.shell import Shell, build_shell

GREY_PPM, WHITE_PPM, FLUID_PPM = 0.02, -0.03, 0.01
BONE_PPM, MARROW_PPM, FAT_PPM = -2.0, 1.0, 0.6  # marrow on top of bone
NUCLEUS_PPM = 0.02  # nuclei have their own instead of that of cortex


class Matter(NamedTuple):
    """What the signal and the field are made of, on the head's grid.

    Attributes
    ----------
    depth : ndarray
        Into tissue from the nearest fluid, mm.
    deep_grey : ndarray
        Share of grey matter in nuclei.
    iron : ndarray
        Susceptibility of nuclei, ppm.
    white_lesions : ndarray
        0 to 1.
    shell : Shell
    chi : ndarray
        Susceptibility against air, ppm.
    brain : ndarray
        Share of brain tissue, without fluid.
    """

    depth: np.ndarray
    deep_grey: np.ndarray
    iron: np.ndarray
    white_lesions: np.ndarray
    shell: Shell
    chi: np.ndarray
    brain: np.ndarray


@dataclass(frozen=True)
class Head:
    """One participant's head.

    Attributes
    ----------
    age : float
        How old the brain looks, 0 to 1.
    turn : ndarray of shape (3, 3)
        Rotation from the head's axes to those of the grid.
    frame : Frame
    points : list of three ndarray
        Template x, y and z of every sample of the grid.
    hulls : Hulls
    brain : Brain
    callosal : ndarray
        Below 1 within the ellipse of the corpus callosum.
    masks : dict of str to ndarray of bool
        Deep nuclei.
    matter : Matter
    brain_ml : float
    """

    age: float
    turn: np.ndarray
    frame: Frame
    points: list[np.ndarray]
    hulls: Hulls
    brain: Brain
    callosal: np.ndarray
    masks: dict[str, np.ndarray]
    matter: Matter
    brain_ml: float

    @property
    def grid(self) -> Grid:
        """The grid of all volumes."""
        return self.frame.grid


def build_head(
    rng: np.random.Generator, group: str, turn: np.ndarray, spacing_mm: float = 1.0
) -> Head:
    """Draw a head.

    Parameters
    ----------
    rng : numpy.random.Generator
    group : str
        Clinical group, which decides how old the brain looks.
    turn : ndarray of shape (3, 3)
        Rotation from the head's axes to those of the grid.
    spacing_mm : float
        Of the grid.

    Returns
    -------
    Head
    """
    age = float(np.clip(rng.normal(AGEING[group], 0.2), 0, 1))
    frame = draw_frame(rng, turn, spacing_mm)
    hulls = build_hulls(frame)
    points = [frame.refine(line) for line in frame.halved_points()]
    brain = build_brain(rng, frame, points, hulls, age)
    nuclei = build_nuclei(rng, frame, points, brain, age)
    lesions = white_matter_lesions(rng, frame, brain, hulls.cerebrum, age)
    shell = build_shell(rng, frame, points, hulls.inner_skull, age)
    tissue = ramp(brain.depth, 0.8) * shell.brain
    chi = _susceptibility(brain, nuclei, shell, tissue)
    matter = Matter(brain.depth, nuclei.grey, nuclei.chi, lesions, shell, chi, tissue)
    cord = (hulls.brainstem < 0) & (points[2] < -62)
    whole = (tissue > 0.5) & (brain.depth > 0) | (brain.ventricles < 0)
    brain_ml = float(whole.sum() - cord.sum()) * spacing_mm**3 / 1000
    callosal = callosal_ellipse(points)
    return Head(age, turn, frame, points, hulls, brain, callosal, nuclei.masks, matter, brain_ml)


def _susceptibility(brain: Brain, nuclei: DeepGrey, shell: Shell, tissue: np.ndarray) -> np.ndarray:
    """Susceptibility against air (ppm): 0 outside."""
    grey = np.maximum(ramp(2.5 - brain.depth, 1.2), nuclei.grey)
    inside = grey * F(GREY_PPM) + (1 - grey) * F(WHITE_PPM) + nuclei.chi
    inside -= F(NUCLEUS_PPM) * (nuclei.grey > 0.4)
    chi = tissue * inside + (1 - tissue) * shell.brain * F(FLUID_PPM)
    fat = shell.fat * (1 - shell.bone) * (1 - shell.brain)
    chi += shell.bone * (F(BONE_PPM) + shell.marrow * F(MARROW_PPM)) + fat * F(FAT_PPM)
    return (chi * (1 - shell.air) - F(AIR_PPM) * (1 - shell.air)).astype(F)
