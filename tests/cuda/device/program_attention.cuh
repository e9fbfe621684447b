// SPDX-License-Identifier: MIT
/// Steps of a random program that only read: attention compared with float64, unpacked tokens, and
/// page tables for engines.
#pragma once

#include <kvtilt/cuda/attention/attend.cuh>
#include <kvtilt/cuda/attention/attend_prefill.cuh>
#include <kvtilt/cuda/cache/page_tables.cuh>

#include "program_appends.cuh"
#include "support/device_prefill.hpp"
#include "support/some_kernels.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace kvtilt::test {

class ProgramReads : public ProgramAppends {
 public:
  using ProgramAppends::ProgramAppends;

 protected:
  /// Decodes the newest tokens of some sequences, with empty slots in the batch.
  std::string attend(int layer, Random& random) {
    layer %= layers();
    if (!cached(layer)) return {};
    const LayerShape& shape = setup().shape.layers[at(layer)];
    const auto attention = cuda::Attention::create<SomeKernels>(
        shape, setup().plan.recipes[at(layer)], setup().options.page_tokens);
    if (!attention) return unsupported(attention.status());
    const Asked asked(*this, layer, random);
    if (!asked.wrong.empty()) return asked.wrong;
    const int count = asked.batch.count;
    const int gqa_ratio = random.between(1, 4);
    const bool ragged = random.chance(2);
    const int same = random.between(1, 3);
    std::vector<std::int32_t> starts = {0};
    for (int i = 0; i < count; ++i)
      starts.push_back(starts.back() + (ragged ? random.below(5) : same));
    const int all = starts.back();
    const RandomInput queries(random, all, shape.kv_heads * gqa_ratio, shape.key_dim, false);
    RandomOptions options(random, shape, Rows<float>(all, shape.kv_heads * gqa_ratio, 1));
    for (std::size_t i = 0; i < asked.views.size(); ++i)  // a mask covers exactly the newest tokens
      if (asked.views[i].length < starts[i + 1] - starts[i]) options.no_tree();
    const DeviceInput q(queries);
    const DeviceArray<std::int32_t> indptr(starts);
    const DeviceRows<float> out(all, queries.rows().heads, shape.value_dim);
    const DeviceArray<float> lse(at(all * queries.rows().heads));
    const DeviceArray<std::byte> workspace(attention->workspace_bytes());
    const OptionArrays arrays(options.options, count);
    KVTILT_EXPECT_OK(attention->prepare(workspace.span(), nullptr));
    const Status status =
        attention->attend(view(layer), asked.batch, ragged ? indptr.data() : nullptr, q.view(),
                          out.out(), lse.data(), arrays.options, workspace.span(), nullptr);
    if (!status.ok()) return "attend: " + std::string(status.message());
    const Output output = output_of(out, lse);
    Rows<float> rows = queries.rows();
    rows.tokens = starts[asked.views.size()];
    if (!sees_nothing(output, rows.tokens, options.options)) return "attend: rows of nobody";
    const testing::AssertionResult close =
        is_close(asked.views, rows, options.options, output, tolerance, least_norm, starts);
    return close ? "" : std::string("attend: ") + close.message();
  }

  /// Prefills chunks of some sequences over their past and themselves.
  std::string prefill(int layer, int amount, Random& random) {
    layer %= layers();
    if (!cached(layer)) return {};
    const LayerShape& shape = setup().shape.layers[at(layer)];
    const auto attention = cuda::PrefillAttention::create<SomeKernels>(
        shape, setup().plan.recipes[at(layer)], setup().options.page_tokens);
    if (!attention) return unsupported(attention.status());
    const Asked asked(*this, layer, random);
    if (!asked.wrong.empty()) return asked.wrong;
    const int count = asked.batch.count;
    const int gqa_ratio = random.between(1, 4);
    std::vector<int> lengths;
    for (int i = 0; i < count; ++i) lengths.push_back(random.between(0, amount));
    const Chunks chunks(random, shape, lengths, gqa_ratio);
    const std::int64_t rows = chunks.indptr.back();
    const RandomOptions options(random, shape, Rows<float>(rows, shape.kv_heads * gqa_ratio, 1));
    const DeviceInput q(chunks.queries);
    const DeviceInput k(chunks.keys);
    const DeviceInput v(chunks.values);
    const DeviceArray<std::int32_t> indptr(chunks.indptr);
    const DeviceRows<float> out(rows, shape.kv_heads * gqa_ratio, shape.value_dim);
    const DeviceArray<float> lse(static_cast<std::size_t>(rows * out.heads));
    const DeviceArray<std::byte> workspace(attention->workspace_bytes());
    const OptionArrays arrays(options.options, count);
    KVTILT_EXPECT_OK(attention->prepare(workspace.span(), nullptr));
    const Status status = attention->attend_prefill(
        view(layer), asked.batch, indptr.data(), q.view(), k.view(), v.view(), out.out(),
        lse.data(), arrays.options, workspace.span(), nullptr);
    if (!status.ok()) return "attend_prefill: " + std::string(status.message());
    const Output output = output_of(out, lse);
    if (!sees_nothing(output, chunks.indptr[asked.views.size()], options.options))
      return "attend_prefill: rows of nobody";
    const testing::AssertionResult close =
        is_close(asked.views, chunks, options.options, output, tolerance, least_norm);
    return close ? "" : std::string("attend_prefill: ") + close.message();
  }

