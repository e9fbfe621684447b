// SPDX-License-Identifier: MIT
/// What attend and attend_prefill refuse: the message names the numbers, and no output is written.
#include <kvtilt/attention/attend.hpp>
#include <kvtilt/attention/attend_prefill.hpp>

#include "support/cache_bytes.hpp"
#include "support/caches.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

namespace kvtilt {
namespace {

using test::Random;
using test::random_rows;
using test::Rows;
using testing::HasSubstr;

/// 50 tokens of two kv heads, keys of 64 channels and values of 32.
class AttendHostile : public testing::Test {
 protected:
  AttendHostile() {
    KVTILT_EXPECT_OK(cache_.append(id_, 0, random_rows(random_, 50, 2, 64).view(),
                                   random_rows(random_, 50, 2, 32).view()));
    view_ = cache_.view(id_, 0).value();
    workspace_.resize(attend_prefill_workspace_bytes(view_, 60));
  }

  template <class Call>
  void refuses(const std::vector<std::string>& words, Call call) {
    const test::Snapshot before(view_);
    std::fill(out_.begin(), out_.end(), 77.0f);
    std::fill(lse_.begin(), lse_.end(), 77.0f);
    const Status status = call();
    EXPECT_EQ(status.code(), ErrorCode::InvalidArgument) << status.message();
    for (const std::string& word : words)
      EXPECT_THAT(std::string(status.message()), HasSubstr(word));
    EXPECT_TRUE(std::all_of(out_.begin(), out_.end(), [](float x) { return x == 77.0f; }));
    EXPECT_TRUE(std::all_of(lse_.begin(), lse_.end(), [](float x) { return x == 77.0f; }));
    EXPECT_TRUE(test::unchanged(before, cache_.view(id_, 0).value()));
  }
  void refuses_both(const TensorView& queries, const OutputView& out,
                    const std::vector<std::string>& words) {
    refuses(words, [&] { return attend(view_, queries, out, {}, workspace_); });
    refuses(words, [&] {
      return attend_prefill(view_, queries, rows(queries.tokens, 2, 64),
                            rows(queries.tokens, 2, 32), out, {}, workspace_);
    });
  }
  [[nodiscard]] TensorView rows(std::int64_t tokens, int heads, int dim) const {
    return {numbers_.data(), tokens, heads, dim};
  }
  OutputView out(std::int64_t tokens, int heads, int dim) {
    return {out_.data(), tokens, heads, dim, lse_.data()};
  }

