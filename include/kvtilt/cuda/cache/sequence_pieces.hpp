// SPDX-License-Identifier: MIT
/// Where the tokens of one sequence are: in its sinks, its sealed pages and its tail blocks.
#pragma once

#include <kvtilt/cuda/cache/layer_view.hpp>
#include <kvtilt/cuda/cache/sequence_state.hpp>

#include <cstddef>
#include <cstdint>

namespace kvtilt::cuda::detail {

/// The tokens of a sequence that are in one block: a run of positions.
struct Piece {
  PageKind kind;
  const std::byte* block;
  std::int64_t first_position;
  int tokens;
};

/// The pieces of a sequence, by index: the sinks, then pages, then tail blocks.
struct Pieces {
  const LayerView& layer;
  const SequenceState& state;
  int sequence;

  [[nodiscard]] KVTILT_HD int pages() const { return state.page_end - state.first_page; }
  [[nodiscard]] KVTILT_HD std::int64_t tail_tokens() const {
    return state.length > state.tail_start ? state.length - state.tail_start : 0;
  }
  [[nodiscard]] KVTILT_HD int count() const {
    return 1 + pages() +
           static_cast<int>((tail_tokens() + layer.page_tokens - 1) / layer.page_tokens);
  }
  /// Index of the first piece that may hold a token at `position` or later; count() if none does.
  [[nodiscard]] KVTILT_HD int at(std::int64_t position) const {
    if (position >= state.length) return count();
    if (position < layer.sink_tokens) return 0;
    if (position >= state.tail_start)
      return 1 + pages() + static_cast<int>((position - state.tail_start) / layer.page_tokens);
    return 1 + entry_at(state, layer.table(sequence), position) - state.first_page;
  }
  [[nodiscard]] KVTILT_HD Piece operator[](int index) const {
    if (index == 0) {
      const std::int64_t tokens =
          state.length < layer.sink_tokens ? state.length : layer.sink_tokens;
      return {PageKind::Sinks, layer.sinks(sequence), 0, static_cast<int>(tokens)};
    }
    if (index <= pages()) {
      const PageSlot slot = layer.table(sequence)[state.first_page + index - 1];
      return {PageKind::Sealed, layer.block(PageKind::Sealed, slot.page), slot.first_position,
              slot.tokens};
    }
    const int turn = index - 1 - pages();
    const std::int64_t before = static_cast<std::int64_t>(turn) * layer.page_tokens;
    const std::int64_t tokens = tail_tokens() - before;
    return {PageKind::Tail, layer.tail(sequence, state.ring_head, turn), state.tail_start + before,
            static_cast<int>(tokens < layer.page_tokens ? tokens : layer.page_tokens)};
  }
};

/// Whether the position after piece `index` lies before `end` and is in no piece.
KVTILT_HD inline bool gap_after(const Pieces& pieces, const Piece& piece, int index,
                                std::int64_t end) {
  const std::int64_t next = piece.first_position + piece.tokens;
  if (next >= end) return false;
  return index + 1 >= pieces.count() || pieces[index + 1].first_position != next;
}

}  // namespace kvtilt::cuda::detail
