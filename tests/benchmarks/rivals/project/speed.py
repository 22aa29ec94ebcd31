"""The project's benchmark: one picture through the network."""

import numpy as np
from classify import open_model, picture


def test_network(benchmark):
    benchmark(open_model().run, None, picture(np.random.default_rng(0)))
