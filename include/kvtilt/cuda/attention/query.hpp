// SPDX-License-Identifier: MIT
/// The 8 query rows of an item, the columns of an mma: loads them into the registers of its B
/// operand, and finds the tokens that each may see.
#pragma once

#include <kvtilt/core/half.hpp>
#include <kvtilt/core/tree_window.hpp>
#include <kvtilt/cuda/attention/work.hpp>
#include <kvtilt/cuda/half2.hpp>
#include <kvtilt/cuda/page/fragments.hpp>
#include <kvtilt/cuda/words.hpp>

#include <cmath>
#include <cstdint>

namespace kvtilt::cuda {

/// Range of positions that every row of an item sees: units inside it need no masks.
struct PlainRange {
  std::int64_t begin;
  std::int64_t end;
  bool transformed;  ///< logits have a cap or slopes: no unit is plain

  /// Whether a unit of `slots` slots from position `first` on, `tokens` of which hold tokens, is not
  /// plain: whether its logits need transform_and_mask().
  [[nodiscard]] KVTILT_HD bool excludes(std::int64_t first, int tokens, int slots) const {
    return transformed || tokens < slots || first < begin || first + slots > end;
  }

  /// oldest, newest  positions of the oldest and the newest query
  /// new_from        position of the first new token: of the queries, the chunk, or their tree
  [[nodiscard]] KVTILT_HD static PlainRange of(const AttendRules& rules, std::int64_t oldest,
                                               std::int64_t newest, std::int64_t new_from,
                                               SeenRows seen) {
    PlainRange range;
    range.transformed = rules.soft_cap > 0.0f || rules.alibi_slopes != nullptr;
    range.begin = rules.first_position;
    if (rules.window > 0 && newest + 1 - rules.window > range.begin)
      range.begin = newest + 1 - rules.window;
    range.end = seen != SeenRows::Causal ? new_from : oldest + 1;
    if (rules.end_position < range.end) range.end = rules.end_position;
    return range;
  }
};

/// The query rows of an item.
struct ItemRows {
  int queries;     ///< query tokens of the sequence
  int new_tokens;  ///< AttendArguments::new_tokens()
  int kv_head;
  int first_row;             ///< row = query token * gqa_ratio + query head of the kv head
  int rows;                  ///< of this item, 1 to 8
  std::int64_t first_token;  ///< row of the tensors for the sequence's first query
  std::int64_t length;       ///< of the sequence, in tokens, wherever they are kept
  SeenRows seen;             ///< rules.seen_rows(queries)

  [[nodiscard]] KVTILT_HD int query_token(const AttendArguments& arguments, int column) const {
    const int row = column < rows ? first_row + column : first_row;
    return queries == 1 ? 0 : quotient(row, arguments.gqa_ratio);
  }
  [[nodiscard]] KVTILT_HD int query_head(const AttendArguments& arguments, int column) const {
    const int row = column < rows ? first_row + column : first_row;
    return kv_head * arguments.gqa_ratio + row -
           query_token(arguments, column) * arguments.gqa_ratio;
  }
  [[nodiscard]] KVTILT_HD RowPlace place(const AttendArguments& arguments, int column) const {
    return {first_token + query_token(arguments, column), query_head(arguments, column)};
  }
  /// Position of the oldest query.
  [[nodiscard]] KVTILT_HD std::int64_t oldest() const { return length - queries; }
  /// Position of the first new token.
  [[nodiscard]] KVTILT_HD std::int64_t new_from() const { return length - new_tokens; }
  [[nodiscard]] KVTILT_HD PlainRange plain(const AttendArguments& arguments) const {
    return PlainRange::of(arguments.rules, oldest(), length - 1, new_from(), seen);
  }
};

/// Bit mask of the first `count` of 16 slots.
KVTILT_HD constexpr std::uint32_t slots_before(int count) {
  return (1u << (count < 0 ? 0 : count > tile_extent ? tile_extent : count)) - 1;
}

/// Positions of a query and of its sequence's new tokens.
struct QueryPosition {
  std::int64_t own;       ///< of the query
  std::int64_t new_from;  ///< first of the new tokens, to which a tree mask applies
  int new_tokens;
  SeenRows seen;  ///< rules.seen_rows()
};

/// Which tokens one column (query row) sees. Slots count from some position, in 32 bits to save
/// registers.
struct ColumnView {
  int begin;  ///< first slot seen
  int end;
  int tree_start;      ///< from this slot on the tree mask decides
  std::uint64_t tree;  ///< bits of that mask
  int own;             ///< slot of the column's own token

