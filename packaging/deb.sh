#!/usr/bin/env bash
# Builds the Debian packages harp and libharp-dev: build/deb/harp_VERSION_amd64.deb, build/deb/libharp-dev_VERSION_amd64.deb.
#
# For the Debian release of this machine and any processor: there is a CPU back end of llama.cpp for each kind.
# packaging/try_deb.sh tests the packages. A first build takes about half an hour on two cores.
set -euo pipefail
# shellcheck source=scripts/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/../scripts/setup.sh"
HARP_STEPS=3
cd "$root"
build=$root/build/deb

step "system packages, llama.cpp"
ensure_packages "$run_packages
libssl-dev             header:openssl/ssl.h
dpkg-dev               tool:dpkg-shlibdeps
" "$optional_packages"
fetch llama.cpp

step "build (log: build/logs/build.log)"
use_ccache
logged deb-configure "See the first 'CMake Error' above." cmake --preset release -B "$build" \
    -DHARP_BUILD_TESTS=OFF -DHARP_BUILD_BENCH=OFF -DHARP_SANITIZER_TESTS=OFF \
    "${portable_options[@]}" \
    -DCMAKE_INSTALL_BINDIR=lib/harp/bin -DCMAKE_INSTALL_LIBDIR=lib/harp/lib -DCMAKE_INSTALL_INCLUDEDIR=lib/harp/include
build harp_cli harp_server

step "packages"
rm -f "$build"/*.deb
logged cpack "" cpack -G DEB --config "$build/CPackConfig.cmake" -B "$build"
for package in "$build"/*.deb; do
    dpkg-deb --show --showformat '${Package} ${Version}, installed: ${Installed-Size} kB\n  Depends: ${Depends}\n' "$package" >&2
    say "  $(du -h "$package")"
done
