#!/usr/bin/env python3
"""Runs llama.cpp's own server tests, from the pinned source, on harp-server with HARP off and on. A test may fail only if known.txt says why.

    tests/server/upstream/suite.py [--server harp-off|harp-on|llama-server ...] [PYTEST ARGS, for example -k "completion and not slow"]

Without --server: harp-off and harp-on. llama-server is built from the same source (build_llama_server.sh). Models that the tests would
download are replaced by local ones (STAND_INS); tests that expect the real model's answers are in known.txt. Results are in build/upstream/.
Chat templates and the vocabulary of an embedding model come with `scripts/fetch llama.cpp-models`. On a busy machine tests run into
their timeouts.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "support"))
from programs import MODELS, ROOT, SERVER, TINY, environment
from running_server import free_port

SOURCE = ROOT / ".deps/llama.cpp"
LLAMA_MODELS = ROOT / ".deps/llama.cpp-models"
OUT = ROOT / "build/upstream"
KNOWN = HERE / "known.txt"
SERVERS = {"harp-off": {"HARP_OFF": "1"}, "harp-on": {}, "llama-server": {}}
LLAMA_SERVER = ROOT / "build/llama-server/bin/llama-server"
COMMIT = "0" * 40  # commit of a repository in the cache
STAND_INS = {  # repository of Hugging Face: {its file: the model here}
    "ggml-org/test-model-stories260K": {"stories260K-F32.gguf": OUT / "stories260K.gguf"},
    "ggml-org/test-model-stories260K-infill": {"stories260K-infill-F32.gguf": OUT / "stories260K-infill.gguf"},
    "ggml-org/stories15M_MOE": {"stories15M_MOE-F16.gguf": MODELS / "random-mixture.gguf"},
    "ggml-org/tinygemma3-GGUF": {"tinygemma3-Q8_0.gguf": OUT / "gemma3.gguf",
                                 "mmproj-tinygemma3-Q8_0.gguf": MODELS / "random-mmproj-gemma3.gguf"},
    "ggml-org/models": {"bert-bge-small/ggml-model-f16.gguf": OUT / "bert-bge.gguf",
                        "jina-reranker-v1-tiny-en/ggml-model-f16.gguf": OUT / "bert-bge.gguf"},
}
GEMMA = MODELS / "random-gemma3.gguf"
CONTEXT = 2048  # training context written into the tiny model's file: slots have no more tokens
WINDOW = 512  # sliding window written into the other one's file: longer than the prompts
INFILL_TOKENS = {"fim_pre": 500, "fim_suf": 501, "fim_mid": 502}  # rare tokens
PICTURES = [SOURCE / "tools/mtmd/test-1.jpeg", ROOT / "docs/images/page-compare.png"]
DOWNLOADS = {"stories15M-q4_0.gguf": MODELS / "random-mixture.gguf"}
KINDS = ("failed", "skipped")  # what tests in known.txt may do instead of pass


@dataclass(frozen=True)
class Known:
    """A line of known.txt: tests that do not pass on some servers, and why."""

    servers: frozenset
    kind: str
    why: str
    pattern: re.Pattern


def read_known(path=KNOWN):
    """Reads sections: a line `SERVERS failed|skipped: REASON` (SERVERS: all, or names separated by commas), then one test per line; * is any text."""
    known, section = [], None
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        if not line.startswith(" "):
            head, _, why = line.partition(": ")
            names, kind = head.split()
            servers = frozenset(SERVERS if names == "all" else names.split(","))
            if kind not in KINDS or not why or not servers <= SERVERS.keys():
                raise ValueError(f"{path.name}: {line}")
            section = servers, kind, why
            continue
        known.append(Known(*section, re.compile(".*".join(map(re.escape, line.strip().split("*"))))))
    return known


def set_metadata(source, path, key, value):
    """Copies a model with another value for one key of its metadata."""
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_bytes(source.read_bytes())
    subprocess.run([sys.executable, "-m", "gguf.scripts.gguf_set_metadata", "--force", unfinished, key, str(value)],
                   check=True, capture_output=True)
    unfinished.rename(path)


def make_models():
    """Makes models that fit the tests' lengths, the tiny one also with tokens for infilling; and one for embeddings, with random weights
    and the vocabulary that the tests expect."""
    OUT.mkdir(parents=True, exist_ok=True)
    vocabulary, script = LLAMA_MODELS / "ggml-vocab-bert-bge.gguf", ROOT / "scripts/make_random_gguf.py"
    if GEMMA.is_file():
        set_metadata(GEMMA, OUT / "gemma3.gguf", "gemma3.attention.sliding_window", WINDOW)
    if vocabulary.is_file():
        subprocess.run([sys.executable, script, "--arch", "bert", "--vocab", vocabulary, OUT / "bert-bge.gguf"], check=True)
    if TINY.is_file():
        set_metadata(TINY, OUT / "stories260K.gguf", "llama.context_length", CONTEXT)
        tokens = [argument for name, token in INFILL_TOKENS.items() for argument in ("--special-token-by-id", name, str(token))]
        subprocess.run([sys.executable, "-m", "gguf.scripts.gguf_new_metadata", "--force", *tokens, OUT / "stories260K.gguf",
                        OUT / "stories260K-infill.gguf"], check=True, capture_output=True)


def make_cache(folder):
    """Makes a cache of Hugging Face's downloads from local files. @return {repository: its files}"""
    shutil.rmtree(folder, ignore_errors=True)
    repositories = {}
    for repository, files in STAND_INS.items():
        if not all(path.is_file() for path in files.values()):
            continue
        repositories[repository] = list(files)
        kept = folder / f"models--{repository.replace('/', '--')}"
        (kept / "refs").mkdir(parents=True)
        (kept / "refs/main").write_text(COMMIT)
        for name, path in files.items():
            link = kept / "snapshots" / COMMIT / name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path)
    return repositories


