// SPDX-License-Identifier: MIT
/// Runs any bytes as a program of cache calls: nothing crashes, failed calls change no length,
/// lengths and bytes add up, and finite input gives finite output.
#include <kvtilt/kvtilt.hpp>

#include "support/counting_allocator.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <span>
#include <utility>
#include <vector>

namespace {

using namespace kvtilt;

void require(bool holds) {
  if (!holds) std::abort();
}

class Bytes {
 public:
  explicit Bytes(std::span<const std::uint8_t> bytes) : bytes_(bytes) {}

  [[nodiscard]] bool empty() const { return bytes_.empty(); }
  /// A number from 0 to count - 1; 0 when no bytes are left.
  int below(int count) {
    if (bytes_.empty()) return 0;
    const int byte = bytes_.front();
    bytes_ = bytes_.subspan(1);
    return byte % count;
  }
  std::uint16_t half() {
    const int high = below(256);
    return static_cast<std::uint16_t>(high << 8 | below(256));
  }

 private:
  std::span<const std::uint8_t> bytes_;
};

Format take_format(Bytes& bytes) {
  constexpr int widths[] = {1, 2, 3, 4, 5, 6, 7, 8, 16, 0, 9};
  constexpr int groups[] = {0, 0, 0, 16, 32, 64, 128, 48, 7, -16};
  Format format;
  format.bits = widths[bytes.below(11)];
  format.granularity = bytes.below(2) == 0 ? Granularity::PerChannel : Granularity::PerToken;
  format.group = format.quantized() ? groups[bytes.below(10)] : 0;
  const int rule = bytes.below(8);
  format.rule = rule < 3 ? static_cast<RangeRule>(rule) : default_rule(format.bits);
  return format;
}

LayerShape take_shape(Bytes& bytes) {
  constexpr int dims[] = {8, 16, 24, 40, 64, 72, 0, 12, -8};
  constexpr int windows[] = {0, 0, 1, 40, -1};
  const int heads = bytes.below(4);
  return {heads == 3 ? -1 : heads, dims[bytes.below(9)], dims[bytes.below(9)],
          windows[bytes.below(5)]};
}

CacheOptions take_options(Bytes& bytes, const Allocator& allocator) {
  constexpr int pages[] = {32, 32, 64, 128, 48};
  CacheOptions options;
  options.page_tokens = pages[bytes.below(5)];
  options.sink_tokens = bytes.below(20) - 1;
  options.recent_tokens = bytes.below(100) - 1;
  options.max_sequences = bytes.below(4);
  options.max_bytes = static_cast<std::size_t>(bytes.below(8)) * 20000;
  options.isa = all_isas[bytes.below(2)];
  options.allocator = allocator;
  return options;
}

/// Rows of one of the three types, from a few repeated numbers; unless `tame`, some are huge or
/// NaN.
class Rows {
 public:
  Rows(Bytes& bytes, std::int64_t tokens, int heads, int dim, bool tame)
      : type_(bytes.below(3)), tokens_(tokens), heads_(heads), dim_(dim) {
    const std::size_t size = static_cast<std::size_t>(tokens * heads * std::max(dim, 0));
    const int kinds = 1 + bytes.below(7);
    std::vector<F16> pattern;
    for (int i = 0; i < kinds; ++i) {
      const std::uint16_t bits = bytes.half();
      // Exponents up to 20 are magnitudes below 64; infinity and NaN have 31.
      const bool wild = !tame && bytes.below(16) == 1;
      pattern.push_back(
          {wild || (bits & 0x7c00) <= 20 << 10 ? bits : static_cast<std::uint16_t>(bits & 0xbfff)});
    }
    for (std::size_t i = 0; i < size; ++i) {
      const F16 value = pattern[i * 5 / 3 % pattern.size()];
      halves_.push_back(type_ == 2 ? F16{to_bf16(to_float(value)).bits} : value);
      floats_.push_back(to_float(value));
    }
  }
  [[nodiscard]] TensorView view() const {
    if (type_ == 0) return {floats_.data(), tokens_, heads_, dim_};
    if (type_ == 1) return {halves_.data(), tokens_, heads_, dim_};
    return {reinterpret_cast<const BF16*>(halves_.data()), tokens_, heads_, dim_};
  }

