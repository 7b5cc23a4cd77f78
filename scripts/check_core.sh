#!/usr/bin/env bash
# Checks a rule of the house: the core never prints and never ends the process. It returns or throws harp::Error.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

calls='\b(v?f?printf|f?puts|putchar|perror|_?exit|quick_exit|abort|terminate)[[:space:]]*\(|\bstd::(cout|cerr|clog|print(ln)?)\b'
# blank out comments; line numbers stay the same
found=$(find src/method src/forward src/capi src/kernels -name '*.h' -o -name '*.cpp' | sort | while IFS= read -r file; do
    sed -E 's,//.*,,; s,/\*.*\*/,,' "$file" | grep -nE "$calls" | sed "s,^,$file:," || true
done)
if [[ -n $found ]]; then
    printf '%s\nerror: the core prints or ends the process here; return or throw harp::Error instead\n' "$found" >&2
    exit 1
fi
