#!/usr/bin/env python3
"""Tests of the page's settings, its API key, and what it remembers, in Debian's chromium.

Finds programs and models like server_test.py.
"""

import json
import sys
import tempfile
import unittest
from pathlib import Path

try:
    from selenium.webdriver.common.keys import Keys
except ImportError:
    pass  # all tests are skipped

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
from page import QUESTION, PageTest, browser, find, find_all, script, setUpModule, tearDownModule, wait  # noqa: F401
from programs import TINY, needs_tiny


@needs_tiny
class Options(PageTest):
    def test_defaults_are_the_servers(self):
        self.ask(QUESTION)
        self.assertEqual(self.asked()[-1]["harp"], {"enabled": True})
        self.assertEqual(find("[name=threshold]").get_attribute("value"), str(self.server.get("/props")["harp"]["threshold"]))

    def test_threshold_at_its_end_is_never(self):
        self.set("threshold", 10)
        self.assertIn("never", find("#harp-options").text)
        self.ask(QUESTION)
        self.assertEqual(self.asked()[-1]["harp"], {"enabled": True, "threshold": "inf"})
        self.assertEqual(self.figure("hesitations"), 0)
        self.assertEqual(self.text(), self.api(QUESTION, harp={"enabled": False})[0])

    def test_changes_are_sent_kept_and_reset(self):
        changed = {"threshold": 0.3, "beta": 0.25, "perturbation": "gaussian", "strength": 0.8, "seed": 7, "redraw": 2,
                   "scope": "generated"}
        for name, value in changed.items():
            self.set(name, value)
        browser().refresh()
        wait(lambda: find("#model").text)
        self.ask(QUESTION)
        self.assertEqual(self.asked()[-1]["harp"], {"enabled": True, **changed})
        self.assertEqual(self.text(), self.api(QUESTION, harp=changed)[0])
        self.assertNotEqual(self.text(), self.api(QUESTION)[0])
        find("#harp-options [type=reset]").click()
        self.ask(QUESTION)
        self.assertEqual(self.asked()[-1]["harp"], {"enabled": True})

    def test_seeds_have_64_bits(self):
        self.set("seed", "18446744073709551615")
        browser().refresh()
        wait(lambda: find("#model").text)
        self.ask(QUESTION)
        self.assertEqual(self.asked()[-1]["harp"], {"enabled": True, "seed": "18446744073709551615"})
        self.assertEqual(self.text(), self.api(QUESTION, harp={"seed": 18446744073709551615})[0])

    def test_views_have_options_of_their_own(self):
        shown = lambda name: find(f"#harp-options [name={name}]").is_displayed()
        names = ["view_tokens", "negative_prompt", "strength", "plausibility"]
        self.assertEqual([shown(name) for name in names], [False, False, True, False])
        self.set("view", "last")
        self.set("view_tokens", 4)
        self.set("beta", 2)
        self.assertEqual([shown(name) for name in names], [True, False, False, True])
        self.ask(QUESTION)
        changed = {"view": "last", "view_tokens": 4, "beta": 2}
        self.assertEqual(self.asked()[-1]["harp"], {"enabled": True, **changed})
        self.assertEqual(self.text(), self.api(QUESTION, harp=changed)[0])
        self.set("view", "guidance")
        self.assertEqual([shown(name) for name in names], [False, True, False, True])
        find("[name=negative_prompt]").send_keys("Tom")
        find("#chat-options [name=maxTokens]").click()
        self.ask(QUESTION)
        self.assertEqual(self.asked()[-1]["harp"], {"enabled": True, "view": "guidance", "view_tokens": 4, "beta": 2,
                                                    "negative_prompt": "Tom"})

    def test_switched_off(self):
        find("[name=enabled]").click()
        self.ask(QUESTION)
        self.assertEqual(self.asked()[-1]["harp"], {"enabled": False})
        self.assertEqual(find_all(".token.hesitated"), [])
        self.assertEqual(self.text(), self.api(QUESTION, harp={"enabled": False})[0])


@needs_tiny
class Off(PageTest):
    flags = ["--harp-off"]

    def test_page_says_so_and_chats(self):
        self.assertIn("HARP is off on this server", find("#notice").text)
        self.assertFalse(find("[name=threshold]").is_enabled())
        self.assertFalse(find("[name=mode][value=compare]").is_enabled())
        self.ask(QUESTION)
        self.assertEqual(self.text(), self.api(QUESTION)[0])
        self.assertNotIn("harp", self.asked()[-1])
        self.assertEqual(find_all("[data-figure=hesitations], [data-figure=entropy], .hesitated"), [])
        self.tokens()[0].click()
        self.assertIn("candidate", find("#tooltip").text)


@needs_tiny
class Router(PageTest):
    """A server for two models: the page asks the chosen one."""

    model = None

    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        for name in ("first", "second"):
            (Path(cls.folder.name) / f"{name}.gguf").symlink_to(TINY)
        cls.flags = ["--models-dir", cls.folder.name, "-c", "1024"]
        super().setUpClass()

    @classmethod
    def tearDownClass(cls):
        super().tearDownClass()
        cls.folder.cleanup()

    def wait_for_model(self):
        wait(lambda: not find("#notice").is_displayed())

    def test_model_is_chosen_and_remembered(self):
        self.wait_for_model()
        find("#model option:last-child").click()
        self.wait_for_model()
        self.ask(QUESTION)
        self.assertEqual(self.asked()[-1]["model"], "second")
        self.assertTrue(self.text())
        self.assertGreater(self.figure("hesitations"), 0)
        browser().refresh()
        wait(lambda: find_all("#model select"))
        self.assertEqual(find("#model select").get_property("value"), "second")


