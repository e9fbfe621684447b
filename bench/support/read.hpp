// SPDX-License-Identifier: MIT
/// The upper limit of a memory-bound kernel: reads the same bytes and does nothing else.
#pragma once

#include <kvtilt/kvtilt.hpp>

#include <cstddef>
#include <cstdint>

namespace kvtilt::bench {

/// Ways to read memory; which one is fastest depends on the machine and the place of the bytes.
enum class ReadWay { Stream, Prefetched, FourStreams };
inline constexpr ReadWay all_read_ways[] = {ReadWay::Stream, ReadWay::Prefetched,
                                            ReadWay::FourStreams};
const char* to_string(ReadWay way);

/// Bytes of a page of the view, and of all its pages.
std::size_t page_bytes(const LayerView& view, const PageEntry& page);
std::size_t stored_bytes(const LayerView& view);

/// Reads worker w's contiguous share of the pages, of n equal ones. The returned sum keeps the
/// compiler from removing the loads.
std::uint64_t read_pages(const LayerView& view, ReadWay way, int worker, int workers);

}  // namespace kvtilt::bench
