// SPDX-License-Identifier: MIT
/// What may run concurrently: writers of different sequences, readers of sealed pages, and calls
/// that allocate and free. Run under the thread sanitizer too: it finds races that these checks
/// cannot.
#include <kvtilt/cache/kv_cache.hpp>

#include "support/small_cache.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <thread>
#include <vector>

namespace kvtilt {
namespace {

using test::expect_alone;
using test::one_head;
using test::Output;
using test::Random;
using test::random_rows;
using test::Rows;
using test::small_pages;

Status append(KVCache& cache, SequenceId id, const Rows<float>& tokens, std::int64_t first,
              std::int64_t count) {
  return cache.append(id, 0, tokens.view(first, count), tokens.view(first, count));
}

TEST(KVCacheThreads, SequencesAreWrittenReservedAndClosedAtTheSameTime) {
  KVCache cache = test::make_cache(one_head, presets::k4v2, small_pages());
  std::vector<Rows<float>> tokens;
  std::vector<SequenceId> kept(4);
  Random random(5);
  for (int i = 0; i < 4; ++i) tokens.push_back(random_rows(random, 150, 1, 32));
  std::vector<std::thread> threads;
  for (std::size_t i = 0; i < 4; ++i)
    threads.emplace_back([&, i] {
      for (int round = 0; round < 6; ++round) {
        const SequenceId id = cache.open().value();
        for (std::int64_t first = 0; first < 150; first += 10) {
          KVTILT_EXPECT_OK(cache.reserve(id, first + 10));
          KVTILT_EXPECT_OK(
              cache.append(id, 0, tokens[i].view(first, 10), tokens[i].view(first, 10)));
        }
        if (round == 5)
          kept[i] = id;
        else
          KVTILT_EXPECT_OK(cache.close(id));
      }
    });
  for (std::thread& thread : threads) thread.join();
  for (std::size_t i = 0; i < 4; ++i) expect_alone(cache.view(kept[i], 0).value(), tokens[i]);
}

// Under a limit, memory of sequences closed by one thread is returned while other threads hold
// pages beside it, shared pages included.
TEST(KVCacheThreads, MemoryGoesBackWhileOthersReserve) {
  CacheOptions options = small_pages();
  options.max_bytes = 60000;
  KVCache cache = test::make_cache(one_head, presets::k4v2, options);
  constexpr std::int64_t lengths[] = {30, 800, 60, 400};
  std::vector<Rows<float>> tokens;
  Random random(5);
  for (const std::int64_t length : lengths) tokens.push_back(random_rows(random, length, 1, 32));
  std::atomic<int> done = 0;
  std::atomic<int> refused = 0;
  std::vector<std::thread> threads;
  for (std::size_t i = 0; i < 4; ++i)
    threads.emplace_back([&, i] {
      for (int round = 0; round < 40; ++round) {
        const SequenceId id = cache.open().value();
        if (cache.reserve(id, lengths[i]).ok()) {
          KVTILT_EXPECT_OK(append(cache, id, tokens[i], 0, lengths[i]));
          const Result<SequenceId> fork = cache.fork(id);
          refused += fork.ok() ? 0 : 1;
          if (fork.ok()) {
            KVTILT_EXPECT_OK(cache.close(id));
            expect_alone(cache.view(*fork, 0).value(), tokens[i]);
            KVTILT_EXPECT_OK(cache.close(*fork));
            ++done;
            continue;
          }
        } else {
          ++refused;
        }
        KVTILT_EXPECT_OK(cache.close(id));
      }
    });
  for (std::thread& thread : threads) thread.join();
  EXPECT_GT(done, 0);
  EXPECT_LE(cache.memory().reserved_bytes, options.max_bytes);
  for (const std::int64_t length : lengths) {  // each one fits on its own
    const SequenceId id = test::open_reserved(cache, length);
    KVTILT_EXPECT_OK(cache.close(id));
  }
}

TEST(KVCacheThreads, ReadersShareASequenceWhileOthersGrow) {
  KVCache cache = test::make_cache(one_head, presets::k4v2, small_pages());
  Random random(6);
  const Rows<float> tokens = random_rows(random, 120, 1, 32);
  const SequenceId shared = test::open_reserved(cache, 120);
  KVTILT_EXPECT_OK(cache.append(shared, 0, tokens.view(), tokens.view()));
  const Rows<float> queries = test::random_queries(random, one_head, 3, 2);
  const Output expected = test::attended(cache.view(shared, 0).value(), queries);
  std::atomic<int> equal = 0;
  std::vector<std::thread> threads;
  for (int reader = 0; reader < 3; ++reader)
    threads.emplace_back([&] {
      for (int round = 0; round < 20; ++round)
        equal +=
            test::attended(cache.view(shared, 0).value(), queries).out.data == expected.out.data;
    });
  for (int writer = 0; writer < 2; ++writer)
    threads.emplace_back([&] {
      for (int round = 0; round < 5; ++round) {
        const SequenceId id = test::open_reserved(cache, 120);
        for (std::int64_t first = 0; first < 120; first += 8)
          KVTILT_EXPECT_OK(cache.append(id, 0, tokens.view(first, 8), tokens.view(first, 8)));
        KVTILT_EXPECT_OK(cache.close(id));
      }
    });
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(equal, 60);
}

TEST(KVCacheThreads, AForksPagesAreReadWhileTheOtherGrowsShrinksAndGoes) {
  KVCache cache = test::make_cache(one_head, presets::k4v2, small_pages());
  Random random(7);
  const Rows<float> tokens = random_rows(random, 400, 1, 32);
  const Rows<float> queries = test::random_queries(random, one_head, 3, 2);
  const SequenceId parent = test::open_reserved(cache, 400);
  KVTILT_EXPECT_OK(append(cache, parent, tokens, 0, 200));
  const SequenceId child = cache.fork(parent).value();
  const Output expected = test::attended(cache.view(child, 0).value(), queries);
  constexpr int readers = 2;
  constexpr int rounds = 20;
  std::atomic<int> equal = 0;
  std::vector<std::thread> threads;
  for (int reader = 0; reader < readers; ++reader)
    threads.emplace_back([&] {
      for (int round = 0; round < rounds; ++round)
        equal +=
            test::attended(cache.view(child, 0).value(), queries).out.data == expected.out.data;
    });
  threads.emplace_back([&] {
    KVTILT_EXPECT_OK(append(cache, parent, tokens, 200, 100));
    KVTILT_EXPECT_OK(cache.truncate(parent, 20));  // releases all shared pages
    KVTILT_EXPECT_OK(cache.reserve(parent, 400));
    for (std::int64_t first = 20; first < 400; first += 20)
      KVTILT_EXPECT_OK(append(cache, parent, tokens, first, 20));
    KVTILT_EXPECT_OK(cache.close(parent));
  });
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(equal, readers * rounds);
}

// Truncation takes no lock: only the page's counter orders one sequence's reads before the other's
// writes. The scalar kernels run: the sanitizer does not see vectors of 32 or 64 bytes.
TEST(KVCacheThreads, TheLastToLetGoOfASharedPageWritesIntoIt) {
  CacheOptions options = small_pages();
  options.isa = test::usable_isas().front();
  KVCache cache = test::make_cache(one_head, presets::k4v2, options);
  Random random(9);
  const Rows<float> prompt = random_rows(random, 150, 1, 32);
  const Rows<float> next[] = {random_rows(random, 150, 1, 32), random_rows(random, 150, 1, 32)};
  const Rows<float> queries = test::random_queries(random, one_head, 1, 1);
  for (int round = 0; round < 40; ++round) {
    const SequenceId base = test::open_reserved(cache, 150);
    KVTILT_EXPECT_OK(append(cache, base, prompt, 0, 150));
    const SequenceId ids[] = {cache.fork(base, 600).value(), cache.fork(base, 600).value()};
    const bool forks = round % 2 == 0;  // otherwise only these two share the pages
    if (!forks) KVTILT_EXPECT_OK(cache.close(base));
    std::vector<std::thread> threads;
    for (const int i : {0, 1})
      threads.emplace_back([&, i] {
        test::attended(cache.view(ids[i], 0).value(), queries);
        KVTILT_EXPECT_OK(cache.truncate(ids[i], 0));
        KVTILT_EXPECT_OK(append(cache, ids[i], next[i], 0, 150));
      });
    for (int i = 0; forks && i < 5; ++i) KVTILT_EXPECT_OK(cache.close(cache.fork(base).value()));
    for (std::thread& thread : threads) thread.join();
    for (const int i : {0, 1}) {
      expect_alone(cache.view(ids[i], 0).value(), next[i]);
      KVTILT_EXPECT_OK(cache.close(ids[i]));
    }
    if (forks) KVTILT_EXPECT_OK(cache.close(base));
  }
}

// One thread reports memory without any synchronization with the writers.
TEST(KVCacheThreads, MemoryIsReportedWhileSequencesAreWritten) {
  constexpr LayerShape window{1, 32, 32, 50};
  KVCache cache = test::make_cache(window, presets::k4v2, small_pages());
  Random random(10);
  const Rows<float> tokens = random_rows(random, 300, 1, 32);
  const SequenceId ids[] = {test::open_reserved(cache, 300), test::open_reserved(cache, 300)};
  const std::size_t empty = cache.memory().reserved_bytes;
  std::atomic<int> writing = 2;
  std::vector<std::thread> threads;
  for (const SequenceId id : ids)
    threads.emplace_back([&, id] {
      for (int round = 0; round < 10; ++round) {
        for (std::int64_t first = 0; first < 300; first += 20)
          KVTILT_EXPECT_OK(append(cache, id, tokens, first, 20));
        KVTILT_EXPECT_OK(cache.truncate(id, 299));
        const LayerView view = cache.view(id, 0).value();
        const std::int64_t page = view.pages[2].first_position;
        KVTILT_EXPECT_OK(cache.remove(id, page, page + 32));
        KVTILT_EXPECT_OK(cache.close(cache.fork(id).value()));
        KVTILT_EXPECT_OK(cache.truncate(id, 0));
        KVTILT_EXPECT_OK(cache.reserve(id, 300));
      }
      --writing;
    });
  while (writing > 0) {
    const MemoryReport all = cache.memory();
    EXPECT_LE(all.elements, 4 * 300 * 64);
    EXPECT_LE(all.bytes_in_use(), all.reserved_bytes + all.tail_bytes + all.sink_bytes);
    EXPECT_LE(cache.memory(ids[0])->elements, 300 * 64);
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(cache.memory().bytes_in_use(), 0u);
  EXPECT_GE(cache.memory().reserved_bytes, empty);
}

TEST(KVCacheThreads, OnePromptIsForkedExtendedAndClosedByMany) {
  KVCache cache = test::make_cache(one_head, presets::k4v2, small_pages());
  Random random(8);
  const Rows<float> prompt = random_rows(random, 150, 1, 32);
  const SequenceId shared = test::open_reserved(cache, 150);
  KVTILT_EXPECT_OK(append(cache, shared, prompt, 0, 150));
  std::vector<Rows<float>> whole;  // the prompt, then the tokens that each thread adds
  std::vector<SequenceId> kept(4);
  for (int i = 0; i < 4; ++i) {
    whole.push_back(random_rows(random, 300, 1, 32));
    std::copy(prompt.data.begin(), prompt.data.end(), whole.back().data.begin());
  }
  std::vector<std::thread> threads;
  for (std::size_t i = 0; i < 4; ++i)
    threads.emplace_back([&, i] {
      for (int round = 0; round < 6; ++round) {
        const SequenceId id = cache.fork(shared, 220).value();
        KVTILT_EXPECT_OK(append(cache, id, whole[i], 150, 70));
        const SequenceId child = cache.fork(id, 300).value();
        KVTILT_EXPECT_OK(cache.close(id));
        KVTILT_EXPECT_OK(append(cache, child, whole[i], 220, 80));
        if (round == 5)
          kept[i] = child;
        else
          KVTILT_EXPECT_OK(cache.close(child));
      }
    });
  for (std::thread& thread : threads) thread.join();
  KVTILT_EXPECT_OK(cache.close(shared));
  for (std::size_t i = 0; i < 4; ++i) expect_alone(cache.view(kept[i], 0).value(), whole[i]);
}

}  // namespace
}  // namespace kvtilt
