#!/usr/bin/env python3
"""Records what Hugging Face's beam search returns on stories260K in float32, as reference data for our beam search.

    python scripts/record_hf_beams.py MODEL.gguf GOLDEN_FOLDER OUT.json

MODEL.gguf     stories260K as a float32 GGUF
GOLDEN_FOLDER  recorded greedy runs stories260K.{once,lily,dog}.vanilla.json: they give the prompts. The model loaded here
               must reproduce them (every id; the eight largest logits of every step) before anything is recorded
OUT.json       {"versions", "model", "runs": [{"prompt", "prompt_ids", "settings", "hypotheses"}]}; a hypothesis is
               {"ids", "score"}: the generated ids, with the eos id if it ended with one and no padding, and the value it
               was ranked by; in the order returned, best first

The recorded file was made with Python 3.11.7, torch 2.5.1, transformers 4.57.6, gguf 0.19.0, numpy 2.4.6:

    pip install torch==2.5.1 transformers==4.57.6 gguf==0.19.0 numpy==2.4.6

Versions differ: up to 4.47 the stopping rule used the best candidate of a step even if it had just ended; later ones use the best
beam that continues, as we do.
"""

import argparse
import itertools
import json
import platform
from importlib.metadata import version
from pathlib import Path

import gguf
import torch
from transformers import LlamaConfig, LlamaForCausalLM

GOLDEN_NAMES = ("once", "lily", "dog")
LOGIT_TOLERANCE = 1e-4
PAD = 0
FULL_STOP = 426  # the token "."; used as eos id so that beams finish
END_OF_TEXT = 2  # the model's real eos id, which does not occur in these runs

BLOCK_PARTS = {  # of a layer: GGUF name, transformers name
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def load_config(reader):
    def value(key):
        return reader.get_field(f"llama.{key}").contents()

    return LlamaConfig(
        vocab_size=value("vocab_size"),
        hidden_size=value("embedding_length"),
        intermediate_size=value("feed_forward_length"),
        num_hidden_layers=value("block_count"),
        num_attention_heads=value("attention.head_count"),
        num_key_value_heads=value("attention.head_count_kv"),
        max_position_embeddings=value("context_length"),
        rms_norm_eps=value("attention.layer_norm_rms_epsilon"),
        rope_theta=value("rope.freq_base"),
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=END_OF_TEXT,
        pad_token_id=None,
        attn_implementation="sdpa",
    )


def halves_from_pairs(weights, n_head):
    """Rows of Q or K in transformers' order.

    RoPE rotates pairs of rows of a head: neighbouring rows in a GGUF, rows i and i + size / 2 in transformers.
    """
    rows, columns = weights.shape
    return weights.reshape(n_head, rows // n_head // 2, 2, columns).transpose(1, 2).reshape(rows, columns)


def load_model(path):
    """The GGUF's weights, bit for bit, in a float32 LlamaForCausalLM (output matrix = token embeddings)."""
    reader = gguf.GGUFReader(path)
    config = load_config(reader)
    names = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}
    for layer, (part, target) in itertools.product(range(config.num_hidden_layers), BLOCK_PARTS.items()):
        names[f"blk.{layer}.{part}"] = f"model.layers.{layer}.{target}"

    weights = {}
    for tensor in reader.tensors:
        assert tensor.tensor_type == gguf.GGMLQuantizationType.F32, f"{tensor.name} is not float32"
        name = tensor.name.removesuffix(".weight")
        values = torch.from_numpy(tensor.data.copy())
        if name.endswith("attn_q"):
            values = halves_from_pairs(values, config.num_attention_heads)
        elif name.endswith("attn_k"):
            values = halves_from_pairs(values, config.num_key_value_heads)
        weights[f"{names[name]}.weight"] = values
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]

    model = LlamaForCausalLM(config).eval()
    model.load_state_dict(weights, strict=True)
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    return model


def generate(model, prompt_ids, **settings):
    """The output of `model.generate` without sampling, for one prompt of token ids."""
    input_ids = torch.tensor([prompt_ids])
    return model.generate(
        input_ids,
        attention_mask=torch.ones_like(input_ids),
        do_sample=False,
        pad_token_id=PAD,
        return_dict_in_generate=True,
        **settings,
    )


