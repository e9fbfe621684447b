// SPDX-License-Identifier: MIT
#include <kvtilt/cuda/cache/sequence_pieces.hpp>

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <vector>

namespace kvtilt::cuda::detail {
namespace {

/// 4 sinks, pages of 64 at positions 4 and 132 (those between were removed), 80 tokens in the tail.
struct Sequence {
  std::vector<std::byte> memory = std::vector<std::byte>(64 * 16);
  std::vector<PageSlot> table = {{-1, -1, -1}, {4, 5, 64}, {132, 2, 60}, {}};
  LayerView layer{};
  SequenceState state{};

  Sequence() {
    layer.page_tokens = 64;
    layer.sink_tokens = 4;
    layer.ring_blocks = 3;
    layer.table_stride = 4;
    layer.tables = table.data();
    for (int kind = 0; kind < page_kinds; ++kind) {
      layer.pool[kind] = memory.data();
      layer.block_bytes[kind] = 64;
    }
    state.length = 272;
    state.tail_start = 192;
    state.first_page = 1;
    state.page_end = 3;
    state.ring_head = 2;
  }
  [[nodiscard]] Pieces pieces() const { return {layer, state, 0}; }
};

TEST(SequencePieces, AreSinksThenPagesThenTheTail) {
  const Sequence sequence;
  const Pieces pieces = sequence.pieces();
  ASSERT_EQ(pieces.count(), 5);
  const std::int64_t starts[] = {0, 4, 132, 192, 256};
  const int tokens[] = {4, 64, 60, 64, 16};
  const int blocks[] = {0, 5, 2, 2, 0};  // index in its pool; the ring wraps around
  for (int i = 0; i < 5; ++i) {
    EXPECT_EQ(pieces[i].first_position, starts[i]);
    EXPECT_EQ(pieces[i].tokens, tokens[i]);
    EXPECT_EQ(pieces[i].block, sequence.memory.data() + 64 * blocks[i]);
  }
  EXPECT_EQ(pieces[0].kind, PageKind::Sinks);
  EXPECT_EQ(pieces[2].kind, PageKind::Sealed);
  EXPECT_EQ(pieces[4].kind, PageKind::Tail);
}

TEST(SequencePieces, AreFoundByPosition) {
  const Sequence sequence;
  const Pieces pieces = sequence.pieces();
  const auto expect = [&](int piece, std::initializer_list<std::int64_t> positions) {
    for (const std::int64_t position : positions) EXPECT_EQ(pieces.at(position), piece) << position;
  };
  expect(0, {0, 3});
  expect(1, {4, 67});
  expect(2, {68, 131, 132, 191});  // positions in a gap: the piece after it
  expect(3, {192, 255});
  expect(4, {256, 271});
}

TEST(SequencePieces, KnowWhereTokensAreMissing) {
  const Sequence sequence;
  const Pieces pieces = sequence.pieces();
  const auto gap = [&](int index, std::int64_t end) {
    return gap_after(pieces, pieces[index], index, end);
  };
  EXPECT_FALSE(gap(0, 272));
  EXPECT_TRUE(gap(1, 272)) << "removed";
  EXPECT_FALSE(gap(1, 68)) << "nobody asks for what is missing";
  EXPECT_FALSE(gap(2, 272));
  EXPECT_FALSE(gap(4, 272));
  EXPECT_TRUE(gap(4, 273)) << "not appended";
}

TEST(SequencePieces, OfAShortSequenceAreSinksAlone) {
  Sequence sequence;
  sequence.state = {};
  sequence.state.length = 3;
  sequence.state.tail_start = 4;
  EXPECT_EQ(sequence.pieces().count(), 1);
  EXPECT_EQ(sequence.pieces()[0].tokens, 3);
}

}  // namespace
}  // namespace kvtilt::cuda::detail
