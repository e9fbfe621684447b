// SPDX-License-Identifier: MIT
/// Reads records of a saved sequence, and forges them.
#pragma once

#include <kvtilt/page/saved_sequence.hpp>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

namespace kvtilt::test {

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
