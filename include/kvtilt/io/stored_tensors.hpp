// SPDX-License-Identifier: MIT
/// The tensors of one file by name, and the check of their places that all file formats share.
#pragma once

#include <kvtilt/core/status.hpp>
#include <kvtilt/io/shown.hpp>
#include <kvtilt/io/tensor_data.hpp>

#include <algorithm>
#include <cstddef>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <vector>

namespace kvtilt {

using StoredTensors = std::map<std::string, StoredTensor, std::less<>>;

/// Whether a file may have bytes that belong to no tensor.
enum class Gaps : bool { Refused, Allowed };

/// Fails with Corrupt if two tensors share a byte, or, if `gaps` is Refused, if bytes of `data`, the
/// part of the file that all tensors lie in, belong to no tensor or a tensor without bytes lies
/// inside another.
inline Status check_coverage(const StoredTensors& tensors, std::span<const std::byte> data,
                             const std::string& file, Gaps gaps) {
  std::vector<const StoredTensor*> order;
  for (const auto& [name, tensor] : tensors)
    if (!tensor.bytes.empty() || gaps == Gaps::Refused) order.push_back(&tensor);
  std::sort(order.begin(), order.end(), [](const StoredTensor* a, const StoredTensor* b) {
    return a->bytes.data() != b->bytes.data() ? a->bytes.data() < b->bytes.data()
                                              : a->bytes.size() < b->bytes.size();
  });
  std::size_t covered = 0;
  const StoredTensor* previous = nullptr;
  for (const StoredTensor* tensor : order) {
    const std::size_t begin = static_cast<std::size_t>(tensor->bytes.data() - data.data());
    if (begin < covered)
      return Status::error(ErrorCode::Corrupt, "%s: tensor '%s' overlaps tensor '%s'", file.c_str(),
                           shown(tensor->name).c_str(), shown(previous->name).c_str());
    if (begin > covered && gaps == Gaps::Refused)
      return Status::error(ErrorCode::Corrupt, "%s: %zu bytes before tensor '%s' belong to nothing",
                           file.c_str(), begin - covered, shown(tensor->name).c_str());
    covered = begin + tensor->bytes.size();
    previous = tensor;
  }
  if (covered != data.size() && gaps == Gaps::Refused)
    return Status::error(ErrorCode::Corrupt,
                         "%s: %zu bytes after the last tensor belong to nothing", file.c_str(),
                         data.size() - covered);
  return {};
}

}  // namespace kvtilt
