"""Peak memory and time of `fsrvos segment` against the length of the video, saving the result included: this project, which holds a chunk, against everything kept in memory, in turns, each in a process of its own.

python benchmarks/segment_memory.py    writes benchmarks/segment_memory.json beside itself.

*Everything in memory* is the straightforward way with the same parts: all frames decoded into one array; the features of all of them at once; the same chunks answered from those, with the mask
logits of every sequence and chunk kept as they are; those of the sequences that answer then enlarged for all frames at once; and the result saved from the array of frames and those masks. Only as long as it fits. Peak memory
is the whole process's, with libraries and model; `above_model_mb` is what it is more than when the model was there and had seen its support. Loading these is not in the time. The ways' masks differ at outlines,
as ours keeps logits in sixteenths, cut at 8.
"""
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from timing import machine, ratio, spread, write

LENGTHS, MODELS = (50, 500, 2000), ("fsrvos-demo", "fsrvos-demo-multi")
WHOLE, OURS = "everything in memory", "fsrvos"
COMPARED = LENGTHS[:2]  # where everything fits
TURNS, THREADS = 2, int(os.environ.get("OMP_NUM_THREADS", 1))


def moving(clip, count):
    "`count` frames: a drawn clip to and fro, each time a little further to the side."
    import numpy as np
    there_and_back = [*clip.frames, *clip.frames[-2:0:-1]]
    for t in range(count):
        yield np.roll(there_and_back[t % len(there_and_back)], t // 40, axis=1)


def with_everything(segmenter, video, expression):
    "-> what `segmenter.segment(video, expression)` gives, with all its masks."
    import numpy as np
    import torch
    import torch.nn.functional as F

    from fsrvos.apps.segment import Segmentation
    from fsrvos.data.video import Video
    from fsrvos.models.linking import SequenceLinker
    source = Video(video)
    frames, words = np.stack(list(source)), segmenter._words(expression, "sentence")
    levels, support = segmenter._encode(frames), segmenter.inference.support(*segmenter._support.values())
    step, chunks = segmenter.chunk - segmenter.overlap, []
    for start in range(0, max(len(frames) - segmenter.overlap, 1), step):
        chunks.append((start, segmenter._answer([x[:, start:start + segmenter.chunk] for x in levels], *words, support)))
    linker, tracks = SequenceLinker.of_queries(segmenter.overlap) if segmenter.single else SequenceLinker(segmenter.overlap), {}
    for start, (logits, gates, scores, referring, embeddings, _) in chunks:
        owners = linker.add((logits > 0) & gates[..., None, None], scores, embeddings, referring)
        for owner, maps, gate in zip(owners, logits, gates):
            track = tracks.setdefault(owner, torch.full((len(frames), *maps.shape[1:]), -1.0))
            track[start:start + len(maps)] = maps.where(gate[:, None, None], -1.0)   # in a seam the later chunk speaks
    chosen, scores = segmenter._choose(linker, max(presence for _, (*_, presence) in chunks))
    size = frames.shape[1:3]
    masks = np.stack([(F.interpolate(tracks[i][:, None], size, mode="bilinear", align_corners=False)[:, 0] > 0).numpy() for i in chosen]) if chosen else np.zeros((0, len(frames), *size), bool)

    class Whole(Segmentation):
        "Its masks are all there."
        def frame_masks(self, t):
            return masks[:, t]

    return Whole(expression, scores, len(frames), size, frames, float(source.fps), segmenter._settings(), [{}] * len(chosen))


def one(way: str, model: str, video: str, out: str) -> None:
    "In its own process: segment, save, print the peak and the time."
    import torch

    from fsrvos.apps.demo import draw_clip
    from fsrvos.apps.segment import Segmenter
    torch.set_num_threads(THREADS)
    support, query = draw_clip("hedgehog", 0, "support"), draw_clip("hedgehog", 0, "query", objects=2)
    segmenter = Segmenter.from_pretrained(model, device="cpu").support(support.frames[:5], support.ids[:5] == 1, next(t for t, i in support.sentences if i == (1,)))
    expression, peak = next(t for t, i in query.sentences if i == (1,)), lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    before, begun = peak(), time.perf_counter()
    with torch.no_grad():
        found = with_everything(segmenter, video, expression) if way == WHOLE else segmenter.segment(video, expression, progress=False)
    found.save(out)
    print(json.dumps({"frames": found.frames, "seconds": time.perf_counter() - begun, "peak_mb": round(peak()), "above_model_mb": round(peak() - before), "found": len(found)}))


def apart(out: Path, other: Path) -> float:
    "The share of pixels that two saved results mark otherwise."
    import numpy as np

    from fsrvos.data.video import read_mask
    names = sorted(path.name for path in (out / "masks").iterdir())
    if names != sorted(path.name for path in (other / "masks").iterdir()):
        raise SystemExit(f"{out} and {other}: not as many masks")
    return float(np.mean([(read_mask(out / "masks" / name) != read_mask(other / "masks" / name)).mean() for name in names]))


def case_of(ways: dict[str, list[dict]]) -> dict:
    "What the processes of each way said -> its figures: peaks are the most of all turns."
    figures = {}
    for way, said in ways.items():
        figures[way] = {**spread([row["seconds"] for row in said]), "peak_mb": max(row["peak_mb"] for row in said), "above_model_mb": max(row["above_model_mb"] for row in said),
                        "frames_a_second": round(statistics.median(row["frames"] / row["seconds"] for row in said), 2), "found": said[0]["found"]}
    return figures


def report(about: dict, rows: list[dict], differ: dict[tuple[str, int], float]) -> dict:
    """The machine, and from what the processes printed two cases for each model: by the frames of the video, and the longest video that both ways did; `above_mb`: more than for the shortest video; `differ`: the share of
    mask pixels in which the ways differ, by model and frames."""
    cases = {}
    for model in dict.fromkeys(row["model"] for row in rows):
        grown = cases[f"{model}, by frames of 128x192"] = {}
        for frames in dict.fromkeys(row["frames"] for row in rows if row["model"] == model):
            ways = {way: said for way in (WHOLE, OURS) if (said := [row for row in rows if (row["model"], row["frames"], row["way"]) == (model, frames, way)])}
            grown[str(frames)] = case_of(ways)
            for way, figures in grown[str(frames)].items():
                figures["above_mb"] = figures["peak_mb"] - next(iter(grown.values()))[way]["peak_mb"]
        longest = max(frames for name, frames in differ if name == model)
        both = grown[str(longest)]
        cases[f"{model}, {longest} frames of 128x192"] = both | {"ratio memory": ratio(both, WHOLE, OURS, "peak_mb"), "ratio time": ratio(both, WHOLE, OURS)} \
            | {f"share of mask pixels that differ, {frames} frames": share for (name, frames), share in differ.items() if name == model}
    return {"machine": about, "cases": cases}


def measured(folder: Path, length: int, ways: tuple[str, ...], turns: int) -> tuple[list[dict], dict[tuple[str, int], float]]:
    "A video of so many frames, asked of each model each way, in turns -> what the processes printed, and how far the ways' masks are apart."
    from fsrvos.apps.demo import draw_clip
    from fsrvos.data.video import write_video
    video = write_video(folder / f"{length}.mp4", moving(draw_clip("hedgehog", 0, "query", objects=2), length), 25)
    rows = []
    for turn in range(turns):
        for model in MODELS:
            for way in ways[::-1 if turn % 2 else 1]:
                done = subprocess.run([sys.executable, __file__, way, model, str(video), str(folder / f"{model} {way} {length}")], stdout=subprocess.PIPE, text=True, check=True)
                rows.append({"model": model, "way": way, **json.loads(done.stdout.splitlines()[-1])})
                print(rows[-1])
    return rows, {(model, length): apart(*(folder / f"{model} {way} {length}" for way in ways)) for model in MODELS if len(ways) > 1}


def main() -> None:
    rows, differ = [], {}
    with tempfile.TemporaryDirectory() as folder:
        for length in LENGTHS:
            more, shares = measured(Path(folder), length, (WHOLE, OURS) if length in COMPARED else (OURS,), TURNS if length in COMPARED else 1)
            rows, differ = rows + more, differ | shares
    write(__file__, report(machine() | {"threads": THREADS}, rows, differ))


if __name__ == "__main__":
    one(*sys.argv[1:]) if len(sys.argv) > 1 else main()
