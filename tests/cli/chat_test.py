#!/usr/bin/env python3
"""harp chat: turns, commands, interrupts."""

import re
import signal
import subprocess
import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
from command_line import CliTest, FAILURE, INTERRUPTED, OK, TIMEOUT, harp
from programs import HARP, SMOL, environment, needs_smol


@needs_smol
class Talking(CliTest):
    def test_two_turns_and_commands(self):
        lines = ["My name is Ada.", "/options", "/set threshold 2", "/set threshold -1", "/set bta 1", "/set", "What is my name?", "",
                 "/clear", "/help", "Hello.", "/exit", "never read"]
        result = self.assert_ok(harp("chat", "-m", str(SMOL), "-n", "8", "--seed", "1", stdin="\n".join(lines).encode()))
        self.assertNotIn("\033", result.out + result.err)
        self.assertNotIn("> ", result.out)
        self.assertEqual(len(re.findall(r"^\[\d+ tokens", result.err, re.M)), 3, result)
        places = [result.err.find(text) for text in ("threshold=1 ", "threshold=2 ", "forgotten", "/set NAME VALUE")]
        self.assertNotIn(-1, places[:3], result)
        self.assertEqual(places[:3], sorted(places[:3]), result)
        self.assertRegex(result.err, r"(?m)^.*threshold.*-1.*$")
        self.assertRegex(result.err, r"(?m)^.*bta.*$")
        self.assertIn("/set NAME VALUE", result.err)
        self.assertEqual(len(result.out.strip().split("\n\n")[0]) > 0, True)

    def test_lines_that_end_in_cr_lf(self):
        flags = ["chat", "-m", str(SMOL), "-n", "4", "--temp", "0"]
        for lines in (["Hi", "/options", "/set threshold 2", "/exit", "Again"], ["Hi", "", "/clear ", "/exit\t", "Again"]):
            unix, windows = (self.assert_ok(harp(*flags, stdin=(end.join(lines) + end).encode())) for end in ("\n", "\r\n"))
            self.assertEqual(windows.out, unix.out)
            self.assertEqual(len(re.findall(r"^\[\d+ tokens", windows.err, re.M)), 1, windows)
            self.assertNotIn("/set NAME VALUE", windows.err)

    def test_blanks_in_commands(self):
        lines = ["/set  threshold 2", "/set strength  0.3", "/set\tbeta\t0.7", "/set redraw 1 2"]
        result = self.assert_ok(harp("chat", "-m", str(SMOL), stdin="\n".join(lines).encode()))
        self.assertEqual(len(re.findall("threshold=2 beta=0.5 .*strength=0.2 ", result.err)), 1, result)
        self.assertEqual(len(re.findall("threshold=2 beta=0.5 .*strength=0.3 ", result.err)), 1, result)
        self.assertEqual(len(re.findall("threshold=2 beta=0.7 .*strength=0.3 ", result.err)), 1, result)
        self.assertIn("give a name and a value", result.err.splitlines()[-1])

    def test_a_byte_order_mark(self):
        result = self.assert_ok(harp("chat", "-m", str(SMOL), "-n", "2", stdin=b"\xef\xbb\xbf/exit\nHello\n"))
        self.assertNotIn("tokens/s", result.err)

    def test_off(self):
        result = self.assert_ok(harp("chat", "-m", str(SMOL), "-n", "4", "--ignore-eos", "--harp-off", stdin=b"/options\n/set beta 1\nHello.\n"))
        self.assertIn("off", result.err)
        self.assertIn("--harp-off", result.err)

    def test_invalid_utf8_line(self):
        result = self.assert_ok(harp("chat", "-m", str(SMOL), "-n", "4", "--ignore-eos", stdin=b"a\xffb\nHello.\n"))
        self.assertIn("not valid UTF-8", result.err)
        self.assertIn("[4 tokens", result.err)

    def test_too_long_a_line_does_not_end_it(self):
        stdin = "The cat sat. " * 300 + "\n/clear\nHello.\n"
        result = self.assert_ok(harp("chat", "-m", str(SMOL), "-n", "4", "--ignore-eos", "-c", "256", stdin=stdin.encode()))
        self.assertIn("/clear", result.err)
        self.assertIn("[4 tokens", result.err)

    def test_an_answer_without_tokens_leaves_no_question_behind(self):
        template = "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('by turns') }}" \
                   "{% endif %}{{ m['content'] }}{% endfor %}"
        result = self.assert_ok(harp("chat", "-m", str(SMOL), "-n", "0", "--chat-template", template, stdin=b"Hi\nHello\n"))
        self.assertNotIn("by turns", result.err)
        refusing = "{% for m in messages %}{% if m['content'] == 'Hi' %}{{ raise_exception('no Hi') }}{% endif %}{{ m['content'] }}{% endfor %}"
        faulty = self.assert_ok(harp("chat", "-m", str(SMOL), "-n", "1", "--chat-template", refusing, stdin=b"Hi\n"))
        self.assertIn("the chat template cannot format these messages", faulty.err)

    def test_terminated(self):
        process = subprocess.Popen([HARP, "chat", "-m", str(SMOL), "-n", "4"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                   stderr=subprocess.DEVNULL, env=environment())
        process.stdin.write(b"Hello.\n")
        process.stdin.flush()
        process.stdout.read(1)  # it answers, or waits for the next line
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=TIMEOUT)
        self.assertEqual(process.returncode, INTERRUPTED)

    def test_closed_input(self):
        done = subprocess.run(["bash", "-c", f"exec {HARP} chat -m {SMOL} -n 2 <&-"], capture_output=True, timeout=TIMEOUT, env=environment(),
                              check=False)
        self.assertEqual(done.returncode, OK, done.stderr)

    def test_stdout_full(self):
        with open("/dev/full", "wb") as full:
            result = harp("chat", "-m", str(SMOL), "-n", "4", "--ignore-eos", stdin=b"Hello.\nHello.\n", stdout=full)
        self.assertEqual(result.code, FAILURE, result)
        self.assertIn("standard output", result.err)

    def test_interrupt_stops_the_answer_only(self):
        terminal = self.terminal("chat", "-m", str(SMOL), "-n", "3000", "--ignore-eos", streams=["stdin", "stdout", "stderr"])
        at = terminal.wait_for("> ")
        terminal.send("Tell a very long story.\n")
        a_coloured_token = r"(.|\n)*?\x1b\[38;5;\d+m\w"  # not only the progress of reading
        at = terminal.wait_for(r"story\.\r\n" + a_coloured_token, at)
        terminal.process.send_signal(signal.SIGINT)
        at = terminal.wait_for(r"stopped(.|\n)*> ", at)
        terminal.process.send_signal(signal.SIGINT)  # at the prompt it gives a new prompt
        at = terminal.wait_for("> ", at)
        terminal.send("/options\n")
        at = terminal.wait_for("threshold=1", at)
        terminal.send("Another one.\n")
        at = terminal.wait_for(r"one\.\r\n" + a_coloured_token, at)
        terminal.process.send_signal(signal.SIGINT)
        at = terminal.wait_for(r"stopped(.|\n)*> ", at)
        terminal.send("\x04")
        self.assertEqual(terminal.finish().code, OK, terminal.text[-1500:])

    def test_interrupt_while_reading_the_line(self):
        terminal = self.terminal("chat", "-m", str(SMOL), "-n", "4", "--ignore-eos", "-c", "8192", "-b", "32", streams=["stdin", "stdout", "stderr"])
        at = terminal.wait_for("> ")
        terminal.send("The cat sat on the mat. " * 160 + "\n")  # a line of a terminal can hold 4095 bytes
        at = terminal.wait_for("reading: ", at)
        terminal.process.send_signal(signal.SIGINT)
        at = terminal.wait_for("> ", at)
        terminal.send("Hello.\n")
        at = terminal.wait_for(r"\[4 tokens(.|\n)*> ", at)
        terminal.send("/exit\n")
        self.assertEqual(terminal.finish().code, OK, terminal.text[-1500:])


if __name__ == "__main__":
    unittest.main(verbosity=2)
