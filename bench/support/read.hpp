// SPDX-License-Identifier: MIT
/// The roof of a memory-bound kernel: reading the same bytes, and nothing else.
#pragma once

#include <kvtilt/kvtilt.hpp>

#include <cstddef>
#include <cstdint>

namespace kvtilt::bench {

/// Ways to read memory; which is fastest depends on the machine and on where the bytes are.
enum class ReadWay { Stream, Prefetched, FourStreams };
inline constexpr ReadWay all_read_ways[] = {ReadWay::Stream, ReadWay::Prefetched,
                                            ReadWay::FourStreams};
const char* to_string(ReadWay way);

/// Bytes of a page of the view, and of all its pages.
std::size_t page_bytes(const LayerView& view, const PageEntry& page);
std::size_t stored_bytes(const LayerView& view);

/// Reads every page; worker w of n reads those whose turn it is. The sum keeps the loads alive.
std::uint64_t read_pages(const LayerView& view, ReadWay way, int worker, int workers);

}  // namespace kvtilt::bench
