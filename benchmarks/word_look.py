"""Pixels that look at the words of a sentence: the model's attention (`scaled_dot_product_attention` between two projections of every pixel) against `WordLook`, which multiplies the
projections into the words beforehand, in turns in one process.

python benchmarks/word_look.py    writes benchmarks/word_look.json beside itself (with a GPU: word_look.cuda.json).
"""
import os

import torch
from timing import exact_float32, in_turns, machine, ratio, write
from torch import Tensor

from fsrvos.models.fusion import Attention, sine_positions_1d
from fsrvos.models.inference import WordLook

CASES = {  # pixels, width, heads, words
    "paper's size, the pixels of a frame of 360x640 at stride 8": (3600, 256, 8, 12),
}
PLAIN, OURS, PREPARED = "attention", "WordLook", "WordLook, made for the sentence"


def inputs(pixels: int, width: int, heads: int, words: int, device: str = "cpu") -> tuple[Attention, Tensor, Tensor]:
    "A random attention, pixels [1, P, C] and words [1, L, C], the same every time."
    torch.manual_seed(0)
    attention = Attention(width, heads)
    torch.nn.init.normal_(attention.in_proj_bias)    # zero in a new one
    return attention.to(device), torch.randn(1, pixels, width).to(device), torch.randn(1, words, width).to(device)


def attended(attention: Attention, pixels: Tensor, words: Tensor) -> Tensor:
    "As `WordFusion` asks, before it gates."
    there = torch.ones(words.shape[:2], dtype=torch.bool, device=words.device)
    return attention(pixels, words + sine_positions_1d(there, words.shape[-1]), words, there)


@torch.no_grad()
def compare(*sizes: int, device: str = "cpu", turns: int = 9) -> dict:
    "Times, ratios, and how far each way is from float64, as a share of its largest number."
    attention, pixels, words = inputs(*sizes, device=device)
    look = WordLook.of(attention, words)
    calls = {PLAIN: lambda: attended(attention, pixels, words), OURS: lambda: WordLook.of(attention, words)(pixels), PREPARED: lambda: look(pixels)}
    times, results = in_turns(calls, turns, device=device), {name: call() for name, call in calls.items()}
    exact = attended(attention.double(), pixels.double(), words.double())
    apart = {f"output, largest difference, {name}": float((x - exact).abs().max() / exact.abs().max()) for name, x in results.items()}
    return times | {f"ratio {way} to {PLAIN}": ratio(times, PLAIN, way) for way in (OURS, PREPARED)} | apart


def main() -> None:
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    exact_float32()
    report = {"machine": machine(device=device), "cases": {name: compare(*case, device=device) for name, case in CASES.items()}}
    print(write(__file__, report))
    for name, row in report["cases"].items():
        print(name, {k: v for k, v in row.items() if not isinstance(v, dict)})


if __name__ == "__main__":
    main()
