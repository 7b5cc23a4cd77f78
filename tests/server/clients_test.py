#!/usr/bin/env python3
"""What clients of harp-server send and read: OpenAI's and Anthropic's endpoints, the official client, tools, the examples of the documents.

Finds the programs through HARP_SERVER_BINARY and HARP_BINARY, the tiny model through HARP_SHARED_DATA and SmolLM2 through
HARP_TEST_MODELS; tests whose model is missing are skipped.
"""

import json
import re
import shutil
import subprocess
import sys
import unittest
import urllib.error
from pathlib import Path

try:
    import openai
    import pydantic
except ImportError:
    openai = None

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
from programs import ROOT, SMOL, needs_smol, needs_tiny
from running_server import OneServer, Server
from server_answers import generate
from tiny_command import PROMPTS


@needs_tiny
class Endpoints(OneServer, unittest.TestCase):
    def test_usage_of_a_response(self):
        ask = {"input": "Hi", "max_output_tokens": 4, "temperature": 0}
        *_, last = self.server.stream("/v1/responses", ask)
        for usage in (self.server.post("/v1/responses", ask)["usage"], last["response"]["usage"]):
            self.assertEqual((usage["output_tokens"], usage["total_tokens"]), (4, usage["input_tokens"] + 4))
            self.assertEqual(usage["harp"]["steps"], 4)

    def test_usage_of_a_message(self):
        ask = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4, "temperature": 0}
        [delta] = [event for event in self.server.stream("/v1/messages", ask) if event["type"] == "message_delta"]
        for usage in (self.server.post("/v1/messages", ask)["usage"], delta["usage"]):
            self.assertEqual((usage["output_tokens"], usage["harp"]["steps"]), (4, 4))

    def test_a_response_has_one_answer(self):
        for more in ({"n": 2}, {"n_cmpl": 2}, {"n": 2, "stream": True}):
            with self.subTest(more=more):
                with self.assertRaises(urllib.error.HTTPError) as caught:
                    self.server.post("/v1/responses", {"input": "Hi", "max_output_tokens": 4, **more})
                self.assertEqual(caught.exception.code, 400)
                self.assertIn("'n'", json.load(caught.exception)["error"]["message"])
        self.assertEqual(self.server.post("/v1/responses", {"input": "Hi", "max_output_tokens": 4, "n": 1})["object"], "response")

    @unittest.skipIf(openai is None, "the package openai is not installed")
    def test_openai_client_streams_a_response(self):
        client = openai.OpenAI(base_url=self.server.url + "/v1", api_key="none", max_retries=0)
        self.addCleanup(client.close)
        ask = {"model": "x", "input": "Hi", "max_output_tokens": 8, "temperature": 0}
        plain = client.responses.create(**ask)
        with client.responses.stream(**ask) as stream:
            events = list(stream)
        self.assertEqual([event.type for event in client.responses.create(**ask, stream=True)], [event.type for event in events])
        self.assertEqual(events[-1].type, "response.incomplete")
        streamed = events[-1].response
        self.assertEqual(streamed.output_text, plain.output_text)
        self.assertEqual("".join(event.delta for event in events if event.type == "response.output_text.delta"), plain.output_text)
        self.assertEqual([event.sequence_number for event in events], list(range(len(events))))
        for response in (plain, streamed):  # its limit cut it
            self.assertEqual((response.status, response.incomplete_details.reason), ("incomplete", "max_output_tokens"))
            self.assertEqual(response.output[0].status, "incomplete")
        ask |= {"max_output_tokens": 64, "text": {"format": {"type": "json_schema", "name": "answer", "schema": {"enum": ["yes", "no"]}}}}
        whole = client.responses.create(**ask)
        with client.responses.stream(**ask) as stream:
            self.assertEqual(stream.get_final_response().output_text, whole.output_text)
        self.assertIn(json.loads(whole.output_text), ["yes", "no"])
        self.assertEqual((whole.status, whole.incomplete_details), ("completed", None))

    def test_earlier_answers_in_a_response(self):
        """As in a chat. "message" is the default of "type"."""
        messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}, {"role": "user", "content": "A dog"}]
        chat = self.server.post("/v1/chat/completions", {"messages": messages, "max_tokens": 16, "temperature": 0})
        for added in ({}, {"type": "message"}):
            response = self.server.post("/v1/responses", {"input": [message | added for message in messages], "max_output_tokens": 16,
                                                          "temperature": 0})
            self.assertEqual(response["output"][0]["content"][0]["text"], chat["choices"][0]["message"]["content"])

    def test_messages_that_are_sent_back(self):
        """With null for what they have not, refusals, and reasoning that the model keeps to itself."""
        def chat(*more):
            messages = [{"role": "user", "content": "Hi"}, *more, {"role": "user", "content": "And then?"}]
            return self.server.post("/v1/chat/completions", {"messages": messages, "max_tokens": 8, "temperature": 0})["choices"][0]["message"]

        plain = {"role": "assistant", "content": "No."}
        nothing = dict.fromkeys(("name", "refusal", "tool_calls", "function_call", "audio", "reasoning_content", "tool_call_id"))
        self.assertEqual(chat({**plain, **nothing}), chat(plain))
        self.assertEqual(chat({**plain, "content": [{"type": "refusal", "refusal": "No."}]}), chat({**plain, "content": [{"type": "text", "text": "No."}]}))

        def respond(*more):
            items = [{"role": "user", "content": "Hi"}, *more, {"role": "user", "content": "And then?"}]
            return self.server.post("/v1/responses", {"input": items, "max_output_tokens": 8, "temperature": 0})["output"][0]["content"]

        kept = {"type": "reasoning", "id": "rs_1", "summary": []}
        for item in (kept, {**kept, "content": None, "encrypted_content": "x"}, {**kept, "content": []}):
            self.assertEqual(respond(item), respond())

    def test_reason_of_a_stop_sequence(self):
        ask = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 16, "temperature": 0}
        free = self.server.post("/v1/messages", ask)
        stop = free["content"][0]["text"][4:8]
        self.assertEqual((free["stop_reason"], free["stop_sequence"]), ("max_tokens", None))
        said = self.server.post("/v1/messages", {**ask, "stop_sequences": [stop]})
        [streamed] = [event["delta"] for event in self.server.stream("/v1/messages", {**ask, "stop_sequences": [stop]})
                      if event["type"] == "message_delta"]
        for end in (said, streamed):
            self.assertEqual((end["stop_reason"], end["stop_sequence"]), ("stop_sequence", stop))

    def test_schema_of_a_message(self):
        """As Anthropic's client sends it, now and in its beta."""
        schema = {"type": "json_schema", "schema": {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"]}}
        for fields in ({"output_config": {"format": schema}}, {"output_format": schema}):
            said = self.server.post("/v1/messages", {"messages": [{"role": "user", "content": "x"}], "max_tokens": 60, **fields})
            self.assertIn(json.loads(said["content"][0]["text"]), ({"a": 1}, {"a": 2}))
        ask = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 4, "output_config": {"effort": "low", "format": None}}
        self.assertTrue(self.server.post("/v1/messages", ask)["content"][0]["text"])

    @unittest.skipIf(openai is None, "the package openai is not installed")
    def test_one_model(self):
        """Its id has slashes, since it is the path."""
        for flags in ([], ["--alias", "tiny,other/name"]):
            server = self.server
            if flags:
                server = Server("-c", "256", *flags)
                self.addCleanup(server.stop)
            client = openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)
            self.addCleanup(client.close)
            model = client.models.list().data[0]
            for name in [model.id] + ["other/name"] * bool(flags):
                self.assertEqual(client.models.retrieve(name).id, model.id)
            with self.assertRaises(openai.NotFoundError) as caught:
                client.models.retrieve("none/such")
            self.assertIn("none/such", caught.exception.message)

    @unittest.skipIf(openai is None, "the package openai is not installed")
    def test_openai_client(self):
        client = openai.OpenAI(base_url=self.server.url + "/v1", api_key="none", max_retries=0)
        self.addCleanup(client.close)
        self.assertEqual(len(client.models.list().data), 1)
        said = client.completions.create(model="x", prompt=PROMPTS[0], max_tokens=48, temperature=0)
        self.assertEqual(said.choices[0].text, generate(PROMPTS[0]))
        parts = client.completions.create(model="x", prompt=PROMPTS[0], max_tokens=48, temperature=0, stream=True)
        self.assertEqual("".join(part.choices[0].text for part in parts if part.choices), said.choices[0].text)
        with self.assertRaises(openai.BadRequestError):
            client.completions.create(model="x", prompt=PROMPTS[0], max_tokens=4, extra_body={"n_probs": "many"})

    def test_streams_of_several_prompts(self):
        for path, key in (("/v1/completions", "max_tokens"), ("/completion", "n_predict")):
            for prompts in (PROMPTS[:2], PROMPTS * 3):  # also more than there are slots
                with self.subTest(path=path, n=len(prompts)):
                    events = self.server.stream(path, {"prompt": prompts, key: 4, "temperature": 0, "stream": True})
                    self.assertNotIn(None, events)
                    self.assertTrue(events)

    def test_an_empty_stop_string_is_none(self):
        ask = {"prompt": PROMPTS[0], "max_tokens": 8, "temperature": 0, "ignore_eos": True}
        free = self.server.post("/v1/completions", ask)["choices"][0]["text"]
        for stop in ("", [""], ["", "\u0007never"]):
            with self.subTest(stop=stop):
                self.assertEqual(self.server.post("/v1/completions", {**ask, "stop": stop})["choices"][0]["text"], free)

    def test_progress_has_no_tokens(self):
        chunks = self.server.stream("/completion", {"prompt": PROMPTS[0], "n_predict": 3, "return_progress": True, "return_tokens": True})
        self.assertEqual([len(chunk["tokens"]) for chunk in chunks if "prompt_progress" in chunk],
                         [0] * sum("prompt_progress" in chunk for chunk in chunks))
        self.assertEqual(sum(len(chunk["tokens"]) for chunk in chunks), 3)

    def test_no_token_is_asked_for(self):
        for path, name in [("/completion", "n_predict"), ("/v1/completions", "max_tokens")]:
            for n in (1, 2):
                with self.subTest(path=path, n=n):
                    said = self.server.post(path, {"prompt": PROMPTS[0], name: 0, "n": n, "logprobs": 1})
                    choices = said["choices"] if "choices" in said else said if isinstance(said, list) else [said]
                    self.assertEqual([choice.get("text", choice.get("content")) for choice in choices], [""] * n)
                    if "choices" in said:
                        self.assertEqual((said["usage"]["completion_tokens"], choices[0]["finish_reason"]), (0, "length"))
                        self.assertEqual(choices[0]["logprobs"]["tokens"], [])
            *_, last = self.server.stream(path, {"prompt": PROMPTS[0], name: 0})
            self.assertEqual(last["choices"][0]["finish_reason"] if "choices" in last else last["stop_type"],
                             "length" if "choices" in last else "limit")
        self.assertEqual(self.server.complete(PROMPTS[0]), generate(PROMPTS[0]))  # the slot works as before

    def test_tokenizer(self):
        info = self.server.get("/tokenizer_info")
        self.assertEqual((info["bos_token"], info["eos_token"]), ("<s>", "</s>"))
        with_bos = self.server.post("/tokenize", {"prompt": PROMPTS[0], "add_special_tokens": True})["tokens"]
        without = self.server.post("/tokenize", {"prompt": PROMPTS[0], "add_special_tokens": False})["tokens"]
        self.assertEqual(with_bos, [1, *without])
        for text in (PROMPTS[0], " " + PROMPTS[0], "", "two  words", "é 🦙", "a<unk>b<unk> c"):
            for special in (False, True):
                tokens = self.server.post("/tokenize", {"prompt": text, "add_special_tokens": special})["tokens"]
                self.assertEqual(self.server.post("/detokenize", {"tokens": tokens})["prompt"], "<s>" * special + text)
        self.assertEqual(self.server.post("/tokenize", {"content": PROMPTS[0]})["tokens"], without)


