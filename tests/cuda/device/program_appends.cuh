// SPDX-License-Identifier: MIT
/// Steps of a random program on batches: appends and truncations of which the host is told at once,
/// later or never, and replays of graphs.
#pragma once

#include "graph.cuh"
#include "program_caches.cuh"
#include "support/random_input.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace kvtilt::test {

/// Some of the open sequences in any order, and device memory for their slots.
struct ChosenBatch {
  std::vector<HeldSequence*> who;
  DeviceArray<std::int32_t> memory;
  cuda::SequenceBatch batch{};

  explicit ChosenBatch(std::vector<HeldSequence*> sequences)
      : who(std::move(sequences)), memory(who.size()) {}
  [[nodiscard]] std::vector<SequenceId> ids() const {
    std::vector<SequenceId> ids;
    for (const HeldSequence* one : who) ids.push_back(one->ids.gpu);
    return ids;
  }
};

/// Random tokens of any type and strides, and their copy in device memory.
struct DeviceInput {
  RandomInput input;
  DeviceArray<std::byte> copy;

  explicit DeviceInput(RandomInput from) : input(std::move(from)), copy(input.bytes()) {}
  [[nodiscard]] TensorView view() const { return input.view_of(copy.data()); }
};

class ProgramAppends : public ProgramCaches {
 public:
  using ProgramCaches::ProgramCaches;

 protected:
  std::vector<HeldSequence*> choose(Random& random, int most = 5) {
    std::vector<HeldSequence*> all;
    for (HeldSequence& one : held())
      if (!one.wild) all.push_back(&one);
    for (std::size_t i = all.size(); i > 1; --i)
      std::swap(all[i - 1], all[at(random.below(static_cast<int>(i)))]);
    all.resize(at(random.between(1, std::min(most, static_cast<int>(all.size())))));
    return all;
  }
  std::string make_batch(ChosenBatch& chosen) {
    Result<cuda::SequenceBatch> batch = gpu().batch(chosen.ids(), chosen.memory.span());
    if (!batch) return "batch: " + std::string(batch.message());
    chosen.batch = *batch;
    return {};
  }

  static std::vector<std::int32_t> random_counts(Random& random, std::size_t sequences,
                                                 int amount) {
    std::vector<std::int32_t> counts(sequences, amount);
    if (random.chance(3)) return counts;
    for (std::int32_t& count : counts) count = random.chance(3) ? 0 : random.between(0, amount);
    return counts;
  }

  /// Appends counts[i] tokens of random rows to a layer of each sequence.
  std::string append(ChosenBatch& chosen, int layer, const std::vector<std::int32_t>& counts,
                     bool told, Random& random) {
    const bool equal = std::all_of(counts.begin(), counts.end(),
                                   [&](std::int32_t count) { return count == counts[0]; });
    const bool with_indptr = !told || !equal || random.chance(2);
    std::vector<std::int32_t> indptr = {with_indptr ? random.below(3) : 0};
    for (const std::int32_t count : counts) indptr.push_back(indptr.back() + count);
    const std::int64_t rows = indptr.back() + (with_indptr ? random.below(3) : 0);
    const LayerShape& shape = setup().shape.layers[at(layer)];
    RandomInput keys(random, rows, shape.kv_heads, shape.key_dim);
    // Values of layers with attention (64 channels) are not constant: if zeros got all the weight,
    // the output would be nothing but rounding error.
    RandomInput values(random, rows, shape.kv_heads, shape.value_dim, shape.value_dim != 64);
    Rows<float> stored_keys = keys.rows();
    Rows<float> stored_values = values.rows();
    std::int64_t spoilt = -1;
    if (rows > 0 && random.chance(12)) {
      const bool is_key = shape.values_in_keys || random.chance(2);
      spoilt = spoil(random, layer, is_key, is_key ? keys : values,
                     is_key ? stored_keys : stored_values);
    }
    const DeviceInput k(std::move(keys));
    const DeviceInput all_values(std::move(values));
    const TensorView v = stored_apart(shape, all_values.view());
    const DeviceArray<std::int32_t> starts(indptr);

    const bool fit = fits(chosen.who, layer, counts);
    const Status status =
        !with_indptr && counts.size() == 1 && random.chance(2)
            ? gpu().append(chosen.who[0]->ids.gpu, layer, k.view(), v)
        : with_indptr ? gpu().append(chosen.batch, layer, k.view(), v, starts.data(),
                                     told ? std::span(counts) : std::span<const std::int32_t>{})
                      : gpu().append(chosen.batch, layer, k.view(), v);
    if (told && !fit)
      return status.code() == ErrorCode::OutOfCapacity ? "" : "appended more than was reserved";
    if (!status.ok()) return "append: " + std::string(status.message());
    for (std::size_t i = 0; i < counts.size(); ++i) {
      const std::string wrong = was_appended(*chosen.who[i], layer, indptr[i], counts[i],
                                             stored_keys, stored_values, spoilt);
      if (!wrong.empty()) return wrong;
    }
    return {};
  }

