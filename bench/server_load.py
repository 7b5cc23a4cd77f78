#!/usr/bin/env python3
"""Load on harp-server, and on other servers for comparison: are answers right under load, and how fast are they?

    bench/server_load.py -m model.gguf
    bench/server_load.py -m model.gguf --streams 1,8 --rounds 5 --json result.json \\
        --program harp=build/release/bin/harp-server \\
        --program "off=build/release/bin/harp-server --harp-off" \\
        --program llama=/opt/llama.cpp/bin/llama-server -- -t 2 -ctk q8_0
    bench/server_load.py --url here=http://127.0.0.1:8080 --streams 4

Each round starts each program anew, one at a time, in alternating order (A B, B A, A B ...), with the same model and flags.
Streams are clients. Each sends one greedy, streamed /completion after another, for exactly --tokens tokens, with prompts from
a fixed list.

First, in a program's first turn, answers are compared: each prompt alone, and at each number of streams. The size of a batch
changes rounding. So where an answer differs, its first differing token is examined: "tie" means two candidates nearer than
--tie to each other in both runs, "gate" means an entropy so near HARP's threshold that only one of the runs hesitated. Any other
difference is called unexplained and gives exit code 1, like a failed request. With -ctk f32 -ctv f32 and float32 weights all
answers should be exact.

Then times are measured, without log-probabilities. tokens/s: of all streams together, from the first request to the last answer;
first: from sending a request to its first token, including the wait for a slot; next: between tokens of one answer; hesitations:
share of steps. Numbers are medians over rounds, with the least and greatest round in brackets. Measure on an idle machine: this
client uses the processor too.
"""

import argparse
import asyncio
import collections
import contextlib
import itertools
import json
import math
import os
import shlex
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests/support"))
import running_server
from programs import SERVER, TINY

running_server.START_TIMEOUT = 900  # seconds; a large model from a cold disk
ANIMALS = ["dog", "cat", "bird", "fox", "bear", "mouse", "frog", "horse"]
PLACES = ["garden", "forest", "kitchen", "harbour", "school", "market", "castle", "field"]


def say(text):
    print(text, file=sys.stderr, flush=True)


class Fault(Exception):
    """A request that was not answered correctly."""


# ---- a client ----


def request_bytes(path, data):
    """A POST with these bytes, after which the connection is closed."""
    return (f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\n"
            f"Content-Length: {len(data)}\r\n\r\n").encode() + data


async def events(address, path, body):
    """Sends a request; yields (time of arrival, event) for its streamed answer. Closing the generator closes the connection."""
    reader, writer = await asyncio.open_connection(*address, limit=1 << 24)
    try:
        writer.write(request_bytes(path, json.dumps(body).encode()))
        status = (await reader.readline()).split()
        if len(status) < 2:
            raise Fault("the connection was closed without an answer")
        while (await reader.readline()).strip():  # headers
            pass
        if status[1] != b"200":
            raise Fault(f"{status[1].decode()}: {(await reader.read(400)).decode(errors='replace')}")
        pending = b""
        while size := int(await reader.readline() or "-1", 16):  # chunks
            if size < 0:
                raise Fault("the connection was closed in mid-answer")
            pending += await reader.readexactly(size)
            await reader.readexactly(2)
            *whole, pending = pending.split(b"\n\n")
            now = time.perf_counter()
            for event in whole:
                if event.startswith(b"data: "):
                    yield now, event.removeprefix(b"data: ")
    finally:
        writer.close()


@dataclass
class Answer:
    text: str = ""
    first: float = math.nan  # seconds from the request to its first token
    gaps: list = field(default_factory=list)  # seconds between tokens
    last: dict = field(default_factory=dict)  # the last event, with counts
    steps: list = field(default_factory=list)  # per token, only with n_probs: id, top_logprobs; with HARP entropy, hesitated
    fault: str = ""


