// SPDX-License-Identifier: MIT
/// Reads GGUF files of versions 2 and 3: counts, key-value pairs, descriptions of tensors, then
/// their bytes. (github.com/ggml-org/ggml, docs/gguf.md.)
#pragma once

#include <kvtilt/core/status.hpp>
#include <kvtilt/io/byte_reader.hpp>
#include <kvtilt/io/gguf_metadata.hpp>
#include <kvtilt/io/mapped_file.hpp>
#include <kvtilt/io/shown.hpp>
#include <kvtilt/io/stored_tensors.hpp>
#include <kvtilt/io/tensor_data.hpp>

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <iterator>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace kvtilt {

namespace detail {

/// Indexed by ggml's type number. Entries without a name are types that ggml has removed.
inline constexpr StoredType gguf_types[] = {
    element_f32,
    element_f16,
    {"Q4_0", 32, 18},
    {"Q4_1", 32, 20},
    {},
    {},
    {"Q5_0", 32, 22},
    {"Q5_1", 32, 24},
    {"Q8_0", 32, 34, Encoding::Q8_0},
    {"Q8_1", 32, 40},
    {"Q2_K", 256, 84},
    {"Q3_K", 256, 110},
    {"Q4_K", 256, 144},
    {"Q5_K", 256, 176},
    {"Q6_K", 256, 210},
    {"Q8_K", 256, 292},
    {"IQ2_XXS", 256, 66},
    {"IQ2_XS", 256, 74},
    {"IQ3_XXS", 256, 98},
    {"IQ1_S", 256, 50},
    {"IQ4_NL", 32, 18},
    {"IQ3_S", 256, 110},
    {"IQ2_S", 256, 82},
    {"IQ4_XS", 256, 136},
    {"I8", 1, 1},
    {"I16", 1, 2},
    {"I32", 1, 4},
    {"I64", 1, 8},
    {"F64", 1, 8},
    {"IQ1_M", 256, 56},
    element_bf16,
    {},
    {},
    {},
    {"TQ1_0", 256, 54},
    {"TQ2_0", 256, 66},
    {},
    {},
    {},
    {"MXFP4", 32, 17},
    {"NVFP4", 64, 36},
    {"Q1_0", 128, 18},
};

}  // namespace detail

/// A checked GGUF file: every value and tensor lies inside it, and every tensor has the size that
/// its shape requires and shares no byte with another.
class GgufFile {
 public:
  /// Maps the file; tensor data is read from disk when it is accessed. Fails with FileAccess if the
  /// file cannot be opened, Unsupported for other versions, byte orders and unknown element types,
  /// Corrupt if it is damaged; the message names the file, and the key or tensor if there is one.
  static Result<GgufFile> open(const std::filesystem::path& path) {
    Result<MappedFile> file = MappedFile::open(path);
    if (!file) return std::move(file).take_status();
    Result<GgufFile> parsed = parse(file->bytes(), shown_path(path));
    if (parsed) parsed->file_ = *std::move(file);
    return parsed;
  }

  /// The same for bytes in memory, which must outlive the object. Errors call them `file`.
  static Result<GgufFile> parse(std::span<const std::byte> bytes, const std::string& file) {
    GgufFile result;
    result.metadata_.file_ = file;
    KVTILT_RETURN_IF_ERROR(result.read(bytes));
    return result;
  }

  [[nodiscard]] const GgufMetadata& metadata() const { return metadata_; }
  /// Shapes are row-major as everywhere in this library, which reverses the order in the file.
  [[nodiscard]] const StoredTensors& tensors() const { return tensors_; }

 private:
  struct Described {  // a tensor before its bytes are located
    StoredTensor tensor;
    std::uint64_t offset;  // from the start of the data
  };

  GgufFile() = default;

  Status fail(ErrorCode code, const std::string& what) const {
    return Status::error(code, "%s: %s", metadata_.file_.c_str(), what.c_str());
  }
  Status fail_tensor(std::string_view name, const std::string& what,
                     ErrorCode code = ErrorCode::Corrupt) const {
    return fail(code, "tensor '" + shown(name) + "' " + what);
  }

  Status read(std::span<const std::byte> bytes) {
    detail::ByteReader reader(bytes);
    if (reader.take_number<std::uint32_t>() != 0x46554747)  // "GGUF"
      return fail(ErrorCode::Corrupt, "does not begin with GGUF; not a GGUF file?");
    const std::uint32_t version = reader.take_number<std::uint32_t>();
    const std::uint64_t tensors = reader.take_number<std::uint64_t>();
    const std::uint64_t pairs = reader.take_number<std::uint64_t>();
    if (reader.failed()) return fail(ErrorCode::Corrupt, "ends within its header");
    if (version != 0 && (version & 0xffff) == 0)
      return fail(ErrorCode::Unsupported, "is big-endian; only little-endian files can be read");
    if (version != 2 && version != 3)
      return fail(ErrorCode::Unsupported,
                  "is of GGUF version " + std::to_string(version) + "; only 2 and 3 can be read");
    for (std::uint64_t i = 0; i < pairs; ++i) {
      std::string_view key;
      if (const std::string problem = metadata_.read(reader, key); !problem.empty())
        return fail(ErrorCode::Corrupt, "key '" + shown(key) + "', " + std::to_string(i + 1) +
                                            " of " + std::to_string(pairs) + ", " + problem);
    }
    std::uint64_t alignment = 32;
    KVTILT_RETURN_IF_ERROR(read_alignment(alignment));
    return read_tensors(bytes, reader, tensors, static_cast<std::size_t>(alignment));
  }

  Status read_alignment(std::uint64_t& alignment) const {
    if (!metadata_.contains("general.alignment")) return {};
    Result<std::int64_t> value = metadata_.integer("general.alignment");
    if (!value) return std::move(value).take_status();
    alignment = static_cast<std::uint64_t>(*value);
    if (*value < 1 || *value > (1 << 20) || !std::has_single_bit(alignment))
      return fail(ErrorCode::Corrupt, "general.alignment is " + std::to_string(*value) +
                                          ", not a power of two up to 2^20");
    return {};
  }

  /// Reads all descriptions before any tensor is located: the data begins behind the last one.
  Status read_tensors(std::span<const std::byte> bytes, detail::ByteReader& reader,
                      std::uint64_t count, std::size_t alignment) {
    std::vector<Described> described;
    for (std::uint64_t i = 0; i < count; ++i) {
      Result<Described> tensor = read_description(reader);
      if (!tensor) return std::move(tensor).take_status();
      described.push_back(*std::move(tensor));
    }
    const std::size_t head = bytes.size() - reader.left();
    const std::size_t padding = (alignment - head % alignment) % alignment;
    const std::span<const std::byte> data = bytes.subspan(head + std::min(padding, reader.left()));
    for (Described& tensor : described)
      KVTILT_RETURN_IF_ERROR(add(std::move(tensor), data, alignment));
    return check_coverage(tensors_, data, metadata_.file_, Gaps::Allowed);
  }

  Result<Described> read_description(detail::ByteReader& reader) const {
    StoredTensor tensor{metadata_.file_, std::string(reader.take_string()), {}, {}, {}};
    const std::uint32_t dimensions = reader.take_number<std::uint32_t>();
    if (dimensions > 8)
      return fail_tensor(tensor.name,
                         "has " + std::to_string(dimensions) + " dimensions, more than 8");
    for (std::uint32_t i = 0; i < dimensions; ++i) {
      const std::uint64_t extent = reader.take_number<std::uint64_t>();
      if (extent > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max()))
        return fail_tensor(tensor.name, "has a dimension of " + std::to_string(extent));
      tensor.shape.insert(tensor.shape.begin(), static_cast<std::int64_t>(extent));
    }
    const std::uint32_t type = reader.take_number<std::uint32_t>();
    const std::uint64_t offset = reader.take_number<std::uint64_t>();
    if (reader.failed())
      return fail_tensor(tensor.name,
                         "is described beyond the end of the file (truncated "
                         "download?)");
    if (type >= std::size(detail::gguf_types) || detail::gguf_types[type].block_bytes == 0)
      return fail_tensor(tensor.name, "has the unknown type " + std::to_string(type),
                         ErrorCode::Unsupported);
    tensor.type = detail::gguf_types[type];
    return Described{std::move(tensor), offset};
  }

  Status add(Described described, std::span<const std::byte> data, std::size_t alignment) {
    auto& [tensor, offset] = described;
    const std::string type(tensor.type.name);
    const std::optional<std::int64_t> bytes = stored_bytes(tensor.type, tensor.shape);
    if (!bytes)
      return fail_tensor(tensor.name, "has the shape " + shape_text(tensor.shape) +
                                          ", which no file of " + type + " can hold");
    if (offset % alignment != 0)
      return fail_tensor(tensor.name, "begins at byte " + std::to_string(offset) +
                                          " of the data, not a multiple of " +
                                          std::to_string(alignment));
    const std::uint64_t size = static_cast<std::uint64_t>(*bytes);
    if (offset > data.size() || size > data.size() - offset)
      return fail_tensor(tensor.name, "of " + std::to_string(size) + " bytes begins at byte " +
                                          std::to_string(offset) +
                                          " of the data, but the file has only " +
                                          std::to_string(data.size()) + " (truncated download?)");
    tensor.bytes = data.subspan(static_cast<std::size_t>(offset), static_cast<std::size_t>(size));
    std::string name = tensor.name;
    const auto [place, added] = tensors_.emplace(std::move(name), std::move(tensor));
    return added ? Status{} : fail_tensor(place->first, "appears twice");
  }

  std::optional<MappedFile> file_;
  GgufMetadata metadata_;
  StoredTensors tensors_;
};

}  // namespace kvtilt
