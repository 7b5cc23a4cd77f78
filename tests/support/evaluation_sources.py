"""Makes harp.evaluation importable from the source tree without the engine, which `import harp` would load."""

import sys
import types
from pathlib import Path

PYTHON = Path(__file__).resolve().parents[2] / "python"

if "harp" not in sys.modules:
    package = types.ModuleType("harp")
    package.__path__ = [str(PYTHON / "harp")]
    sys.modules["harp"] = package
