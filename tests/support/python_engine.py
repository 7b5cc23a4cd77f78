"""What the tests of the Python package's engine share: the tiny model, prompts, and what the command says of them."""

import json
import subprocess

import harp
from programs import HARP, TINY, environment
from running_server import EXACT

PROMPTS = ["Once upon a time", "The little dog", "Lily and Tom went", "One day a bird", "There was a big tree",
           "Mom said to", "In the garden", "The sun was"]
OPTIONS = harp.HarpOptions(threshold=0.5, seed=3)
FLAGS = ["--harp-threshold", "0.5", "--harp-seed", "3"]


def command(*arguments):
    done = subprocess.run([HARP, *arguments], env=environment(), capture_output=True, timeout=60, check=True)
    return json.loads(done.stdout)


def generated(prompt, *flags, n=32):
    return command("generate", "-m", str(TINY), "-p", prompt, "-n", str(n), "--temp", "0", "--format", "raw", "--json", *EXACT,
                   *flags)


def tiny(*flags):
    return harp.Model(TINY, n_threads=1, llama_args=[*EXACT, *flags])
