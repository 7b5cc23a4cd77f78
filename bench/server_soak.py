#!/usr/bin/env python3
"""Minutes of mixed load on harp-server: does its memory stay flat, and is each request answered correctly?

    bench/server_soak.py                                    the tiny model, 10 minutes
    bench/server_soak.py -m model.gguf --minutes 60 --json soak.json
    bench/server_soak.py --url here=http://127.0.0.1:8080 --pid 4711

Each of several clients sends, one request after another, what a seeded generator draws: completions, chats, log-probabilities,
prompts that fill a slot, all with varying HARP options; some hang up before or in mid-answer; bad requests must get their one
correct status. One more client repeats the same greedy request; with --exact it must always get the same answer (with float32
weights; otherwise the size of batches changes rounding). The server's memory is read each second: resident (RSS), and its part
that is not of files (the model file is mapped, so its part grows as it is touched). The verdict is on the latter: a line is fitted
from the first minute on, and its rise up to the end must not exceed --allow. Exit code 1 if it does, if a request got a wrong
status, or if the server died.

llama.cpp's prompt cache in main memory grows up to 8 GiB by design; it is turned off here by --cache-ram 0 (a flag after -- wins).
"""

import argparse
import asyncio
import collections
import contextlib
import json
import random
import signal
import statistics
import sys
import time
from pathlib import Path

from server_load import Fault, add_server_options, complete, events, programs_of, prompt_list, request_bytes, running_server, say

BAD = [("/completion", b"{\"prompt\": 5.5}", 400), ("/completion", b"{\"prompt\": \"x\", \"harp\": {\"beta\": 3}}", 400),
       ("/v1/chat/completions", b"{\"messages\": \"x\"}", 400), ("/completion", b"{\"prompt\": \"x\", \"n_predict\": -7}", 400),
       ("/completion", b"{\"prompt\": [1, 999999999]}", 400), ("/nowhere", b"{}", 404),
       ("/completion", json.dumps({"prompt": "x", "grammar": "root ::= ("}).encode(), 400)]
WARM_UP = 60  # seconds; memory must be flat afterwards


async def post(address, path, data):
    """The status and the answer of a request that is not streamed."""
    reader, writer = await asyncio.open_connection(*address)
    try:
        writer.write(request_bytes(path, data))
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        return int(head.split()[1]), body
    finally:
        writer.close()


class Client:
    """Sends what its generator draws until the time is over, and counts."""

    def __init__(self, address, args, seed):
        self.address, self.args, self.random = address, args, random.Random(seed)
        self.prompts = prompt_list(64, 12)
        self.asked, self.faults = collections.Counter(), collections.Counter()

    def harp(self):
        draw = self.random
        return draw.choice([{}, {"enabled": False}, {"threshold": draw.uniform(0, 4), "beta": draw.random()},
                            {"seed": draw.getrandbits(63), "redraw": draw.randrange(4)}, {"scope": "generated"},
                            {"perturbation": "gaussian", "strength": draw.uniform(0.1, 2)}])

    def body(self):
        body = {"prompt": self.random.choice(self.prompts), "n_predict": self.random.randrange(1, 96),
                "temperature": self.random.choice([0, 1]), "seed": self.random.getrandbits(31)}
        return body if self.args.without_harp else {**body, "harp": self.harp()}

    async def expect(self, path, data, status):
        got, answer = await post(self.address, path, data)
        if got != status:
            raise Fault(f"{path} {data[:200]!r}: {got} instead of {status}: {answer[:200]!r}")

    async def completion(self):
        answer = await complete(self.address, self.body())
        if answer.fault:
            raise Fault(answer.fault)

    async def whole(self):
        await self.expect("/v1/completions", json.dumps({**self.body(), "logprobs": 2}).encode(), 200)

    async def chat(self):
        body = self.body()
        messages = [{"role": "user", "content": body.pop("prompt")}]
        await self.expect("/v1/chat/completions", json.dumps({**body, "messages": messages}).encode(), 200)

    async def long(self):
        body = {**self.body(), "prompt": [self.random.randrange(3, 256) for _ in range(self.args.context - 100)]}
        await self.expect("/completion", json.dumps(body).encode(), 200)

    async def too_long(self):
        body = {**self.body(), "prompt": [5] * (self.args.context + 1000)}
        await self.expect("/completion", json.dumps(body).encode(), 400)

    async def hangs_up(self):
        body = {**self.body(), "n_predict": 300, "ignore_eos": True, "stream": True}
        left = self.random.randrange(20)
        async with contextlib.aclosing(events(self.address, "/completion", body)) as stream:
            async for _ in stream:
                left -= 1
                if left < 0:
                    break

    async def hangs_up_early(self):
        request = request_bytes("/completion", json.dumps(self.body()).encode())
        _, writer = await asyncio.open_connection(*self.address)
        writer.write(request[:self.random.randrange(len(request) + 1)])
        await writer.drain()
        writer.close()

    async def bad(self):
        await self.expect(*self.random.choice(BAD))

    async def ask_until(self, end):
        kinds = [self.completion, self.whole, self.chat, self.long, self.too_long, self.hangs_up, self.hangs_up_early, self.bad]
        while time.monotonic() < end:
            kind = self.random.choice(kinds)
            self.asked[kind.__name__] += 1
            try:
                await asyncio.wait_for(kind(), 300)
            except (Fault, OSError, EOFError, ValueError, IndexError, asyncio.TimeoutError) as fault:
                self.faults[f"{kind.__name__}: {type(fault).__name__} {fault}"] += 1
                await asyncio.sleep(0.2)  # so that a dead server is not asked a million times


