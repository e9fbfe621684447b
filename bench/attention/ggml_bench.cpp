// SPDX-License-Identifier: MIT
// Benchmarks ggml's attention (ggml_flash_attn_ext) on the keys, values and queries of
// attend_bench.cpp: ggml/<type>/tokens:<n>/threads:<t>, with keys and values of that type laid out as
// llama.cpp does, [token][kv head][channel]; ggml_by_head/... has them [kv head][token][channel],
// which ggml reads faster. ggml_prefill/<type>/queries:<m>/tokens:<n> and ggml_prefill_by_head/... are
// the like of prefill_bench.cpp: the last m tokens attend causally. ggml_node/<recipe>/... is kvtilt as
// a node of a ggml graph, which appends the newest token and attends; with the default tail. Built
// where ggml's source is given: KVTILT_GGML.
#include "support/caches.hpp"
#include "support/ggml_graph.hpp"
#include "support/token_counter.hpp"

#include <benchmark/benchmark.h>
#if KVTILT_GGML_HAS_BACKENDS
#include "support/ggml_node.hpp"
#endif

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

namespace kvtilt::bench {
namespace {

struct Case {
  ggml_type type;
  std::int64_t queries;
  std::int64_t tokens;
  int threads;
  bool by_head;

  [[nodiscard]] std::string name() const {
    const std::string verb = queries > 1 ? "ggml_prefill" : "ggml";
    const std::string shape =
        queries > 1 ? "/queries:" + std::to_string(queries) + "/tokens:" + std::to_string(tokens)
                    : "/tokens:" + std::to_string(tokens) + "/threads:" + std::to_string(threads);
    return verb + (by_head ? "_by_head/" : "/") + ggml_type_name(type) + shape;
  }
};

/// Keys or values of `type`, one row for each token and kv head.
class Rows {
 public:
  Rows(ggml_type type, std::int64_t tokens, bool by_head, const std::vector<float>& text)
      : type_(type), tokens_(tokens), by_head_(by_head) {
    bytes_.resize(static_cast<std::size_t>(tokens) * kv_heads * row_bytes());
    const std::int64_t period = static_cast<std::int64_t>(text.size()) / (kv_heads * head_dim);
    for (std::int64_t token = 0; token < tokens; ++token)
      for (std::int64_t head = 0; head < kv_heads; ++head)
        quantize_row(type, &text[index(token % period, head) * head_dim], head_dim,
                     at(token, head));
  }

  /// The tensor [kv_heads][tokens][head_dim], whatever the layout.
  [[nodiscard]] ggml_tensor* tensor(ggml_context* context) const {
    ggml_tensor* const all = ggml_new_tensor_3d(
        context, type_, head_dim, by_head_ ? tokens_ : kv_heads, by_head_ ? kv_heads : tokens_);
    all->data = const_cast<std::byte*>(bytes_.data());
    return by_head_ ? all : ggml_permute(context, all, 0, 2, 1, 3);
  }
  [[nodiscard]] double bits() const { return 8.0 * static_cast<double>(row_bytes()) / head_dim; }

 private:
  [[nodiscard]] std::size_t row_bytes() const { return ggml_row_size(type_, head_dim); }
  [[nodiscard]] static std::size_t index(std::int64_t token, std::int64_t head) {
    return static_cast<std::size_t>(token * kv_heads + head);
  }
  std::byte* at(std::int64_t token, std::int64_t head) {
    const std::size_t row =
        by_head_ ? static_cast<std::size_t>(head * tokens_ + token) : index(token, head);
    return bytes_.data() + row * row_bytes();
  }

