# SPDX-License-Identifier: MIT
"""Writes a model of examples/data whose tokens are bytes as GGUF:
convert.py <model folder> <out.gguf> [--hadamard-values]"""

import argparse
import json
import pathlib

import gguf
import numpy as np


def tensors(path):
    """All tensors of a safetensors file of bf16 numbers, as float32."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8:8 + size])
    header.pop("__metadata__", None)
    for name, entry in header.items():
        begin, end = (8 + size + offset for offset in entry["data_offsets"])
        halves = np.frombuffer(data[begin:end], np.uint16).astype(np.uint32)
        yield name, (halves << 16).view(np.float32).reshape(entry["shape"])


def hadamard(dim):
    matrix = np.ones((1, 1))
    while len(matrix) < dim:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix / np.sqrt(dim)


def interleaved(weights, heads):
    """Rows in the order of llama.cpp, whose RoPE pairs neighbours, not channels i and i + dim / 2."""
    halves = weights.reshape(heads, 2, -1, weights.shape[1])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(weights.shape)


def byte_names():
    """GPT-2's printable name of each byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("out")
    parser.add_argument("--hadamard-values", action="store_true")
    arguments = parser.parse_args()
    config = json.loads((arguments.model / "config.json").read_text())
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    dim = config["head_dim"]
    out = gguf.GGUFWriter(arguments.out, "llama")
    out.add_context_length(config["max_position_embeddings"])
    out.add_embedding_length(config["hidden_size"])
    out.add_block_count(config["num_hidden_layers"])
    out.add_feed_forward_length(config["intermediate_size"])
    out.add_head_count(heads)
    out.add_head_count_kv(kv_heads)
    out.add_key_length(dim)
    out.add_value_length(dim)
    out.add_rope_dimension_count(dim)
    out.add_rope_freq_base(config["rope_theta"])
    out.add_layer_norm_rms_eps(config["rms_norm_eps"])
    names = byte_names()
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre("default")
    out.add_token_list(names)
    out.add_token_types([gguf.TokenType.NORMAL] * len(names))
    out.add_token_merges([f"{names[0]} {names[0]}"])  # of bytes that no text has: one is required
    out.add_bos_token_id(0)
    out.add_eos_token_id(0)
    out.add_add_bos_token(False)
    own_names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    for name, weights in tensors(arguments.model / "model.safetensors"):
        if name.endswith("q_proj.weight"):
            weights = interleaved(weights, heads)
        elif name.endswith("k_proj.weight"):
            weights = interleaved(weights, kv_heads)
        elif arguments.hadamard_values and name.endswith("v_proj.weight"):
            weights = (hadamard(dim) @ weights.reshape(kv_heads, dim, -1)).reshape(weights.shape)
        elif arguments.hadamard_values and name.endswith("o_proj.weight"):
            weights = (weights.reshape(-1, heads, dim) @ hadamard(dim)).reshape(weights.shape)
        out.add_tensor(own_names.get_name(name, (".weight",)), weights.astype(np.float32))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


if __name__ == "__main__":
    main()
