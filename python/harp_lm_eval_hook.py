"""Makes `lm_eval --model harp` work: lm-eval has no entry points for models, so a line is added to its list when it is imported.

harp_lm_eval.pth runs this at the start of each interpreter. The cost is one comparison of names for each module imported later.
"""

import importlib.abc
import importlib.util
import sys

TARGET = "lm_eval.models"


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name != TARGET:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            module.MODEL_MAPPING["harp"] = "harp.lm_eval_model:HarpLM"
            module._register_all_models()

        spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, _Finder())
