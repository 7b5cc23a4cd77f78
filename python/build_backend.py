"""scikit-build-core, preceded by the same check for system packages that ./run makes."""

import subprocess
from pathlib import Path

from scikit_build_core import build as backend
from scikit_build_core.build import *  # noqa: F403: the hooks of a build backend

SETUP = Path(__file__).resolve().parents[1] / "scripts/setup.sh"


def ensure_packages():
    script = 'source "$1"; ensure_packages "$run_packages$python_packages" "$optional_packages"'
    subprocess.run(["bash", "-euo", "pipefail", "-c", script, "bash", SETUP], check=True)


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    ensure_packages()
    return backend.build_wheel(wheel_directory, config_settings, metadata_directory)


def build_editable(wheel_directory, config_settings=None, metadata_directory=None):
    ensure_packages()
    return backend.build_editable(wheel_directory, config_settings, metadata_directory)
