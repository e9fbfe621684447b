// SPDX-License-Identifier: MIT
/// Links files built with different -m flags into one program: each attends to the caches that the
/// others filled, and all outputs agree up to the rounding of float sums. Forcing an instruction
/// set may fail with an error, because a file built for a stronger one leaves it out; it may not
/// crash.
#include "link_order.hpp"

#include <cmath>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <vector>

int main() {
  using namespace link_order;
  const bool forced = std::getenv("KVTILT_ISA") != nullptr;
  const Engine* engines[] = {&plain::engine, &avx2::engine, &native::engine};
  std::vector<float> expected;
  for (const Engine* filler : engines) {
    kvtilt::SequenceId sequence{};
    kvtilt::Result<kvtilt::KVCache> cache = filler->fill(sequence);
    if (!cache) {
      std::printf("fill: %.*s\n", static_cast<int>(cache.message().size()), cache.message().data());
      if (forced && cache.code() == kvtilt::ErrorCode::Unsupported) continue;
      return 1;
    }
    for (const Engine* reader : engines) {
      const std::vector<float> output = reader->attend(*cache, sequence);
      if (output.size() != query_heads * dim) return std::puts("attend failed"), 1;
      if (expected.empty()) expected = output;
      for (std::size_t i = 0; i < output.size(); ++i)
        if (!(std::fabs(output[i] - expected[i]) < 1e-4f)) {
          std::printf("channel %zu: %g instead of %g\n", i, static_cast<double>(output[i]),
                      static_cast<double>(expected[i]));
          return 1;
        }
    }
  }
  return 0;
}
