"""What a search finds, and at what cost, against measuring everything.

`python -m tests.benchmarks.tune.record -o DIR` measures every configuration of a space once and for
all; `python -m tests.benchmarks.tune.replay DIR` lets the real search loose on what was recorded.
"""