  /// Unpacks some positions; rows of positions that are not held must stay unchanged.
  std::string unpack(HeldSequence& one, int layer, Random& random) {
    layer %= layers();
    if (!cached(layer)) return {};
    const LayerShape& shape = setup().shape.layers[at(layer)];
    const PageAccount& own = *one.layers[at(layer)];
    const int length = static_cast<int>(own.length());
    const int first = random.between(0, length);
    const int tokens = random.between(0, length - first + (random.chance(8) ? 2 : 0));
    Rows<float> keys(tokens, shape.kv_heads, shape.key_dim);
    Rows<float> values(tokens, shape.kv_heads, shape.value_dim);
    for (Rows<float>* rows : {&keys, &values})
      std::fill(rows->data.begin(), rows->data.end(), 77.0f);
    DeviceRows<float> k(keys);
    DeviceRows<float> v(values);
    const Status status = gpu().unpack(one.ids.gpu, layer, first, k.out(), v.out());
    if (!status.ok()) return "unpack: " + std::string(status.message());
    for (int i = 0; i < tokens; ++i) {
      if (!own.holds(first + i)) {
        expect_record(ErrorCode::InvalidArgument);
        continue;
      }
      const auto row = [i](Rows<float>& rows) {
        return MutableTensorView(&rows.at(i, 0, 0), 1, rows.heads, rows.dim);
      };
      const Status unpacked = cpu().unpack(one.ids.cpu, layer, first + i, row(keys), row(values));
      if (!unpacked.ok()) return "CPU: " + std::string(unpacked.message());
    }
    return k.get().data == keys.data && v.get().data == values.data ? "" : "unpacked other numbers";
  }

  /// Exports page tables for an engine; their pages must be those of the accounts.
  std::string tables(int layer, Random& random) {
    layer %= layers();
    if (!cached(layer)) return {};
    ChosenBatch chosen(choose(random));
    if (std::string wrong = make_batch(chosen); !wrong.empty()) return wrong;
    const cuda::LayerView of = view(layer);
    const std::size_t count = chosen.who.size();
    const int room = random.between(0, 40);
    std::vector<std::int32_t> starts = {0};
    std::vector<std::int32_t> pages;
    std::vector<std::int32_t> last;
    for (const HeldSequence* one : chosen.who) {
      const std::vector<PageAccount::Entry>& sealed = one->layers[at(layer)]->sealed();
      bool shown = true;
      for (std::size_t i = 0; i + 1 < sealed.size(); ++i)
        shown = shown && sealed[i].count == of.page_tokens;
      if (!shown) expect_record(ErrorCode::Unsupported);
      if (shown && pages.size() + sealed.size() > at(room)) {
        expect_record(ErrorCode::OutOfMemory);
        shown = false;
      }
      for (std::size_t i = 0; shown && i < sealed.size(); ++i) pages.push_back(*sealed[i].page);
      starts.push_back(static_cast<std::int32_t>(pages.size()));
      last.push_back(shown && !sealed.empty() ? static_cast<std::int32_t>(sealed.back().count) : 0);
    }
    const DeviceArray<std::int32_t> indptr(count + 1);
    const DeviceArray<std::int32_t> last_tokens(count);
    const DeviceArray<std::int32_t> indices(at(room) + 1);
    const Status status = cuda::export_tables(
        of, chosen.batch.device, {indptr.data(), last_tokens.data(), indices.data(), room});
    if (!status.ok()) return "export: " + std::string(status.message());
    std::vector<std::int32_t> exported = indices.get();
    exported.resize(pages.size());
    if (indptr.get() != starts || last_tokens.get() != last || exported != pages)
      return "exported other pages";
    if (pages.empty()) return {};

    cuda::EngineTables engine;
    engine.sequences = static_cast<int>(count);
    engine.indices = indices.data();
    engine.indptr = indptr.data();
    engine.last_page_tokens = last_tokens.data();
    const DeviceArray<std::byte> workspace(
        cuda::import_workspace_bytes(engine.sequences, static_cast<int>(pages.size())));
    const Result<cuda::ImportedLayer> imported = cuda::import_tables(
        of, engine, of.pool[static_cast<int>(PageKind::Sealed)], static_cast<std::int32_t>(1) << 20,
        static_cast<int>(pages.size()), workspace.span());
    if (!imported) return "import: " + std::string(imported.message());
    for (std::size_t i = 0; i < count; ++i) {
      const auto held = at(starts[i + 1] - starts[i]);
      const auto table = read_device(imported->view.table(static_cast<int>(i)), held);
      const cuda::SequenceState state = read_device(imported->view.states + i, 1)[0];
      const std::int64_t tokens =
          held == 0 ? 0 : (static_cast<std::int64_t>(held) - 1) * of.page_tokens + last[i];
      if (state.length != tokens || at(state.page_end) != held) return "imported other lengths";
      for (std::size_t page = 0; page < held; ++page)
        if (table[page].page != pages[at(starts[i]) + page]) return "imported other pages";
    }
    return {};
  }