@needs_smol
class Messages(OneServer, unittest.TestCase):
    """/v1/messages, as Anthropic's clients need it, with a template of a model that thinks."""

    flags = ["--chat-template-file", str(ROOT / "tests/data/thinks.jinja")]
    model = SMOL
    ask = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 24, "temperature": 0}
    think = {**ask, "thinking": {"type": "enabled", "budget_tokens": 4}}

    def test_thoughts_end_before_the_text_begins(self):
        said = self.server.post("/v1/messages", self.think)
        self.assertEqual([block["type"] for block in said["content"]], ["thinking", "text"])
        events = [event for event in self.server.stream("/v1/messages", self.think) if event["type"].startswith("content_block")]
        begun = [event["content_block"] for event in events if event["type"] == "content_block_start"]
        self.assertEqual(begun, [{"type": "thinking", "thinking": "", "signature": ""}, {"type": "text", "text": ""}])
        self.assertEqual([event["index"] for event in events], sorted(event["index"] for event in events))
        for index, block in enumerate(said["content"]):
            own = [event for event in events if event["index"] == index]
            self.assertEqual((own[0]["type"], own[-1]["type"]), ("content_block_start", "content_block_stop"))
            deltas = [event["delta"] for event in own[1:-1]]
            self.assertEqual("".join(delta.get("thinking", delta.get("text", "")) for delta in deltas),
                             block["thinking"] if index == 0 else block["text"])
            self.assertEqual([delta["type"] == "signature_delta" for delta in deltas], [False] * (len(deltas) - 1) + [index == 0])

    def test_thinking_is_switched_off(self):
        said = self.server.post("/v1/messages", {**self.ask, "thinking": {"type": "disabled"}})
        self.assertEqual([block["type"] for block in said["content"]], ["text"])

    def test_results_of_tools_are_behind_their_calls(self):
        """A message of the user may have results, and texts beside them, in any order."""
        result = {"type": "tool_result", "tool_use_id": "a", "content": "sun"}
        text = {"type": "text", "text": "So?"}
        call = {"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "weather", "input": {}}]}
        for content in ([result, text], [text, result]):
            messages = [*self.ask["messages"], call, {"role": "user", "content": content}]
            self.assertEqual(self.server.post("/v1/messages", {**self.ask, "messages": messages})["role"], "assistant")

    def test_errors(self):
        for path, body in (("/v1/messages", {**self.ask, "max_tokens": "x"}), ("/v1/messages/count_tokens", {})):
            with self.assertRaises(urllib.error.HTTPError) as caught:
                self.server.post(path, body)
            error = json.load(caught.exception)
            self.assertEqual((caught.exception.code, error["type"], error["error"]["type"]), (400, "error", "invalid_request_error"))


@needs_smol
class Chat(OneServer, unittest.TestCase):
    model = SMOL

    @unittest.skipIf(openai is None, "the package openai is not installed")
    def test_openai_client(self):
        client = openai.OpenAI(base_url=self.server.url + "/v1", api_key="none", max_retries=0)
        self.addCleanup(client.close)
        messages = [{"role": "user", "content": "What is the capital of France?"}]
        ask = {"model": "x", "messages": messages, "temperature": 0, "max_tokens": 24}
        said = client.chat.completions.create(**ask, logprobs=True, top_logprobs=3)
        self.assertIn("Paris", said.choices[0].message.content)
        self.assertEqual(len(said.choices[0].logprobs.content[0].top_logprobs), 3)
        self.assertGreaterEqual(said.choices[0].logprobs.content[0].entropy, 0)
        self.assertEqual(said.usage.harp["steps"], said.usage.completion_tokens)
        off = client.chat.completions.create(**ask, extra_body={"harp": {"enabled": False}})
        self.assertEqual(off.usage.harp["hesitations"], 0)
        parts = client.chat.completions.create(**ask, stream=True)
        text = "".join(part.choices[0].delta.content or "" for part in parts if part.choices)
        self.assertEqual(text, said.choices[0].message.content)
        schema = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 12}}, "required": ["city"]}
        said = client.chat.completions.create(**ask, response_format={
            "type": "json_schema", "json_schema": {"name": "city", "schema": schema}})
        self.assertIsInstance(json.loads(said.choices[0].message.content)["city"], str)

    @unittest.skipIf(openai is None, "the package openai is not installed")
    def test_tool_call(self):
        server = Server("-c", "1024", "--chat-template-file", str(ROOT / "tests/data/tools.jinja"), model=SMOL)
        self.addCleanup(server.stop)
        client = openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)
        self.addCleanup(client.close)
        weather = {"type": "function", "function": {
            "name": "get_weather", "description": "Weather now",
            "parameters": {"type": "object", "properties": {"city": {"type": "string", "maxLength": 12}}, "required": ["city"]}}}
        messages = []  # two calls, as examples for a small model
        for city in ["Rome", "Oslo"]:
            call = {"name": "get_weather", "arguments": json.dumps({"city": city})}
            messages += [{"role": "user", "content": f"What is the weather in {city}?"},
                         {"role": "assistant", "content": "", "tool_calls": [{"id": city, "type": "function", "function": call}]},
                         {"role": "tool", "tool_call_id": city, "content": "sun"}, {"role": "assistant", "content": "Sun."}]
        messages.append({"role": "user", "content": "What is the weather in Paris?"})
        for harp_object in [{}, {"enabled": False}]:
            said = client.chat.completions.create(model="x", messages=messages, temperature=0, max_tokens=64, tools=[weather],
                                                  tool_choice="required", extra_body={"harp": harp_object})
            call = said.choices[0].message.tool_calls[0].function
            self.assertEqual((said.choices[0].finish_reason, call.name), ("tool_calls", "get_weather"))
            self.assertEqual(json.loads(call.arguments), {"city": "Paris"})
        other = {"type": "function", "function": {"name": "get_time", "parameters": {"type": "object", "properties": {}}}}
        said = client.chat.completions.create(model="x", messages=messages, temperature=0, max_tokens=64, tools=[weather, other],
                                              tool_choice={"type": "function", "function": {"name": "get_time"}})
        self.assertEqual(said.choices[0].message.tool_calls[0].function.name, "get_time")
        tools = [{"name": name, "input_schema": {"type": "object", "properties": {}}} for name in ("get_weather", "get_time")]
        ask = {"messages": messages[-1:], "tools": tools, "tool_choice": {"type": "tool", "name": "get_time"}}
        named, alone = (server.post("/v1/messages/count_tokens", ask | more)["input_tokens"] for more in ({}, {"tools": tools[1:]}))
        self.assertEqual(named, alone)  # the prompt has that tool alone
        examples = []
        for message in messages[:-1]:
            content = [{"type": "tool_use", "id": call["id"], "name": "get_time", "input": {}} for call in message.get("tool_calls", [])]
            examples.append({"role": "user", "content": [{"type": "tool_result", "tool_use_id": message["tool_call_id"], "content": "sun"}]}
                            if message["role"] == "tool" else message if not content else {"role": "assistant", "content": content})
        events = server.stream("/v1/messages", {**ask, "messages": [*examples, messages[-1]], "max_tokens": 64, "temperature": 0})
        [block] = [event["content_block"] for event in events if event["type"] == "content_block_start"]
        self.assertEqual((block["type"], block["name"], block["input"]), ("tool_use", "get_time", {}))
        items = []
        for message in messages:
            for call in message.get("tool_calls", []):
                items.append({"type": "function_call", "call_id": call["id"], **call["function"]})
            items.append({"type": "function_call_output", "call_id": message["tool_call_id"], "output": message["content"]}
                         if message["role"] == "tool" else message)
        ask = {"input": items, "max_output_tokens": 64, "temperature": 0, "tool_choice": "required",
               "tools": [{"type": "function", **weather["function"]}]}
        events = server.stream("/v1/responses", ask)
        for event in events:
            pydantic.TypeAdapter(openai.types.responses.ResponseStreamEvent).validate_python(event)
        for response in (server.post("/v1/responses", ask), events[-1]["response"]):
            response = openai.types.responses.Response.model_validate(response)
            self.assertEqual((response.tools[0].name, response.tool_choice), ("get_weather", "required"))
            self.assertEqual(json.loads(response.output[0].arguments), {"city": "Paris"})
        self.assertEqual([event["type"] for event in events][-3:],
                         ["response.function_call_arguments.done", "response.output_item.done", "response.completed"])
        self.assertEqual(json.loads(events[-3]["arguments"]), {"city": "Paris"})


@needs_smol
class Documentation(OneServer, unittest.TestCase):
    """Runs the examples of docs/SERVER.md like a reader would."""

    model = SMOL

    def test_examples(self):
        text = (ROOT / "docs/SERVER.md").read_text()
        examples = re.findall(r"<!-- tested -->\n```(\w+)\n(.*?)```", text, re.DOTALL)
        self.assertEqual([language for language, _ in examples], ["sh", "python", "sh"])
        for language, code in examples:
            run = {"sh": ["bash", "-euo", "pipefail", "-c"], "python": [sys.executable, "-c"]}[language]
            if language == "sh" and not shutil.which("curl") or language == "python" and openai is None:
                continue
            with self.subTest(code=code):
                done = subprocess.run([*run, code.replace(":8080", f":{self.server.port}")], capture_output=True, timeout=60,
                                      check=False)
                self.assertEqual(done.returncode, 0, done.stderr.decode())
                said = done.stdout.decode()
                self.assertNotIn('"error"', said)
                self.assertIn("Paris", said)
                self.assertIn("hesitat", said)


if __name__ == "__main__":
    unittest.main(verbosity=2)
