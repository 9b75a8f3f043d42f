"""The same run without Ray and without the service: `python -m train_loops.run plan.json`.

For machines that lack Ray, benchmarks and tests. Also under `torchrun`, which names rank and world.
Checkpoints stay beside the plan's scratch folder; a second call goes on from the newest.
"""

import argparse
import json
import logging
import os
import sys
from pathlib import Path

from configs.job import Order
from configs.settings import Settings
from train_loops.checkpoint import FolderCheckpoints
from train_loops.engines.base import find_engine
from train_loops.inputs import fetch, job_folder
from train_loops.plan import Plan
from train_loops.ray_worker import agreement
from train_loops.report import Reporter, SilentReporter
from train_loops.run_log import RunLog
from train_loops.sinks.base import FanOut
from train_loops.stores.open import open_store
from train_loops.worker import Seat, train

logger = logging.getLogger(__name__)


def run(plan: Plan, settings: Settings, reporter: Reporter) -> Order:
    """Run `plan` in this process, as rank `RANK` of `WORLD_SIZE` (0 of 1 when unset)."""
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    inputs = fetch(plan, settings, os.environ.get("HF_TOKEN"), worker=f"rank-{rank}")
    store = open_store(plan.output_uri, settings)
    engine = find_engine(plan.engine)
    seat = Seat(
        rank=rank,
        world_size=world_size,
        reporter=reporter,
        checkpoints=FolderCheckpoints(
            plan.attempt, job_folder(plan, settings) / "checkpoints", rank, world_size
        ),
        sinks=FanOut([]),
        store=store,
        agree=agreement(rank, world_size, plan),
    )
    if rank:
        return train(plan, engine, inputs, seat)
    with RunLog(plan, inputs.scratch / "logs", store) as log:
        return train(plan, engine, inputs, seat.with_sinks(log.sinks))


def main() -> int:
    """Run the plan in the file named on the command line; rank 0 tells the outcome as JSON."""
    parser = argparse.ArgumentParser(prog="train_loops.run", description=__doc__)
    parser.add_argument("plan", type=Path)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO)
    plan = Plan.model_validate_json(arguments.plan.read_text())
    order = run(plan, Settings(), SilentReporter())
    if os.environ.get("RANK", "0") == "0":
        sys.stdout.write(json.dumps({"stopped": order.stop, "results": plan.results_uri}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
