// SPDX-License-Identifier: MIT
/// Runs a random program on a device cache and compares it with its models after every step.
#pragma once

#include "program_wild.cuh"

#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

namespace kvtilt::test {

class CacheProgramRun : ProgramWild {
 public:
  using ProgramWild::ProgramWild;

  /// Runs all steps. Returns what went wrong, or an empty string.
  std::string play(const std::vector<CacheStep>& steps) {
    for (std::size_t i = 0; i < steps.size(); ++i) {
      std::string wrong = play(steps[i]);
      if (wrong.empty()) wrong = compare();
      if (!wrong.empty()) return "step " + std::to_string(i) + ": " + wrong;
    }
    return finish();
  }

 private:
  std::string play(const CacheStep& step) {
    Random random(step.seed);
    if (step.kind == CacheStep::Open) return open(step.amount % (most_tokens() + 1));
    if (held().empty()) return {};
    HeldSequence& one = held()[static_cast<std::size_t>(step.which) % held().size()];
    if (step.kind == CacheStep::Close) return close(one);
    if (step.kind == CacheStep::Wild) one.wild = true;
    if (one.wild) return wild(one, step, random);
    switch (step.kind) {
      case CacheStep::Open:
        break;
      case CacheStep::AppendBatch:
        return append_batch(step.layer, step.amount, random);
      case CacheStep::Untold:
        return append_untold(step.amount, random);
      case CacheStep::TruncateBatch:
        return truncate_batch(step.amount, random);
      case CacheStep::Refresh:
        return refresh(one);
      case CacheStep::Unpack:
        return unpack(one, step.layer, random);
      case CacheStep::Attend:
        return attend(step.layer, random);
      case CacheStep::Prefill:
        return prefill(step.layer, step.amount, random);
      case CacheStep::Replay:
        return replay(step.amount, random);
      case CacheStep::Tables:
        return tables(step.layer, random);
      case CacheStep::Hostile:
        return hostile(one, step.layer, random);
      default:
        // The host must know the sequence's state first.
        if (const std::string wrong = tell({&one}); !wrong.empty()) return wrong;
        return play(step, one, random);
    }
    return {};
  }

  std::string play(const CacheStep& step, HeldSequence& one, Random& random) {
    switch (step.kind) {
      case CacheStep::Reserve:
        return reserve(one, step.amount);
      case CacheStep::Append:
        return append_one(one, step.layer % layers(), step.amount, random);
      case CacheStep::Truncate:
        return truncate(one, random_length(one, step.amount, random));
      case CacheStep::Repair:
        return truncate(one, one.shortest());
      case CacheStep::Fork:
        return fork(one, step.amount);
      case CacheStep::Save:
        return save_and_load(one, step.amount);
      default: {
        const std::int64_t page = setup().options.page_tokens;
        const std::int64_t from = setup().options.sink_tokens + page * random.below(6);
        return remove(one, from, from + page * random.between(1, 2) - (random.chance(5) ? 3 : 0));
      }
    }
  }

  std::string append_one(HeldSequence& one, int layer, int amount, Random& random) {
    if (!cached(layer)) return {};
    ChosenBatch chosen({&one});
    if (std::string wrong = make_batch(chosen); !wrong.empty()) return wrong;
    return append(chosen, layer, {amount}, true, random);
  }

  /// Makes calls that must be refused and change nothing, which is compared afterwards.
  std::string hostile(HeldSequence& one, int layer, Random& random) {
    layer %= layers();
    const auto refused = [&](const char* call, ErrorCode code) {
      return code == ErrorCode::InvalidArgument ? "" : std::string("allowed ") + call;
    };
    const SequenceId id = one.ids.gpu;
    const LayerShape& shape = setup().shape.layers[at(layer)];
    const std::int64_t too_many = one.told ? most_tokens(one) + 1 : std::int64_t{1} << 40;
    const DeviceRows<float> rows(4, std::max(1, shape.kv_heads), std::max(8, shape.key_dim));
    const DeviceRows<float> others(4, std::max(1, shape.kv_heads), std::max(8, shape.value_dim));
    const DeviceArray<std::int32_t> memory(8);
    using Counts = std::vector<std::int32_t>;
    using Lengths = std::vector<std::int64_t>;
    using Ids = std::vector<SequenceId>;
    const auto append = [&](int to, const TensorView& keys, const TensorView& values) {
      return refused("append", gpu().append(id, to, keys, values).code());
    };
    if (!cached(layer)) {
      if (gpu().view(layer).ok() || gpu().free_pages(layer).ok()) return "showed no layer";
      return append(layer, rows.view(), others.view());
    }
    const cuda::SequenceBatch batch = gpu().batch(id).value();
    switch (random.below(16)) {
      case 0:
        return closed().empty() ? ""
                                : closed_is_refused(
                                      closed()[at(random.below(static_cast<int>(closed().size())))],
                                      layer, rows, others);
      case 1:
        return refused("a sequence twice", gpu().batch(Ids{id, id}, memory.span()).code());
      case 2:
        return refused("too little memory", gpu().batch(Ids{id}, {}).code());
      case 3:
        return append(layers(), rows.view(), others.view());
      case 4: {
        const DeviceRows<float> wide(4, shape.kv_heads, shape.value_dim + 16);
        return append(layer, rows.view(), wide.view());
      }
      case 5: {
        const DeviceRows<float> more(4, shape.kv_heads + 1, shape.key_dim);
        return append(layer, more.view(), others.view());
      }
      case 6: {
        const DeviceRows<float> fewer(3, shape.kv_heads, shape.value_dim);
        return append(layer, rows.view(), fewer.view());
      }
      case 7: {
        TensorView null = rows.view();
        null.data = nullptr;
        return append(layer, null, others.view());
      }
      case 8:
        return refused("reserve", gpu().reserve(id, random.chance(2) ? -1 : too_many).code());
      case 9:
        return refused("truncate", random.chance(2) ? gpu().truncate(id, -1).code()
                                                    : gpu().truncate(batch, nullptr, {}).code());
      case 10:
        return refused("remove", gpu().remove(id, 32, random.chance(2) ? 32 : 0).code()) +
               refused("remove", gpu().remove(id, -32, 0).code());
      case 11:
        return one.told ? noted_too_much(one, batch) : "";
      case 12:
        return refused("note_appended", gpu().note_appended(batch, Counts{-1}, nullptr).code()) +
               refused("note_appended", gpu().note_appended(batch, Counts{}, nullptr).code()) +
               refused("note_truncated", gpu().note_truncated(batch, Lengths{-1}, nullptr).code());
      case 13:
        return refused("counts of others", gpu()
                                               .append(batch, layer, rows.view(), others.view(),
                                                       memory.data(), Counts{1, 1})
                                               .code()) +
               refused("more tokens than rows", gpu()
                                                    .append(batch, layer, rows.view(),
                                                            others.view(), memory.data(), Counts{5})
                                                    .code());
      case 14:
        return append_nowhere(layer, rows, others, random);
      default:
        return capture(one, layer, rows, others);
    }
  }

