#!/usr/bin/env bash
# Fuzzes harp-server with schemathesis (requests from openapi.yaml, valid and invalid). Not part of ./test: it takes long, and needs
# a venv of its own in build/fuzz.
#
#   tests/server/fuzz/run.sh [SCHEMATHESIS ARGS...]     for example: --max-time 300, --seed 7, --include-path /completion
#
# The server is HARP_SERVER_BINARY (default: build/release/bin/harp-server) with the tiny model; its log is build/fuzz/server.log.
# Exit code 0: nothing was found, and the server is alive at the end.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../../.." && pwd)
work=$root/build/fuzz
server=${HARP_SERVER_BINARY:-$root/build/release/bin/harp-server}
model=${HARP_SHARED_DATA:-$root/../shared/data}/models/stories260K/stories260K-f32.gguf
version=4.32.5

mkdir -p "$work"
if ! "$work/venv/bin/st" --version 2>/dev/null | grep -qF "$version"; then
    python3 -m venv --clear "$work/venv"
    "$work/venv/bin/pip" install --quiet --disable-pip-version-check "schemathesis==$version"
fi

port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
"$server" -m "$model" --port "$port" -t 1 -np 2 -c 512 --metrics >"$work/server.log" 2>&1 </dev/null &
pid=$!
trap 'kill -INT $pid 2>/dev/null || true; wait $pid 2>/dev/null || true' EXIT
for ((i = 0; i < 600; i++)); do
    ! curl -sf "http://127.0.0.1:$port/health" >/dev/null || break
    kill -0 $pid 2>/dev/null || { tail "$work/server.log" >&2; exit 1; }
    sleep 0.1
done

# not checked: rejection of invalid requests, because llama.cpp accepts wrong types that it clamps or ignores
checks=not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,positive_data_acceptance
code=0
fuzz=$root/tests/server/fuzz
(cd "$work" && venv/bin/st --config-file "$fuzz/schemathesis.toml" run "$fuzz/openapi.yaml" --url "http://127.0.0.1:$port" \
    --checks "$checks" --continue-on-failure --request-timeout 60 --output-sanitize false \
    --generation-database none "$@") || code=$?
if ! curl -sf "http://127.0.0.1:$port/health" >/dev/null; then
    echo "error: the server does not answer any more; its log ends:" >&2
    tail "$work/server.log" >&2
    code=1
fi
exit "$code"
