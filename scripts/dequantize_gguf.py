#!/usr/bin/env python3
"""Writes the float32 version of a quantised GGUF model: same metadata, same tensors, each value as llama.cpp dequantises it.

    scripts/dequantize_gguf.py INPUT.gguf OUTPUT.gguf

Tests compare HARP with recorded runs of the authors' float32 implementation, and need the model that those runs used.
The output gets its name only when it is complete. Needs the Python package `gguf`.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

import gguf
import numpy as np
from gguf.quants import dequantize

FILE_TYPE_ALL_F32 = 0  # LLAMA_FTYPE_ALL_F32


def add_metadata(reader, writer):
    """Copies every key of the input, except the file type and those that the writer adds itself."""
    for field in reader.fields.values():
        if field.name == gguf.Keys.General.ARCHITECTURE or field.name.startswith("GGUF."):
            continue
        if field.name == gguf.Keys.General.FILE_TYPE:
            writer.add_file_type(FILE_TYPE_ALL_F32)
            continue
        is_array = field.types[0] == gguf.GGUFValueType.ARRAY
        writer.add_key_value(
            field.name, field.contents(), field.types[0], sub_type=field.types[-1] if is_array else None
        )


def write_float32(source, target):
    """Writes `source`, dequantised, to `target`. Works on one tensor at a time, so that memory is bounded by the largest."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, reader.get_field(gguf.Keys.General.ARCHITECTURE).contents())
    add_metadata(reader, writer)
    for tensor in reader.tensors:
        shape = [int(extent) for extent in reversed(tensor.shape)]  # ggml puts the fastest dimension first
        writer.add_tensor_info(tensor.name, shape, np.dtype(np.float32), tensor.n_elements * 4)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()

    total = sum(tensor.n_elements for tensor in reader.tensors)
    done = 0
    for tensor in reader.tensors:
        values = dequantize(tensor.data, tensor.tensor_type)
        writer.write_tensor_data(np.ascontiguousarray(values, dtype=np.float32))
        done += tensor.n_elements
        if sys.stderr.isatty():
            print(f"\r{100 * done // total:3d} % {tensor.name:40.40}", end="", file=sys.stderr, flush=True)
    writer.close()
    if sys.stderr.isatty():
        print("\r" + " " * 50, end="\r", file=sys.stderr)
    print(f"{len(reader.tensors)} tensors, {total * 4 / 1e6:.0f} MB of float32", file=sys.stderr)


def main():
    parser = argparse.ArgumentParser(description="Writes the float32 version of a quantised GGUF model.")
    parser.add_argument("input", type=Path)
    parser.add_argument("output", type=Path)
    args = parser.parse_args()
    # next to the output, so that the rename is atomic; the directory is deleted with anything left in it
    with tempfile.TemporaryDirectory(dir=args.output.parent, prefix=".dequantize-") as work:
        unfinished = Path(work) / args.output.name
        write_float32(args.input, unfinished)
        os.replace(unfinished, args.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
