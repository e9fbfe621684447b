// SPDX-License-Identifier: MIT
/// Calls to a sequence that the host is not told of, or that the device refuses after the host
/// accepted them: whatever happens to that sequence, others must stay unchanged.
#pragma once

#include "program_attention.cuh"

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace kvtilt::test {

class ProgramWild : public ProgramReads {
 public:
  using ProgramReads::ProgramReads;

 protected:
  std::string wild(HeldSequence& one, const CacheStep& step, Random& random) {
    expect_any_record();
    one.told = false;
    const SequenceId id = one.ids.gpu;
    const std::int64_t page = setup().options.page_tokens;
    const std::int64_t length = gpu().length(id).value();
    const std::int64_t cut = random.chance(2) ? random.below(static_cast<int>(length) + 1)
                                              : std::max<std::int64_t>(0, length - step.amount);
    const cuda::SequenceBatch batch = gpu().batch(id).value();
    switch (random.below(10)) {
      case 0:
        return taken(gpu().reserve(id, random.below(static_cast<int>(most_tokens()))));
      case 1:
        return taken(gpu().truncate(id, cut));
      case 2:
      case 3: {
        const std::vector<std::int64_t> lengths = {cut};
        const DeviceArray<std::int64_t> device(lengths);
        return taken(gpu().truncate(
            batch, device.data(),
            random.chance(2) ? std::span(lengths) : std::span<const std::int64_t>{}));
      }
      case 4: {
        const std::int64_t from = setup().options.sink_tokens + page * random.below(6);
        return taken(gpu().remove(id, from, from + page * random.between(1, 2)));
      }
      case 5: {
        const Result<SequenceId> child = gpu().fork(id, 0);
        if (!child) return {};
        HeldSequence fork = one;
        fork.ids = {*child, cpu().open().value()};
        held().push_back(std::move(fork));
        return {};
      }
      case 6:
        return refresh(one);
      default:
        return append_wild(batch, step.amount, random);
    }
  }

 private:
  /// Corrupt is an error; else the host may accept or refuse.
  static std::string taken(const Status& status) {
    return status.code() == ErrorCode::Corrupt ? message_of(status) : "";
  }

  /// Appends to all layers, with or without counts, with valid or invalid rows.
  std::string append_wild(const cuda::SequenceBatch& batch, int amount, Random& random) {
    const std::vector<std::int32_t> counts = {random.chance(2) ? amount : 4 * amount};
    const DeviceArray<std::int32_t> indptr(random.chance(2)
                                               ? std::vector<std::int32_t>{0, counts[0]}
                                               : std::vector<std::int32_t>{1, 0});
    const bool told = random.chance(2);
    for (int layer = 0; layer < layers(); ++layer) {
      if (!cached(layer)) continue;
      const LayerShape& of = setup().shape.layers[at(layer)];
      const DeviceRows<float> keys(random_rows(random, counts[0], of.kv_heads, of.key_dim));
      const DeviceRows<float> values(random_rows(random, counts[0], of.kv_heads, of.value_dim));
      const Status status =
          gpu().append(batch, layer, keys.view(), stored_apart(of, values.view()), indptr.data(),
                       told ? std::span(counts) : std::span<const std::int32_t>{});
      if (!taken(status).empty()) return message_of(status);
    }
    return {};
  }
};

}  // namespace kvtilt::test
