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

import torch
from torch import Tensor, nn
from torch.nn import functional

from cmb_bids.resnet import (
    CLASSES,
    CONTRAST_ONLY,
    LEAK,
    RESIDUAL_BLOCKS,
    ModelDescription,
    ResidualBlock,
    convolved,
    middle_of,
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
        narrow, middle, wide = WIDTHS
        self.stem = nn.Sequential(
            *convolved(1, narrow), *convolved(narrow, narrow), nn.MaxPool3d((2, 2, 1))
        )
        self.residual = nn.Sequential(*(ResidualBlock(narrow) for _ in range(RESIDUAL_BLOCKS)))
        self.pooled = nn.Sequential(
            *convolved(narrow, middle), *convolved(middle, wide), nn.MaxPool3d(2)
        )
        self.hidden = nn.Linear(wide * 4 * 4 * 4, HIDDEN)
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
