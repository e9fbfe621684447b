// SPDX-License-Identifier: MIT
/// Reads safetensors files: 8 bytes of header length, a JSON header, then the tensors' bytes back
/// to back. (github.com/huggingface/safetensors, "Format".)
#pragma once

#include <kvtilt/core/status.hpp>
#include <kvtilt/io/json.hpp>
#include <kvtilt/io/mapped_file.hpp>
#include <kvtilt/io/shown.hpp>
#include <kvtilt/io/stored_tensors.hpp>
#include <kvtilt/io/tensor_data.hpp>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <functional>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace kvtilt {

namespace detail {

/// In bytes; the limit of the reference reader.
inline constexpr std::uint64_t largest_safetensors_header = 100'000'000;

inline constexpr StoredType safetensors_types[] = {
    element_f32,
    element_f16,
    element_bf16,
    {"F8_E4M3", 1, 1, Encoding::F8E4M3},
    {"F8_E5M2", 1, 1, Encoding::F8E5M2},
    {"F8_E4M3FNUZ", 1, 1},
    {"F8_E5M2FNUZ", 1, 1},
    {"F8_E8M0", 1, 1},
    {"F6_E2M3", 4, 3},
    {"F6_E3M2", 4, 3},
    {"F4", 2, 1},
    {"BOOL", 1, 1},
    {"U8", 1, 1},
    {"I8", 1, 1},
    {"U16", 1, 2},
    {"I16", 1, 2},
    {"U32", 1, 4},
    {"I32", 1, 4},
    {"U64", 1, 8},
    {"I64", 1, 8},
    {"F64", 1, 8},
    {"C64", 1, 8},
};

inline const StoredType* find_safetensors_type(std::string_view name) {
  for (const StoredType& type : safetensors_types)
    if (type.name == name) return &type;
  return nullptr;
}

/// Bytes of a tensor. Elements below a byte are packed across rows, so the tensor as a whole must be
/// whole bytes; otherwise as stored_bytes.
constexpr std::optional<std::int64_t> safetensors_size(const StoredType& type,
                                                       std::span<const std::int64_t> shape) {
  constexpr StoredType byte{"U8", 1, 1};
  const std::optional<std::int64_t> elements = stored_bytes(byte, shape);
  if (!elements) return std::nullopt;
  return stored_bytes(type, std::span(&*elements, 1));
}

/// Reads one entry of the header, without keys that the format does not define. `data` are the bytes
/// behind the header.
inline Result<StoredTensor> read_safetensors_entry(std::string_view name, const JsonValue& entry,
                                                   std::span<const std::byte> data,
                                                   const std::string& file) {
  StoredTensor tensor{file, std::string(name), {}, {}, {}};
  const auto fail = [&](const std::string& what) {
    return Status::error(ErrorCode::Corrupt, "%s: tensor '%s' %s", file.c_str(),
                         shown(name).c_str(), what.c_str());
  };
  Result<JsonValue> dtype = entry.at("dtype");
  if (!dtype) return std::move(dtype).take_status();
  Result<std::string_view> type_name = dtype->string();
  if (!type_name) return std::move(type_name).take_status();
  const StoredType* type = find_safetensors_type(*type_name);
  if (type == nullptr) return fail("has the unknown dtype " + dtype->text());
  tensor.type = *type;

  Result<JsonValue> shape = entry.at("shape");
  if (!shape) return std::move(shape).take_status();
  Result<std::vector<JsonValue>> extents = shape->elements();
  if (!extents) return std::move(extents).take_status();
  for (const JsonValue& extent : *extents) {
    Result<std::int64_t> count = extent.integer();
    if (!count) return std::move(count).take_status();
    tensor.shape.push_back(*count);
  }
  const std::optional<std::int64_t> bytes = safetensors_size(tensor.type, tensor.shape);
  if (!bytes)
    return fail("has the shape " + shape_text(tensor.shape) + ", which no file of " +
                std::string(tensor.type.name) + " can hold");

  Result<JsonValue> offsets = entry.at("data_offsets");
  if (!offsets) return std::move(offsets).take_status();
  Result<std::vector<JsonValue>> pair = offsets->elements();
  if (!pair) return std::move(pair).take_status();
  if (pair->size() != 2)
    return fail("has " + std::to_string(pair->size()) + " data_offsets, not begin and end");
  Result<std::int64_t> begin = (*pair)[0].integer();
  if (!begin) return std::move(begin).take_status();
  Result<std::int64_t> end = (*pair)[1].integer(*begin);
  if (!end) return std::move(end).take_status();
  if (static_cast<std::uint64_t>(*end) > data.size())
    return fail("ends at byte " + std::to_string(*end) + " of the data, but the file has only " +
                std::to_string(data.size()) + " (truncated download?)");
  if (*end - *begin != *bytes)
    return fail("has " + std::to_string(*end - *begin) + " bytes, but " +
                std::string(tensor.type.name) + " of shape " + shape_text(tensor.shape) +
                " needs " + std::to_string(*bytes));
  tensor.bytes = data.subspan(static_cast<std::size_t>(*begin), static_cast<std::size_t>(*bytes));
  return tensor;
}

}  // namespace detail

