"""Physics simulator of susceptibility-weighted scans with microbleeds, calcifications and veins.

In-process use (training, tests)::

    from cmb_bids.simulate import sample_subject, simulate_scan

    spec = sample_subject(seed=7, protocol="ukb", group="stroke")   # also "1.5T", "3T", "7T"
    scan = simulate_scan(spec, device="cpu")     # oversampling=(1.5, 1.5, 2) is a cheaper grid
    scan.magnitudes     # list of (x, y, z) float32, one per echo
    scan.phases         # list of (x, y, z) float32 radians, right-handed, wrapped
    scan.echo_times_s, scan.affine               # seconds; voxel to scanner RAS+ mm
    scan.brain_mask     # (x, y, z) bool
    scan.regions        # (x, y, z) uint8 atlas ids (right hemisphere + 100)
    scan.lesion_labels  # (x, y, z) uint16, the truth index of each lesion
    scan.truth          # DataFrame: index name x y z diameter_mm apparent_diameter_mm
                        # susceptibility_ppm contrast_to_noise hemisphere mars_region
                        # mars_class site

``dataclasses.replace(spec, ...)`` changes single conditions. Groups: healthy, haemodialysis,
tbi, stroke, population. The same spec gives the same scan.
"""

from cmb_bids.simulate.protocols import PROTOCOLS, Protocol, get_protocol
from cmb_bids.simulate.scan import SimulatedScan, simulate_scan
from cmb_bids.simulate.subject import GROUPS, PAPER_COHORT, SubjectSpec, sample_subject

__all__ = [
    "GROUPS",
    "PAPER_COHORT",
    "PROTOCOLS",
    "Protocol",
    "SimulatedScan",
    "SubjectSpec",
    "get_protocol",
    "sample_subject",
    "simulate_scan",
]
