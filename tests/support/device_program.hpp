// SPDX-License-Identifier: MIT
/// Runs the same appends on a CPU cache and on device kernels in the emulator.
#pragma once

#include <kvtilt/cache/kv_cache.hpp>
#include <kvtilt/cuda/cache/append.hpp>

#include "support/emulated_layer.hpp"
#include "support/emulated_threads.hpp"
#include "support/random.hpp"
#include "support/rows.hpp"

#include <gtest/gtest.h>

#include <cstdint>
#include <functional>
#include <limits>
#include <vector>

namespace kvtilt::test {

struct ProgramSetup {
  LayerShape shape;
  Recipe recipe;  ///< unresolved
  int page_tokens = 64;
  int sink_tokens = 4;
  int recent_tokens = 64;
  int sequences = 2;
  int pages_each = 8;
  std::int64_t capacity = 0;  ///< in tokens, of the CPU's sequences; 0: what the pages hold
  ElementType type = ElementType::F16;
};

/// A kernel body that adds tokens: append, or pack.
using AppendBody = std::function<void(const cuda::AppendArguments&, LaunchOrder)>;

class DeviceProgram {
 public:
  DeviceProgram(const ProgramSetup& setup, std::uint64_t seed) : setup_(setup), random_(seed) {
    CacheOptions options;
    options.page_tokens = setup.page_tokens;
    options.sink_tokens = setup.sink_tokens;
    options.recent_tokens = setup.recent_tokens;
    Result<Recipe> resolved = resolve_recipe(setup.recipe, setup.shape, setup.page_tokens);
    EXPECT_TRUE(resolved.ok()) << resolved.message();
    const TokenPlacement placement = token_placement(options, setup.shape);
    device_ = std::make_unique<EmulatedLayer>(setup.shape, std::vector<Recipe>{*resolved},
                                              placement, setup.sequences, setup.pages_each);
    Result<KVCache> cache = KVCache::create({{setup.shape}}, {{{setup.recipe}}}, options);
    EXPECT_TRUE(cache.ok()) << cache.message();
    cpu_ = std::make_unique<KVCache>(std::move(*cache));
    for (int i = 0; i < setup.sequences; ++i) {
      ids_.push_back(*cpu_->open());
      EXPECT_TRUE(
          cpu_->reserve(ids_.back(), setup.capacity > 0
                                         ? setup.capacity
                                         : setup.sink_tokens + setup.recent_tokens +
                                               std::int64_t{setup.pages_each} * setup.page_tokens)
              .ok());
    }
  }

  EmulatedLayer& device() { return *device_; }
  KVCache& cpu() { return *cpu_; }
  SequenceId id(int sequence) const { return ids_[static_cast<std::size_t>(sequence)]; }
  Random& random() { return random_; }

  /// Appends counts[i] tokens to sequence slots[i], on both sides. Slots below 0: padding.
  void append(const std::vector<std::int32_t>& slots, const std::vector<std::int32_t>& counts,
              const AppendBody& body, LaunchOrder order = {}) {
    std::vector<std::int32_t> indptr{3};  // rows before it are unused
    for (const std::int32_t count : counts) indptr.push_back(indptr.back() + count);
    const std::int64_t rows = indptr.back();
    // Random strides: heads may be far apart, and rows may start anywhere.
    const std::int64_t pad = random_.chance(2) ? 0 : random_.below(5);
    fill(keys_, rows, setup_.shape.key_dim, pad);
    fill(values_, rows, setup_.shape.value_dim, pad);
    cuda::AppendArguments arguments{};
    arguments.layer = device_->view();
    arguments.batch = {slots.data(), static_cast<int>(slots.size())};
    arguments.keys = view(keys_, rows, setup_.shape.key_dim, pad);
    arguments.values = stored_apart(setup_.shape, view(values_, rows, setup_.shape.value_dim, pad));
    arguments.rows = {indptr.data(), 0};
    body(arguments, order);
    for (std::size_t i = 0; i < slots.size(); ++i) {
      if (slots[i] < 0) continue;
      const auto part = [&](const TensorView& all) {
        TensorView one = all;
        one.tokens = counts[i];
        one.data =
            static_cast<const std::byte*>(all.data) +
            indptr[i] * all.token_stride * static_cast<std::int64_t>(element_bytes(all.type));
        return one;
      };
      const Status added = cpu_->append(id(slots[i]), 0, part(arguments.keys),
                                        stored_apart(setup_.shape, part(arguments.values)));
      EXPECT_TRUE(added.ok()) << added.message();
      expect_equal(slots[i]);
    }
  }