/// A checked safetensors file: every tensor has the size that its shape requires, and the tensors
/// cover the file's data without overlap or gap. Keys that the format does not define are ignored.
class SafetensorsFile {
 public:
  using Metadata = std::map<std::string, std::string, std::less<>>;

  /// Maps the file; tensor data is read from disk when it is accessed. Fails with FileAccess if the
  /// file cannot be opened, Corrupt if it is damaged; the message names the file, and the tensor if
  /// there is one.
  static Result<SafetensorsFile> open(const std::filesystem::path& path) {
    Result<MappedFile> file = MappedFile::open(path);
    if (!file) return std::move(file).take_status();
    Result<SafetensorsFile> parsed = parse(file->bytes(), shown_path(path));
    if (parsed) parsed->file_ = *std::move(file);
    return parsed;
  }

  /// The same for bytes in memory, which must outlive the object. Errors call them `file`.
  static Result<SafetensorsFile> parse(std::span<const std::byte> bytes, const std::string& file) {
    SafetensorsFile result;
    KVTILT_RETURN_IF_ERROR(result.read(bytes, file));
    return result;
  }

  [[nodiscard]] const StoredTensors& tensors() const { return tensors_; }
  /// The strings under "__metadata__".
  [[nodiscard]] const Metadata& metadata() const { return metadata_; }

 private:
  SafetensorsFile() = default;

  Status read(std::span<const std::byte> bytes, const std::string& file) {
    std::uint64_t header_bytes = 0;
    if (bytes.size() < sizeof(header_bytes))
      return Status::error(ErrorCode::Corrupt, "%s: %zu bytes are too few for a safetensors file",
                           file.c_str(), bytes.size());
    std::memcpy(&header_bytes, bytes.data(), sizeof(header_bytes));
    bytes = bytes.subspan(sizeof(header_bytes));
    if (header_bytes > detail::largest_safetensors_header)
      return Status::error(ErrorCode::Corrupt,
                           "%s: the header should have %llu bytes, the format allows %llu; not a "
                           "safetensors file?",
                           file.c_str(), static_cast<unsigned long long>(header_bytes),
                           static_cast<unsigned long long>(detail::largest_safetensors_header));
    if (header_bytes > bytes.size())
      return Status::error(ErrorCode::Corrupt,
                           "%s: the header should have %llu bytes, but only %zu follow (truncated "
                           "download?)",
                           file.c_str(), static_cast<unsigned long long>(header_bytes),
                           bytes.size());
    const std::string_view header(reinterpret_cast<const char*>(bytes.data()),
                                  static_cast<std::size_t>(header_bytes));
    return read_header(header, bytes.subspan(header.size()), file);
  }

  Status read_header(std::string_view header, std::span<const std::byte> data,
                     const std::string& file) {
    // The JSON parser skips a byte order mark, which the format does not allow.
    if (header.starts_with("\xEF\xBB\xBF"))
      return Status::error(ErrorCode::Corrupt, "%s: the header begins with a byte order mark",
                           file.c_str());
    Result<JsonDocument> document = JsonDocument::parse(header, file + " header");
    if (!document) return std::move(document).take_status();
    Result<std::vector<JsonValue::Member>> entries = document->root().members();
    if (!entries) return std::move(entries).take_status();
    for (const auto& [name, entry] : *entries) {
      if (name == "__metadata__") {
        KVTILT_RETURN_IF_ERROR(read_metadata(entry));
        continue;
      }
      Result<StoredTensor> tensor = detail::read_safetensors_entry(name, entry, data, file);
      if (!tensor) return std::move(tensor).take_status();
      tensors_.emplace(name, *std::move(tensor));
    }
    return check_coverage(tensors_, data, file, Gaps::Refused);
  }

  Status read_metadata(const JsonValue& entry) {
    if (entry.is_null()) return {};
    Result<std::vector<JsonValue::Member>> members = entry.members();
    if (!members) return std::move(members).take_status();
    for (const auto& [key, value] : *members) {
      Result<std::string_view> text = value.string();
      if (!text) return std::move(text).take_status();
      metadata_.emplace(key, *text);
    }
    return {};
  }

  std::optional<MappedFile> file_;
  StoredTensors tensors_;
  Metadata metadata_;
};

}  // namespace kvtilt