  KVCache cache_ = test::make_cache(LayerShape{2, 64, 32, 0}, presets::k4v2);
  SequenceId id_ = test::open_reserved(cache_, 50);
  LayerView view_;
  Random random_{1};
  std::vector<float> numbers_ = std::vector<float>(60 * 8 * 64, 0.5f);
  std::vector<float> out_ = std::vector<float>(60 * 8 * 64);
  std::vector<float> lse_ = std::vector<float>(60 * 8);
  std::vector<std::byte> workspace_;
};

TEST_F(AttendHostile, RefusesShapesThatDoNotMatch) {
  refuses_both(rows(2, 3, 64), out(2, 3, 32), {"queries are [2, 3, 64]", "multiple of 2 kv heads"});
  refuses_both(rows(2, 0, 64), out(2, 0, 32), {"queries are [2, 0, 64]"});
  refuses_both(rows(2, -2, 64), out(2, -2, 32), {"queries are [2, -2, 64]"});
  refuses_both(rows(2, 4, 32), out(2, 4, 32), {"queries are [2, 4, 32]", "kv heads, 64]"});
  refuses_both(rows(-1, 4, 64), out(-1, 4, 32), {"queries are [-1, 4, 64]"});
  refuses_both(rows(2, 4, 64), out(2, 4, 64), {"the output is [2, 4, 64]", "expected [2, 4, 32]"});
  refuses_both(rows(2, 4, 64), out(3, 4, 32), {"the output is [3, 4, 32]"});
  refuses_both(rows(2, 4, 64), out(2, 2, 32), {"the output is [2, 2, 32]"});
}

TEST_F(AttendHostile, RefusesNullPointers) {
  refuses_both({static_cast<const float*>(nullptr), 2, 4, 64}, out(2, 4, 32), {"null"});
  refuses_both(rows(2, 4, 64), {nullptr, 2, 4, 32}, {"null"});
  const TensorView nothing(static_cast<const float*>(nullptr), 2, 2, 64);
  refuses({"keys or values are null"}, [&] {
    return attend_prefill(view_, rows(2, 4, 64), nothing, rows(2, 2, 32), out(2, 4, 32), {},
                          workspace_);
  });
}

TEST_F(AttendHostile, RefusesTypesThatNoElementHas) {
  const auto of_seven = [](TensorView view) {
    view.type = static_cast<ElementType>(7);
    return view;
  };
  refuses_both(of_seven(rows(2, 4, 64)), out(2, 4, 32), {"queries have element type 7"});
  const TensorView keys = rows(2, 2, 64);
  const TensorView values = rows(2, 2, 32);
  refuses({"keys have element type 7"}, [&] {
    return attend_prefill(view_, rows(2, 4, 64), of_seven(keys), values, out(2, 4, 32), {},
                          workspace_);
  });
  refuses({"values have element type 7"}, [&] {
    return attend_prefill(view_, rows(2, 4, 64), keys, of_seven(values), out(2, 4, 32), {},
                          workspace_);
  });
}

TEST_F(AttendHostile, RefusesMoreQueriesThanTokens) {
  for (const std::int64_t count : {std::int64_t{51}, std::numeric_limits<std::int64_t>::max()})
    refuses({std::to_string(count) + " queries for 50 tokens", "append the newest tokens first"},
            [&] { return attend(view_, rows(count, 2, 64), out(count, 2, 32), {}, workspace_); });
  const auto refuses_all = [&](std::int64_t count, const AttendOptions& options, const char* word) {
    refuses({std::to_string(count) + " queries for 50 tokens", word}, [&] {
      return attend(view_, rows(count, 2, 64), out(count, 2, 32), options, workspace_);
    });
  };
  const float slopes[] = {0.0f, 0.1f};
  refuses_all(51, {.window = 50, .causal = false}, "a window or ALiBi needs a position for each");
  refuses_all(51, {.alibi_slopes = slopes, .causal = false}, "needs a position for each");
  refuses_all((1 << 20) + 1, {.causal = false}, "at most 2^20");
}

TEST_F(AttendHostile, RefusesChunksThatAreTooLong) {
  for (const std::int64_t tokens : {most_chunk_tokens + 1, std::int64_t{1} << 58})
    refuses({"at most 1048576 tokens, not " + std::to_string(tokens)}, [&] {
      return attend_prefill(view_, rows(tokens, 4, 64), rows(tokens, 2, 64), rows(tokens, 2, 32),
                            out(tokens, 4, 32), {}, workspace_);
    });
}

TEST_F(AttendHostile, RefusesAWorkspaceThatIsTooSmall) {
  const std::size_t needed = attend_workspace_bytes(view_);
  const std::string words = std::to_string(needed) + " are needed";
  for (const std::size_t size : {std::size_t{0}, std::size_t{64}, needed - 1})
    refuses({"workspace has " + std::to_string(size) + " bytes", words}, [&] {
      return attend(view_, rows(2, 4, 64), out(2, 4, 32), {}, std::span(workspace_).first(size));
    });
  const std::size_t prefill = attend_prefill_workspace_bytes(view_, 2);
  EXPECT_GT(attend_prefill_workspace_bytes(view_, 100), prefill);
  refuses({std::to_string(prefill) + " are needed"}, [&] {
    return attend_prefill(view_, rows(2, 4, 64), rows(2, 2, 64), rows(2, 2, 32), out(2, 4, 32), {},
                          std::span(workspace_).first(prefill - 1));
  });
}

TEST_F(AttendHostile, RefusesAViewThatComesFromNoCache) {
  const AttendRequest request{{}, rows(1, 2, 64), out(1, 2, 32), {}};
  EXPECT_GT(attend_workspace_bytes({&request, 1}, 2), 0u);
  EXPECT_GT(attend_prefill_workspace_bytes(LayerView{}, 3), 0u);
  refuses({"view is empty"},
          [&] { return attend({}, rows(1, 2, 64), out(1, 2, 32), {}, workspace_); });
  refuses({"view is empty"}, [&] {
    return attend_prefill({}, rows(1, 2, 64), rows(1, 2, 64), rows(1, 2, 32), out(1, 2, 32), {},
                          workspace_);
  });
}

TEST_F(AttendHostile, RefusesAChunkThatDoesNotFitTheLayer) {
  const auto chunk = [&](const TensorView& keys, const TensorView& values,
                         const std::string& word) {
    refuses({word}, [&] {
      return attend_prefill(view_, rows(3, 4, 64), keys, values, out(3, 4, 32), {}, workspace_);
    });
  };
  chunk(rows(2, 2, 64), rows(3, 2, 32), "keys are [2, 2, 64]");
  chunk(rows(3, 2, 64), rows(4, 2, 32), "values [4, 2, 32]; expected [n, 2, 64] and [n, 2, 32]");
  chunk(rows(3, 4, 64), rows(3, 2, 32), "keys are [3, 4, 64]");
  chunk(rows(3, 2, 64), rows(3, 1, 32), "values [3, 1, 32]");
  chunk(rows(3, 2, 32), rows(3, 2, 32), "keys are [3, 2, 32]");
  chunk(rows(3, 2, 64), rows(3, 2, 64), "values [3, 2, 64]");
  chunk(rows(2, 2, 64), rows(2, 2, 32), "a chunk of 3 queries has 2 keys");
}

TEST_F(AttendHostile, AcceptsNoQueriesAndWritesNothing) {
  std::fill(out_.begin(), out_.end(), 77.0f);
  KVTILT_EXPECT_OK(attend(view_, {static_cast<const float*>(nullptr), 0, 4, 64},
                          {nullptr, 0, 4, 32}, {}, workspace_));
  KVTILT_EXPECT_OK(attend(view_, rows(0, 2, 64), out(0, 2, 32), {}, workspace_));
  EXPECT_TRUE(std::all_of(out_.begin(), out_.end(), [](float x) { return x == 77.0f; }));
}

TEST_F(AttendHostile, AnEmptySequenceTakesNoQueriesButAChunk) {
  KVTILT_EXPECT_OK(cache_.truncate(id_, 0));
  view_ = cache_.view(id_, 0).value();
  refuses({"1 queries for 0 tokens"},
          [&] { return attend(view_, rows(1, 2, 64), out(1, 2, 32), {}, workspace_); });
  KVTILT_EXPECT_OK(attend_prefill(view_, rows(1, 2, 64), rows(1, 2, 64), rows(1, 2, 32),
                                  out(1, 2, 32), {}, workspace_));
  EXPECT_NEAR(out_[0], 0.5f, 1e-5f);
}

TEST_F(AttendHostile, OutputsAreOptionalOnlyForTheLse) {
  test::Output with(2, 2, 32);
  test::Output without(2, 2, 32);
  OutputView no_lse = without.view();
  no_lse.lse = nullptr;
  KVTILT_EXPECT_OK(attend(view_, rows(2, 2, 64), with.view(), {}, workspace_));
  KVTILT_EXPECT_OK(attend(view_, rows(2, 2, 64), no_lse, {}, workspace_));
  EXPECT_EQ(with.out.data, without.out.data);
  for (const float x : without.lse) EXPECT_EQ(x, 77.0f);
}

}  // namespace
}  // namespace kvtilt
