#!/usr/bin/env bash
# Runs clang-tidy with .clang-tidy over our own sources, each once, as build/release compiles them.
#
#   scripts/run_clang_tidy.sh [FILE...]     without files: all
#
# The checks are kept clean for clang-tidy 14 (Debian 12); with another version findings are shown but do not fail.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

version=$(clang-tidy --version | sed -nE 's/.*LLVM version ([0-9]+).*/\1/p')
[[ -f build/release/compile_commands.json ]] || {
    echo "error: build/release is not configured; call ./test first" >&2
    exit 1
}

# One command a file: sources that are also built under sanitizers are listed twice. Prints the files, NUL between them.
list_sources() {
    python3 - "$@" <<'PYTHON'
import json, os, re, sys

root = os.getcwd()
wanted = {os.path.abspath(name) for name in sys.argv[1:]}
commands = {}
for entry in json.load(open("build/release/compile_commands.json", encoding="utf-8")):
    path = os.path.join(entry["directory"], entry["file"])
    ours = os.path.relpath(path, root).split(os.sep)[0] in ("src", "apps", "python", "tests", "bench")
    if ours and (not wanted or path in wanted):
        entry["command"] = re.sub(r" -fsched\S+", "", entry["command"])  # GCC's alone
        commands.setdefault(path, entry)
os.makedirs("build/release/clang-tidy", exist_ok=True)
with open("build/release/clang-tidy/compile_commands.json", "w", encoding="utf-8") as file:
    json.dump(list(commands.values()), file)
sys.stdout.write("\0".join(commands))
PYTHON
}

# The compiler's own warnings are the build's business, and GCC's options are not all clang's.
if ! list_sources "$@" | xargs -0 -r -P "$(nproc)" -n 1 \
    clang-tidy --quiet -p build/release/clang-tidy --extra-arg=-Wno-error --extra-arg=-Wno-unknown-warning-option \
    --extra-arg=-Qunused-arguments \
    2> >(grep -vE '^([0-9]+ warnings? (treated as errors?|generated)|Suppressed|Use -header-filter)' >&2); then
    if [[ $version == 14 ]]; then
        echo "error: clang-tidy found something (see above)" >&2
        exit 1
    fi
    echo "clang-tidy $version found something, version 14 may not: not counted as a failure" >&2
fi
