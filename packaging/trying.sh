# shellcheck shell=bash
# Common functions of the tests of packages. Source this file.

fail() {
    echo "failed: $*" >&2
    exit 1
}

free_port() {
    python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}
