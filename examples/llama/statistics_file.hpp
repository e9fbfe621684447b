// SPDX-License-Identifier: MIT
// Stores captured statistics as a safetensors file, for planning without the model and for studies.
//
//     metadata           kvtilt_capture "2"; page_tokens; transforms: as to_string() says; model and
//                        text: where they come from
//     layers.<i>.keys           F16 [tokens, kv_heads, head_dim], rotated, as they enter the cache
//     layers.<i>.values         F16 [tokens, kv_heads, head_dim]
//     layers.<i>.query_square   F32 [kv_heads, head_dim]  mean of q_c^2 over queries of the kv head
//     layers.<i>.attention      F32 [kv_heads, tokens]    sum of p^2 over these queries
//     layers.<i>.key_attention  F32 [kv_heads, tokens]    sum of p^2 |W_O (v - o)|^2
//     layers.<i>.output_square  F32 [kv_heads, head_dim]  squared lengths of W_O's columns, the mean
//                                                         over these query heads
//     layers.<i>.weight         F32 [1, 1]                1 / mean |W_O o|^2, of all heads together
//
// Tokens are whole pages of page_tokens, one text after the other. p is a query's probability of
// the token, counted if the query comes late enough to read the token's page quantized; o is the
// query's output and W_O the output projection. All numbers are those of the 16-bit baseline.
#pragma once

#include <kvtilt/plan/captured_losses.hpp>

#include "transforms.hpp"

#include <filesystem>
#include <string>
#include <vector>

namespace llama {

struct StatisticsFile {
  std::vector<kvtilt::CapturedLayer> layers;
  int page_tokens = 0;
  std::string model;
  std::string text;
  Transforms transforms;  // of keys and values in `layers`
};

/// Writes the file whole or not at all; throws a sentence naming the file.
void write_statistics(const std::filesystem::path& path, const StatisticsFile& file);

/// Throws a sentence naming the file and the tensor that is missing or has another shape or type.
StatisticsFile read_statistics(const std::filesystem::path& path);

}  // namespace llama
