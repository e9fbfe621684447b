// SPDX-License-Identifier: MIT
/// The kernels of one instruction set as function pointers: what a cache resolves once and what
/// attention calls. Every instruction set fills the same table.
#pragma once

#include <kvtilt/core/softmax_state.hpp>
#include <kvtilt/core/tensor_view.hpp>
#include <kvtilt/cpu/isa.hpp>
#include <kvtilt/page/layout.hpp>

#include <cstddef>
#include <cstdint>

namespace kvtilt::cpu {

/// One bit per lane of a line.
using LaneMask = std::uint16_t;

/// Bits first to last-1; the bounds may lie outside of 0..16.
constexpr LaneMask lanes_between(int first, int last) {
  const unsigned below_last = last <= 0 ? 0 : last >= 16 ? 0xffffu : (1u << last) - 1;
  const unsigned below_first = first <= 0 ? 0 : first >= 16 ? 0xffffu : (1u << first) - 1;
  return static_cast<LaneMask>(below_last & ~below_first);
}

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

/// Coarsest step of integer weights, as a part of their rms and n times as large for n-level codes.
/// The rounding of the weights then adds less than a fifth of the codes' own error (DESIGN 6); the
/// values of some models ask for a finer one. Measured by bench/run.sh --errors.
inline constexpr float key_step_share = 0.6f;
inline constexpr float value_step_share = 0.43f;

/// One page's share of the scores (keys) or of the outputs (values) of some rows:
///
///     result[r][o] += sum over i in `inner` of coefficients[r][i] * value(o, i), for o in `outer`
///
/// With keys, o is a token and the coefficients are a query; with values, o is a channel and the
/// coefficients are probabilities. Scales and minima are folded into the coefficients or into the
/// sums, whichever side the groups lie on.
struct Contraction {
  const TensorLayout* tensor;
  const std::byte* block;
  std::ptrdiff_t next;  ///< bytes from `block` to the one that will be read next, to prefetch it
  Range outer;
  Range inner;
  Rows<const float> coefficients;  ///< [rows][inner], readable up to a multiple of 16
  int rows;
  Rows<float> result;  ///< [rows][outer], up to a multiple of 16: lanes outside `outer` may change
  std::byte* scratch;  ///< contract_scratch_bytes(inner of the tensor), aligned to 64 bytes
  float step_share = key_step_share;
};

/// Rows that are folded together and share each decoded code.
inline constexpr int row_tile = 4;

/// What coefficients become before they meet codes: for up to row_tile rows, a line of one row
/// after the same line of the others, so that a loop needs one address for all of them.
struct Weights {
  const float* exact;           ///< [inner / 16][row_tile][16]
  const std::int8_t* integers;  ///< [inner / 32][row_tile][32], if not wide
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

/// Weights of row_tile rows of `extent` tokens or channels, filled up to whole units.
constexpr std::size_t padded_weights(int extent) {
  return row_tile * round_up(static_cast<std::size_t>(extent), 32);
}

/// Scratch memory of a contraction over `extent` tokens or channels: exact weights and integers.
constexpr std::size_t contract_scratch_bytes(int extent) {
  return padded_weights(extent) * (sizeof(float) + sizeof(std::int16_t));
}

/// What the sum of a row's weights times codes still needs:
/// step * sum + offset, or, where scales lie along outer, scale * (step * sum + offset) + minimum *
/// total.
struct RowTerms {
  float step;
  float offset;
  float total;
};

/// Weights times codes for whole blocks of outer indices, added to the results of the contraction's
/// rows `row` to row + rows - 1 (row_tile rows, or one). `outer_scales` (minima: pitch on) may be
/// null.
using DotFn = void (*)(const Contraction& contraction, Range blocks, int row, int rows,
                       const Weights& weights, const RowTerms* terms, const F16* outer_scales);

/// Contracts with the dot products of one width.
using ContractFn = void (*)(const Contraction& contraction, Sums sums, DotFn dot);

/// Quantizes one 16-bit tensor (layout `half`) into `packed`. Both have the same matrix; the codes
/// of `block` must be zeros.
using PackFn = void (*)(const TensorLayout& half, const std::byte* half_block,
                        const TensorLayout& packed, std::byte* block);

/// What happens to a logit between the dot product and the softmax, in base 2.
struct LogitRule {
  float cap = 0.0f;    ///< score = cap * tanh(score); 0: score as it is
  float slope = 0.0f;  ///< added per slot, ALiBi
};

/// Applies a rule to the scores of one row: slot i gains slope * (i + offset).
using ShapeFn = void (*)(float* scores, int slots, const LogitRule& rule, float offset);

/// Stands in for the score of a hidden slot.
inline constexpr float lowest_score = -3.0e38f;

/// A row's softmax while pages are added: its sum stays in lanes.
struct RunningSoftmax {
  float maximum = lowest_score;  ///< of the base-2 logits so far
  float sums[line_lanes] = {};   ///< of 2^(logit - maximum), by slot modulo 16

  RunningSoftmax() = default;
  explicit RunningSoftmax(const SoftmaxState& state)
      : maximum(state.empty() ? lowest_score : state.maximum), sums{state.sum} {}

  /// Never inlined: -ffast-math might add the lanes in another order at every place.
  [[nodiscard]] __attribute__((noinline)) SoftmaxState state() const {
    float sum = 0.0f;
    for (const float lane : sums) sum += lane;
    return {maximum, sum};
  }
};

/// Turns scores (base-2 logits) into probabilities relative to the running maximum of their row and
/// adds them to its running sum. Slots whose bit in `visible` (one word per 16 slots) is 0 become 0
/// whatever they hold; `slots` is a multiple of 16. `shrinks` receives the factor by which earlier
/// outputs of a row must shrink: exactly 1 where its maximum stayed.
using AbsorbFn = void (*)(Rows<float> scores, int rows, int slots, Rows<const LaneMask> visible,
                          RunningSoftmax* states, float* shrinks);

/// Multiplies `count` floats (readable and writable up to a multiple of 16) by `factor`.
using ScaleFn = void (*)(float* values, int count, float factor);

/// Rows of one head of a TensorView: `count` tokens from `token` on.
struct RowRange {
  std::int64_t token;
  int count;
  int head;
};

/// Rounds rows to fp16, nearest even, and stores them in the slots `slot` on of a 16-bit tensor.
using WriteFn = void (*)(const TensorView& rows, const RowRange& range, CodeMatrix matrix,
                         F16* stored, int slot);

/// Whether a row holds NaN, infinity or a magnitude above `limit` (fp16-representable).
using ExceedsFn = bool (*)(const void* row, ElementType type, int count, float limit);

inline constexpr int width_slots = 9;

/// Tables are indexed by width; 16 bits sit at 0.
constexpr int width_slot(int bits) { return bits == half_bits ? 0 : bits; }

struct Kernels {
  Isa isa;
  DotFn float_dot[width_slots];    ///< null: width not in the build's list
  DotFn integer_dot[width_slots];  ///< likewise; null also where float_dot is faster
  PackFn pack[width_slots];        ///< likewise
  ContractFn contract_rows;
  ShapeFn shape;
  AbsorbFn absorb;
  ScaleFn scale;
  WriteFn write_keys;    ///< matrix [token][channel]
  WriteFn write_values;  ///< matrix [channel][token]
  ExceedsFn exceeds;

  void contract(const Contraction& contraction, Sums sums) const {
    const int slot = width_slot(contraction.tensor->format.bits);
    contract_rows(contraction, sums, sums == Sums::Float ? float_dot[slot] : integer_dot[slot]);
  }
};

}  // namespace kvtilt::cpu
