// SPDX-License-Identifier: MIT
/// Sequences that are saved and loaded: nothing is lost, and no other bytes are saved.
#include <kvtilt/cache/kv_cache.hpp>

#include "support/cache_bytes.hpp"
#include "support/caches.hpp"
#include "support/counting_allocator.hpp"
#include "support/saved_images.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

namespace kvtilt {
namespace {

using test::Random;
using test::random_rows;
using test::Rows;
using testing::HasSubstr;

/// Three layers: one keeps no cache, one has a window.
class KVCacheSaved : public testing::Test {
 protected:
  static CacheShape shape() {
    CacheShape shape = CacheShape::uniform(3, 2, 32);
    shape.layers[1] = {};
    shape.layers[2].window = 50;
    return shape;
  }
  static KVCache make(const Allocator& allocator = default_allocator()) {
    CacheOptions options;
    options.page_tokens = 32;
    options.recent_tokens = 16;
    options.max_sequences = 3;
    options.allocator = allocator;
    return test::make_cache(shape(), Plan::uniform(shape(), presets::k4v2), options);
  }
  static void append(KVCache& cache, SequenceId id, const Rows<float>& rows) {
    for (const int layer : {0, 2})
      KVTILT_EXPECT_OK(cache.append(id, layer, rows.view(), rows.view()));
  }
  static void expect_same(const KVCache& a, SequenceId in_a, const KVCache& b, SequenceId in_b) {
    for (const int layer : {0, 2})
      EXPECT_TRUE(test::same_content(a.view(in_a, layer).value(), b.view(in_b, layer).value()));
  }

