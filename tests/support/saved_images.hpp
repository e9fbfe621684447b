// SPDX-License-Identifier: MIT
/// Saved sequences as bytes, and forgeries of them.
#pragma once

#include <kvtilt/cache/kv_cache.hpp>
#include <kvtilt/page/saved_sequence.hpp>

#include "support/caches.hpp"

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

namespace kvtilt::test {

inline std::vector<std::byte> saved(const KVCache& cache, SequenceId id) {
  std::vector<std::byte> image(cache.saved_bytes(id).value(), std::byte{0xa5});
  KVTILT_EXPECT_OK(cache.save(id, image));
  return image;
}

template <class T>
T read_at(const std::vector<std::byte>& image, std::size_t offset) {
  T record;
  std::memcpy(&record, image.data() + offset, sizeof record);
  return record;
}

/// Overwrites bytes of an image and corrects its checksum.
template <class T>
std::vector<std::byte> forged(std::vector<std::byte> image, std::size_t offset, T record) {
  std::memcpy(image.data() + offset, &record, sizeof record);
  const std::uint64_t checksum = saved_checksum(image);
  std::memcpy(image.data() + offsetof(SavedHeader, checksum), &checksum, sizeof checksum);
  return image;
}

}  // namespace kvtilt::test
