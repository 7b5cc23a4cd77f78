"""What the tests of the server share: a text, what the command answers, HARP's metrics."""

import urllib.request

from tiny_command import generated

# more tokens than one batch can echo (echo_rows_per_batch)
TEXT = ("Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, she saw a big "
        "dog. The dog was brown and had a long tail. Lily wanted to play with it, but her mom said no. The dog ran to the tree "
        "and sat down. Then a small bird came and sang a song. Lily was happy and they all went home.")


def generate(prompt, *flags, n=48):
    """What the command answers to the same prompt, greedily."""
    return generated(prompt, *flags, n=n)["text"]


def metrics(server):
    """HARP's metrics from a server started with --metrics, as written."""
    with urllib.request.urlopen(server.url + "/metrics", timeout=30) as answer:
        lines = [line.split() for line in answer.read().decode().splitlines() if line.startswith("llamacpp:harp_")]
    return {name.removeprefix("llamacpp:harp_"): value for name, value in lines}


def counters(server):
    return {name: float(value) for name, value in metrics(server).items()}