async def complete(address, body):
    """The whole answer to a streamed /completion; an error is in its field `fault`."""
    answer, arrivals, raw = Answer(), [], []
    began = time.perf_counter()
    try:
        async with contextlib.aclosing(events(address, "/completion", {**body, "stream": True})) as stream:
            async for now, event in stream:
                arrivals.append(now)
                raw.append(event)
        parts = [json.loads(event) for event in raw]  # parsed only now, to leave the processor to the server while tokens come
        if not parts or "error" in parts[-1] or not parts[-1].get("stop"):
            raise Fault(f"the stream ended early: {parts[-1] if parts else 'empty'}")
        answer.text = "".join(part["content"] for part in parts)
        answer.steps = [step for part in parts for step in part.get("completion_probabilities", [])]
        answer.last = parts[-1]
        answer.first = arrivals[0] - began
        answer.gaps = [after - before for before, after in itertools.pairwise(arrivals[:-1])]  # the last event has no token
    except (Fault, OSError, EOFError, ValueError, KeyError) as error:
        answer.fault = f"{type(error).__name__}: {error}"
    return answer


async def under_load(address, bodies, streams):
    """Answers to all bodies, sent by this number of clients at once, and the time in seconds."""
    waiting, answers = collections.deque(enumerate(bodies)), [None] * len(bodies)

    async def client():
        while waiting:
            i, body = waiting.popleft()
            answers[i] = await complete(address, body)

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(streams)))
    return answers, time.perf_counter() - began


# ---- the servers ----


@dataclass
class Program:
    name: str
    command: list  # path and flags of its own; empty for a running server
    address: tuple = ()

    @contextlib.contextmanager
    def running(self, args):
        """(address, process id or None); the server runs for this turn only, and is ended in any case."""
        if not self.command:
            yield self.address, None
            return
        slots = args.slots or max(args.streams)
        flags = ["-t", str(os.cpu_count()), "-np", str(slots), "-c", str(slots * args.context), *args.flags, *self.command[1:]]
        server = running_server.Server.__new__(running_server.Server)  # created first, so that a server interrupted while it starts is ended too
        try:
            server.__init__(*flags, model=args.model, program=self.command[0])
            yield ("127.0.0.1", server.port), server.process.pid
        finally:
            end(server)


def end(server):
    if not hasattr(server, "process"):
        return
    try:
        server.process.send_signal(signal.SIGINT)
        server.process.wait(timeout=30)
    except BaseException as error:  # a second Ctrl-C must not leave a server behind
        server.process.kill()
        server.process.wait()
        if not isinstance(error, subprocess.TimeoutExpired):
            raise


def parse_program(text):
    name, _, command = text.partition("=")
    if not name or not command:
        raise argparse.ArgumentTypeError(f"'{text}' is not NAME=PATH [FLAG...]")
    return Program(name, shlex.split(command))


def parse_url(text):
    name, _, url = text.partition("=")
    parts = urlsplit(url)
    if not name or parts.scheme != "http" or not parts.port:
        raise argparse.ArgumentTypeError(f"'{text}' is not NAME=http://HOST:PORT")
    return Program(name, [], (parts.hostname, parts.port))


# ---- are answers the same as for the request alone? ----


def gap(step):
    best = sorted((candidate["logprob"] for candidate in step["top_logprobs"]), reverse=True)
    return best[0] - best[1] if len(best) > 1 else math.inf


def difference(alone, loaded, tie):
    """Where and why two answers to one request differ: (position, reason, gap alone, gap under load); None if they are equal."""
    for position, (a, b) in enumerate(zip(alone.steps, loaded.steps)):
        gated = a.get("hesitated") != b.get("hesitated")
        if gated and abs(a["entropy"] - b["entropy"]) <= tie and (a["id"] != b["id"] or alone.text != loaded.text):
            return position, "gate", gap(a), gap(b)
        if a["id"] != b["id"]:
            tied = max(gap(a), gap(b)) <= tie and any(c["id"] == b["id"] for c in a["top_logprobs"])
            return position, "tie" if tied else "unexplained", gap(a), gap(b)
    if len(alone.steps) != len(loaded.steps) or alone.text != loaded.text:
        return min(len(alone.steps), len(loaded.steps)), "unexplained", math.nan, math.nan
    return None


