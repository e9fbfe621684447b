// SPDX-License-Identifier: MIT
/// Writes safetensors files.
#pragma once

#include <kvtilt/core/status.hpp>
#include <kvtilt/io/json.hpp>
#include <kvtilt/io/safetensors.hpp>
#include <kvtilt/io/write_file.hpp>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace kvtilt {

/// A tensor to write. `bytes` holds the elements, row-major, and is not copied.
struct TensorToWrite {
  std::string name;
  std::string_view dtype;  ///< "F32", "F16", "BF16", "F8_E4M3", "I64", ...
  std::vector<std::int64_t> shape;
  std::span<const std::byte> bytes;
};

namespace detail {

/// The start of a file with these tensors, in their order: the header's length, then the header.
inline Result<std::string> safetensors_header(std::span<const TensorToWrite> tensors,
                                              const SafetensorsFile::Metadata& metadata) {
  const auto fail = [](const TensorToWrite& tensor, const std::string& what) {
    return Status::error(ErrorCode::InvalidArgument, "tensor '%s' %s", shown(tensor.name).c_str(),
                         what.c_str());
  };
  std::string header = "{";
  if (!metadata.empty()) {
    header += "\"__metadata__\":{";
    for (const auto& [key, value] : metadata) {
      const Result<std::string> quoted_key = to_json_string(key);
      Result<std::string> quoted_value = to_json_string(value);
      if (!quoted_key || !quoted_value)
        return Status::error(ErrorCode::InvalidArgument, "the metadata under '%s' is not UTF-8",
                             shown(key).c_str());
      header += *quoted_key + ":" + *quoted_value + ",";
    }
    header.back() = '}';
    header += ",";
  }
  std::set<std::string_view> names{"__metadata__"};
  std::uint64_t offset = 0;
  for (const TensorToWrite& tensor : tensors) {
    const Result<std::string> quoted = to_json_string(tensor.name);
    if (!quoted) return fail(tensor, "has a name that is not UTF-8");
    if (!names.insert(tensor.name).second) return fail(tensor, "has a name that is taken");
    const StoredType* type = find_safetensors_type(tensor.dtype);
    if (type == nullptr) return fail(tensor, "has the unknown dtype " + shown(tensor.dtype));
    for (const std::int64_t extent : tensor.shape)
      if (extent < 0) return fail(tensor, "has the shape " + shape_text(tensor.shape));
    const std::optional<std::int64_t> bytes = safetensors_size(*type, tensor.shape);
    if (!bytes || static_cast<std::uint64_t>(*bytes) != tensor.bytes.size())
      return fail(tensor, "has " + std::to_string(tensor.bytes.size()) + " bytes, not those of " +
                              std::string(type->name) + " of shape " + shape_text(tensor.shape));
    header += *quoted + ":{\"dtype\":\"" + std::string(type->name) +
              "\",\"shape\":" + shape_text(tensor.shape) + ",\"data_offsets\":[" +
              std::to_string(offset) + ",";
    offset += tensor.bytes.size();
    header += std::to_string(offset) + "]},";
  }
  if (header.back() == ',')
    header.back() = '}';
  else
    header += '}';
  header.append((8 - header.size() % 8) % 8, ' ');  // aligns the data to 8 bytes
  if (header.size() > largest_safetensors_header)
    return Status::error(ErrorCode::InvalidArgument,
                         "%zu tensors need a header of %zu bytes, the format allows %llu",
                         tensors.size(), header.size(),
                         static_cast<unsigned long long>(largest_safetensors_header));
  std::string length(sizeof(std::uint64_t), '\0');
  for (std::size_t i = 0; i < length.size(); ++i)
    length[i] = static_cast<char>(header.size() >> (8 * i) & 0xff);
  return length + header;
}

}  // namespace detail

/// Writes a file with these tensors, in their order, whole or not at all (see write_file). Fails
/// with InvalidArgument, naming the tensor, if bytes do not fit dtype and shape, a name is used
/// twice or a text is not UTF-8.
inline Status write_safetensors(const std::filesystem::path& path,
                                std::span<const TensorToWrite> tensors,
                                const SafetensorsFile::Metadata& metadata = {}) {
  Result<std::string> header = detail::safetensors_header(tensors, metadata);
  if (!header) return std::move(header).take_status();
  std::vector<std::span<const std::byte>> parts{std::as_bytes(std::span(*header))};
  for (const TensorToWrite& tensor : tensors) parts.push_back(tensor.bytes);
  return write_file(path, parts);
}

}  // namespace kvtilt
