#!/usr/bin/env python3
"""Runs clang-tidy with .clang-tidy over our own sources, each once, as build/release compiles them.

    scripts/run_clang_tidy.py [FILE...]     without files: all

Nearly all of clang-tidy's time goes into headers. So sources of one folder and one compile command are checked in batches,
which read their headers once. If a batch has findings, its sources are checked again one by one.

A source without findings is not checked again until it, one of its headers, its command, .clang-tidy or clang-tidy itself
changes. The clean ones are remembered in $XDG_CACHE_HOME/harp/clang-tidy (by default in ~/.cache).

The checks are kept clean for clang-tidy 14 (Debian 12); with another version findings are shown but do not fail.
"""

from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import lru_cache
from hashlib import sha256
import json
import os
from pathlib import Path
import re
import subprocess
import sys
import time

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build/release"
DATABASE = BUILD / "clang-tidy"  # compile commands that clang understands
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "harp/clang-tidy"
DIRECTORIES = ("src", "apps", "python", "tests", "bench")
# The build reports the compiler's own warnings, and clang does not know all of GCC's options.
ARGUMENTS = ["--quiet", "--extra-arg=-Wno-error", "--extra-arg=-Wno-unknown-warning-option",
             "--extra-arg=-Qunused-arguments",
             # The analyzer follows no calls into templates: in the libraries' it spent most of its time, and found nothing.
             *(f"--extra-arg={each}" for each in ("-Xclang", "-analyzer-config", "-Xclang", "c++-template-inlining=false"))]
NOISE = re.compile(r"^(\d+ warnings? (treated as errors?|generated)|Suppressed|Use -header-filter)")
TESTED_VERSION = "14"
BATCH = 10  # sources at most


def of_each_source(entry: dict[str, str]) -> list[dict[str, str]]:
    """The entry, or where CMake compiles several sources at once, one for each of them."""
    path = Path(entry["directory"], entry["file"])
    if path.parent.name != "Unity":
        return [entry]
    sources = re.findall(r'^#include "(.+)"$', path.read_text(encoding="utf-8"), re.MULTILINE)
    return [{**entry, "file": source, "command": entry["command"].replace(f" -c {entry['file']}", f" -c {source}")}
            for source in sources]


def read_commands(wanted: set[Path]) -> dict[Path, dict[str, str]]:
    """One compile command for each of our sources. (Those that are also built with sanitizers are listed twice.)"""
    commands: dict[Path, dict[str, str]] = {}
    listed = json.loads((BUILD / "compile_commands.json").read_text(encoding="utf-8"))
    for entry in (each for entry in listed for each in of_each_source(entry)):
        path = Path(entry["directory"], entry["file"])
        ours = path.is_relative_to(ROOT) and path.relative_to(ROOT).parts[0] in DIRECTORIES
        if ours and (not wanted or path in wanted):
            entry["command"] = re.sub(r" -fsched\S+", "", entry["command"])  # only GCC has these
            commands.setdefault(path, entry)
    return commands


def read_includes() -> dict[str, list[str]]:
    """For each object file that ninja has built, the files that its compilation read."""
    listed = subprocess.run(["ninja", "-C", BUILD, "-t", "deps"], capture_output=True, text=True, check=False).stdout
    includes: dict[str, list[str]] = {}
    for block in listed.split("\n\n"):
        title, *files = block.splitlines() or [""]
        if title.endswith("(VALID)"):  # otherwise it was not built since a change, and its includes are unknown
            includes[title.partition(":")[0]] = [file.strip() for file in files]
    return includes


@lru_cache(maxsize=None)
def digest(path: Path) -> str:
    return sha256(path.read_bytes()).hexdigest()


def fingerprint(entry: dict[str, str], includes: dict[str, list[str]], version: str) -> str | None:
    """A hash of everything that findings depend on; None if ninja does not know what the source includes."""
    output = re.search(r" -o (\S+)", entry["command"])
    files = includes.get(output[1]) if output else None
    if not files:
        return None
    directory = Path(entry["directory"])
    parts = [version, digest(ROOT / ".clang-tidy"), " ".join(ARGUMENTS), entry["command"].replace(str(ROOT), ".")]
    for file in sorted((directory / file).resolve() for file in files):
        if not file.exists():
            return None
        name = file.relative_to(ROOT) if file.is_relative_to(ROOT) else file
        parts.append(f"{name} {digest(file)}")
    return sha256("\n".join(parts).encode()).hexdigest()


