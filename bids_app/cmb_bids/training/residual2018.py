"""A single-channel residual network of 2018, to compare with.

After Chen et al., J Digit Imaging 2019;32:766-772 (online 2018), doi 10.1007/s10278-018-0146-z, and
their abstract ISMRM 2018, 0432: patches of 16 x 16 x 8 voxels of SWI alone, five residual layers,
two rounds of convolution, convolution and max-pooling, two fully connected layers, microbleed or
not, about 47,000 weights. The order and widths of the layers are not published: those here are
chosen to that size (47,538 weights). Their voxels were 0.47 x 0.47 x 2 mm; here the patch is the
middle of ours, averaged to 0.75 x 0.75 x 2 mm, so that it shows 12 x 12 x 16 mm. Trained and
calibrated as all networks here are.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from cmb_bids.resnet import (
    CLASSES,
    CONTRAST_ONLY,
    LEAK,
    ModelDescription,
    trunk,
)

SHAPE = (16, 16, 8)
SLICES_AVERAGED = (1, 1, 2)
WIDTHS = (8, 16, 22)
HIDDEN = 10
NO_EVIDENCE = -20.0  # logit of calcification: this network does not know that class


class ResidualNet2018(nn.Module):
    """Residual network on the middle of patches, (n, 1, X, Y, Z) -> logits (n, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.description = ModelDescription(channels=CONTRAST_ONLY, name="residual-2018")
        self.stem, self.residual, self.pooled = trunk(1, WIDTHS, (2, 2, 1))
        self.hidden = nn.Linear(WIDTHS[-1] * 4 * 4 * 4, HIDDEN)
        self.dropout = nn.Dropout(0.3)
        self.head = nn.Linear(HIDDEN, 2)

    def forward(self, patches: Tensor) -> Tensor:
        """Logits (n, 3); that of calcification is low and constant."""
        thick = functional.avg_pool3d(patches, SLICES_AVERAGED)
        middle = middle_of(thick.shape[2:], SHAPE)
        features = self.pooled(self.residual(self.stem(thick[:, :, *middle])))
        hidden = functional.leaky_relu(self.hidden(features.flatten(1)), LEAK)
        microbleed, other = self.head(self.dropout(hidden)).unbind(dim=1)
        nothing = torch.full_like(microbleed, NO_EVIDENCE)
        logits = {"microbleed": microbleed, "calcification": nothing, "other": other}
        return torch.stack([logits[name] for name in CLASSES], dim=1)


def middle_of(shape: Sequence[int], wanted: Sequence[int]) -> tuple[slice, ...]:
    """Slices of the middle ``wanted`` voxels of a grid of ``shape``; all of it where it is less."""
    starts = [max(have - want, 0) // 2 for have, want in zip(shape, wanted, strict=True)]
    return tuple(slice(first, have - first) for first, have in zip(starts, shape, strict=True))
