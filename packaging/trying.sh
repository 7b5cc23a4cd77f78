# shellcheck shell=bash
# Common functions of the tests of packages. Source this file.

fail() {
    echo "failed: $*" >&2
    exit 1
}

model_file() { # model_file [FILE]: its absolute path; without FILE that of the model that ./run fetches
    local file
    file=${1:-$(dirname "${BASH_SOURCE[0]}")/../.deps/models/SmolLM2-135M-Instruct.Q4_1.gguf}
    [[ -f $file ]] || fail "no such model: $file; ./run fetches one, or name another"
    realpath "$file"
}

free_port() {
    python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}
