"""The promises of gpubench, put to the test: by simulation, and on a real machine.

`python -m tests.benchmarks.trust.simulate` writes the simulated part again, from seeds.
"""