@needs_tiny
class Key(PageTest):
    flags = ["--api-key", "sesame,ключ"]

    def setUp(self):
        self.resize(1280, 800)

    def enter(self, key):
        find("#key-dialog [name=key]").send_keys(key + Keys.ENTER)

    def enter_both(self, wrong, right):
        """Opens the page without a key, gives a wrong one and a right one, and asks."""
        browser().get(self.url)
        script("localStorage.clear(); sessionStorage.clear()")
        browser().refresh()
        wait(lambda: find("#key-dialog").is_displayed())
        self.assertFalse(find("#key-dialog .error").is_displayed())
        self.enter(wrong)
        wait(lambda: find_all("#key-dialog .error:not([hidden])"))
        self.enter(right)
        wait(lambda: find("#model").text)
        self.set("maxTokens", 5)
        self.ask(QUESTION)
        self.assertEqual(self.figure("tokens"), 5)

    def test_key_is_asked_for_and_used(self):
        self.enter_both("wrong", "sesame")
        self.assertFalse(find("#key-dialog").is_displayed())
        self.assertEqual(script("return Object.values(sessionStorage)"), ["sesame"])
        self.assertNotIn("sesame", script("return JSON.stringify(localStorage)"))

    def test_keys_of_any_characters(self):
        self.enter_both("“sesame”", "ключ")

    def test_without_storage(self):
        """Where the browser forbids it, the key is known until the page is left."""
        forbid = """for (const name of ["localStorage", "sessionStorage"])
            Object.defineProperty(window, name, {get() { throw new DOMException("forbidden", "SecurityError"); }});"""
        added = browser().execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": forbid})
        self.addCleanup(browser().execute_cdp_cmd, "Page.removeScriptToEvaluateOnNewDocument", added)
        browser().get(self.url)
        wait(lambda: find("#key-dialog").is_displayed() or find("#notice").text)
        self.assertEqual(find("#notice").text, "")
        self.enter("sesame")
        wait(lambda: find("#model").text)
        self.set("maxTokens", 5)
        self.ask(QUESTION)
        self.assertEqual(self.figure("tokens"), 5)

    def test_giving_up(self):
        browser().get(self.url)
        script("sessionStorage.clear()")
        browser().refresh()
        wait(lambda: find("#key-dialog").is_displayed())
        find("#key-dialog [name=cancel]").click()
        wait(lambda: "asks for an API key" in find("#notice").text)


@needs_tiny
class Reload(PageTest):
    """The conversation is there until the tab is closed."""

    flags = ["-c", "256"]

    def reload(self):
        browser().refresh()
        wait(lambda: find("#model").text)

    def shown(self):
        return script("return document.querySelector('#conversation').innerHTML")

    def test_conversation_is_kept_and_goes_on(self):
        self.set("maxTokens", 12)
        self.ask(QUESTION)
        self.compare("And a sea?")
        shown = self.shown()
        self.reload()
        self.assertEqual(self.shown(), shown)
        self.tokens()[0].click()
        self.assertIn("candidate", find("#tooltip").text)
        self.assertTrue(find("[name=mode][value=compare]").is_selected())
        self.ask("Really?")
        self.assertEqual([[message["content"] for message in body["messages"]][::2] for body in self.asked()[-2:]],
                         [[QUESTION, "And a sea?", "Really?"]] * 2)
        self.reload()
        self.assertEqual(len(find_all(".turn")), 3)
        find("#new-chat").click()
        self.reload()
        self.assertEqual(find_all(".turn"), [])
        self.assertTrue(find("#empty").is_displayed())

    def test_how_an_answer_ended_is_kept(self):
        self.set("maxTokens", 1000)
        self.ask(QUESTION)
        self.assertIn("The context is full. It holds 256 tokens: start a new chat.", find(".problem").text)
        shown = self.shown()
        self.reload()
        self.assertEqual(self.shown(), shown)
        script("document.querySelector('#prompt').value = arguments[0]", "word " * 300)
        self.ask("")
        self.assertIn("no longer fits into the context", find(".turn:last-child .problem").text)
        self.reload()
        find(".retry").click()
        self.wait_for_end()
        self.assertIn("no longer fits into the context", find(".turn:last-child .problem").text)

    def fill_storage(self):
        """Leaves room for two thirds of the conversation."""
        script("""const kept = sessionStorage.getItem("harp.conversation.v1").length;
                  sessionStorage.removeItem("harp.conversation.v1");
                  let most = 0;
                  for (let step = 1 << 24; step >= 1; step /= 2) {
                      try {
                          sessionStorage.setItem("filling", "x".repeat(most + step));
                          most += step;
                      } catch {
                          // too much
                      }
                  }
                  sessionStorage.setItem("filling", "x".repeat(most - kept * 2 / 3))""")

    def test_long_conversation_is_kept_without_candidates(self):
        self.set("maxTokens", 12)
        self.compare()
        shown = self.shown()
        self.reload()
        self.fill_storage()
        self.reload()
        self.assertEqual(self.shown(), shown)
        self.tokens()[0].click()
        self.assertEqual(len(find_all("#tooltip tbody tr")), 1)

    def test_what_is_not_ours_is_ignored(self):
        for kept in ("{}", "[]", "7", "{", '{"turns": [{"mode": "chat"}]}', '{"turns": [{"mode": "later", "answers": {}}]}'):
            with self.subTest(kept=kept):
                browser().get(self.url + "favicon.svg")
                script("sessionStorage.setItem('harp.conversation.v1', arguments[0])", kept)
                browser().get(self.url)
                wait(lambda: find("#model").text)
                self.assertEqual(find_all(".turn"), [])
                self.assertTrue(find("#empty").is_displayed())


if __name__ == "__main__":
    unittest.main(verbosity=2)