  std::string closed_is_refused(SequenceId id, int layer, const DeviceRows<float>& keys,
                                const DeviceRows<float>& values) {
    const DeviceArray<std::int32_t> memory(1);
    const ErrorCode codes[] = {gpu().reserve(id, 1).code(),
                               gpu().truncate(id, 0).code(),
                               gpu().remove(id, 0, 32).code(),
                               gpu().fork(id).code(),
                               gpu().close(id).code(),
                               gpu().batch(id).code(),
                               gpu().batch(std::vector<SequenceId>{id}, memory.span()).code(),
                               gpu().append(id, layer, keys.view(), values.view()).code(),
                               gpu().unpack(id, layer, 0, keys.out(), values.out()).code(),
                               gpu().tokens_before_seal(id, layer).code(),
                               gpu().reserved_tokens(id).code(),
                               gpu().length(id).code(),
                               gpu().length(id, layer).code(),
                               gpu().length(id, layer, nullptr).code(),
                               gpu().refresh(id, nullptr).code(),
                               gpu().memory(id).code()};
    for (const ErrorCode code : codes)
      if (code != ErrorCode::InvalidArgument) return "a closed sequence is served";
    return {};
  }

  std::string noted_too_much(const HeldSequence& one, const cuda::SequenceBatch& batch) {
    std::int32_t tokens = 1 << 20;
    for (const auto& own : one.layers)  // a window may free as many as are needed
      if (own && PageAccount(*own).append(1000)) return {};
    return gpu().note_appended(batch, std::vector<std::int32_t>{tokens}, nullptr).code() ==
                   ErrorCode::OutOfCapacity
               ? ""
               : "noted more than there is room for";
  }

  /// Appends with invalid row numbers.
  std::string append_nowhere(int layer, const DeviceRows<float>& keys,
                             const DeviceRows<float>& values, Random& random) {
    ChosenBatch chosen(choose(random));
    if (std::string wrong = make_batch(chosen); !wrong.empty()) return wrong;
    std::vector<std::int32_t> indptr(chosen.who.size() + 1, 1);
    indptr.back() = pick(random, {0, 5, -1, std::numeric_limits<std::int32_t>::max()});
    const DeviceArray<std::int32_t> starts(indptr);
    expect_record(ErrorCode::Corrupt);
    const Status status =
        gpu().append(chosen.batch, layer, keys.view(), values.view(), starts.data(), {});
    return std::string(status.message());
  }

  /// Checks that calls that wait, allocate or count pages refuse to be captured.
  std::string capture(const HeldSequence& one, int layer, const DeviceRows<float>& keys,
                      const DeviceRows<float>& values) {
    const SequenceId id = one.ids.gpu;
    const DeviceArray<std::int32_t> memory(1);
    const DeviceArray<std::int64_t> lengths(1);
    const cuda::SequenceBatch batch = gpu().batch(id).value();
    std::vector<ErrorCode> codes;
    const Graph graph([&](cudaStream_t s) {
      codes = {gpu().open(s).code(),
               gpu().reserve(id, 10, s).code(),
               gpu().truncate(id, 0, s).code(),
               gpu().truncate(batch, lengths.data(), std::vector<std::int64_t>{0}, s).code(),
               gpu().remove(id, 0, 32, s).code(),
               gpu().fork(id, 0, s).code(),
               gpu().close(id, s).code(),
               gpu().batch(std::vector<SequenceId>{id}, memory.span(), s).code(),
               gpu().length(id, layer, s).code(),
               gpu().refresh(id, s).code(),
               gpu().poll(s).code()};
      // Never replayed.
      KVTILT_EXPECT_OK(gpu().append(
          id, layer, keys.view(), stored_apart(setup().shape.layers[at(layer)], values.view()), s));
    });
    for (const ErrorCode code : codes)
      if (code == ErrorCode::Ok) return "a call was captured";
    return {};
  }
};

}  // namespace kvtilt::test
