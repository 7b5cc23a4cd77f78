#!/usr/bin/env bash
# Checks that our C++ files are formatted by .clang-format; `scripts/check_format.sh --fix` formats them.
#
# Versions of clang-format format differently, so the pinned one in .deps/venv is preferred (./test installs it).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

format=.deps/venv/bin/clang-format
[[ -x $format ]] || format=$(command -v clang-format) || {
    echo "error: no clang-format; ./test installs it into .deps/venv" >&2
    exit 1
}
mode=(--dry-run -Werror)
[[ ${1-} != --fix ]] || mode=(-i)

# including files that are new to git, excluding files that are deleted but not yet committed
files=()
while IFS= read -r file; do
    [[ ! -f $file ]] || files+=("$file")
done < <(git ls-files --cached --others --exclude-standard -- '*.h' '*.cpp')
((${#files[@]})) || exit 0

if ! found=$("$format" "${mode[@]}" "${files[@]}" 2>&1); then
    places=$(grep -oE '^[^ :]+:[0-9]+:[0-9]+: error' <<<"$found" | cut -d: -f1,2 | uniq || true)
    head -n 20 <<<"${places:-$found}" >&2
    echo "error: $(wc -l <<<"$places") lines are not laid out by .clang-format; mend with: scripts/check_format.sh --fix" >&2
    exit 1
fi