  /// Records that the device appended rows `first` to first + count - 1 to a sequence, if they fit.
  std::string was_appended(HeldSequence& one, int layer, std::int64_t first, std::int64_t count,
                           const Rows<float>& keys, const Rows<float>& values,
                           std::int64_t spoilt = -1) {
    PageAccount& own = *one.layers[at(layer)];
    const std::int64_t before = own.length();
    if (!own.append(count)) {
      expect_record(ErrorCode::OutOfCapacity);
      return {};
    }
    // Tokens that the window frees at once need not be checked by the device.
    if (spoilt >= first && spoilt < first + count)
      expect_record(ErrorCode::InvalidValue, own.holds(before + spoilt - first));
    const Status reserved = cpu().reserve(one.ids.cpu, own.length());
    if (!reserved.ok()) return "CPU: " + message_of(reserved);
    return message_of(
        cpu().append(one.ids.cpu, layer, keys.view(first, count),
                     stored_apart(setup().shape.layers[at(layer)], values.view(first, count))));
  }

  /// Appends a batch to one layer or to all.
  std::string append_batch(int layer, int amount, Random& random) {
    ChosenBatch chosen(choose(random));
    if (const std::string wrong = tell(chosen.who); !wrong.empty()) return wrong;
    if (std::string wrong = make_batch(chosen); !wrong.empty()) return wrong;
    const bool all = !random.chance(4);
    const std::vector<std::int32_t> counts = random_counts(random, chosen.who.size(), amount);
    for (int own = 0; own < layers(); ++own) {
      if (!cached(own) || (!all && own != layer % layers())) continue;
      if (const std::string wrong = append(chosen, own, counts, true, random); !wrong.empty())
        return wrong;
    }
    return {};
  }

  std::string append_untold(int amount, Random& random) {
    ChosenBatch chosen(choose(random));
    if (std::string wrong = make_batch(chosen); !wrong.empty()) return wrong;
    const std::vector<std::int32_t> counts = random_counts(random, chosen.who.size(), amount);
    Untold untold(*this, chosen.who);
    for (int layer = 0; layer < layers(); ++layer) {
      if (!cached(layer)) continue;
      untold.fits = untold.fits && fits(chosen.who, layer, counts);
      if (const std::string wrong = append(chosen, layer, counts, false, random); !wrong.empty())
        return wrong;
    }
    return untold.maybe_tell(random,
                             [&] { return gpu().note_appended(chosen.batch, counts, nullptr); });
  }

  std::string truncate_batch(int amount, Random& random) {
    ChosenBatch chosen(choose(random));
    if (std::string wrong = make_batch(chosen); !wrong.empty()) return wrong;
    const std::vector<std::int64_t> lengths = random_lengths(chosen.who, amount, random);
    const DeviceArray<std::int64_t> device(lengths);
    if (random.chance(2)) {
      const bool refused = refuse(chosen.who, lengths);
      if (const std::string wrong = tell(chosen.who); !wrong.empty()) return wrong;
      const Status status = gpu().truncate(chosen.batch, device.data(), lengths);
      if (status.code() != (refused ? ErrorCode::InvalidArgument : ErrorCode::Ok))
        return "truncate: " + std::string(status.message());
      return refused ? "" : were_truncated(chosen.who, lengths);
    }
    Untold untold(*this, chosen.who);
    untold.fits = !refuse(chosen.who, lengths);
    const Status status = gpu().truncate(chosen.batch, device.data(), {});
    if (!status.ok()) return "truncate: " + std::string(status.message());
    if (const std::string wrong = were_truncated(chosen.who, lengths); !wrong.empty()) return wrong;
    return untold.maybe_tell(random,
                             [&] { return gpu().note_truncated(chosen.batch, lengths, nullptr); });
  }

