// SPDX-License-Identifier: MIT
// Unpacking against the model of a layer: cases that random programs do not reach, and errors.
#include <kvtilt/cache/kv_cache.hpp>
#include <kvtilt/cache/layer_pages.hpp>
#include <kvtilt/cache/unpack.hpp>

#include "support/caches.hpp"
#include "support/unpack_check.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <thread>
#include <vector>

namespace kvtilt {
namespace {

using test::Random;
using test::random_rows;
using test::Rows;
using testing::HasSubstr;

/// A layer of two heads with one recipe each: sinks at 0 to 3, pages of 32 from 4 on, the newest 16
/// tokens in 16 bits.
class UnpackCache : public testing::Test {
 protected:
  explicit UnpackCache(int window = 0)
      : shape_{2, 72, 24, window}, cache_(test::make_cache(whole(), plan(), options())) {
    id_ = test::open_reserved(cache_, 400);
    const Plan resolved = resolve_plan(plan(), whole(), 32).value();
    model_.emplace(shape_, resolved.recipes[0], 32, 4, 16);
  }

  void append(std::int64_t tokens) { append(id_, *model_, tokens); }
  void append(SequenceId id, test::LayerModel& model, std::int64_t tokens) {
    const Rows<float> keys = random_rows(random_, tokens, 2, 72);
    const Rows<float> values = random_rows(random_, tokens, 2, 24);
    KVTILT_EXPECT_OK(cache_.append(id, 0, keys.view(), values.view()));
    model.append(keys, values);
  }

  /// Compares every range that starts and ends near a page boundary; beyond the end it must fail.
  void expect_model(SequenceId id, const test::LayerModel& model) {
    std::vector<std::int64_t> cuts = {0, 2, model.length(), model.length() + 1};
    for (const PageEntry& page : model.page_table())
      for (const std::int64_t off : {-1, 0, 1}) cuts.push_back(page.first_position + off);
    for (const std::int64_t first : cuts)
      for (const std::int64_t last : cuts)
        for (const ElementType type : {ElementType::F32, ElementType::F16})
          if (first >= 0 && last >= first) {
            ASSERT_EQ(test::unpack_differs(cache_, id, 0, model, first, last - first, type), "")
                << first << " to " << last;
          }
  }
  void expect_model() { expect_model(id_, *model_); }

  LayerShape shape_;
  KVCache cache_;
  SequenceId id_;
  std::optional<test::LayerModel> model_;
  Random random_{1};

