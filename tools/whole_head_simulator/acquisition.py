"""How one participant is placed and scanned."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from whole_head_simulator.geometry import Grid, rotation
from whole_head_simulator.settings import TEMPLATE_CENTRE, Protocol


@dataclass(frozen=True)
class Acquisition:
    """A protocol with what is set anew for each participant.

    Attributes
    ----------
    protocol : Protocol
    repetition_s, flip_deg : float
    oblique : bool
        Whether the slab is turned with the head.
    axes : ndarray of shape (3, 3)
        Rotation from the frame *grid* to *world*.
    head_turn : ndarray of shape (3, 3)
        Rotation from the head's axes to the frame *grid*.
    position : ndarray of shape (3,)
        World mm of the centre of the slab.
    """

    protocol: Protocol
    repetition_s: float
    flip_deg: int
    oblique: bool
    axes: np.ndarray
    head_turn: np.ndarray
    position: np.ndarray

    @property
    def field_direction(self) -> np.ndarray:
        """Unit vector of the static field in the frame *grid*."""
        return self.axes.T @ np.array([0, 0, 1.0])

    @property
    def field_of_view_mm(self) -> np.ndarray:
        """Along x, y and z."""
        return np.array(self.protocol.voxel_mm) * np.array(self.protocol.matrix)

    @property
    def fine(self) -> Grid:
        """Grid of veins, lesions and signal."""
        spacing = self.field_of_view_mm / np.array(self.protocol.fine_matrix)
        return Grid(self._first_sample(spacing), spacing, self.protocol.fine_matrix[::-1])

    @property
    def image(self) -> Grid:
        """Grid of the image; its first voxel lies where that of the fine grid lies."""
        spacing = self.field_of_view_mm / np.array(self.protocol.fine_matrix)
        voxel = np.array(self.protocol.voxel_mm)
        return Grid(self._first_sample(spacing), voxel, self.protocol.matrix[::-1])

    def _first_sample(self, spacing: np.ndarray) -> np.ndarray:
        voxel = np.array(self.protocol.voxel_mm)
        return -self.field_of_view_mm / 2 + np.minimum(voxel, spacing) / 2

    def world(self, point: np.ndarray) -> np.ndarray:
        """World mm of a point (3,) in grid mm."""
        return self.axes @ point + self.position

    def affine(self) -> np.ndarray:
        """From voxels (x, y, z) of the image to world mm, as the image comes off the scanner."""
        affine = np.eye(4)
        affine[:3, :3] = self.axes @ np.diag(np.array(self.protocol.voxel_mm))
        affine[:3, 3] = self.axes @ self.image.origin + self.position
        return affine


def draw_acquisition(rng: np.random.Generator, protocol: Protocol) -> Acquisition:
    """Draw timing, how the head lies and how the slab is turned.

    Parameters
    ----------
    rng : numpy.random.Generator
    protocol : Protocol

    Returns
    -------
    Acquisition
    """
    repetition_s = round(rng.uniform(*protocol.repetition_s), 4)
    flip_deg = round(rng.uniform(*protocol.flip_deg))
    nod = np.clip(rng.normal(0, 6), -13, 13)
    head = rotation(nod, rng.normal(0, 2.5), rng.normal(0, 3.0))
    oblique = bool(rng.random() < 0.45)
    axes = np.eye(3)
    if oblique:  # along the head, nearly
        axes = head @ rotation(rng.normal(0, 2.5), rng.normal(0, 1), rng.normal(0, 1))
    position = TEMPLATE_CENTRE + rng.normal(0, [2, 7, 7])
    return Acquisition(protocol, repetition_s, flip_deg, oblique, axes, axes.T @ head, position)
