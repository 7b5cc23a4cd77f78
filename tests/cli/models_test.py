#!/usr/bin/env python3
"""Model files that are missing, truncated or hostile: one line that names the file."""

import json
import shutil
import struct
import sys
import unittest
from pathlib import Path

import gguf

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
from command_line import CliTest, FAILURE, USAGE, harp
from programs import MODELS, SHARED, TINY, needs_tiny

RECORDING = SHARED / "golden/stories260K.once.harp.json"
COMMANDS = {"generate": ["-p", "x"], "chat": [], "compare": ["-p", "x"], "score": ["-p", "x y"], "bench": [], "info": [],
            "calibrate": ["-p", "x y"]}


def write_split(folder):
    """TINY as a model of two files. @return their paths"""
    reader = gguf.GGUFReader(TINY)
    writer = gguf.GGUFWriter(folder / "split.gguf", "llama", split_max_tensors=len(reader.tensors) // 2 + 1)
    for field in reader.fields.values():
        if not field.name.startswith(("GGUF.", "general.architecture")):
            sub_type = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=sub_type)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sorted(folder.glob("split-*.gguf"))


@needs_tiny
class ModelFaults(CliTest):
    def assert_refused(self, path, *names):
        self.assert_fault(harp("generate", "-m", str(path), "-p", "x"), USAGE, str(path), *names)

    def write(self, name, data):
        path = self.folder / name
        path.write_bytes(data)
        return path

    @staticmethod
    def layout(data):
        """Offsets in a GGUF file: the first string value's length, tensor infos, and the tensor data."""
        sizes = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
        n_tensors, n_kv = struct.unpack_from("<QQ", data, 8)
        at, first_string = 24, None

        def string(at):
            return at + 8 + struct.unpack_from("<Q", data, at)[0]

        for _ in range(n_kv):
            at = string(at)
            kind, = struct.unpack_from("<I", data, at)
            at += 4
            if kind == 8:
                first_string = first_string or at
                at = string(at)
            elif kind == 9:
                kind, count = struct.unpack_from("<IQ", data, at)
                at += 12
                for _ in range(count):
                    at = string(at) if kind == 8 else at + sizes[kind]
            else:
                at += sizes[kind]
        infos = at
        for _ in range(n_tensors):
            at = string(at)
            at += 4 + 8 * struct.unpack_from("<I", data, at)[0] + 12
        return first_string, infos, (at + 31) // 32 * 32

    def test_missing(self):
        self.assert_refused(self.folder / "nowhere.gguf", "no such file")

    def test_directory(self):
        self.assert_refused(self.folder, "directory")

    def test_not_gguf(self):
        self.assert_refused(self.write("text.gguf", b"this is only text, and a good deal of it\n" * 100), "not a GGUF")
        self.assert_refused(self.write("empty.gguf", b""), "not a GGUF")

    def test_truncated(self):
        data = TINY.read_bytes()
        _, infos, tensors = self.layout(data)
        cuts = {"magic": 4, "header": 14, "key": 28, "metadata": infos // 2, "infos": (infos + tensors) // 2,
                "before_data": tensors, "data": (tensors + len(data)) // 2, "last_byte": len(data) - 1}
        for name, size in cuts.items():
            with self.subTest(cut=name):
                self.assert_refused(self.write(f"{name}.gguf", data[:size]), "cannot be loaded: ")

    def test_hostile(self):
        data = TINY.read_bytes()
        first_string, infos, _ = self.layout(data)
        name_length, = struct.unpack_from("<Q", data, infos)
        dims = infos + 8 + name_length
        huge = [(1 << 64) - 1, 1 << 63, 1 << 62, 1 << 40]
        patches = {f"{place}_{value:x}": (at, struct.pack("<Q", value))
                   for place, at in {"tensors": 8, "pairs": 16, "key_length": 24, "string_length": first_string,
                                     "tensor_name_length": infos, "dim": dims + 4}.items() for value in huge}
        patches["version"] = (4, struct.pack("<I", 0xFFFFFFFF))
        patches["n_dims"] = (dims, struct.pack("<I", 0xFFFFFFFF))
        patches["dims_product"] = (dims + 4, struct.pack("<QQ", 1 << 32, 1 << 32))
        patches["dim_zero"] = (dims + 4, struct.pack("<Q", 0))
        patches["tensor_type"] = (dims + 4 + 16, struct.pack("<I", 0xFFFF))
        patches["tensor_offset"] = (dims + 4 + 16 + 4, struct.pack("<Q", (1 << 64) - 32))
        for name, (at, patch) in patches.items():
            with self.subTest(patch=name):
                hostile = bytearray(data)
                hostile[at:at + len(patch)] = patch
                self.assert_refused(self.write(f"{name}.gguf", hostile), "cannot be loaded: ")

    def test_other_commands_refuse_too(self):
        for command, flags in COMMANDS.items():
            with self.subTest(command=command):
                path = self.folder / "nowhere.gguf"
                self.assert_fault(harp(command, "-m", str(path), *flags), USAGE, str(path))


class OtherModels(CliTest):
    @unittest.skipUnless(all((MODELS / f"random-{name}.gguf").is_file() for name in ("bert", "t5")), "no random models")
    def test_models_that_do_not_generate_without_harp(self):
        for name in ("bert", "t5"):
            model = str(MODELS / f"random-{name}.gguf")
            for command in (["generate", "-p", "x", "-n", "2"], ["generate", "-p", "x", "-n", "2", "--beams", "2"], ["chat"]):
                with self.subTest(model=name, command=command):
                    self.assert_fault(harp(*command, "-m", model, "--harp-off", stdin=b"x\n"), FAILURE, model, f"architecture {name}",
                                      "does not predict a next token")


@needs_tiny
class SplitModels(CliTest):
    def info(self, path):
        return json.loads(self.assert_ok(harp("info", "-m", str(path), "--json")).out)["model"]

    def test_both_parts(self):
        first, second = write_split(self.folder)
        one, whole = self.info(first), self.info(TINY)
        self.assertEqual((one["parameters"], one["bytes"]), (whole["parameters"], whole["bytes"]))
        self.assert_fault(harp("info", "-m", str(second)), USAGE, str(second), "not the first part", str(first))

    def test_a_part_is_missing(self):
        for missing in (1, 0):
            parts = write_split(self.folder)
            parts[missing].unlink()
            [left] = self.folder.glob("split-*.gguf")
            for command, flags in {**COMMANDS, "generate": ["-p", "x", "--json"]}.items():
                with self.subTest(command=command, missing=missing):
                    self.assert_fault(harp(command, "-m", str(left), *flags), USAGE, f"model '{left}'", f"part '{parts[missing]}' is missing")
            if RECORDING.is_file():
                self.assert_fault(harp("verify", "-m", str(left), str(RECORDING)), USAGE, f"part '{parts[missing]}' is missing")
            self.assert_fault(harp("generate", "-m", str(TINY), "-md", str(left), "-p", "x"), USAGE, f"draft model '{left}'",
                              f"part '{parts[missing]}' is missing")

    def test_a_part_with_another_name(self):
        first, _ = write_split(self.folder)
        for name in ["split.gguf", "split-00001-of-00000.gguf", "split-00001-of-00003.gguf"]:
            path = first.rename(self.folder / name)
            self.assert_fault(harp("info", "-m", str(path)), USAGE, f"model '{path}'")
            path.rename(first)

    def test_a_whole_model_with_the_name_of_a_part(self):
        path = self.folder / "model-00001-of-00002.gguf"
        shutil.copy(TINY, path)
        self.assertEqual(self.info(path)["fingerprint"], self.info(TINY)["fingerprint"])
        data = json.loads(self.assert_ok(harp("generate", "-m", str(path), "-p", "Once", "-n", "2", "--json")).out)
        self.assertEqual(data["model"]["fingerprint"], self.info(TINY)["fingerprint"])


if __name__ == "__main__":
    unittest.main(verbosity=2)