 private:
  int type_;
  std::int64_t tokens_;
  int heads_;
  int dim_;
  std::vector<float> floats_;
  std::vector<F16> halves_;  ///< as fp16, or the bits of bf16
};

bool all_finite(const std::vector<float>& values) {
  return std::all_of(values.begin(), values.end(), [](float x) {
    return (bit_cast<std::uint32_t>(x) & 0x7f800000u) != 0x7f800000u;
  });
}

class Program {
 public:
  Program(Bytes& bytes, KVCache cache, CacheShape shape, test::CountingAllocator& memory)
      : bytes_(bytes), cache_(std::move(cache)), shape_(std::move(shape)), memory_(memory) {}

  void run() {
    for (int step = 0; step < 60 && !bytes_.empty(); ++step) {
      id_ = ids_.empty() ? SequenceId{}
                         : ids_[static_cast<std::size_t>(bytes_.below(4)) % ids_.size()];
      layer_ = bytes_.below(static_cast<int>(shape_.layers.size()) + 1);
      step_once();
      check_sums();
    }
  }

 private:
  [[nodiscard]] std::vector<std::int64_t> lengths() const {
    std::vector<std::int64_t> lengths;
    for (const SequenceId id : ids_)
      for (int layer = 0; layer < cache_.layers(); ++layer)
        lengths.push_back(cache_.length(id, layer) ? *cache_.length(id, layer) : -1);
    return lengths;
  }

  void step_once() {
    const std::vector<std::int64_t> before = lengths();
    switch (bytes_.below(13)) {
      case 0:
        if (const Result<SequenceId> opened = cache_.open()) ids_.push_back(*opened);
        return;
      case 1:
        memory_.refuse_after = bytes_.below(8) - 4;
        memory_.refuse_once = true;
        (void)cache_.reserve(id_, bytes_.below(250) - 3);
        memory_.refuse_after = -1;
        require(lengths() == before);
        return;
      case 2: {
        const std::int64_t length = bytes_.below(200) - 2;
        require(cache_.truncate(id_, length).ok() || lengths() == before);
        for (const std::int64_t now : lengths()) require(length < 0 || now <= 250);
        return;
      }
      case 3:
        if (cache_.close(id_).ok()) std::erase(ids_, id_);  // ids_ holds open sequences only
        return;
      case 4:
      case 5:
        return attend_once();
      case 10:
        if (const Result<SequenceId> forked = cache_.fork(id_, bytes_.below(250)))
          ids_.push_back(*forked);
        return;
      case 11: {
        const std::int64_t first = bytes_.below(128);
        (void)cache_.remove(id_, first, first + 32 * bytes_.below(4));
        require(lengths() == before);
        return;
      }
      case 12:
        load_forged();
        return;
      default:
        return append_once(before);
    }
  }

  /// Loads a saved sequence with modified bytes and a valid checksum: it is refused, or it behaves
  /// like any other and is saved with the same tables.
  void load_forged() {
    const Result<std::size_t> size = cache_.saved_bytes(id_);
    if (!size) return;
    std::vector<std::byte> image(*size);
    require(cache_.save(id_, image).ok());
    SavedLayer first;
    std::memcpy(&first, image.data() + sizeof(SavedHeader), sizeof first);
    const std::size_t tables = first.offset +
                               static_cast<std::size_t>(first.kv_heads) * sizeof(SavedRecipe) +
                               static_cast<std::size_t>(first.pages) * sizeof(SavedPage);
    for (int forgeries = bytes_.below(4); forgeries > 0; --forgeries) {
      const std::size_t range = bytes_.below(3) == 0 ? image.size() : tables;
      const int at = bytes_.below(256) * 256 + bytes_.below(256);
      image[static_cast<std::size_t>(at) % range] = static_cast<std::byte>(bytes_.below(256));
    }
    const std::uint64_t checksum = saved_checksum(image);
    std::memcpy(image.data() + offsetof(SavedHeader, checksum), &checksum, sizeof checksum);
    const Result<SequenceId> loaded = cache_.load(image, bytes_.below(250));
    if (!loaded) return;
    ids_.push_back(*loaded);
    std::vector<std::byte> again(image.size());
    require(cache_.save(*loaded, again).ok());
    require(std::equal(image.begin() + sizeof(SavedHeader),
                       image.begin() + static_cast<std::ptrdiff_t>(tables),
                       again.begin() + sizeof(SavedHeader)));
  }

  [[nodiscard]] LayerShape own_shape() const {
    const std::size_t layer = static_cast<std::size_t>(layer_);
    return layer < shape_.layers.size() ? shape_.layers[layer] : LayerShape{1, 8, 8, 0};
  }

