"""Where things lie, and what a rule hands to its step."""

from cmb_bids.training.fingerprint import data_key
from cmb_bids.training.shards import wanted_cases

OUT = str(Path(config["output"]).resolve())
# All that decides what a case holds, besides its number and the code.
SETTINGS = {"seed": config["seed"]}
SHARDS = str(Path(config.get("shards") or f"{OUT}/shards-{data_key(SETTINGS)}").resolve())
NUMBERS = wanted_cases(config["cases"], config.get("training_cases"))
STEP = "../scripts/step.py"
NETWORKS = [*config["shipped"], *config["compared"]]
MB_PER_CASE = 10  # of patches, read from the disk while training; with less it is slower


def one_of(names):
    """A pattern for wildcards that matches these names and no other."""
    return "|".join(names) or "none"
