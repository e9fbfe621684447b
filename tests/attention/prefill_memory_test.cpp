// SPDX-License-Identifier: MIT
#include <kvtilt/attention/prefill_memory.hpp>

#include "support/caches.hpp"
#include "support/counting_allocator.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace kvtilt {
namespace {

using test::CountingAllocator;
using test::Random;
using test::random_rows;
using test::Rows;
using testing::HasSubstr;

const CacheShape shape{{{2, 72, 128, 0}, {0, 0, 0, 0}, {1, 16, 16, 50}, {1, 64, 40, 0}}};
const Plan plan = Plan::uniform(shape, presets::k4v2);
constexpr std::int64_t tokens = 150;

/// A batch's rows for one layer: [sequences][tokens].
struct Chunks {
  std::vector<Rows<float>> queries;
  std::vector<Rows<float>> keys;
  std::vector<Rows<float>> values;
  std::vector<test::Output> outputs;

  Chunks(Random& random, const LayerShape& layer, std::int64_t count, int sequences) {
    for (int i = 0; i < sequences; ++i) {
      queries.push_back(random_rows(random, count, 2 * layer.kv_heads, layer.key_dim));
      keys.push_back(random_rows(random, count, layer.kv_heads, layer.key_dim));
      values.push_back(random_rows(random, count, layer.kv_heads, layer.value_dim));
      outputs.emplace_back(count, 2 * layer.kv_heads, layer.value_dim);
    }
  }
};

/// Prefills the first step.sequences sequences; returns how often the workspace was too small.
int prefill(KVCache& cache, const std::vector<SequenceId>& ids, const PrefillStep& step,
            std::span<std::byte> workspace) {
  int refusals = 0;
  Random random(5);
  const ParallelFor parallel{step.workers};
  for (std::int64_t first = 0; first < tokens; first += step.chunk_tokens) {
    const std::int64_t count = std::min(step.chunk_tokens, tokens - first);
    for (const int layer : {0, 2, 3}) {
      Chunks chunks(random, shape.layers[static_cast<std::size_t>(layer)], count, step.sequences);
      std::vector<PrefillRequest> requests;
      for (std::size_t i = 0; i < static_cast<std::size_t>(step.sequences); ++i)
        requests.push_back({cache.view(ids[i], layer).value(), chunks.queries[i].view(),
                            chunks.keys[i].view(), chunks.values[i].view(),
                            chunks.outputs[i].view()});
      const Status status = attend_prefill(requests, workspace, parallel);
      EXPECT_TRUE(status.ok() || status.code() == ErrorCode::InvalidArgument);
      refusals += status.ok() ? 0 : 1;
      for (std::size_t i = 0; i < static_cast<std::size_t>(step.sequences); ++i)
        KVTILT_EXPECT_OK(
            cache.append(ids[i], layer, chunks.keys[i].view(), chunks.values[i].view()));
    }
  }
  return refusals;
}

TEST(PrefillMemory, IsThePeakOfAChunkedPrefill) {
  for (const PrefillStep step : {PrefillStep{32, 1, 1}, PrefillStep{150, 1, 1},
                                 PrefillStep{70, 2, 1}, PrefillStep{65, 3, 4}}) {
    SCOPED_TRACE("chunks of " + std::to_string(step.chunk_tokens));
    CountingAllocator memory;
    CacheOptions options;
    options.allocator = memory.get();
    options.page_tokens = 32;
    options.recent_tokens = 40;
    options.sink_tokens = 130;  // makes the largest block, which sets the tile size
    const PrefillMemory planned =
        plan_prefill_memory(shape, plan, options, tokens, 3, step).value();
    for (const std::size_t lacking : {0u, 1u}) {
      KVCache cache = test::make_cache(shape, plan, options);
      std::vector<SequenceId> ids;
      for (int i = 0; i < 3; ++i) ids.push_back(test::open_reserved(cache, tokens));
      const std::size_t bytes = planned.workspace_bytes - lacking;
      auto* workspace = static_cast<std::byte*>(
          options.allocator.allocate(options.allocator.context, bytes, page_alignment));
      const int refusals = prefill(cache, ids, step, {workspace, bytes});
      EXPECT_EQ(planned.peak_bytes() - lacking, memory.bytes);
      if (lacking == 0)
        EXPECT_EQ(refusals, 0);
      else
        EXPECT_GT(refusals, 0) << "a byte less would have done";
      options.allocator.deallocate(options.allocator.context, workspace, bytes, page_alignment);
    }
    EXPECT_EQ(memory.bytes, 0u);
  }
}

TEST(PrefillMemory, TheCachePartIsPlanMemorys) {
  const PrefillMemory planned = plan_prefill_memory(shape, plan, {}, 1000, 2, {}).value();
  const MemoryPlan alone = plan_memory(shape, plan, {}, 1000, 2).value();
  EXPECT_EQ(planned.cache.reserved_bytes(), alone.reserved_bytes());
  EXPECT_EQ(planned.cache.filled.effective_bits(), alone.filled.effective_bits());
}

TEST(PrefillMemory, AModelWithoutACacheNeedsNothing) {
  const CacheShape none{{{0, 0, 0, 0}}};
  EXPECT_EQ(
      plan_prefill_memory(none, Plan::uniform(none, presets::k4v2), {}, 100, 1, {})->peak_bytes(),
      0u);
}

TEST(PrefillMemoryHostile, StepsOutOfRangeAreNamed) {
  const auto refuses = [](const PrefillStep& step, const char* words) {
    const Result<PrefillMemory> planned = plan_prefill_memory(shape, plan, {}, 100, 4, step);
    EXPECT_EQ(planned.code(), ErrorCode::InvalidArgument) << words;
    EXPECT_THAT(std::string(planned.message()), HasSubstr(words));
  };
  refuses({0, 1, 1}, "chunk_tokens is 0");
  refuses({-5, 1, 1}, "chunk_tokens is -5");
  refuses({(1 << 20) + 1, 1, 1}, "chunk_tokens is 1048577");
  refuses({64, 0, 1}, "0 sequences of 4");
  refuses({64, 5, 1}, "5 sequences of 4");
  refuses({64, 1, 0}, "0 workers");
  EXPECT_TRUE(plan_prefill_memory(shape, plan, {}, 100, 4, {1 << 20, 4, 1 << 20}).ok());
  EXPECT_EQ(plan_prefill_memory(shape, plan, {}, -1, 4, {}).message(),
            plan_memory(shape, plan, {}, -1, 4).message());
  EXPECT_EQ(plan_prefill_memory(shape, {}, {}, 100, 1, {}).message(),
            plan_memory(shape, {}, {}, 100).message());
  EXPECT_EQ(plan_prefill_memory(shape, plan, {}, 100, 5000, {}).message(),
            plan_memory(shape, plan, {}, 100, 5000).message());
}

}  // namespace
}  // namespace kvtilt
