// SPDX-License-Identifier: MIT
// Ragged batches have the bits of their sequences alone, with any workers.
#include <kvtilt/attention/work.hpp>

#include "support/attend_check.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <span>
#include <thread>
#include <vector>

namespace kvtilt {
namespace {

using test::Random;
using test::Rows;

void run_threads(void*, int workers, ParallelFor::Task task, void* argument) {
  std::vector<std::thread> threads;
  for (int worker = 0; worker < workers; ++worker) threads.emplace_back(task, argument, worker);
  for (std::thread& thread : threads) thread.join();
}

/// One thread runs all workers, the last first: as in a pool whose other threads never wake up.
void run_backwards(void*, int workers, ParallelFor::Task task, void* argument) {
  for (int worker = workers; worker-- > 0;) task(argument, worker);
}

/// Sequences of one layer with very different lengths, and queries for each.
struct Ragged {
  LayerShape shape{2, 64, 72};
  KVCache cache;
  std::vector<AttendRequest> requests;
  std::deque<Rows<float>> queries;
  std::deque<test::Output> outputs;

  explicit Ragged(Random& random)
      : cache(test::make_cache(shape, presets::k4v2,
                               {.page_tokens = 32, .sink_tokens = 3, .recent_tokens = 40})) {
    for (const int tokens : {0, 5000, 1, 33, 0, 2100, 70}) {
      const SequenceId id = test::open_reserved(cache, tokens);
      const Rows<float> keys = test::random_rows(random, tokens, 2, 64);
      const Rows<float> values = test::random_rows(random, tokens, 2, 72);
      KVTILT_EXPECT_OK(cache.append(id, 0, keys.view(), values.view()));
      const std::int64_t count = std::min(tokens, tokens == 2100 ? 40 : 2);
      queries.push_back(test::random_queries(random, shape, count, 3));
      outputs.emplace_back(count, 6, 72);
      requests.push_back({cache.view(id, 0).value(), queries.back().view(), outputs.back().view()});
    }
  }
};

TEST(WorkAgreement, ABatchHasTheBitsOfItsSequencesWhateverTheWorkers) {
  Random random(1);
  Ragged batch(random);
  std::vector<test::Output> alone;
  for (std::size_t i = 0; i < batch.requests.size(); ++i)
    alone.push_back(test::attended(batch.requests[i].view, batch.queries[i], AttendOptions{}));
  for (const int workers : {1, 2, 3, 16})
    for (const auto run : {&run_threads, &run_backwards}) {
      for (test::Output& output : batch.outputs)
        std::fill(output.lse.begin(), output.lse.end(), 7.0f);
      std::vector<std::byte> workspace(attend_workspace_bytes(batch.requests, workers),
                                       std::byte{0xff});
      KVTILT_EXPECT_OK(attend(batch.requests, workspace, {workers, run, nullptr}));
      for (std::size_t i = 0; i < alone.size(); ++i) {
        ASSERT_EQ(batch.outputs[i].out.data, alone[i].out.data) << workers << " workers, " << i;
        ASSERT_EQ(batch.outputs[i].lse, alone[i].lse) << workers << " workers, " << i;
      }
    }
}

TEST(WorkAgreement, ManyRowsOnOneHeadHaveTheSameBitsWhateverTheWorkers) {
  Random random(4);
  const LayerShape shape{1, 32, 24};
  KVCache cache = test::make_cache(shape, presets::k4v2, {.page_tokens = 32});
  const SequenceId id = test::open_reserved(cache, 3300);
  const Rows<float> keys = test::random_rows(random, 3300, 1, 32);
  const Rows<float> values = test::random_rows(random, 3300, 1, 24);
  KVTILT_EXPECT_OK(cache.append(id, 0, keys.view(), values.view()));
  const LayerView view = cache.view(id, 0).value();
  const Rows<float> queries = test::random_queries(random, shape, 1, 71);
  const test::Output alone = test::attended(view, queries, AttendOptions{});
  for (const int workers : {2, 64}) {
    test::Output output(1, 71, 24);
    const AttendRequest request{view, queries.view(), output.view()};
    std::vector<std::byte> workspace(attend_workspace_bytes({&request, 1}, workers),
                                     std::byte{0xff});
    KVTILT_EXPECT_OK(attend({&request, 1}, workspace, {workers, &run_threads, nullptr}));
    EXPECT_EQ(output.out.data, alone.out.data) << workers << " workers";
    EXPECT_EQ(output.lse, alone.lse) << workers << " workers";
  }
}

/// A sequence of a batch that is only planned, never computed.
struct Shape {
  LayerShape layer;
  int query_heads;
  int pages;
};

/// The work items into which a batch is cut. Owns what its requests point to.
struct Cut {
  std::vector<AttendRequest> requests;
  std::vector<std::byte> workspace;
  std::span<const detail::Work> works;

  Cut(const std::vector<Shape>& shapes, int workers) {
    for (const Shape& one : shapes) {
      AttendRequest request{};
      request.view.shape = one.layer;
      request.view.page_count = one.pages;
      request.view.length = std::int64_t{64} * one.pages;
      request.queries.tokens = 1;
      request.queries.heads = one.query_heads;
      requests.push_back(request);
    }
    workspace.resize(attend_workspace_bytes(requests, workers));
    works =
        detail::AttendWorkspace(requests, workers, detail::align_workspace(workspace.data())).works;
  }

