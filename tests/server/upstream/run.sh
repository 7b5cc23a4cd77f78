#!/usr/bin/env bash
# Runs llama.cpp's own server tests (of the pinned source) against three servers: llama-server built from the same source,
# harp-server with HARP off, harp-server with HARP on. Prints which tests do not pass everywhere, with each server's reason.
#
#   tests/server/upstream/run.sh [PYTEST ARGS...]      for example: -k "completion and not slow"
#
# Needs what ./test has built, and an idle machine: beside other work requests run into the tests' timeouts. Results are in
# build/upstream/*.xml; docs/SERVER.md says which tests apply, pass and fail, and why.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../../.." && pwd)
source=$root/.deps/llama.cpp
out=$root/build/upstream
mkdir -p "$out"

if [[ ! -x $out/venv/bin/pytest ]]; then
    python3 -m venv "$out/venv"
    "$out/venv/bin/pip" install -q -r "$source/tools/server/tests/requirements.txt" pytest-timeout
fi
if [[ ! -x $root/build/llama-server/bin/llama-server ]]; then "$here/build_llama_server.sh"; fi

export PYTHONPATH=$here${PYTHONPATH:+:$PYTHONPATH}
export LLAMA_SERVER_BIN_PATH=$here/launch.py HARP_UPSTREAM_MODELS=$root/../shared/data/models/stories260K
for server in llama-server harp-off harp-on; do
    echo "== $server"
    (cd "$source/tools/server/tests" &&
        HARP_UPSTREAM_SERVER=$server "$out/venv/bin/pytest" -p local_models -p no:cacheprovider -q -x --maxfail=1000 \
            --timeout=120 --junitxml="$out/$server.xml" "$@" >"$out/$server.log" 2>&1) || true
    tail -n 1 "$out/$server.log"
done
"$out/venv/bin/python" "$here/compare.py" "$out"/{llama-server,harp-off,harp-on}.xml
