// SPDX-License-Identifier: MIT
/// A device cache under a random program, beside a CPU cache that gets the same calls and a model
/// of its pages (PageAccount): every byte, table, length and count is compared.
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

/// Runs the calls; each returns an error, or an empty string.
class ProgramCaches {
 public:
  explicit ProgramCaches(std::uint64_t seed) : random_(seed), setup_(random_) {
    if (setup_.misplaced >= 0) {
      bytes_ =
          cuda::plan_memory(setup_.shape, setup_.plan, setup_.options).value().device_bytes() + 255;
      memory_.emplace(std::vector<std::byte>(
          bytes_ + 2 * guard + static_cast<std::size_t>(setup_.misplaced), std::byte{0x7e}));
      setup_.options.device_memory =
          memory_->span().subspan(guard + static_cast<std::size_t>(setup_.misplaced), bytes_);
    }
    both_.emplace(setup_.shape, setup_.plan, setup_.options);
    for (int layer = 0; layer < both_->layers(); ++layer)
      pool_.push_back(cached(layer) ? gpu().free_pages(layer).value() : 0);
  }

  /// Closes all sequences: then all pages must be free.
  std::string finish() {
    while (!held_.empty())
      if (const std::string wrong = close(held_.back()); !wrong.empty()) return wrong;
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

 protected:
  static std::string message_of(const Status& status) {
    return status.ok() ? "" : std::string(status.message());
  }
  static std::size_t at(int layer) { return static_cast<std::size_t>(layer); }
  [[nodiscard]] bool cached(int layer) const { return both_->layer(layer).kv_heads > 0; }
  [[nodiscard]] int layers() const { return both_->layers(); }
  [[nodiscard]] std::int64_t most_tokens() const { return setup_.options.max_sequence_tokens; }
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

  std::string open(std::int64_t tokens) {
    const Result<SequenceId> id = gpu().open();
    const bool full = static_cast<int>(held_.size()) == setup_.options.max_sequences;
    if (full) return id.code() == ErrorCode::OutOfCapacity ? "" : "opened one too many";
    if (!id) return "open: " + std::string(id.message());
    HeldSequence one{{*id, cpu().open().value()}, {}, true};
    for (int layer = 0; layer < layers(); ++layer) {
      one.layers.emplace_back();
      if (cached(layer))
        one.layers.back().emplace(cuda::token_placement(setup_.options, both_->layer(layer)));
    }
    held_.push_back(std::move(one));
    return reserve(held_.back(), tokens);
  }

  std::string reserve(HeldSequence& one, std::int64_t tokens) {
    const std::vector<std::int64_t> free = free_pages();
    const Status status = gpu().reserve(one.ids.gpu, tokens);
    if (tokens < 0 || tokens > most_tokens() + one.dropped())
      return status.code() == ErrorCode::InvalidArgument ? "" : "reserved more than there can be";
    return given(one, tokens, status, free);
  }

  std::string truncate(HeldSequence& one, std::int64_t length) {
    const bool refused = length < 0 || one.refuses_truncation(length);
    const Status status = gpu().truncate(one.ids.gpu, length);
    if (status.code() != (refused ? ErrorCode::InvalidArgument : ErrorCode::Ok))
      return "truncate(" + std::to_string(length) + "): " + std::string(status.message());
    return refused ? "" : was_truncated(one, length);
  }
  /// Records that the device truncated a sequence.
  std::string was_truncated(HeldSequence& one, std::int64_t length) {
    for (auto& own : one.layers)
      if (own) own->truncate(length);
    return message_of(cpu().truncate(one.ids.cpu, length));
  }

  std::string remove(HeldSequence& one, std::int64_t from, std::int64_t to) {
    const bool works = std::all_of(one.layers.begin(), one.layers.end(), [&](const auto& own) {
      return !own || own->can_remove(from, to);
    });
    const Status status = gpu().remove(one.ids.gpu, from, to);
    if (status.code() != (works ? ErrorCode::Ok : ErrorCode::InvalidArgument))
      return "remove: " + std::string(status.message());
    if (!works) return {};
    for (auto& own : one.layers)
      if (own) own->remove(from, to);
    return message_of(cpu().remove(one.ids.cpu, from, to));
  }

  std::string fork(HeldSequence& parent, std::int64_t tokens) {
    const std::vector<std::int64_t> free = free_pages();
    const Result<SequenceId> id = gpu().fork(parent.ids.gpu, tokens);
    HeldSequence after = parent;
    HeldSequence child = parent;
    for (std::size_t layer = 0; layer < child.layers.size(); ++layer)
      if (child.layers[layer]) child.layers[layer] = after.layers[layer]->fork();
    const std::size_t index = static_cast<std::size_t>(&parent - held_.data());
    const SequenceId host = parent.ids.cpu;
    return copied("fork", std::move(child), tokens, id, free, [&] {
      held_[index].layers = after.layers;
      return cpu().fork(host);
    });
  }

  /// Both caches must save the same bytes and load them.
  std::string save_and_load(HeldSequence& one, std::int64_t tokens) {
    const Result<std::size_t> host_bytes = cpu().saved_bytes(one.ids.cpu);
    const Result<std::size_t> bytes = gpu().saved_bytes(one.ids.gpu);
    if (bytes.code() != host_bytes.code()) return "saved_bytes: " + std::string(bytes.message());
    if (!bytes) return {};
    if (*bytes != *host_bytes) return "another number of bytes to save";
    std::vector<std::byte> expected(*bytes);
    KVTILT_EXPECT_OK(cpu().save(one.ids.cpu, expected));
    const PinnedBytes image(std::vector<std::byte>(*bytes, std::byte{0xa5}));
    if (Status status = gpu().save(one.ids.gpu, image.span()); !status.ok())
      return "save: " + message_of(status);
    if (!std::equal(expected.begin(), expected.end(), image.span().begin()))
      return "saved other bytes than the CPU";

    const std::vector<std::int64_t> free = free_pages();
    const Result<SequenceId> id = gpu().load(image.span(), tokens);
    HeldSequence child = one;
    for (auto& own : child.layers)
      if (own) own = own->copy();
    return copied("load", std::move(child), tokens, id, free,
                  [&] { return cpu().load(expected, tokens); });
  }

  std::string close(HeldSequence& one) {
    const BothIds ids = one.ids;
    held_.erase(held_.begin() + (&one - held_.data()));
    closed_.push_back(ids.gpu);
    KVTILT_EXPECT_OK(cpu().close(ids.cpu));
    const Status status = gpu().close(ids.gpu);
    return status.ok() && gpu().length(ids.gpu).ok() ? "a closed sequence still answers"
                                                     : message_of(status);
  }

  std::string refresh(HeldSequence& one) {
    const Status status = gpu().refresh(one.ids.gpu, nullptr);
    one.told = !one.wild;
    return status.ok() ? "" : "refresh: " + std::string(status.message());
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

 private:
  /// Checks that a call made a sequence like `child`, or was refused with good reason; on_host()
  /// makes it on the CPU. `free`: free pages of each layer before the call.
  template <class OnHost>
  std::string copied(const char* name, HeldSequence child, std::int64_t tokens,
                     const Result<SequenceId>& id, const std::vector<std::int64_t>& free,
                     OnHost on_host) {
    tokens = std::max(tokens, child.longest());
    if (child.shortest() != child.longest() || tokens > most_tokens() + child.dropped())
      return id.code() == ErrorCode::InvalidArgument ? ""
                                                     : std::string(name) + " of what cannot be";
    if (static_cast<int>(held_.size()) == setup_.options.max_sequences)
      return id.code() == ErrorCode::OutOfCapacity ? "" : std::string(name) + " of one too many";
    if (const std::string wrong = given(child, tokens, id.status(), free); !wrong.empty())
      return std::string(name) + ": " + wrong;
    if (!id) return {};
    child.ids = {*id, on_host().value()};
    held_.push_back(std::move(child));
    return {};
  }

  [[nodiscard]] std::vector<std::int64_t> free_pages() const {
    std::vector<std::int64_t> free;
    for (int layer = 0; layer < both_->layers(); ++layer)
      free.push_back(cached(layer) ? gpu().free_pages(layer).value() : 0);
    return free;
  }

  /// Checks that a sequence got pages for `tokens` tokens, or was refused with good reason. `free`:
  /// free pages of each layer before the call.
  std::string given(HeldSequence& one, std::int64_t tokens, const Status& status,
                    const std::vector<std::int64_t>& free) {
    bool may_refuse = false;
    bool must_refuse = false;
    for (int layer = 0; layer < layers(); ++layer) {
      if (!cached(layer)) continue;
      const PageAccount& own = *one.layers[at(layer)];
      const std::int64_t room =
          view(layer).table_stride - static_cast<std::int64_t>(own.sealed().size()) - own.unused();
      const std::int64_t most = std::min(free[at(layer)], room);
      may_refuse = may_refuse || own.most_missing(tokens) > most;
      must_refuse = must_refuse || own.missing(tokens) > most;
    }
    if (!status.ok())
      return may_refuse && (status.code() == ErrorCode::OutOfMemory ||
                            status.code() == ErrorCode::OutOfCapacity)
                 ? ""
                 : message_of(status);
    if (must_refuse) return "gave what is not there";
    for (int layer = 0; layer < layers(); ++layer) {
      if (!cached(layer)) continue;
      PageAccount& own = *one.layers[at(layer)];
      const std::int64_t pages = free[at(layer)] - gpu().free_pages(layer).value();
      const int window = both_->layer(layer).window;
      if (pages < own.missing(tokens)) return "reserved too few pages";
      if (pages > (window > 0 ? own.most_missing(tokens) : own.missing(tokens)))
        return "reserved too many pages";
      own.reserve(pages);
    }
    return {};
  }

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
    const std::int64_t most = most_tokens() + one.dropped();
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
