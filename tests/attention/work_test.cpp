// SPDX-License-Identifier: MIT
// Ragged batches over workers: the same bits as one by one, whoever does the work.
#include <kvtilt/attention/work.hpp>

#include "support/attend_check.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <deque>
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

/// Worker 0 takes everything: what a pool does whose other threads never wake up.
void run_backwards(void*, int workers, ParallelFor::Task task, void* argument) {
  for (int worker = workers; worker-- > 0;) task(argument, worker);
}

/// Sequences of very different lengths in one layer, and queries for each.
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
