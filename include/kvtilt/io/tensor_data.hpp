// SPDX-License-Identifier: MIT
/// A tensor in a file, and its conversion to floats.
#pragma once

#include <kvtilt/core/half.hpp>
#include <kvtilt/core/status.hpp>
#include <kvtilt/io/float8.hpp>
#include <kvtilt/io/shown.hpp>

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace kvtilt {

static_assert(std::endian::native == std::endian::little, "tensor files are little-endian");

/// How bytes become floats.
enum class Encoding : std::uint8_t {
  None,  ///< not supported: such tensors are listed, but cannot be read
  F32,
  F16,
  BF16,
  F8E4M3,
  F8E5M2,
  Q8_0,  ///< per 32 elements of a row: an fp16 scale, then 32 signed bytes to multiply by it
};

/// The type of a tensor's elements. Elements are stored in blocks along the last dimension.
struct StoredType {
  std::string_view name;  ///< as in the file format: "F32", "Q4_K"
  int block_elements = 1;
  int block_bytes = 0;
  Encoding encoding = Encoding::None;
};

inline constexpr StoredType element_f32{"F32", 1, 4, Encoding::F32};
inline constexpr StoredType element_f16{"F16", 1, 2, Encoding::F16};
inline constexpr StoredType element_bf16{"BF16", 1, 2, Encoding::BF16};

/// Where a tensor lies in a file. The bytes are valid as long as the file's reader; they need not
/// be aligned.
struct StoredTensor {
  std::string file;  ///< for messages
  std::string name;
  StoredType type;
  std::vector<std::int64_t> shape;  ///< row-major: the last dimension is contiguous; empty: scalar
  std::span<const std::byte> bytes;

  /// The extent of the first dimension; a tensor of less than two dimensions is one row.
  [[nodiscard]] std::int64_t rows() const { return shape.size() < 2 ? 1 : shape[0]; }
  /// Elements of a row.
  [[nodiscard]] std::int64_t columns() const {
    std::int64_t count = 1;
    for (std::size_t i = shape.size() < 2 ? 0 : 1; i < shape.size(); ++i) count *= shape[i];
    return count;
  }
  [[nodiscard]] std::int64_t elements() const { return rows() * columns(); }
};

/// "[4096, 128]"
inline std::string shape_text(const std::vector<std::int64_t>& shape) {
  std::string text = "[";
  for (const std::int64_t extent : shape) {
    if (text.size() > 1) text += ", ";
    text += std::to_string(extent);
  }
  return text + "]";
}

/// Bytes of a tensor; nothing if the last dimension does not hold whole blocks, or if the bytes or
/// the product of the extents that are not 0 overflow an int64. No extent may be negative.
constexpr std::optional<std::int64_t> stored_bytes(const StoredType& type,
                                                   std::span<const std::int64_t> shape) {
  constexpr std::int64_t most = std::numeric_limits<std::int64_t>::max();
  std::int64_t product = 1;  // without the zeros: columns() of [0, 2^40, 2^40] must not overflow
  bool empty = false;
  for (const std::int64_t extent : shape) {
    if (extent == 0)
      empty = true;
    else if (product > most / extent)
      return std::nullopt;
    else
      product *= extent;
  }
  const std::int64_t last = shape.empty() ? 1 : shape.back();
  if (last % type.block_elements != 0) return std::nullopt;
  if (empty) return 0;
  const std::int64_t blocks = product / type.block_elements;
  if (blocks > most / type.block_bytes) return std::nullopt;
  return blocks * type.block_bytes;
}

namespace detail {

template <class Stored>
void convert(const std::byte* bytes, std::span<float> out) {
  for (std::size_t i = 0; i < out.size(); ++i) {
    Stored stored;
    std::memcpy(&stored, bytes + i * sizeof(Stored), sizeof(Stored));
    out[i] = to_float(stored);
  }
}

inline void convert_q8_0(const std::byte* bytes, std::span<float> out) {
  for (std::size_t block = 0; block < out.size() / 32; ++block, bytes += 34) {
    F16 scale;
    std::memcpy(&scale, bytes, sizeof(scale));
    for (std::size_t i = 0; i < 32; ++i)
      out[block * 32 + i] =
          to_float(scale) * static_cast<float>(static_cast<std::int8_t>(bytes[2 + i]));
  }
}

inline void convert(Encoding encoding, const std::byte* bytes, std::span<float> out) {
  switch (encoding) {
    case Encoding::None:
      break;
    case Encoding::F32:
      if (!out.empty()) std::memcpy(out.data(), bytes, out.size_bytes());
      break;
    case Encoding::F16:
      return convert<F16>(bytes, out);
    case Encoding::BF16:
      return convert<BF16>(bytes, out);
    case Encoding::F8E4M3:
      return convert<F8E4M3>(bytes, out);
    case Encoding::F8E5M2:
      return convert<F8E5M2>(bytes, out);
    case Encoding::Q8_0:
      return convert_q8_0(bytes, out);
  }
}

}  // namespace detail

/// Converts rows [first, first + rows) to float32, row-major: out[rows * tensor.columns()]. Exact
/// except for Q8_0, whose products are rounded. Reads only the bytes of these rows.
/// Fails with Unsupported, naming file, tensor and type, if the encoding is None; InvalidArgument
/// if the tensor has no such rows or `out` has another length.
inline Status read_floats(const StoredTensor& tensor, std::int64_t first, std::int64_t rows,
                          std::span<float> out) {
  const auto fail = [&](ErrorCode code, const std::string& what) {
    return Status::error(code, "%s: tensor '%s' %s", tensor.file.c_str(),
                         shown(tensor.name).c_str(), what.c_str());
  };
  if (tensor.type.encoding == Encoding::None)
    return fail(ErrorCode::Unsupported,
                "is stored as " + std::string(tensor.type.name) +
                    "; only F32, F16, BF16, F8_E4M3, F8_E5M2 and Q8_0 can be read");
  if (first < 0 || rows < 0 || first > tensor.rows() || rows > tensor.rows() - first)
    return fail(ErrorCode::InvalidArgument, "of shape " + shape_text(tensor.shape) + " has " +
                                                std::to_string(tensor.rows()) + " rows, not " +
                                                std::to_string(rows) + " from row " +
                                                std::to_string(first) + " on");
  const std::int64_t elements = rows * tensor.columns();
  if (out.size() != static_cast<std::size_t>(elements))
    return fail(ErrorCode::InvalidArgument,
                "of shape " + shape_text(tensor.shape) + " has " + std::to_string(elements) +
                    " numbers in " + std::to_string(rows) + " rows, the output has room for " +
                    std::to_string(out.size()));
  const std::int64_t start = first * tensor.columns() / tensor.type.block_elements;
  detail::convert(tensor.type.encoding, tensor.bytes.data() + start * tensor.type.block_bytes, out);
  return {};
}

/// Converts the whole tensor.
inline Status read_floats(const StoredTensor& tensor, std::span<float> out) {
  return read_floats(tensor, 0, tensor.rows(), out);
}

/// Converts the whole tensor into a vector.
inline Result<std::vector<float>> read_floats(const StoredTensor& tensor) {
  std::vector<float> values;
  if (tensor.type.encoding != Encoding::None)
    values.resize(static_cast<std::size_t>(tensor.elements()));
  KVTILT_RETURN_IF_ERROR(read_floats(tensor, values));
  return values;
}

}  // namespace kvtilt
