"""Known lesions in real scans: ``cmb-lab implant``.

How well microbleeds are found depends on the scanner, and nobody has labels for theirs. Here the
tissue, the veins, the noise and the artefacts are the user's own; the lesions alone are simulated,
so that where they are and how strong is known.

- `effect`: what a lesion does to the complex signal of the voxels about it (arrays).
- `places`: which lesions, and where they may go.
- `dataset`: BIDS in, BIDS and its truth out.
"""
