"""Fill numba's cache, so that a container does not compile on every run.

The cache holds code for the processor that builds the image; on another one numba compiles
again, once per writable cache, which costs a second or two.
"""

import numpy as np

from cmb_bids.candidates import CandidateConfig, find_candidates

image = np.ones((24, 24, 12), dtype=np.float32)
image[11:13, 11:13, 5:7] = 0.2
mask = np.ones(image.shape, dtype=bool)
found = find_candidates(image, mask, np.diag([1.0, 1.0, 2.0, 1.0]), config=CandidateConfig())
print("compiled; candidates found in a drawing:", len(found))
