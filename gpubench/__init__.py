"""gpubench: benchmarks of image classification on GPUs that can be trusted.

PYTEST_DONT_REWRITE (the plug-in needs none of pytest's rewriting, and would be imported before it)
"""

__version__ = "0.1.0"
