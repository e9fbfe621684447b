// SPDX-License-Identifier: MIT
/// Runs a random program on a cache and on its model, and compares them after every step.
#pragma once

#include <kvtilt/attention/attend_prefill.hpp>
#include <kvtilt/attention/merge.hpp>

#include "support/program_cache.hpp"
#include "support/random_attention.hpp"
#include "support/random_program.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace kvtilt::test {

class ProgramRun : ProgramCache {
 public:
  using ProgramCache::ProgramCache;

  /// Runs all steps. Returns what went wrong, or an empty string.
  std::string play(const std::vector<Step>& steps) {
    for (std::size_t i = 0; i < steps.size(); ++i) {
      std::string wrong = play(steps[i]);
      if (wrong.empty()) wrong = compare();
      if (wrong.empty()) wrong = unpack(steps[i]);
      if (!wrong.empty()) return "step " + std::to_string(i) + ": " + wrong;
    }
    return {};
  }

 private:
  /// Unpacks some tokens of some layer, after every step.
  std::string unpack(const Step& step) const {
    if (models().empty()) return {};
    Random random(step.seed + 1);
    return unpack(models()[static_cast<std::size_t>(step.which) % models().size()], step.layer,
                  random);
  }
  using ProgramCache::unpack;

  std::string play(const Step& step) {
    Random random(step.seed);
    if (step.kind == Step::Open) return open(step.amount * setup().stretch, random);
    if (models().empty()) return {};
    ModelSequence& model = models()[static_cast<std::size_t>(step.which) % models().size()];
    const int amount = step.amount * setup().stretch;
    switch (step.kind) {
      case Step::Open:
        break;
      case Step::Reserve:
        return reserve(model, amount, random);
      case Step::Append:
        return append_random(model, step.layer, amount, random);
      case Step::Truncate:
        return truncate(model, random_length(model, amount, random));
      case Step::Repair:
        return truncate(model, cache().length(model.id).value());
      case Step::Fork:
        return fork(model, amount, random);
      case Step::Remove:
        return remove(model, random);
      case Step::Save:
        return save_and_load(model, amount, random);
      case Step::Close:
        return random.chance(4) ? close_all() : close(model);
      case Step::Attend:
        return attend(random);
      case Step::Merge:
        return merge_parts(model, step.layer, random);
      case Step::Prefill:
        return prefill(random, step.amount);
    }
    return {};
  }

  /// A length to truncate to: random, near the end, or where a window's freed tokens matter.
  std::int64_t random_length(const ModelSequence& model, int amount, Random& random) const {
    const std::int64_t longest = model.longest();
    const auto& own =
        model.layers[static_cast<std::size_t>(random.below(static_cast<int>(model.layers.size())))];
    if (own && own->freed_until() > 0 && random.chance(3))
      return own->freed_until() + own->shape().window - random.below(3);
    if (random.chance(3)) return random.below(static_cast<int>(longest) + 2);
    return std::max<std::int64_t>(0, longest - amount);
  }

  /// A request to a random layer of a random sequence; none if that layer keeps no cache.
  std::optional<RandomRequest> random_request(Random& random, bool prefill, int most,
                                              ModelSequence** sequence = nullptr,
                                              std::size_t* layer = nullptr) {
    ModelSequence& model =
        models()[static_cast<std::size_t>(random.below(static_cast<int>(models().size())))];
    const std::size_t index =
        static_cast<std::size_t>(random.below(static_cast<int>(model.layers.size())));
    if (!model.layers[index]) return {};
    if (sequence != nullptr) *sequence = &model;
    if (layer != nullptr) *layer = index;
    const LayerView view = cache().view(model.id, static_cast<int>(index)).value();
    if (!prefill) most = static_cast<int>(std::min<std::int64_t>(most, view.length));
    return RandomRequest(random, *model.layers[index], view, prefill, random.between(0, most));
  }

  /// Attends with a ragged batch, including empty sequences and requests without queries.
  std::string attend(Random& random) {
    std::vector<RandomRequest> asked;
    for (int i = random.between(1, 4); i > 0; --i)
      if (auto one = random_request(random, false, random.chance(5) ? 70 : 6))
        asked.push_back(std::move(*one));
    std::vector<AttendRequest> batch;
    bool refused = false;
    for (RandomRequest& one : asked) {
      batch.push_back(one.attend());
      refused = refused || one.sees_freed_tokens();
    }
    const ParallelFor workers = RandomWorkers(random).get();
    std::vector<std::byte> workspace(attend_workspace_bytes(batch, workers.workers),
                                     std::byte{0xff});
    const Status status = kvtilt::attend(batch, workspace, workers);
    if (const std::string wrong = judge(asked, status, refused, random); !wrong.empty())
      return "attend: " + wrong;
    if (refused || asked.empty()) return {};
    // A request alone on one worker must give the same bits as in the batch.
    RandomRequest& one = asked.front();
    const Output together = one.output;
    const AttendRequest alone = one.attend();
    workspace.assign(attend_workspace_bytes({&alone, 1}), std::byte{0xff});
    const Status again = kvtilt::attend({&alone, 1}, workspace);
    if (!again.ok()) return std::string(again.message());
    return together.out.data == one.output.out.data && together.lse == one.output.lse
               ? ""
               : "a batch changed the bits of a request";
  }

