"""The Triton programs of deformable sampling; `deformable_triton.py` launches them.

A program computes ROWS rows, a row being one query of one head of one clip. Its CHANNELS lie side by side in memory, so a tile [ROWS, LANES] reads each corner of a sample in
whole cache lines; LANES is CHANNELS rounded up to a power of two, the rest is masked. Sums are kept in EXACT, float32 for whatever half precision comes in.
"""
import triton
import triton.language as tl
from triton import knobs

# The interpreter has no clock to tune by, and is quickest with few large programs.
CONFIGS = [triton.Config({"ROWS": 64})] if knobs.runtime.interpret else [
    triton.Config({"ROWS": rows}, num_warps=warps) for rows, warps in ((8, 1), (16, 2), (16, 4), (32, 4), (64, 4), (64, 8))]
KEY = ["HEADS", "CHANNELS", "LEVELS", "POINTS", "MANY"]


@triton.jit
def _locate(locations, sample, seen, width, height, EXACT: tl.constexpr):
    "Of each sample: column and row of the pixel before it, how far past that pixel's centre it lies, and whether any of its four corners is in the level."
    x = tl.load(locations + 2 * sample, mask=seen, other=0).to(EXACT) * width - .5
    y = tl.load(locations + 2 * sample + 1, mask=seen, other=0).to(EXACT) * height - .5
    near = seen & (x >= -1) & (y >= -1) & (x < width) & (y < height)  # false for NaN, too
    x, y = tl.where(near, x, 0), tl.where(near, y, 0)               # what is far away need not fit an integer
    left, top = tl.floor(x), tl.floor(y)
    return left.to(tl.int32), top.to(tl.int32), x - left, y - top, near


@triton.jit
def _corner(left, top, fx, fy, near, width, height, CORNER: tl.constexpr):
    "One of the four pixels around each sample: its place in the level, whether it is in it, its bilinear share."
    x, y = left + CORNER % 2, top + CORNER // 2
    inside = near & (x >= 0) & (y >= 0) & (x < width) & (y < height)
    share = (fx if CORNER % 2 else 1 - fx) * (fy if CORNER // 2 else 1 - fy)
    return y * width + x, inside, share


@triton.jit
def _rows(rows, queries, pixels, HEADS: tl.constexpr, CHANNELS: tl.constexpr, ROWS: tl.constexpr):
    "This program's rows, which of them exist, and where in `value` the first pixel of each one's clip and head begins."
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    return row.to(tl.int64), row < rows, ((row // HEADS // queries).to(tl.int64) * pixels * HEADS + row % HEADS) * CHANNELS


@triton.autotune(CONFIGS, KEY)
@triton.jit
def forward(value, locations, weights, out, sizes, rows, queries, pixels, HEADS: tl.constexpr, CHANNELS: tl.constexpr, LEVELS: tl.constexpr, POINTS: tl.constexpr,
            MANY: tl.constexpr, EXACT: tl.constexpr, LANES: tl.constexpr, ROWS: tl.constexpr):
    row, seen, source = _rows(rows, queries, pixels, HEADS, CHANNELS, ROWS)
    channel = tl.arange(0, LANES)
    total = tl.zeros([ROWS, LANES], EXACT)
    for level in range(LEVELS):  # a loop that stays one, or the compiler works for minutes
        height, width = tl.load(sizes + 2 * level), tl.load(sizes + 2 * level + 1)
        for point in tl.static_range(POINTS):
            sample = (row * LEVELS + level) * POINTS + point
            left, top, fx, fy, near = _locate(locations, sample, seen, width, height, EXACT)
            weight = tl.load(weights + sample, mask=seen, other=0).to(EXACT)
            for corner in tl.static_range(4):
                pixel, inside, share = _corner(left, top, fx, fy, near, width, height, corner)
                at = (source + pixel * HEADS * CHANNELS)[:, None] + channel
                vector = tl.load(value + at, mask=inside[:, None] & (channel < CHANNELS), other=0).to(EXACT)
                total += (weight * share)[:, None] * vector
        source += height * width * HEADS * CHANNELS
    tl.store(out + row[:, None] * CHANNELS + channel, total, mask=seen[:, None] & (channel < CHANNELS))


@triton.autotune(CONFIGS, KEY, reset_to_zero=["grad_value"])
@triton.jit
def backward(grad, value, locations, weights, grad_value, grad_locations, grad_weights, sizes, rows, queries, pixels, HEADS: tl.constexpr, CHANNELS: tl.constexpr,
             LEVELS: tl.constexpr, POINTS: tl.constexpr, MANY: tl.constexpr, EXACT: tl.constexpr, LANES: tl.constexpr, ROWS: tl.constexpr):
    "grad_value is in EXACT and zero: many samples add to a pixel, atomically, which half precision neither holds nor everywhere can."
    row, seen, source = _rows(rows, queries, pixels, HEADS, CHANNELS, ROWS)
    channel = tl.arange(0, LANES)
    way = tl.load(grad + row[:, None] * CHANNELS + channel, mask=seen[:, None] & (channel < CHANNELS), other=0).to(EXACT)
    for level in range(LEVELS):  # a loop that stays one, or the compiler works for minutes
        height, width = tl.load(sizes + 2 * level), tl.load(sizes + 2 * level + 1)
        for point in tl.static_range(POINTS):
            sample = (row * LEVELS + level) * POINTS + point
            left, top, fx, fy, near = _locate(locations, sample, seen, width, height, EXACT)
            weight = tl.load(weights + sample, mask=seen, other=0).to(EXACT)
            by_weight, by_x, by_y = tl.zeros([ROWS], EXACT), tl.zeros([ROWS], EXACT), tl.zeros([ROWS], EXACT)
            for corner in tl.static_range(4):
                pixel, inside, share = _corner(left, top, fx, fy, near, width, height, corner)
                at = (source + pixel * HEADS * CHANNELS)[:, None] + channel
                there = inside[:, None] & (channel < CHANNELS)
                along = tl.sum(way * tl.load(value + at, mask=there, other=0).to(EXACT), 1)  # the gradient's component along this corner's pixel
                tl.atomic_add(grad_value + at, (weight * share)[:, None] * way, mask=there, sem="relaxed")
                by_weight += share * along
                by_x += (along if corner % 2 else -along) * (fy if corner // 2 else 1 - fy)
                by_y += (along if corner // 2 else -along) * (fx if corner % 2 else 1 - fx)
            tl.store(grad_weights + sample, by_weight, mask=seen)
            tl.store(grad_locations + 2 * sample, weight * width * by_x, mask=seen)
            tl.store(grad_locations + 2 * sample + 1, weight * height * by_y, mask=seen)
        source += height * width * HEADS * CHANNELS
