#!/usr/bin/env python3
"""16-bit attention of PyTorch, timed as attend_bench and prefill_bench time ours: sdpa.py <json file>.

Graph replay, random data, buffers beyond four times the L2 in total. Chunks see all keys: what
causality would save of a short chunk over a long past is under 1 %."""

import json
import sys

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

HEAD_DIM = 128
BACKENDS = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}


def seconds(batch, query_heads, kv_heads, tokens, backend, chunk=1):
    """Median seconds of one call."""
    set_bytes = 4 * batch * kv_heads * tokens * HEAD_DIM
    count = max(1, min(16, -(-(256 << 20) // set_bytes)))
    shape = (batch, kv_heads, tokens, HEAD_DIM)
    sets = [[torch.randn(shape, device="cuda", dtype=torch.bfloat16) for _ in "kv"]
            for _ in range(count)]
    query = torch.randn(batch, query_heads, chunk, HEAD_DIM, device="cuda", dtype=torch.bfloat16)

    def run():
        for keys, values in sets:
            torch.nn.functional.scaled_dot_product_attention(query, keys, values, enable_gqa=True)

    with sdpa_kernel(backend):
        run()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
    times = []
    for _ in range(15):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in "ab")
        start.record()
        graph.replay()
        stop.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(stop))
    return sorted(times)[len(times) // 2] * 1e-3 / count, set_bytes


def main():
    report = {}
    for batch, query_heads, kv_heads, tokens in [
        (16, 32, 8, 32768), (1, 32, 8, 32768), (1, 32, 8, 1024), (4, 32, 32, 32768)]:
        for name, backend in BACKENDS.items():
            row = f"sdpa-{name}/bf16/{query_heads}x{kv_heads}/batch:{batch}/tokens:{tokens}"
            try:
                time, read = seconds(batch, query_heads, kv_heads, tokens, backend)
            except RuntimeError as error:
                print(f"{row} not available: {str(error).splitlines()[0]}")
                continue
            report[f"{row}/time"] = {"value": time * 1e6, "unit": "us"}
            print(f"{row}/time {time * 1e6:.2f} us {read / time / 4.8e12:.1%} of 4.8 TB/s", flush=True)
    for chunk, past in [(512, 32768), (2048, 32768), (512, 8192)]:
        for name, backend in BACKENDS.items():
            row = f"sdpa-{name}/bf16/32x8/batch:1/chunk:{chunk}/past:{past}"
            try:
                time, _ = seconds(1, 32, 8, past + chunk, backend, chunk)
            except RuntimeError as error:
                print(f"{row} not available: {str(error).splitlines()[0]}")
                continue
            report[f"{row}/time"] = {"value": time * 1e6, "unit": "us"}
            rate = 4 * 32 * HEAD_DIM * chunk * (past + chunk) / time / 1e12
            print(f"{row}/time {time * 1e6:.2f} us {rate:.0f} TFLOP/s", flush=True)
    with open(sys.argv[1], "w") as file:
        json.dump(report, file, indent=1)


main()