async def compare(address, program, args, prompts):
    """Share of exact answers, and differences, for each number of streams."""
    ask = {"n_predict": args.tokens, "temperature": 0, "ignore_eos": True, "cache_prompt": args.cache_prompt, "n_probs": 2}
    bodies = [{**ask, "prompt": prompt} for prompt in prompts[:args.check]]
    say(f"{program.name}: {len(bodies)} prompts alone")
    alone, _ = await under_load(address, bodies, 1)
    rows = []
    for streams in args.streams:
        count = max(streams, len(bodies))
        say(f"{program.name}: {count} requests, {streams} at once, compared with those")
        loaded, _ = await under_load(address, [bodies[i % len(bodies)] for i in range(count)], streams)
        row = {"program": program.name, "streams": streams, "requests": count, "exact": 0, "faults": [], "different": []}
        for i, answer in enumerate(loaded):
            own = alone[i % len(bodies)]
            if own.fault or answer.fault:
                row["faults"].append(own.fault or answer.fault)
            elif (found := difference(own, answer, args.tie)) is None:
                row["exact"] += 1
            else:
                position, reason, *gaps = found
                others = [j for j, other in enumerate(alone) if j != i % len(bodies) and other.text == answer.text]
                row["different"].append({"prompt": i % len(bodies), "position": position, "gaps": gaps,
                                         "reason": "unexplained" if others else reason, "is_the_answer_to": others})
        rows.append(row)
    return rows


# ---- times ----


def percentile(values, share):
    values = sorted(values)
    return values[min(len(values) - 1, math.ceil(share * len(values)) - 1)] if values else math.nan


async def measure(address, program, args, prompts, number):
    """One row of times for each number of streams."""
    ask = {"n_predict": args.tokens, "temperature": 0, "ignore_eos": True, "cache_prompt": args.cache_prompt}
    warm = await complete(address, {**ask, "prompt": "Warm"})
    if warm.fault:
        raise Fault(f"{program.name}: {warm.fault}")
    rows = []
    for streams in args.streams:
        count = max(4, streams * args.requests)
        bodies = [{**ask, "prompt": prompts[i % len(prompts)]} for i in range(count)]
        answers, seconds = await under_load(address, bodies, streams)
        good = [answer for answer in answers if not answer.fault]
        steps = [answer.last["timings"].get("harp", {}) for answer in good]
        gaps = [gap for answer in good for gap in answer.gaps]
        rows.append({
            "program": program.name, "round": number, "streams": streams, "requests": count, "seconds": seconds,
            "faults": [answer.fault for answer in answers if answer.fault],
            "tokens_per_second": sum(answer.last["tokens_predicted"] for answer in good) / seconds,
            "first_p50": percentile([answer.first for answer in good], 0.5),
            "first_p95": percentile([answer.first for answer in good], 0.95),
            "next_p50": percentile(gaps, 0.5), "next_p95": percentile(gaps, 0.95),
            "hesitations": sum(s.get("hesitations", 0) for s in steps) / max(1, sum(s.get("steps", 0) for s in steps)),
        })
        say(f"{program.name}: {streams:3} streams {rows[-1]['tokens_per_second']:8.1f} tokens/s")
    return rows


# ---- output ----


def print_comparison(rows):
    print("program        streams  requests   exact    tie   gate  unexplained  faults")
    for row in rows:
        reasons = collections.Counter(d["reason"] for d in row["different"])
        print(f"{row['program']:14} {row['streams']:7} {row['requests']:9} {row['exact'] / row['requests']:7.1%} "
              f"{reasons['tie']:6} {reasons['gate']:6} {reasons['unexplained']:12} {len(row['faults']):7}")
    for row in rows:
        for d in row["different"]:
            if d["reason"] == "unexplained":
                whose = f", which is the answer to prompt {d['is_the_answer_to'][0]}: MIXED UP" if d["is_the_answer_to"] else ""
                print(f"{row['program']}, {row['streams']} streams, prompt {d['prompt']}: differs at token {d['position']}, gap "
                      f"{d['gaps'][0]:.3g} alone, {d['gaps'][1]:.3g} under load{whose}")


def print_times(rows, order):
    print("program        streams  tokens/s [least..greatest]   first p50    p95   next p50    p95 ms  hesitations  faults")
    groups = collections.defaultdict(list)
    for row in rows:
        groups[row["streams"], order.index(row["program"])].append(row)
    for (streams, program), group in sorted(groups.items()):
        speeds = [row["tokens_per_second"] for row in group]
        middle = {name: statistics.median(row[name] for row in group) for name in group[0] if name.endswith(("p50", "p95"))}
        print(f"{order[program]:14} {streams:7} {statistics.median(speeds):9.1f} {f'[{min(speeds):.1f}..{max(speeds):.1f}]':>19}"
              f" {middle['first_p50'] * 1e3:11.1f} {middle['first_p95'] * 1e3:6.1f} {middle['next_p50'] * 1e3:10.2f}"
              f" {middle['next_p95'] * 1e3:6.2f} {statistics.median(row['hesitations'] for row in group):15.1%}"
              f" {sum(len(row['faults']) for row in group):7}")


