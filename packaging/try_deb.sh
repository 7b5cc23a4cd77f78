#!/usr/bin/env bash
# Installs the packages of packaging/deb.sh into a bare Debian system, tests their contents, and removes them. As root.
#
#   packaging/try_deb.sh [MODEL]        default: .deps/models/SmolLM2-135M-Instruct.Q4_1.gguf
#
# Tested are an answer; the service's command as a separate user, with a chat; the unit file with systemd-analyze; a program built
# with libharp-dev; and that nothing is left after purge.
set -euo pipefail
here=$(dirname "$(realpath "$0")")
# shellcheck source=packaging/trying.sh
source "$here/trying.sh"
# shellcheck source=packaging/bare_root.sh
source "$here/bare_root.sh"
model=$(model_file "${1-}")
ls "$here"/../build/deb/{harp,libharp-dev}_*.deb >/dev/null 2>&1 || fail "no packages; packaging/deb.sh builds them"
unit=/usr/lib/systemd/system/harp-server.service

server=
end_server() { # ends the innermost of the nested processes that in_root starts, which a signal to the first does not reach
    local last=$server child
    [[ -n $server ]] || return 0
    while child=$(pgrep --parent "$last"); do last=$child; done
    kill "$last"
    wait "$server"
}

make_root
trap 'end_server || true; rm -rf --one-file-system "$bare"' EXIT
in_root find / -xdev -not -path '/proc/*' -not -path '/var/*' | sort >"$bare/before"
mkdir "$bare/try"
cp "$here"/../build/deb/harp_*.deb "$bare/try/harp.deb"
cp "$here"/../build/deb/libharp-dev_*.deb "$bare/try/libharp-dev.deb"
cp -r "$here/../examples" "$bare/try/"

echo "== install"
install_in_root /try/harp.deb
in_root dpkg-query --show --showformat '${Package} ${Version} ${Installed-Size} kB\n' harp
in_root harp --version
cp "$model" "$bare/var/lib/harp/model.gguf"
in_root harp info -m /var/lib/harp/model.gguf 2>/dev/null | grep -E 'kernels|system'
text=$(in_root harp generate -m /var/lib/harp/model.gguf -p "What is the capital of France?" -n 24 --temp 0 2>/dev/null)
echo "$text"
[[ $text == *Paris* ]] || fail "harp generate"

echo "== the service's command, as a user of its own"
in_root useradd --system --no-create-home harp-service
echo secret >"$bare/etc/harp/api-keys"
in_root install -d -o harp-service -m 700 /run/keys
in_root install -o harp-service -m 600 /etc/harp/api-keys /run/keys/api-keys
read -ra environment < <(sed -n 's/^Environment=//p' "$bare$unit")
read -ra command < <(sed -n 's/^ExecStart=//p' "$bare$unit" | sed 's|%d|/run/keys|')
port=$(free_port)
in_root runuser -u harp-service -- env "${environment[@]}" "LLAMA_ARG_PORT=$port" LLAMA_ARG_CTX_SIZE=2048 "${command[@]}" >"$bare/server.log" 2>&1 &
server=$!
"$here/ask_server.py" "$port" secret || { tail "$bare/server.log" && fail "the server"; }
ps -o user:20,args -C harp-server | grep api-keys
end_server || fail "the server ended with $?"
server=

echo "== unit file"
install_in_root systemd
in_root systemd-analyze verify "$unit" && echo "systemd has nothing to say against it"
in_root systemd-analyze security --offline=true "$unit" | tail -n 1

echo "== a program with libharp-dev"
install_in_root /try/libharp-dev.deb g++ cmake make
in_root bash -ec 'cmake -S /try/examples -B /try/build >/try/cmake.log && cmake --build /try/build >>/try/cmake.log || { cat /try/cmake.log; exit 1; }'
in_root /try/build/simple /var/lib/harp/model.gguf "Once upon a time" 16 2>/dev/null

echo "== removal"
rm "$bare/var/lib/harp/model.gguf" "$bare/etc/harp/api-keys"
in_root apt-get purge -y -qq harp libharp-dev >/dev/null 2>&1
left=$(in_root find / -xdev -not -path '/proc/*' -not -path '/try/*' -not -path ~root/'.cache/*' -iname '*harp*' -newer /before |
    grep -vE '/var/lib/dpkg/info|sharp' || true)
[[ -z $left ]] || fail "left behind: $left"
echo "nothing is left"
