// SPDX-License-Identifier: MIT
/// Head blocks of hostile data, and the bytes that the scalar specification gives for them.
#pragma once

#include <kvtilt/page/layout.hpp>
#include <kvtilt/quant/fit.hpp>

#include "support/codes.hpp"
#include "support/group_data.hpp"
#include "support/random.hpp"

#include <cstddef>
#include <cstdint>
#include <new>
#include <string>
#include <vector>

namespace kvtilt::test {

/// Bytes with the alignment of pages and a guard on both sides.
class Block {
 public:
  explicit Block(std::size_t bytes, std::uint8_t fill = 0)
      : bytes_(round_up(bytes, page_alignment)),
        storage_(static_cast<std::byte*>(::operator new(bytes_ + 2 * guard, alignment))) {
    for (std::size_t i = 0; i < bytes_ + 2 * guard; ++i)
      storage_[i] = i - guard < bytes_ ? std::byte{fill} : guard_value;
  }
  ~Block() { ::operator delete(storage_, alignment); }
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;

  [[nodiscard]] std::byte* data() { return storage_ + guard; }
  [[nodiscard]] const std::byte* data() const { return storage_ + guard; }
  [[nodiscard]] std::size_t size() const { return bytes_; }

  [[nodiscard]] bool guards_are_whole() const {
    for (std::size_t i = 0; i < guard; ++i)
      if (storage_[i] != guard_value || storage_[guard + bytes_ + i] != guard_value) return false;
    return true;
  }

