// SPDX-License-Identifier: MIT
#include <kvtilt/cache/kv_cache.hpp>
#include <kvtilt/cuda/cache/sequence_state.hpp>

#include "support/random.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <set>
#include <vector>

namespace kvtilt::test {
namespace {

using cuda::PageSlot;
using cuda::SequenceState;
using cuda::SingleThread;

constexpr int page_tokens = 32;
constexpr int ring_blocks = 3;

/// A sequence's table as the device keeps it, in host memory.
struct Table {
  SequenceState state;
  std::vector<PageSlot> slots;

  Table(const TokenPlacement& placement, int pages, int first_page)
      : state(cuda::empty_state(placement, pages)), slots(1000, PageSlot{-1, -1, -1}) {
    for (int i = 0; i < pages; ++i) slots[static_cast<std::size_t>(i)].page = first_page + i;
  }
};

/// Entries, lengths and tail are equal; no page is in the table twice.
void expect_equal(const Table& table, const LayerView& view) {
  const SequenceState& state = table.state;
  ASSERT_EQ(state.length, view.length);
  ASSERT_EQ(state.first_kept, view.first_kept);
  std::size_t entry = static_cast<std::size_t>(state.first_page);
  bool tail = false;
  for (int i = 0; i < view.page_count; ++i) {
    const PageEntry& page = view.pages[i];
    if (page.kind == PageKind::Sealed) {
      ASSERT_LT(entry, static_cast<std::size_t>(state.page_end));
      ASSERT_EQ(table.slots[entry].first_position, page.first_position);
      ASSERT_EQ(table.slots[entry].tokens, page.tokens);
      ++entry;
    } else if (page.kind == PageKind::Tail && !tail) {
      tail = true;
      ASSERT_EQ(state.tail_start, page.first_position);
    }
  }
  ASSERT_EQ(entry, static_cast<std::size_t>(state.page_end));
  std::set<int> pages;
  for (int i = 0; i < state.page_capacity; ++i)
    ASSERT_TRUE(pages.insert(table.slots[static_cast<std::size_t>(i)].page).second);
}

class StateProgram {
 public:
  StateProgram(int window, std::uint64_t seed)
      : random_(seed), placement_{page_tokens, 4, 2 * page_tokens, window} {
    CacheOptions options;
    options.page_tokens = page_tokens;
    options.recent_tokens = placement_.recent_tokens;
    cache_ = std::make_unique<KVCache>(
        *KVCache::create({{LayerShape{1, 8, 8, window}}}, {{{Recipe{}}}}, options));
  }

  void run(int steps) {
    open();
    for (int step = 0; step < steps && !testing::Test::HasFailure(); ++step) {
      const std::size_t one =
          static_cast<std::size_t>(random_.below(static_cast<int>(ids_.size())));
      switch (random_.below(8)) {
        case 0:
          truncate(one);
          break;
        case 1:
          remove(one);
          break;
        case 2:
          fork(one);
          break;
        default:
          append(one);
          break;
      }
      for (std::size_t i = 0; i < ids_.size(); ++i)
        expect_equal(tables_[i], *cache_->view(ids_[i], 0));
    }
  }

 private:
  void open() {
    ids_.push_back(*cache_->open());
    EXPECT_TRUE(cache_->reserve(ids_.back(), 6000).ok());
    tables_.emplace_back(placement_, 300, next_page_);
    next_page_ += 300;
  }

  void append(std::size_t one) {
    const int tokens = random_.chance(3) ? random_.below(300) : random_.below(40);
    const std::vector<F16> zeros(static_cast<std::size_t>(tokens) * 8 + 1);
    const TensorView rows(zeros.data(), tokens, 1, 8);
    if (!cache_->append(ids_[one], 0, rows, rows).ok()) return;
    Table& table = tables_[one];
    const cuda::AppendPlan plan = plan_append(placement_, table.state, table.slots.data(), tokens);
    ASSERT_TRUE(plan.fits);
    std::vector<int> pages;
    for (int i = 0; i < plan.sealed(); ++i)
      pages.push_back(page_for(plan, table.state, table.slots.data(), i));
    finish_append(SingleThread{}, placement_, plan, ring_blocks, table.state, table.slots.data());
    for (std::size_t i = 0; i < pages.size(); ++i)
      ASSERT_EQ(table.slots[static_cast<std::size_t>(table.state.page_end) - pages.size() + i].page,
                pages[i]);
    ASSERT_EQ(placement_.tokens_before_seal(table.state.tail_start, table.state.length),
              *cache_->tokens_before_seal(ids_[one], 0));
  }

