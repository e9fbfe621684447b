// SPDX-License-Identifier: MIT
// Errors that the example's program never meets: memory runs out, or keys cannot be stored.
#include "support/all_formats.hpp"
#define main example_main
#include "../../examples/paged_engine.cpp"
#undef main

#include <gtest/gtest.h>

#include <limits>
#include <memory>

namespace {

const Floats row(kv_heads* dim, 0.5f);

/// Appends `count` tokens to a sequence.
Status append(Engine& engine, Sequence& sequence, std::int64_t count) {
  for (std::int64_t i = 0; i < count; ++i)
    KVTILT_RETURN_IF_ERROR(engine.append(sequence, row, row));
  return {};
}

void expect_unchanged(const Engine& engine, const Sequence& sequence, std::size_t blocks,
                      std::size_t pages, std::int64_t length, std::size_t entries) {
  EXPECT_EQ(engine.blocks.size(), blocks);
  EXPECT_EQ(engine.pages.size(), pages);
  EXPECT_EQ(sequence.length, length);
  EXPECT_EQ(sequence.table.size(), entries);
}

TEST(PagedEngine, ARefusedTokenTakesNoBlock) {
  const auto engine = std::make_unique<Engine>();
  Sequence sequence;
  Floats broken = row;
  broken[3] = std::numeric_limits<float>::quiet_NaN();
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(engine->append(sequence, broken, row).code(), ErrorCode::InvalidValue);
    expect_unchanged(*engine, sequence, 2, 20, 0, 0);
  }
  EXPECT_TRUE(append(*engine, sequence, page_tokens - 1).ok());
  EXPECT_EQ(engine->append(sequence, broken, row).code(), ErrorCode::InvalidValue);
  expect_unchanged(*engine, sequence, 1, 20, page_tokens - 1, 1);
  EXPECT_TRUE(append(*engine, sequence, 1).ok());
  expect_unchanged(*engine, sequence, 2, 19, page_tokens, 1);
}

TEST(PagedEngine, NoFreeBlockOrPageIsAnError) {
  const auto engine = std::make_unique<Engine>();
  Sequence sequences[3];
  EXPECT_TRUE(append(*engine, sequences[0], 1).ok());
  EXPECT_TRUE(append(*engine, sequences[1], 1).ok());
  EXPECT_EQ(append(*engine, sequences[2], 1).message(), "no block is free");
  expect_unchanged(*engine, sequences[2], 0, 20, 0, 0);

  EXPECT_EQ(append(*engine, sequences[0], 21 * page_tokens).message(), "no page is free");
  expect_unchanged(*engine, sequences[0], 0, 0, 21 * page_tokens - 1, 21);
  Floats out(heads * dim);
  EXPECT_TRUE(engine->answer(sequences[0], Floats(heads * dim, 1.0f), out).ok());
  EXPECT_FLOAT_EQ(out[0], 0.5f);
}

}  // namespace
