// SPDX-License-Identifier: MIT
#include "safetensors.hpp"

#include "fail.hpp"
#include "json.hpp"

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <optional>
#include <string_view>
#include <utility>

namespace llama {
namespace {

static_assert(std::endian::native == std::endian::little, "safetensors files are little endian");

constexpr std::size_t length_bytes = 8;
constexpr std::uint64_t largest_header = 100'000'000;  // the limit of the format's reference reader

std::optional<std::uint64_t> element_bytes(std::string_view dtype) {
  static const std::map<std::string_view, std::uint64_t> sizes{
      {"BOOL", 1}, {"U8", 1},  {"I8", 1},  {"F8_E4M3", 1}, {"F8_E5M2", 1},
      {"U16", 2},  {"I16", 2}, {"F16", 2}, {"BF16", 2},    {"U32", 4},
      {"I32", 4},  {"F32", 4}, {"U64", 8}, {"I64", 8},     {"F64", 8}};
  const auto found = sizes.find(dtype);
  if (found == sizes.end()) return std::nullopt;
  return found->second;
}

/// Checks one header entry and cuts its bytes out of `data`, the part of the file after the header.
StoredTensor read_entry(const std::string& where, const nlohmann::json& entry,
                        std::span<const std::byte> data) {
  if (!entry.is_object()) fail(where, " is not described by a JSON object");
  const auto dtype = entry.find("dtype");
  if (dtype == entry.end() || !dtype->is_string()) fail(where, " has no dtype");
  StoredTensor tensor;
  tensor.dtype = dtype->get<std::string>();
  const auto size = element_bytes(tensor.dtype);
  if (!size) fail(where, " has the unknown dtype ", *dtype);

  const auto shape = entry.find("shape");
  if (shape == entry.end() || !shape->is_array()) fail(where, " has no shape");
  std::uint64_t bytes = *size;
  for (const auto& extent : *shape) {
    if (!extent.is_number_unsigned()) {
      fail(where, " has the shape ", *shape, ", which is not a list of counts");
    }
    const auto count = extent.get<std::uint64_t>();
    if (count != 0 && bytes > std::numeric_limits<std::int64_t>::max() / count) {
      fail(where, " has the shape ", *shape, ", more elements than any file can hold");
    }
    bytes *= count;
    tensor.shape.push_back(static_cast<std::int64_t>(count));
  }

  const auto offsets = entry.find("data_offsets");
  if (offsets == entry.end() || !offsets->is_array() || offsets->size() != 2 ||
      !(*offsets)[0].is_number_unsigned() || !(*offsets)[1].is_number_unsigned()) {
    fail(where, " has no pair of data_offsets");
  }
  const auto begin = (*offsets)[0].get<std::uint64_t>();
  const auto end = (*offsets)[1].get<std::uint64_t>();
  if (begin > end) fail(where, " has data_offsets ", *offsets, " that end before they begin");
  if (end > data.size()) {
    fail(where, " ends at byte ", end, " of the data, but the file holds only ", data.size(),
         " (truncated download?)");
  }
  if (end - begin != bytes) {
    fail(where, " has ", end - begin, " bytes, but ", tensor.dtype, " of shape ", *shape, " needs ",
         bytes);
  }
  tensor.bytes = data.subspan(begin, bytes);
  return tensor;
}

/// The format asks for tensors back to back; an overlap or a gap means a damaged or crafted header.
void check_coverage(const std::string& file, const std::map<std::string, StoredTensor>& tensors,
                    std::span<const std::byte> data) {
  std::vector<const std::pair<const std::string, StoredTensor>*> order;
  for (const auto& item : tensors) order.push_back(&item);
  const auto begin_of = [&](const auto* item) { return item->second.bytes.data() - data.data(); };
  std::sort(order.begin(), order.end(), [&](const auto* a, const auto* b) {
    return std::pair(begin_of(a), a->second.bytes.size()) <
           std::pair(begin_of(b), b->second.bytes.size());
  });
  std::ptrdiff_t covered = 0;
  std::string previous;
  for (const auto* item : order) {
    if (begin_of(item) < covered) {
      fail(file, ": tensor \"", item->first, "\" overlaps tensor \"", previous, "\"");
    }
    if (begin_of(item) > covered) {
      fail(file, ": there is a gap before tensor \"", item->first, "\"");
    }
    covered += static_cast<std::ptrdiff_t>(item->second.bytes.size());
    previous = item->first;
  }
  if (covered != static_cast<std::ptrdiff_t>(data.size())) {
    fail(file, ": ", static_cast<std::ptrdiff_t>(data.size()) - covered,
         " bytes after the last tensor belong to nothing");
  }
}

}  // namespace

SafetensorsFile::SafetensorsFile(const std::filesystem::path& path) : file_(path) {
  const std::string name = path.string();
  const auto bytes = file_.bytes();
  if (bytes.size() < length_bytes) {
    fail(name, ": ", bytes.size(), " bytes are too few for a safetensors file");
  }
  std::uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, bytes.data(), length_bytes);
  if (header_bytes > largest_header) {
    fail(name, ": a header of ", header_bytes, " bytes is larger than the format allows (",
         largest_header, "); not a safetensors file?");
  }
  if (header_bytes > bytes.size() - length_bytes) {
    fail(name, ": the header should have ", header_bytes, " bytes, but only ",
         bytes.size() - length_bytes, " follow (truncated download?)");
  }
  const std::string_view header_text(reinterpret_cast<const char*>(bytes.data()) + length_bytes,
                                     header_bytes);
  const nlohmann::json header = parse_json_object(name + ": header", header_text);
  const auto data = bytes.subspan(length_bytes + header_bytes);
  for (const auto& [tensor, entry] : header.items()) {
    if (tensor == "__metadata__") continue;
    tensors_.emplace(tensor, read_entry(name + ": tensor \"" + tensor + "\"", entry, data));
  }
  check_coverage(name, tensors_, data);
}

}  // namespace llama
