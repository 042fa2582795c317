"""``cmb-lab {simulate,implant,train,evaluate,benchmark}``: what surrounds the counting."""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
from collections.abc import Sequence

from cmb_bids import __version__
from cmb_bids.cli import INTERRUPTED, Parser, unexpected
from cmb_bids.errors import CmbError, UsageError

# Command -> module with add_arguments(parser) and run(arguments) -> exit code, and what it does.
COMMANDS = {
    "simulate": ("cmb_bids.simulate.cli", "write a simulated BIDS dataset and its truth"),
    "implant": ("cmb_bids.implant.cli", "put simulated lesions into real scans, and say where"),
    "train": ("cmb_bids.training.cli", "train the networks from a seed"),
    "evaluate": ("cmb_bids.evaluate.cli", "score results against labels"),
    "benchmark": ("cmb_bids.benchmark", "time and memory of each stage on one scan"),
}


def make_parser(command: str | None) -> argparse.ArgumentParser:
    """The arguments; options only of ``command``, so that the others are not imported."""
    parser = Parser(prog="cmb-lab", description=__doc__, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"cmb-bids {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="{" + ",".join(COMMANDS) + "}")
    for name, (module, help_text) in COMMANDS.items():
        one = commands.add_parser(name, help=help_text, description=help_text, allow_abbrev=False)
        if name == command:
            importlib.import_module(module).add_arguments(one)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; exit codes are those of cmb-bids."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        command = next((word for word in arguments if not word.startswith("-")), None)
        options = make_parser(command).parse_args(arguments)
        if options.command is None:
            raise UsageError("command line", "no command is given", f"Use {', '.join(COMMANDS)}")
        return int(importlib.import_module(COMMANDS[options.command][0]).run(options))
    except CmbError as error:
        print(f"cmb-lab: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("cmb-lab: interrupted", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:  # the user gets a message, the log a traceback
        return unexpected("cmb-lab", error, arguments)


if __name__ == "__main__":
    sys.exit(main())