  ggml_type type_;
  std::int64_t tokens_;
  bool by_head_;
  std::vector<std::byte> bytes_;
};

struct Stored {
  Rows keys;
  Rows values;
};

/// Returns the same rows in every call, because benches run in random order.
const Stored& stored(const Case& c) {
  static std::map<std::tuple<ggml_type, std::int64_t, bool>, std::unique_ptr<Stored>> known;
  std::unique_ptr<Stored>& rows = known[{c.type, c.tokens, c.by_head}];
  if (rows == nullptr)
    rows = std::make_unique<Stored>(Stored{{c.type, c.tokens, c.by_head, base_text().key_rows},
                                           {c.type, c.tokens, c.by_head, base_text().value_rows}});
  return *rows;
}

/// The causal mask, as llama.cpp makes it: one row per query, padded to 64 rows. The kernels of forks
/// require one where nothing is hidden, too.
std::vector<F16> make_mask(const Case& c) {
  const std::int64_t rows = (c.queries + 63) / 64 * 64;
  std::vector<F16> mask(static_cast<std::size_t>(rows * c.tokens));
  for (std::int64_t query = 0; query < c.queries; ++query) {
    const auto row = mask.begin() + query * c.tokens;
    std::fill(row + c.tokens - c.queries + query + 1, row + c.tokens, F16{0xfc00});
  }
  return mask;
}

/// Builds the graph of one attention and computes it; some microseconds more than the attention.
void attend_once(const Case& c, const Stored& rows, std::vector<float>& queries,
                 std::vector<F16>& mask, std::vector<float>& out, std::vector<std::byte>& memory) {
  const Context context = make_context(memory);
  compute_attention(context.get(),
                    float_tensor(context.get(), queries.data(), head_dim, query_heads, c.queries),
                    rows.keys.tensor(context.get()), rows.values.tensor(context.get()), mask.data(),
                    1.0f / std::sqrt(static_cast<float>(head_dim)), out.data(), c.threads);
}

void run(benchmark::State& state, const Case& c) {
  const Stored& rows = stored(c);
  std::vector<float> queries = make_queries(c.queries);
  std::vector<F16> mask = make_mask(c);
  std::vector<float> out(queries.size());
  std::vector<std::byte> memory = graph_memory();
  for (auto _ : state) attend_once(c, rows, queries, mask, out, memory);
  state.counters["bits"] = (rows.keys.bits() + rows.values.bits()) / 2;
  if (c.queries > 1) return;
  count_tokens(state, c.tokens);
  state.counters["error"] = relative_error(out, reference_output(c.tokens));
}

void add(const Case& c) {
  benchmark::RegisterBenchmark(c.name().c_str(), [c](benchmark::State& state) { run(state, c); })
      ->UseRealTime()
      ->Unit(benchmark::kMicrosecond);
}

#if KVTILT_GGML_HAS_BACKENDS
void run_node(benchmark::State& state, const std::string& recipe, std::int64_t tokens,
              int threads) {
  FilledCache& filled = filled_cache(recipe, tokens - 1, Tail::Default);
  const Text& text = base_text();
  const std::int64_t newest = (tokens - 1) % text.tokens * kv_heads * head_dim;
  const std::vector<float> queries = make_queries(1);
  std::vector<float> out(queries.size());
  run_ggml_node(state, filled.cache, filled.sequence, tokens, threads, {}, out.data(),
                [&](GgmlAttention& attention, ggml_context* context) {
                  const auto rows = [&](const float* data, int heads) {
                    return float_tensor(context, data, head_dim, heads, 1);
                  };
                  return attention.node(context, rows(queries.data(), query_heads),
                                        rows(text.key_rows.data() + newest, kv_heads),
                                        rows(text.value_rows.data() + newest, kv_heads));
                });
  state.counters["bits"] = filled.bits();
  count_tokens(state, tokens);
  state.counters["error"] = relative_error(out, reference_output(tokens));
}
#endif

const bool registered = [] {
#if KVTILT_GGML_HAS_BACKENDS
  for (const char* recipe : {"k16v16", "k8v8", "k4v4", "k4v2"})
    for (const std::int64_t tokens : {4096, 32768})
      for (const int threads : {1, 2})
        benchmark::RegisterBenchmark(
            ("ggml_node/" + std::string(recipe) + "/tokens:" + std::to_string(tokens) +
             "/threads:" + std::to_string(threads))
                .c_str(),
            [=](benchmark::State& state) { run_node(state, recipe, tokens, threads); })
            ->UseRealTime()
            ->Unit(benchmark::kMicrosecond);
#endif
  for (const ggml_type type : {GGML_TYPE_F16, GGML_TYPE_Q8_0, GGML_TYPE_Q4_0})
    for (const bool by_head : {false, true}) {
      for (const std::int64_t tokens : {4096, 32768})
        for (const int threads : {1, 2}) add({type, 1, tokens, threads, by_head});
      add({type, 512, 4096, 1, by_head});
    }
  return true;
}();

}  // namespace
}  // namespace kvtilt::bench
