// SPDX-License-Identifier: MIT
/// One layer of a device cache in host memory, for kernel bodies in the emulator, and its
/// comparison with a CPU cache of the same history.
#pragma once

#include <kvtilt/cache/kv_cache.hpp>
#include <kvtilt/cuda/cache/append.hpp>
#include <kvtilt/cuda/cache/layer_view.hpp>
#include <kvtilt/cuda/cache/sequence_state.hpp>
#include <kvtilt/cuda/page/seal_head.hpp>
#include <kvtilt/cuda/page/seal_slice.hpp>

#include "support/device_pages.hpp"
#include "support/page_data.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace kvtilt::test {

class EmulatedLayer {
 public:
  /// recipes  resolved: one for all heads, or one per head
  EmulatedLayer(const LayerShape& shape, const std::vector<Recipe>& recipes,
                const TokenPlacement& placement, int sequences, int pages_each)
      : placement_(placement) {
    layouts_ = make_layer_layouts(shape, recipes, placement.page_tokens, placement.sink_tokens);
    view_ = cuda::describe_layer(shape, placement, layouts_);
    view_.layer = 3;
    for (const HeadLayout& head : layout(PageKind::Sealed).heads)
      view_.seal_bytes =
          std::max({view_.seal_bytes, static_cast<int>(cuda::seal_shared_bytes(head)),
                    static_cast<int>(cuda::slice_shared_bytes(head))});
    for (const HeadLayout& head : layout(PageKind::Sealed).heads) slices_.emplace_back(head);
    view_.slices = slices_.data();
    const int blocks[page_kinds] = {sequences, sequences * pages_each,
                                    sequences * placement.ring_blocks()};
    for (int kind = 0; kind < page_kinds; ++kind) {
      view_.heads[kind] = layout(static_cast<PageKind>(kind)).heads.data();
      pools_[kind] = std::make_unique<Block>(
          static_cast<std::size_t>(blocks[kind] * view_.block_bytes[kind]), 0xff);
      view_.pool[kind] = pools_[kind]->data();
    }
    states_.resize(static_cast<std::size_t>(sequences), cuda::empty_state(placement, pages_each));
    view_.table_stride = pages_each + 1;
    tables_.resize(static_cast<std::size_t>(sequences * (pages_each + 1)));
    arrivals_.resize(static_cast<std::size_t>(sequences) + 1);
    arrivals_[0] = 77;  // outside the layer's counters: who counts there is never the last
    view_.states = states_.data();
    view_.tables = tables_.data();
    view_.arrivals = arrivals_.data() + 1;
    view_.records = &records_;
    // Pages of the sequences interleaved.
    for (int sequence = 0; sequence < sequences; ++sequence)
      for (int i = 0; i < pages_each; ++i)
        view_.table(sequence)[i] = {-1, i * sequences + sequence, -1};
  }

  [[nodiscard]] const cuda::LayerView& view() const { return view_; }
  [[nodiscard]] const TokenPlacement& placement() const { return placement_; }
  [[nodiscard]] const PageLayout& layout(PageKind kind) const {
    return layouts_[static_cast<std::size_t>(kind)];
  }
  [[nodiscard]] cuda::SequenceState& state(int sequence) {
    return states_[static_cast<std::size_t>(sequence)];
  }
  [[nodiscard]] const cuda::DeviceRecord& record() const { return records_.first(); }
  void forget_record() { records_ = {}; }

  /// Compares a sequence with the view of a CPU cache: all states, all bytes of sealed pages, all
  /// 16-bit values.
  void expect_equals(int sequence, const LayerView& view) {
    const cuda::SequenceState& own = state(sequence);
    const cuda::PageSlot* table = view_.table(sequence);
    ASSERT_EQ(own.length, view.length);
    ASSERT_EQ(own.first_kept, view.first_kept);
    ASSERT_EQ(view_.arrivals[sequence], 0u);
    int entry = own.first_page;
    int tail_blocks = 0;
    for (int i = 0; i < view.page_count; ++i) {
      const PageEntry& page = view.pages[i];
      const std::byte* device = nullptr;
      if (page.kind == PageKind::Sealed) {
        ASSERT_LT(entry, own.page_end);
        ASSERT_EQ(table[entry].first_position, page.first_position);
        ASSERT_EQ(table[entry].tokens, page.tokens);
        device = view_.block(PageKind::Sealed, table[entry++].page);
        expect_page(device, page.data);
      } else if (page.kind == PageKind::Sinks) {
        expect_halves(page, view_.sinks(sequence));
      } else {
        ASSERT_EQ(page.first_position, own.tail_start + tail_blocks * placement_.page_tokens);
        expect_halves(page, view_.tail(sequence, own.ring_head, tail_blocks++));
      }
      if (testing::Test::HasFailure()) {
        ADD_FAILURE() << "page " << i << " of " << view.page_count << ", kind "
                      << static_cast<int>(page.kind) << ", sequence " << sequence;
        return;
      }
    }
    EXPECT_EQ(entry, own.page_end);
    EXPECT_LE(own.page_end, own.page_capacity);
    std::vector<int> pages;
    for (int i = 0; i < own.page_capacity; ++i) pages.push_back(table[i].page);
    std::sort(pages.begin(), pages.end());
    EXPECT_EQ(std::adjacent_find(pages.begin(), pages.end()), pages.end()) << "a page twice";
    EXPECT_TRUE(pools_[0]->guards_are_whole() && pools_[1]->guards_are_whole() &&
                pools_[2]->guards_are_whole());
  }

 private:
  void expect_page(const std::byte* device, const std::byte* host) const {
    const PageLayout& sealed = layout(PageKind::Sealed);
    Block expected(sealed.bytes);
    for (const HeadLayout& head : sealed.heads)
      to_fragment_order(head, host + head.offset, expected.data() + head.offset);
    EXPECT_EQ(std::memcmp(device, expected.data(), sealed.bytes), 0) << "bytes of a sealed page";
  }
  void expect_halves(const PageEntry& page, const std::byte* device) const {
    for (const HeadLayout& head : layout(page.kind).heads)
      for (const bool keys : {true, false}) {
        const TensorLayout& tensor = keys ? head.key : head.value;
        const int dim = keys ? tensor.matrix.inner : tensor.matrix.outer;
        for (int token = 0; token < page.tokens; ++token)
          for (int channel = 0; channel < dim; ++channel) {
            const int outer = keys ? token : channel;
            const int inner = keys ? channel : token;
            const F16 host =
                halves(page.data + head.offset, tensor)[half_position(tensor.matrix, outer, inner)];
            F16 own;
            std::memcpy(&own,
                        device + head.offset + tensor.codes +
                            cuda::half_offset(keys ? Role::Keys : Role::Values, tensor.matrix,
                                              outer, inner),
                        sizeof own);
            ASSERT_EQ(own.bits, host.bits)
                << (keys ? "key" : "value") << " of token " << token << ", channel " << channel;
          }
      }
  }

  TokenPlacement placement_;
  LayerLayouts layouts_;
  std::unique_ptr<Block> pools_[page_kinds];
  std::vector<cuda::HeadSlices> slices_;
  std::vector<cuda::SequenceState> states_;
  std::vector<cuda::PageSlot> tables_;
  std::vector<std::uint32_t> arrivals_;
  cuda::DeviceRecords records_{};
  cuda::LayerView view_{};
};

}  // namespace kvtilt::test
