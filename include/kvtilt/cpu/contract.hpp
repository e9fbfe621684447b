// SPDX-License-Identifier: MIT
/// Contractions: products of float rows with codes, the operation behind scores (q.k) and outputs
/// (p.v). These types are shared by the kernels of every instruction set (contract.inl, dot.inl).
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
enum class DotType : std::uint8_t {
  Float,    ///< float32
  Integer,  ///< integer dot products, the coefficients rounded to steps of their own
};

/// The largest step of integer weights is step_share * (their rms) / n for codes 0 to n. The rounding
/// of the weights then adds a fifth of the codes' own error at most (bench/run.sh --errors).
inline constexpr float step_share = 0.6f;

/// A head's block of a page.
struct PageBlock {
  const std::byte* data;
  std::ptrdiff_t prefetch_offset;  ///< bytes to the block that is read after it; 0: none
  std::int64_t position;           ///< of slot 0, which decides its SlotOffsets
};

/// What one page contributes to the scores (keys), or some pages to the outputs (values), of some
/// query rows:
///
///     result[r][o] (+)= sum over i in `inner` of coefficients[r][i] * value(o, i), for o in `outer`
///
/// With keys, o is a token, coefficients are queries, and results are written. With values, o is a
/// channel, coefficients are probabilities (none is negative), and results are added to. Scales and
/// minima are multiplied into the coefficients if they lie along inner (one for each i), or into the
/// sums if along outer.
struct Contraction {
  Role role;
  const TensorLayout* tensor;
  const PageBlock* pages;  ///< keys: one; values: joined pages, whose slots follow one another
  Range outer;
  Range inner;
  Rows<const float> coefficients;  ///< [rows][inner], finite up to the multiples of 32 around it
  int rows;
  Rows<float> result;  ///< [rows][outer], up to a multiple of 16: lanes outside `outer` may change
  std::byte* scratch;  ///< contract_scratch_bytes(inner of all pages), aligned to 64 bytes

  /// Distance of the first inner indices of two successive pages.
  [[nodiscard]] int page_inner() const {
    return static_cast<int>(round_up(static_cast<std::size_t>(tensor->matrix.inner), 32));
  }
};

/// Slots of values in one contraction: pages of fewer tokens are joined up to this.
inline constexpr int joined_slots = 128;

/// What is added to the weights of values, in steps, before they are rounded down: multiples of the
/// golden ratio modulo 1. Over many slots weights are then right on average, however small they are. If
/// each were rounded to the nearest integer, all that are small beside the largest would be lost, an
/// error that no number of tokens averages out. 0 stays 0.
struct SlotOffsets {
  static constexpr int period = joined_slots;
  alignas(64) float at[period];

  constexpr SlotOffsets() : at() {
    for (std::uint32_t i = 0; i < period; ++i)
      at[i] = (static_cast<float>(i * 0x9e3779b9u >> 24) + 0.5f) / 256.0f;
  }

  /// Of the slot at this position and the 31 after it. Positions count in units of 32, so that those of a
  /// unit lie side by side.
  [[nodiscard]] const float* of(std::int64_t position) const {
    return at + static_cast<std::uint64_t>(position) / 32 * 32 % period;
  }
};
inline constexpr SlotOffsets slot_offsets;

/// Rows that are processed together and share each decoded code: a tile of rows.
inline constexpr int row_tile = 4;

/// One number per row of a tile.
using Floats4 = float __attribute__((vector_size(16)));
static_assert(sizeof(Floats4) == row_tile * sizeof(float));

/// The factors of the codes, made from coefficients (times scales that lie along inner) for up to
/// row_tile rows. Rows are interleaved line by line, so that a loop needs one address for all.
struct Weights {
  Range inner;                  ///< over all pages; weights around it in units of 32 are 0
  const float* floats;          ///< [inner / 16][row_tile][16]
  const std::int8_t* integers;  ///< [inner / 32][row_tile][32], if not wide; unsigned for values
  bool wide;                    ///< integers take two bytes: words()

  /// Wide weights as words: [inner / 32][row_tile][32].
  [[nodiscard]] const std::int16_t* words() const {
    return reinterpret_cast<const std::int16_t*>(integers);
  }
};

