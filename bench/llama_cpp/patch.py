# SPDX-License-Identifier: MIT
"""Lets llama.cpp attend by kvtilt: patch.py <source folder of llama.cpp> <root of kvtilt>

Adds a branch to llm_graph_context::build_attn() and kvtilt_attention.cpp to the library. Fits the
llama.cpp of mid-2025 whose KV cache is llama_kv_cache_unified; stops at any other.
"""

import pathlib
import re
import sys

BRANCH = """
    if (ggml_tensor * cur = kvtilt_attention(ctx0, il, hparams.n_layer, cparams.n_ctx, kq_scale,
            static_cast<const llama_kv_cache_unified *>(memory)->head == 0, q_cur, k_cur, v_cur)) {
        GGML_ASSERT(!wo_b && !kq_b && !v_mla && !hparams.attn_soft_cap && !hparams.use_alibi &&
                    !hparams.is_swa(il) && "kvtilt could, but this patch does not pass it on");
        ggml_build_forward_expand(gf, inp->get_kq_mask());  // an input that llama.cpp fills in
        cur = ggml_reshape_2d(ctx0, cur, cur->ne[0] * cur->ne[1], cur->ne[2]);
        ggml_build_forward_expand(gf, cur);
        return wo ? build_lora_mm(wo, cur) : cur;
    }
"""


def main():
    source, kvtilt = (pathlib.Path(name).resolve() for name in sys.argv[1:])
    graph = source / "src/llama-graph.cpp"
    text = graph.read_text()
    place = re.search(
        r"llm_graph_context::build_attn\(\s*llm_graph_input_attn_kv_unified \*"
        r"[^{]*\{.*?ggml_build_forward_expand\(gf, v_cur\);\n", text, re.S)
    if place is None:
        sys.exit(f"{graph}: has no build_attn() with a unified KV cache")
    if "kvtilt" not in text:
        text = text[:place.end()] + BRANCH + text[place.end():]
        graph.write_text('#include "kvtilt_attention.h"\n' + text)
    lists = source / "src/CMakeLists.txt"
    text = lists.read_text()
    if "kvtilt" not in text:
        own = kvtilt / "bench/llama_cpp"
        folders = ";".join(f"-I{kvtilt / name}" for name in ("include", "examples"))
        lists.write_text(text + f"""
target_sources(llama PRIVATE {own}/kvtilt_attention.cpp)
target_include_directories(llama PRIVATE {own})
set_source_files_properties({own}/kvtilt_attention.cpp PROPERTIES
                            COMPILE_OPTIONS "-std=c++20;{folders}")
""")


if __name__ == "__main__":
    main()
