// SPDX-License-Identifier: MIT
#include "support/read.hpp"

namespace kvtilt::bench {

namespace {

using Line = std::uint64_t __attribute__((vector_size(64), may_alias));

// Inlined into one function per instruction set, because __attribute__((target)) does not extend to
// callees.
inline __attribute__((always_inline)) std::uint64_t read(const std::byte* p, std::size_t bytes,
                                                         ReadWay way) {
  Line sums[4] = {};
  if (way == ReadWay::FourStreams) {
    const std::size_t quarter = bytes / 4 / 64 * 64;
    for (std::size_t i = 0; i < quarter; i += 64)
      for (std::size_t s = 0; s < 4; ++s)
        sums[s] += *reinterpret_cast<const Line*>(p + s * quarter + i);
    for (std::size_t i = 4 * quarter; i < bytes; i += 64)
      sums[0] += *reinterpret_cast<const Line*>(p + i);
  } else {
    std::size_t i = 0;
    for (; i + 256 <= bytes; i += 256)
      for (std::size_t s = 0; s < 4; ++s) {
        if (way == ReadWay::Prefetched) __builtin_prefetch(p + i + s * 64 + 4096);
        sums[s] += *reinterpret_cast<const Line*>(p + i + s * 64);
      }
    for (; i < bytes; i += 64) sums[0] += *reinterpret_cast<const Line*>(p + i);
  }
  const Line sum = sums[0] + sums[1] + sums[2] + sums[3];
  std::uint64_t total = 0;
  for (int i = 0; i < 8; ++i) total += sum[i];
  return total;
}

using Read = std::uint64_t (*)(const std::byte*, std::size_t, ReadWay);

#if KVTILT_X86
__attribute__((target("avx512f"))) std::uint64_t read_avx512(const std::byte* p, std::size_t bytes,
                                                             ReadWay way) {
  return read(p, bytes, way);
}
__attribute__((target("avx2"))) std::uint64_t read_avx2(const std::byte* p, std::size_t bytes,
                                                        ReadWay way) {
  return read(p, bytes, way);
}
#endif

std::uint64_t read_baseline(const std::byte* p, std::size_t bytes, ReadWay way) {
  return read(p, bytes, way);
}

Read best_read() {
#if KVTILT_X86
  if (is_runnable(Isa::Avx512)) return read_avx512;
  if (is_runnable(Isa::Avx2)) return read_avx2;
#endif
  return read_baseline;
}

}  // namespace

const char* to_string(ReadWay way) {
  if (way == ReadWay::Stream) return "stream";
  return way == ReadWay::Prefetched ? "prefetched" : "four streams";
}

std::size_t page_bytes(const LayerView& view, const PageEntry& page) {
  const HeadLayout& last = view.head(page.kind, view.shape.kv_heads - 1);
  return last.offset + last.bytes();
}

std::size_t stored_bytes(const LayerView& view) {
  std::size_t bytes = 0;
  for (std::int32_t i = 0; i < view.page_count; ++i) bytes += page_bytes(view, view.pages[i]);
  return bytes;
}

std::uint64_t read_pages(const LayerView& view, ReadWay way, int worker, int workers) {
  static const Read read = best_read();
  std::uint64_t sum = 0;
  const std::int32_t first = view.page_count * worker / workers;
  const std::int32_t last = view.page_count * (worker + 1) / workers;
  for (std::int32_t i = first; i < last; ++i)
    sum += read(view.pages[i].data, page_bytes(view, view.pages[i]), way);
  return sum;
}

}  // namespace kvtilt::bench
