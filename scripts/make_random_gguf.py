#!/usr/bin/env python3
"""Writes a tiny model with random weights (about 1 MB, float32), for tests of architectures without a small real model.

    scripts/make_random_gguf.py --arch mmproj-gemma3|mmproj-qwen2vl [--seed N] OUTPUT.gguf
    scripts/make_random_gguf.py --arch mamba|lfm2|gemma3|qwen2vl|mixture|t5|bert --vocab VOCAB.gguf [--seed N] OUTPUT.gguf

mamba  recurrent: no KV cache, one state per sequence
lfm2   hybrid: short convolutions (recurrent) and attention (KV cache)
gemma3 layers with a sliding window of 16 tokens, every sixth layer without a window; embeddings scaled
qwen2vl positions of three dimensions (M-RoPE)
mixture Llama with six experts, two of them for each token
t5     encoder-decoder, and
bert   no causal language model at all: both must be refused by HARP

mmproj-gemma3, mmproj-qwen2vl
       vision encoders with the projector of that model family, for pictures of a few rows; they can be used with all models above

The tokenizer is copied from VOCAB.gguf. The same seed gives the same bytes. The weights are scaled so that the entropy of
the next token is sometimes below and sometimes above HARP's default threshold. Needs the Python package `gguf`.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

import gguf
import numpy as np

CONTEXT = 512
WIDTH = 64  # n_embd
HIDDEN = 128  # feed-forward width; for mamba the inner width, which must be 2 * WIDTH
HEADS = 4
OUTPUT_SCALE = 1.0  # standard deviation of the output matrix: how peaked the next token's distribution is


class ModelFile:
    """A GGUF file being written: metadata of the architecture, tokenizer, random tensors."""

    def __init__(self, path, arch, vocab, seed):
        is_projector = arch.startswith("mmproj-")
        self.writer = gguf.GGUFWriter(path, "clip" if is_projector else {"mixture": "llama"}.get(arch, arch))
        self.random = np.random.RandomState(seed)  # the legacy generator, whose stream never changes
        self.writer.add_name(f"random {arch}, seed {seed}")
        self.writer.add_file_type(0)  # LLAMA_FTYPE_ALL_F32
        if is_projector:
            return
        self.writer.add_context_length(CONTEXT)
        self.writer.add_embedding_length(WIDTH)
        self.n_vocab = self._copy_tokenizer(gguf.GGUFReader(vocab))
        self.writer.add_vocab_size(self.n_vocab)

    def _copy_tokenizer(self, reader):
        for field in reader.fields.values():
            if field.name.startswith("tokenizer.") and field.name != gguf.Keys.Tokenizer.TOKEN_TYPE_COUNT:  # the architecture writes it
                is_array = field.types[0] == gguf.GGUFValueType.ARRAY
                sub_type = field.types[-1] if is_array else None
                self.writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=sub_type)
        return len(reader.get_field(gguf.Keys.Tokenizer.LIST).data)

    def tensor(self, name, values):
        self.writer.add_tensor(name, np.ascontiguousarray(values, dtype=np.float32))

    def matrix(self, name, *shape, scale=None):
        """Normal entries, by default with variance 1/columns, which keeps the size of vectors multiplied by it."""
        scale = shape[-1] ** -0.5 if scale is None else scale
        self.tensor(f"{name}.weight", self.random.standard_normal(shape) * scale)

    def norm(self, name, width=WIDTH, bias=False):
        self.tensor(f"{name}.weight", 1 + 0.1 * self.random.standard_normal(width))
        if bias:
            self.tensor(f"{name}.bias", 0.1 * self.random.standard_normal(width))

    def bias(self, name, width):
        self.tensor(f"{name}.bias", 0.1 * self.random.standard_normal(width))

    def attention(self, prefix, kv_width=WIDTH):
        self.matrix(f"{prefix}_q", WIDTH, WIDTH)
        self.matrix(f"{prefix}_k", kv_width, WIDTH)
        self.matrix(f"{prefix}_v", kv_width, WIDTH)

    def transformer(self, layers):
        """Metadata of layers with feed-forward and attention, with as many heads of keys and values as of queries."""
        self.writer.add_block_count(layers)
        self.writer.add_feed_forward_length(HIDDEN)
        self.writer.add_head_count(HEADS)
        self.writer.add_head_count_kv(HEADS)
        self.writer.add_layer_norm_rms_eps(1e-6)

    def gated_feed_forward(self, block, experts=None):
        each, suffix = ((), "") if experts is None else ((experts,), "_exps")
        self.matrix(f"{block}.ffn_gate{suffix}", *each, HIDDEN, WIDTH)
        self.matrix(f"{block}.ffn_up{suffix}", *each, HIDDEN, WIDTH)
        self.matrix(f"{block}.ffn_down{suffix}", *each, WIDTH, HIDDEN)

    def embedding(self):
        self.matrix("token_embd", self.n_vocab, WIDTH, scale=1.0)

    def output(self, norm_name, scale=OUTPUT_SCALE):
        self.norm(norm_name)
        self.matrix("output", self.n_vocab, WIDTH, scale=scale)

    def finish(self):
        self.writer.write_header_to_file()
        self.writer.write_kv_data_to_file()
        self.writer.write_tensors_to_file()
        self.writer.close()


def mamba(model):
    layers, d_conv, d_state, dt_rank = 2, 4, 16, 4
    writer = model.writer
    writer.add_block_count(layers)
    writer.add_feed_forward_length(0)  # unused, but required
    writer.add_head_count(0)
    writer.add_ssm_conv_kernel(d_conv)
    writer.add_ssm_inner_size(HIDDEN)
    writer.add_ssm_state_size(d_state)
    writer.add_ssm_time_step_rank(dt_rank)
    writer.add_layer_norm_rms_eps(1e-5)
    model.embedding()
    model.output("output_norm")
    for i in range(layers):
        block = f"blk.{i}"
        model.norm(f"{block}.attn_norm")
        model.matrix(f"{block}.ssm_in", 2 * HIDDEN, WIDTH)
        model.matrix(f"{block}.ssm_conv1d", HIDDEN, d_conv)
        model.tensor(f"{block}.ssm_conv1d.bias", 0.1 * model.random.standard_normal(HIDDEN))
        model.matrix(f"{block}.ssm_x", dt_rank + 2 * d_state, HIDDEN)
        model.matrix(f"{block}.ssm_dt", HIDDEN, dt_rank)
        # like Mamba's initialisation: time steps log-uniform in 0.001..0.1 (through softplus), A = -1..-d_state, D = 1
        steps = np.exp(model.random.uniform(np.log(1e-3), np.log(1e-1), HIDDEN))
        model.tensor(f"{block}.ssm_dt.bias", np.log(np.expm1(steps)))
        model.tensor(f"{block}.ssm_a", -np.tile(np.arange(1.0, d_state + 1), (HIDDEN, 1)))
        model.tensor(f"{block}.ssm_d", np.ones(HIDDEN))
        model.matrix(f"{block}.ssm_out", WIDTH, HIDDEN)


def lfm2(model):
    kv_heads = [0, 2, 0]  # 0 = a convolution layer
    head_width = WIDTH // HEADS
    writer = model.writer
    writer.add_block_count(len(kv_heads))
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_shortconv_l_cache(3)
    model.embedding()
    model.output("token_embd_norm")  # llama.cpp's name for this architecture's output norm
    for i, n_kv in enumerate(kv_heads):
        block = f"blk.{i}"
        model.norm(f"{block}.attn_norm")
        if n_kv:
            model.norm(f"{block}.attn_q_norm", head_width)
            model.norm(f"{block}.attn_k_norm", head_width)
            model.attention(f"{block}.attn", n_kv * head_width)
            model.matrix(f"{block}.attn_output", WIDTH, WIDTH)
        else:
            model.matrix(f"{block}.shortconv.conv", WIDTH, 3)
            model.matrix(f"{block}.shortconv.in_proj", 3 * WIDTH, WIDTH)
            model.matrix(f"{block}.shortconv.out_proj", WIDTH, WIDTH)
        model.norm(f"{block}.ffn_norm")
        model.gated_feed_forward(block)


def gemma3(model):
    layers, window = 6, 16
    writer = model.writer
    model.transformer(layers)
    writer.add_rope_freq_base(1000000.0)
    writer.add_sliding_window(window)
    model.embedding()
    model.output("output_norm", scale=0.6)
    for i in range(layers):
        block = f"blk.{i}"
        model.norm(f"{block}.attn_norm")
        model.norm(f"{block}.attn_q_norm", WIDTH // HEADS)
        model.norm(f"{block}.attn_k_norm", WIDTH // HEADS)
        model.attention(f"{block}.attn")
        model.matrix(f"{block}.attn_output", WIDTH, WIDTH)
        model.norm(f"{block}.post_attention_norm")
        model.norm(f"{block}.ffn_norm")
        model.gated_feed_forward(block)
        model.norm(f"{block}.post_ffw_norm")


def qwen2vl(model):
    layers = 2
    writer = model.writer
    model.transformer(layers)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_sections([2, 3, 3, 0])  # time, height, width; together half of a head's width
    model.embedding()
    model.output("output_norm")
    for i in range(layers):
        block = f"blk.{i}"
        model.norm(f"{block}.attn_norm")
        model.attention(f"{block}.attn")
        for part in "qkv":
            model.bias(f"{block}.attn_{part}", WIDTH)
        model.matrix(f"{block}.attn_output", WIDTH, WIDTH)
        model.norm(f"{block}.ffn_norm")
        model.gated_feed_forward(block)


VISION_WIDTH = 32


def vision_encoder(model, projector, image_size, patch_size):
    """One layer of a vision transformer."""
    writer, width = model.writer, VISION_WIDTH
    writer.add_bool("clip.has_vision_encoder", True)
    writer.add_string("clip.projector_type", projector)
    writer.add_bool("clip.use_gelu", True)
    for key, value in {
        "image_size": image_size,
        "patch_size": patch_size,
        "embedding_length": width,
        "feed_forward_length": 2 * width,
        "projection_dim": WIDTH,
        "block_count": 1,
        "attention.head_count": 2,
    }.items():
        writer.add_uint32(f"clip.vision.{key}", value)
    writer.add_float32("clip.vision.attention.layer_norm_epsilon", 1e-6)
    writer.add_array("clip.vision.image_mean", [0.5, 0.5, 0.5])
    writer.add_array("clip.vision.image_std", [0.5, 0.5, 0.5])
    for part in ("q", "k", "v", "out"):
        model.matrix(f"v.blk.0.attn_{part}", width, width)
        model.bias(f"v.blk.0.attn_{part}", width)
    for norm in ("v.blk.0.ln1", "v.blk.0.ln2", "v.post_ln"):
        model.norm(norm, width, bias=True)
    model.matrix("v.blk.0.ffn_up", 2 * width, width)
    model.bias("v.blk.0.ffn_up", 2 * width)
    model.matrix("v.blk.0.ffn_down", width, 2 * width)
    model.bias("v.blk.0.ffn_down", width)


def patches(model, name, patch_size):
    scale = (3 * patch_size * patch_size) ** -0.5
    model.tensor(name, scale * model.random.standard_normal((VISION_WIDTH, 3, patch_size, patch_size)))


def mmproj_gemma3(model):
    image_size, patch_size, merged = 32, 4, 2  # 8 x 8 patches, 4 x 4 rows
    vision_encoder(model, "gemma3", image_size, patch_size)
    model.writer.add_uint32("clip.vision.projector.scale_factor", merged)
    patches(model, "v.patch_embd.weight", patch_size)
    model.bias("v.patch_embd", VISION_WIDTH)
    model.matrix("v.position_embd", (image_size // patch_size) ** 2, VISION_WIDTH)
    model.norm("mm.soft_emb_norm", VISION_WIDTH)
    model.matrix("mm.input_projection", VISION_WIDTH, WIDTH, scale=VISION_WIDTH**-0.5)


def mmproj_qwen2vl(model):
    patch_size = 8  # 2 x 2 patches are merged, so a row is 16 x 16 pixels
    vision_encoder(model, "qwen2vl_merger", 64, patch_size)
    patches(model, "v.patch_embd.weight", patch_size)
    patches(model, "v.patch_embd.weight.1", patch_size)
    model.matrix("mm.0", 4 * VISION_WIDTH, 4 * VISION_WIDTH)
    model.bias("mm.0", 4 * VISION_WIDTH)
    model.matrix("mm.2", WIDTH, 4 * VISION_WIDTH)
    model.bias("mm.2", WIDTH)


def mixture(model):
    layers, experts, used = 2, 6, 2
    writer = model.writer
    model.transformer(layers)
    writer.add_expert_count(experts)
    writer.add_expert_used_count(used)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    model.embedding()
    model.output("output_norm")
    for i in range(layers):
        block = f"blk.{i}"
        model.norm(f"{block}.attn_norm")
        model.attention(f"{block}.attn")
        model.matrix(f"{block}.attn_output", WIDTH, WIDTH)
        model.norm(f"{block}.ffn_norm")
        model.matrix(f"{block}.ffn_gate_inp", experts, WIDTH)
        model.gated_feed_forward(block, experts)


def t5(model):
    buckets = 32
    writer = model.writer
    writer.add_block_count(1)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_relative_attn_buckets_count(buckets)
    writer.add_decoder_start_token_id(0)
    model.embedding()
    model.norm("enc.output_norm")
    model.output("dec.output_norm")
    for block, attentions in (("enc.blk.0", ("attn",)), ("dec.blk.0", ("attn", "cross_attn"))):
        for attention in attentions:
            model.norm(f"{block}.{attention}_norm")
            model.attention(f"{block}.{attention}")
            model.matrix(f"{block}.{attention}_o", WIDTH, WIDTH)
        model.matrix(f"{block}.attn_rel_b", buckets, HEADS)
        model.norm(f"{block}.ffn_norm")
        model.matrix(f"{block}.ffn_up", HIDDEN, WIDTH)
        model.matrix(f"{block}.ffn_down", WIDTH, HIDDEN)


def bert(model):
    writer = model.writer
    writer.add_block_count(1)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_layer_norm_eps(1e-12)
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType.MEAN)
    writer.add_token_type_count(1)
    model.embedding()
    model.matrix("position_embd", CONTEXT, WIDTH)
    model.norm("token_embd_norm", bias=True)
    model.attention("blk.0.attn")
    model.matrix("blk.0.attn_output", WIDTH, WIDTH)
    model.norm("blk.0.attn_output_norm", bias=True)
    model.matrix("blk.0.ffn_up", HIDDEN, WIDTH)
    model.matrix("blk.0.ffn_down", WIDTH, HIDDEN)
    model.norm("blk.0.layer_output_norm", bias=True)


ARCHITECTURES = {"mamba": mamba, "lfm2": lfm2, "gemma3": gemma3, "qwen2vl": qwen2vl, "mixture": mixture, "t5": t5,
                 "bert": bert, "mmproj-gemma3": mmproj_gemma3, "mmproj-qwen2vl": mmproj_qwen2vl}


def main():
    parser = argparse.ArgumentParser(description="Writes a tiny GGUF model of random weights.")
    parser.add_argument("--arch", choices=ARCHITECTURES, required=True)
    parser.add_argument("--vocab", type=Path, help="GGUF file whose tokenizer is copied; not for a projector")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("output", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.output.parent, prefix=".random-") as work:
        unfinished = Path(work) / args.output.name
        model = ModelFile(unfinished, args.arch, args.vocab, args.seed)
        ARCHITECTURES[args.arch](model)
        model.finish()
        os.replace(unfinished, args.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
