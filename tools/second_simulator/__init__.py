"""Simulate labelled susceptibility-weighted scans, independently of ``cmb-lab simulate``.

    python tools/second_simulator OUTPUT --participants N --seed S --protocol mixed

The networks are trained on one simulator, so scores on its scans say nothing of what lies outside
its ideas. This one shares no code with it and decides otherwise wherever there is a choice:

* head: the ICBM152 tissue maps of nilearn inside a skull, scalp, face and sinuses made of distance
  functions, deformed anew for each participant;
* veins: space colonisation (Runions et al. 2007) of the sulci with Murray radii, marched medullary
  veins, drawn deep veins and sinuses;
* lesions: lobed ellipsoids on a fine grid of their own, which become one complex factor for each
  voxel (signal loss, phase and partial volume at once);
* contrast: Ernst equation from T1, proton density and R2* of the field strength;
* scanner: k-space crop, shutter, filter and interpolation, ghosts, coil combination, adaptive or
  sum-of-squares noise, and each vendor's scale and sign of phase.

Arrays are (z, y, x) here, vectors (x, y, z) in mm of the image frame, susceptibility in ppm, phase
in radians, right-handed. `docs/second_simulator.md` says how the results are used.
"""