  /// row    of the tensors, for the tree mask
  /// first  position of slot 0
  [[nodiscard]] KVTILT_HD static ColumnView of(const AttendRules& rules, const QueryPosition& query,
                                               std::int64_t row, std::int64_t first, bool sink) {
    const bool tree = query.seen == SeenRows::Tree;
    std::int64_t begin = rules.first_position;
    std::uint64_t word = tree ? rules.tree_mask[row] : 0;
    if (rules.window > 0 && !(sink && rules.keep_sinks != 0)) {
      std::int64_t in_window = query.own - rules.window + 1;
      if (tree) {
        const kvtilt::detail::TreeWindow left =
            kvtilt::detail::TreeWindow::of(word, query.new_tokens, rules.window);
        in_window = query.new_from - left.older;
        word = left.seen;
      }
      if (in_window > begin) begin = in_window;
    }
    std::int64_t end =
        query.seen != SeenRows::Causal ? query.new_from + query.new_tokens : query.own + 1;
    if (rules.end_position < end) end = rules.end_position;
    ColumnView view;
    view.begin = slot_of(begin - first);
    view.end = slot_of(end - first);
    view.tree_start = slot_of(tree ? query.new_from - first : std::int64_t{far});
    view.tree = word;
    view.own = slot_of(query.own - first);
    return view;
  }
  [[nodiscard]] KVTILT_HD static ColumnView of(const AttendArguments& arguments,
                                               const ItemRows& item, int column, std::int64_t first,
                                               bool sink) {
    return of(arguments.rules,
              {item.oldest() + item.query_token(arguments, column), item.new_from(),
               item.new_tokens, item.seen},
              item.place(arguments, column).row, first, sink);
  }

  /// Bit mask of the slots seen, of the 16 from `start` on.
  [[nodiscard]] KVTILT_HD std::uint32_t visible(int start) const {
    std::uint32_t mask = slots_before(end - start) & ~slots_before(begin - start);
    const int shift = start - tree_start;  // bit of the tree mask for slot `start`
    if (shift > -tile_extent) {
      const std::uint64_t bits = shift >= 64 ? 0 : shift >= 0 ? tree >> shift : tree << -shift;
      mask &= slots_before(-shift) | static_cast<std::uint32_t>(bits);
    }
    return mask;
  }

 private:
  static constexpr int far = 1 << 30;