  [[nodiscard]] std::int64_t items() const {
    return works.back().first_item + works.back().tiles() * works.back().spans;
  }
};

TEST(WorkItems, ASequenceAloneKeepsManyWorkersBusy) {
  EXPECT_EQ(Cut({{{1, 64, 64}, 71, 513}}, 64).items(), 5 * 17) << "Falcon";
  EXPECT_EQ(Cut({{{1, 576, 512}, 128, 513}}, 64).items(), 8 * 17) << "absorbed MLA";
  EXPECT_EQ(Cut({{{8, 128, 128}, 32, 513}}, 2).items(), 8 * 17) << "GQA";
  EXPECT_EQ(Cut({{{8, 128, 128}, 32, 32}}, 64).items(), 8) << "one span";
  EXPECT_EQ(Cut({{{1, 64, 64}, 71, 513}}, 1).items(), 5) << "one worker";
}

TEST(WorkItems, ABatchWithEnoughTilesIsNotSplit) {
  const Shape sequence{{8, 128, 128}, 32, 513};
  const Cut full(std::vector<Shape>(64, sequence), 64);
  EXPECT_EQ(full.items(), 64 * 8);
  const Cut alone({{sequence.layer, sequence.query_heads, 1}}, 64);
  EXPECT_LT(full.workspace.size(), alone.workspace.size() + 64 * sizeof(detail::Work) + 1000)
      << "there are partial results";
  EXPECT_EQ(Cut(std::vector<Shape>(63, sequence), 64).items(), 63 * 8 * 17) << "a tile too few";
}

TEST(WorkItems, TheLongSequenceOfABatchIsSplitAlone) {
  std::vector<Shape> shapes(64, {{8, 128, 128}, 32, 33});
  shapes[20].pages = 4000;
  const Cut cut(shapes, 16);
  for (std::size_t i = 0; i < 64; ++i) EXPECT_EQ(cut.works[i].spans, i == 20 ? 125 : 1) << i;
}

TEST(WorkItems, PartialResultsTakeTheRowsThereAre) {
  for (const int heads : {8, 32, 8 * 71}) {
    const Shape sequence{{8, 128, 128}, heads, 513};
    const Shape one_span{sequence.layer, heads, 32};
    const std::size_t floats = static_cast<std::size_t>(heads) * 17 * (128 + 2);
    EXPECT_EQ(Cut({sequence}, 64).workspace.size() - Cut({one_span}, 64).workspace.size(),
              round_up(floats * sizeof(float), page_alignment))
        << heads << " query heads";
  }
}

TEST(WorkAgreement, PrefillOfABatchHasTheBitsOfItsSequences) {
  Random random(2);
  Ragged batch(random);
  std::deque<Rows<float>> keys;
  std::deque<Rows<float>> values;
  std::vector<PrefillRequest> requests;
  std::vector<test::Output> alone;
  for (std::size_t i = 0; i < batch.requests.size(); ++i) {
    const AttendRequest& request = batch.requests[i];
    const std::int64_t count = request.queries.tokens;
    keys.push_back(test::random_rows(random, count, 2, 64));
    values.push_back(test::random_rows(random, count, 2, 72));
    requests.push_back(
        {request.view, request.queries, keys.back().view(), values.back().view(), request.out});
    alone.emplace_back(count, 6, 72);
    std::vector<std::byte> workspace(attend_prefill_workspace_bytes(request.view, count));
    KVTILT_EXPECT_OK(attend_prefill(request.view, request.queries, keys.back().view(),
                                    values.back().view(), alone.back().view(), {}, workspace));
  }
  for (const int workers : {1, 2, 5}) {
    std::vector<std::byte> workspace(attend_prefill_workspace_bytes(requests, workers));
    KVTILT_EXPECT_OK(attend_prefill(requests, workspace, {workers, &run_threads, nullptr}));
    for (std::size_t i = 0; i < alone.size(); ++i)
      ASSERT_EQ(batch.outputs[i].out.data, alone[i].out.data) << workers << " workers, " << i;
  }
}

// In float32, the small values of the second span would vanish beside the large ones of the first.
TEST(WorkAgreement, SpansOfALongChunkAreSummedInDouble) {
  constexpr int span = detail::span_pages * detail::chunk_block_tokens;
  const LayerShape shape{1, 8, 8};
  KVCache cache = test::make_cache(shape, presets::k4v2);
  const LayerView past = cache.view(test::open_reserved(cache, 0), 0).value();
  const Rows<float> zeros(2 * span, 1, 8);  // all keys weigh the same
  Rows<float> values(2 * span, 1, 8);
  std::fill_n(values.data.begin(), 4 * 8, 0x1p15f);
  std::fill_n(values.data.begin() + span * 8, span * 8, 0x1p-14f);
  test::Output output(2 * span, 1, 8);
  std::vector<std::byte> workspace(attend_prefill_workspace_bytes(past, 2 * span));
  KVTILT_EXPECT_OK(attend_prefill(past, zeros.view(), zeros.view(), values.view(), output.view(),
                                  test::exact_options(), workspace));
  static_assert(span == 2048);
  for (int c = 0; c < 8; ++c) EXPECT_FLOAT_EQ(output.out.at(2 * span - 1, 0, c), 0x1p5f + 0x1p-15f);
}

TEST(WorkHostile, AByteLessOrNoWorkerIsRefused) {
  Random random(3);
  Ragged batch(random);
  for (const int workers : {1, 4}) {
    std::vector<std::byte> workspace(attend_workspace_bytes(batch.requests, workers) - 1);
    const Status status = attend(batch.requests, workspace, {workers, &run_threads, nullptr});
    EXPECT_EQ(status.code(), ErrorCode::InvalidArgument);
  }
  std::vector<std::byte> workspace(1 << 20);
  EXPECT_EQ(attend(batch.requests, workspace, {0, nullptr, nullptr}).code(),
            ErrorCode::InvalidArgument);
  for (const test::Output& output : batch.outputs)
    for (const float x : output.out.data) ASSERT_EQ(x, 77.0f);
}

}  // namespace
}  // namespace kvtilt
