// SPDX-License-Identifier: MIT
/// The host's book of a device cache beside the state that it represents.
#pragma once

#include <kvtilt/cuda/cache/sequence_book.hpp>
#include <kvtilt/quant/presets.hpp>

#include "support/caches.hpp"
#include "support/cpu_options.hpp"
#include "support/emulated_cache.hpp"

#include <gtest/gtest.h>

#include <utility>
#include <vector>

namespace kvtilt::test {

inline cuda::CacheOptions small_options() {
  cuda::CacheOptions options;
  options.page_tokens = 32;
  options.recent_tokens = 40;
  options.max_sequences = 5;
  options.token_capacity = 32 * 60;
  options.max_sequence_tokens = 32 * 24;
  return options;
}

/// The book, the device tables that it represents, and a CPU cache with the same calls.
struct Trio {
  CacheShape shape;
  EmulatedCache device;
  cuda::SequenceBook book;
  KVCache cpu;

  Trio(CacheShape shape_, const cuda::CacheOptions& options)
      : shape(std::move(shape_)),
        device(shape, Plan::uniform(shape, presets::k4v2), options),
        book(device.layout().layers, options),
        cpu(make_cache(shape, Plan::uniform(shape, presets::k4v2), cpu_options(options))) {}
};

/// Makes a fork that the device refuses because the host's sequence differs from it; returns the
/// child.
inline SequenceId fork_refused(Trio& trio, SequenceId id) {
  cuda::ForkRequest request{};
  std::vector<cuda::PageRun> childs;
  const SequenceId child = trio.book.fork(id, 0, request, childs).value();
  trio.device.reset(child.slot);
  trio.device.fork(request);
  EXPECT_EQ(trio.device.record().fault, cuda::DeviceFault::ForkRefused);
  EXPECT_EQ(trio.device.view(0).states[child.slot].length, 0);
  return child;
}

inline CacheShape small_shape() {
  CacheShape shape;
  shape.layers = {{1, 16, 16, 0}, {}, {1, 16, 16, 70}};
  return shape;
}

}  // namespace kvtilt::test
