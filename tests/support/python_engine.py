"""What the tests of the Python package's engine share: the tiny model, and options with the command's flags for them."""

import harp
from programs import TINY
from running_server import EXACT

OPTIONS = harp.HarpOptions(threshold=0.5, seed=3)
FLAGS = ["--harp-threshold", "0.5", "--harp-seed", "3"]


def tiny(*flags):
    return harp.Model(TINY, n_threads=1, llama_args=[*EXACT, *flags])