  KVTILT_HD static int slot_of(std::int64_t slot) {
    return slot > far ? far : slot < -far ? -far : static_cast<int>(slot);
  }
};

/// Loads 4 channels of every 16 of a query row, from channel `first` on. All loads of a branch are in
/// flight together; those of 16-bit types take 8 bytes where they are aligned.
template <int Steps>
KVTILT_HD void load_query_row(const AttendArguments& arguments, const RowPlace& place, int first,
                              float (&channel)[Steps][4]) {
  const std::int64_t at =
      place.row * arguments.query_token_stride + place.head * arguments.query_head_stride + first;
  if (arguments.query_type == ElementType::F32) {
    const float* from = static_cast<const float*>(arguments.query) + at;
    KVTILT_DEVICE_UNROLL
    for (int step = 0; step < Steps; ++step)
      KVTILT_DEVICE_UNROLL
      for (int i = 0; i < 4; ++i) channel[step][i] = from[step * tile_extent + i];
    return;
  }
  const std::uint16_t* from = static_cast<const std::uint16_t*>(arguments.query) + at;
  std::uint64_t bits[Steps];
  if (reinterpret_cast<std::uintptr_t>(from) % 8 == 0) {
    KVTILT_DEVICE_UNROLL
    for (int step = 0; step < Steps; ++step)
      bits[step] = load_double_word(from + step * tile_extent);
  } else {
    KVTILT_DEVICE_UNROLL
    for (int step = 0; step < Steps; ++step) {
      bits[step] = 0;
      KVTILT_DEVICE_UNROLL
      for (int i = 0; i < 4; ++i)
        bits[step] |= std::uint64_t{from[step * tile_extent + i]} << (16 * i);
    }
  }
  const bool is_f16 = arguments.query_type == ElementType::F16;
  KVTILT_DEVICE_UNROLL
  for (int step = 0; step < Steps; ++step)
    KVTILT_DEVICE_UNROLL
    for (int i = 0; i < 4; ++i) {
      const std::uint16_t half = static_cast<std::uint16_t>(bits[step] >> (16 * i));
      channel[step][i] = is_f16 ? low_half(half) : to_float(BF16{half});
    }
}

/// Converts a row that four neighbouring lanes hold to fp16, times a power of two that brings its
/// largest channel to 1/2 to 1, so that products with scales neither overflow nor vanish. Returns
/// `scale` divided by that power.
template <int Steps, class Threads>
KVTILT_HD float normalise_query(Threads& threads, float scale, const float (&channel)[Steps][4],
                                std::uint32_t (&half)[Steps][2]) {
  float largest = 0.0f;
  KVTILT_DEVICE_UNROLL
  for (int step = 0; step < Steps; ++step)
    KVTILT_DEVICE_UNROLL
    for (int i = 0; i < 4; ++i) largest = std::fmax(largest, std::fabs(channel[step][i]));
  largest = std::fmax(largest, threads.shuffle_xor(largest, 1));
  largest = std::fmax(largest, threads.shuffle_xor(largest, 2));
  int exponent = static_cast<int>(bit_cast<std::uint32_t>(largest) >> 23) - 126;
  if (exponent < -100) exponent = -100;
  if (exponent > 100) exponent = 100;
  const float normalise = float_power(-exponent);
  KVTILT_DEVICE_UNROLL
  for (int step = 0; step < Steps; ++step) {
    half[step][0] = pack_halves(channel[step][0] * normalise, channel[step][1] * normalise);
    half[step][1] = pack_halves(channel[step][2] * normalise, channel[step][3] * normalise);
  }
  return scale * float_power(exponent);
}

/// An item's queries, as normalise_query() leaves them. t = lane % 4.
template <int KeyDim>
struct QueryTile {
  static constexpr int steps = KeyDim / tile_extent;

  std::uint32_t half[steps][2];  ///< B registers of each step: channels 4t, 4t+1 and 4t+2, 4t+3
  float factor[2];               ///< logit of columns 2t, 2t + 1 per unit of product

  template <class Threads>
  KVTILT_HD void load(Threads& threads, const AttendArguments& arguments, const ItemRows& item) {
    const int column = threads.lane() / 4;
    const bool present = column < item.rows;
    float channel[steps][4];
    load_query_row<steps>(arguments, item.place(arguments, column), threads.lane() % 4 * 4,
                          channel);
    KVTILT_DEVICE_UNROLL
    for (int step = 0; step < steps; ++step)
      KVTILT_DEVICE_UNROLL
      for (int i = 0; i < 4; ++i)
        if (!present) channel[step][i] = 0.0f;
    const float own = normalise_query<steps>(threads, arguments.rules.scale, channel, half);
    factor[0] = threads.shuffle(own, threads.lane() % 4 * 8);
    factor[1] = threads.shuffle(own, threads.lane() % 4 * 8 + 4);
  }
};

}  // namespace kvtilt::cuda
