#!/usr/bin/env python3
"""Each function of llama.h that reads or changes a context is renamed by harp/drop_in.h, or listed with the reason why not.

A new function in a new llama.cpp would bypass the twins unnoticed; this test then fails.
"""

import re
import sys
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LLAMA_H = Path(sys.argv.pop(1)) if len(sys.argv) > 1 and sys.argv[1].endswith(".h") else ROOT / "build/release/llama.cpp-source/include/llama.h"

PASSES_THROUGH = {
    "the same for clean rows and twins": """llama_attach_threadpool llama_detach_threadpool llama_set_n_threads llama_n_threads
        llama_n_threads_batch llama_set_abort_callback llama_synchronize llama_set_warmup llama_n_ubatch llama_n_rs_seq
        llama_set_adapters_lora llama_set_adapter_cvec llama_perf_context llama_perf_context_print llama_perf_context_reset""",
    "of the model, or a handle": "llama_get_model llama_get_memory llama_pooling_type llama_memory_can_shift llama_batch_ext_init",
    "renamed on demand (HARP_DROP_IN_CONTEXTS)": "llama_init_from_model",
    "of a patch of ours, for ForwardPass": "llama_set_embd_row_callback",
    "embeddings: ForwardPass refuses models and batches of them": """llama_encode llama_set_embeddings llama_set_causal_attn
        llama_get_causal_attn llama_get_embeddings llama_get_embeddings_ith llama_get_embeddings_seq""",
    "samplers in the graph: ForwardPass sets none": """llama_get_sampled_token_ith llama_get_sampled_probs_ith
        llama_get_sampled_probs_count_ith llama_get_sampled_logits_ith llama_get_sampled_logits_count_ith
        llama_get_sampled_candidates_ith llama_get_sampled_candidates_count_ith""",
    "deprecated or for training": """llama_get_state_size llama_copy_state_data llama_set_state_data
        llama_load_session_file llama_save_session_file llama_opt_init llama_opt_epoch""",
}


def functions_on_contexts():
    text = re.sub(r"//[^\n]*|/\*.*?\*/", "", LLAMA_H.read_text(), flags=re.DOTALL)
    functions = re.findall(r"LLAMA_API[^;]*?\b(llama_\w+)\s*\(([^;]*?)\)\s*[;,]", text, flags=re.DOTALL)
    return {name for name, arguments in functions if re.search(r"\bllama_context\s*\*|\bllama_memory_t\b", arguments)}


class DropIn(unittest.TestCase):
    def test_every_function_is_renamed_or_known(self):
        renamed = set(re.findall(r"#define (llama_\w+)", (ROOT / "include/harp/drop_in.h").read_text()))
        known = {name for names in PASSES_THROUGH.values() for name in names.split()}
        there = functions_on_contexts()
        self.assertGreater(len(there), 50)
        self.assertEqual(sorted(there - renamed - known), [], "functions of llama.h that go past HARP")
        self.assertEqual(sorted(known - there - {"llama_init_from_model"}), [], "no longer in llama.h")


if __name__ == "__main__":
    unittest.main()
