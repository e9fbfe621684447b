// SPDX-License-Identifier: MIT
/// The state of a random program: a device cache beside a CPU cache that gets the same calls and a model
/// of its pages (PageAccount), and the comparison of every byte, table, length and count.
#pragma once

#include "cache_program.cuh"
#include "support.cuh"
#include "support/model_layers.hpp"
#include "support/page_account.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

namespace kvtilt::test {

/// One sequence of both caches.
struct HeldSequence {
  BothIds ids;
  std::vector<std::optional<PageAccount>> layers;
  bool told = true;   ///< the host knows what it holds on the device
  bool wild = false;  ///< content unknown: only checked not to touch other sequences

  [[nodiscard]] std::int64_t shortest() const { return shortest_of(layers); }
  [[nodiscard]] std::int64_t longest() const { return longest_of(layers); }
  /// Tokens that are in no layer any more.
  [[nodiscard]] std::int64_t dropped() const {
    std::int64_t least = std::numeric_limits<std::int64_t>::max();
    for (const auto& own : layers)
      if (own) least = std::min(least, own->dropped());
    return least;
  }
  [[nodiscard]] bool refuses_truncation(std::int64_t length) const {
    return std::any_of(layers.begin(), layers.end(),
                       [&](const auto& own) { return own && own->refuses_truncation(length); });
  }
};

/// The caches and what they should hold. A comparison returns what is wrong, or an empty string.
class ProgramState {
 public:
  explicit ProgramState(std::uint64_t seed) : random_(seed), setup_(random_) {
    if (setup_.misplaced >= 0) {
      bytes_ =
          cuda::plan_memory(setup_.shape, setup_.plan, setup_.options).value().device_bytes() + 255;
      memory_.emplace(std::vector<std::byte>(
          bytes_ + 2 * guard + static_cast<std::size_t>(setup_.misplaced), std::byte{0x7e}));
      setup_.options.device_memory =
          memory_->span().subspan(guard + static_cast<std::size_t>(setup_.misplaced), bytes_);
    }
    both_.emplace(setup_.shape, setup_.plan, setup_.options);
    pool_ = free_pages();
  }

 protected:
  static std::string message_of(const Status& status) {
    return status.ok() ? "" : std::string(status.message());
  }
  static std::size_t at(int layer) { return static_cast<std::size_t>(layer); }
  [[nodiscard]] bool cached(int layer) const { return both_->layer(layer).kv_heads > 0; }
  [[nodiscard]] int layers() const { return both_->layers(); }
  [[nodiscard]] std::int64_t most_tokens() const { return setup_.options.max_sequence_tokens; }
  /// The longest that a sequence may be reserved for.
  [[nodiscard]] std::int64_t most_tokens(const HeldSequence& one) const {
    return most_tokens() + one.dropped();
  }
  [[nodiscard]] const CacheProgramSetup& setup() const { return setup_; }
  cuda::KVCache& gpu() { return both_->gpu; }
  [[nodiscard]] const cuda::KVCache& gpu() const { return both_->gpu; }
  KVCache& cpu() { return both_->cpu; }
  std::vector<HeldSequence>& held() { return held_; }
  std::vector<SequenceId>& closed() { return closed_; }
  [[nodiscard]] cuda::LayerView view(int layer) const { return gpu().view(layer).value(); }

  /// After this step poll() may report any error.
  void expect_any_record() { any_record_ = true; }
  /// An error that poll() may report after the step; if none is `certain`, it may report nothing.
  void expect_record(ErrorCode code, bool certain = true) {
    expected_.push_back(code);
    certain_ = certain_ || certain;
  }

  /// Pages of each layer that no sequence has reserved.
  [[nodiscard]] std::vector<std::int64_t> free_pages() const {
    std::vector<std::int64_t> free;
    for (int layer = 0; layer < both_->layers(); ++layer)
      free.push_back(cached(layer) ? gpu().free_pages(layer).value() : 0);
    return free;
  }

  /// Compares all content and reports of the caches.
  std::string compare() {
    for (int layer = 0; layer < layers(); ++layer)
      if (cached(layer))
        if (const std::string wrong = compare_pages(layer); !wrong.empty())
          return "layer " + std::to_string(layer) + ": " + wrong;
    for (const HeldSequence& one : held_)
      if (const std::string wrong = one.wild ? "" : compare(one); !wrong.empty())
        return "slot " + std::to_string(one.ids.gpu.slot) + ": " + wrong;
    return compare_record();
  }

  /// Whether, without sequences, all pages are free and nothing was written beside the cache's memory.
  std::string compare_memory() {
    for (int layer = 0; layer < both_->layers(); ++layer)
      if (cached(layer) && gpu().free_pages(layer).value() != pool_[at(layer)])
        return "pages of layer " + std::to_string(layer) + " did not come back";
    if (!memory_) return {};
    const std::vector<std::byte> all = memory_->get();
    const std::size_t first = guard + static_cast<std::size_t>(setup_.misplaced);
    for (std::size_t i = 0; i < all.size(); ++i)
      if ((i < first || i >= first + bytes_) && all[i] != std::byte{0x7e})
        return "wrote outside the caller's memory";
    return {};
  }

