#!/usr/bin/env python3
"""Waits until a harp-server is ready, and chats with it.

    packaging/ask_server.py PORT [KEY]      with a key, requests without it must be refused; without a key its page is checked too
"""

import json
import sys
import time
import urllib.error
import urllib.request

port, *key = sys.argv[1:]
url = f"http://127.0.0.1:{port}"
CHAT = {"messages": [{"role": "user", "content": "What is the capital of France?"}], "max_tokens": 24, "temperature": 0}


def ask(**headers):
    headers["Content-Type"] = "application/json"
    request = urllib.request.Request(url + "/v1/chat/completions", json.dumps(CHAT).encode(), headers)
    return json.load(urllib.request.urlopen(request))


for _ in range(120):
    try:
        urllib.request.urlopen(url + "/health")
        break
    except OSError:
        time.sleep(0.5)
if key:
    try:
        ask()
        raise SystemExit("answered without a key")
    except urllib.error.HTTPError as error:
        assert error.code == 401, error
answer = ask(**{"Authorization": f"Bearer {key[0]}"} if key else {})
text = answer["choices"][0]["message"]["content"]
print("chat:", text, answer["usage"]["harp"])
assert "Paris" in text
if not key:
    page = urllib.request.urlopen(url + "/").read().decode()
    assert "<html" in page and "HARP" in page
    print("page:", len(page), "characters")
