// SPDX-License-Identifier: MIT
#include "support.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <llama/capturing_cache.hpp>
#include <llama/float_cache.hpp>
#include <llama/statistics.hpp>
#include <llama/statistics_file.hpp>

#include <cmath>

namespace llama {
namespace {

using testing::HasSubstr;

/// Compares with the precision of float32, in which files store numbers.
void expect_float(double got, double expected) { EXPECT_NEAR(got, expected, 1e-6 * expected); }

/// Three pieces, of no whole number of pages, through the golden model with windows, GQA and
/// biases.
class StatisticsTest : public testing::Test {
 protected:
  static constexpr int page = 32;

  Model model_{golden_folder("qwen2_mixed_windows")};
  const ModelConfig& config_ = model_.config();
  std::vector<std::vector<int>> pieces_{tokens(61), tokens(10), tokens(33)};

  [[nodiscard]] std::vector<int> tokens(int count) const {
    std::vector<int> piece;
    for (int i = 0; i < count; ++i) piece.push_back((count + i * i) % config_.vocab);
    return piece;
  }

  [[nodiscard]] std::vector<kvtilt::CapturedLayer> capture(long most = 1000,
                                                           int threads = 1) const {
    return capture_statistics(model_, pieces_, {page, most, threads, {}});
  }