def check_greedy(model, golden):
    """Asserts that greedy decoding gives the ids of the golden run and, within the tolerance, its largest logits.

    Returns the largest difference of a logit.
    """
    output = generate(
        model,
        golden["prompt_ids"],
        num_beams=1,
        max_new_tokens=len(golden["generated_ids"]),
        eos_token_id=END_OF_TEXT,
        output_logits=True,
    )
    ids = output.sequences[0, len(golden["prompt_ids"]) :].tolist()
    assert ids == golden["generated_ids"], f"{golden['prompt']}: greedy ids differ: {ids}"

    largest = 0.0
    for step, logits in zip(golden["steps"], output.logits, strict=True):
        values, top_ids = logits[0].topk(8)
        golden_ids = [token for token, _ in step["vanilla_top8"]]
        golden_values = torch.tensor([value for _, value in step["vanilla_top8"]])
        assert top_ids.tolist() == golden_ids, f"{golden['prompt']}, step {step['step']}: other top 8 tokens"
        largest = max(largest, (values - golden_values).abs().max().item())
    assert largest <= LOGIT_TOLERANCE, f"{golden['prompt']}: logits differ by {largest}"
    return largest


def without_padding(ids, eos):
    """The ids up to and including the first eos; all of them if there is none."""
    if eos not in ids:
        return ids
    end = ids.index(eos) + 1
    assert all(token in (PAD, eos) for token in ids[end:])  # some versions pad with the eos id
    return ids[:end]


def record(model, golden, settings):
    """One run: its settings and all hypotheses that it returns."""
    prompt_ids = golden["prompt_ids"]
    output = generate(
        model, prompt_ids, num_return_sequences=settings["num_beams"], output_scores=True, **settings
    )
    hypotheses = [
        {
            "ids": without_padding(ids[len(prompt_ids) :], settings["eos_token_id"]),
            "score": float(f"{score:.9g}"),
        }
        for ids, score in zip(output.sequences.tolist(), output.sequences_scores.tolist(), strict=True)
    ]
    return {"prompt": golden["prompt"], "prompt_ids": prompt_ids, "settings": settings, "hypotheses": hypotheses}


def all_settings():
    """The settings for every prompt: first those where beams finish, then those where none does."""
    for num_beams, length_penalty, early_stopping in itertools.product((2, 3, 5), (0.0, 1.0, 2.0), (True, False, "never")):
        yield {
            "num_beams": num_beams,
            "length_penalty": length_penalty,
            "early_stopping": early_stopping,
            "max_new_tokens": 32,
            "eos_token_id": FULL_STOP,
        }
    yield {
        "num_beams": 3,
        "length_penalty": 1.0,
        "early_stopping": False,
        "max_new_tokens": 24,
        "eos_token_id": END_OF_TEXT,
    }


def write(path, model_name, runs):
    """Writes compact JSON, one run per line."""

    def compact(value):
        return json.dumps(value, separators=(",", ":"))

    packages = ("torch", "transformers", "gguf", "numpy")
    versions = {"python": platform.python_version(), **{name: version(name) for name in packages}}
    lines = ",\n".join(compact(run) for run in runs)
    head = f'{{"versions":{compact(versions)},\n"model":{compact(model_name)},\n"runs":[\n'
    path.write_text(f"{head}{lines}\n]}}\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, metavar="MODEL.gguf")
    parser.add_argument("golden", type=Path, metavar="GOLDEN_FOLDER")
    parser.add_argument("output", type=Path, metavar="OUT.json")
    arguments = parser.parse_args()

    torch.set_num_threads(1)  # for a fixed order of summation
    model = load_model(arguments.model)
    goldens = [
        json.loads((arguments.golden / f"stories260K.{name}.vanilla.json").read_text()) for name in GOLDEN_NAMES
    ]
    for golden in goldens:
        difference = check_greedy(model, golden)
        print(f"{golden['prompt']!r}: greedy ids agree, logits differ by at most {difference:.1e}")

    runs = [record(model, golden, settings) for golden in goldens for settings in all_settings()]
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    write(arguments.output, arguments.model.name, runs)
    print(f"{len(runs)} runs, {arguments.output.stat().st_size} bytes")


if __name__ == "__main__":
    main()