def shared_command(entry: dict[str, str]) -> str:
    """The command without what differs between the sources of a target."""
    return re.sub(rf" -o \S+| -c {re.escape(entry['file'])}", "", entry["command"])


def batches(commands: dict[Path, dict[str, str]], todo: list[Path]) -> list[list[Path]]:
    """The sources in groups of one folder and one command, the largest groups first."""
    alike: dict[tuple[str, str, Path], list[Path]] = {}
    for path in todo:
        entry = commands[path]
        alike.setdefault((shared_command(entry), entry["directory"], path.parent), []).append(path)
    evenly = []
    for group in alike.values():
        parts = -(-len(group) // BATCH)
        evenly += [group[len(group) * part // parts:len(group) * (part + 1) // parts] for part in range(parts)]
    return sorted(evenly, key=len, reverse=True)


def write_batch(sources: list[Path], entry: dict[str, str], file: Path) -> dict[str, str]:
    """Writes the sources into one file; its compile command. (The analyzer passes over what a file only includes.)"""
    file.write_text("\n".join(source.read_text(encoding="utf-8") for source in sources), encoding="utf-8")
    return {"directory": entry["directory"], "file": str(file),
            "command": f"{shared_command(entry)} -iquote {sources[0].parent} -c {file}"}


def check(path: Path) -> tuple[bool, str]:
    """Whether clang-tidy finds nothing, and its output."""
    done = subprocess.run(["clang-tidy", *ARGUMENTS, "-p", DATABASE, path], capture_output=True, text=True, check=False)
    said = [line for line in (done.stdout + done.stderr).splitlines() if not NOISE.match(line)]
    return done.returncode == 0, "\n".join(said)


def check_batch(sources: list[Path], file: Path) -> list[tuple[Path, bool, str]]:
    """Each source, whether clang-tidy finds nothing in it, and its output."""
    if len(sources) > 1:
        clean, text = check(file)
        if clean and not text:
            return [(source, True, "") for source in sources]
        clash = re.search(r"error: (redefinition of .*|.* is ambiguous)", text)
        if clash:
            print(f"    checked one by one, as they do not compile together ({clash[1]}): "
                  f"{' '.join(str(source.relative_to(ROOT)) for source in sources)}", file=sys.stderr)
    return [(source, *check(source)) for source in sources]


def main() -> int:
    if not (BUILD / "compile_commands.json").exists():
        sys.exit("error: build/release is not configured; call ./test first")
    version = subprocess.run(["clang-tidy", "--version"], capture_output=True, text=True, check=True).stdout
    commands = read_commands({Path(name).resolve() for name in sys.argv[1:]})
    includes = read_includes()
    keys = {path: fingerprint(entry, includes, version) for path, entry in commands.items()}
    CACHE.mkdir(parents=True, exist_ok=True)
    todo = [path for path, key in keys.items() if key is None or not (CACHE / key).exists()]
    print(f"    {len(commands) - len(todo)} of {len(commands)} sources were found clean before", file=sys.stderr)

    DATABASE.mkdir(exist_ok=True)
    together = {DATABASE / f"batch_{index}.cpp": group for index, group in enumerate(batches(commands, todo))}
    listed = [*commands.values(), *(write_batch(group, commands[group[0]], file) for file, group in together.items())]
    (DATABASE / "compile_commands.json").write_text(json.dumps(listed), encoding="utf-8")

    done = failed = 0
    said = time.monotonic()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for task in as_completed([pool.submit(check_batch, group, file) for file, group in together.items()]):
            for path, clean, text in task.result():
                if text:
                    print(text, flush=True)
                if not clean:
                    failed += 1
                elif keys[path] is not None:
                    (CACHE / keys[path]).touch()
                done += 1
            if time.monotonic() - said > 20:
                said = time.monotonic()
                print(f"    clang-tidy: {done} of {len(todo)} sources", file=sys.stderr, flush=True)
    if not failed:
        return 0
    if re.search(rf"LLVM version {TESTED_VERSION}\.", version):
        print(f"error: clang-tidy found something in {failed} sources (see above)", file=sys.stderr)
        return 1
    print(f"this clang-tidy found something in {failed} sources, version {TESTED_VERSION} may not: not counted as a "
          "failure", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
