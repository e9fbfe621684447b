// SPDX-License-Identifier: MIT
/// The options of a CPU cache that corresponds to a device cache.
#pragma once

#include <kvtilt/cache/options.hpp>
#include <kvtilt/cuda/cache/options.hpp>

namespace kvtilt::test {

inline CacheOptions cpu_options(const cuda::CacheOptions& options) {
  CacheOptions result;
  result.page_tokens = options.page_tokens;
  result.sink_tokens = options.sink_tokens;
  result.recent_tokens = options.recent_tokens;
  result.fingerprint = options.fingerprint;
  return result;
}

}  // namespace kvtilt::test
