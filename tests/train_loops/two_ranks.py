"""Run by `torchrun` on each of two ranks: one plan to its end, another with a stop and a resume.

Prints one line a rank: how each of the three runs ended. `test_trl_engine.py` starts it and judges.
"""

import os
import sys
from pathlib import Path

from configs.settings import Settings
from tests.train_loops.plans import OrderingReporter
from train_loops.plan import Plan
from train_loops.run import run


def main(folder: Path) -> None:
    """Run `both.json` and `halted.json`, the second one in two attempts."""
    both, halted = (
        Plan.model_validate_json((folder / f"{name}.json").read_text())
        for name in ("both", "halted")
    )
    # Rank 0's order counts; the others would go on if they were not told.
    stop = "cancel" if os.environ["RANK"] == "0" else None
    ends = [
        run(plan, Settings(_env_file=None), reporter).stop
        for plan, reporter in (
            (both, OrderingReporter()),
            (halted, OrderingReporter(stop, at_step=2)),
            (halted.model_copy(update={"attempt": 2}), OrderingReporter()),
        )
    ]
    # One write, so that the lines of two ranks do not mix.
    sys.stdout.write(f"\nrank {os.environ['RANK']}: {', '.join(map(str, ends))}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
