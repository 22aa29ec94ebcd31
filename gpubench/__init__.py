"""gpubench: benchmarks of image classification on GPUs that can be trusted."""

__version__ = "0.1.0"
