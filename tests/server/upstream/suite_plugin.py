"""pytest plugin of suite.py: runs llama.cpp's server tests without downloads. A test whose model or file is missing is skipped, naming it."""

import json
import os
import sys
import types

import pytest
import requests

sys.modules["wget"] = types.ModuleType("wget")  # utils imports it for downloads
sys.path.insert(0, os.getcwd())  # the folder of llama.cpp's tests
import utils

REPOSITORIES = json.loads(os.environ["HARP_SUITE_REPOSITORIES"])  # repositories of Hugging Face and their files in suite.py's cache
FILES = json.loads(os.environ["HARP_SUITE_FILES"])  # name of a download: path of its replacement
START_TIMEOUT = 300  # seconds, since the machine may be busy
PICTURES = json.loads(os.environ["HARP_SUITE_PICTURES"])

utils.ServerPreset.load_all = staticmethod(lambda: None)
start, get = utils.ServerProcess.start, requests.get


def start_if_here(self, *arguments, **more):
    repository = (self.model_hf_repo or "").partition(":")[0]
    if repository and repository not in REPOSITORIES:
        pytest.skip(f"no model {repository}")
    if repository and self.model_hf_file and self.model_hf_file not in REPOSITORIES[repository]:
        pytest.skip(f"no file {self.model_hf_file}")
    self.offline = self.offline or bool(repository)
    if not arguments:
        more.setdefault("timeout_seconds", START_TIMEOUT)
    return start(self, *arguments, **more)


def local_file(url, *arguments, **more):
    name = url.rpartition("/")[2]
    if name not in FILES:
        pytest.skip(f"no file {name}")
    return FILES[name]


def get_locally(url, *arguments, **more):
    """Replaces the pictures that tests put into requests, the cat by one picture and the truck by another."""
    if not url.startswith("https://huggingface.co/"):
        return get(url, *arguments, **more)
    answer = requests.Response()
    with open(PICTURES[url.endswith("cat.png")], "rb") as picture:
        answer.status_code, answer._content = 200, picture.read()
    return answer


requests.get = get_locally
utils.ServerProcess.start = start_if_here
utils.download_file = local_file
