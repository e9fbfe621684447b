#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Writes saved.bin, a saved sequence, from the description in page/saved_sequence.hpp and page/layout.hpp
alone: two layers in 16 bits, 1 kv head, key_dim 8, value_dim 16, the second with a window of 40; pages of
32 tokens, 2 sinks, 20 recent ones; 70 tokens, then truncated to 60, which cuts no page. Element (token t,
channel c) of the keys of layer l is fp16 of (100 l + t + c / 64), of the values of minus that. The model's
fingerprint is 0x0123456789abcdef.

    python3 make_saved.py > saved.bin
"""
import struct
import sys

LAYERS, KEY_DIM, VALUE_DIM, PAGE, SINKS, RECENT, LENGTH = 2, 8, 16, 32, 2, 20, 60


def element(layer, token, channel, sign):
    return sign * (100 * layer + token + channel / 64)


def block(layer, slots, positions):
    """A 16-bit block: keys [block of 16 tokens][channel][16 tokens], values [channels][token][16]."""
    out = bytearray()
    at = dict(enumerate(positions))
    for first in range(0, slots, 16):
        for channel in range(KEY_DIM):
            for slot in range(first, first + 16):
                out += struct.pack("<e", element(layer, at[slot], channel, 1) if slot in at else 0)
    for slot in range(slots):
        for channel in range(VALUE_DIM):
            out += struct.pack("<e", element(layer, at[slot], channel, -1) if slot in at else 0)
    assert len(out) % 64 == 0
    return bytes(out)


def pad(data, multiple=64):
    return data + bytes(-len(data) % multiple)


# 70 tokens seal positions 2 to 33: 34 + 20 + 32 are not reached again.
tail_start = SINKS + PAGE
layers = b""
parts = b""
for layer in range(LAYERS):
    offset = 64 + 64 * LAYERS + len(parts)
    window = 40 if layer == 1 else 0
    layers += struct.pack("<6i2qQ16x", 1, KEY_DIM, VALUE_DIM, window, 0, 1, tail_start, 0, offset)
    tensor = struct.pack("<4Bi", 16, 1, 0, 0, 0)
    part = tensor + tensor + struct.pack("<q2i", SINKS, PAGE, 0)
    part = pad(part)
    part += block(layer, 16, range(SINKS))
    part += block(layer, PAGE, range(SINKS, tail_start))
    part += block(layer, PAGE, range(tail_start, LENGTH))
    parts += part
total = 64 + len(layers) + len(parts)


def header(checksum):
    return struct.pack("<8sIi2Qq3i4xQ", b"kvtiltsq", 1, LAYERS, total, checksum, LENGTH, PAGE, SINKS, RECENT,
                       0x0123456789abcdef)


def word_sum(word, index):
    low = (word + index * 0x9E3779B1) % 2**32
    high = ((word >> 32) + index * 0x85EBCA77) % 2**32
    return low * high + ((3 * low + high) << 32)


image = header(0) + layers + parts
words = struct.unpack(f"<{len(image) // 8}Q", image)
checksum = sum(word_sum(w, i) for i, w in enumerate(words) if i != 3) % 2**64
sys.stdout.buffer.write(header(checksum) + layers + parts)