  /// Captures a graph of appends to all layers, and maybe of a truncation, and replays it with
  /// other numbers of rows and for other sequences than at capture.
  std::string replay(int amount, Random& random) {
    ChosenBatch chosen(choose(random));
    if (std::string wrong = make_batch(chosen); !wrong.empty()) return wrong;
    const std::size_t sequences = chosen.who.size();
    const std::int64_t rows = 3 + amount * static_cast<std::int64_t>(sequences);
    const bool cuts = random.chance(2);
    std::vector<std::unique_ptr<DeviceRows<float>>> keys;
    std::vector<std::unique_ptr<DeviceRows<float>>> values;
    for (const LayerShape& of : setup().shape.layers) {
      keys.push_back(std::make_unique<DeviceRows<float>>(rows, of.kv_heads, of.key_dim));
      values.push_back(std::make_unique<DeviceRows<float>>(rows, of.kv_heads, of.value_dim));
    }
    DeviceArray<std::int32_t> indptr(sequences + 1);
    DeviceArray<std::int64_t> lengths(sequences);
    std::string refused;
    const Graph graph([&](cudaStream_t stream) {
      for (int layer = 0; layer < layers(); ++layer) {
        const std::vector<std::int32_t> hint = random_counts(random, sequences, amount);
        if (!cached(layer)) continue;
        refused += message_of(gpu().append(
            chosen.batch, layer, keys[at(layer)]->view(),
            stored_apart(setup().shape.layers[at(layer)], values[at(layer)]->view()), indptr.data(),
            random.chance(2) ? std::span(hint) : std::span<const std::int32_t>{}, stream));
      }
      if (cuts) refused += message_of(gpu().truncate(chosen.batch, lengths.data(), {}, stream));
    });
    if (!refused.empty()) return "capture: " + refused;
    for (int launch = random.between(1, 3); launch > 0; --launch) {
      std::vector<HeldSequence*> now = chosen.who;
      std::rotate(now.begin(), now.begin() + random.below(static_cast<int>(sequences)), now.end());
      if (random.chance(2)) now.resize(at(random.between(0, static_cast<int>(sequences))));
      std::vector<SequenceId> ids;
      for (const HeldSequence* one : now) ids.push_back(one->ids.gpu);
      const cuda::SequenceBatch batch = gpu().batch(ids, chosen.memory.span()).value();
      std::vector<std::int32_t> counts = random_counts(random, sequences, amount);
      std::vector<std::int32_t> starts = {random.below(3)};
      for (const std::int32_t count : counts) starts.push_back(starts.back() + count);
      indptr.set(starts);
      counts.resize(now.size());
      Untold untold(*this, now);
      std::vector<Rows<float>> k;
      std::vector<Rows<float>> v;
      for (const LayerShape& of : setup().shape.layers) {
        k.push_back(random_rows(random, rows, of.kv_heads, of.key_dim, 1.0f, 0.5f));
        v.push_back(random_rows(random, rows, of.kv_heads, of.value_dim));
        keys[k.size() - 1]->array.set(k.back().data);
        values[k.size() - 1]->array.set(v.back().data);
      }
      std::vector<std::int64_t> cut = random_lengths(now, amount, random);
      if (random.chance(2)) std::fill(cut.begin(), cut.end(), 1 << 20);
      std::vector<std::int64_t> all = cut;
      all.resize(sequences, 0);
      lengths.set(all);
      graph.replay();
      for (int layer = 0; layer < layers(); ++layer) {
        if (!cached(layer)) continue;
        untold.fits = untold.fits && fits(now, layer, counts);
        for (std::size_t i = 0; i < now.size(); ++i) {
          const std::string wrong =
              was_appended(*now[i], layer, starts[i], counts[i], k[at(layer)], v[at(layer)]);
          if (!wrong.empty()) return wrong;
        }
      }
      const bool appended = untold.fits;
      if (cuts) {
        untold.fits = untold.fits && !refuse(now, cut);
        if (const std::string wrong = were_truncated(now, cut); !wrong.empty()) return wrong;
      }
      const std::string wrong = untold.maybe_tell(random, [&] {
        Status noted = gpu().note_appended(batch, counts, nullptr);
        if (noted.ok() != appended) return Status::error(ErrorCode::Corrupt, "note_appended");
        return noted.ok() && cuts ? gpu().note_truncated(batch, cut, nullptr) : std::move(noted);
      });
      if (!wrong.empty()) return wrong;
      if (const std::string worse = compare(); !worse.empty()) return "replay: " + worse;
    }
    return {};
  }