 private:
  static constexpr std::align_val_t alignment{page_alignment};
  static constexpr std::size_t guard = 2 * page_alignment;
  static constexpr std::byte guard_value{0xa5};
  std::size_t bytes_;
  std::byte* storage_;
};

/// First byte in which two blocks differ, or -1.
inline std::ptrdiff_t first_difference(const Block& a, const Block& b) {
  for (std::size_t i = 0; i < a.size() && i < b.size(); ++i)
    if (a.data()[i] != b.data()[i]) return static_cast<std::ptrdiff_t>(i);
  return a.size() == b.size() ? -1 : static_cast<std::ptrdiff_t>(a.size());
}

/// The two extents of a head.
struct Extents {
  int dim;
  int tokens;
};

/// Every page size, and every kind of head dimension: tiny, usual, odd multiples of 8, the largest.
inline const std::vector<Extents>& all_extents() {
  static const std::vector<Extents> list = {{8, 32},   {64, 32},  {72, 32},  {80, 32},  {96, 32},
                                            {128, 32}, {192, 32}, {576, 32}, {8, 64},   {72, 64},
                                            {128, 64}, {64, 128}, {72, 128}, {128, 128}};
  return list;
}

/// Formats of a width for given extents, resolved: both granularities, several groups, all rules.
inline std::vector<Format> formats_of(int bits, Extents extents) {
  if (bits == half_bits) return {Format{}};
  std::vector<Format> formats;
  const std::vector<RangeRule> rules = rules_of(bits);
  const auto add = [&](Granularity granularity, int group) {
    formats.push_back({bits, granularity, group, rules[formats.size() % rules.size()]});
  };
  for (const int group : {32, 16, 64, 128})
    if (extents.tokens % group == 0) add(Granularity::PerChannel, group);
  for (const int group : {32, 64, 128})
    if (group < extents.dim) add(Granularity::PerToken, group);
  if (extents.dim <= max_group) add(Granularity::PerToken, extents.dim);
  return formats;
}

inline std::string to_string(const Format& format, Extents extents) {
  return std::to_string(format.bits) + " bits, " +
         (format.granularity == Granularity::PerChannel ? "per channel" : "per token") +
         ", group " + std::to_string(format.group) + ", " + kvtilt::to_string(format.rule) +
         ", dim " + std::to_string(extents.dim) + ", tokens " + std::to_string(extents.tokens);
}

inline HeadLayout layout_of(const Format& format, Extents extents) {
  return head_layout({format, format}, extents.dim, extents.dim, extents.tokens, 0);
}

/// Calls body(band, entry, count, position) for every group; position(i) = (outer, inner) of
/// element i.
template <class Body>
void for_each_group_of(const TensorLayout& tensor, Body body) {
  const int group = tensor.format.quantized() ? tensor.format.group : quad_codes;
  const int along = tensor.group_along_outer ? tensor.matrix.outer : tensor.matrix.inner;
  const int across = tensor.group_along_outer ? tensor.matrix.inner : tensor.matrix.outer;
  for (int first = 0; first < along; first += group)
    for (int entry = 0; entry < across; ++entry) {
      const int count = group < along - first ? group : along - first;
      body(first / group, entry, count, [&, first, entry](int i) {
        return tensor.group_along_outer ? std::pair{first + i, entry} : std::pair{entry, first + i};
      });
    }
}

inline F16* halves(std::byte* block, const TensorLayout& half) {
  return reinterpret_cast<F16*>(block + half.codes);
}
inline const F16* halves(const std::byte* block, const TensorLayout& half) {
  return reinterpret_cast<const F16*>(block + half.codes);
}

inline constexpr F16 no_half{0xffff};  // NaN

/// Fills a tensor with arbitrary codes, scales and minima, or finite halves. Slots of other tokens than
/// `first` to last - 1 hold NaN or random codes, and groups without a slot of these NaN scales and
/// minima.
inline void fill_tensor(Random& random, Role role, const TensorLayout& tensor, int first, int last,
                        std::byte* block) {
  const auto is_live = [&](int outer, int inner) {
    const int token = role == Role::Keys ? outer : inner;
    return token >= first && token < last;
  };
  if (!tensor.format.quantized()) {
    for (int outer = 0; outer < tensor.matrix.outer; ++outer)
      for (int inner = 0; inner < tensor.matrix.inner; ++inner)
        halves(block, tensor)[half_position(tensor.matrix, outer, inner)] =
            is_live(outer, inner) ? F16{any_finite(random)} : no_half;
    return;
  }
  const std::size_t bytes = code_bytes(tensor.matrix, tensor.format.bits);
  for (std::size_t i = 0; i < bytes; ++i)
    block[tensor.codes + i] = static_cast<std::byte>(random.below(256));
  for_each_group_of(tensor, [&](int band, int entry, int count, const auto& position) {
    bool used = false;
    for (int i = 0; i < count; ++i) used = used || is_live(position(i).first, position(i).second);
    F16* scale = tensor.scales(block, band) + entry;
    *scale = used ? F16{static_cast<std::uint16_t>(random.below(0x7c00))} : no_half;
    scale[tensor.pitch()] = used ? F16{any_finite(random)} : no_half;
  });
}

/// Fills a 16-bit tensor; each group of the format it will be packed into is of one kind of data.
/// `usual` leaves out the kinds whose magnitudes differ by more than float32 can add up.
inline void fill_half_tensor(Random& random, const TensorLayout& half, const TensorLayout& packed,
                             std::byte* block, bool usual = false) {
  F16* values = halves(block, half);
  std::vector<std::uint16_t> group;
  for_each_group_of(packed, [&](int, int, int count, const auto& position) {
    group.resize(static_cast<std::size_t>(count));
    const int kind = random.below(usual ? 5 : data_kinds);
    fill_group(random, static_cast<Data>(kind), group, largest_magnitude(packed.format));
    for (int i = 0; i < count; ++i) {
      const auto [outer, inner] = position(i);
      values[half_position(half.matrix, outer, inner)] = F16{group[static_cast<std::size_t>(i)]};
    }
  });
}

/// The reference for `pack`: fit, encode and write_code, per element. `block` must be zeros.
inline void pack_by_specification(const TensorLayout& half, const std::byte* half_block,
                                  const TensorLayout& packed, std::byte* block) {
  const F16* values = halves(half_block, half);
  const Format format = packed.format;
  std::uint8_t* codes = reinterpret_cast<std::uint8_t*>(block + packed.codes);
  for_each_group_of(packed, [&](int band, int entry, int count, const auto& position) {
    F16 group[max_group];
    for (int i = 0; i < count; ++i) {
      const auto [outer, inner] = position(i);
      group[i] = values[half_position(half.matrix, outer, inner)];
      if (!format.quantized())
        halves(block, packed)[half_position(packed.matrix, outer, inner)] = group[i];
    }
    if (!format.quantized()) return;
    const Affine affine = fit({group, count, 1}, format.bits, format.rule);
    F16* scales = packed.scales(block, band);
    scales[entry] = affine.scale;
    scales[packed.pitch() + entry] = affine.minimum;
    const float inverse = reciprocal(affine.scale);
    for (int i = 0; i < count; ++i) {
      const auto [outer, inner] = position(i);
      write_code(codes, packed.matrix, format.bits, outer, inner,
                 encode(group[i], affine, inverse, format.bits, format.rule));
    }
  });
}

}  // namespace kvtilt::test
