"""Simulate labelled susceptibility-weighted scans of a crude head with veins that walk at random.

    python tools/random_walk_simulator OUTPUT --participants N --seed S

A third independent simulator, crude on purpose: an ellipsoid for a brain, smooth noise for its
folds, spheres for lesions, and veins that walk at random and are drawn without partial volume, so
that those thinner than a voxel come out as dots in a row. It asks how much of what a detector does
well elsewhere comes from anatomy that looks alike. It shares no code with ``cmb-lab simulate`` nor
with the other simulators beside it.

Arrays are (x, y, z) along right, anterior and superior, points in mm from the middle of the head,
susceptibility in ppm against water, field in tesla, phase in radians and right-handed.
``docs/random_walk_simulator.md`` says what it showed.
"""
