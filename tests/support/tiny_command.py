"""What the command says with the tiny model, which Python and the server have to say too."""

import json
import subprocess
import tempfile

from programs import HARP, TINY, environment
from running_server import EXACT

PROMPTS = ["Once upon a time", "The little dog", "Lily and Tom went", "One day a bird", "There was a big tree",
           "Mom said to", "In the garden", "The sun was"]


def command(*arguments):
    done = subprocess.run([HARP, *arguments], env=environment(), capture_output=True, timeout=60, check=True)
    return json.loads(done.stdout)


def generated(prompt, *flags, n=32):
    """The greedy answer, as `harp generate --json` writes it."""
    return command("generate", "-m", str(TINY), "-p", prompt, "-n", str(n), "--temp", "0", "--format", "raw", "--json", *EXACT,
                   *flags)


def scored(text, *flags):
    """A text's log-likelihood, as `harp score --json` writes it."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write(text)
        file.flush()
        return command("score", "-m", str(TINY), "-f", file.name, "--json", *EXACT, *flags)
