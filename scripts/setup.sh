# shellcheck shell=bash disable=SC2034 # scripts that source it use its variables
# Set-up steps shared by ./run and ./test: packages, Python environment, configure, build. Source this file.
#
# Steps print to standard error and keep their full output in build/logs/. Each can be called again at any time; what exists is
# not touched. HARP_STEPS is the number of steps that the caller announces.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P) # without links, so that one directory has one name
deps=$root/.deps
build=$root/build/release
logs=$root/build/logs
venv_python=$deps/venv/bin/python
step_number=0

say() { printf '%s\n' "$*" >&2; }

die() {
    say "error: $1"
    shift
    local line
    for line in "$@"; do say "  $line"; done
    exit 1
}

step() { # step TITLE: prints the next step and the seconds since the start
    step_number=$((step_number + 1))
    say "[$step_number/$HARP_STEPS, ${SECONDS} s] $1"
}

wait_for_lock() { # waits for this directory's lock, descriptor 9
    until flock -w 5 9; do say "waiting for another set-up of this directory (${SECONDS} s)"; done
}

# --- running a long command: all output to a log; progress as one line on a terminal, elsewhere a line per 10 % and per 5 s ---

show_progress() { # show_progress NAME: reads a command's output; understands ninja's "[FINISHED/TOTAL SECONDS] what"
    local line='' part='' text=$1 shown=-1 total=0 percent left started=$SECONDS said=$SECONDS status
    while true; do
        IFS= read -r -t 1 part && status=0 || status=$?
        line+=$part
        if ((status > 128)); then # no complete line for a second
            if [[ -t 2 ]]; then
                printf '\r\033[K    %.100s (%d s)' "${text//$'\t'/ }" $((SECONDS - started)) >&2
            elif ((SECONDS - said >= 5)); then
                said=$SECONDS
                say "    $1: at it for $((SECONDS - started)) s${percent:+, $percent %}"
            fi
            continue
        fi
        ((status == 0)) || break
        text=$line line='' percent=
        if [[ $text =~ ^\[([1-9][0-9]*)/([0-9]+)\ ([0-9]+)[.0-9]*\]\ (.*) ]]; then # not [0/1]: that configures again first
            percent=$((100 * BASH_REMATCH[1] / BASH_REMATCH[2]))
            if ((BASH_REMATCH[2] != total)); then shown=-1 total=${BASH_REMATCH[2]}; fi # ninja restarts its count after configuring
            left=$((BASH_REMATCH[3] * (BASH_REMATCH[2] - BASH_REMATCH[1]) / BASH_REMATCH[1]))
            text="$percent %, ${BASH_REMATCH[1]} of ${BASH_REMATCH[2]}, about $left s left"
            [[ -t 2 ]] && text+=": ${BASH_REMATCH[4]}"
        fi
        if [[ -t 2 ]]; then
            printf '\r\033[K    %.100s' "${text//$'\t'/ }" >&2
        elif [[ -n $percent ]] && ((percent / 10 > shown)); then
            shown=$((percent / 10)) said=$SECONDS
            say "    $text"
        elif ((SECONDS - said >= 5)); then
            said=$SECONDS
            say "    $1: at it for $((SECONDS - started)) s${percent:+, $percent %}"
        fi
    done
    if [[ -t 2 ]]; then printf '\r\033[K' >&2; fi
}

show_failure() { # show_failure LOG: the first failed build command with its errors, or the end of the log
    local first
    first=$(grep -nm1 '^FAILED:' "$1" | cut -d: -f1 || true)
    if [[ -n $first ]]; then
        sed -n "$first,$((first + 50))p" "$1" | cut -c1-300 >&2
    else
        tail -n 30 "$1" >&2
    fi
}

logged() { # logged NAME ADVICE COMMAND...: runs COMMAND with output in build/logs/NAME.log; on failure shows why, and prints ADVICE
    local name=$1 log=$logs/$1.log advice=$2
    shift 2
    mkdir -p "$logs"
    if ! "$@" </dev/null 2>&1 | tee "$log" | show_progress "$name"; then
        show_failure "$log"
        die "this step failed: $name (see above; all of its output is in ${log#"$root"/})" "$advice"
    fi
}

# --- system packages ---------------------------------------------------------------------------------------------------

# Each line: a Debian package, then what shows that it is installed: tool:NAME, header:PATH, header-of-python:NAME or
# python:MODULE.
run_packages='
build-essential        tool:c++
cmake                  tool:cmake
ninja-build            tool:ninja
patch                  tool:patch
python3                tool:python3
python3-venv           python:ensurepip
librandom123-dev       header:Random123/philox.h
libhwy-dev             header:hwy/highway.h
libcli11-dev           header:CLI/CLI.hpp
libzip-dev             header:zip.h
libfmt-dev             header:fmt/format.h
'
# Not required where packages cannot be installed. They make a second build faster and allow downloads of models by https.
optional_packages='
ccache                 tool:ccache
libssl-dev             header:openssl/ssl.h
'
python_packages='
python3-dev            header-of-python:Python.h
'
test_packages='
libgtest-dev           header:gtest/gtest.h
libgmock-dev           header:gmock/gmock.h
libbenchmark-dev       header:benchmark/benchmark.h
clang-tidy             tool:clang-tidy
chromium               tool:chromium
chromium-driver        tool:chromedriver
'

