"""What trains: plan, data, engines, Ray Train driver and workers, checkpoints, artifacts, sinks.

torch, transformers and the rest are imported inside an engine or a function only.
"""
