#!/usr/bin/env bash
# Builds llama-server from the pinned source without our changes into build/llama-server, for comparison with harp-server.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../../.." && pwd)
launcher=()
if command -v ccache >/dev/null; then launcher=(-DCMAKE_C_COMPILER_LAUNCHER=ccache -DCMAKE_CXX_COMPILER_LAUNCHER=ccache); fi
cmake -S "$root/.deps/llama.cpp" -B "$root/build/llama-server" -G Ninja -DCMAKE_BUILD_TYPE=Release "${launcher[@]}" \
    -DGGML_CCACHE=OFF -DLLAMA_BUILD_NUMBER=0 -DLLAMA_BUILD_COMMIT=pinned-0.5.0 -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF \
    -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF
cmake --build "$root/build/llama-server" --target llama-server
