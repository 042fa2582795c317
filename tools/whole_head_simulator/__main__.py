"""``python tools/whole_head_simulator``: see the package's documentation."""

import sys
from pathlib import Path

# Run as a folder, Python looks inside it and not beside it.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from whole_head_simulator.dataset import main

if __name__ == "__main__":
    sys.exit(main())
