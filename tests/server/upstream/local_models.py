"""pytest plugin: llama.cpp's tests without their downloads; a test whose model is not here is skipped by that name."""

import os
import sys

import pytest

sys.path.insert(0, os.getcwd())  # the folder of llama.cpp's tests
import utils

HERE = {"ggml-org/test-model-stories260K"}
utils.ServerPreset.load_all = staticmethod(lambda: None)
start = utils.ServerProcess.start


def start_if_here(self, *arguments, **more):
    if self.model_hf_repo and self.model_hf_repo not in HERE:
        pytest.skip(f"no model {self.model_hf_repo}")
    return start(self, *arguments, **more)


utils.ServerProcess.start = start_if_here


def no_download(url, *arguments, **more):
    pytest.skip(f"no download of {url}")


utils.download_file = no_download