  /// Lets the host read the device's state of these sequences.
  std::string tell(const std::vector<HeldSequence*>& who) {
    for (HeldSequence* one : who) {
      if (one->told) continue;
      if (const std::string wrong = refresh(*one); !wrong.empty()) return wrong;
    }
    return {};
  }

  /// A random length to truncate to: anywhere, near the end, or close to what a window has freed.
  std::int64_t random_length(const HeldSequence& one, int amount, Random& random) const {
    const int layer = random.below(layers());
    const auto& own = one.layers[at(layer)];
    if (own && own->freed_until() > 0 && random.chance(3))
      return own->freed_until() + setup().shape.layers[at(layer)].window - random.below(3);
    if (random.chance(3)) return random.below(static_cast<int>(one.longest()) + 2);
    return std::max<std::int64_t>(0, one.longest() - amount);
  }

 private:
  /// A change to sequences on the device that the host has not been told of.
  struct Untold {
    ProgramAppends& run;
    std::vector<HeldSequence*> who;
    bool known = true;  ///< the host knew their state before
    bool fits = true;   ///< the device refuses none of it

    Untold(ProgramAppends& run_, std::vector<HeldSequence*> who_)
        : run(run_), who(std::move(who_)) {
      for (HeldSequence* one : who) {
        known = known && one->told;
        one->told = false;
      }
    }
    /// Then tells the host, lets it read the device's state, or does neither.
    template <class Note>
    std::string maybe_tell(Random& random, Note note) {
      if (known && random.chance(2)) {
        const Status status = note();
        if (status.ok() != fits || status.code() == ErrorCode::Corrupt)
          return "was told: " + std::string(status.message());
        for (HeldSequence* one : who) one->told = fits;
      }
      return random.chance(2) ? run.tell(who) : "";
    }
  };

  [[nodiscard]] static bool fits(const std::vector<HeldSequence*>& who, int layer,
                                 const std::vector<std::int32_t>& counts) {
    for (std::size_t i = 0; i < who.size(); ++i)
      if (!PageAccount(*who[i]->layers[at(layer)]).append(counts[i])) return false;
    return true;
  }
  [[nodiscard]] static bool refuse(const std::vector<HeldSequence*>& who,
                                   const std::vector<std::int64_t>& lengths) {
    for (std::size_t i = 0; i < who.size(); ++i)
      if (who[i]->refuses_truncation(lengths[i])) return true;
    return false;
  }
  /// Records the truncations; the device refuses some of them.
  std::string were_truncated(const std::vector<HeldSequence*>& who,
                             const std::vector<std::int64_t>& lengths) {
    for (std::size_t i = 0; i < who.size(); ++i) {
      if (who[i]->refuses_truncation(lengths[i])) {
        expect_record(ErrorCode::InvalidArgument);
        continue;
      }
      const std::string wrong = was_truncated(*who[i], lengths[i]);
      if (!wrong.empty()) return wrong;
    }
    return {};
  }
  std::vector<std::int64_t> random_lengths(const std::vector<HeldSequence*>& who, int amount,
                                           Random& random) const {
    std::vector<std::int64_t> lengths;
    for (const HeldSequence* one : who) lengths.push_back(random_length(*one, amount, random));
    return lengths;
  }

  /// Replaces an element of `input` by NaN or -infinity, and of `stored` by what must be stored for
  /// it. Returns its row.
  std::int64_t spoil(Random& random, int layer, bool is_key, RandomInput& input,
                     Rows<float>& stored) const {
    const std::int64_t row = random.below(static_cast<int>(stored.tokens));
    const int head = random.below(stored.heads);
    const int channel = random.below(stored.dim);
    const bool infinite = input.view().type != ElementType::F16 && random.chance(2);
    const std::vector<Recipe>& recipes = setup().plan.recipes[at(layer)];
    const Recipe& recipe = recipes[at(head) % recipes.size()];
    input.spoil(row, head, channel, infinite ? 0xff800000u : 0x7fc00000u);
    stored.at(row, head, channel) =
        infinite ? -largest_magnitude(is_key ? recipe.key : recipe.value) : 0.0f;
    return row;
  }
};

}  // namespace kvtilt::test