def make_tree(folder):
    """Makes a copy of the folders that the tests expect, since they write there. @return the folder to run them in"""
    shutil.rmtree(folder, ignore_errors=True)
    tests = folder / "tools/server/tests"
    shutil.copytree(SOURCE / "tools/server/tests", tests)
    (tests / "tmp").mkdir(exist_ok=True)
    (folder / "tools/mtmd").symlink_to(SOURCE / "tools/mtmd")
    subprocess.run(["git", "init", "-q", folder], check=True)  # the tests search it with `git grep`, and build/ is ignored
    if LLAMA_MODELS.is_dir():
        (folder / "models").symlink_to(LLAMA_MODELS)
    return tests


def run(server, arguments, folder=OUT):
    """Runs the tests. @return {test: (outcome, reason)}"""
    folder = folder / server
    folder.mkdir(parents=True, exist_ok=True)
    results, log = folder / "results.xml", folder / "log"
    results.unlink(missing_ok=True)
    make_models()
    tests, repositories = make_tree(folder / "llama.cpp"), make_cache(folder / "cache")
    program = LLAMA_SERVER if server == "llama-server" else SERVER
    files = {name: str(path) for name, path in DOWNLOADS.items() if path.is_file()}
    extra = {**SERVERS[server], "LLAMA_SERVER_BIN_PATH": str(program), "LLAMA_CACHE": str(folder / "cache"), "PORT": str(free_port()),
             "PYTHONPATH": os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")])),
             "HARP_SUITE_REPOSITORIES": json.dumps(repositories), "HARP_SUITE_FILES": json.dumps(files),
             "HARP_SUITE_PICTURES": json.dumps([str(picture) for picture in PICTURES]), "OMP_WAIT_POLICY": "passive", "HF_HUB_OFFLINE": "1"}
    with log.open("w") as output:
        done = subprocess.run([sys.executable, "-m", "pytest", "-p", "suite_plugin", "-p", "no:cacheprovider", "-q", "--timeout=400",
                               f"--junitxml={results}", *(arguments or ["unit"])], cwd=tests, env=environment(**extra), stdout=output,
                              stderr=subprocess.STDOUT, check=False)
    if not results.is_file() or done.returncode not in (0, 1):
        sys.exit(f"pytest ended with {done.returncode}: {log.read_text(errors='replace')[-3000:]}")
    return read_results(results)


def read_results(path):
    ends = {}
    for case in ElementTree.parse(path).iter("testcase"):
        end, why = "passed", ""
        for child in case:
            if child.tag in ("failure", "error", "skipped"):
                end = "skipped" if child.tag == "skipped" else "failed"
                why = next(iter((child.get("message") or "").splitlines()), "")
        ends[f"{case.get('classname').rpartition('.')[2]}::{case.get('name')}"] = end, why
    return ends


def judge(server, ends, known):
    """Prints the results of a run. @return the tests whose outcome is not in known.txt"""
    entries = [entry for entry in known if server in entry.servers]
    reasons, unknown, better = {}, [], []
    for test, (end, why) in sorted(ends.items()):
        found = next((entry for entry in entries if entry.pattern.fullmatch(test)), None)
        if end == "passed":
            better += [test] if found else []
        elif found and found.kind == end:
            reasons.setdefault((end, found.why), []).append(test)
        else:
            unknown.append(f"{test}: {end}: {why[:200]}")
    counts = {kind: sum(end == kind for end, _ in ends.values()) for kind in ("passed", *KINDS)}
    print(f"{server}: {len(ends)} tests, " + ", ".join(f"{n} {kind}" for kind, n in counts.items()))
    for (end, why), tests in sorted(reasons.items(), key=lambda item: (item[0][0], -len(item[1]))):
        print(f"  {len(tests):4} {end}: {why}")
    for title, lines in (("not in known.txt", unknown), ("passed, although in known.txt", better)):
        if lines:
            print("\n".join([f"  {title}:", *(f"    {line}" for line in lines)]))
    return unknown


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", nargs="+", choices=SERVERS, default=["harp-off", "harp-on"])
    options, arguments = parser.parse_known_args()
    known = read_known()
    return int(any([judge(server, run(server, arguments), known) for server in options.server]))


if __name__ == "__main__":
    sys.exit(main())
