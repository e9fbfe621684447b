// SPDX-License-Identifier: MIT
// A decode loop that keeps its KV cache in 4-bit keys and 2-bit values. The numbers are random: an
// engine puts its own projections where `project` stands.

#include <kvtilt/kvtilt.hpp>

#include <cstddef>
#include <iostream>
#include <random>
#include <vector>

namespace {

constexpr int layers = 2;
constexpr int query_heads = 8;
constexpr int kv_heads = 2;
constexpr int head_dim = 64;
constexpr int tokens = 1000;

std::vector<float> project(int heads) {
  static std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<float> row(static_cast<std::size_t>(heads) * head_dim);
  for (float& x : row) x = normal(random);
  return row;
}

}  // namespace

int main() {
  using namespace kvtilt;

  // README: begin
  const CacheShape shape = CacheShape::uniform(layers, kv_heads, head_dim);
  KVCache cache = KVCache::create(shape, Plan::uniform(shape, presets::k4v2)).value();
  const SequenceId chat = cache.open().value();
  if (Status full = cache.reserve(chat, tokens); !full.ok()) return 1;  // the call that can run out

  std::vector<float> out(query_heads * head_dim);
  std::vector<std::byte> workspace;
  for (int token = 0; token < tokens; ++token)
    for (int layer = 0; layer < layers; ++layer) {
      const auto q = project(query_heads), k = project(kv_heads), v = project(kv_heads);
      Status status = cache.append(chat, layer, TensorView(k.data(), 1, kv_heads, head_dim),
                                   TensorView(v.data(), 1, kv_heads, head_dim));
      const LayerView view = cache.view(chat, layer).value();
      workspace.resize(attend_workspace_bytes(view));
      if (status.ok())
        status = attend(view, TensorView(q.data(), 1, query_heads, head_dim),
                        OutputView(out.data(), 1, query_heads, head_dim), {}, workspace);
      if (!status.ok()) return std::cerr << status.message() << '\n', 1;
    }

  const MemoryReport memory = cache.memory(chat).value();
  std::cout << tokens << " tokens in " << memory.bytes_in_use() << " bytes, "
            << memory.effective_bits() << " bits per element (16-bit tail and sinks included), "
            << cache.page_bits() << " in sealed pages; kernels: " << to_string(cache.isa()) << '\n';

  // Put aside, in a file say, and continued where it stopped, by this cache or another like it.
  std::vector<std::byte> image(cache.saved_bytes(chat).value());
  if (Status saved = cache.save(chat, image); !saved.ok()) return 1;
  const SequenceId again = cache.load(image, 2 * tokens).value();
  std::cout << image.size() << " bytes saved, " << cache.length(again).value()
            << " tokens loaded\n";
  // README: end
}
