#!/usr/bin/env python3
"""The command line itself: help, versions, flags that are unknown or out of range."""

import json
import re
import shutil
import subprocess
import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
from command_line import CliTest, FAILURE, OPTIONS, USAGE, generate, harp
from programs import TINY, needs_tiny


class Usage(CliTest):
    def test_no_command_prints_usage(self):
        result = harp()
        self.assertEqual(result.code, USAGE)
        self.assertIn("generate", result.err)

    def test_help_and_version(self):
        self.assertIn("generate", self.assert_ok(harp("--help")).out)
        self.assertRegex(self.assert_ok(harp("--version")).out, r"^harp \d+\.\d+")

    def test_unknown_command_lists_commands(self):
        self.assert_fault(harp("bogus"), USAGE, "bogus", "generate", "chat", "compare", "score", "calibrate", "verify", "info")

    def test_help_of_each_command(self):
        for command in ["generate", "chat", "compare", "score", "calibrate", "info", "verify"]:
            for flag in ["--help", "-h"]:
                with self.subTest(command=command, flag=flag):
                    result = self.assert_ok(harp(command, flag))
                    self.assertIn(f"harp {command}", result.out)
                    self.assertEqual(result.err, "")
                    if command != "verify":  # there the recordings determine the options
                        for option in OPTIONS:
                            self.assertIn(f"--harp-{option.replace('_', '-')}", result.out)
                        self.assertIn("--harp-off", result.out)

    def test_no_model(self):
        for command in ["generate", "chat", "compare", "score", "calibrate", "info"]:
            with self.subTest(command=command):
                self.assert_fault(harp(command), USAGE, "no model")

    def test_unknown_harp_option(self):
        for flag in ["--harp-bta", "--harp-bta=1"]:
            with self.subTest(flag=flag):
                self.assert_fault(harp("generate", "-m", str(TINY), "-p", "x", flag), USAGE, "--harp-bta")
        self.assert_fault(harp("generate", "-m", str(TINY), "-p", "x", "--harp-bta", "0.5"), USAGE, "--harp-bta")

    @needs_tiny
    def test_values_that_end_in_an_equals_sign(self):
        self.assert_ok(generate("-n", "2", "--harp-view", "guidance", "--harp-negative-prompt", "a ="))
        self.assert_fault(generate("-n", "2", "--harp-view="), USAGE, "--harp-view", "empty")

    @needs_tiny
    def test_values_that_llama_does_not_check(self):
        for value in ("3", "-1"):
            self.assert_fault(generate("-n", "2", "--mirostat", value), USAGE, "--mirostat", value, "0..2")
        self.assert_fault(generate("-n", "2", "--control-vector", "nofile.gguf"), USAGE, "control vector", "nofile.gguf")
        self.assert_fault(generate("-n", "2", "--control-vector", str(TINY)), USAGE, "--control-vector")

    @needs_tiny
    def test_a_dynamic_temperature_around_zero_samples(self):
        texts = {self.assert_ok(generate("-n", "20", "--temp", "0", "--dynatemp-range", "3", "--seed", str(seed))).out
                 for seed in range(3)}
        self.assertGreater(len(texts), 1)

    def test_unknown_other_option(self):
        self.assert_fault(harp("generate", "-m", str(TINY), "-p", "x", "--frobnicate"), USAGE, "--frobnicate")

    def test_flags_of_llama_that_would_do_nothing(self):
        flags = {"generate": ["--context-shift", "--special", "--image", "-np", "--perf", "--keep", "--mmproj"],
                 "chat": ["-p", "-f", "--single-turn"], "score": ["--temp", "-n", "-sys", "--spec-type", "-s"],
                 "compare": ["-md", "--spec-type"], "bench": ["-p", "-r"], "calibrate": ["-n"], "info": ["-n", "--temp"]}
        for command, names in flags.items():
            for name in names:
                with self.subTest(command=command, flag=name):
                    self.assert_fault(harp(command, "-m", str(TINY), name, "1"), USAGE, f"'{name}'", f"not in harp {command}")

    def test_help_llama_lists_what_works(self):
        text = self.assert_ok(harp("score", "--help-llama")).out
        works, refused = text.split("Not in harp score:")
        for flag in ["--ctx-size", "--lora", "--gpu-layers"]:
            self.assertIn(flag, works)
            self.assertNotIn(flag, refused)
        for flag in ["--temperature", "--parallel", "--spec-type"]:
            self.assertIn(flag, refused)
            self.assertNotRegex(works, rf"(?m)^(-\w+, +)?{flag}\b")

    @needs_tiny
    def test_colour_where_it_is_asked_for(self):
        flags = ["-n", "8", "--temp", "0", "--harp-threshold", "0"]
        self.assertIn("\033[", self.assert_ok(generate(*flags, "--color", "on")).out)
        for colour in ["auto", "off"]:
            self.assertNotIn("\033[", self.assert_ok(generate(*flags, "--color", colour)).out)

    @needs_tiny
    def test_a_question_is_answered(self):
        flags = ["-m", str(TINY), "-n", "4", "--temp", "0"]
        for question in ["Who wrote Hamlet?", "Tell me a story", "Why?"]:
            self.assertEqual(self.assert_ok(harp(question, *flags)).out, self.assert_ok(generate(*flags[2:], prompt=question)).out)
        self.assert_fault(harp("Who wrote Hamlet?", "--magic"), USAGE, "--magic")

    def test_flag_without_a_command_is_told_where_flags_go(self):
        self.assert_fault(harp("--help-llama"), USAGE, "'--help-llama' without a command", "harp generate --help-llama")

    def test_run_checks_arguments_before_it_builds(self):
        source = Path(__file__).resolve().parents[2]
        for name in ["run", "scripts/setup.sh", "apps/cli/main.cpp"]:
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source / name, self.folder / name)
        missing = str(self.folder / "missing.gguf")
        commands = re.findall(r"^  ([a-z]+) ", harp("--help").out.split("Commands:\n")[1].split("\n\n")[0], re.MULTILINE)
        self.assertIn("generate", commands)
        for arguments, *names in [(["frobnicate"], "unknown command 'frobnicate'", f"commands: {', '.join(commands)}\n", "in quotes"),
                                  (["--magic"], "flag '--magic' without a command"), (["generate", "-m"], "'-m' needs a value"),
                                  (["Who wrote Hamlet?", "-m", missing], "no such file", "missing.gguf"),
                                  (["serve", "-m", missing], "no such file")]:
            with self.subTest(arguments=arguments):
                done = subprocess.run([self.folder / "run", *arguments], capture_output=True, text=True, timeout=30, check=False)
                self.assertEqual(done.returncode, USAGE, done)
                for text in names:
                    self.assertIn(text, done.stderr)
                self.assertFalse((self.folder / "build").exists())

    def test_run_works_through_links_and_in_folders_with_any_name(self):
        source, folder = Path(__file__).resolve().parents[2], self.folder.resolve() / "c++ (1)"
        for name in ["run", "scripts/setup.sh", "apps/cli/main.cpp"]:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source / name, folder / name)
        link, linked = self.folder / "link", self.folder / "linked"
        link.symlink_to(folder / "run")
        linked.symlink_to(folder)
        done = subprocess.run([link, "frobnicate"], capture_output=True, text=True, timeout=30, check=False)
        self.assertIn("unknown command 'frobnicate'", done.stderr)
        build = folder / "build" / "release"
        build.mkdir(parents=True)
        (build / "CMakeCache.txt").write_text(f"CMAKE_HOME_DIRECTORY:INTERNAL={folder}\n")
        (build / "build.ninja").touch()
        for name in [folder, linked]:
            subprocess.run(["bash", "-c", 'source "$0/scripts/setup.sh" && configure OFF', name], timeout=30, check=True)
            self.assertTrue((build / "build.ninja").exists(), "a build is thrown away only where the repository was moved")

    def test_bad_value_of_llama_option(self):
        bad = [("-c", "many"), ("-c", "12x"), ("-c", "-5"), ("-b", "0"), ("--temp", "x"), ("-s", "x"), ("-ctk", "f7")]
        for flag, value in bad:
            with self.subTest(flag=flag, value=value):
                self.assert_fault(harp("generate", "-m", str(TINY), "-p", "x", flag, value), USAGE, flag)

    def test_directory_instead_of_a_file(self):
        for flag in ["-f", "-bf", "-sysf", "-jf", "--grammar-file", "--chat-template-file", "--control-vector", "--log-file"]:
            with self.subTest(flag=flag):
                self.assert_fault(harp("generate", "-m", str(TINY), flag, str(self.folder)), USAGE,
                                  f"option '{flag}': '{self.folder}' is a directory")

    @needs_tiny
    def test_values_behind_an_equals_sign(self):
        for flags in (["--predict=3", "--temp=0"], ["--predict", "3", "--temp", "0"]):
            data = json.loads(self.assert_ok(generate(*flags, "--ignore-eos", "--json")).out)
            self.assertEqual(data["generated"]["tokens"], 3)
        self.assert_fault(generate("--temp=x"), USAGE, "'--temp'")
        self.assert_fault(generate("--ignore-eos=1"), USAGE, "'--ignore-eos'", "no values")
        self.assert_fault(generate("--control-vector-layer-range=1"), USAGE, "'--control-vector-layer-range'", "two values")

    def test_given_twice(self):
        for flag in (["--harp-beta", "1"], ["--harp-preset", "x"], ["--format", "raw"]):
            self.assert_fault(harp("generate", "-m", str(TINY), "-p", "x", *flag, *flag), USAGE, flag[0], "more than once")
        self.assert_fault(harp("verify", "-m", "a", "-m", "b", "c.json"), USAGE, "--model", "more than once")

    def test_values_that_cannot_be_converted(self):
        for value in ("x", "-1", "1.5", "4294967296"):
            self.assert_fault(harp("generate", "-m", str(TINY), "-p", "x", "--harp-n-ctx-twin", value), USAGE, "--harp-n-ctx-twin", value,
                              "0 to 4294967295")
        self.assert_fault(harp("generate", "-m", str(TINY), "-p", "x", "--json=perhaps"), USAGE, "--json", "perhaps", "true, false")
        self.assert_fault(harp("generate", "-m", str(TINY), "-p", "x", env={"HARP_OFF": "perhaps"}), USAGE, "--harp-off", "perhaps",
                          "true, false")

    @needs_tiny
    def test_what_switches_off_is_named(self):
        for command in (["compare"], ["calibrate"], ["score", "--sweep", "beta=0"], ["bench"]):
            with self.subTest(command=command):
                prompt = [] if command == ["bench"] else ["-p", "x"]
                self.assert_fault(harp(*command, "-m", str(TINY), *prompt, env={"HARP_OFF": "1"}), USAGE, "--harp-off", "HARP_OFF")

    @needs_tiny
    def test_flags_of_llama_by_all_their_names(self):
        for flag in ["-n", "--predict", "--n-predict", "--n_predict"]:
            self.assertEqual(json.loads(self.assert_ok(generate(flag, "3", "--ignore-eos", "--json")).out)["generated"]["tokens"], 3)

    def test_help_of_llama(self):
        self.assertIn("--top-p", self.assert_ok(harp("generate", "--help-llama")).out)

    def test_option_without_value(self):
        self.assert_fault(harp("generate", "-m", str(TINY), "-p", "x", "--harp-beta"), USAGE, "--harp-beta")
        self.assert_fault(harp("generate", "-m", str(TINY), "-p"), USAGE, "-p")

    def test_harp_options_out_of_range(self):
        bad = {
            "threshold": ["-1", "nan", "two", ""],
            "beta": ["-0.1", "8.1", "nan", "inf", "0.5x"],
            "gate": ["margin", ""],
            "plausibility": ["-0.1", "1.1", "nan"],
            "view": ["sideways"],
            "view_tokens": ["0", "-1", "1.5"],
            "perturbation": ["noise"],
            "strength": ["-0.1", "1.5", "nan", "inf"],
            "reframings": ["0", "9", "-1", "1.5"],
            "schedule": ["eager"],
            "redraw": ["-1", "4294967296", "x"],
            "scope": ["some"],
            "seed": ["-1", "18446744073709551616", "x"],
        }
        self.assertEqual(sorted(bad), sorted(OPTIONS))
        for name, values in bad.items():
            for value in values:
                with self.subTest(option=name, value=value):
                    result = harp("generate", "-m", str(TINY), "-p", "x", f"--harp-{name.replace('_', '-')}", value)
                    self.assert_fault(result, USAGE, name, value)

    @needs_tiny
    def test_sizes_that_overflow(self):
        for flags, words in [(["-c", "4294967296"], ["'-c'", "4294967296", "[-2147483648..2147483647]"]),
                             (["-n", "99999999999"], ["'-n'", "99999999999"]),
                             (["-t", "100000"], ["'-t'", "100000", "[..512]"])]:
            self.assert_fault(generate(*flags), USAGE, *words)
        for flags, words in [(["-c", "1431655766", "--harp-reframings", "2"], ["n_ctx", "1431655766", "0..715827882"]),
                             (["-c", "2147483647"], ["n_ctx", "2147483647", "0..1073741823"])]:
            self.assert_fault(generate(*flags), FAILURE, *words)

    def test_numbers_that_are_none(self):
        for value in ("nan", "inf", "-inf", "-1", "1001", "x"):
            for flag in ("--entropy-tolerance", "--logit-tolerance"):
                with self.subTest(flag=flag, value=value):
                    self.assert_fault(harp("verify", "-m", "nowhere.gguf", "nowhere.json", f"{flag}={value}"), USAGE, flag, value, "0..1000")
        names = ["temp", "top-p", "min-p", "typical", "xtc-probability", "xtc-threshold", "top-nsigma", "repeat-penalty", "presence-penalty",
                 "frequency-penalty", "dry-multiplier", "dry-base", "adaptive-target", "adaptive-decay", "dynatemp-range", "dynatemp-exp",
                 "mirostat-lr", "mirostat-ent", "rope-scale", "rope-freq-base", "rope-freq-scale", "yarn-ext-factor", "yarn-attn-factor",
                 "yarn-beta-slow", "yarn-beta-fast", "spec-draft-p-min", "spec-draft-p-split", "tensor-split"]
        for flag in [f"--{name}" for name in names]:
            for value in ("nan", "inf"):
                with self.subTest(flag=flag, value=value):
                    self.assert_fault(harp("generate", "-m", "nowhere.gguf", "-p", "x", flag, value), USAGE, flag, "finite")
        for flag in [f"--{name}" for name in names[:-1]] + ["--seed", "-ngl"]:
            for value in ("0,7", "1x", "0.5=1"):  # of which llama.cpp reads a part
                with self.subTest(flag=flag, value=value):
                    self.assert_fault(harp("generate", "-m", "nowhere.gguf", "-p", "x", flag, value), USAGE, f"'{flag}': '{value}' is not a")
        self.assert_fault(harp("generate", "-m", "nowhere.gguf", "-p", "x", "--seed", "1e3"), USAGE, "'--seed': '1e3' is not a whole number")
        for flag, value in [("--lora-scaled", "x.gguf:nan"), ("--control-vector-scaled", "x.gguf:inf"), ("--logit-bias", "5+nan")]:
            with self.subTest(flag=flag):
                self.assert_fault(harp("generate", "-m", "nowhere.gguf", "-p", "x", flag, value), USAGE, flag, "finite")
        for flags in [("-p", "inf"), ("--logit-bias", "5-inf")]:
            self.assert_fault(harp("generate", "-m", "nowhere.gguf", "-p", "x", *flags), USAGE, "nowhere.gguf", "no such file")

    def test_values_that_llama_would_pass_over(self):
        for flags, words in [(["--samplers", "top_k;topq"], ["--samplers", "'topq'"]),
                             (["--sampler-seq", "kz"], ["--sampler-seq", "'z'"]),
                             (["--chat-template", "llama3"], ["--chat-template", "llama3", "--no-jinja"]),
                             (["--seed", "4294967296"], ["--seed", "4294967296", "0..4294967295"]),
                             (["--seed", "-2"], ["--seed", "-2", "0..4294967295"])]:
            with self.subTest(flags=flags):
                self.assert_fault(harp("generate", "-m", "nowhere.gguf", "-p", "x", *flags), USAGE, *words)
                self.assert_fault(harp("serve", "-m", "nowhere.gguf", *flags), USAGE, *words)
        for token in ("512", "-1"):
            self.assert_fault(generate("--logit-bias", f"{token}+1"), USAGE, "--logit-bias", token, "0..511")
        for flags in [("--samplers", "top-k;temp;nucleus"), ("--seed", "4294967295"), ("--seed", "-1"), ("--chat-template", "chatml"),
                      ("--chat-template", "llama3", "--no-jinja"), ("--chat-template", "Always the same."), ("--logit-bias", "511+1")]:
            with self.subTest(flags=flags):
                self.assertEqual(generate("-n", "2", *flags).code, 0)

    def test_a_log_that_cannot_be_written(self):
        for command in (["generate", "-m", "nowhere.gguf", "-p", "x"], ["serve", "-m", "nowhere.gguf"]):
            self.assert_fault(harp(*command, "--log-file", "/nowhere/log"), FAILURE, "option '--log-file': '/nowhere/log': No such file")

    def test_values_of_llama_from_environment(self):
        ask = ["generate", "-m", "nowhere.gguf", "-p", "x"]
        for name, value in (("LLAMA_ARG_CTX_SIZE", "4k"), ("LLAMA_ARG_THREADS", "2,5"), ("LLAMA_ARG_ROPE_SCALE", "1,5")):
            with self.subTest(name=name):
                self.assert_fault(harp(*ask, env={name: value}), USAGE, f"environment variable '{name}': '{value}' is not a")
                self.assert_fault(harp("serve", *ask[1:3], env={name: value}), USAGE, f"environment variable '{name}': '{value}' is not a")
        self.assert_fault(harp(*ask, env={"LLAMA_ARG_PORT": "80x"}), USAGE, "nowhere.gguf")  # not a value of this command

    def test_harp_option_from_environment_out_of_range(self):
        result = harp("generate", "-m", str(TINY), "-p", "x", env={"HARP_BETA": "9"})
        self.assert_fault(result, USAGE, "beta", "9")

    def test_flags_of_ours(self):
        self.assert_fault(harp("generate", "-m", str(TINY), "-p", "x", "--format", "prose"), USAGE, "--format")
        self.assert_fault(harp("score", "-m", str(TINY), "-p", "x y z", "--window", "1"), USAGE, "--window")
        self.assert_fault(harp("compare", "-m", str(TINY), "-p", "x", "--harp-off"), USAGE, "--harp-off")


if __name__ == "__main__":
    unittest.main(verbosity=2)
