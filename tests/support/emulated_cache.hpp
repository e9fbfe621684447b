// SPDX-License-Identifier: MIT
/// The memory of a device cache on the host, with emulated kernels behind its calls.
#pragma once

#include <kvtilt/cuda/cache/memory_plan.hpp>
#include <kvtilt/cuda/cache/sequence_book.hpp>
#include <kvtilt/cuda/cache/sequence_calls.hpp>
#include <kvtilt/cuda/cache/sequence_state.hpp>

#include "support/emulated_threads.hpp"

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

namespace kvtilt::test {

class EmulatedCache {
 public:
  EmulatedCache(const CacheShape& shape, const Plan& plan, const cuda::CacheOptions& options)
      : layout_(cuda::detail::make_device_layout(shape, plan, options).value()),
        memory_(static_cast<std::byte*>(std::aligned_alloc(256, layout_.plan.device_bytes()))) {
    std::memset(memory_.get(), 0, layout_.plan.device_bytes());
    for (std::size_t layer = 0; layer < layout_.layers.size(); ++layer) {
      views_.push_back(cuda::detail::make_view(layout_, layer, memory_.get()));
      const cuda::detail::DeviceLayer& of = layout_.layers[layer];
      for (int kind = 0; of.shape.kv_heads > 0 && kind < page_kinds; ++kind)
        std::memcpy(memory_.get() + of.heads[kind],
                    of.layout(static_cast<PageKind>(kind)).heads.data(),
                    of.layout(static_cast<PageKind>(kind)).heads.size() * sizeof(HeadLayout));
      const std::vector<cuda::HeadSlices> slices =
          cuda::detail::make_slices(of.layout(PageKind::Sealed));
      if (!slices.empty())
        std::memcpy(memory_.get() + of.slices, slices.data(),
                    slices.size() * sizeof(cuda::HeadSlices));
    }
  }

  [[nodiscard]] const cuda::detail::DeviceLayout& layout() const { return layout_; }
  [[nodiscard]] const cuda::LayerView& view(int layer) const {
    return views_[static_cast<std::size_t>(layer)];
  }
  [[nodiscard]] const cuda::DeviceRecord& record() const { return views_[0].records->first(); }
  void forget_record() { *views_[0].records = {}; }

  void give(std::uint32_t slot, const std::vector<cuda::PageRun>& runs) {
    for (std::size_t first = 0; first < runs.size();) {
      cuda::GivenPages given{};
      given.sequence = static_cast<std::int32_t>(slot);
      for (; first < runs.size() && given.runs < given.capacity; ++first)
        given.run[given.runs++] = runs[first];
      emulate(cuda::give_pages_blocks(given), 32, 0,
              [&](EmulatedThreads& threads) { cuda::give_pages_body(threads, layers(), given); });
    }
  }
  /// Drops the shared pages that the book's sequence has dropped, and has the book release them.
  void drop_shared(cuda::SequenceBook& book, std::uint32_t slot) {
    cuda::DroppedPages dropped{};
    dropped.sequence = static_cast<std::int32_t>(slot);
    for (int layer = 0; layer < book.layers(); ++layer)
      for (const cuda::PageSlot& entry : book.dropped(slot, layer))
        dropped.pages[dropped.count++] = {layer, entry.page};
    emulate(1, 32, 128,
            [&](EmulatedThreads& threads) { cuda::drop_shared_body(threads, layers(), dropped); });
    for (int layer = 0; layer < book.layers(); ++layer) book.release_dropped(slot, layer);
  }
  void reset(std::uint32_t slot) {
    emulate(1, 32, 0, [&](EmulatedThreads& threads) {
      cuda::reset_body(threads, layers(), static_cast<int>(slot));
    });
  }
  void truncate(std::uint32_t slot, std::int64_t length) {
    truncate(std::vector<std::uint32_t>{slot}, {length});
  }
  void truncate(const std::vector<std::uint32_t>& slots, const std::vector<std::int64_t>& lengths) {
    const std::vector<std::int32_t> own(slots.begin(), slots.end());
    const cuda::Truncation request{{own.data(), static_cast<int>(own.size())}, lengths.data(), 0};
    emulate(cuda::truncate_blocks(layers(), request), 32, 128,
            [&](EmulatedThreads& threads) { cuda::truncate_body(threads, layers(), request); });
  }
  void remove(std::uint32_t slot, std::int64_t from, std::int64_t to) {
    emulate(1, 32, 128, [&](EmulatedThreads& threads) {
      cuda::remove_body(threads, layers(), static_cast<int>(slot), from, to);
    });
  }
  void fork(const cuda::ForkRequest& request) {
    emulate(2, 64, 128,
            [&](EmulatedThreads& threads) { cuda::fork_body(threads, layers(), request); });
    int blocks = 1;
    for (const cuda::LayerView& view : views_) blocks = std::max(blocks, view.ring_blocks + 1);
    emulate(3, 32, 0, [&](EmulatedThreads& threads) {
      cuda::fork_blocks_body(threads, layers(), request.from, request.to, blocks);
    });
  }
  /// Appends tokens in lengths and tables only, without values.
  void append(std::uint32_t slot, int layer, std::int32_t tokens) {
    const cuda::LayerView& of = view(layer);
    cuda::SequenceState& state = of.states[slot];
    cuda::PageSlot* table = of.table(static_cast<int>(slot));
    const cuda::AppendPlan plan = cuda::plan_append(of.placement(), state, table, tokens);
    if (plan.fits)
      cuda::finish_append(cuda::SingleThread{}, of.placement(), plan, of.ring_blocks, state, table);
  }

 private:
  struct Free {
    void operator()(std::byte* memory) const { std::free(memory); }
  };

  [[nodiscard]] cuda::Layers layers() const {
    return {views_.data(), static_cast<int>(views_.size())};
  }

  cuda::detail::DeviceLayout layout_;
  std::unique_ptr<std::byte, Free> memory_;
  std::vector<cuda::LayerView> views_;
};

}  // namespace kvtilt::test
