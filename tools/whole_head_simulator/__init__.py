"""Simulate labelled susceptibility-weighted scans of whole heads with dense veins.

    python tools/whole_head_simulator OUTPUT --participants N --seed S --only LABEL...

A fourth independent simulator. It shares no code with ``cmb-lab simulate``, with the detector nor
with the other simulators beside it:

* head: hulls of cerebrum, cerebellum and brainstem as signed distances in a template's
  coordinates, scaled and bent for each participant; folds are the zero sheets of band-passed noise
  that hardly changes along the depth; skull, marrow, scalp, face, air cells and sinuses around it;
* veins: walked along the folds and up the surface, through white matter down to the ventricles and
  up to the cortex, all over the cerebellum; many are thinner than a voxel and keep their volume;
* lesions: ovoids with an uneven surface and an uneven inside, painted into the susceptibility of
  the fine grid, so that they share one dipole field with the veins;
* scanner: fine slices one by one, crop of k-space with motion and filter, slab or slice profile,
  bias and phase of coils, noise, and how vendors store phase.

Arrays are [z, y, x], but for what lies in files, which is (x, y, z). Points are (..., 3) arrays or
three arrays of x, y and z, in mm. Susceptibility and field are in ppm, phase in radians and
right-handed, angles in degrees, times in seconds. Susceptibility is against water, but for that of
the whole head, ``head.Matter.chi``, which is against air.

There are three frames: *template* (close to MNI space, where the shapes are written down), *grid*
(mm along the axes of the image, 0 at the centre of the slab) and *world* (scanner RAS, the static
field along +z). The head lies on an even grid of 1 mm (`head.Head`), veins, lesions and the signal
on a finer one over the image's field of view (`fine.FineMap`); both are in the frame *grid*.
``docs/whole_head_simulator.md`` says more.
"""
