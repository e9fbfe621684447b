// SPDX-License-Identifier: MIT
/// Contractions: weights times codes, the one operation behind scores and outputs. What every
/// instruction set's kernels (contract.inl, dot.inl) agree on.
#pragma once

#include <kvtilt/page/layout.hpp>
#include <kvtilt/quant/format.hpp>

#include <cstddef>
#include <cstdint>

namespace kvtilt::cpu {

/// Indices first to last-1.
struct Range {
  int first;
  int last;
};

/// A row-major float matrix whose rows start `stride` apart.
template <class T>
struct Rows {
  T* data;
  std::ptrdiff_t stride;
  [[nodiscard]] T* operator[](int row) const { return data + row * stride; }
};

/// How codes are summed. Attention picks one for keys and one for values.
enum class Sums : std::uint8_t {
  Float,    ///< float32
  Integer,  ///< integer dot products, the coefficients rounded to steps of their own
};

/// What a contraction reads.
enum class Role : std::uint8_t {
  Keys,    ///< coefficients are queries; results are written
  Values,  ///< coefficients are probabilities: none is negative; results are added to
};

/// Coarsest step of integer weights, as a part of their rms and n times as large for n-level codes.
/// The rounding of the weights then adds less than a fifth of the codes' own error (DESIGN 6); the
/// values of some models ask for a finer one. Measured by bench/run.sh --errors.
constexpr float step_share(Role role) { return role == Role::Keys ? 0.6f : 0.43f; }

/// One page's share of the scores (keys) or of the outputs (values) of some rows:
///
///     result[r][o] (+)= sum over i in `inner` of coefficients[r][i] * value(o, i), for o in `outer`
///
/// With keys, o is a token; with values, o is a channel. Scales and minima are folded into the
/// coefficients or into the sums, whichever side the groups lie on.
struct Contraction {
  Role role;
  const TensorLayout* tensor;
  const std::byte* block;
  std::ptrdiff_t next;  ///< bytes from `block` to the one that will be read next, to prefetch it
  Range outer;
  Range inner;
  Rows<const float> coefficients;  ///< [rows][inner], finite beyond `inner` to multiples of 32
  int rows;
  Rows<float> result;  ///< [rows][outer], up to a multiple of 16: lanes outside `outer` may change
  std::byte* scratch;  ///< contract_scratch_bytes(inner of the tensor), aligned to 64 bytes
};

/// Rows that are folded together and share each decoded code.
inline constexpr int row_tile = 4;

/// One number per row of a tile.
using Floats4 = float __attribute__((vector_size(16)));
static_assert(sizeof(Floats4) == row_tile * sizeof(float));

/// What coefficients become before they meet codes: for up to row_tile rows, a line of one row
/// after the same line of the others, so that a loop needs one address for all of them.
struct Weights {
  Range inner;                  ///< weights outside, but in its whole units, are 0
  const float* exact;           ///< [inner / 16][row_tile][16]
  const std::int8_t* integers;  ///< [inner / 32][row_tile][32], if not wide; unsigned for values
  bool wide;                    ///< integers take two bytes: words()

  /// Wide weights as words: [inner / 32][row_tile][32].
  [[nodiscard]] const std::int16_t* words() const {
    return reinterpret_cast<const std::int16_t*>(integers);
  }
};

/// Up to this width integer weights are single bytes, unless rounding to them would show beside the
/// rounding of the codes. For wider codes it always would.
inline constexpr int widest_for_bytes = 4;

/// Up to this width bytes are always fine enough.
inline constexpr int always_for_bytes = 2;

/// Numbers of a row of `extent` tokens or channels, filled up to whole units.
constexpr std::size_t padded_extent(int extent) {
  return round_up(static_cast<std::size_t>(extent), 32);
}

/// Weights of row_tile rows.
constexpr std::size_t padded_weights(int extent) { return row_tile * padded_extent(extent); }

/// Scratch memory of a contraction over `extent` tokens or channels: exact weights and integers.
constexpr std::size_t contract_scratch_bytes(int extent) {
  return padded_weights(extent) * (sizeof(float) + sizeof(std::int16_t));
}

/// What the sum of a row's weights times codes still needs:
/// step * sum + offset, or, where scales lie along outer, scale * (step * sum + offset) + minimum *
/// total.
struct RowTerms {
  Floats4 step;
  Floats4 offset;
  Floats4 total;
};

/// One band of one tile of rows, ready to meet codes.
struct WeighedBand {
  Range blocks;  ///< of outer indices
  int row;
  int rows;                 ///< row_tile, or one
  bool adds;                ///< to the results; else these are overwritten
  const F16* outer_scales;  ///< minima: pitch on; null where scales lie along inner
  Weights weights;
  RowTerms terms;
};

/// Largest magnitude of a wide weight: 32 bits hold the sum of 1024 products with 8-bit codes.
inline constexpr float widest_weight = 8191.0f;
static_assert(max_head_dim <= 1024);

/// How the weights of a tensor become integers.
struct Rounding {
  bool integers;
  bool wide;           ///< always
  bool checked;        ///< one byte may be too coarse
  float levels;        ///< of a weight's magnitude
  float least_square;  ///< sum of squares of single bytes that are fine enough
  float mean_code;     ///< 0 in float32

  Rounding() = default;
  Rounding(const Contraction& contraction, Sums sums) : integers(sums == Sums::Integer) {
    const TensorLayout& tensor = *contraction.tensor;
    const float n = static_cast<float>(max_code(tensor.format.bits));
    wide = tensor.format.bits > widest_for_bytes;
    levels = wide ? widest_weight : contraction.role == Role::Values ? 255.0f : 127.0f;
    // All of the band, though a row may see less: what other rows see must not change a bit.
    const int extent = tensor.group_along_outer ? tensor.matrix.inner : tensor.format.group;
    const float finest = n / step_share(contraction.role);  // rms in steps
    least_square = finest * finest * static_cast<float>(extent);
    checked = !wide && tensor.format.bits > always_for_bytes && least_square > levels * levels;
    mean_code = integers ? 0.5f * n : 0.0f;
  }
};

/// Weights times codes.
using DotFn = void (*)(const Contraction& contraction, const WeighedBand& band);

/// A contraction on its way: begin() makes the weights of its first band, finish() does the rest. Dot
/// products of another contraction in between hide how long those weights take.
struct Contracting {
  Contraction contraction;
  Rounding rounding;
  DotFn dot;
  int row;   ///< of the band that is weighed next
  int band;  ///< likewise
  WeighedBand weighed;
};

using ContractFn = void (*)(Contracting& work);

}  // namespace kvtilt::cpu