has_header() { # searches like the compiler, so that CPATH and the like count
    if command -v c++ >/dev/null; then
        printf '#if !__has_include(<%s>)\n#error missing\n#endif\n' "$1" | c++ -E -x c++ - >/dev/null 2>&1
    else
        [[ -e /usr/include/$1 || -e /usr/local/include/$1 ]]
    fi
}

missing_packages() { # missing_packages LIST: names of the packages that are not found
    local package probe
    while read -r package probe; do
        case $probe in
            tool:*) command -v "${probe#*:}" >/dev/null || echo "$package" ;;
            header-of-python:*)
                python3 -c "import os, sysconfig; os.stat(sysconfig.get_path('include') + '/${probe#*:}')" 2>/dev/null ||
                    echo "$package"
                ;;
            header:*) has_header "${probe#*:}" || echo "$package" ;;
            python:*) python3 -c "import ${probe#*:}" 2>/dev/null || echo "$package" ;;
        esac
    done <<<"$1"
}

ensure_packages() { # ensure_packages REQUIRED OPTIONAL (lists as above)
    local required wanted as_root=()
    required=$(missing_packages "$1" | xargs)
    wanted=$(missing_packages "$1$2" | xargs)
    [[ -n $wanted ]] || return 0
    if [[ $(id -u) != 0 ]]; then as_root=(sudo -n); fi
    if command -v apt-get >/dev/null && { [[ $(id -u) == 0 ]] || sudo -n true 2>/dev/null; }; then
        say "    installing $wanted"
        local apt=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300)
        logged apt-update "Check the network and /etc/apt/sources.list*, then call again." "${apt[@]}" update
        # shellcheck disable=SC2086 # a list of names
        logged apt-install "Install by hand what could not be installed: $wanted" \
            "${apt[@]}" install -y --no-install-recommends $wanted
        required=$(missing_packages "$1" | xargs)
        [[ -z $required ]] || die "installed, but still not found: $required"
    elif [[ -n $required ]]; then
        die "packages are missing and cannot be installed from here (no apt-get, or neither root nor password-free sudo)" \
            "Install them, then call again. Debian, Ubuntu:" "sudo apt-get install $wanted"
    else
        say "    not there, and not needed: $wanted"
    fi
}

# --- Python environment, sources and models ------------------------------------------------------------------------------

ensure_python() { # creates .deps/venv with the packages of scripts/requirements.txt
    local wanted=$root/scripts/requirements.txt stamp=$deps/venv/.requirements
    if cmp -s "$wanted" "$stamp" && "$venv_python" -c 'import gguf' 2>/dev/null; then return 0; fi
    if ! "$venv_python" -m pip --version >/dev/null 2>&1; then # none yet, or its Python no longer exists
        mkdir -p "$deps"
        logged python-venv "Debian, Ubuntu: apt-get install python3-venv" python3 -m venv --clear "$deps/venv"
    fi
    logged python-packages "Check the network and pip's index setting, then call again." \
        "$venv_python" -m pip install --disable-pip-version-check --progress-bar off -r "$wanted"
    cp "$wanted" "$stamp"
}

fetch() { "$root/scripts/fetch" "$1" || die "could not fetch $1 (see above)" "Call again when that is mended."; }

# --- configure and build -------------------------------------------------------------------------------------------------

cached() { # cached NAME VALUE: whether NAME has VALUE in the build directory
    [[ $(sed -nE "s/^$1:[A-Z]+=//p" "$build/CMakeCache.txt" 2>/dev/null) == "$2" ]]
}

use_ccache() { # from here on for cmake; the same source in another folder counts as the same
    command -v ccache >/dev/null || return 0
    export CMAKE_C_COMPILER_LAUNCHER=ccache CMAKE_CXX_COMPILER_LAUNCHER=ccache
    export CCACHE_BASEDIR=${CCACHE_BASEDIR:-$root} CCACHE_NOHASHDIR=${CCACHE_NOHASHDIR:-1}
}

# for any processor: one CPU back end of llama.cpp per kind, chosen at run time like the instructions of our kernels
portable_options=(-DGGML_NATIVE=OFF -DGGML_BACKEND_DL=ON -DGGML_CPU_ALL_VARIANTS=ON)

configure() { # configure TESTS, which is ON or OFF; OFF does not switch the tests off in a directory that builds them
    if [[ -f $build/CMakeCache.txt ]] && ! cached CMAKE_HOME_DIRECTORY "$root"; then
        say "    the repository was moved: building anew"
        rm -rf "$build"
    fi
    if [[ -f $build/build.ninja ]] && { [[ $1 == OFF ]] || {
        cached HARP_BUILD_TESTS ON && cached HARP_SANITIZER_TESTS ON && cached HARP_BUILD_PYTHON ON
    }; }; then return 0; fi
    local options=("-DHARP_BUILD_TESTS=$1" "-DHARP_BUILD_BENCH=$1" "-DHARP_SANITIZER_TESTS=$1" "-DHARP_BUILD_PYTHON=$1")
    if [[ $1 == ON ]]; then options+=("-DPython_EXECUTABLE=$venv_python"); fi
    use_ccache
    (cd "$root" && logged configure "See the first 'CMake Error' above; a broken build directory is cured by: rm -r build" \
        cmake --preset release "${options[@]}")
}

build() { # build TARGET...
    use_ccache
    # one job per core: ninja would run two more, which only take the others' cache
    NINJA_STATUS='[%f/%t %e] ' logged build "Mend the first error above and call again; what was built stays built." \
        cmake --build "$build" --parallel "$(nproc)" --target "$@"
}
