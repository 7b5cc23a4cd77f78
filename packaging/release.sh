#!/usr/bin/env bash
# Makes a release in build/dist: source archive, wheel, Debian packages, checksums.
#
#   packaging/release.sh [--draft]      --draft: does not require a clean tree and a section for this version in CHANGELOG.md
#
# The source archive contains the pinned llama.cpp, so that it builds without a network. The Debian packages are built from it.
set -euo pipefail
# shellcheck source=scripts/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/../scripts/setup.sh"
HARP_STEPS=4
cd "$root"
dist=$root/build/dist

step "version, changelog, clean tree"
version=$(sed -nE 's/^project\(harp VERSION ([0-9.]+) .*/\1/p' CMakeLists.txt)
grep -qx "version = \"$version\"" pyproject.toml || die "pyproject.toml has another version than CMakeLists.txt, $version"
if [[ ${1-} != --draft ]]; then
    grep -q "^## \[$version\]" CHANGELOG.md || die "CHANGELOG.md has no section ## [$version]"
    [[ -z $(git status --porcelain) ]] || die "there are changes that are not committed"
fi

step "source archive"
fetch llama.cpp
rm -rf "$dist"
mkdir -p "$dist"
name=harp.cpp-$version
date=$(git log -1 --format=%cI)
git archive --prefix="$name/" --output="$dist/$name.tar" HEAD
tar --append --file "$dist/$name.tar" --sort=name --owner=0 --group=0 --numeric-owner --mtime="$date" --dereference \
    --transform "s|^|$name/|" .deps/llama.cpp
gzip --best --no-name "$dist/$name.tar"

step "Debian packages from the archive, without a network"
work=$root/build/from-archive # kept, so that the next release has less to build
rm -rf "${work:?}/$name"
mkdir -p "$work"
tar --extract --gzip --file "$dist/$name.tar.gz" --directory "$work"
export CCACHE_BASEDIR=$work/$name CCACHE_NOHASHDIR=1
unshare --map-root-user --net "$work/$name/packaging/deb.sh"
cp "$work/$name"/build/deb/*.deb "$dist/"

step "wheel from the archive"
"$work/$name/packaging/wheel.sh"
cp "$work/$name"/build/wheel/*.whl "$dist/"

(cd "$dist" && sha256sum -- *.tar.gz *.whl *.deb >SHA256SUMS)
say "$(ls -lh "$dist")"
