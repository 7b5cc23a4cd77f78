#!/usr/bin/env python3
"""Writes a model with the shape of Llama-3.1-8B, few layers and random weights (float16), for measuring decoding.

    bench/make_8b_shape.py [--layers 4] [--experts N] [--seed N] --vocab VOCAB.gguf OUTPUT.gguf

With --experts each layer's feed-forward part is a mixture of N experts of an eighth of the width, four of them for each token.
Widths, heads, feed-forward and vocabulary are those of Llama-3.1-8B; its 32 layers would take 16 GB. Decoding consists of matrix
multiplications, whose cost does not depend on the weights. The tokenizer is copied from VOCAB.gguf and padded with unused tokens.
The model's output is noise: use it only to measure, and choose a threshold with `harp calibrate`, since its entropies mean
nothing. build/release/bench/quantize_model quantises it. Needs the Python package `gguf`.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

import gguf
import numpy as np

WIDTH = 4096
HIDDEN = 14336
HEADS = 32
KV_HEADS = 8
VOCABULARY = 128256
EXPERTS_USED = 4
OUTPUT_SCALE = 0.05  # the logits' standard deviation is this times sqrt(WIDTH): entropies of a few bits


def copy_tokenizer(writer, reader):
    """Copies the tokenizer of a smaller vocabulary, with its lists padded to VOCABULARY."""
    for field in reader.fields.values():
        if not field.name.startswith("tokenizer."):
            continue
        values = field.contents()
        is_array = field.types[0] == gguf.GGUFValueType.ARRAY
        if field.name == gguf.Keys.Tokenizer.LIST:
            values = values + [f"<unused_{i}>" for i in range(len(values), VOCABULARY)]
        elif field.name == gguf.Keys.Tokenizer.TOKEN_TYPE:
            values = values + [int(gguf.TokenType.UNUSED)] * (VOCABULARY - len(values))
        elif field.name == gguf.Keys.Tokenizer.SCORES:
            values = values + [0.0] * (VOCABULARY - len(values))
        writer.add_key_value(field.name, values, field.types[0], sub_type=field.types[-1] if is_array else None)


def write_model(path, reader, layers, experts, seed):
    random = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, "llama", use_temp_file=True)
    writer.add_name(f"random, Llama-3.1-8B's shape with {layers} layers")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_context_length(8192)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(layers)
    hidden = HIDDEN // 8 if experts else HIDDEN
    writer.add_feed_forward_length(hidden)
    if experts:
        writer.add_expert_count(experts)
        writer.add_expert_used_count(EXPERTS_USED)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(500000.0)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_vocab_size(VOCABULARY)
    copy_tokenizer(writer, reader)

    def matrix(name, *shape, scale=None):
        values = random.standard_normal(shape, dtype=np.float32)
        values *= shape[-1] ** -0.5 if scale is None else scale
        writer.add_tensor(f"{name}.weight", values.astype(np.float16))

    def norm(name):
        writer.add_tensor(f"{name}.weight", np.ones(WIDTH, dtype=np.float32))

    kv_width = WIDTH // HEADS * KV_HEADS
    matrix("token_embd", VOCABULARY, WIDTH, scale=1.0)
    for i in range(layers):
        print(f"layer {i + 1} of {layers}", file=sys.stderr)
        block = f"blk.{i}"
        norm(f"{block}.attn_norm")
        matrix(f"{block}.attn_q", WIDTH, WIDTH)
        matrix(f"{block}.attn_k", kv_width, WIDTH)
        matrix(f"{block}.attn_v", kv_width, WIDTH)
        matrix(f"{block}.attn_output", WIDTH, WIDTH)
        norm(f"{block}.ffn_norm")
        each, suffix = ((experts,), "_exps") if experts else ((), "")
        if experts:
            matrix(f"{block}.ffn_gate_inp", experts, WIDTH)
        matrix(f"{block}.ffn_gate{suffix}", *each, hidden, WIDTH)
        matrix(f"{block}.ffn_up{suffix}", *each, hidden, WIDTH)
        matrix(f"{block}.ffn_down{suffix}", *each, WIDTH, hidden)
    norm("output_norm")
    matrix("output", VOCABULARY, WIDTH, scale=OUTPUT_SCALE)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main():
    parser = argparse.ArgumentParser(description="Writes a random model of Llama-3.1-8B's shape with few layers.")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--experts", type=int, default=0, help="experts of each layer (default: none)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--vocab", type=Path, required=True, help="GGUF file whose tokenizer is copied")
    parser.add_argument("output", type=Path)
    args = parser.parse_args()
    if not 1 <= args.layers <= 32:
        parser.error(f"--layers: {args.layers} is out of range [1..32]")
    if args.experts != 0 and not EXPERTS_USED < args.experts <= 128:
        parser.error(f"--experts: {args.experts} is out of range [{EXPERTS_USED + 1}..128]")
    with tempfile.TemporaryDirectory(dir=args.output.parent, prefix=".shape-") as work:
        unfinished = Path(work) / args.output.name
        write_model(unfinished, gguf.GGUFReader(args.vocab), args.layers, args.experts, args.seed)
        os.replace(unfinished, args.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