/// For codes up to this width, integer weights are single bytes unless their rounding error would
/// matter beside that of the codes. For wider codes it always would.
inline constexpr int widest_for_bytes = 4;

/// For codes up to this width, single bytes are always fine enough.
inline constexpr int always_for_bytes = 2;

/// Length of a row of `extent` tokens or channels, rounded up to whole units of 32.
constexpr std::size_t padded_extent(int extent) {
  return round_up(static_cast<std::size_t>(extent), 32);
}

/// Number of weights of row_tile rows.
constexpr std::size_t padded_weights(int extent) { return row_tile * padded_extent(extent); }

/// Scratch memory of a contraction over `extent` tokens or channels: float weights and integers.
constexpr std::size_t contract_scratch_bytes(int extent) {
  return padded_weights(extent) * (sizeof(float) + sizeof(std::int16_t));
}

/// Turns a row's sum of weights times codes into its result: step * sum + offset or, if scales lie
/// along outer, scale * (step * sum + offset) + minimum * total.
struct RowTerms {
  Floats4 step;
  Floats4 offset;
  Floats4 total;
};

/// A band (one group's extent along the axis of the groups, page/layout.hpp) and a tile of rows, with
/// the weights ready for the dot product.
struct WeighedBand {
  Range blocks;                    ///< of 16 outer indices
  int row;                         ///< first of the tile
  int rows;                        ///< row_tile, or one; in 16 bits also half_row_tile
  bool adds;                       ///< to the results; else these are overwritten
  const F16* outer_scales;         ///< minima follow, pitch() on; null if scales lie along inner
  std::ptrdiff_t prefetch_offset;  ///< of the page that these belong to
  Weights weights;
  RowTerms terms;
};

/// Largest magnitude of a wide weight. 32 bits hold the sum of its products with 8-bit codes over a head
/// dimension (keys) or joined_slots (values).
constexpr float widest_weight(Role role) { return role == Role::Values ? 32767.0f : 8191.0f; }
static_assert(joined_slots <= 256 && max_head_dim <= 1024);

/// How the weights for a tensor are rounded to integers.
struct Rounding {
  bool integers;
  bool wide;           ///< weights always have two bytes
  bool checked;        ///< single bytes may be too coarse; each band decides
  float levels;        ///< largest magnitude of an integer weight
  float least_square;  ///< single bytes are fine enough if their squares add up to this
  float mean_code;     ///< middle of the codes; 0 in float32

  Rounding() = default;
  Rounding(const Contraction& contraction, DotType type) : integers(type == DotType::Integer) {
    const TensorLayout& tensor = *contraction.tensor;
    const float n = static_cast<float>(max_code(tensor.format.bits));
    wide = tensor.format.bits > widest_for_bytes;
    const bool values = contraction.role == Role::Values;
    levels = wide ? widest_weight(contraction.role) : values ? 255.0f : 127.0f;
    // The full extent of a band, though `inner` may be less: it depends on what other rows see, which
    // must not change a row's bits.
    const int extent = !tensor.group_along_outer            ? tensor.format.group
                       : contraction.role == Role::Keys     ? tensor.matrix.inner
                       : tensor.matrix.inner < joined_slots ? joined_slots
                                                            : tensor.matrix.inner;
    const float finest = n / step_share;  // rms in steps
    least_square = finest * finest * static_cast<float>(extent);
    checked = !wide && tensor.format.bits > always_for_bytes && least_square > levels * levels;
    mean_code = integers ? 0.5f * n : 0.0f;
  }
};

/// The dot product of one band: weights times codes, then scales and minima.
using DotFn = void (*)(const Contraction& contraction, const WeighedBand& band);

/// A contraction in progress: begin() makes the weights of its first band, finish() does the rest. Dot
/// products of another contraction in between hide the latency of making those weights.
struct PendingContraction {
  Contraction contraction;
  Rounding rounding;
  DotFn dot;
  int row;   ///< of the next tile to make weights for
  int band;  ///< likewise
  WeighedBand weighed;
};

using ContractFn = void (*)(PendingContraction& work);

}  // namespace kvtilt::cpu
