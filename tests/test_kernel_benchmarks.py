"The benchmarks of the kernels on tiny sizes: that they compare like with like and count right, never how long it takes."
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fsrvos.models.deformable import sample_levels

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
TINY = ([(5, 7), (3, 2)], 2, 2, 8)


@pytest.fixture
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import deformable_sampling
    import roofline
    yield deformable_sampling, roofline
    for name in ("deformable_sampling", "feed_forward", "measures", "roofline", "timing"):
        sys.modules.pop(name)


def test_all_ways_of_sampling_agree(scripts):
    sampling, _ = scripts
    row = sampling.compare(*TINY, turns=1)
    assert {f"{name} {part}" for name in ("plain", "transformers", *sampling.kernels("cpu")) for part in ("forward", "forward and backward")} <= set(row)
    differences = {name: value for name, value in row.items() if "differ" in name}
    assert differences and max(differences.values()) < 1e-5
    out, *gradients = sampling.both(sample_levels, TINY[0], tensors := sampling.inputs(*TINY))
    wrong = sampling.differences((out * 1.01, *gradients), (out, *gradients))
    assert wrong["output, largest difference"] == pytest.approx(.01, rel=1e-3) and [g.shape for g in gradients] == [x.shape for x in tensors]


def test_two_threads_are_for_the_plain_version_too(scripts, monkeypatch):
    sampling, before, seen = scripts[0], torch.get_num_threads(), []
    monkeypatch.setattr(sampling, "CASES", {"small": TINY, "large": TINY})
    monkeypatch.setattr(sampling, "sample_levels", lambda *a: (seen.append(torch.get_num_threads()), sample_levels(*a))[1])
    monkeypatch.setattr(sampling.os, "cpu_count", lambda: 2)
    (name, row), = sampling.on_two_threads(turns=1).items()
    assert name == "large, 2 threads" and not any("transformers" in key for key in row) and set(seen) == {2} and torch.get_num_threads() == before
    monkeypatch.setattr(sampling.os, "cpu_count", lambda: 1)
    assert sampling.on_two_threads() == {}
    with pytest.raises(KeyError), sampling.threads(2):
        raise KeyError
    assert torch.get_num_threads() == before