  /// Prefills chunks of several sequences over their past; then appends the chunks.
  std::string prefill(Random& random, int most) {
    std::vector<RandomRequest> asked;
    std::vector<std::pair<ModelSequence*, std::size_t>> places;
    for (int i = random.between(1, 3); i > 0; --i) {
      std::pair<ModelSequence*, std::size_t> place;
      auto one = random_request(random, true, most, &place.first, &place.second);
      if (!one) continue;
      asked.push_back(std::move(*one));
      places.push_back(place);
    }
    std::vector<PrefillRequest> batch;
    bool refused = false;
    for (RandomRequest& one : asked) {
      batch.push_back(one.attend_prefill());
      refused = refused || one.sees_freed_tokens();
    }
    const ParallelFor workers = RandomWorkers(random).get();
    std::vector<std::byte> workspace(attend_prefill_workspace_bytes(batch, workers.workers),
                                     std::byte{0xff});
    const Status status = kvtilt::attend_prefill(batch, workspace, workers);
    if (const std::string wrong = judge(asked, status, refused, random); !wrong.empty())
      return "attend_prefill: " + wrong;
    for (std::size_t i = 0; i < asked.size(); ++i) {
      const std::string wrong =
          append(*places[i].first, places[i].second, asked[i].keys, asked[i].values);
      if (!wrong.empty()) return wrong;
    }
    return {};
  }

  static std::string judge(const std::vector<RandomRequest>& asked, const Status& status,
                           bool refused, Random& random) {
    if (status.ok() == refused) return refused ? "saw freed tokens" : std::string(status.message());
    for (const RandomRequest& one : asked) {
      if (refused) {
        if (!one.untouched()) return "wrote although it failed";
        continue;
      }
      const testing::AssertionResult kept = one.follows_model(random, 1.0);
      if (!kept) return kept.message();
    }
    return {};
  }

  /// Merges attention over parts between random positions, which must equal attention over the
  /// whole.
  std::string merge_parts(ModelSequence& model, int layer, Random& random) {
    const std::size_t index = static_cast<std::size_t>(layer) % model.layers.size();
    if (!model.layers[index] || model.layers[index]->length() == 0) return {};
    const LayerView view = cache().view(model.id, static_cast<int>(index)).value();
    const int length = static_cast<int>(view.length);
    RandomRequest whole(random, *model.layers[index], view, false,
                        random.between(1, std::min(6, length)));
    whole.options.first_position = 0;
    whole.options.end_position = exact_options().end_position;
    if (whole.sees_freed_tokens()) return {};
    std::vector<std::int64_t> cuts = {0, length};
    for (int i = random.below(4); i > 0; --i) cuts.push_back(random.below(length + 1));
    std::sort(cuts.begin(), cuts.end());
    const std::size_t sinks_in =
        static_cast<std::size_t>(random.below(static_cast<int>(cuts.size()) - 1));
    Output sum(whole.output.out.tokens, whole.output.out.heads, whole.output.out.dim);
    std::fill(sum.out.data.begin(), sum.out.data.end(), 0.0f);
    std::fill(sum.lse.begin(), sum.lse.end(), bit_cast<float>(0xff800000u));
    std::vector<std::byte> workspace(attend_workspace_bytes(view));
    for (std::size_t part = 0; part + 1 < cuts.size(); ++part) {
      AttendOptions options = whole.options;
      options.first_position = cuts[part];
      options.end_position = cuts[part + 1];
      if (part != sinks_in) options.sink_logits = {};
      const OutputView out = whole.output.view();
      Status status = kvtilt::attend(view, whole.queries.view(), out, options, workspace);
      if (status.ok()) status = merge(sum.view(), out);
      if (!status.ok()) return "merge: " + std::string(status.message());
    }
    whole.output = sum;
    // A part has errors in its output and in its lse, which is its weight in the merge.
    const testing::AssertionResult kept = whole.follows_model(random, 2.0);
    return kept ? "" : std::string("merge: ") + kept.message();
  }
};

}  // namespace kvtilt::test