  void expect_equal(int sequence) {
    Result<LayerView> seen = cpu_->view(id(sequence), 0);
    ASSERT_TRUE(seen.ok());
    device_->expect_equals(sequence, *seen);
  }

 private:
  void fill(std::vector<std::byte>& bytes, std::int64_t rows, int dim, std::int64_t pad) {
    const std::size_t elements =
        static_cast<std::size_t>(rows * setup_.shape.kv_heads * (dim + pad));
    bytes.assign(elements * element_bytes(setup_.type) + 64, std::byte{0xff});
    for (std::size_t i = 0; i < elements; ++i) {
      const float x =
          static_cast<float>(random_.sampled_normal() * (random_.chance(50) ? 100.0 : 1.0));
      std::byte* at = bytes.data() + i * element_bytes(setup_.type);
      if (setup_.type == ElementType::F32) {
        std::memcpy(at, &x, 4);
      } else {
        const std::uint16_t bits =
            setup_.type == ElementType::F16 ? to_f16(x).bits : to_bf16(x).bits;
        std::memcpy(at, &bits, 2);
      }
    }
  }
  TensorView view(const std::vector<std::byte>& bytes, std::int64_t rows, int dim,
                  std::int64_t pad) const {
    TensorView all;
    all.data = bytes.data();
    all.type = setup_.type;
    all.tokens = rows;
    all.heads = setup_.shape.kv_heads;
    all.dim = dim;
    return all.with_strides((dim + pad) * all.heads, dim + pad);
  }

  ProgramSetup setup_;
  Random random_;
  std::unique_ptr<EmulatedLayer> device_;
  std::unique_ptr<KVCache> cpu_;
  std::vector<SequenceId> ids_;
  std::vector<std::byte> keys_;
  std::vector<std::byte> values_;
};

/// Checks that an indptr that is out of range or decreases changes no sequence and is recorded.
inline void expect_bad_rows_are_refused(const AppendBody& body) {
  DeviceProgram program({.shape = LayerShape{2, 32, 32},
                         .recipe = {key_format(4), value_format(4)},
                         .page_tokens = 32,
                         .recent_tokens = 0,
                         .sequences = 3},
                        11);
  program.append({0, 1, 2}, {10, 20, 30}, body);
  const std::vector<std::int32_t> slots{0, 1, 2};
  for (const std::int64_t rows : {3, 100}) {
    const std::vector<F16> ones(static_cast<std::size_t>(2 * 32 * rows), to_f16(1.0f));
    const TensorView tensor(ones.data(), rows, 2, 32);
    constexpr std::int32_t least = std::numeric_limits<std::int32_t>::min();
    const auto far = static_cast<std::int32_t>(rows + 100);
    for (const std::vector<std::int32_t>& indptr : {std::vector<std::int32_t>{0, 3, far, far},
                                                    {0, -5, 3, 3},
                                                    {0, 3, 2, 3},
                                                    {0, 1, 2, least},
                                                    {-1, 1, 2, 3},
                                                    {0, 1, 2, far},
                                                    {far, 0, 1, 2}}) {
      program.device().forget_record();
      body({program.device().view(), {slots.data(), 3}, tensor, tensor, {indptr.data(), 0}}, {});
      const cuda::DeviceRecord& record = program.device().record();
      EXPECT_EQ(record.fault, cuda::DeviceFault::BadAppendRows);
      EXPECT_EQ(record.count, 1u);
      EXPECT_EQ(record.rows, rows);
      for (const int slot : slots) program.expect_equal(slot);
    }
  }
  program.append({2, 0, 1}, {70, 1, 40}, body);
}

inline void emulate_append(const cuda::AppendArguments& arguments, LaunchOrder order) {
  EXPECT_TRUE(emulate(
      cuda::append_blocks(arguments), cuda::append_threads,
      cuda::append_shared_bytes(arguments.layer),
      [&](EmulatedThreads& threads) { cuda::append(threads, arguments); }, order));
}

}  // namespace kvtilt::test
