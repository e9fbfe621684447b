# What was asked for and what was measured, a row for each:
#     awk -f bench/cuda/targets.awk h200-*.json
# of the JSON that the benches write: one entry a line. Shares of the memory bandwidth are of what the
# card is sold with, 4.8 TB/s for an H200, on which all times are asked for.

match($0, /^ *"[^"]+"/) {
  name = substr($0, RSTART, RLENGTH)
  gsub(/[ "]/, "", name)
  # Of rows that are measured twice the first counts.
  if (!(name in value) && match($0, /"value": -?[0-9][^,}]*/)) value[name] = substr($0, RSTART + 9, RLENGTH - 9)
  if (name == "device" && card == "") { card = $0; gsub(/.*"value": "|", "unit.*/, "", card) }
}

function row(target, asked, number, unit, is_ok) {
  if (number == "")
    printf "%-44s %-12s %14s\n", target, asked, "not measured"
  else
    printf "%-44s %-12s %8.4g %-5s  %s\n", target, asked, number, unit, is_ok ? "ok" : "MISSED"
}
function least(target, bound, unit, number) {
  row(target, ">= " bound " " unit, number, unit, number + 0 >= bound)
}
function most(target, bound, unit, number) {
  row(target, "<= " bound " " unit, number, unit, number + 0 <= bound)
}
# Nothing, where one of both is not known.
function over(a, b) { return a == "" || b == "" || b == 0 ? "" : a / b }
function times(a, b) { return a == "" || b == "" ? "" : a * b }
function smaller(a, b) { return a == "" || (b != "" && b + 0 < a + 0) ? b : a }
function best_16_bits(shape) {
  return smaller(value["attend/k16v16/" shape], smaller(value["prefill/k16v16/" shape],
                 smaller(value["sdpa-flash/bf16/" shape], value["sdpa-cudnn/bf16/" shape])))
}

END {
  sold = card ~ /H100/ ? 3350 : 4800
  heads = "32x8/"
  printf "\n%s, of %.2f TB/s\n", card == "" ? "no figures" : card, sold / 1000
  printf "%-44s %-12s %s\n", "target", "asked", "measured"

  large = heads "batch:16/tokens:32768/"
  split("k4v2 80 k4v4 80 k8v8 80 k2v2 65 k16v16 80", shares, " ")
  for (i = 1; i < 10; i += 2)
    least("decode " shares[i] " 16 x 32K, of the bandwidth", shares[i + 1], "%",
          times(100 / sold, value["attend/" shares[i] "/" large "rate"]))
  most("decode k4v2 16 x 32K", 118, "us", value["attend/k4v2/" large "time"])
  alone = value["sdpa-flash/bf16/" large "time"] value["sdpa-cudnn/bf16/" large "time"] == "" ? ", ours" : ""
  least("decode k4v2 16 x 32K, best 16 bits" alone, 4.3, "x",
        over(best_16_bits(large "time"), value["attend/k4v2/" large "time"]))
  count = split("k4v2 k4v4 k8v8 k2v2 k16v16", recipes, " ")
  for (i = 1; i <= count; ++i) {
    alone = "attend/" recipes[i] "/" heads "batch:1/tokens:"
    most("decode " recipes[i] " 1 x 32K over its bytes' time", 2, "x",
         over(sold, value[alone "32768/rate"]))
    most("decode " recipes[i] " 1 x 1K", 8, "us", value[alone "1024/time"])
  }
  for (i = 1; i <= count; ++i)
    most("decode " recipes[i] " 16 x 32K, error (attend_error)", 0.002, "",
         value["attend/" recipes[i] "/" large "error"])
  chunk = heads "batch:1/chunk:512/past:32768/time"
  most("prefill k4v2 512 on 32K over best 16 bits", 1, "x",
       over(value["prefill/k4v2/" chunk], best_16_bits(chunk)))

  count = split("k4v2 k4v4 k8v8 k16v16", recipes, " ")
  for (i = 1; i <= count; ++i) {
    least("pack " recipes[i] " 32K, of copying", 70, "%", value["pack/" recipes[i] "/of_copy"])
    least("unpack " recipes[i] " 32K, of copying", 75, "%", value["unpack/" recipes[i] "/of_copy"])
    step = "append/" recipes[i] "/batch:64/"
    most("append " recipes[i] " of 64, mean", 6, "us", value[step "mean"])
    if (value[step "worst"] != "")
      printf "%-44s %-12s %8.4g us\n", "  worst step", "", value[step "worst"]
    one = value["append/" recipes[i] "/batch:1/mean"]
    launch = value["launch.graph64_per_node"]
    most("append " recipes[i] " of 1, over an empty launch", 3, "us",
         one == "" || launch == "" ? "" : one - launch)
    # The driver gives memory out in pieces of 2 MiB.
    taken = value["memory/" recipes[i] "/taken"]
    planned = value["memory/" recipes[i] "/planned"]
    more = taken == "" || planned == "" ? "" : taken - planned
    row("memory of a " recipes[i] " cache over its plan", "< 2 MiB", over(more, 2 ^ 20), "MiB",
        more >= 0 && more < 2 ^ 21)
  }
}
