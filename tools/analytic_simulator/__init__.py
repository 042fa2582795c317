"""Simulate labelled susceptibility-weighted scans of a head made of formulas.

    python tools/analytic_simulator OUTPUT --participants N --seed S --protocol mixed

An independent simulator, written from the physics without sight of the detector. It shares no code
with ``cmb-lab simulate`` nor with the second simulator:

* head: every structure is a signed distance that a formula gives, bent anew for each participant;
  no template. Sulci are the zero sheets of a random wave, carried inwards from the surface;
* veins: walked along the sulcal sheets, down to the ventricles and across the cortex, many of them
  short and across the slices; named veins, sinuses and arteries from control points;
* lesions: rippled ellipsoids painted into the map of susceptibility itself, so that veins, tissue
  and lesions share one dipole field;
* contrast: Ernst equation from T1, proton density and R2* of the field strength;
* scanner: crop of k-space, loss of signal where the field is steep within a voxel, bias of coils,
  motion, noise, zero-filling, two-dimensional slices with gaps, and how vendors store phase.

Arrays are (x, y, z), points in mm, susceptibility and field in ppm, phase in radians. There are
four frames: *canonical* (close to MNI space, where the formulas live), *head* (canonical, bent and
scaled), *world* (scanner RAS, the static field along +z) and *slab* (mm along the axes of the
image). ``docs/analytic_simulator.md`` says how the results are used.
"""
