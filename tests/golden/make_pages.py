#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Writes pages.txt and pages.bin: head blocks as the page format demands them, byte for byte.

Written from the description of the format (the arithmetic of quant/affine.hpp, min_mse.hpp and
centroids.hpp, the drawings of page/bit_pack.hpp and layout.hpp), not from the code: fractions and
integers, no floating point, standard library only.

    make_pages.py            writes both files next to this script
    make_pages.py --check    fails if they differ from what it would write

pages.txt has one line per block: recipe, key dimension, value dimension, tokens, range rule ("-":
the width's own), seed of the input, bytes. pages.bin holds the blocks one after the other.
"""

import re
import sys
from fractions import Fraction
from pathlib import Path

MASK = 2**64 - 1

# Recipe, key dimension, value dimension, tokens, rule.
CASES = [
    # Presets.
    ("k16v16", 64, 64, 32, "-"),
    ("k8v8", 64, 64, 32, "-"),
    ("k8v4", 64, 64, 32, "-"),
    ("k6v4", 64, 64, 32, "-"),
    ("k4v4", 64, 64, 32, "-"),
    ("k4v2", 64, 64, 32, "-"),
    ("k3v2", 64, 64, 32, "-"),
    ("k2v2", 64, 64, 32, "-"),
    ("k4v8", 64, 64, 32, "-"),
    ("k2v4", 64, 64, 32, "-"),
    ("kivi2", 64, 64, 32, "-"),
    ("kivi4", 64, 64, 32, "-"),
    ("k4v2", 128, 128, 64, "-"),
    ("k8v4", 128, 128, 32, "-"),
    ("k2v2", 128, 128, 128, "-"),
    ("kivi2", 128, 128, 64, "-"),
    # Every width, dimensions that are odd multiples of 8, both granularities, short last groups.
    ("k1v1", 72, 72, 64, "-"),
    ("k2v3", 72, 72, 32, "-"),
    ("k3v5", 72, 80, 32, "-"),
    ("k5v6", 80, 72, 32, "-"),
    ("k7v7", 72, 72, 32, "-"),
    ("k8v16", 72, 72, 32, "-"),
    ("k16v1", 72, 72, 32, "-"),
    ("k1tv1c", 72, 72, 64, "-"),
    ("k2tv3c", 72, 80, 32, "-"),
    ("k3tv2c", 80, 72, 32, "-"),
    ("k4tv5c", 72, 72, 32, "-"),
    ("k5tv4c", 128, 64, 32, "-"),
    ("k6tv7c", 72, 72, 32, "-"),
    ("k7tv6c", 64, 128, 32, "-"),
    ("k8tv8c", 80, 80, 32, "-"),
    ("k4tv4:g64,64", 72, 72, 64, "-"),
    ("k3v3:g32,32", 80, 80, 128, "-"),
    ("k1v1c:g64,32", 128, 128, 64, "-"),
    ("k5tv5c:g32,128", 72, 72, 128, "-"),
    ("k6v6:g64,64", 128, 128, 64, "-"),
    ("k2v1:g16,16", 8, 24, 32, "-"),
    ("k7tv3:g48,16", 136, 200, 32, "-"),
    # MinMax where it is not the default.
    ("k2v2", 64, 72, 64, "min-max"),
    ("k3v3", 72, 64, 32, "min-max"),
    ("k4tv4c", 72, 72, 32, "min-max"),
    ("k5v5", 64, 64, 32, "min-max"),
]

# --- Numbers. fp16 is a bit pattern; its value is an integer multiple of 2^-24, "units". ---


def make_table():
    """Units of the non-negative finite fp16 numbers: a spacing that doubles every 1024."""
    values = list(range(2048))
    spacing = 2
    while len(values) < 31 * 1024:
        first = values[-1] - spacing // 2 + spacing
        values += [first + i * spacing for i in range(1024)]
        spacing *= 2
    return values


TABLE = make_table()


def units(bits):
    return -TABLE[bits & 0x7FFF] if bits & 0x8000 else TABLE[bits]


def nearest_half(x):
    """fp16 nearest to x units, ties to even, zero always positive."""
    magnitude = abs(x)
    low, high = 0, len(TABLE) - 1
    while high - low > 1:
        middle = (low + high) // 2
        if TABLE[middle] <= magnitude:
            low = middle
        else:
            high = middle
    down, up = magnitude - TABLE[low], TABLE[high] - magnitude
    bits = low if down < up or (down == up and low % 2 == 0) else high
    return bits | 0x8000 if x < 0 and bits else bits


def rounded_quotient(numerator, denominator):
    """Nearest integer, ties to even."""
    whole, rest = divmod(numerator, denominator)
    return whole + (1 if 2 * rest > denominator or (2 * rest == denominator and whole % 2) else 0)


def half_even(x):
    """The same for a fraction."""
    return rounded_quotient(x.numerator, x.denominator)


def float32(x):
    """x rounded as a float32 operation rounds it."""
    if x <= 0:
        return -float32(-x) if x else Fraction(0)
    numerator, denominator = x.numerator, x.denominator
    exponent = numerator.bit_length() - denominator.bit_length() - 24
    numerator <<= max(-exponent, 0)
    denominator <<= max(exponent, 0)
    while numerator >= denominator << 24:
        denominator <<= 1
        exponent += 1
    while numerator < denominator << 23:
        numerator <<= 1
        exponent -= 1
    return rounded_quotient(numerator, denominator) * Fraction(2) ** exponent


# --- Quantizers. All values in units. ---


def min_max(values, n):
    z, span = min(values), float32(max(values) - min(values))
    low, high = 0, len(TABLE) - 1
    while low < high:  # smallest s with s*n >= span
        middle = (low + high) // 2
        if TABLE[middle] * n >= span:
            high = middle
        else:
            low = middle + 1
    return low, nearest_half(Fraction(z))


def one_bit(values):
    total, count = sum(values), len(values)
    lower = [v for v in values if v * count <= total]
    upper = [v for v in values if v * count > total]
    z = nearest_half(Fraction(sum(lower), len(lower)))
    if not upper:
        return 0, z
    return nearest_half(Fraction(sum(upper), len(upper)) - units(z)), z


def inverse(scale):
    return float32(Fraction(1, units(scale))) if units(scale) else Fraction(0)


def min_mse(values, bits):
    n = 2**bits - 1
    scale, minimum = min_max(values, n)
    s, z, inv = units(scale), units(minimum), inverse(scale)
    d = {2: 7, 3: 3, 4: 1, 5: 1}[bits]
    u = [half_even(float32(float32(v - z) * inv) * 2 ** (13 - bits)) for v in values]
    best = None
    for i in range(3):
        for j in range(3):
            step = 2 ** (7 - bits) * (64 - (i + j) * d)
            m = half_even(Fraction(2**15, step))
            error = 0
            for y in (x - n * 2 ** (7 - bits) * i * d for x in u):
                c = min(max((y * m + 2**14) >> 15, 0), n)
                error += (y - c * step) ** 2
            if best is None or error < best[0]:
                best = (error, i, j)
    _, i, j = best
    if (i, j) == (0, 0):
        return scale, minimum
    return (
        nearest_half(Fraction(s * (64 - (i + j) * d), 64)),
        nearest_half(z + Fraction(s * n * i * d, 64)),
    )


def quantize(group, bits, rule):
    """Scale, minimum and codes of a list of fp16 patterns."""
    values = [units(h) for h in group]
    n = 2**bits - 1
    if bits == 1:
        scale, minimum = one_bit(values)
    elif bits <= 5 and rule == "-":
        scale, minimum = min_mse(values, bits)
    else:
        scale, minimum = min_max(values, n)
    z, inv = units(minimum), inverse(scale)
    codes = [min(max(half_even(float32(float32(v - z) * inv)), 0), n) for v in values]
    return scale, minimum, codes


# --- Bytes. ---


def plane_widths(bits):
    return {1: [1], 2: [2], 3: [2, 1], 4: [4], 5: [4, 1], 6: [4, 2], 7: [4, 2, 1], 8: [8]}[bits]


def pack_plane(matrix, width):
    """One plane of a matrix of fields [outer][inner], in the order of the drawing."""
    outer, inner = len(matrix), len(matrix[0])
    out = bytearray()
    full = outer // 16 * 16
    for lanes, blocks in ((16, range(0, full, 16)), (8, range(full, outer, 16))):
        quads = [(block, i) for block in blocks for i in range(0, inner, 4)]
        fields = 8 // width
        for first in range(0, len(quads), fields):
            line = bytearray(lanes * 4)
            for field, (block, i) in enumerate(quads[first : first + fields]):
                for lane in range(lanes):
                    for byte in range(4):
                        line[lane * 4 + byte] |= matrix[block + lane][i + byte] << (field * width)
            out += line
    return out


def pack_codes(matrix, bits):
    out = bytearray()
    below = bits
    for width in plane_widths(bits):
        below -= width
        mask = 2**width - 1
        out += pack_plane([[(code >> below) & mask for code in row] for row in matrix], width)
    return out


def pack_halves(matrix):
    """16 bits: [block of 16 lanes][inner][lane]; the last block may have 8."""
    out = bytearray()
    for block in range(0, len(matrix), 16):
        for i in range(len(matrix[0])):
            for row in matrix[block : block + 16]:
                out += row[i].to_bytes(2, "little")
    return out


def pack_tensor(matrix, bits, along_outer, group, rule):
    """Codes and metadata of [outer][inner] fp16 patterns."""
    if bits == 16:
        return pack_halves(matrix)
    if along_outer:
        matrix = [list(column) for column in zip(*matrix)]  # rows are now what is grouped
    codes = [[0] * len(matrix[0]) for _ in matrix]
    metadata = bytearray()
    for first in range(0, len(matrix[0]), group):
        scales, minima = bytearray(), bytearray()
        for entry, row in enumerate(matrix):
            scale, minimum, part = quantize(row[first : first + group], bits, rule)
            scales += scale.to_bytes(2, "little")
            minima += minimum.to_bytes(2, "little")
            codes[entry][first : first + group] = part
        metadata += scales + minima
    if along_outer:
        codes = [list(column) for column in zip(*codes)]
    return pack_codes(codes, bits) + metadata


def padded(data, multiple):
    return data + bytes(-len(data) % multiple)


# --- Input: a linear congruential generator and twelve styles of data. ---


class Generator:
    def __init__(self, seed):
        self.state = seed

    def next(self):
        self.state = (self.state * 6364136223846793005 + 1442695040888963407) & MASK
        return self.state >> 33


def element(r, index, position, one):
    """fp16 pattern of an element. index: of its channel (per channel) or token (per token);
    position: along the group; one: whether the tensor is stored in one bit."""
    sign = 0x8000 if r >> 30 else 0
    mantissa = r & 1023
    normal = sign | (12 + (r >> 11) % 6) << 10 | mantissa
    largest = 0x77FF if one else 0x7BFF
    return {
        3: 0x4C00 + 200 + r % 64,
        4: 0x3C00 + index % 1000,
        5: sign | r % 64,
        6: sign,
        7: 0x4900 if r % 2 else 0xB555,
        8: sign | largest if r % 8 else sign | r % 0x7000,
        9: sign | (r >> 12) % 30 << 10 | mantissa,
        10: 0x7000 if position == 5 else normal,
        11: 0x6400 + r % 5,
    }.get(index % 12, normal)


def make_input(generator, tokens, dim, per_channel, one):
    """[token][channel]"""
    return [
        [
            element(generator.next(), channel if per_channel else token,
                    token if per_channel else channel, one)
            for channel in range(dim)
        ]
        for token in range(tokens)
    ]


def parse(name, key_dim, value_dim, tokens):
    """Bits, whether per channel, and group, of keys and values."""
    name = {"kivi2": "k2v2:g32,32", "kivi4": "k4v4:g32,32"}.get(name, name)
    match = re.fullmatch(r"k(\d+)([ct]?)v(\d+)([ct]?)(?::g(\d+),(\d+))?", name)
    kb, kl, vb, vl, kg, vg = match.groups()
    result = []
    for bits, letter, usual, group, dim in (
        (kb, kl, "c", kg, key_dim),
        (vb, vl, "t", vg, value_dim),
    ):
        per_channel = (letter or usual) == "c"
        default = tokens if per_channel else min(128, dim)
        size = int(group) if group else default
        result.append((int(bits), per_channel, size if per_channel else min(size, dim)))
    return result


def make_block(name, key_dim, value_dim, tokens, rule, seed):
    (kb, kc, kg), (vb, vc, vg) = parse(name, key_dim, value_dim, tokens)
    generator = Generator(seed)
    keys = make_input(generator, tokens, key_dim, kc or kb == 16, kb == 1)
    values = make_input(generator, tokens, value_dim, vc or vb == 16, vb == 1)
    block = padded(pack_tensor(keys, kb, kc, kg, rule), 32)  # keys are [token][channel]
    values = [list(column) for column in zip(*values)]  # values are [channel][token]
    return padded(block + pack_tensor(values, vb, not vc, vg, rule), 64)


def main():
    lines, blocks = [], bytearray()
    for number, (name, key_dim, value_dim, tokens, rule) in enumerate(CASES):
        seed = 1000 + number
        block = make_block(name, key_dim, value_dim, tokens, rule, seed)
        lines.append(f"{name} {key_dim} {value_dim} {tokens} {rule} {seed} {len(block)}\n")
        blocks += block
    folder = Path(__file__).resolve().parent
    wanted = {"pages.txt": "".join(lines).encode(), "pages.bin": bytes(blocks)}
    for file, data in wanted.items():
        if sys.argv[1:] == ["--check"]:
            if (folder / file).read_bytes() != data:
                sys.exit(f"{file} is not what this script makes")
        else:
            (folder / file).write_bytes(data)


if __name__ == "__main__":
    main()