async def same_request(address, end):
    """How often each answer came to the same greedy request."""
    answers = collections.Counter()
    while time.monotonic() < end:
        answer = await complete(address, {"prompt": "Once upon a time", "n_predict": 32, "temperature": 0, "ignore_eos": True})
        answers[answer.fault or answer.text] += 1
        await asyncio.sleep(1)
    return answers


def memory(pid):
    """RSS and its anonymous part in MiB, threads, open files."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    rss, anonymous = (int(fields[name].split()[0]) / 1024 for name in ["VmRSS", "RssAnon"])
    return rss, anonymous, int(fields["Threads"]), len(list(Path(f"/proc/{pid}/fd").iterdir()))


async def watch(pid, begin, end):
    samples = []
    while time.monotonic() < end:
        try:
            samples.append((time.monotonic() - begin, *memory(pid)))
        except (OSError, KeyError):  # the process is gone, or a zombie
            say(f"the server died after {time.monotonic() - begin:.0f} s")
            return samples, False
        if len(samples) % 30 == 1:
            say("{:6.0f} s: RSS {:.1f} MiB, {:.1f} of it not a file's, {} threads, {} files".format(*samples[-1]))
        await asyncio.sleep(1)
    return samples, True


async def soak(address, pid, args):
    begin = time.monotonic()
    end = begin + 60 * args.minutes
    clients = [Client(address, args, seed) for seed in range(args.streams[0])]
    (samples, alive), answers, *_ = await asyncio.gather(watch(pid, begin, end), same_request(address, end),
                                                         *(client.ask_until(end) for client in clients))
    asked, faults = (sum((getattr(client, name) for client in clients), collections.Counter()) for name in ["asked", "faults"])
    return {"samples": samples, "alive": alive, "asked": asked, "faults": faults, "answers": answers}


def report(result, args):
    """Prints the result. @return whether all is well"""
    print("asked:", ", ".join(f"{count} {kind}" for kind, count in sorted(result["asked"].items())))
    for fault, count in result["faults"].most_common(10):
        print(f"{count} times: {fault}")
    others = list(result["answers"].values())
    print(f"the same request: {sum(others)} times, {len(others)} different answers {sorted(others)[::-1]}")
    settled = [sample for sample in result["samples"] if sample[0] >= WARM_UP]
    well = result["alive"] and not result["faults"] and not (args.exact and len(others) > 1)
    if len(settled) < 2:
        print("no verdict on memory: the run was not longer than a minute")
        return well
    slope, _ = statistics.linear_regression([s[0] for s in settled], [s[2] for s in settled])
    rise = slope * (settled[-1][0] - settled[0][0])
    for when, sample in [("1 minute", settled[0]), ("end", settled[-1])]:
        print("{:9} RSS {:.1f} MiB, {:.1f} of it not a file's, {} threads, {} files".format(when + ":", *sample[1:]))
    flat = rise <= args.allow
    print(f"slope: {slope * 60:+.3f} MiB a minute, {rise:+.1f} MiB in {(settled[-1][0] - settled[0][0]) / 60:.1f} minutes: "
          f"{'flat' if flat else 'GROWS'} ({args.allow} MiB allowed)")
    return well and flat


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_server_options(parser, [8], slots="half of them, so that some wait")
    parser.add_argument("--minutes", type=float, default=10, help="(default: 10)")
    parser.add_argument("--allow", type=float, default=8, help="most MiB by which memory may rise after the first minute (default: 8)")
    parser.add_argument("--pid", type=int, help="process id of the server at --url")
    parser.add_argument("--exact", action="store_true", help="exit code 1 if the same request got different answers")
    parser.add_argument("--without-harp", action="store_true", help="send no HARP options, for llama-server or --harp-off")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all samples and counts")
    args = parser.parse_args()
    args.slots = args.slots or max(1, args.streams[0] // 2)
    args.flags = ["--cache-ram", "0", *running_server.EXACT, *args.flags]
    return args


def main():
    args = parse_arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    program = programs_of(args)[0]
    with program.running(args) as (address, pid):
        if not (pid := pid or args.pid):
            sys.exit("error: --url needs --pid, to read the server's memory")
        result = asyncio.run(soak(address, pid, args))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1))
    return 0 if report(result, args) else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