  void append_once(const std::vector<std::int64_t>& before) {
    const LayerShape own = own_shape();
    const std::int64_t tokens = bytes_.below(40);
    const int heads = own.kv_heads + (bytes_.below(32) == 1 ? 1 : 0);
    const Rows keys(bytes_, tokens, heads, own.key_dim, false);
    const Rows values(bytes_, tokens, heads, own.value_dim, false);
    const Result<std::int64_t> length = cache_.length(id_, layer_);
    const bool alone = own.values_in_keys != (bytes_.below(32) == 1);
    const Status status =
        cache_.append(id_, layer_, keys.view(), alone ? TensorView{} : values.view());
    require(status.ok() ? *cache_.length(id_, layer_) == *length + tokens : lengths() == before);
    require(status.ok() == status.message().empty());
  }

  void attend_once() {
    const Result<LayerView> view = cache_.view(id_, layer_);
    if (!view) return;
    const LayerShape own = own_shape();
    const int count = bytes_.below(6);
    const int heads = own.kv_heads * (1 + bytes_.below(5));
    const Rows queries(bytes_, count, heads, own.key_dim, true);
    std::vector<float> out(static_cast<std::size_t>(count * heads * own.value_dim), 1.0f);
    std::vector<float> lse(static_cast<std::size_t>(count * heads), 1.0f);
    const OutputView output(out.data(), count, heads, own.value_dim, lse.data());
    const bool prefill = bytes_.below(2) == 1;
    std::vector<std::byte> workspace(prefill ? attend_prefill_workspace_bytes(*view, count)
                                             : attend_workspace_bytes(*view));
    if (prefill) {
      const Rows keys(bytes_, count, own.kv_heads, own.key_dim, true);
      const Rows values(bytes_, count, own.kv_heads, own.value_dim, true);
      const TensorView given = own.values_in_keys ? TensorView{} : values.view();
      require(
          attend_prefill(*view, queries.view(), keys.view(), given, output, {}, workspace).ok());
    } else {
      const Status status = attend(*view, queries.view(), output, {}, workspace);
      const bool held =
          count <= view->length &&
          (own.window == 0 || count == 0 ||
           std::max<std::int64_t>(view->length - count - own.window + 1, 0) >= view->first_kept);
      require(status.ok() == held);
    }
    for (float& x : lse)  // -infinity: all pages that the query sees were removed
      if (bit_cast<std::uint32_t>(x) == 0xff800000u) x = 0.0f;
    require(all_finite(out) && all_finite(lse));
  }

  void check_sums() const {
    std::int64_t elements = 0;
    for (const SequenceId id : ids_)
      for (int layer = 0; layer < cache_.layers(); ++layer)
        if (const Result<LayerView> view = cache_.view(id, layer)) {
          std::int64_t position = 0;  // in order; windows and remove() leave gaps
          for (std::int32_t page = 0; page < view->page_count; ++page) {
            require(view->pages[page].first_position >= position && view->pages[page].tokens > 0);
            position = view->pages[page].first_position + view->pages[page].tokens;
            elements += view->pages[page].tokens *
                        static_cast<std::int64_t>(view->shape.elements_per_token());
          }
          require(position <= view->length);
        }
    const MemoryReport report = cache_.memory();
    require(report.elements == elements);
    require(report.reserved_bytes == memory_.bytes && !memory_.mismatched);
  }

  Bytes& bytes_;
  KVCache cache_;
  CacheShape shape_;
  test::CountingAllocator& memory_;
  std::vector<SequenceId> ids_;
  SequenceId id_;
  int layer_ = 0;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  Bytes bytes({data, size});
  test::CountingAllocator memory;
  CacheShape shape;
  Plan plan;
  const int layers = 1 + bytes.below(2);
  for (int layer = 0; layer < layers; ++layer) {
    shape.layers.push_back(take_shape(bytes));
    plan.recipes.emplace_back();
    const int recipes = bytes.below(4) == 3 ? 2 : 1;
    for (int recipe = 0; recipe < recipes; ++recipe) {
      const Format key = take_format(bytes);
      const Format value = take_format(bytes);
      LayerShape& own = shape.layers.back();
      own.values_in_keys = own.values_in_keys || value.bits == 0;
      plan.recipes.back().push_back({key, value.bits == 0 ? in_keys : value});
    }
  }
  const CacheOptions options = take_options(bytes, memory.get());
  Result<KVCache> cache = KVCache::create(shape, plan, options);
  if (!cache) {
    require(!cache.message().empty());
    return 0;
  }
  Program(bytes, *std::move(cache), shape, memory).run();
  require(memory.bytes == 0 && memory.blocks == 0);
  return 0;
}
