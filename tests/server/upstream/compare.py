#!/usr/bin/env python3
"""Compares runs of the same tests: a table of how many passed, and each test that did not end alike everywhere."""

import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path


def outcomes(path):
    ends = {}
    for case in ElementTree.parse(path).iter("testcase"):
        end, why = "passed", ""
        for child in case:
            if child.tag in ("failure", "error", "skipped"):
                end, why = child.tag, (child.get("message") or "").splitlines()[0][:100] if child.get("message") else ""
        ends[f"{case.get('classname')}::{case.get('name')}"] = (end, why)
    return ends


paths = [Path(path) for path in sys.argv[1:]]
runs = {path.stem: outcomes(path) for path in paths}
for name, ends in runs.items():
    print(f"{name:14}", dict(Counter(end for end, _ in ends.values())))
everything = sorted(set().union(*runs.values()))
print("\nskipped everywhere, by reason:")
skipped = [test for test in everything if all(ends.get(test, ("",))[0] == "skipped" for ends in runs.values())]
for why, n in Counter(runs[paths[0].stem][test][1] for test in skipped).most_common():
    print(f"  {n:4} {why}")
print("\nnot passed everywhere:")
for test in everything:
    ends = {name: run.get(test, ("absent", "")) for name, run in runs.items()}
    if test in skipped or all(end == "passed" for end, _ in ends.values()):
        continue
    print(f"  {test}")
    for name, (end, why) in ends.items():
        print(f"      {name:14} {end} {why}")
