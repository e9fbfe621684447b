#!/usr/bin/env python3
"""16-bit attention of PyTorch, timed as attend_bench and prefill_bench time ours: sdpa.py <json file>.

Graph replay, random data, buffers beyond four times the L2 in total. Chunks behind a past see all
keys, where ours attend causally: 1 to 3 % more products. The file is rewritten after each row, one
entry a line. A backend that does not take a shape is no failure."""

import datetime
import json
import sys

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

HEAD_DIM = 128
BACKENDS = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}
DEVICE = torch.cuda.get_device_properties(0)
ROTATED_BYTES = 4 * DEVICE.L2_cache_size


def seconds(batch, query_heads, kv_heads, tokens, backend, chunk=1, causal=False):
    """Median seconds of one call, and the bytes of its keys and values."""
    set_bytes = 4 * batch * kv_heads * tokens * HEAD_DIM
    count = ROTATED_BYTES // set_bytes + 1
    shape = (batch, kv_heads, tokens, HEAD_DIM)
    sets = [[torch.randn(shape, device="cuda", dtype=torch.bfloat16) for _ in "kv"]
            for _ in range(count)]
    query = torch.randn(batch, query_heads, chunk, HEAD_DIM, device="cuda", dtype=torch.bfloat16)

    calls = count * max(1, 8 // count)

    def run():
        for call in range(calls):
            keys, values = sets[call % count]
            torch.nn.functional.scaled_dot_product_attention(
                query, keys, values, is_causal=causal, enable_gqa=True)

    with sdpa_kernel(backend):
        run()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
    times = []
    for _ in range(15):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in "ab")
        torch.cuda._sleep(1_000_000)  # the host queues the rest meanwhile
        start.record()
        graph.replay()
        stop.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(stop))
    return sorted(times)[len(times) // 2] * 1e-3 / calls, set_bytes


class Report(dict):
    def add(self, name, value, unit):
        self[name] = {"value": value, "unit": unit}
        entries = (f"  {json.dumps(key)}: {json.dumps(item)}" for key, item in self.items())
        with open(sys.argv[1], "w") as file:
            file.write("{\n" + ",\n".join(entries) + "\n}\n")


def measure(report, row, arguments, describe):
    for name, backend in BACKENDS.items():
        full = f"sdpa-{name}/bf16/{row}"
        try:
            time, read = seconds(*arguments[:4], backend, *arguments[4:])
        except RuntimeError as error:
            print(f"{full} not available: {(str(error).splitlines() or [repr(error)])[0]}", flush=True)
            continue
        report.add(f"{full}/time", time * 1e6, "us")
        print(f"{full}/time {time * 1e6:.2f} us {describe(time, read)}", flush=True)


def main():
    report = Report()
    report.add("date", datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"), "text")
    report.add("command", " ".join(sys.argv), "text")
    report.add("device", DEVICE.name, "text")
    report.add("torch", torch.__version__, "text")
    for batch, query_heads, kv_heads, tokens in [
        (16, 32, 8, 32768), (1, 32, 8, 32768), (1, 32, 8, 1024), (4, 32, 32, 32768)]:
        measure(report, f"{query_heads}x{kv_heads}/batch:{batch}/tokens:{tokens}",
                (batch, query_heads, kv_heads, tokens),
                lambda time, read: f"{read / time / 4.8e12:.1%} of 4.8 TB/s")
    for chunk, past in [(512, 32768), (2048, 32768), (512, 8192), (4096, 0)]:
        causal = past == 0
        seen = (chunk + 1) / 2 if causal else past + chunk
        work = 4 * 32 * HEAD_DIM * chunk * seen
        measure(report, f"32x8/batch:1/chunk:{chunk}/past:{past}",
                (1, 32, 8, past + chunk, chunk, causal),
                lambda time, read: f"{work / time / 1e12:.0f} TFLOP/s")


main()