def test_the_gathered_rows_are_the_samples_corners(scripts):
    "With each corner's bilinear share, `embedding_bag` over them is deformable sampling (locations inside of every level: no corner is outside)."
    _, roofline = scripts
    shapes = [(5, 7), (3, 4)]
    value, locations, weights = (x.detach() for x in scripts[0].inputs(shapes, 2, 3, 8))
    locations = .25 + .5 * locations.clamp(0, 1)
    shares = []
    for (h, w), places, weight in zip(shapes, locations.unbind(3), weights.unbind(3)):
        fx, fy = (places * torch.tensor((w, h)) - .5).frac().unbind(-1)
        shares += [(fx if c % 2 else 1 - fx) * (fy if c // 2 else 1 - fy) * weight for c in range(4)]
    rows = roofline.corner_rows(shapes, locations)
    out = torch.nn.functional.embedding_bag(rows, value.flatten(0, 2), mode="sum", per_sample_weights=torch.cat(shares, -1).flatten(0, 2))
    torch.testing.assert_close(out.view(2, -1, 24), sample_levels(value, shapes, locations, weights), atol=1e-5, rtol=1e-5)


def test_counts(scripts):
    "Operations of the convolution, the attention and the mask head as PyTorch's own counter has them; bytes by hand."
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode
    _, roofline = scripts
    made = {**roofline.mask_head("cpu", 2, 16, 3, (6, 7)), **roofline.drawing("cpu", 2, 32, 3, (6, 7)), **roofline.affinity(torch.float32, "cpu", 2, 16, (4, 5)), **roofline.convolution(torch.float32, "cpu", 2, 16, (6, 7))}
    for name, part in made.items():
        with FlopCounterMode(display=False) as counted, sdpa_kernel(SDPBackend.MATH):  # the counter knows matrix products, not the fused attention
            part.call()
        none_s = {"dynamic mask head": 2 * 2 * 3 * 8 * 2, "masks as drawn in inference": 2 * 2 * 3 * 8 * (2 + 32)}  # the shift by the centres, [8, 2] x [2] a query, and the features' bias, [8, 32] x [32]
        known = counted.get_total_flops() - none_s.get(name, 0)
        assert part.operations == pytest.approx(known, rel=.01), name
    drawn = made["masks as drawn in inference"]
    assert drawn.call().shape == (2, 3, 6, 7)
    assert drawn.moved == 4 * (2 * 32 * 42 + 2 * 3 * (35 * 8 + 9 * 8 + 9) + 2 * 3 * 2 + 32 * 32 * 9 + 32 + 2 * 3 * 42)
    assert made["affinity attention"].moved == 4 * 8 * (40 + 20 + 20 + 40) and made["3x3 convolution of the pyramid"].moved == 4 * (2 * 2 * 16 * 42 + 16 * 16 * 9)
    forward, whole = roofline.sampling(torch.float32, "cpu", *TINY).values()
    samples = 2 * 41 * 2 * 2 * 4
    assert forward.operations == samples * 4 * 8 * 2 and forward.gathered == samples * 4 * 8 * 4 and whole.operations == 3 * forward.operations
    assert forward.moved == 4 * (2 * 41 * 16 + samples * 3 + 2 * 41 * 16) and whole.moved > 2 * forward.moved


def test_words_are_counted_as_the_kernel_does_them(scripts):
    "Two squares of 10 pixels in a frame of 3 words a row: by hand, with a disk of radius 2 (it reaches 2, 1 and 0 to the sides: two steps), outlines in rows 19 to 29 of 40."
    _, roofline = scripts
    masks = np.zeros((2, 40, 150), bool)
    masks[:, 20:30, 70:80] = True
    around = [min(r, 2) + min(39 - r, 2) + 2 for r in range(19, 30)]                     # rows that each is added to; the middle one twice
    assert roofline.word_operations(masks, 2) == 2 * (17 * 40 * 3 + sum(3 * (8 * 2 + rows) for rows in around))
    masks[1, 20:30, 70:80], masks[1, 0:10, 2:12] = False, True                          # in the first word, so the margin has one side; near the upper edge
    around = [min(r, 2) + min(39 - r, 2) + 2 for r in range(0, 10)]
    assert roofline.word_operations(masks[1:], 2) == 17 * 40 * 3 + sum(2 * (8 * 2 + rows) for rows in around)


def test_parts_that_ship(scripts):
    "J and F of a small clip, feed-forward layers: what they call is the kernel, bytes and operations are the formula's."
    _, roofline = scripts
    for part in roofline.contour(3, (48, 86), 12).values():
        counts = part.call()
        assert counts.shape == (3, 6) and (counts > 0).all() and part.moved == 2 * 3 * 48 * 86 and part.arithmetic == roofline.WORDS
    for part in roofline.feed_forward(70, 256, 512).values():
        assert part.call().shape == (70, 256) and part.operations == 2 * 2 * 70 * 256 * 512 and part.arithmetic == roofline.TILES
    assert roofline.ceiling_of_words(8, 3)[roofline.WORDS].operations == 24 and roofline.ceiling_of_tiles(4)[roofline.TILES].operations == 2 * 64 // 3


def test_what_is_measured_in_which_numbers(scripts, monkeypatch):
    "Masks are drawn in float32 always; bits and tiles are a processor's; a processor's bfloat16 is its kernel's alone."
    _, roofline = scripts
    for name in ("sampling", "mask_head", "drawing", "affinity", "convolution", "contour", "feed_forward"):
        monkeypatch.setattr(roofline, name, lambda *a, name=name: {name: roofline.Part(lambda: None, 1, 1, arithmetic={"contour": roofline.WORDS, "feed_forward": roofline.TILES}.get(name, roofline.PRODUCT))})
    names = lambda *a: set(roofline.parts(*a))
    common, drawn = {"sampling", "affinity", "convolution"}, {"mask_head", "drawing"}
    assert names("float32", "cpu") == common | drawn | {"contour", "feed_forward"} and names("bfloat16", "cpu") == {"sampling"}
    assert names("float32", "cuda") == common | drawn and names("bfloat16", "cuda") == common and roofline.kinds("cuda") == ("float32", "bfloat16")
    monkeypatch.setattr(roofline, "kernels", lambda device: {})
    assert roofline.kinds("cpu") == ("float32",)
    asked = {}
    monkeypatch.setattr(roofline, "ceilings", lambda dtype, device, **size: asked.update(dtype=dtype, **size) or {})
    monkeypatch.setattr(roofline, "gathering", lambda dtype, device: {})
    assert set(roofline.limits("float32", "cpu", roofline.parts("float32", "cpu"))) == {roofline.TILES, roofline.WORDS} and asked == {"dtype": torch.float32}
    assert roofline.limits("bfloat16", "cuda", {}) == {} and asked == {"dtype": torch.bfloat16, "megabytes": 2048, "side": 8192}


def test_float32_is_no_tf32_on_a_gpu(scripts, monkeypatch, capsys):
    "A GPU that is not there: what runs is replaced; the report names the device, and both kinds of number were measured with TF32 off."
    _, roofline = scripts
    seen, written = [], []
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True), monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    monkeypatch.setattr(roofline, "parts", lambda kind, device: {"part": (kind, device)}), monkeypatch.setattr(roofline, "limits", lambda kind, device, work: {})
    monkeypatch.setattr(roofline, "measured", lambda limits, work, turns: seen.append((work["part"], torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)) or ({}, {"part": {}}))
    monkeypatch.setattr(roofline, "write", lambda script, report: written.append(report) or Path(script).with_suffix(".cuda.json"))
    monkeypatch.setattr(roofline, "draw", lambda report, path: None)
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None), monkeypatch.setattr(torch, "manual_seed", lambda seed: None)
    roofline.main()
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
    assert seen == [((kind, "cuda"), False, False) for kind in ("float32", "bfloat16")]
    assert written[0]["machine"]["device"] == "a GPU" and set(written[0]["cases"]) == {"part, float32", "part, bfloat16"}


