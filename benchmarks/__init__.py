"""How fast the service is, each figure beside something else in the same run.

`python -m benchmarks` (`make bench`) starts a stack of its own; the method is in
`docs/BENCHMARKS.md`. Not a part of the service: nothing imports it.
"""
