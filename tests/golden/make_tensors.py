#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Writes tensors.safetensors and tensors.gguf with the packages that own these formats.

    make_tensors.py            writes both files next to this script
    make_tensors.py --check    fails if they differ from what it would write

Needs safetensors 0.8, gguf 0.19, ml_dtypes and numpy. A tensor "x" that can be read as floats has a
tensor "x.floats" beside it: what the packages themselves make of it.
"""

import sys
import tempfile
from pathlib import Path

import gguf
import ml_dtypes
import numpy as np
import safetensors.numpy
from gguf.constants import GGMLQuantizationType as Type

FOLDER = Path(__file__).resolve().parent


def numbers(shape):
    """Some numbers of every magnitude, the same on every run."""
    count = int(np.prod(shape))
    index = np.arange(count, dtype=np.float64)
    return (np.sin(index * 1.7) * np.exp2(index % 13 - 6)).astype(np.float32).reshape(shape)


def write_safetensors(path):
    every_byte = np.arange(256, dtype=np.uint8).reshape(16, 16)
    floats = {
        "f32": numbers((2, 3, 4)),
        "f16": numbers((3, 5)).astype(np.float16),
        "bf16": numbers((5, 3)).astype(ml_dtypes.bfloat16),
        "f8_e4m3": every_byte.view(ml_dtypes.float8_e4m3fn),
        "f8_e5m2": every_byte.view(ml_dtypes.float8_e5m2),
        "scalar": np.array(-1.5, dtype=np.float32),
        "nothing": np.zeros((0, 7), dtype=np.float16),
    }
    everything = {"i64": np.array([-1, 2**62], dtype=np.int64), "bool": np.array([True, False])}
    for name, array in floats.items():
        everything[name] = array
        everything[name + ".floats"] = array.astype(np.float32)
    safetensors.numpy.save_file(everything, path, {"made by": "k\u00f6rner \"&\" co"})


def write_gguf(path):
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(2)
    writer.add_embedding_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv([2, 1])
    writer.add_key_length(16)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_float64("test.double", 0.1)
    writer.add_bool("test.yes", True)
    writer.add_int64("test.negative", -(2**40))
    writer.add_uint64("test.huge", 2**63)
    writer.add_array("test.words", ["", "a", "\u00e9t\u00e9"])
    writer.add_array("test.halves", [0.5, -0.25])
    for name, shape, kind in (("f32", (2, 3, 4), Type.F32), ("f16", (3, 5), Type.F16),
                              ("bf16", (5, 3), Type.BF16), ("q8_0", (3, 64), Type.Q8_0)):
        stored = gguf.quants.quantize(numbers(shape), kind)
        writer.add_tensor(name, stored, raw_dtype=kind)
        writer.add_tensor(name + ".floats", gguf.quants.dequantize(stored, kind).astype(np.float32))
    writer.add_tensor("q4_k", np.zeros((2, 144), dtype=np.uint8), raw_dtype=Type.Q4_K)
    writer.add_tensor("i32", np.array([[1, 2, 3]], dtype=np.int32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main():
    for name, write in (("tensors.safetensors", write_safetensors), ("tensors.gguf", write_gguf)):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / name
            write(str(path))
            data = path.read_bytes()
        if sys.argv[1:] == ["--check"]:
            if (FOLDER / name).read_bytes() != data:
                sys.exit(f"{name} is not what this script makes")
        else:
            (FOLDER / name).write_bytes(data)


if __name__ == "__main__":
    main()
