"""The promises of gpubench, shown by simulation: the real code judges, only the machine is not real.

`python -m tests.benchmarks.trust.simulate` writes the whole table again, from seeds.
"""
