# shellcheck shell=bash
# A minimal Debian system in a folder, for trying things as on a new machine. Source this file, as root.

make_root() { # make_root: debootstrap of this machine's release into $bare, which is deleted when the script ends
    [[ $(id -u) == 0 ]] || { echo "this needs root: debootstrap, chroot" >&2 && exit 1; }
    command -v debootstrap >/dev/null || { echo "apt-get install debootstrap, then call again" >&2 && exit 1; }
    local release
    release=$(. /etc/os-release && echo "$VERSION_CODENAME")
    bare=$(mktemp -d)
    trap 'rm -rf --one-file-system "$bare"' EXIT
    chmod 755 "$bare"
    debootstrap --variant=minbase "$release" "$bare" >"$bare.log" || { tail "$bare.log" && exit 1; }
    rm "$bare.log"
    cp /etc/resolv.conf "$bare/etc/"
    cp /etc/apt/apt.conf.d/*proxy* "$bare/etc/apt/apt.conf.d/" 2>/dev/null || true
    in_root apt-get update -qq
}

seen_in_root=() # folders of this machine that the bare system sees at the same path

in_root() { # in_root COMMAND...: runs it in the bare system, with its own processes and mounts, and this machine's network
    # shellcheck disable=SC2016 # expanded by the inner shell
    unshare --mount --pid --fork --kill-child bash -c '
        set -e
        root=$1 n_seen=$2
        shift 2
        mount --rbind /dev "$root/dev"
        mount -t proc proc "$root/proc"
        for folder in "${@:1:n_seen}"; do
            mkdir -p "$root$folder"
            mount --bind "$folder" "$root$folder"
        done
        shift "$n_seen"
        exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=dumb DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8 \
            ${http_proxy+http_proxy="$http_proxy"} ${https_proxy+https_proxy="$https_proxy"} chroot "$root" "$@"
    ' bash "$bare" "${#seen_in_root[@]}" "${seen_in_root[@]}" "$@"
}

install_in_root() { # install_in_root PACKAGE...
    in_root apt-get install -y -qq --no-install-recommends "$@" >"$bare/apt.log" 2>&1 || { tail -n 30 "$bare/apt.log" && exit 1; }
}
