"""What trains: plan, data, engines, Ray Train driver and workers, checkpoints, artifacts, sinks.

torch, transformers and the rest are imported inside an engine or a function only.
"""

import os

# TRL would tell the hub of every run. Here, because the hub library reads it once, at its import;
# an operator who does want it sets HF_HUB_DISABLE_TELEMETRY=0.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
