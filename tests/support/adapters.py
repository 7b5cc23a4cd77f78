"""LoRA adapters for TINY."""

import gguf
import numpy as np


def write_adapter(path):
    """One that changes its answers."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_string("general.type", "adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 8.0)
    random = np.random.default_rng(1)
    for layer in range(5):
        for name in ["attn_q", "attn_output"]:
            for half, shape in [("a", (4, 64)), ("b", (64, 4))]:
                writer.add_tensor(f"blk.{layer}.{name}.weight.lora_{half}", random.normal(size=shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
