#!/usr/bin/env python3
"""Runs the steps of the Dockerfile without Docker, in bare Debian systems made by debootstrap, and asks the server. As root.

    packaging/try_dockerfile.py [MODEL]      default: .deps/models/SmolLM2-135M-Instruct.Q4_1.gguf

Understands only the instructions that the Dockerfile uses. If the user has a ccache folder, the build uses it.
"""

import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests/support"))
from running_server import free_port

MODEL = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / ".deps/models/SmolLM2-135M-Instruct.Q4_1.gguf").resolve()
CACHE = Path.home() / ".cache/ccache"
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")


def steps(text):
    """(instruction, arguments) of the file, with continued lines joined."""
    lines = re.sub(r"\\\n\s*", "", "\n".join(line for line in text.splitlines() if not line.startswith("#")))
    for line in lines.splitlines():
        if line.strip():
            instruction, _, arguments = line.strip().partition(" ")
            yield instruction, arguments


class Stage:
    """One Debian system in a folder."""

    def __init__(self, root, base):
        subprocess.run(["cp", "-a", base, root], check=True)
        self.root, self.environment, self.folder, self.user = root, {}, "/", "root"
        self.shell, self.entry = ["/bin/sh", "-c"], []

    def command(self, arguments):
        mounts = f"mount --rbind /dev {self.root}/dev && mount -t proc proc {self.root}/proc"
        if CACHE.is_dir():
            mounts += f" && mkdir -p {self.root}/ccache && mount --bind {CACHE} {self.root}/ccache"
        launcher = {f"CMAKE_{language}_COMPILER_LAUNCHER": "ccache" for language in ("C", "CXX") if CACHE.is_dir()}
        environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND": "noninteractive", "CCACHE_DIR": "/ccache",
                       "PIP_CERT": "/host-certificates", **launcher,
                       **{name: value for name, value in os.environ.items() if name.endswith("_proxy")}, **self.environment}
        inner = ["env", "-i", *(f"{name}={value}" for name, value in environment.items()), "chroot", str(self.root),
                 "sh", "-c", f"cd {shlex.quote(self.folder)} && exec \"$@\"", "sh",
                 *(["setpriv", f"--reuid={self.user}", f"--regid={self.user}", "--clear-groups"] if self.user != "root" else []),
                 *arguments]
        return ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", f"{mounts} && exec \"$@\"", "sh", *inner]

    def path(self, inside):
        return self.root / (Path(self.folder) / inside).relative_to("/")


def copy_sources(names, stage, destination):
    """Copies from the build's context, which is the repository without the files in .dockerignore."""
    target = stage.path(destination)
    target.mkdir(parents=True, exist_ok=True)
    ignored = [f"--exclude=./{line}" for line in (ROOT / ".dockerignore").read_text().split()]
    for name in names:
        source = ROOT / name
        tar = subprocess.Popen(["tar", "-C", str(source), *ignored, "-c", "."], stdout=subprocess.PIPE)
        subprocess.run(["tar", "-C", str(target), "-x", "--no-same-owner"], stdin=tar.stdout, check=True)
        assert tar.wait() == 0


def build(work):
    base = work / "base"
    release = re.search(r"VERSION_CODENAME=(\w+)", Path("/etc/os-release").read_text()).group(1)
    subprocess.run(["debootstrap", "--variant=minbase", release, base], check=True, stdout=subprocess.DEVNULL)
    (base / "etc/resolv.conf").write_text(Path("/etc/resolv.conf").read_text())
    (base / "host-certificates").write_bytes(CERTIFICATES.read_bytes())  # a network may have its own certificates
    stages, stage = {}, None
    for instruction, arguments in steps((ROOT / "Dockerfile").read_text()):
        started = time.monotonic()
        if instruction == "FROM":
            assert arguments.startswith(f"debian:{release}-slim"), arguments
            stage = Stage(work / f"stage{len(stages)}", base)
            stages[arguments.partition(" AS ")[2] or "last"] = stage
        elif instruction == "SHELL":
            stage.shell = json.loads(arguments)
        elif instruction == "WORKDIR":
            stage.folder = arguments
            stage.path("").mkdir(parents=True, exist_ok=True)
        elif instruction == "ENV":
            stage.environment |= dict(pair.split("=", 1) for pair in shlex.split(arguments))
        elif instruction == "ARG":
            stage.environment |= {arguments.partition("=")[0]: arguments.partition("=")[2]}
        elif instruction == "COPY" and arguments.startswith("--from="):
            name, source, destination = arguments.removeprefix("--from=").split()
            stage.path(destination).parent.mkdir(parents=True, exist_ok=True)
            subprocess.run(["cp", "-a", stages[name].path(source), stage.path(destination)], check=True)
        elif instruction == "COPY":
            *names, destination = arguments.split()
            copy_sources(names, stage, destination)
        elif instruction == "RUN":
            done = subprocess.run(stage.command([*stage.shell, arguments]), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                  stderr=subprocess.STDOUT, check=False)
            if done.returncode != 0:
                sys.exit(f"failed: RUN {arguments}\n{done.stdout.decode()[-3000:]}")
        elif instruction == "USER":
            stage.user = arguments
        elif instruction == "ENTRYPOINT":
            stage.entry = json.loads(arguments)
        else:
            assert instruction in ("EXPOSE", "HEALTHCHECK"), instruction
        print(f"{time.monotonic() - started:6.1f} s  {instruction} {arguments[:100]}", flush=True)
    return stage


def try_server(stage):
    """Like `docker run` with the folders named at the head of the Dockerfile."""
    (stage.root / "models").mkdir()
    subprocess.run(["cp", MODEL, stage.root / "models/model.gguf"], check=True)
    (stage.root / "run/secrets").mkdir(parents=True)
    (stage.root / "run/secrets/api-keys").write_text("secret\n")
    port = free_port()
    stage.environment |= {"LLAMA_ARG_PORT": port, "OMP_WAIT_POLICY": "passive", "LLAMA_ARG_CTX_SIZE": 2048}
    with open(stage.root / "log", "wb") as log:
        server = subprocess.Popen(stage.command([*stage.entry, "-m", "/models/model.gguf"]), stdout=log, stderr=log)
    try:
        if subprocess.run([ROOT / "packaging/ask_server.py", str(port), "secret"], check=False).returncode != 0:
            sys.exit(f"failed: the server\n{(stage.root / 'log').read_text()[-2000:]}")
    finally:
        # kills the server itself: the kernel does not pass the end of unshare on to a process that has changed its user
        subprocess.run(["pkill", "--signal", "KILL", "--parent", str(server.pid)], check=False)
        server.wait()


with tempfile.TemporaryDirectory() as folder:
    last = build(Path(folder))
    for part in [last.root, last.root / "opt/harp"]:
        size = subprocess.run(["du", "-sh", "-x", part], capture_output=True, text=True, check=True).stdout.split()[0]
        print(f"{size}  /{part.relative_to(last.root)}")
    try_server(last)
print("the Dockerfile's steps work")