  Random random_{1};
  Rows<float> rows_ = random_rows(random_, 150, 2, 32);
  Rows<float> more_ = random_rows(random_, 150, 2, 32);
  KVCache cache_ = make();
  SequenceId id_ = test::open_reserved(cache_, 400);
};

TEST_F(KVCacheSaved, GoesOnInAnotherCacheAsIfItHadAlwaysBeenThere) {
  append(cache_, id_, rows_);
  const std::vector<std::byte> image = test::saved(cache_, id_);
  KVCache other = make();
  const SequenceId loaded = other.load(image, 300).value();
  EXPECT_EQ(other.length(loaded).value(), 150);
  expect_same(cache_, id_, other, loaded);
  append(cache_, id_, more_);
  append(other, loaded, more_);
  expect_same(cache_, id_, other, loaded);
  EXPECT_EQ(test::saved(cache_, id_), test::saved(other, loaded));
}

TEST_F(KVCacheSaved, KeepsHolesShortPagesAndATurnedRing) {
  CacheOptions options;
  options.page_tokens = 32;
  options.recent_tokens = 40;
  const LayerShape one{2, 32, 32, 0};
  KVCache cache = test::make_cache(one, presets::k4v2, options);
  KVCache other = test::make_cache(one, presets::k4v2, options);
  const SequenceId id = test::open_reserved(cache, 500);
  const auto append = [&](KVCache& to, SequenceId to_id, const Rows<float>& rows) {
    KVTILT_EXPECT_OK(to.append(to_id, 0, rows.view(), rows.view()));
  };
  append(cache, id, rows_);
  KVTILT_EXPECT_OK(cache.truncate(id, 90));  // inside a page, which becomes short
  append(cache, id, more_);
  KVTILT_EXPECT_OK(cache.remove(id, 36, 68));
  const SequenceId loaded = other.load(test::saved(cache, id), 400).value();
  const auto expect_equal = [&] {
    EXPECT_TRUE(test::same_content(cache.view(id, 0).value(), other.view(loaded, 0).value()));
  };
  expect_equal();
  append(cache, id, rows_);
  append(other, loaded, rows_);
  expect_equal();
  KVTILT_EXPECT_OK(cache.truncate(id, 80));  // inside the short page
  KVTILT_EXPECT_OK(other.truncate(loaded, 80));
  expect_equal();
}

TEST_F(KVCacheSaved, IsReservedForWhatItHoldsOrMore) {
  append(cache_, id_, rows_);
  const std::vector<std::byte> image = test::saved(cache_, id_);
  const SequenceId tight = cache_.load(image).value();
  EXPECT_EQ(cache_.append(tight, 0, more_.view(0, 1), more_.view(0, 1)).code(),
            ErrorCode::OutOfCapacity);
  const SequenceId roomy = cache_.load(image, 300).value();
  append(cache_, roomy, more_);
  EXPECT_EQ(cache_.length(roomy).value(), 300);
}

TEST_F(KVCacheSaved, TakesNoMoreMemoryThanTheSequenceItself) {
  append(cache_, id_, rows_);
  KVCache first = make();
  const SequenceId grown = test::open_reserved(first, 300);
  append(first, grown, rows_);
  KVCache second = make();
  EXPECT_TRUE(second.load(test::saved(cache_, id_), 300).ok());
  EXPECT_LE(second.memory().reserved_bytes, first.memory().reserved_bytes);
}

TEST_F(KVCacheSaved, EmptyAndShortSequences) {
  for (const std::int64_t tokens : {0, 1, 3, 4, 5, 36}) {
    KVCache one = make();
    const SequenceId id = test::open_reserved(one, 40);
    for (const int layer : {0, 2})
      KVTILT_EXPECT_OK(one.append(id, layer, rows_.view(0, tokens), rows_.view(0, tokens)));
    KVCache other = make();
    const SequenceId loaded = other.load(test::saved(one, id), 300).value();
    expect_same(one, id, other, loaded);
    append(other, loaded, more_);
  }
  const SequenceId unreserved = cache_.open().value();
  EXPECT_TRUE(cache_.load(test::saved(cache_, unreserved)).ok());
}

// Bytes that truncated tokens left behind must not be saved.
TEST_F(KVCacheSaved, BytesDoNotTellWhatTailAndSinksForgot) {
  append(cache_, id_, rows_);
  KVTILT_EXPECT_OK(cache_.truncate(id_, 0));
  append(cache_, id_, more_);
  KVTILT_EXPECT_OK(cache_.truncate(id_, 145));
  KVCache other = make();
  const SequenceId fresh = test::open_reserved(other, 400);
  append(other, fresh, more_);
  KVTILT_EXPECT_OK(other.truncate(fresh, 145));
  EXPECT_EQ(test::saved(cache_, id_), test::saved(other, fresh));
}

TEST_F(KVCacheSaved, AnyAlignmentWillDo) {
  append(cache_, id_, rows_);
  const std::vector<std::byte> image = test::saved(cache_, id_);
  std::vector<std::byte> shifted(image.size() + 1);
  KVTILT_EXPECT_OK(cache_.save(id_, std::span(shifted).subspan(1)));
  EXPECT_EQ(std::memcmp(image.data(), shifted.data() + 1, image.size()), 0);
  EXPECT_TRUE(cache_.load(std::span<const std::byte>(shifted).subspan(1)).ok());
}

TEST_F(KVCacheSaved, RefusesWhatItCannotSave) {
  append(cache_, id_, rows_);
  const std::vector<std::byte> image = test::saved(cache_, id_);
  for (const std::size_t bytes : {image.size() - 1, image.size() + 1}) {
    std::vector<std::byte> wrong(bytes, std::byte{7});
    const Status status = cache_.save(id_, wrong);
    EXPECT_EQ(status.code(), ErrorCode::InvalidArgument);
    EXPECT_THAT(std::string(status.message()), HasSubstr("takes " + std::to_string(image.size())));
    EXPECT_EQ(wrong, std::vector<std::byte>(bytes, std::byte{7}));
  }
  EXPECT_EQ(cache_.saved_bytes({7, 1}).code(), ErrorCode::InvalidArgument);
  KVTILT_EXPECT_OK(cache_.append(id_, 0, more_.view(0, 1), more_.view(0, 1)));
  EXPECT_THAT(std::string(cache_.saved_bytes(id_).message()), HasSubstr("cannot save: layer 2"));
}

TEST_F(KVCacheSaved, LoadsNothingThatTheReaderRefuses) {
  append(cache_, id_, rows_);
  const std::vector<std::byte> image = test::saved(cache_, id_);
  const auto expect_refused = [](KVCache& cache, const std::vector<std::byte>& refused,
                                 ErrorCode code, const char* words) {
    const std::size_t before = cache.memory().reserved_bytes;
    const Result<SequenceId> loaded = cache.load(refused);
    EXPECT_EQ(loaded.code(), code) << words;
    EXPECT_THAT(std::string(loaded.message()), HasSubstr(words));
    EXPECT_EQ(cache.memory().reserved_bytes, before);
  };
  expect_refused(cache_, {image.begin(), image.end() - 64}, ErrorCode::Corrupt, "by its header");
  std::vector<std::byte> damaged = image;
  damaged.back() ^= std::byte{1};
  expect_refused(cache_, damaged, ErrorCode::Corrupt, "its checksum is another");
  const std::size_t value = image.size() - 2;  // the tail's last
  expect_refused(cache_, test::forged(image, value, std::uint16_t{0x7e00}), ErrorCode::Corrupt,
                 "was forged");
  KVCache other = test::make_cache(LayerShape{2, 32, 32, 0}, presets::k4v2);
  expect_refused(other, image, ErrorCode::InvalidArgument, "the number of layers is 3 there");
}

TEST_F(KVCacheSaved, LoadsAllOrNothing) {
  append(cache_, id_, rows_);
  const std::vector<std::byte> image = test::saved(cache_, id_);
  test::CountingAllocator memory;
  KVCache other = make(memory.get());
  EXPECT_EQ(other.load(image, -1).code(), ErrorCode::InvalidArgument);
  EXPECT_EQ(other.load(image, max_tokens + 1).code(), ErrorCode::InvalidArgument);
  int refusals = 0;
  for (Result<SequenceId> loaded = Status{}; !loaded; ++refusals) {
    EXPECT_EQ(other.memory().reserved_bytes, memory.bytes);
    memory.refuse_after = refusals;
    loaded = other.load(image);
    memory.refuse_after = -1;
    if (loaded) KVTILT_EXPECT_OK(other.close(*loaded));
    ASSERT_TRUE(loaded || loaded.code() == ErrorCode::OutOfMemory);
  }
  EXPECT_GT(refusals, 5);  // allocations for tables and blocks of two layers
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(other.load(image).ok());
  EXPECT_EQ(other.load(image).code(), ErrorCode::OutOfCapacity);
}

}  // namespace
}  // namespace kvtilt