  void truncate(std::size_t one) {
    Table& table = tables_[one];
    const int length = static_cast<int>(table.state.length);
    const std::int64_t to =
        random_.chance(3) ? random_.below(length + 1) : std::max(0, length - random_.below(60));
    const bool refused =
        placement_.needs_freed_tokens(table.state.first_kept, table.state.length, to);
    ASSERT_EQ(cache_->truncate(ids_[one], to).ok(), !refused);
    if (!refused) cuda::truncate(SingleThread{}, placement_, table.state, table.slots.data(), to);
  }

  void remove(std::size_t one) {
    Table& table = tables_[one];
    const int entries = table.state.page_end;
    if (entries == 0) return;
    const int a = random_.below(entries);
    const int b = random_.between(a, std::min(entries - 1, a + 3));
    std::int64_t from =
        table.slots[static_cast<std::size_t>(a)].first_position + (random_.chance(8) ? 1 : 0);
    if (random_.chance(3)) from = 4 * random_.below(2) + page_tokens * random_.below(6);
    const std::int64_t to = end_of(table.slots[static_cast<std::size_t>(b)]);
    std::int32_t first = 0;
    std::int32_t last = 0;
    const bool found =
        find_whole_pages(placement_, table.state, table.slots.data(), from, to, first, last);
    ASSERT_EQ(cache_->remove(ids_[one], from, to).ok(), found);
    if (found) cuda::drop_pages(SingleThread{}, table.state, table.slots.data(), first, last);
  }

  void fork(std::size_t one) {
    if (ids_.size() > 3) {
      EXPECT_TRUE(cache_->close(ids_.back()).ok());
      ids_.pop_back();
      tables_.pop_back();
      return;
    }
    Result<SequenceId> child = cache_->fork(ids_[one], 6000);
    ASSERT_TRUE(child.ok()) << child.message();
    ids_.push_back(*child);
    Table table(placement_, 300, next_page_);
    next_page_ += 300;
    Table& parent = tables_[one];
    share_pages(SingleThread{}, parent.state, parent.slots.data(), table.state, table.slots.data());
    tables_.push_back(table);
  }

  Random random_;
  TokenPlacement placement_;
  std::unique_ptr<KVCache> cache_;
  std::vector<SequenceId> ids_;
  std::vector<Table> tables_;
  int next_page_ = 0;
};

TEST(SequenceStateRandom, DoesWhatTheCpuDoes) {
  for (const int window : {0, 1, 50, 200, 1000})
    for (std::uint64_t seed = 0; seed < 20 && !HasFailure(); ++seed) {
      StateProgram(window, 100 * static_cast<std::uint64_t>(window) + seed).run(200);
      if (HasFailure()) ADD_FAILURE() << "window " << window << ", seed " << seed;
    }
}

TEST(SequenceState, SharedPagesAreNeverWrittenAgain) {
  const TokenPlacement placement{page_tokens, 0, 0, 64};
  Table parent(placement, 8, 0);
  cuda::AppendPlan plan = plan_append(placement, parent.state, parent.slots.data(), 96);
  finish_append(SingleThread{}, placement, plan, ring_blocks, parent.state, parent.slots.data());
  Table child(placement, 4, 100);
  share_pages(SingleThread{}, parent.state, parent.slots.data(), child.state, child.slots.data());
  const int shared = child.state.page_end;
  std::set<int> old;
  for (int i = 0; i < shared; ++i) old.insert(child.slots[static_cast<std::size_t>(i)].page);
  for (int round = 0; round < 4; ++round) {
    plan = plan_append(placement, child.state, child.slots.data(), 32);
    ASSERT_TRUE(plan.fits);
    EXPECT_EQ(old.count(page_for(plan, child.state, child.slots.data(), 0)), 0u);
    finish_append(SingleThread{}, placement, plan, ring_blocks, child.state, child.slots.data());
  }
  EXPECT_EQ(child.state.shared_end, 0);
  EXPECT_EQ(child.state.page_capacity, 4);
}

}  // namespace
}  // namespace kvtilt::test