  /// Keys, values and queries that a piece has in one layer.
  [[nodiscard]] CapturedLayer numbers(const std::vector<int>& piece, int layer) const {
    CapturingCache cache(config_, std::make_unique<FloatCache>(config_));
    cache.restart(static_cast<int>(piece.size()));
    Scratch scratch;
    std::vector<float> logits(static_cast<std::size_t>(config_.vocab));
    model_.forward(piece, cache, scratch, logits);
    return cache.layers()[static_cast<std::size_t>(layer)];
  }
};

/// The definitions in double, query by query.
TEST_F(StatisticsTest, AreWhatTheirDescriptionSays) {
  const auto layers = capture();
  const int dim = config_.head_dim;
  const int gqa_ratio = config_.query_heads / config_.kv_heads;
  ASSERT_EQ(layers.size(), static_cast<std::size_t>(config_.layers));
  bool windowed = false;
  for (int index = 0; index < config_.layers; ++index) {
    const kvtilt::CapturedLayer& layer = layers[static_cast<std::size_t>(index)];
    ASSERT_EQ(layer.tokens, 64)
        << "a page of the first piece, none of the second, one of the third";
    ASSERT_EQ(layer.kv_heads, config_.kv_heads);
    ASSERT_EQ(layer.key_dim, dim);
    const int window = config_.windows[static_cast<std::size_t>(index)];
    windowed = windowed || window > 0;
    for (int head = 0; head < config_.kv_heads; ++head) {
      std::vector<double> query_square(static_cast<std::size_t>(dim));
      int first_token = 0;
      for (const std::size_t p : {0UL, 2UL}) {
        const CapturedLayer source = numbers(pieces_[p], index);
        const int length = static_cast<int>(pieces_[p].size());
        std::vector<double> attention(page);
        std::vector<double> key_attention(page);
        std::vector<double> squares(static_cast<std::size_t>(dim));
        const auto at = [&](const Floats& list, int token, int heads, int h, int c) {
          return static_cast<double>(list[static_cast<std::size_t>((token * heads + h) * dim + c)]);
        };
        for (int query_head = head * gqa_ratio; query_head < (head + 1) * gqa_ratio; ++query_head) {
          for (int q = 0; q < length; ++q) {
            const int first = window == 0 ? 0 : std::max(0, q + 1 - window);
            std::vector<double> weights(static_cast<std::size_t>(q + 1));
            double sum = 0;
            for (int t = first; t <= q; ++t) {
              double logit = 0;
              for (int c = 0; c < dim; ++c) {
                logit += at(source.queries, q, config_.query_heads, query_head, c) *
                         at(source.keys, t, config_.kv_heads, head, c);
              }
              weights[static_cast<std::size_t>(t)] = std::exp(logit / std::sqrt(dim));
              sum += weights[static_cast<std::size_t>(t)];
            }
            std::vector<double> output(static_cast<std::size_t>(dim));
            for (int t = first; t <= q; ++t) {
              for (int c = 0; c < dim; ++c) {
                output[static_cast<std::size_t>(c)] +=
                    weights[static_cast<std::size_t>(t)] / sum *
                    at(source.values, t, config_.kv_heads, head, c);
              }
            }
            for (int c = 0; c < dim; ++c) {
              squares[static_cast<std::size_t>(c)] +=
                  std::pow(at(source.queries, q, config_.query_heads, query_head, c), 2);
            }
            const Matrix& projection = model_.output_projection(index);
            const auto project = [&](auto&& number) {  // W_O times a vector, this head's columns
              std::vector<double> result(static_cast<std::size_t>(config_.hidden));
              for (int row = 0; row < config_.hidden; ++row) {
                for (int c = 0; c < dim; ++c) {
                  result[static_cast<std::size_t>(row)] +=
                      static_cast<double>(projection.data[static_cast<std::size_t>(
                          row * projection.cols + query_head * dim + c)]) *
                      number(c);
                }
              }
              return result;
            };
            if (q < page - 1) continue;  // only now the page is quantized
            for (int t = first; t < page; ++t) {
              const double p2 = std::pow(weights[static_cast<std::size_t>(t)] / sum, 2);
              double distance = 0;
              for (const double x : project([&](int c) {
                     return at(source.values, t, config_.kv_heads, head, c) -
                            output[static_cast<std::size_t>(c)];
                   })) {
                distance += x * x;
              }
              attention[static_cast<std::size_t>(t)] += p2;
              key_attention[static_cast<std::size_t>(t)] += p2 * distance;
            }
          }
        }
        for (int t = 0; t < page; ++t) {
          const auto place = static_cast<std::size_t>(head * 64 + first_token + t);
          const auto token = static_cast<std::size_t>(t);
          EXPECT_NEAR(layer.attention[place], attention[token], 1e-5 + 1e-3 * attention[token]);
          EXPECT_NEAR(layer.key_attention[place], key_attention[token],
                      1e-5 + 1e-3 * key_attention[token]);
          for (int c = 0; c < dim; ++c) {
            const auto stored =
                static_cast<std::size_t>(((first_token + t) * config_.kv_heads + head) * dim + c);
            EXPECT_NEAR(layer.keys[stored], at(source.keys, t, config_.kv_heads, head, c), 1e-4);
            EXPECT_NEAR(layer.values[stored], at(source.values, t, config_.kv_heads, head, c),
                        1e-4);
          }
        }
        for (int c = 0; c < dim; ++c) {  // both pieces have one page: equal weights
          query_square[static_cast<std::size_t>(c)] +=
              squares[static_cast<std::size_t>(c)] / (length * gqa_ratio) / 2;
        }
        first_token += page;
      }
      for (int c = 0; c < dim; ++c) {
        EXPECT_NEAR(layer.query_square[static_cast<std::size_t>(head * dim + c)],
                    query_square[static_cast<std::size_t>(c)],
                    1e-3 * query_square[static_cast<std::size_t>(c)]);
      }
    }
  }
  EXPECT_TRUE(windowed);
}

/// What the projection adds to the hidden state, computed from the captured numbers alone.
TEST_F(StatisticsTest, WeighLayersByWhatTheyAddToTheHiddenState) {
  const auto layers = capture();
  const int dim = config_.head_dim;
  for (int index = 0; index < config_.layers; ++index) {
    const Matrix& projection = model_.output_projection(index);
    double mean = 0;
    for (const std::size_t p : {0UL, 2UL}) {
      const CapturedLayer source = numbers(pieces_[p], index);
      const int length = static_cast<int>(pieces_[p].size());
      FloatCache cache(config_);
      cache.restart(length);
      Floats out(source.queries.size());
      for (int i = 0; i <= index; ++i) {  // attend() of earlier layers needs some input
        cache.attend(i, length, source.queries.data(), nullptr, source.keys.data(),
                     source.values.data(), out.data());
      }
      double sum = 0;
      for (int token = 0; token < length; ++token) {
        for (int row = 0; row < projection.rows; ++row) {
          double x = 0;
          for (int c = 0; c < projection.cols; ++c) {
            x += static_cast<double>(
                     projection.data[static_cast<std::size_t>(row * projection.cols + c)]) *
                 out[static_cast<std::size_t>(token * projection.cols + c)];
          }
          sum += x * x;
        }
      }
      mean += sum / length / 2;
    }
    const auto& layer = layers[static_cast<std::size_t>(index)];
    EXPECT_NEAR(layer.weight * mean, 1, 2e-3);
    double squares = 0;
    for (int row = 0; row < projection.rows; ++row) {
      for (const int query_head : {0, 1}) {  // these share the first kv head
        squares += std::pow(projection.data[static_cast<std::size_t>(row * projection.cols +
                                                                     query_head * dim + 3)],
                            2) /
                   2;
      }
    }
    EXPECT_NEAR(layer.output_square[3], squares, 1e-4 * squares);
  }
}

TEST_F(StatisticsTest, AreCappedAndDoNotDependOnThreads) {
  EXPECT_EQ(capture(40)[0].tokens, 32);
  const auto one = capture(1000, 1);
  const auto three = capture(1000, 3);
  for (std::size_t i = 0; i < one.size(); ++i) {
    EXPECT_EQ(one[i].keys, three[i].keys);
    EXPECT_EQ(one[i].attention, three[i].attention);
    EXPECT_EQ(one[i].query_square, three[i].query_square);
  }
  EXPECT_THAT(error_of([&] {
                (void)capture_statistics(model_, {tokens(31)}, {page, 100, 1, {}});
              }),
              HasSubstr("as long as a page of 32"));
  EXPECT_THAT(error_of([&] { (void)capture(20); }), HasSubstr("less than a page of 32"));
}

TEST_F(StatisticsTest, ComeBackFromAFile) {
  const TemporaryFolder folder;
  const auto path = folder.path() / "capture.safetensors";
  const auto layers = capture();
  write_statistics(path, {layers, page, "model", "text", {false, true}});
  const StatisticsFile file = read_statistics(path);
  EXPECT_EQ(file.transforms, (Transforms{false, true}));
  EXPECT_EQ(file.page_tokens, page);
  EXPECT_EQ(file.model, "model");
  EXPECT_EQ(file.text, "text");
  ASSERT_EQ(file.layers.size(), layers.size());
  for (std::size_t i = 0; i < layers.size(); ++i) {
    const kvtilt::CapturedLayer& read = file.layers[i];
    EXPECT_EQ(read.tokens, layers[i].tokens);
    EXPECT_EQ(read.kv_heads, layers[i].kv_heads);
    ASSERT_EQ(read.keys.size(), layers[i].keys.size());
    for (std::size_t j = 0; j < read.keys.size(); ++j) {
      EXPECT_NEAR(read.keys[j], layers[i].keys[j], 1e-3 * std::abs(layers[i].keys[j]) + 1e-7);
      EXPECT_NEAR(read.values[j], layers[i].values[j], 1e-3 * std::abs(layers[i].values[j]) + 1e-7);
    }
    ASSERT_EQ(read.attention.size(), layers[i].attention.size());
    for (std::size_t j = 0; j < read.attention.size(); ++j) {
      expect_float(read.attention[j], layers[i].attention[j]);
      expect_float(read.key_attention[j], layers[i].key_attention[j]);
    }
    expect_float(read.weight, layers[i].weight);
    EXPECT_GT(read.weight, 0);
    ASSERT_EQ(read.output_square.size(), layers[i].output_square.size());
    for (std::size_t j = 0; j < read.output_square.size(); ++j) {
      expect_float(read.output_square[j], layers[i].output_square[j]);
    }
    for (std::size_t j = 0; j < read.query_square.size(); ++j) {
      expect_float(read.query_square[j], layers[i].query_square[j]);
    }
  }
}

TEST_F(StatisticsTest, FilesOfAnotherMakeAreRefused) {
  const TemporaryFolder folder;
  const auto path = folder.path() / "capture.safetensors";
  write_statistics(path, {capture(), page, "model", "text", {}});
  const auto error = [&](auto edit) {
    const std::string good = folder.read("capture.safetensors");
    folder.edit_header("capture.safetensors", edit);
    const std::string sentence = error_of([&] { (void)read_statistics(path); });
    folder.write("capture.safetensors", good);
    return sentence;
  };
  EXPECT_EQ(error([](auto&) {}), "");
  EXPECT_THAT(error([](auto& h) { h.erase("__metadata__"); }), HasSubstr("evaluate --capture"));
  EXPECT_THAT(error([](auto& h) { h["__metadata__"]["kvtilt_capture"] = "1"; }),
              HasSubstr("version \"1\""));
  EXPECT_THAT(error([](auto& h) { h["__metadata__"]["transforms"] = "all"; }),
              HasSubstr("transforms are of \"all\""));
  EXPECT_THAT(error([](auto& h) { h["__metadata__"]["page_tokens"] = "48"; }),
              HasSubstr("\"48\", must be 32, 64 or 128"));
  EXPECT_THAT(error([](auto& h) {
                h["other"] = h["layers.0.attention"];
                h.erase("layers.0.attention");
              }),
              HasSubstr("\"layers.0.attention\" is missing"));
  EXPECT_THAT(error([](auto& h) {
                auto& shape = h["layers.0.query_square"]["shape"];
                std::swap(shape[0], shape[1]);
              }),
              HasSubstr("\"layers.0.query_square\" has shape"));
  EXPECT_THAT(error([](auto& h) {
                h["x"] = h["layers.0.keys"];
                h.erase("layers.0.keys");
              }),
              HasSubstr("\"layers.0.keys\" is missing"));
  EXPECT_THAT(error_of([&] { (void)read_statistics(folder.path() / "none"); }), HasSubstr("none"));
}

}  // namespace
}  // namespace llama