 private:
  [[nodiscard]] CacheShape whole() const { return {{shape_}}; }
  static Plan plan() { return {{{parse_recipe("k3v2").value(), parse_recipe("k16v8").value()}}}; }
  static CacheOptions options() {
    CacheOptions options;
    options.page_tokens = 32;
    options.recent_tokens = 16;
    return options;
  }
};

class UnpackWindowedCache : public UnpackCache {
 protected:
  UnpackWindowedCache() : UnpackCache(50) {}
};

TEST_F(UnpackCache, GivesWhatIsStoredWhereverItLies) {
  expect_model();
  for (const std::int64_t tokens : {3, 1, 31, 90, 1, 17}) {
    append(tokens);
    expect_model();
  }
}

TEST_F(UnpackCache, KnowsWhatTruncationAndRemovalLeave) {
  append(200);
  KVTILT_EXPECT_OK(cache_.remove(id_, 36, 68));
  ASSERT_TRUE(model_->remove(36, 68));
  expect_model();
  KVTILT_EXPECT_OK(cache_.truncate(id_, 110));  // inside a sealed page
  model_->truncate(110);
  expect_model();
  append(60);
  expect_model();
}

TEST_F(UnpackCache, ForksHoldTheirOwn) {
  append(150);
  const SequenceId child = cache_.fork(id_, 300).value();
  test::LayerModel fork = *model_;
  append(child, fork, 40);
  append(21);
  expect_model(child, fork);
  expect_model();
}

TEST_F(UnpackWindowedCache, RefusesWhatTheWindowFreed) {
  append(250);
  ASSERT_GT(model_->freed_until(), 0);
  expect_model();
}

TEST_F(UnpackCache, GivesKeysOrValuesAlone) {
  append(100);
  Rows<float> keys(90, 2, 72);
  Rows<float> both_keys(90, 2, 72);
  Rows<float> values(90, 2, 24);
  Rows<float> both_values(90, 2, 24);
  KVTILT_EXPECT_OK(cache_.unpack(id_, 0, 7, both_keys.out(), both_values.out()));
  KVTILT_EXPECT_OK(cache_.unpack(id_, 0, 7, keys.out(), {}));
  KVTILT_EXPECT_OK(cache_.unpack(id_, 0, 7, {}, values.out()));
  KVTILT_EXPECT_OK(cache_.unpack(id_, 0, 7, {}, {}));
  EXPECT_EQ(keys.data, both_keys.data);
  EXPECT_EQ(values.data, both_values.data);
}

/// Unpacked f16 goes into a 16-bit cache unchanged, here through a heads-first layout.
TEST_F(UnpackCache, FeedsAnotherCache) {
  append(100);
  Rows<F16> keys(100, 2, 72);
  Rows<F16> values(100, 2, 24);
  const MutableTensorView heads_first = keys.out().with_strides(72, 100 * 72);
  KVTILT_EXPECT_OK(cache_.unpack(id_, 0, 0, heads_first, values.out()));
  KVCache other = test::make_cache(shape_, Recipe{});
  const SequenceId copy = test::open_reserved(other, 100);
  KVTILT_EXPECT_OK(other.append(copy, 0, heads_first, values.out()));
  Rows<float> from(100, 2, 72);
  Rows<float> to(100, 2, 72);
  KVTILT_EXPECT_OK(cache_.unpack(id_, 0, 0, from.out(), {}));
  KVTILT_EXPECT_OK(other.unpack(copy, 0, 0, to.out(), {}));
  EXPECT_EQ(test::rounded_to_half(from).data, to.data);
}

TEST_F(UnpackCache, ServesManyReaders) {
  append(150);
  Rows<float> alone(150, 2, 72);
  KVTILT_EXPECT_OK(cache_.unpack(id_, 0, 0, alone.out(), {}));
  std::vector<Rows<float>> rows(3, Rows<float>(150, 2, 72));
  std::vector<std::thread> threads;
  for (Rows<float>& own : rows)
    threads.emplace_back([&] { (void)cache_.unpack(id_, 0, 0, own.out(), {}).ok(); });
  for (std::thread& thread : threads) thread.join();
  for (const Rows<float>& own : rows) EXPECT_EQ(own.data, alone.data);
}

class UnpackHostile : public UnpackCache {
 protected:
  UnpackHostile() {
    append(200);
    KVTILT_EXPECT_OK(cache_.remove(id_, 36, 68));
  }

  /// Expects InvalidArgument with all words, and rows that were not written.
  void refuses(const std::vector<std::string>& words, std::int64_t first,
               const MutableTensorView& keys, const MutableTensorView& values, int layer = 0) {
    const Status status = cache_.unpack(id_, layer, first, keys, values);
    EXPECT_EQ(status.code(), ErrorCode::InvalidArgument) << status.message();
    for (const std::string& word : words)
      EXPECT_THAT(std::string(status.message()), HasSubstr(word));
    EXPECT_EQ(keys_.data, std::vector<float>(keys_.data.size()));
    EXPECT_EQ(values_.data, std::vector<float>(values_.data.size()));
  }

  [[nodiscard]] MutableTensorView keys(std::int64_t tokens) {
    MutableTensorView rows = keys_.out();
    rows.tokens = tokens;
    return rows;
  }
  [[nodiscard]] MutableTensorView values(std::int64_t tokens) {
    MutableTensorView rows = values_.out();
    rows.tokens = tokens;
    return rows;
  }

