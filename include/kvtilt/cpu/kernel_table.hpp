// SPDX-License-Identifier: MIT
/// The kernels of one instruction set as a table of function pointers. A cache picks a table once, and
/// attention calls through it.
#pragma once

#include <kvtilt/core/softmax_state.hpp>
#include <kvtilt/core/tensor_view.hpp>
#include <kvtilt/cpu/contract.hpp>
#include <kvtilt/cpu/isa.hpp>
#include <kvtilt/page/layout.hpp>

#include <cstddef>
#include <cstdint>

namespace kvtilt::cpu {

/// One bit per lane of a line.
using LaneMask = std::uint16_t;

/// Sets the bits first to last - 1; the bounds may lie outside of 0..16.
constexpr LaneMask lanes_between(int first, int last) {
  const unsigned below_last = last <= 0 ? 0 : last >= 16 ? 0xffffu : (1u << last) - 1;
  const unsigned below_first = first <= 0 ? 0 : first >= 16 ? 0xffffu : (1u << first) - 1;
  return static_cast<LaneMask>(below_last & ~below_first);
}

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
using TransformLogitsFn = void (*)(float* scores, int slots, const LogitRule& rule, float offset);

/// The score that a hidden slot counts as.
inline constexpr float lowest_score = -3.0e38f;

/// The running softmax of a row while pages are added; its sum is kept in 16 lanes.
struct RunningSoftmax {
  float maximum = lowest_score;  ///< of the base-2 logits so far
  float sums[line_lanes] = {};   ///< of 2^(logit - maximum), by slot modulo 16

  /// Never inlined: with -ffast-math each call site might add the lanes in another order.
  [[nodiscard]] __attribute__((noinline)) SoftmaxState state() const {
    float sum = 0.0f;
    for (const float lane : sums) sum += lane;
    return {maximum, sum};
  }
};

/// Turns scores (base-2 logits) into probabilities relative to the running maximum of their row, and
/// adds them to its running sum. Returns whether a maximum rose.
///
/// slots    a multiple of 16
/// visible  one word per 16 slots: a slot whose bit is 0 becomes 0, whatever it holds; null: all are
///          visible
/// shrinks  receives the factor for each row's earlier outputs: exactly 1 if its maximum did not rise
using UpdateSoftmaxFn = bool (*)(Rows<float> scores, int rows, int slots,
                                 Rows<const LaneMask> visible, RunningSoftmax* states,
                                 float* shrinks);

/// Multiplies `count` floats (readable and writable up to a multiple of 16) by `factor`.
using ScaleFn = void (*)(float* values, int count, float factor);

/// Rows of one head of a TensorView: `count` tokens from `token` on.
struct RowRange {
  std::int64_t token;
  int count;
  int head;
};

/// Rounds rows to fp16, nearest even, and stores them in a 16-bit tensor from slot `slot` on.
using WriteFn = void (*)(const TensorView& rows, const RowRange& range, CodeMatrix matrix,
                         F16* stored, int slot);

/// The reverse, for a tensor of any width: writes the values of a head's block from slot `slot` on to
/// rows, as unpack_value() gives them, rounded to nearest even if the rows are not float. Slots outside
/// the range may hold anything.
using UnpackFn = void (*)(Role role, const TensorLayout& tensor, const std::byte* block, int slot,
                          const MutableTensorView& rows, const RowRange& range);

/// Makes a block of values of those that are in a head's keys: the same codes in another order.
///
/// values  turned_layout(): that of the block `turned`
using TurnFn = void (*)(const TensorLayout& keys, const std::byte* block,
                        const TensorLayout& values, std::byte* turned);

constexpr TensorLayout turned_layout(const TensorLayout& keys, int value_dim) {
  return value_layout(keys.format, value_dim, keys.matrix.outer, 0);
}

/// Whether a row holds NaN, infinity or a magnitude above `limit` (fp16-representable).
using ExceedsFn = bool (*)(const void* row, ElementType type, int count, float limit);

inline constexpr int width_slots = 9;

/// Index of a code width in the tables below; 16 bits have index 0.
constexpr int width_slot(int bits) { return bits == half_bits ? 0 : bits; }

struct Kernels {
  Isa isa;
  DotFn float_dot[width_slots];    ///< null: width not in the build's list
  DotFn integer_dot[width_slots];  ///< likewise; null also where float_dot is faster
  PackFn pack[width_slots];        ///< likewise
  TurnFn turn[width_slots];        ///< likewise
  ContractFn begin_contraction;
  ContractFn finish_contraction;
  TransformLogitsFn transform_logits;
  UpdateSoftmaxFn update_softmax;
  ScaleFn scale;
  WriteFn write_keys;    ///< matrix [token][channel]
  WriteFn write_values;  ///< matrix [channel][token]
  UnpackFn unpack;
  ExceedsFn exceeds;

  /// Makes the first weights of a contraction; finish() does the rest. Other contractions may begin
  /// in between.
  void begin(PendingContraction& work, const Contraction& contraction, DotType type) const {
    const int slot = width_slot(contraction.tensor->format.bits);
    work.contraction = contraction;
    work.rounding = Rounding(contraction, type);
    work.dot = type == DotType::Float ? float_dot[slot] : integer_dot[slot];
    begin_contraction(work);
  }
  void finish(PendingContraction& work) const { finish_contraction(work); }
};

}  // namespace kvtilt::cpu
