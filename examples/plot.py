#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Draws what `evaluate --json` and `plan --json` wrote.

    plot.py curves  rows.json... --out curves.svg   KL divergence over page bits, recipes and plans
    plot.py heatmap rows.json    --out heatmap.svg  KL divergence of k1v1 to k8v8
    plot.py layers  plan.json    --out layers.svg   norms, and the bits that a plan gives each layer
"""
import argparse
import json
import math
import re
import sys

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt  # noqa: E402

# Okabe and Ito's colours, which the colour-blind tell apart.
ORANGE, BLUE, GREEN, VERMILION, GREY = "#E69F00", "#0072B2", "#009E73", "#D55E00", "#777777"

plt.rcParams.update(
    {
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "svg.fonttype": "none",
        "svg.hashsalt": "kvtilt",
        "figure.facecolor": "white",
    }
)


def read(path):
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {path}: {error}")


def save(figure, path):
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None})


def widths(name):
    """(key bits, value bits) of a plain recipe name such as k4v2, else None."""
    match = re.fullmatch(r"k([1-8])v([1-8])", name)
    return (int(match[1]), int(match[2])) if match else None


def frontier(rows):
    """The rows that no other row beats in both size and divergence, by size."""
    best, kept = math.inf, []
    for row in sorted(rows, key=lambda row: (row["page_bits"], row["kld_mean"])):
        if row["kld_mean"] < best:
            best = row["kld_mean"]
            kept.append(row)
    return kept


def curves(rows, path, title):
    rows = [row for row in rows if row["kld_mean"] > 0 and row["page_bits"] <= 8.6]
    rows.sort(key=lambda row: row["page_bits"])
    plans = [row for row in rows if row["recipe"].startswith("plan")]
    recipes = [row for row in rows if not row["recipe"].startswith("plan")]
    figure, axes = plt.subplots(figsize=(6.2, 4.0))
    for label, colour, marker, chosen in (
        ("keys wider", BLUE, "o", lambda w: w[0] > w[1]),
        ("keys and values alike", GREY, "s", lambda w: w[0] == w[1]),
        ("values wider", ORANGE, "v", lambda w: w[0] < w[1]),
    ):
        some = [r for r in recipes if widths(r["recipe"]) and chosen(widths(r["recipe"]))]
        axes.scatter(
            [r["page_bits"] for r in some],
            [r["kld_mean"] for r in some],
            s=16,
            color=colour,
            marker=marker,
            alpha=0.75,
            linewidths=0,
            label=f"one recipe, {label}",
        )
    best = frontier(recipes)
    axes.plot(
        [r["page_bits"] for r in best],
        [r["kld_mean"] for r in best],
        color=GREY,
        linewidth=1,
        label="the best of them, any group and range rule",
    )
    if plans:
        axes.plot(
            [r["page_bits"] for r in plans],
            [r["kld_mean"] for r in plans],
            color=VERMILION,
            marker="D",
            markersize=5,
            linewidth=1.5,
            label="plan, measured",
        )
    axes.set_yscale("log")
    axes.set_xlabel("page bits per number (scales and minima included)")
    axes.set_ylabel("mean KL divergence from 16 bits, nats")
    axes.set_title(title, fontsize=9, loc="left")
    axes.grid(which="major", color="#e4e4e4", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.legend(frameon=False, fontsize=8)
    save(figure, path)


def heatmap(rows, path, title):
    table = {widths(row["recipe"]): row["kld_mean"] for row in rows if widths(row["recipe"])}
    if not table:
        sys.exit("error: no recipe from k1v1 to k8v8 in the file")
    side = range(1, 9)
    values = [[math.log10(max(table.get((k, v), math.nan), 1e-12)) for v in side] for k in side]
    figure, axes = plt.subplots(figsize=(5.4, 4.4))
    image = axes.imshow(values, origin="lower", cmap="viridis_r", aspect="auto")
    dark = sum(image.get_clim()) / 2
    for k in side:
        for v in side:
            if (k, v) in table:
                axes.text(
                    v - 1,
                    k - 1,
                    f"{table[k, v]:.0e}".replace("e-0", "e-"),
                    ha="center",
                    va="center",
                    fontsize=7,
                    color="white" if values[k - 1][v - 1] > dark else "black",
                )
    for i in range(8):  # where keys and values have the same width
        axes.add_patch(plt.Rectangle((i - 0.5, i - 0.5), 1, 1, fill=False, edgecolor="white"))
    axes.set_xticks(range(8), [str(i) for i in side])
    axes.set_yticks(range(8), [str(i) for i in side])
    axes.set_xlabel("bits of values")
    axes.set_ylabel("bits of keys")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(title, fontsize=9, loc="left")
    bar = figure.colorbar(image, ax=axes, pad=0.02)
    bar.set_label("log10 of the mean KL divergence, nats")
    bar.outline.set_visible(False)
    save(figure, path)


def layers(plans, path, title):
    plan = plans[len(plans) // 2]
    rows = [row for row in plan["layers"] if "key_bits" in row]
    x = [row["layer"] for row in rows]
    with_norms = all("w_k" in row for row in rows)
    height = 4.4 if with_norms else 2.4
    figure, parts = plt.subplots(
        2 if with_norms else 1, 1, figsize=(6.2, height), sharex=True, squeeze=False
    )
    parts = [part[0] for part in parts]
    if with_norms:
        for tensor, colour in (("w_k", BLUE), ("w_v", ORANGE)):
            for norm, style in (("frobenius", "-"), ("spectral", "--")):
                parts[0].plot(
                    x,
                    [row[tensor][norm] for row in rows],
                    style,
                    color=colour,
                    marker="o",
                    markersize=3,
                    label=f"{tensor.upper()}, {'Frobenius' if norm == 'frobenius' else norm}",
                )
        parts[0].set_ylabel("norm of the weights")
        top = max(row[tensor]["frobenius"] for row in rows for tensor in ("w_k", "w_v"))
        parts[0].set_ylim(0, 1.45 * top)
        parts[0].legend(frameon=False, fontsize=8, ncols=2, loc="upper right")
    for name, colour, shift in (("key_bits", BLUE, -0.2), ("value_bits", ORANGE, 0.2)):
        parts[-1].bar(
            [i + shift for i in x],
            [row[name] for row in rows],
            width=0.38,
            color=colour,
            label="keys" if name == "key_bits" else "values",
        )
    parts[-1].set_ylabel(f"bits in the plan of\n{plan['budget']:g} page bits")
    parts[-1].set_xlabel("layer")
    parts[-1].set_ylim(top=1.3 * max(max(row["key_bits"], row["value_bits"]) for row in rows))
    parts[-1].legend(frameon=False, fontsize=8, ncols=2, loc="upper right")
    if len(x) <= 40:
        parts[-1].set_xticks(x)
    for part in parts:
        part.grid(axis="y", color="#e4e4e4", linewidth=0.6)
        part.set_axisbelow(True)
    parts[0].set_title(title, fontsize=9, loc="left")
    save(figure, path)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("kind", choices=["curves", "heatmap", "layers"])
    parser.add_argument("files", nargs="+")
    parser.add_argument("--out", required=True)
    parser.add_argument("--title", default="")
    arguments = parser.parse_args()
    rows = [row for path in arguments.files for row in read(path)]
    if arguments.kind != "layers":  # a recipe in several files counts as in the last
        rows = list({row["recipe"]: row for row in rows}.values())
    {"curves": curves, "heatmap": heatmap, "layers": layers}[arguments.kind](
        rows, arguments.out, arguments.title
    )


if __name__ == "__main__":
    main()