 private:
  /// Compares which sequence holds which page: only forks may share pages; all others must be free.
  std::string compare_pages(int layer) {
    const cuda::LayerView device = view(layer);
    std::map<std::int32_t, const void*> holders;
    std::set<std::int32_t> wild;
    bool told = true;
    for (const HeldSequence& one : held_) {
      told = told && one.told;
      for (const std::int32_t page : one.wild ? table_pages(one, device) : std::vector<int>{})
        wild.insert(page);
    }
    for (const HeldSequence& one : held_) {
      if (one.wild) continue;
      const PageAccount& own = *one.layers[at(layer)];
      const int slot = static_cast<int>(one.ids.gpu.slot);
      const cuda::SequenceState state = read_device(device.states + slot, 1)[0];
      if (state.page_end - state.first_page != static_cast<std::int64_t>(own.sealed().size()))
        return "a sequence uses " + std::to_string(state.page_end - state.first_page) +
               " pages, not " + std::to_string(own.sealed().size());
      if (state.page_capacity - state.page_end != own.unused())
        return "a sequence has " + std::to_string(state.page_capacity - state.page_end) +
               " unused pages, not " + std::to_string(own.unused());
      if (state.page_capacity > device.table_stride) return "a table is longer than its memory";
      const auto table = read_device(device.table(slot), at(state.page_capacity));
      for (std::size_t i = 0; i < table.size(); ++i) {
        const std::int32_t page = table[i].page;
        if (page < 0 || page >= pool_[at(layer)]) return "a page is outside the pool";
        const std::size_t entry = i - at(state.first_page);  // wraps around for entries before it
        const bool used = entry < own.sealed().size();
        const void* holder = used ? own.sealed()[entry].page.get() : nullptr;
        const auto [place, fresh] = holders.try_emplace(page, holder);
        if (!fresh && (!used || place->second != holder))
          return "page " + std::to_string(page) + " is in two sequences";
        if (wild.count(page) > 0 && !(used && own.sealed()[entry].shared))
          return "page " + std::to_string(page) + " is in a wild sequence, too";
        if (!used) continue;
        const PageAccount::Entry& expected = own.sealed()[entry];
        if (*expected.page < 0) *expected.page = page;
        if (*expected.page != page) return "a page moved";
        if (table[i].first_position != expected.first || table[i].tokens != expected.count)
          return "a page holds other positions";
      }
    }
    const std::int64_t left = pool_[at(layer)] - static_cast<std::int64_t>(holders.size());
    const std::int64_t free = gpu().free_pages(layer).value();
    if (told ? free == left : free <= left) return {};
    return std::to_string(free) + " pages are free, not " + std::to_string(left);
  }

  /// Pages that a sequence holds on the device.
  static std::vector<std::int32_t> table_pages(const HeldSequence& one,
                                               const cuda::LayerView& device) {
    const int slot = static_cast<int>(one.ids.gpu.slot);
    const std::int32_t count = read_device(device.states + slot, 1)[0].page_capacity;
    std::vector<std::int32_t> pages;
    for (const cuda::PageSlot& entry : read_device(device.table(slot), at(count)))
      pages.push_back(entry.page);
    return pages;
  }

  std::string compare(const HeldSequence& one) {
    const SequenceId id = one.ids.gpu;
    if (const testing::AssertionResult same = both_->same(one.ids); !same) return same.message();
    const std::int64_t most = most_tokens(one);
    std::int64_t reserved = most;
    bool exact = true;
    for (int layer = 0; layer < layers(); ++layer) {
      if (!cached(layer)) continue;
      const PageAccount& own = *one.layers[at(layer)];
      if (gpu().length(id, layer, nullptr).value() != own.length()) return "length on the device";
      reserved = std::min(reserved, own.reserved(most));
      exact = exact && both_->layer(layer).window == 0;
      if (!one.told) continue;
      if (gpu().length(id, layer).value() != own.length()) return "length of a layer";
      if (gpu().tokens_before_seal(id, layer).value() !=
          cpu().tokens_before_seal(one.ids.cpu, layer).value())
        return "tokens_before_seal";
    }
    if (!one.told) return {};
    if (gpu().length(id).value() != one.shortest()) return "length";
    const std::int64_t says = gpu().reserved_tokens(id).value();
    if (exact ? says != reserved : says > reserved)
      return "reserved_tokens() is " + std::to_string(says) + ", not " + std::to_string(reserved);
    const MemoryReport device = gpu().memory(id).value();
    const MemoryReport host = cpu().memory(one.ids.cpu).value();
    return device.elements == host.elements && device.page_bytes == host.page_bytes ? "" : "memory";
  }

  /// poll() must report what was refused first, then what was repaired, then nothing.
  std::string compare_record() {
    const auto meant = [&](const Status& status) {
      return any_record_ || std::count(expected_.begin(), expected_.end(), status.code()) > 0;
    };
    std::string wrong;
    int told = 0;
    for (Status status = gpu().poll(nullptr); !status.ok() && wrong.empty();
         status = gpu().poll(nullptr), ++told)
      if (!meant(status) || (told > 0 && status.code() != ErrorCode::InvalidValue) || told > 1)
        wrong = "poll: " + std::string(status.message());
    if (wrong.empty() && told == 0 && certain_ && !any_record_) wrong = "poll: nothing was told";
    any_record_ = false;
    expected_.clear();
    certain_ = false;
    return wrong;
  }

  static constexpr std::size_t guard = 256;

  Random random_;
  CacheProgramSetup setup_;
  std::optional<DeviceArray<std::byte>> memory_;
  std::size_t bytes_ = 0;
  std::optional<BothCaches> both_;
  std::vector<std::int64_t> pool_;  ///< pages of each layer
  std::vector<HeldSequence> held_;
  std::vector<SequenceId> closed_;
  std::vector<ErrorCode> expected_;
  bool certain_ = false;
  bool any_record_ = false;
};

}  // namespace kvtilt::test
