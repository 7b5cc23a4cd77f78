#!/usr/bin/env bash
# Runs the server's tests on a server with a sanitizer and assertions (including ForwardPass's invariant after each decode).
#
#   tests/server/sanitized.sh thread                    many slots at once under ThreadSanitizer
#   tests/server/sanitized.sh address,undefined         answers, clients, echoes, slots, starting, faults
#
# Builds into build/sanitize-.... A finding ends the server with exit code 66; it is in the log, which the failing test shows.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
sanitizers=${1:?thread, or address,undefined}
build=$root/build/sanitize-${sanitizers//,/-}
launcher=()
if command -v ccache >/dev/null; then launcher=(-DCMAKE_C_COMPILER_LAUNCHER=ccache -DCMAKE_CXX_COMPILER_LAUNCHER=ccache); fi
export CCACHE_BASEDIR=$root CCACHE_NOHASHDIR=1
cmake -S "$root" -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release "-DHARP_SANITIZE=$sanitizers" -DHARP_BUILD_TESTS=OFF \
    -DHARP_BUILD_BENCH=OFF -DHARP_SANITIZER_TESTS=OFF "${launcher[@]}"
cmake --build "$build" --target harp_server harp_cli

export HARP_SERVER_BINARY=$build/bin/harp-server HARP_BINARY=$build/bin/harp
export HARP_TEST_MODELS=$root/.deps/models
# libllama and ggml are not instrumented, so memory that only they access is not checked
suppressions=$build/suppressions.txt
printf 'called_from_lib:%s.so\n' libllama libggml libggml-base libggml-cpu >"$suppressions"
# while load_model() writes parameters, llama.cpp's listener reads them to answer /health
echo 'race:server_context_impl::load_model' >>"$suppressions"
export TSAN_OPTIONS="exitcode=66 suppressions=$suppressions ignore_noninstrumented_modules=1"
export ASAN_OPTIONS=detect_container_overflow=0:exitcode=66 UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1:exitcode=66
run() { "$root/.deps/venv/bin/python" "$root/tests/server/$1_test.py" "${@:2}"; }
if [[ $sanitizers == thread ]]; then
    run server Hesitating Drafts
    run echo
    run clients Endpoints
    run slots Memory
else
    for name in server clients echo slots starting faults; do run "$name"; done
fi
