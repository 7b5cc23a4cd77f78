"""The server's page in Debian's chromium, for test modules that import from here the names that they use, among them setUpModule and
tearDownModule: one browser for a module's tests, because it starts slowly.

Skipped without the package selenium, chromium or chromedriver.
"""

import json
import re
import shutil
import signal
import unittest

try:
    from selenium import webdriver
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import WebDriverWait
except ImportError:
    webdriver = None

from programs import TINY
from running_server import EXACT, Server

CHROMIUM, CHROMEDRIVER = shutil.which("chromium"), shutil.which("chromedriver")
MAX_TOKENS = 40
PATIENCE = 60  # seconds, on a busy machine
QUESTION = "Name three rivers."
_browser = None


def setUpModule():
    global _browser
    if webdriver is None or not CHROMIUM or not CHROMEDRIVER:
        raise unittest.SkipTest("no selenium, chromium or chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in ["--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    _browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(CHROMEDRIVER))


def tearDownModule():
    _browser.quit()


def browser():
    return _browser


def find(selector):
    return browser().find_element(By.CSS_SELECTOR, selector)


def find_all(selector):
    return browser().find_elements(By.CSS_SELECTOR, selector)


def script(code, *arguments):
    return browser().execute_script(code, *arguments)


def wait(condition):
    return WebDriverWait(browser(), PATIENCE, poll_frequency=0.05).until(lambda _: condition())


class PageTest(unittest.TestCase):
    """One server per class; for each test the page is opened anew, with nothing remembered."""

    flags = []
    model = TINY

    @classmethod
    def setUpClass(cls):
        cls.server = Server(*EXACT, *cls.flags, model=cls.model)
        cls.url = cls.server.url + "/"

    @classmethod
    def tearDownClass(cls):
        code, output = cls.server.stop()
        if code not in (0, -signal.SIGKILL):
            raise AssertionError(f"exit {code}\n{output[-3000:]}")

    def setUp(self):
        self.resize(1280, 800)
        self.open({"chat": {"maxTokens": MAX_TOKENS}})

    def resize(self, width, height, mobile=False):
        browser().execute_cdp_cmd("Emulation.setDeviceMetricsOverride",
                                {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": mobile})

    def open(self, remembered):
        """@param remembered what an earlier visit left in localStorage"""
        script("document.querySelector('#new-chat')?.click()")  # else it may be kept after it is cleared below
        browser().get(self.url + "favicon.svg")  # has the same origin, so that the storage can be set
        script("localStorage.setItem('harp.page.v1', arguments[0]); sessionStorage.clear()", json.dumps(remembered))
        browser().get_log("performance")
        browser().get_log("browser")
        browser().get(self.url)
        wait(lambda: find("#model").text)

    def ask(self, question, ended=True):
        turns = len(find_all(".turn"))
        find("#prompt").send_keys(question + Keys.ENTER)
        wait(lambda: len(find_all(".turn")) == turns + 1)
        if ended:
            self.wait_for_end()

    def wait_for_end(self):
        wait(lambda: find("#send").text == "Send")

    def compare(self, question=QUESTION):
        find("[name=mode][value=compare]").click()
        self.ask(question)

    def text(self, lane="main"):
        return script("return document.querySelector(arguments[0]).textContent", f".turn:last-child [data-lane={lane}] > .text")

    def tokens(self, lane="main"):
        return find_all(f".turn:last-child [data-lane={lane}] > .text .token")

    def figure(self, name, lane="main"):
        return float(re.search(r"[\d.]+", find(f".turn:last-child [data-lane={lane}] [data-figure={name}]").text)[0])

    def set(self, name, value):
        script("""const input = document.querySelector(`#settings [name=${arguments[0]}]`);
                  input.value = arguments[1];
                  input.dispatchEvent(new Event("input", {bubbles: true}))""", name, value)

    def requests(self):
        """The requests that the browser has sent since the last call."""
        events = [json.loads(entry["message"])["message"] for entry in browser().get_log("performance")]
        return [event["params"]["request"] for event in events if event["method"] == "Network.requestWillBeSent"]

    def asked(self):
        """The bodies of those that ask for completions."""
        return [json.loads(request["postData"]) for request in self.requests() if request["url"].endswith("/completions")]

    def api(self, *messages, **more):
        """The API's own answer: its text, and its tokens without the end of text."""
        roles = ["user", "assistant"] * len(messages)
        body = {"messages": [{"role": role, "content": content} for role, content in zip(roles, messages)], "temperature": 0,
                "max_tokens": MAX_TOKENS, "logprobs": True, "top_logprobs": 6, **more}
        choice = self.server.post("/v1/chat/completions", body)["choices"][0]
        tokens = choice["logprobs"]["content"]
        return choice["message"]["content"], tokens if choice["finish_reason"] == "length" else tokens[:-1]
