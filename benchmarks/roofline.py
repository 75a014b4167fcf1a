"""How near the heavy parts come to what this machine can do: bytes and operations of each at the paper's size, and the ceilings of memory and arithmetic measured beside them.

python benchmarks/roofline.py    writes benchmarks/roofline.json beside itself (with a GPU: roofline.cuda.json).

Bytes are those that no implementation can avoid: each input is read once, each output written once. Operations are multiplications and additions of the formula. What a part can
reach is then the lesser of the arithmetic's ceiling and (operations a byte) x (the memory's ceiling); the share reached says what is left. A part that gathers reads the same
memory many times from cache: for it there is a third ceiling, how fast PyTorch's `embedding_bag` sums the same vectors when it is told beforehand which.

A part is held against the arithmetic that it uses: of most the matrix product in the type of number that the case names, by whichever of PyTorch's two libraries is faster at it on a processor; where three products of halves stand for one, a third of bfloat16's;
of J and F, which know bits only, how many 64-bit words a second NumPy's `bitwise_and` makes of words in the cache (operations are then those on words).

On a GPU float32 means float32 (TF32 is off). J and F, and the feed-forward layers on matrix tiles, are for processors only; the masks are drawn in float32 always, so they stand under float32 only.
In bfloat16 a processor is measured at sampling alone, whose kernel adds up in float32: against the product in float32.
"""
import os
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from deformable_sampling import CASES, both, inputs, kernels
from feed_forward import CASES as LAYERS, layers
from measures import FRAMES as CLIP, HEIGHT, WIDTH, moving_object
from timing import exact_float32, in_turns, machine, write
from torch import Tensor, nn

from fsrvos.evaluation.metrics import _halves, boundary_map, tolerance
from fsrvos.kernels.contour import contour_counts
from fsrvos.kernels.feed_forward import cpu_kernel as tiles_kernel, pack
from fsrvos.models.deformable import sample_levels
from fsrvos.models.fusion import attend
from fsrvos.models.inference import draw_masks, linear
from fsrvos.models.mask_decoder import DynamicMaskHead

COPY, TRIAD, PRODUCT, GATHER = "copy", "triad", "matrix product", "gather"
CONVOLVED, TILES, WORDS = "matrix product as a 1x1 convolution", "three matrix products in bfloat16 for one", "bitwise and of 64-bit words"
ARITHMETIC = {PRODUCT: "GFLOP/s", CONVOLVED: "GFLOP/s", TILES: "GFLOP/s", WORDS: "Gop/s"}
LEVELS, FRAMES, HEADS, CHANNELS = CASES["paper's size, 5 frames of 360x640"]
SIZE, QUERIES, STRIDE_4 = 256, 5, (90, 160)    # width of the model, instance queries, size of the mask features


class Part(NamedTuple):
    "Something timed: `call` does `operations`, of those that `arithmetic` names, on `moved` bytes; `gathered`: bytes that it reads or writes one vector here, one there, however often."
    call: Callable[[], object]
    operations: int
    moved: int
    gathered: int = 0
    arithmetic: str = PRODUCT


def bytes_of(*tensors: Tensor) -> int:
    return sum(x.numel() * x.element_size() for x in tensors)


def ceilings(dtype: torch.dtype, device: str, megabytes: int = 256, side: int = 1536) -> dict[str, Part]:
    "Copy and triad (a = b + s c) of arrays that no cache holds; a square matrix product, on a processor by oneDNN, too."
    a, b, c = (torch.ones(megabytes << 18, device=device) for _ in range(3))
    x, y = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    products = {PRODUCT: lambda: x @ y} | ({CONVOLVED: lambda: linear(x, y)} if device == "cpu" else {})
    return {COPY: Part(lambda: a.copy_(b), 0, bytes_of(a, b)), TRIAD: Part(lambda: torch.add(b, c, alpha=3, out=a), 2 * a.numel(), bytes_of(a, b, c)),
            **{name: Part(call, 2 * side ** 3, 3 * bytes_of(x)) for name, call in products.items()}}


