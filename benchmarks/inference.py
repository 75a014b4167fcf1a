"""A clip segmented: the plain path (`plain.py`) against `fsrvos.models.inference`, each in processes of its own, in turns; then a video file from end to end.

python benchmarks/inference.py    writes benchmarks/inference.json beside itself (on a GPU machine inference.cuda.json).
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

import numpy as np
import torch
from plain import answer_plainly
from timing import FREED_MEMORY_KEPT, in_turns, machine, ratio, spread, write

from fsrvos.apps.demo import draw_clip
from fsrvos.apps.segment import Segmenter, load_model
from fsrvos.data.video import Video, write_video
from fsrvos.models.fsrvos import FSRVOSConfig, FSRVOSModel
from fsrvos.models.inference import Inference
from fsrvos.models.published import attach_empty_encoders

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CLIP, CHUNK, SHOTS = 100, 10, 5                     # frames
CASES = {  # how the model is made, size of the frames, chunks that are run by each way, turns, environment; the plain path at the paper's size takes a minute a chunk
    "paper-resnet50, 360x640": ("paper-resnet50", (360, 640), {"plain": 2, "ours": 5, "ours, bfloat16": 5}, 1, {}),
    "paper-resnet50, 360x640, freed memory kept": ("paper-resnet50", (360, 640), {"plain": 2, "ours": 5}, 1, FREED_MEMORY_KEPT),
    "fsrvos-demo, 128x192": ("fsrvos-demo", (128, 192), {"plain": 10, "ours": 10, "ours, bfloat16": 10}, 3, {}),
}


def make_model(name: str) -> FSRVOSModel:
    "A model that comes along, or one of a preset with random weights, encoders included (nothing is fetched)."
    torch.manual_seed(0)
    if name == "fsrvos-demo":
        return load_model(name).eval().to(DEVICE)
    model = FSRVOSModel(FSRVOSConfig.from_preset(name)).eval()
    attach_empty_encoders(model)
    return model.to(DEVICE)


def noise(size: tuple[int, int], chunks: int, frames: int = CHUNK, shots: int = SHOTS, words: int = 12) -> dict:
    "Chunks of frames, a support whose object covers a ninth of the frame, and token ids: the same for every way."
    rng, (h, w) = torch.Generator().manual_seed(1), size
    draw = lambda n: torch.randn(1, n, 3, h, w, generator=rng).to(DEVICE)
    ids = lambda: (torch.randint(3, 1000, (1, words), generator=rng).to(DEVICE), torch.ones(1, words, dtype=torch.int64, device=DEVICE))
    masks = torch.zeros(1, shots, h, w, device=DEVICE)
    masks[..., h // 3:2 * h // 3, w // 3:2 * w // 3] = 1
    asked = dict(words=ids(), support=(draw(shots), masks), support_words=ids())
    return asked | {"chunks": [draw(frames) for _ in range(chunks)]}   # last: however many there are, all else stays the same


def answer_ours(model: FSRVOSModel, chunks, words, support, support_words):
    "As `answer_plainly`; the support is encoded before the first chunk is asked for."
    inference, encode = Inference(model), lambda ids, mask: (model.encode_text(ids, mask), mask.bool())
    with torch.no_grad():
        known, said = inference.support(inference.encode_frames(support[0]), support[1], *encode(*support_words)), encode(*words)
        yield None
        for frames in chunks:
            yield inference.decode(inference.clip(inference.encode_frames(frames), *said), known)


def one(name: str, way: str, size: tuple[int, int], chunks: int, out: str) -> None:
    "In its own process: seconds of every chunk and peak memory as JSON, the first chunk's scores and mask logits in `out`."
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))
    model, inputs = make_model(name), noise(size, chunks)
    model.encoders()
    answers = (answer_plainly if way == "plain" else answer_ours)(model, **inputs)
    cpu, wall = [], []
    for i in range(chunks + (way != "plain")):  # ours: the support comes first
        start, before = time.process_time(), time.perf_counter()
        with torch.autocast(DEVICE, torch.bfloat16, enabled=way.endswith("bfloat16")):
            output = next(answers)
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        cpu.append(time.process_time() - start)
        wall.append(time.perf_counter() - before)
        if output is not None and not Path(out).exists():
            np.savez(out, masks=output.pred_masks.float().cpu().numpy(), scores=output.pred_logits.float().cpu().numpy())
    peak = torch.cuda.max_memory_allocated() if DEVICE == "cuda" else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"support": cpu.pop(0) if way != "plain" else 0.0, "cpu": cpu, "wall": wall[-chunks:], "peak_mb": round(peak / 2 ** 20)}))


def compare(name: str, size: tuple[int, int], chunks: dict[str, int], turns: int, environment: dict[str, str]) -> dict:
    "Plain against ours: seconds a frame of a clip of `CLIP` frames (reckoned where fewer were run), peak memory of the process, largest differences of the first chunk's results."
    seen, row = {way: [] for way in chunks}, {}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(turns):
            for way, count in chunks.items():
                done = subprocess.run([sys.executable, __file__, name, way, *map(str, size), str(count), f"{folder}/{way}.npz"], env=os.environ | environment, capture_output=True, text=True)
                if done.returncode:
                    raise SystemExit(f"{name}, {way}: {done.stderr}")
                seen[way].append(json.loads(done.stdout.splitlines()[-1]))
        results = {way: dict(np.load(f"{folder}/{way}.npz")) for way in chunks}
    for way, runs in seen.items():
        cpu, wall = ([s for run in runs for s in run[kind]] for kind in ("cpu", "wall"))
        support = statistics.median(run["support"] for run in runs)  # the plain path encodes it in every chunk
        row[way] = {"cpu_seconds_a_frame": round((support + statistics.median(cpu) * CLIP / CHUNK) / CLIP, 4), "frames_a_second": round(CHUNK / statistics.median(wall), 2),
                    "peak_mb": max(run["peak_mb"] for run in runs), "support_seconds": round(support, 3), "a chunk": spread(wall), "chunks run": len(cpu)}
    for way in [way for way in chunks if way != "plain"]:
        row |= {f"ratio cpu, {way}": round(row["plain"]["cpu_seconds_a_frame"] / row[way]["cpu_seconds_a_frame"], 2),
                f"ratio frames a second, {way}": round(row[way]["frames_a_second"] / row["plain"]["frames_a_second"], 2),
                f"ratio memory, {way}": round(row["plain"]["peak_mb"] / row[way]["peak_mb"], 2)} | differences(results["plain"], results[way], way)
    return row


def differences(plain: dict, other: dict, way: str) -> dict:
    "Of mask logits and scores, and of the masks themselves."
    return {f"{what}, largest difference, {way}": float(abs(plain[what] - other[what]).max()) for what in ("masks", "scores")} | {
        f"largest mask logit, {way}": float(abs(other["masks"]).max()), f"share of mask pixels that differ, {way}": float(((plain["masks"] > 0) != (other["masks"] > 0)).mean())}


def end_to_end(length: int = CLIP, turns: int = 3) -> dict:
    "A video file of the demo's size through `Segmenter`, support cached: decoding and encoding included; with frames in memory; and what the decoding of frozen features alone takes."
    support, query = draw_clip("hedgehog", 0, "support"), draw_clip("hedgehog", 0, "query", objects=2)
    sentence, example = (next(text for text, ids in clip.sentences if ids == (1,)) for clip in (query, support))
    there_and_back = [*query.frames, *query.frames[-2:0:-1]]
    frames = np.stack([there_and_back[t % len(there_and_back)] for t in range(length)])
    segmenter = Segmenter.from_pretrained("fsrvos-demo").support(support.frames[:SHOTS], support.ids[:SHOTS] == 1, example)
    words, state = segmenter._words(sentence, "sentence"), segmenter.inference.support(*segmenter._support.values())
    levels = segmenter._encode(frames[:CHUNK])
    with tempfile.TemporaryDirectory() as folder:
        video = write_video(Path(folder) / "clip.mp4", frames, 25)
        ways = {"video file": lambda: segmenter.segment(video, sentence, progress=False), "frames in memory": lambda: segmenter.segment(frames, sentence, progress=False),
                "reading the file": lambda: sum(1 for _ in Video(video)),
                "features in memory": lambda: [segmenter._answer(levels, *words, state) for _ in range(length // CHUNK)]}
        times = in_turns(ways, turns)
    return {way: time | {"frames_a_second": round(1e3 * length / time["median_ms"], 1)} for way, time in times.items()} | {
        "ratio, a file's frames are read in part of the time": ratio(times, "video file", "reading the file"), "frames": length, "size": list(frames.shape[1:3]),
        "chunks": f"{segmenter.chunk} frames that share {segmenter.overlap}"}


def main() -> None:
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))
    cases = {}
    for name, case in CASES.items():
        cases[name] = compare(*case)
        print(name, json.dumps(cases[name]), flush=True)
    cases["fsrvos-demo, end to end"] = end_to_end()
    print(json.dumps(cases["fsrvos-demo, end to end"]))
    write(__file__, {"machine": machine("transformers"), "clip": {"frames": CLIP, "chunk": CHUNK, "support": SHOTS,
                     "note": "seconds a frame are those of a clip of so many frames, reckoned from the chunks that were run"}, "cases": cases})


if __name__ == "__main__":
    if len(sys.argv) > 1:
        model_name, chosen, height, width, number, target = sys.argv[1:]
        one(model_name, chosen, (int(height), int(width)), int(number), target)
    else:
        main()
