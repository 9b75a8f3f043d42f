"""The same training as a job's, by a script that anyone would write with the engine's own stack.

`python -m benchmarks.bare recipe.json`, in a process of its own: `bare_trl`, `bare_fsdp2` or
`bare_automodel`, as the recipe's `engine` says.
Prints one JSON object: `seconds_to_first_step` (from the process's start to the end of the first
optimizer step), `tokens_per_second` over all steps after the first, `peak_rss_bytes`, `losses`.
"""

import argparse
import json
import resource
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any


def main() -> int:
    """Train by the recipe; the figures as JSON on stdout."""
    parser = argparse.ArgumentParser(prog="benchmarks.bare")
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--started", type=float, default=time.time(), help="Unix time of the start")
    arguments = parser.parse_args()
    recipe = json.loads(arguments.recipe.read_text())
    steps = import_module(f"benchmarks.bare_{recipe['engine']}").train(recipe)
    sys.stdout.write("\n" + json.dumps(figures(steps, arguments.started)) + "\n")
    return 0


def figures(steps: list[dict[str, Any]], started: float) -> dict[str, Any]:
    """What the steps say."""
    seen = [0, *(int(step["seen"]) for step in steps)]
    seconds = steps[-1]["at"] - steps[0]["at"]
    return {
        "seconds_to_first_step": steps[0]["at"] - started,
        "tokens_per_second": (seen[-1] - seen[1]) / seconds,
        # Linux counts in KiB.
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "losses": [step["loss"] for step in steps],
    }


if __name__ == "__main__":
    sys.exit(main())
