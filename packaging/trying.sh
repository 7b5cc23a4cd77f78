# shellcheck shell=bash
# What the trials of packages have in common. Source this file.

fail() {
    echo "failed: $*" >&2
    exit 1
}

free_port() {
    python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}
