#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Writes a checkpoint of the shape of a 7B model (Llama 2: 32 layers of 32 heads of 128 channels,
4096 hidden) in bf16, to time `plan` on. Keys' and values' projections hold random numbers; everything
else is a hole in a sparse file, 13.5 GB long of which 2.1 GB are on disk.

    make_large_checkpoint.py FOLDER
    command time -v build/examples/examples/llama/plan --model FOLDER --budget 3.25
"""
import array
import json
import os
import random
import struct
import sys

LAYERS, HIDDEN, MLP, VOCAB = 32, 4096, 11008, 32000
BLOCK = 1048573  # a prime: repeated blocks start at another column in every row


def bf16_block(seed):
    generator = random.Random(seed)
    numbers = array.array("f", (generator.gauss(0, 0.02) for _ in range(BLOCK)))
    return array.array("H", array.array("H", numbers.tobytes())[1::2])


def tensors():
    yield "model.embed_tokens.weight", (VOCAB, HIDDEN)
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        for name in "qkvo":
            yield f"{prefix}self_attn.{name}_proj.weight", (HIDDEN, HIDDEN)
        yield f"{prefix}mlp.gate_proj.weight", (MLP, HIDDEN)
        yield f"{prefix}mlp.up_proj.weight", (MLP, HIDDEN)
        yield f"{prefix}mlp.down_proj.weight", (HIDDEN, MLP)
        yield f"{prefix}input_layernorm.weight", (HIDDEN,)
        yield f"{prefix}post_attention_layernorm.weight", (HIDDEN,)
    yield "model.norm.weight", (HIDDEN,)
    yield "lm_head.weight", (VOCAB, HIDDEN)


def size(shape):
    count = 2
    for extent in shape:
        count *= extent
    return count


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    folder = sys.argv[1]
    os.makedirs(folder, exist_ok=True)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 32,
        "hidden_size": HIDDEN,
        "intermediate_size": MLP,
        "vocab_size": VOCAB,
    }
    with open(os.path.join(folder, "config.json"), "w", encoding="utf-8") as file:
        json.dump(config, file)
    header, offset = {}, 0
    for name, shape in tensors():
        end = offset + size(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    block = bf16_block(1).tobytes()
    with open(os.path.join(folder, "model.safetensors"), "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        start = file.tell()
        for name, entry in header.items():
            if ".k_proj." not in name and ".v_proj." not in name:
                continue
            begin, end = entry["data_offsets"]
            file.seek(start + begin)
            turn = 2 * (hash_of(name) % BLOCK)
            turned = block[turn:] + block[:turn]
            whole, rest = divmod(end - begin, len(turned))
            for _ in range(whole):
                file.write(turned)
            file.write(turned[:rest])
        file.truncate(start + offset)


def hash_of(name):
    return sum(ord(c) * 7919**i for i, c in enumerate(name))


if __name__ == "__main__":
    main()