  Rows<float> keys_{200, 2, 72};
  Rows<float> values_{200, 2, 24};
};

TEST_F(UnpackHostile, RefusesPositionsThatAreNotThere) {
  constexpr std::int64_t huge = std::numeric_limits<std::int64_t>::max();
  refuses({"layer 0", "5 tokens from position 196", "there are 200"}, 196, keys(5), values(5));
  refuses({"from position -1"}, -1, keys(2), values(2));
  refuses({"from position 201"}, 201, keys(0), values(0));
  refuses({"there are 200"}, huge, keys(1), {});
  refuses({"there are 200"}, 1, {}, values(huge));
  refuses({"layer 0", "positions 30 to 39", "no page holds position 36"}, 30, keys(10), {});
  refuses({"no page holds position 67"}, 67, keys(4), values(4));
  refuses({"no page holds position 36"}, 0, keys(200), values(200));
}

TEST_F(UnpackHostile, RefusesWrongShapes) {
  MutableTensorView wide = keys(5);
  wide.dim = 80;
  refuses({"layer 0", "keys go to [5, 2, 80]", "values to [5, 2, 24]", "[n, 2, 72]"}, 0, wide,
          values(5));
  refuses({"[5, 2, 72]", "[6, 2, 24]"}, 0, keys(5), values(6));
  refuses({"[-1, 2, 72]"}, 0, keys(-1), values(-1));
  MutableTensorView one_head = values(5);
  one_head.heads = 1;
  refuses({"[5, 1, 24]"}, 0, keys(5), one_head);
  MutableTensorView nowhere = keys(5);
  nowhere.data = nullptr;
  refuses({"keys go to [5, 2, 72] at "}, 0, nowhere, values(5));
  refuses({"layer 1 does not exist"}, 0, keys(5), values(5), 1);
  KVTILT_EXPECT_OK(cache_.close(id_));
  refuses({"is not open"}, 0, keys(5), values(5));
}

TEST_F(UnpackWindowedCache, SaysWhatTheWindowFreed) {
  append(250);
  Rows<float> keys(100, 2, 72);
  const Status status = cache_.unpack(id_, 0, 3, keys.out(), {});
  EXPECT_EQ(status.code(), ErrorCode::InvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("the window has freed position 4"));
}

TEST_F(UnpackWindowedCache, APageRemovedBehindTheFreedOnesIsNotOneOfThem) {
  append(250);
  const std::int64_t kept = cache_.view(id_, 0)->first_kept;
  ASSERT_GT(kept, 0);
  KVTILT_EXPECT_OK(cache_.remove(id_, kept, kept + 32));
  Rows<float> keys(1, 2, 72);
  EXPECT_THAT(std::string(cache_.unpack(id_, 0, kept, keys.out(), {}).message()),
              HasSubstr("no page holds position " + std::to_string(kept)));
}

TEST(Unpack, TakesAnyViewAndRefusesAnEmptyOne) {
  const LayerPages pages = LayerPages::create({1, 16, 16}, {presets::k8v8}, 32).value();
  alignas(page_alignment) static std::byte block[1 << 12];
  ASSERT_LE(pages.bytes(PageKind::Tail), sizeof block);
  Random random(3);
  const Rows<float> rows = random_rows(random, 20, 1, 16);
  KVTILT_EXPECT_OK(pages.write(rows.view(), rows.view(), 0, block));
  const PageEntry table[] = {{block, 40, 20, PageKind::Tail}};
  const LayerView view = pages.view(table, 60).value();
  Rows<float> got(13, 1, 16);
  KVTILT_EXPECT_OK(unpack(view, 45, got.out(), {}));
  for (int t = 0; t < 13; ++t)
    for (int c = 0; c < 16; ++c) EXPECT_EQ(got.at(t, 0, c), to_float(to_f16(rows.at(t + 5, 0, c))));
  EXPECT_THAT(std::string(unpack(view, 39, got.out(), {}).message()),
              HasSubstr("no page holds position 39"));
  EXPECT_THAT(std::string(unpack(LayerView{}, 0, {}, {}).message()), HasSubstr("no cache"));
}

}  // namespace
}  // namespace kvtilt
