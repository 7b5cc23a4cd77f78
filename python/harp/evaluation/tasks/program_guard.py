"""Runs one untrusted Python program, as process 1 of its own namespaces (programs.py starts it with `unshare`).

Reads {"source", "token", "folder", "seconds", "megabytes", "processes"} from standard input and writes {"outcome": "passed" or why not} to standard
output, or {"refused": why} if it cannot confine the program. It confines the program by:

    network    a namespace whose only device is an unused loopback
    files      its own tree: Python and the system's libraries, read-only, in an in-memory file system that disappears afterwards and is
               limited to the program's memory; the user's files, and sockets that are files, are not in it
    processes  a namespace whose first process this is: other processes cannot be seen, and all end with it
    memory     a limit for each process; the sum over all processes, and their number, are checked repeatedly
    time       a limit of processor time; time by the clock is checked repeatedly
    privileges no capabilities, and no way to get any

Uses only Python's standard library; `programs.py` never imports it.
"""

import ctypes
import json
import os
import resource
import signal
import sys
import time
import types

MOUNT_SETATTR, AT_FDCWD, AT_RECURSIVE, MOUNT_ATTR_RDONLY = 442, -100, 0x8000, 1  # the system call's number is the same on all machines
PIVOT_ROOT = {"x86_64": 155, "aarch64": 41, "riscv64": 41}
MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MNT_DETACH = 2, 4, 4096, 16384, 2
SYSTEM = ("/usr", "/lib", "/lib32", "/lib64", "/bin", "/etc/ld.so.cache")
DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
WORK = "/work"
PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS = 4, 38
CAPABILITY_VERSION_3 = 0x20080522
PAUSE = 0.02  # seconds between checks

del sys.path[0]  # this file's folder, from which a program is to import nothing
libc = ctypes.CDLL(None, use_errno=True)


def check(result, what):
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


def shut_files(folder, megabytes):
    """Creates a separate file tree at `folder` and makes it the root."""
    pivot_root = PIVOT_ROOT.get(os.uname().machine)
    if pivot_root is None:
        raise OSError(0, f"unknown machine {os.uname().machine}")
    options = f"size={megabytes}m,nr_inodes=1000,mode=0700".encode()
    check(libc.mount(b"tmpfs", folder.encode(), b"tmpfs", MS_NOSUID, options), "files in memory")
    read_only = (ctypes.c_uint64 * 4)(MOUNT_ATTR_RDONLY, 0, 0, 0)
    for path in dict.fromkeys((*SYSTEM, sys.base_prefix, sys.base_exec_prefix, *DEVICES, "/proc")):
        if not os.path.exists(path) or os.path.exists(folder + path):  # for example /usr/local, which is in /usr
            continue
        if os.path.isdir(path):
            os.makedirs(folder + path)
        else:
            os.makedirs(os.path.dirname(folder + path), exist_ok=True)
            open(folder + path, "w", encoding="ascii").close()
        there = (folder + path).encode()
        check(libc.mount(path.encode(), there, None, MS_BIND | MS_REC, None), path)
        if path not in DEVICES:
            check(libc.syscall(MOUNT_SETATTR, AT_FDCWD, there, AT_RECURSIVE, read_only, ctypes.sizeof(read_only)), f"{path}, read-only")
    os.mkdir(folder + WORK)
    os.chdir(folder)
    check(libc.syscall(pivot_root, b".", b"."), "another root")  # the old root is now mounted over the new one; umount2() removes it
    check(libc.umount2(b".", MNT_DETACH), "the old root")
    os.chdir("/")


def forbid_namespaces():
    """In a user namespace of its own a program would have all capabilities: could fill memory with mounted files, for example."""
    with open("/proc/sys/user/max_user_namespaces", "w", encoding="ascii") as file:
        file.write("0")


def drop_privileges():
    check(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no new privileges")
    header, none = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0), (ctypes.c_uint32 * 6)()
    check(libc.capset(header, none), "no capabilities")


