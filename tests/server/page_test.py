#!/usr/bin/env python3
"""Tests of the page that harp-server serves at `/`, in Debian's chromium: a reader sees what the API gives.

Finds programs and models like server_test.py.
"""

import json
import math
import re
import sys
import unittest
from pathlib import Path

try:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys
except ImportError:
    pass  # all tests are skipped

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
from page import MAX_TOKENS, QUESTION, PageTest, browser, find, find_all, script, setUpModule, tearDownModule, wait  # noqa: F401
from programs import SMOL, needs_smol, needs_tiny


def visible(name):
    """A token as the page shows it."""
    return name.replace(" ", "␣").replace("\n", "↵")


@needs_tiny
class Answers(PageTest):
    def test_text_is_the_apis(self):
        self.ask(QUESTION)
        text, tokens = self.api(QUESTION)
        self.assertEqual(self.text(), text)
        self.assertEqual(self.figure("tokens"), len(tokens))
        self.assertAlmostEqual(self.figure("entropy"), sum(token["entropy"] for token in tokens) / len(tokens), delta=0.006)
        self.assertEqual(self.figure("hesitations"), sum(token["hesitated"] for token in tokens))
        self.assertGreater(self.figure("speed"), 0)

    def test_tokens_are_shaded_and_marked(self):
        self.ask(QUESTION)
        _, expected = self.api(QUESTION)
        shown = script("""return [...document.querySelectorAll(".answer .token")].map(token => ({
            text: token.textContent, entropy: Number(token.dataset.entropy),
            hesitated: getComputedStyle(token).textDecorationStyle === "dotted",
            colour: getComputedStyle(token).backgroundColor}))""")
        self.assertEqual([token["text"] for token in shown], [token["token"] for token in expected])
        self.assertEqual([token["hesitated"] for token in shown], [token["hesitated"] for token in expected])
        self.assertEqual({token["hesitated"] for token in shown}, {True, False})
        for token, wanted in zip(shown, expected):
            self.assertAlmostEqual(token["entropy"], wanted["entropy"], places=4)
            self.assertAlmostEqual(float(re.search(r"/ ([\d.]+)\)", token["colour"])[1]), min(token["entropy"] / 6, 1) * 0.6,
                                   delta=0.01)

    def test_hover_shows_candidates(self):
        self.ask(QUESTION)
        _, expected = self.api(QUESTION)
        for hesitated in (True, False):
            index = [token["hesitated"] for token in expected].index(hesitated)
            with self.subTest(hesitated=hesitated):
                ActionChains(browser()).move_to_element(self.tokens()[index]).perform()
                wait(lambda: f"{expected[index]['entropy']:.2f} bits" in find("#tooltip").text)
                self.check_tooltip(expected[index])
        ActionChains(browser()).move_to_element(find("#composer")).perform()
        wait(lambda: not find("#tooltip").is_displayed())

    def check_tooltip(self, token):
        self.assertIn("hesitated: second pass mixed in" if token["hesitated"] else "no hesitation", find("#tooltip").text)
        rows = script("""return Object.fromEntries([...document.querySelectorAll("#tooltip tbody tr")].map(row =>
            [row.dataset.id, [...row.children].map(cell => cell.textContent)]))""")
        columns = [token.get("vanilla_top_logprobs", token["top_logprobs"])] + [token["top_logprobs"]] * token["hesitated"]
        for column, candidates in enumerate(columns, 1):
            for candidate in candidates:
                row = rows[str(candidate["id"])]
                self.assertEqual(row[0].removesuffix(" chosen"), visible(candidate["token"]))
                self.assertAlmostEqual(float(row[column].removesuffix(" %")), 100 * math.exp(candidate["logprob"]), delta=0.06)
        self.assertEqual([row.get_attribute("data-id") for row in find_all("#tooltip tr.chosen")], [str(token["id"])])

    def test_keyboard_moves_between_tokens(self):
        self.ask(QUESTION)
        _, expected = self.api(QUESTION)
        script("document.querySelector('.answer > .text').focus()")
        for key, index in [(Keys.ARROW_RIGHT, 0), (Keys.ARROW_RIGHT, 1), (Keys.ARROW_RIGHT, 2), (Keys.ARROW_LEFT, 1),
                           (Keys.END, len(expected) - 1), (Keys.HOME, 0)]:
            browser().switch_to.active_element.send_keys(key)
            self.assertEqual(script("return [...document.querySelectorAll('.token')].indexOf(document.activeElement)"), index)
            self.assertIn(f"{expected[index]['entropy']:.2f} bits", find("#tooltip").text)
            self.assertEqual(browser().switch_to.active_element.get_attribute("aria-describedby"), "tooltip")
        browser().switch_to.active_element.send_keys(Keys.ESCAPE)
        self.assertFalse(find("#tooltip").is_displayed())

    def test_shift_enter_begins_a_line(self):
        find("#prompt").send_keys("One" + Keys.SHIFT + Keys.ENTER + Keys.SHIFT + "two")
        self.assertEqual(find("#prompt").get_attribute("value"), "One\ntwo")
        self.assertEqual(script("const p = document.querySelector('#prompt'); return p.scrollHeight - p.clientHeight"), 0, "nothing to scroll")
        self.assertEqual(find_all(".turn"), [])

    def test_turns_and_settings_are_sent(self):
        self.set("system", "Be brief.")
        self.set("temperature", 0.5)
        self.ask("Once")
        first = self.text()
        self.ask("And then?")
        body = self.asked()[-1]
        self.assertEqual(body["messages"], [
            {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Once"},
            {"role": "assistant", "content": first}, {"role": "user", "content": "And then?"}])
        self.assertEqual((body["temperature"], body["max_tokens"]), (0.5, MAX_TOKENS))
        find("#new-chat").click()
        self.assertEqual(find_all(".turn"), [])
        self.ask("Once")
        self.assertEqual(len(self.asked()[-1]["messages"]), 2)

    def test_only_the_server_is_asked_and_nothing_is_logged(self):
        self.ask(QUESTION)
        urls = {request["url"] for request in self.requests()}
        self.assertGreater(len(urls), 8)
        self.assertEqual({url for url in urls if not url.startswith(self.url)}, set())
        self.assertEqual(browser().get_log("browser"), [])
        self.assertIn("default-src 'self'", find("meta[http-equiv]").get_attribute("content"))

    def test_light_and_dark(self):
        def prefer(scheme):
            browser().execute_cdp_cmd("Emulation.setEmulatedMedia",
                                    {"features": [{"name": "prefers-color-scheme", "value": scheme}]})

        def brightness():
            return sum(map(int, re.findall(r"\d+", script("return getComputedStyle(document.body).backgroundColor"))[:3])) / 3

        self.addCleanup(prefer, "light")
        for scheme, theme, light in [("light", "system", True), ("dark", "system", False), ("dark", "light", True),
                                     ("light", "dark", False)]:
            with self.subTest(scheme=scheme, theme=theme):
                prefer(scheme)
                self.set("theme", theme)
                self.assertEqual(brightness() > 127, light)

    def test_question_is_not_read_as_html(self):
        self.ask("<img src=x onerror=document.title='broken'><b>bold</b>")
        self.assertEqual(find_all(".turn b, .turn img"), [])
        self.assertIn("<b>bold</b>", find(".question").text)


@needs_tiny
class Text(PageTest):
    said = "<img src=x onerror=\"document.title='broken'\"> é🎉\n<b>bold</b>"
    grammar = said.replace('"', '\\"').replace("\n", "\\n")
    flags = ["--grammar", f'root ::= "{grammar}"']

    def test_text_of_the_model_is_not_read_as_html_and_keeps_its_characters(self):
        self.set("maxTokens", 200)
        self.ask(QUESTION)
        self.assertEqual(self.text(), self.said)
        self.assertEqual(find_all(".answer img, .answer > .text b"), [])
        self.assertEqual(browser().title, "harp")


@needs_tiny
class Stream(PageTest):
    """Streams that the server sends only rarely. The page gets them byte by byte instead of an answer."""

    def answer_with(self, *chunks, vanilla=(), done=True):
        def stream(chunks):
            events = [json.dumps(chunk, ensure_ascii=False) for chunk in chunks] + ["[DONE]"] * done
            return "".join(f"data: {event}\n\n" for event in events)

        script("""const [harp, vanilla] = [...arguments].map(text => new TextEncoder().encode(text));
                  window.fetch = async (path, {body}) => {
                      window.lastBody = JSON.parse(body);
                      return new Response(new ReadableStream({start(controller) {
                          const bytes = window.lastBody.harp.enabled ? harp : vanilla;
                          bytes.forEach(byte => controller.enqueue(new Uint8Array([byte])));
                          controller.close();
                      }}));
                  }""", stream(chunks), stream(vanilla))

    @staticmethod
    def chunk(tokens=(), **delta):
        """@param tokens the bytes of each token"""
        content = [{"id": i, "token": "", "bytes": list(token), "logprob": -1, "top_logprobs": [],
                    "entropy": 2, "hesitated": False} for i, token in enumerate(tokens)]
        return {"choices": [{"index": 0, "delta": delta, "logprobs": {"content": content}}]}

    def test_error_in_the_middle(self):
        self.answer_with(self.chunk(content="Hello"), {"error": {"code": 500, "message": "the sky fell", "type": "server_error"}})
        self.ask(QUESTION)
        self.assertIn("the sky fell", find(".problem").text)
        self.assertEqual(self.text(), "Hello")
        self.answer_with(self.chunk(content="Well"))
        find(".retry").click()
        wait(lambda: self.text() == "Well")
        self.assertEqual(script("return window.lastBody.messages"), [{"role": "user", "content": QUESTION}])

    def test_sides_that_part_late(self):
        def said(*texts):
            return [self.chunk([text.encode()], content=text) for text in texts]

        for vanilla, harp, index, says in [
            (["a", "b", "c"], ["a", "b"], 2, "They part at token 3: vanilla “c”, HARP ended (entropy 2.00 bits)."),
            (["a", "b", "c"], ["a", "x", "c"], 1, "They part at token 2: vanilla “b”, HARP “x” (entropy 2.00 bits)."),
            (["a"], ["a"], None, "Both answers are the same."),
        ]:
            with self.subTest(vanilla=vanilla, harp=harp):
                self.answer_with(*said(*harp), vanilla=said(*vanilla))
                find("#new-chat").click()
                self.compare()
                self.assertEqual(find(".parting").text, says)
                parted = [i for i, token in enumerate(self.tokens("vanilla")) if "parts" in token.get_attribute("class")]
                self.assertEqual(parted, [] if index is None else [index])

    def test_tokens_are_not_read_as_html(self):
        html = "<img src=x onerror=document.title='broken'><b>bold</b>"
        self.answer_with(self.chunk([html.encode()], content=html))
        self.ask(QUESTION)
        self.tokens()[0].click()
        self.assertEqual(self.text(), html)
        self.assertIn("<b>bold</b>", find("#tooltip .name").text)
        self.assertEqual(find_all("img, .answer > .text b, .name b"), [])

    def test_text_from_right_to_left(self):
        question, said = "מה שלומך?", "טוב, תודה."
        self.answer_with(*[self.chunk([word.encode()], content=word) for word in said.split()])
        self.ask(question)
        for selector in (".question", ".answer > .text"):
            self.assertEqual(script("return getComputedStyle(arguments[0]).direction", find(selector)), "rtl")
        self.ask("How are you?")
        self.assertEqual(script("return getComputedStyle(arguments[0]).direction", find_all(".question")[1]), "ltr")

    def test_end_without_done(self):
        self.answer_with(self.chunk(content="Hello"), done=False)
        self.ask(QUESTION)
        self.assertIn("ended the answer early", find(".problem").text)

    def test_characters_of_several_tokens(self):
        self.answer_with(self.chunk([b"\xf0\x9f"]), self.chunk([b"\x8e\x89"], content="🎉"),
                         self.chunk([b"a", b"bc"], content="abc"))
        self.ask(QUESTION)
        self.assertEqual([token.text for token in self.tokens()], ["🎉", "a", "bc"])
        self.assertEqual(self.figure("tokens"), 4)
        self.tokens()[0].click()
        self.assertIn("‹F0›‹9F›", find("#tooltip").text)

    def test_reasoning_is_shown_apart_and_not_sent_back(self):
        self.answer_with(self.chunk([b"Hm"], reasoning_content="Hm"), self.chunk([b"Yes"], content="Yes"))
        self.ask(QUESTION)
        self.assertEqual((find(".reasoning .text").text, self.text()), ("Hm", "Yes"))
        self.ask("And?")
        self.assertEqual(script("return window.lastBody.messages[1]"), {"role": "assistant", "content": "Yes"})


@needs_tiny
class Compare(PageTest):
    def test_two_answers_and_where_they_part(self):
        self.compare()
        (vanilla, vanilla_tokens), (harp, harp_tokens) = self.api(QUESTION, harp={"enabled": False}), self.api(QUESTION)
        self.assertEqual((self.text("vanilla"), self.text("main")), (vanilla, harp))
        self.assertNotEqual(vanilla, harp)
        ids = [[token["id"] for token in tokens] for tokens in (vanilla_tokens, harp_tokens)]
        index = next(i for i, (a, b) in enumerate(zip(*ids)) if a != b)
        for lane in ("vanilla", "main"):
            classes = [token.get_attribute("class").split() for token in self.tokens(lane)]
            self.assertEqual([i for i, names in enumerate(classes) if "parts" in names], [index])
            self.assertEqual([i for i, names in enumerate(classes) if "shared" in names], list(range(index)))
        self.assertEqual(find(".parting").text,
                         f"They part at token {index + 1}: vanilla “{visible(vanilla_tokens[index]['token'])}”, "
                         f"HARP “{visible(harp_tokens[index]['token'])}” (entropy {harp_tokens[index]['entropy']:.2f} bits).")
        self.assertEqual(self.figure("hesitations", "vanilla"), 0)
        self.assertGreater(self.figure("hesitations", "main"), 0)
        self.assertEqual([find(f"[data-lane={lane}] h3").text for lane in ("vanilla", "main")], ["Vanilla", "HARP"])

    def test_the_same_answers_do_not_part(self):
        self.set("threshold", 10)
        self.compare()
        self.assertEqual(self.text("vanilla"), self.text("main"))
        self.assertEqual(find(".parting").text, "Both answers are the same.")
        self.assertEqual(find_all(".token.parts"), [])

    def test_each_side_has_its_own_history(self):
        self.compare()
        own = {False: self.text("vanilla"), True: self.text("main")}
        self.asked()
        self.ask("And then?")
        for body in self.asked():
            self.assertEqual(body["messages"][1]["content"], own[body["harp"]["enabled"]])
        self.assertEqual(self.text("main"), self.api(QUESTION, own[True], "And then?")[0])
        find("[name=mode][value=chat]").click()
        self.ask("So?")
        self.assertEqual(self.asked()[-1]["messages"][1]["content"], own[True])


@needs_smol
class ChatModel(PageTest):
    model = SMOL
    flags = ["-c", "1024"]

    def test_comparison(self):
        self.compare("What is the capital of France?")
        self.assertIn("Paris", self.text("main"))
        self.assertEqual(browser().get_log("browser"), [])


@needs_tiny
class Narrow(PageTest):
    def test_phone(self):
        self.resize(360, 740, mobile=True)
        self.open({"chat": {"maxTokens": MAX_TOKENS}})
        self.compare()
        self.check_width()
        columns = [find(f"[data-lane={lane}]").rect for lane in ("vanilla", "main")]
        self.assertGreaterEqual(columns[1]["y"], columns[0]["y"] + columns[0]["height"])
        for selector in ["#send", "#prompt", "#new-chat", "#settings-toggle", "[name=mode]"]:
            self.check_reachable(selector)
        find("#settings-toggle").click()
        for selector in ["[name=threshold]", "#harp-options [type=reset]", "[name=theme]"]:
            self.check_reachable(selector)
        self.check_width()
        find("#settings-toggle").click()
        for token in [self.tokens()[0], self.tokens()[MAX_TOKENS // 2], self.tokens()[-1]]:
            token.click()
            box = script("return document.querySelector('#tooltip').getBoundingClientRect().toJSON()")
            self.assertGreater(box["height"], 50)
            self.assertTrue(box["left"] >= 0 and box["right"] <= 360 and box["top"] >= 0 and box["bottom"] <= 740, box)
            browser().switch_to.active_element.send_keys(Keys.ESCAPE)

    def check_width(self):
        self.assertEqual(script("return innerWidth"), 360)
        for selector in ["html", "#conversation", "#settings"]:
            inside = script("const box = document.querySelector(arguments[0]); return box.scrollWidth <= box.clientWidth",
                            selector)
            self.assertTrue(inside, selector)

    def check_reachable(self, selector):
        hit = script("""const node = document.querySelector(arguments[0]);
                        node.scrollIntoView({block: "nearest"});
                        const box = node.getBoundingClientRect();
                        const top = document.elementFromPoint(box.x + box.width / 2, box.y + box.height / 2);
                        return node === top || node.parentElement === top.parentElement""", selector)
        self.assertTrue(hit, selector)


@needs_tiny
class Errors(PageTest):
    flags = ["-c", "256"]

    def test_options_kept_from_another_server_are_forgotten(self):
        self.open({"harp": {"strength": 8, "reframings": 4, "nonsense": 1, "gate": "ratio", "threshold": 5}, "chat": {"maxTokens": 8, "nonsense": 1}})
        self.ask(QUESTION)
        self.assertTrue(self.tokens())
        self.assertEqual(self.asked()[-1]["harp"]["threshold"], 0.5)  # five bits are no ratio

    def test_refused_options(self):
        self.open({"harp": {"beta": 9}})
        self.ask(QUESTION)
        self.assertIn("option 'beta': 9 is out of range; allowed: 0..8", find(".problem").text)
        self.assertEqual(find(".answer").get_attribute("data-state"), "failed")
        find("#harp-options [type=reset]").click()
        find(".retry").click()
        wait(lambda: find(".answer").get_attribute("data-state") == "done")
        self.assertNotIn("beta", find(".problem").text)
        self.assertTrue(self.text())

    def test_prompt_longer_than_the_context(self):
        script("document.querySelector('#prompt').value = arguments[0]", "word " * 300)
        self.ask("")
        self.assertIn("no longer fits into the context", find(".problem").text)

    def test_context_full(self):
        self.set("maxTokens", 1000)
        self.ask(QUESTION)
        self.assertIn("The context is full. It holds 256 tokens", find(".problem").text)

    def test_context_filled_by_a_negative_prompt(self):
        self.open({"harp": {"view": "guidance", "negative_prompt": "word " * 40, "beta": 1.5, "threshold": 0}})
        self.set("maxTokens", 1000)
        self.ask(QUESTION)
        self.assertIn("The context is full. It holds 256 tokens: the negative prompt with the answer", find(".problem").text)

    def test_max_tokens(self):
        self.set("maxTokens", 3)
        self.ask(QUESTION)
        self.assertIn("Cut at max tokens", find(".problem").text)


@needs_smol
class Interrupted(PageTest):
    """A model that answers long enough to be interrupted, also where the browser is slow."""

    model = SMOL
    flags = ["-c", "1024", "-t", "1", "--ignore-eos"]

    def ask_for_much(self):
        self.set("maxTokens", 800)
        self.ask("Write a long story.", ended=False)
        wait(lambda: len(self.tokens()) > 5)

    def test_1_stopped_by_the_reader(self):
        self.ask_for_much()
        self.assertEqual(find("#send").text, "Stop")
        find("#send").click()
        self.wait_for_end()
        self.assertEqual(find(".problem").text, "Stopped.")
        self.assertGreater(len(self.tokens()), 5)
        wait(lambda: not any(slot["is_processing"] for slot in self.server.get("/slots")))

    def test_2_page_reloaded(self):
        self.ask_for_much()
        browser().refresh()
        wait(lambda: find_all(".turn"))
        self.assertEqual(find(".problem").text, "Stopped.")
        self.assertGreater(len(self.tokens()), 5)
        self.assertEqual(find("#send").text, "Send")
        wait(lambda: not any(slot["is_processing"] for slot in self.server.get("/slots")))

    def test_3_server_killed(self):
        self.ask_for_much()
        self.server.process.kill()
        self.wait_for_end()
        self.assertIn("connection to the server was lost", find(".problem").text)
        self.assertGreater(len(self.tokens()), 5)
        kept = self.text()
        self.ask("Are you there?")
        self.assertIn("The server cannot be reached", find(".turn:last-child .problem").text)
        self.assertTrue(script("return document.querySelector('.answer > .text').textContent").startswith(kept))
        find(".turn:last-child .retry").click()
        self.wait_for_end()
        self.assertTrue(find(".turn:last-child .retry").is_displayed())


if __name__ == "__main__":
    unittest.main(verbosity=2)
