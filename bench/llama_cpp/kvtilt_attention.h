// SPDX-License-Identifier: MIT
// What patch.py makes llama.cpp call.
#pragma once

struct ggml_context;
struct ggml_tensor;

/// A layer's attention by kvtilt with the recipe that the environment variable KVTILT names, for one
/// sequence; null without it. KVTILT_TAIL and KVTILT_SINKS set the tokens kept in 16 bits.
///
/// scale    of q.k
/// first    whether the graph's tokens begin a new sequence
/// Returns  [value_dim, query_heads, tokens]; q, k and v have that order, too
ggml_tensor* kvtilt_attention(ggml_context* context, int layer, int layers, int context_tokens,
                              float scale, bool first, ggml_tensor* q, ggml_tensor* k,
                              ggml_tensor* v);