def limit(megabytes, seconds):
    size = megabytes << 20
    for what, most in ((resource.RLIMIT_AS, size), (resource.RLIMIT_FSIZE, size), (resource.RLIMIT_CPU, seconds), (resource.RLIMIT_CORE, 0),
                       (resource.RLIMIT_NOFILE, 64), (resource.RLIMIT_STACK, 64 << 20), (resource.RLIMIT_MEMLOCK, 0),
                       (resource.RLIMIT_MSGQUEUE, 0)):
        resource.setrlimit(what, (most, most))


def run(asked, result):
    """Runs in the program's process. The token is written only if the program reaches its end."""
    os.setsid()
    nothing = os.open("/dev/null", os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nothing, descriptor)
    os.closerange(3, result)
    os.closerange(result + 1, 256)
    os.chdir(WORK)
    os.environ.clear()
    os.environ.update(HOME=WORK, TMPDIR=WORK, PATH="/usr/bin:/bin", LC_ALL="C.UTF-8")
    limit(asked["megabytes"], asked["seconds"])
    drop_privileges()
    own = os.getpid()
    module = types.ModuleType("program")  # not __main__, so that code under `if __name__ == "__main__"` does not run
    sys.modules["program"] = module
    try:
        exec(compile(asked["source"], "program", "exec"), module.__dict__)
        said = asked["token"]
    except BaseException as error:  # SystemExit too: a program that exits has not passed
        said = f"{type(error).__name__}: {error}"
    if os.getpid() == own:  # not in a copy that the program made of itself, which comes here too
        os.write(result, said.encode("utf-8", "replace")[:1000])
    os._exit(0)


def other_processes():
    return [name for name in os.listdir("/proc") if name.isdecimal() and name != "1"]


def bytes_in_memory(processes):
    n_bytes = 0
    for name in processes:
        try:
            with open(f"/proc/{name}/statm", encoding="ascii") as file:
                n_bytes += int(file.read().split()[1]) * resource.getpagesize()
        except (OSError, IndexError):  # the process has ended
            pass
    return n_bytes


def watch(program, asked):
    """Waits for the program. @return why it was stopped, or ''"""
    deadline = time.monotonic() + 3 * asked["seconds"]
    while True:
        while True:
            try:
                ended, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return ""
            if ended == program:
                if os.WIFSIGNALED(status):
                    is_slow = os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL)
                    return f"took more than {asked['seconds']} s" if is_slow else f"ended by signal {os.WTERMSIG(status)}"
                return ""
            if ended == 0:
                break
        processes = other_processes()
        if len(processes) > asked["processes"]:  # first: they may become more faster than they can be looked at
            return f"more than {asked['processes']} processes"
        if bytes_in_memory(processes) > asked["megabytes"] << 20:
            return f"MemoryError: more than {asked['megabytes']} MB"
        if time.monotonic() > deadline:
            return f"took more than {3 * asked['seconds']} s by the clock"
        time.sleep(PAUSE)


def main():
    asked = json.load(sys.stdin)
    try:
        if os.getpid() != 1:
            raise OSError(0, "this process is not the first of its namespace")
        forbid_namespaces()
        shut_files(asked["folder"], asked["megabytes"])
    except OSError as error:
        print(json.dumps({"refused": error.strerror}))
        return
    reader, writer = os.pipe()
    program = os.fork()
    if program == 0:
        try:
            run(asked, writer)
        finally:
            os._exit(1)
    libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)  # the program cannot look into this process
    os.close(writer)
    stopped = watch(program, asked)
    os.set_blocking(reader, False)
    try:
        said = os.read(reader, 1000).decode("utf-8", "replace")
    except BlockingIOError:  # the program ended without a message, and a child of it is still running
        said = ""
    outcome = "passed" if said == asked["token"] and not stopped else stopped or said or "ended before its tests"
    print(json.dumps({"outcome": outcome}), flush=True)
    os._exit(0)  # ends all other processes too


main()
