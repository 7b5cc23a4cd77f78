#!/usr/bin/env bash
# Installs a wheel into an empty environment and tests its contents.
#
#   packaging/try_wheel.sh [WHEEL [MODEL]]     default: build/wheel/*.whl .deps/models/SmolLM2-135M-Instruct.Q4_1.gguf
#
# Tested are an answer, harp serve with a chat and its page, and a score in Python. Mapped libraries must come from the environment,
# except the C and C++ libraries and what Python brings. Only numpy is installed in addition to the wheel.
set -euo pipefail
here=$(dirname "$(realpath "$0")")
# shellcheck source=packaging/trying.sh
source "$here/trying.sh"
wheel=$(realpath "${1:-$(echo "$here"/../build/wheel/*.whl)}")
[[ -f $wheel ]] || fail "no such wheel: $wheel; packaging/wheel.sh builds one"
model=$(model_file "${2-}")
work=$(mktemp -d)
server=
clean_up() {
    if [[ -n $server ]]; then kill "$server" 2>/dev/null || true; fi
    rm -rf "$work"
}
trap clean_up EXIT
cd "$work" # away from the repository's files
unset PYTHONPATH LD_LIBRARY_PATH
export PATH=/usr/local/bin:/usr/bin:/bin HOME=$work OMP_WAIT_POLICY=passive

check_maps() { # check_maps FILE: the maps of a process that has the model loaded
    local from='^/(usr/)?lib/.*/(ld-linux.*|lib(c|m|dl|rt|pthread|util|resolv|stdc\+\+|gcc_s)\.so.*)$' outside
    grep -q "^$work/env/.*/libggml-cpu-.*\.so" "$1" || fail "no CPU back end of the environment is loaded"
    grep -q "/libfmt" "$1" || fail "the list of mapped files is not complete"
    outside=$(grep -E '\.so(\.|$)' "$1" | grep -vE "^$work/env/|$from" | grep -vE "^($python|/usr)/lib.*/(lib)?python3?[^/]*/|^$python/lib/|libpython3" || true)
    outside=$(grep -vE '/lib(z|bz2|lzma|ffi|crypto|ssl|expat|uuid|sqlite3)\.so' <<<"$outside" || true) # libraries of Python's own modules
    [[ -z $outside ]] || fail "files outside of the environment: $outside"
}

python3 -m venv env
python=$(env/bin/python -c 'import sys; print(sys.base_prefix)')
env/bin/pip install --quiet --disable-pip-version-check "$wheel"
echo "installed: $(du -sh env/lib/python3*/site-packages/harp | cut -f1) harp, $(du -sh env/lib/python3*/site-packages/harp_cpp.libs | cut -f1) libraries"
env/bin/harp --version

env/bin/harp info -m "$model" --json 2>/dev/null >info.json
env/bin/python - <<'END' || fail "harp info"
import json
build = json.load(open("info.json"))["build"]
print("kernels:", build["kernels"])
print("system:", build["system"])
END
text=$(env/bin/harp generate -m "$model" -p "What is the capital of France?" -n 24 --temp 0 2>generate.log)
echo "generate: $text"
[[ $text == *Paris* ]] || fail "generate"
! grep load_backend generate.log || fail "llama.cpp's news reach the terminal"

port=$(free_port)
env/bin/harp serve -m "$model" --port "$port" -c 2048 >server.log 2>&1 &
server=$!
env/bin/python "$here/ask_server.py" "$port" || { tail server.log; fail "harp serve"; }
awk '$6 ~ /^\// { print $6 }' "/proc/$server/maps" | sort -u >server.maps
check_maps server.maps
kill "$server"
wait "$server" || fail "harp serve ended with $?"
server=

env/bin/python - "$model" <<'END' || fail "Python"
import sys, harp
model = harp.Model(sys.argv[1])
session = harp.Session(model, harp.HarpOptions(threshold=1.5), n_ctx=256)
[score] = session.score([("The capital of France is", " Paris")])
print("score:", score.vanilla, score.harp, score.is_greedy)
assert score.is_greedy and -3 < score.vanilla < 0
mapped = {line.split()[5] for line in open("/proc/self/maps") if len(line.split()) > 5}
open("python.maps", "w").write("\n".join(sorted(m for m in mapped if m.startswith("/"))) + "\n")
END
check_maps python.maps
echo "all of it works, with nothing from outside but $(cat ./*.maps | grep -E '\.so' | grep -v "^$work" | xargs -n 1 basename | sort -u | tr '\n' ' ')"
