#!/usr/bin/env bash
# Cross-builds for aarch64 with Debian's compiler in a bare Debian system, and tests the result under qemu-user. As root.
#
#   packaging/try_aarch64.sh [MODEL]        default: .deps/models/SmolLM2-135M-Instruct.Q4_1.gguf
#
# Tested are the unit tests, the laws and the authors' recorded runs on stories260K, and an answer of MODEL. The build stays in
# build/aarch64, so that a second call builds only what has changed. On two busy cores a first build took 26 minutes, the unit tests 5,
# the laws 8, the answer 2.
set -euo pipefail
here=$(dirname "$(realpath "$0")")
# shellcheck source=scripts/setup.sh
source "$here/../scripts/setup.sh"
# shellcheck source=packaging/trying.sh
source "$here/trying.sh"
# shellcheck source=packaging/bare_root.sh
source "$here/bare_root.sh"
HARP_STEPS=5
model=$(model_file "${1-}")
build=$root/build/aarch64
# unit_kernels is for x86-64 only; the last two find none of their data here and skip all tests
unit_tests=(unit_method unit_forward unit_decoding unit_llama_flags unit_multiplication unit_ggml_amx)
model_tests=(model_laws conformance_stories260K)

# emulated, in the bare system; waiting threads free their core
emulated() { in_root env OMP_WAIT_POLICY=passive "HARP_TEST_MODELS=$deps/models" "HARP_SHARED_DATA=$shared" qemu-aarch64 "$@"; }

try_test() { # try_test NAME [ARGUMENT...]: runs a GoogleTest executable, and prints how many tests passed and were skipped
    local log=$logs/aarch64-$1.log started=$SECONDS passed skipped
    emulated "$(find "$build/tests" -type f -name "$1")" "${@:2}" >"$log" 2>&1 || { tail -n 30 "$log" >&2 && fail "$1"; }
    passed=$(sed -nE 's/^\[  PASSED  \] ([0-9]+) tests?.*/\1/p' "$log")
    skipped=$(sed -nE 's/^\[  SKIPPED \] ([0-9]+) tests?.*/\1/p' "$log")
    echo "$1: ${passed:-0} passed, ${skipped:-0} skipped, $((SECONDS - started)) s"
}

step "llama.cpp's source; a bare Debian system with a cross compiler, libraries for arm64, qemu-user"
fetch llama.cpp
make_root
in_root dpkg --add-architecture arm64
in_root apt-get update -qq
install_in_root cmake ninja-build patch python3 g++-aarch64-linux-gnu qemu-user librandom123-dev libcli11-dev \
    libhwy-dev:arm64 libzip-dev:arm64 libfmt-dev:arm64 libgtest-dev:arm64 libgomp1:arm64
in_root aarch64-linux-gnu-g++ --version | head -n 1
in_root qemu-aarch64 --version | head -n 1
shared=$(realpath -m "$root/../shared/data")
seen_in_root=("$root")
if [[ -d $shared ]]; then seen_in_root+=("$shared"); fi

step "configure, build (log: build/logs/aarch64-build.log)"
options=(-DHARP_BUILD_BENCH=OFF -DHARP_SANITIZER_TESTS=OFF -DGGML_NATIVE=OFF)
cache=()
if command -v ccache >/dev/null; then
    install_in_root ccache
    folder=$(ccache --get-config cache_dir)
    mkdir -p "$folder"
    seen_in_root+=("$folder")
    cache=("CCACHE_DIR=$folder" "CCACHE_BASEDIR=$root" CCACHE_NOHASHDIR=1)
    options+=(-DCMAKE_C_COMPILER_LAUNCHER=ccache -DCMAKE_CXX_COMPILER_LAUNCHER=ccache)
fi
logged aarch64-configure "See the first 'CMake Error' above." in_root cmake -S "$root" -B "$build" -G Ninja \
    --toolchain "$root/cmake/aarch64-linux-gnu.cmake" "${options[@]}"
logged aarch64-build "Mend the first error above and call again; what was built stays built." \
    in_root env NINJA_STATUS='[%f/%t %e] ' "${cache[@]}" \
    cmake --build "$build" --parallel "$(nproc)" --target harp_cli "${unit_tests[@]}" "${model_tests[@]}"
in_root aarch64-linux-gnu-readelf --file-header "$build/bin/harp" | grep Machine | xargs

step "unit tests"
for name in "${unit_tests[@]}"; do try_test "$name"; done

step "laws, recorded runs"
try_test model_laws '--gtest_filter=*/stories260K' # emulated, others take too long: LazyIsFused takes 3 minutes even with this one
try_test conformance_stories260K '--gtest_filter=-*MistakeIsNoticed*' # emulated, each planted mistake takes more than a minute

step "an answer"
cp "$model" "$bare/model.gguf"
emulated "$build/bin/harp" info -m /model.gguf 2>/dev/null | grep -E 'kernels|system'
text=$(emulated "$build/bin/harp" generate -m /model.gguf -p "What is the capital of France?" -n 24 --temp 0 2>"$logs/aarch64-answer.log")
echo "$text"
[[ $text == *Paris* ]] || { tail "$logs/aarch64-answer.log" >&2 && fail "harp generate"; }
echo "it works on aarch64, as far as qemu shows"