def ceiling_of_tiles(side: int = 1536) -> dict[str, Part]:
    "A square matrix product in bfloat16, three of which stand for one."
    x, y = (torch.randn(side, side).bfloat16() for _ in range(2))
    return {TILES: Part(lambda: x @ y, 2 * side ** 3 // 3, 3 * bytes_of(x), arithmetic=TILES)}


def ceiling_of_words(count: int = 2 ** 14, times: int = 100) -> dict[str, Part]:
    "One operation on words in the cache; so often in a call that NumPy's own overhead is little."
    a, b = (np.random.default_rng(seed).integers(0, 2 ** 63, count, np.uint64) for seed in (0, 1))
    out = np.empty_like(a)
    return {WORDS: Part(lambda: [np.bitwise_and(a, b, out=out) for _ in range(times)], count * times, 3 * a.nbytes * times, arithmetic=WORDS)}


def corner_rows(shapes: list, locations: Tensor) -> Tensor:
    "Locations [B, Q, heads, levels, P, 2] -> [B·Q·heads, levels·P·4] rows of values [B·S·heads, D]; a corner outside of its level becomes the nearest one inside."
    b, _, heads = locations.shape[:3]
    pixels, start, rows = sum(h * w for h, w in shapes), 0, []
    for (h, w), places in zip(shapes, locations.unbind(3)):
        left, top = (places * places.new_tensor((w, h)) - .5).floor().int().unbind(-1)
        for corner in range(4):
            x, y = (left + corner % 2).clamp(0, w - 1), (top + corner // 2).clamp(0, h - 1)
            rows.append(start + y * w + x)
        start += h * w
    clip, head = (torch.arange(n, device=locations.device, dtype=torch.int32) for n in (b, heads))
    return ((clip[:, None, None, None] * pixels + torch.cat(rows, -1)) * heads + head[:, None]).flatten(0, 2)


def gathering(dtype: torch.dtype, device: str, shapes: list = LEVELS, frames: int = FRAMES, heads: int = HEADS, channels: int = CHANNELS) -> dict[str, Part]:
    "The weighted sum of deformable sampling's own vectors, without finding out which: `embedding_bag`."
    value, locations, _ = (x.detach() for x in inputs(shapes, frames, heads, channels, dtype, device))
    table, rows = value.flatten(0, 2), corner_rows(shapes, locations)
    weights = torch.rand(rows.shape, device=device).to(dtype)
    return {GATHER: Part(lambda: F.embedding_bag(rows, table, mode="sum", per_sample_weights=weights), 2 * rows.numel() * channels, bytes_of(table, rows, weights),
                         rows.numel() * channels * value.element_size())}


def sampling(dtype: torch.dtype, device: str, shapes: list = LEVELS, frames: int = FRAMES, heads: int = HEADS, channels: int = CHANNELS) -> dict[str, Part]:
    """Deformable sampling. Forward, each channel of each of a sample's four corners is multiplied and added; backward, once for the gradient of the values and once for the
    corner's share in the other two. The arithmetic on locations, about 30 operations a sample and the same for all channels, is not counted."""
    tensors = inputs(shapes, frames, heads, channels, dtype, device)
    sample = next(iter(kernels(device).values()), sample_levels)
    value, locations, weights = (x.detach() for x in tensors)
    out = sample(value, shapes, locations, weights)
    corners = 4 * weights.numel() * channels
    forward = Part(lambda: sample(value, shapes, locations, weights), 2 * corners, bytes_of(value, locations, weights, out), corners * value.element_size())
    whole = Part(lambda: both(sample, shapes, tensors), 6 * corners, bytes_of(out, out) + 3 * bytes_of(value, locations, weights),
                 4 * corners * value.element_size())    # gathered: the values twice, their gradients read and written
    return {"deformable sampling, forward": forward, "deformable sampling, forward and backward": whole}


def mask_head(device: str, frames: int = FRAMES, size: int = SIZE, queries: int = QUERIES, shape: tuple[int, int] = STRIDE_4) -> dict[str, Part]:
    "The dynamic convolution, in float32 always: (size + 3 ramps) -> 8 -> 8 -> 1 for each query and pixel."
    head = DynamicMaskHead(size).to(device)
    features, kernel, centres = (torch.randn(*s, device=device) for s in ((frames, size, *shape), (frames, queries, head.parameter_count), (frames, queries, 2)))
    pixels = frames * queries * shape[0] * shape[1]
    widths = [size + 3, *(i for _, i in head.shapes[1:])]
    operations = 2 * pixels * sum(i * o for i, (o, _) in zip(widths, head.shapes))
    return {"dynamic mask head": Part(lambda: head(features, kernel, centres), operations, bytes_of(features, kernel, centres) + 4 * pixels)}


def drawing(device: str, frames: int = FRAMES, size: int = SIZE, queries: int = QUERIES, shape: tuple[int, int] = STRIDE_4) -> dict[str, Part]:
    """The masks as inference draws them, in float32 always: the queries' 8 rows each times the weights of the 3x3 convolution that makes the mask features, and the convolution that this gives for
    each frame: so the mask features are never made. Then three ramps, and 8 -> 8 -> 1 for each query and pixel, as in the mask head. The shift by the centres and the biases, counted as no
    pixel's, are left out."""
    head, layer = DynamicMaskHead(size).to(device), nn.Conv2d(size, size, 3, padding=1).to(device)
    y, kernel, centres = (torch.randn(*s, device=device) for s in ((frames, size, *shape), (frames, queries, head.parameter_count), (frames, queries, 2)))
    y, (h, w) = y.to(memory_format=torch.channels_last), shape    # as the pyramid leaves it
    rows, taps = queries * head.shapes[0][0], 9 * size
    operations = 2 * frames * (rows * (size * taps + (taps + 3) * h * w) + queries * h * w * sum(i * o for o, i in head.shapes[1:]))
    return {"masks as drawn in inference": Part(lambda: draw_masks(head, layer, y, kernel, centres), operations, bytes_of(y, kernel, centres, layer.weight, layer.bias) + 4 * frames * queries * h * w)}


def affinity(dtype: torch.dtype, device: str, frames: int = FRAMES, size: int = SIZE, shape: tuple[int, int] = LEVELS[0]) -> dict[str, Part]:
    "Softmax(q k^T) v at half the model's width, all frames' pixels to those of one frame, on the finest level."
    keys = shape[0] * shape[1]
    q, k, v = (torch.randn(1, 1, n, size // 2, device=device).to(dtype) for n in (frames * keys, keys, keys))
    return {"affinity attention": Part(lambda: attend(q, k, v), 4 * q.numel() * keys, bytes_of(q, k, v, q))}


def convolution(dtype: torch.dtype, device: str, frames: int = FRAMES, size: int = SIZE, shape: tuple[int, int] = STRIDE_4) -> dict[str, Part]:
    "The pyramid's 3x3 convolution at stride 4."
    layer, x = nn.Conv2d(size, size, 3, padding=1, bias=False).to(device, dtype), torch.randn(frames, size, *shape, device=device).to(dtype)
    return {"3x3 convolution of the pyramid": Part(lambda: layer(x), 2 * x.numel() * layer.weight[0].numel(), bytes_of(x, x, layer.weight))}


def word_operations(masks: np.ndarray, radius: float) -> int:
    """What `kernels/contour.cpp` does with 64-bit words of masks bool [T, H, W], none empty, each beside another one. A word: 1 to make it of 64 pixels, 11 for the outline (6 for the neighbours to the right and
    below to the right, 5 to compare and join), 5 to count pixels, outline, shared pixels (half of 2) and outline pixels near the other outline (2). A word of a row that has an outline, in the
    columns between its first and last outline pixel and a margin: 8 for each step sideways (4 shifts, 4 joined), 1 for each row around that it is added to."""
    count, height, width = masks.shape
    words, halves = -(-width // 64), _halves(radius)
    outlines = np.pad(boundary_map(masks), ((0, 0), (0, 0), (0, words * 64 - width))).reshape(count, height, words, 64).any(-1)
    first, end, margin = outlines.argmax(-1), words - outlines[..., ::-1].argmax(-1), halves[0] // 64 + 1
    span = np.where(outlines.any(-1), np.minimum(end + margin, words) - np.maximum(first - margin, 0), 0)      # [T, H]
    steps, half = 0, 0
    for wanted in reversed(halves):
        while half < wanted:
            half, steps = half + min(half + 1, wanted - half, 63), steps + 1
    rows, reach = np.arange(height), np.arange(len(halves))[:, None]
    added = (rows - reach >= 0).sum(0) + (rows + reach < height).sum(0)
    return int(17 * count * height * words + (span * (8 * steps + added)).sum())


def contour(frames: int = CLIP, size: tuple[int, int] = (HEIGHT, WIDTH), radius: int = 190) -> dict[str, Part]:
    "J and F of a clip whose large object moves, on bits; bytes are those of the two masks, one a pixel, read once. None where the kernel cannot be built."
    count = contour_counts()
    if count is None:
        return {}
    prediction, truth = moving_object(radius, frames, size)
    near = tolerance(*size)
    return {"J and F of a 480p clip": Part(lambda: count(prediction, truth, _halves(near)), word_operations(prediction, near) + word_operations(truth, near), prediction.nbytes + truth.nbytes,
                                           arithmetic=WORDS)}


def feed_forward(rows: int, width: int, hidden: int) -> dict[str, Part]:
    "Both layers of the encoder, on matrix tiles: operations are those of the formula, in float32. None where there are no tiles."
    kernel = tiles_kernel()
    if kernel is None:
        return {}
    first, second = layers(width, hidden)
    x, packed = torch.randn(rows, width), pack(first.weight, first.bias, second.weight, second.bias)
    return {"feed-forward layers on matrix tiles": Part(lambda: kernel(x, packed), 4 * rows * width * hidden, bytes_of(x, *packed, x), arithmetic=TILES)}


def kinds(device: str) -> tuple[str, ...]:
    "The types of number that are measured: bfloat16 where a kernel knows it."
    return ("float32", "bfloat16") if device == "cuda" or kernels(device) else ("float32",)


def parts(kind: str, device: str) -> dict[str, Part]:
    "What is measured in one type of number; see above."
    dtype, found = getattr(torch, kind), sampling(getattr(torch, kind), device)
    if kind == "float32":
        found |= mask_head(device) | drawing(device)
    if kind == "float32" or device == "cuda":
        found |= affinity(dtype, device) | convolution(dtype, device)
    if kind == "float32" and device == "cpu":
        found |= contour() | feed_forward(*next(iter(LAYERS.values())))
    return found


def limits(kind: str, device: str, work: dict[str, Part]) -> dict[str, Part]:
    "The ceilings that these parts are held against."
    size = {"megabytes": 2048, "side": 8192} if device == "cuda" else {}
    used = {part.arithmetic for part in work.values()}
    found = ceilings(getattr(torch, kind if device == "cuda" else "float32"), device, **size) | gathering(getattr(torch, kind), device)
    return found | (ceiling_of_tiles() if TILES in used else {}) | (ceiling_of_words() if WORDS in used else {})


def measured(limits: dict[str, Part], work: dict[str, Part], turns: int) -> tuple[dict, dict]:
    """-> (ceilings, {part: numbers}). Of every time the least counts: ceilings are what the machine can do at all, and a part's other turns say what else the machine did."""
    with torch.no_grad():
        times = in_turns({name: part.call for name, part in (limits | work).items() if "backward" not in name}, turns)
    times |= in_turns({name: part.call for name, part in work.items() if "backward" in name}, turns)
    second = {name: row["least_ms"] / 1e3 for name, row in times.items()}
    bandwidth = max(limits[name].moved / second[name] for name in (COPY, TRIAD))
    peaks, gather = {name: limits[name].operations / second[name] for name in ARITHMETIC if name in limits}, limits[GATHER].gathered / second[GATHER]
    best = peaks | {PRODUCT: max(peaks[name] for name in (PRODUCT, CONVOLVED) if name in peaks)}
    roof = {f"{name}, GB/s": round(limits[name].moved / second[name] / 1e9, 2) for name in (COPY, TRIAD)}
    roof |= {f"{GATHER}, GB/s": round(gather / 1e9, 2)} | {f"{name}, {ARITHMETIC[name]}": round(peak / 1e9, 1) for name, peak in peaks.items()}
    return roof, {name: times[name] | judged(part, second[name], bandwidth, best[part.arithmetic], gather) for name, part in work.items()}


def judged(part: Part, seconds: float, bandwidth: float, peak: float, gather: float) -> dict:
    "What a part does and reaches, and what bounds it (ceilings in bytes and operations a second)."
    bounds = {"arithmetic": peak, "memory": part.operations / part.moved * bandwidth} | ({GATHER: part.operations / part.gathered * gather} if part.gathered else {})
    bound = min(bounds, key=bounds.get)
    reached = part.operations / seconds
    return {"gigaoperations": round(part.operations / 1e9, 3), "megabytes": round(part.moved / 1e6, 2), "gathered megabytes": round(part.gathered / 1e6, 1),
            "operations a byte": round(part.operations / part.moved, 2), "bound": bound, "bound, GFLOP/s": round(bounds[bound] / 1e9, 2),
            "reached, GFLOP/s": round(reached / 1e9, 2), "share of the bound reached": round(reached / bounds[bound], 3)}


def draw(report: dict, path=None):
    "The roofline picture of a report, one panel a type of number -> matplotlib's figure; saved where a path is given."
    import matplotlib.pyplot as plt
    from matplotlib.ticker import NullFormatter
    kinds = report["ceilings"]
    figure, axes = plt.subplots(1, len(kinds), figsize=(6.4 * len(kinds), 6), squeeze=False, layout="constrained")
    for ax, (kind, roof) in zip(axes[0], kinds.items()):
        bandwidth, peak = max(roof[f"{name}, GB/s"] for name in (COPY, TRIAD)), max(roof[key] for key in (f"{PRODUCT}, GFLOP/s", f"{CONVOLVED}, GFLOP/s") if key in roof)
        rows = {name.removesuffix(f", {kind}"): row for name, row in report["cases"].items() if name.endswith(f", {kind}")}
        ends = [.5 * min(peak / bandwidth, *(r["operations a byte"] for r in rows.values())), 4 * max(peak / bandwidth, *(r["operations a byte"] for r in rows.values()))]
        ax.loglog([ends[0], peak / bandwidth, ends[1]], [ends[0] * bandwidth, peak, peak], color="0.3")
        ax.annotate(f"memory, {bandwidth:.3g} GB/s", (ends[0], ends[0] * bandwidth), (12, -2), textcoords="offset points", fontsize=7, color="0.3")
        ax.annotate(f"arithmetic, {peak:.3g} GFLOP/s", (ends[1], peak), (-4, 4), textcoords="offset points", fontsize=7, color="0.3", ha="right")
        for i, (name, row) in enumerate(rows.items()):
            x, y, bound = row["operations a byte"], row["reached, GFLOP/s"], row["bound, GFLOP/s"]
            ax.plot([x, x], [y, bound], color=f"C{i}", linewidth=1, linestyle=":")
            ax.plot(x, bound, "_", color=f"C{i}", markersize=12)
            ax.plot(x, y, "o", color=f"C{i}", label=f"{name}: {100 * row['share of the bound reached']:.0f} % ({row['bound']})")
        ax.set(xlabel="operations a byte", ylabel="10⁹ operations a second", title=f"{report['machine'].get('device', report['machine'].get('model', report['machine']['processor']))}, {kind}", ylim=(.5 * min(r["reached, GFLOP/s"] for r in rows.values()), 2.5 * peak))
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.legend(fontsize=7, loc="upper left", bbox_to_anchor=(0, -.14), title="share of the bound (dash) reached", title_fontsize=7)
    if path is not None:
        figure.savefig(path, dpi=120)
    return figure


def main(turns: int = 5) -> None:
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    exact_float32()
    report = {"machine": machine(device=device), "ceilings": {}, "cases": {}}
    for kind in kinds(device):
        torch.manual_seed(0)
        work = parts(kind, device)
        report["ceilings"][kind], rows = measured(limits(kind, device, work), work, turns)
        report["cases"] |= {f"{name}, {kind}": row for name, row in rows.items()}
    out = write(__file__, report)
    draw(report, out.with_suffix(".png"))
    for name, row in (report["ceilings"] | report["cases"]).items():
        print(name, {k: v for k, v in row.items() if not isinstance(v, dict)})


if __name__ == "__main__":
    main()
