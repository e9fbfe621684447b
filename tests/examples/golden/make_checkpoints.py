#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Writes the tiny random checkpoints of this folder and the logits they must give.

The logits come from Hugging Face transformers, in float64, on the weights as stored (rounded to the
file's dtype). Run with torch, transformers 5, safetensors and numpy installed:

    python3 make_checkpoints.py

The files are committed: the tests need no Python. Per checkpoint: config.json in the spelling of the
wild, weights, and golden.json with token ids and logits [tokens][vocab].
"""

import copy
import json
import pathlib

import torch
import transformers
from safetensors.torch import save_file

HERE = pathlib.Path(__file__).parent
VOCAB = 48
TOKENS = 48

SHAPE = dict(
    hidden_size=32,
    intermediate_size=40,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=VOCAB,
    max_position_embeddings=64,
    rms_norm_eps=1e-5,
    hidden_act="silu",
)

# name: (model class, architecture, configuration, dtype, shards)
CASES = {
    "llama_f32": ("Llama", dict(SHAPE, rope_theta=10000.0, tie_word_embeddings=False), "float32", 1),
    "llama_linear_rope": (
        "Llama",
        dict(SHAPE, num_hidden_layers=1, rope_theta=10000.0, tie_word_embeddings=True,
             rope_scaling={"type": "linear", "factor": 2.5}),
        "float32", 1),
    # With 24 original positions the frequencies 1, 0.18, 0.03 and 0.006 fall on both sides of the
    # ramp and on it.
    "llama3_rope": (
        "Llama",
        dict(SHAPE, num_hidden_layers=1, rope_theta=1000.0, tie_word_embeddings=True,
             rope_scaling={"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 0.25,
                           "high_freq_factor": 2.0, "original_max_position_embeddings": 24}),
        "float32", 1),
    "mistral_window_bf16": (
        "Mistral",
        dict(SHAPE, rope_theta=10000.0, sliding_window=7, tie_word_embeddings=False),
        "bfloat16", 1),
    "qwen2_f16": (
        "Qwen2",
        dict(SHAPE, rope_theta=1000000.0, use_sliding_window=False, sliding_window=16,
             max_window_layers=1, tie_word_embeddings=True),
        "float16", 1),
    "qwen2_mixed_windows": (
        "Qwen2",
        dict(SHAPE, rope_theta=1000000.0, use_sliding_window=True, sliding_window=5,
             max_window_layers=1, tie_word_embeddings=True),
        "float16", 1),
    "qwen3_sharded": (
        "Qwen3",
        # Heads wider than hidden_size / heads, and the spelling of transformers 5.
        dict(SHAPE, head_dim=16, tie_word_embeddings=False,
             rope_parameters={"rope_type": "default", "rope_theta": 1000000.0}),
        "bfloat16", 3),
}


def build(family, config, dtype):
    """A model with random weights of a dtype, held in float64, large enough for all to matter."""
    model_class = getattr(transformers, f"{family}ForCausalLM")
    configuration = getattr(transformers, f"{family}Config")(**copy.deepcopy(config))
    configuration._attn_implementation = "eager"
    model = model_class(configuration).eval()
    generator = torch.Generator().manual_seed(20240229)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith("norm.weight"):
                noise = 1 + 0.2 * noise
            elif name.endswith("bias"):
                noise = 0.5 * noise
            else:
                noise = noise * 1.3 / parameter.shape[-1] ** 0.5
            parameter.copy_(noise.to(dtype))
    # Parameters are rounded above; model.to(dtype) would round the rotary frequencies as well.
    return model.double()


def write_weights(folder, tensors, shards):
    names = sorted(tensors)
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return
    weight_map = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        part = {name: tensors[name] for name in names[shard::shards]}
        save_file(part, folder / file, metadata={"format": "pt"})
        weight_map.update({name: file for name in part})
    size = sum(t.numel() * t.element_size() for t in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")


def main():
    tokens = torch.randint(VOCAB, (1, TOKENS), generator=torch.Generator().manual_seed(7))
    for name, (family, config, dtype, shards) in CASES.items():
        folder = HERE / name
        folder.mkdir(exist_ok=True)
        stored = getattr(torch, dtype)
        model = build(family, config, stored)
        tensors = {key: value.to(stored).contiguous() for key, value in model.state_dict().items()
                   if not (config["tie_word_embeddings"] and key == "lm_head.weight")}
        write_weights(folder, tensors, shards)
        written = dict(architectures=[f"{family}ForCausalLM"], model_type=family.lower(), **config,
                       torch_dtype=dtype, bos_token_id=1, eos_token_id=2)
        (folder / "config.json").write_text(json.dumps(written, indent=1) + "\n")
        with torch.no_grad():
            logits = model(tokens, use_cache=False).logits[0]
        golden = {"tokens": tokens[0].tolist(),
                  "logits": [[float(f"{x:.6g}") for x in row] for row in logits.tolist()]}
        (folder / "golden.json").write_text(json.dumps(golden, separators=(",", ":")) + "\n")
        print(f"{name}: largest logit {logits.abs().max():.2f}")


if __name__ == "__main__":
    main()
