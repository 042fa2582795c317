"""Cerebral microbleeds in susceptibility-weighted MRI: a BIDS App."""

import os

# nipype asks a server for its latest version when it is imported, unless told not to.
os.environ.setdefault("NO_ET", "1")

__version__ = "0.1.0"