def print_faults(rows):
    for fault, count in collections.Counter(fault for row in rows for fault in row["faults"]).most_common(10):
        print(f"{count} times: {fault}")


def prompt_list(count, words):
    """Distinct prompts of about this many words."""
    starts = [f"Once upon a time a {a} and a {b} met in the {place}."
              for a, b in itertools.permutations(ANIMALS, 2) for place in PLACES]
    more = " They talked about the weather, and then they went home together to eat."
    return [(start + more * (max(0, words - len(start.split())) // len(more.split()) + 1) if words > 12 else start)
            for start in starts[::len(starts) // count]]


def add_server_options(parser, streams, slots="the most streams"):
    parser.add_argument("-m", "--model", default=TINY, help="model for all programs (default: the tests' tiny model)")
    parser.add_argument("--program", action="append", type=parse_program, metavar="NAME=PATH [FLAG...]",
                        help="a server and its own flags, quoted as one word; may be repeated "
                             "(default: harp-server with HARP and off)")
    parser.add_argument("--url", action="append", type=parse_url, metavar="NAME=http://HOST:PORT",
                        help="a running server; may be repeated")
    parser.add_argument("--streams", type=lambda text: [int(part) for part in text.split(",")], default=streams, metavar="N,...",
                        help=f"numbers of clients at once (default: {','.join(map(str, streams))})")
    parser.add_argument("--slots", type=int, help=f"-np (default: {slots})")
    parser.add_argument("--context", type=int, default=512, help="tokens of a slot; -c is this times the slots (default: 512)")
    parser.add_argument("flags", nargs="*", metavar="-- FLAG...",
                        help="flags for all programs, after --; later flags win (default of -t: all processors)")


def programs_of(args):
    default = [Program("harp", [SERVER]), Program("harp-off", [SERVER, "--harp-off"])]
    return (args.program or []) + (args.url or []) or default


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_server_options(parser, [1, 4, 16, 64])
    parser.add_argument("--rounds", type=int, default=3, help="measured rounds; 0 only compares answers (default: 3)")
    parser.add_argument("--requests", type=int, default=2, help="requests of each stream, at least 4 in all (default: 2)")
    parser.add_argument("--tokens", type=int, default=64, help="tokens of each answer (default: 64)")
    parser.add_argument("--words", type=int, default=12, help="approximate words of each prompt (default: 12)")
    parser.add_argument("--cache-prompt", action="store_true", help="let slots reuse what they hold of a prompt (default: no)")
    parser.add_argument("--check", type=int, default=16, help="number of prompts whose answers are compared (default: 16)")
    parser.add_argument("--tie", type=float, default=0.1,
                        help="candidates this near (nats), or entropies this near (bits), are tied (default: 0.1)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers of all rounds, in seconds")
    return parser.parse_args()


def main():
    args = parse_arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    programs, prompts = programs_of(args), prompt_list(64, args.words)
    comparison, times = [], []
    for number in range(max(1, args.rounds)):
        for program in programs if number % 2 == 0 else programs[::-1]:
            say(f"round {number + 1} of {args.rounds}: {program.name}")
            with program.running(args) as (address, _):
                if number == 0 and args.check:
                    comparison += asyncio.run(compare(address, program, args, prompts))
                if args.rounds:
                    times += asyncio.run(measure(address, program, args, prompts, number))
    if comparison:
        print_comparison(comparison)
    if times:
        print_times(times, [program.name for program in programs])
    print_faults(comparison + times)
    if args.json:
        settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
        settings |= {"program": [vars(program) for program in programs], "url": None}
        args.json.write_text(json.dumps({"settings": settings, "comparison": comparison, "times": times}, indent=1))
    unexplained = any(d["reason"] == "unexplained" for row in comparison for d in row["different"])
    return 1 if unexplained or any(row["faults"] for row in comparison + times) else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
    except Fault as fault:
        sys.exit(f"error: {fault}")