def test_a_part_is_held_against_its_own_arithmetic(scripts):
    "The faster of two libraries' products is the ceiling of those; words have theirs."
    _, roofline = scripts
    limits = {name: roofline.Part(lambda: None, 100, 10 ** 12, 10, name) for name in (roofline.COPY, roofline.TRIAD, roofline.GATHER, roofline.PRODUCT, roofline.CONVOLVED, roofline.WORDS)}
    work = {"a product": roofline.Part(lambda: None, 10, 1), "words": roofline.Part(lambda: None, 10, 1, arithmetic=roofline.WORDS)}
    times = {roofline.PRODUCT: 2.0, roofline.CONVOLVED: 1.0, roofline.WORDS: 4.0}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(roofline, "in_turns", lambda ways, turns: {name: {"least_ms": 1e3 * times.get(name, 1.0)} for name in ways})
        roof, rows = roofline.measured(limits, work, 1)
    assert rows["a product"]["share of the bound reached"] == .1 and rows["words"]["share of the bound reached"] == .4
    assert {f"{roofline.PRODUCT}, GFLOP/s", f"{roofline.CONVOLVED}, GFLOP/s", f"{roofline.WORDS}, Gop/s"} <= set(roof)


def test_the_bound_is_the_least(scripts):
    _, roofline = scripts
    part = roofline.Part(lambda: None, 80, 10, 40)
    assert roofline.judged(part, 1e-9, 5e9, 100e9, 1e12)["bound"] == "memory"
    assert roofline.judged(part, 1e-9, 50e9, 100e9, 1e12)["bound"] == "arithmetic"
    row = roofline.judged(part, 4e-9, 50e9, 100e9, 20e9)
    assert (row["bound"], row["bound, GFLOP/s"], row["share of the bound reached"]) == ("gather", 40, .5)


def test_all_ways_of_a_feed_forward_layer_agree(monkeypatch):
    from fsrvos.kernels.feed_forward import cpu_kernel
    if cpu_kernel() is None:
        pytest.skip("no matrix tiles here: PyTorch's own operations run")
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import feed_forward
    row = feed_forward.compare(70, 32, 100, turns=1)
    differences = [value for name, value in row.items() if "differ" in name]
    assert len(differences) == 3 and max(differences) < 1e-5 and row["ratio matrix tiles to plain"] > 0


def test_all_ways_of_looking_at_words_agree(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import word_look
    row = word_look.compare(30, 32, 4, 5, turns=1)
    differences = [value for name, value in row.items() if "differ" in name]
    assert len(differences) == 3 and max(differences) < 1e-5
    assert all(row[f"ratio {way} to {word_look.PLAIN}"] > 0 for way in (word_look.OURS, word_look.PREPARED))


@pytest.mark.parametrize("name", ["deformable_sampling", "roofline"])
def test_the_report_is_one_of_this_script(scripts, name, tmp_path):
    "Every case of the script is in the committed report, and the picture can be drawn of it."
    sampling, roofline = scripts
    report = json.loads((BENCHMARKS / f"{name}.json").read_text())
    assert {"processor", "threads", "torch"} <= set(report["machine"])
    if name == "deformable_sampling":
        assert set(report["cases"]) >= set(sampling.CASES)
        assert all(report["cases"][case][f"C++: {part}, largest difference"] < 1e-5 for case in sampling.CASES for part in ("output", "gradient of values", "gradient of weights"))
    else:
        import matplotlib.pyplot as plt
        plt.close(roofline.draw(report, tmp_path / "roofline.png"))
        assert (tmp_path / "roofline.png").stat().st_size > 10_000
        assert all(0 < row["share of the bound reached"] < 1.5 for row in report["cases"].values())