 private:
  /// Twice the stated error of attention: rounding a query shifts all its logits alike, which shows
  /// beside a sink logit, and among many thousand rows there are outliers.
  static constexpr double tolerance = 4e-3;
  /// A sink logit may take nearly all the weight.
  static constexpr double least_norm = 1e-2;

  /// Views of some sequences, and a batch of them followed by empty slots.
  struct Asked {
    ChosenBatch chosen;
    DeviceArray<std::int32_t> slots;
    cuda::Batch batch{};
    std::vector<LayerView> views;
    std::string wrong;

    Asked(ProgramReads& run, int layer, Random& random)
        : chosen(run.choose(random)), slots(chosen.who.size() + at(random.below(2))) {
      for (const HeldSequence* one : chosen.who)
        views.push_back(run.cpu().view(one->ids.cpu, layer).value());
      const auto made = run.gpu().batch(chosen.ids(), slots.span());
      if (!made) wrong = "batch: " + std::string(made.message());
      batch = {slots.data(), static_cast<int>(slots.span().size())};
    }
  };

  struct OptionArrays {
    DeviceArray<float> slopes;
    DeviceArray<float> sinks;
    DeviceArray<std::uint64_t> trees;
    DeviceArray<std::int32_t> tree_tokens;
    cuda::DeviceAttendOptions options{};

    OptionArrays(const AttendOptions& from, int sequences)
        : slopes(std::vector<float>(from.alibi_slopes.begin(), from.alibi_slopes.end())),
          sinks(std::vector<float>(from.sink_logits.begin(), from.sink_logits.end())),
          trees(std::vector<std::uint64_t>(from.tree_mask.begin(), from.tree_mask.end())),
          tree_tokens(tree_tokens_of(from, sequences)) {
      const auto given = [](const auto& array) {
        return array.span().empty() ? nullptr : array.data();
      };
      options = {from.scale,        from.soft_cap, from.window,        given(slopes),
                 given(sinks),      given(trees),  given(tree_tokens), from.first_position,
                 from.end_position, from.causal};
    }
  };

  /// Whether the rows from `first` on belong to no sequence: they see only sink logits.
  static bool sees_nothing(const Output& output, std::int64_t first, const AttendOptions& options) {
    for (std::int64_t row = first; row < output.out.tokens; ++row)
      for (int head = 0; head < output.out.heads; ++head) {
        const float lse = output.lse[static_cast<std::size_t>(row * output.out.heads + head)];
        if (options.sink_logits.empty() ? !is_minus_infinity(lse)
                                        : std::abs(lse - options.sink_logits[at(head)]) > 1e-5f)
          return false;
        for (int channel = 0; channel < output.out.dim; ++channel)
          if (output.out.at(row, head, channel) != 0.0f) return false;
      }
    return true;
  }

  static Output output_of(const DeviceRows<float>& out, const DeviceArray<float>& lse) {
    Output output(out.tokens, out.heads, out.dim);
    output.out = out.get();
    output.lse = lse.get();
    return output;
  }

  static std::string unsupported(const Status& status) {
    return status.code() == ErrorCode::Unsupported ? "" : std::string(status.message());
  }
};

}  // namespace kvtilt::test
