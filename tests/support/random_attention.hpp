// SPDX-License-Identifier: MIT
/// Random attention requests to a layer whose model is known: queries, options, threads, and
/// float64 attention over the model's values.
#pragma once

#include <kvtilt/attention/attend_prefill.hpp>
#include <kvtilt/attention/parallel_for.hpp>

#include "support/layer_model.hpp"
#include "support/options_oracle.hpp"
#include "support/random_input.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <thread>
#include <vector>

namespace kvtilt::test {

/// A request with the arrays that it points to, and the layer's model.
struct RandomRequest {
  const LayerModel* model;
  LayerView view;
  bool prefill;  ///< the queries come behind the view, with keys and values of their own
  RandomInput queries;
  RandomInput keys;  ///< of a prefill; otherwise without tokens
  RandomInput values;
  Output output;
  std::vector<float> slopes;
  std::vector<float> sinks;
  std::vector<std::uint64_t> tree;
  AttendOptions options = exact_options();

  RandomRequest(Random& random, const LayerModel& model_, const LayerView& view_, bool prefill_,
                std::int64_t tokens)
      : model(&model_),
        view(view_),
        prefill(prefill_),
        // Not constant: equal products round alike, and their sum would drift beyond the bound.
        queries(random, tokens, view.shape.kv_heads * random.between(1, 3), view.shape.key_dim,
                false),
        keys(random, prefill ? tokens : 0, view.shape.kv_heads, view.shape.key_dim),
        values(RandomInput::values(random, prefill ? tokens : 0, view.shape)),
        output(tokens, queries.rows().heads, view.shape.value_dim) {
    const int heads = queries.rows().heads;
    for (int head = 0; head < heads; ++head) {
      slopes.push_back(static_cast<float>(random.uniform(-0.1, 0.1)));
      sinks.push_back(static_cast<float>(random.sampled_normal()) * 3);
    }
    const int window = view.shape.window;
    const int length = static_cast<int>(view.length);
    if (random.chance(4)) options.scale = static_cast<float>(random.uniform(0.01, 0.3));
    if (random.chance(4)) options.soft_cap = static_cast<float>(random.uniform(1, 60));
    if (random.chance(4)) options.alibi_slopes = slopes;
    if (random.chance(4)) options.sink_logits = sinks;
    if (random.chance(4) && tokens > 0 && tokens <= 64) {
      const std::int64_t most = std::min<std::int64_t>(64, first_query() + tokens);
      if (random.chance(2))
        options.tree_tokens = random.between(static_cast<int>(tokens), static_cast<int>(most));
      const std::uint64_t bits =
          kvtilt::detail::tree_bits(std::max<std::int64_t>(tokens, options.tree_tokens));
      for (std::int64_t i = 0; i < tokens; ++i)
        tree.push_back((random.next() | random.next()) & bits);
      options.tree_mask = tree;
    } else {
      options.causal = !random.chance(5);
    }
    if (random.chance(4)) options.window = random.between(1, window > 0 ? window : 400);
    if (random.chance(6)) options.first_position = random.below(length + 3);
    if (random.chance(6)) options.end_position = options.first_position + random.below(length + 1);
  }
  RandomRequest(RandomRequest&&) = default;  // the spans' vectors keep their memory

  [[nodiscard]] std::int64_t first_query() const {
    return prefill ? view.length : view.length - queries.rows().tokens;
  }

  /// Whether the oldest query would see what the window has freed. Only a truncation, which
  /// guarantees the next token alone, can bring this about.
  [[nodiscard]] bool sees_freed_tokens() const {
    const int window = options.window > 0 ? options.window : view.shape.window;
    std::int64_t first = first_query();
    if (options.tree_tokens > 0) first += queries.rows().tokens - options.tree_tokens;
    const std::int64_t oldest =
        std::max<std::int64_t>(options.first_position, window > 0 ? first - window + 1 : 0);
    return oldest < std::min(options.end_position, model->freed_until());
  }

  [[nodiscard]] bool untouched() const {
    const auto is_old = [](float x) { return x == 77.0f; };
    return std::all_of(output.out.data.begin(), output.out.data.end(), is_old) &&
           std::all_of(output.lse.begin(), output.lse.end(), is_old);
  }

  [[nodiscard]] AttendRequest attend() { return {view, queries.view(), output.view(), options}; }
  [[nodiscard]] PrefillRequest attend_prefill() {
    return {view, queries.view(), keys.view(), values.view(), output.view(), options};
  }

  /// Whether the output keeps `stretch` times the bound, in a few rows.
  [[nodiscard]] testing::AssertionResult follows_model(Random& random, double stretch) const {
    const Rows<float>& q = queries.rows();
    for (int row = 0; q.tokens > 0 && row < 3; ++row) {
      const int head = random.below(q.heads);
      const int token = random.below(static_cast<int>(q.tokens));
      const int kv_head = head / (q.heads / view.shape.kv_heads);
      const ModelTensor chunk_keys = chunk(keys);
      const ModelTensor chunk_values = view.shape.values_in_keys
                                           ? chunk_keys.first_channels(view.shape.value_dim)
                                           : chunk(values);
      std::vector<LiveToken> tokens;
      const auto add = [&](const ModelTensor& k, const ModelTensor& v, std::int64_t index,
                           std::int64_t position, bool sink) {
        const std::size_t at_k = k.at(index, kv_head);
        const std::size_t at_v = v.at(index, kv_head);
        tokens.push_back(
            {position, &k.values[at_k], &v.values[at_v], sink, &k.widths[at_k], &v.widths[at_v]});
      };
      for (const PageEntry& page : model->page_table())
        for (std::int64_t p = page.first_position; p < page.first_position + page.tokens; ++p)
          add(model->keys(), model->values(), p, p, page.kind == PageKind::Sinks);
      for (std::int64_t i = 0; i < keys.rows().tokens; ++i)
        add(chunk_keys, chunk_values, i, first_query() + i,
            first_query() + i < model->sink_tokens());
      const OracleRow expected =
          oracle_row(options, view.shape, {first_query() + token, first_query(), token, head},
                     &q.at(token, head, 0), tokens);
      const testing::AssertionResult kept =
          keeps_bound(expected, &output.out.at(token, head, 0),
                      output.lse[static_cast<std::size_t>(token * q.heads + head)], stretch);
      if (!kept)
        return testing::AssertionFailure()
               << "query " << token << ", head " << head << ": " << kept.message();
    }
    return testing::AssertionSuccess();
  }

 private:
  [[nodiscard]] static ModelTensor chunk(const RandomInput& input) {
    ModelTensor tensor{input.rows().heads, input.rows().dim, {}, {}};
    tensor.append(input.rows());
    return tensor;
  }
};

/// Workers on their own threads, or all on the caller's thread from the last to the first.
class RandomWorkers {
 public:
  explicit RandomWorkers(Random& random)
      : workers_(random.between(1, 4)), threads_(random.chance(2)) {}

  [[nodiscard]] ParallelFor get() const {
    return {workers_, threads_ ? &on_threads : &backwards, nullptr};
  }

 private:
  static void on_threads(void*, int workers, ParallelFor::Task task, void* argument) {
    std::vector<std::thread> threads;
    for (int worker = 1; worker < workers; ++worker) threads.emplace_back(task, argument, worker);
    task(argument, 0);
    for (std::thread& thread : threads) thread.join();
  }
  static void backwards(void*, int workers, ParallelFor::Task task, void* argument) {
    for (int worker = workers; worker-- > 0;) task(argument, worker);
  }

  int workers_;
  bool threads_;
};

}  // namespace kvtilt::test
