// SPDX-License-Identifier: MIT
#include <kvtilt/cuda/cache/input_rows.hpp>

#include "support/emulated_threads.hpp"
#include "support/random.hpp"

#include <gtest/gtest.h>

#include <cstring>
#include <vector>

namespace kvtilt::test {
namespace {

/// Any number of rows, from any address, to any slots: these get the right halves, others stay. In
/// some rounds a few elements are infinite or NaN: they are replaced and counted.
TEST(InputRows, WriteTheSlotsTheyAreGivenAndNoOthers) {
  Random random(5);
  for (int round = 0; round < 120; ++round) {
    const bool keys = random.chance(2);
    const int tokens = 16 * random.between(1, 8);
    const int dim = 16 * random.between(1, 9);
    const CodeMatrix matrix = keys ? CodeMatrix{tokens, dim} : CodeMatrix{dim, tokens};
    const int slot = random.chance(3) ? 0 : random.below(tokens);
    const int count = random.chance(3) ? tokens - slot : random.between(0, tokens - slot);
    const ElementType type = static_cast<ElementType>(random.below(3));
    const std::int64_t pad = random.chance(2) ? 0 : random.below(9);
    const std::int64_t start = random.chance(2) ? 0 : random.below(9);
    const std::size_t bytes = element_bytes(type);

    const bool some_bad = random.chance(3);
    std::vector<float> wide(static_cast<std::size_t>((count + 2) * (dim + pad) + start));
    std::vector<std::byte> raw(wide.size() * bytes + 16);
    for (std::size_t i = 0; i < wide.size(); ++i) {
      wide[i] = to_float(to_bf16(static_cast<float>(random.normal())));
      if (some_bad && random.chance(300))
        wide[i] = bit_cast<float>(random.chance(2)   ? 0x7fc00000u
                                  : random.chance(2) ? 0x7f800000u
                                                     : 0xff800000u);
      const std::uint16_t half =
          type == ElementType::F16 ? to_f16(wide[i]).bits : to_bf16(wide[i]).bits;
      std::memcpy(raw.data() + i * bytes,
                  type == ElementType::F32 ? static_cast<void*>(&wide[i])
                                           : const_cast<std::uint16_t*>(&half),
                  bytes);
    }
    TensorView rows;
    rows.data = raw.data() + static_cast<std::size_t>(start) * bytes;
    rows.type = type;
    rows = rows.with_strides(dim + pad, dim);
    cuda::DeviceRecords records{};
    const cuda::DeviceRecord& record = records.repaired;
    cuda::LayerView layer{};
    layer.records = &records;
    alignas(16) static std::byte codes[144 * 128 * 2];
    std::memset(codes, 0xcd, sizeof codes);
    const Role role = keys ? Role::Keys : Role::Values;
    const cuda::InputTask task{role, rows, 1, f16_max, {0, 0, 0, 0}, matrix, codes, slot, count};
    ASSERT_TRUE(emulate(1, 32 * random.between(1, 5), 0, [&](EmulatedThreads& threads) {
      cuda::write_input(threads, layer, task);
    }));
    std::uint32_t bad = 0;
    for (int token = 0; token < tokens; ++token)
      for (int channel = 0; channel < dim; ++channel) {
        std::uint16_t found = 0;
        std::memcpy(
            &found,
            codes + cuda::half_offset(role, matrix, keys ? token : channel, keys ? channel : token),
            2);
        const bool given = token >= slot && token < slot + count;
        const std::size_t from =
            static_cast<std::size_t>(start + (1 + token - slot) * (dim + pad) + channel);
        const std::uint32_t bits = given ? bit_cast<std::uint32_t>(wide[from]) : 0;
        const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
        const bool infinite = (bits & 0x7fffffffu) == 0x7f800000u;
        bad += nan || infinite ? 1 : 0;
        ASSERT_EQ(found, !given     ? 0xcdcd
                         : nan      ? 0
                         : infinite ? 0x7bff | (bits >> 16 & 0x8000)
                                    : to_f16(wide[from]).bits)
            << "token " << token << ", channel " << channel << ", slot " << slot << ", count "
            << count << ", dim " << dim << ", pad " << pad << ", type " << to_string(type);
      }
    ASSERT_EQ(record.count, bad);
  }
}

}  // namespace
}  // namespace kvtilt::test
