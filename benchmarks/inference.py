"""A clip segmented: the plain path (`plain.py`) against `fsrvos.models.inference`, and the support's state kept against the support encoded anew for every chunk, each way in
processes of its own, in turns; then a video file from end to end.

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
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from plain import answer_plainly
from timing import FREED_MEMORY_KEPT, exact_float32, in_turns, machine, ratio, spread, write

from fsrvos.models.encoders import EncoderError
from fsrvos.models.fsrvos import FSRVOSConfig, FSRVOSModel, FSRVOSOutput
from fsrvos.models.inference import Inference, SupportState
from fsrvos.models.published import attach_empty_encoders

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CLIP, CHUNK, SHOTS = 100, 10, 5                     # frames
DEMO, PAPER = ("fsrvos-demo", (128, 192)), ("paper-resnet50", (360, 640))  # how the model is made, size of the frames
ANEW = "ours, support anew"
CASES = {  # model and size, chunks that are run by each way, the reference first, turns, environment; the plain path at the paper's size takes a minute a chunk
    "paper-resnet50, 360x640": (*PAPER, {"plain": 1, "ours": 2, "ours, bfloat16": 1}, 3, {}),
    "paper-resnet50, 360x640, freed memory kept": (*PAPER, {"plain": 2, "ours": 2}, 2, FREED_MEMORY_KEPT),
    "paper-resnet50, 360x640, support kept or anew": (*PAPER, {ANEW: 2, "ours": 2}, 2, {}),
    "fsrvos-demo, 128x192": (*DEMO, {"plain": 10, "ours": 10, "ours, bfloat16": 10}, 3, {}),
    "fsrvos-demo, 128x192, support kept or anew": (*DEMO, {ANEW: 10, "ours": 10}, 3, {}),
}
GPU_CASES = {name: (*case[:2], dict.fromkeys(case[2], CLIP // CHUNK), 2, {}) for name, case in CASES.items() if not case[4]}  # the whole clip by every way


def make_model(name: str) -> FSRVOSModel:
    "A model that comes along, or one of a preset with random weights, encoders included (nothing is fetched). Raises ImportError or `EncoderError` for what is not installed."
    torch.manual_seed(0)
    if name == "fsrvos-demo":
        from fsrvos.apps.segment import load_model
        model = load_model(name)
        model.encoders()
    else:
        model = FSRVOSModel(FSRVOSConfig.from_preset(name))
        attach_empty_encoders(model)
    return model.eval().to(DEVICE)


def noise(size: tuple[int, int], chunks: int, frames: int = CHUNK, shots: int = SHOTS, words: int = 12) -> dict:
    "Chunks of frames, a support whose object covers a ninth of the frame, and token ids: the same for every way."
    rng, (h, w) = torch.Generator().manual_seed(1), size
    draw = lambda n: torch.randn(1, n, 3, h, w, generator=rng).to(DEVICE)
    ids = lambda: (torch.randint(3, 1000, (1, words), generator=rng).to(DEVICE), torch.ones(1, words, dtype=torch.int64, device=DEVICE))
    masks = torch.zeros(1, shots, h, w, device=DEVICE)
    masks[..., h // 3:2 * h // 3, w // 3:2 * w // 3] = 1
    asked = dict(words=ids(), support=(draw(shots), masks), support_words=ids())
    return asked | {"chunks": [draw(frames) for _ in range(chunks)]}   # last: however many there are, all else stays the same


def encoded(model: FSRVOSModel, ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    "Token ids and attention mask [1, L] -> words and their mask, as `Inference` takes them."
    return model.encode_text(ids, mask), mask.bool()


@torch.no_grad()
def show(inference: Inference, support, support_words) -> SupportState:
    "The support as `answer_plainly` is given it -> its state."
    return inference.support(inference.encode_frames(support[0]), support[1], *encoded(inference.model, *support_words))


def answer_ours(model: FSRVOSModel, chunks, words, support, support_words) -> Iterator[FSRVOSOutput | None]:
    "As `answer_plainly`; the support is encoded before the first chunk is asked for."
    inference = Inference(model)
    with torch.no_grad():
        known, said = show(inference, support, support_words), encoded(model, *words)
        yield None
        for frames in chunks:
            yield inference.decode(inference.clip(inference.encode_frames(frames), *said), known)


def answer_anew(model: FSRVOSModel, chunks, words, support, support_words) -> Iterator[FSRVOSOutput]:
    "As `answer_ours`, but the support is encoded for every chunk."
    inference = Inference(model)
    with torch.no_grad():
        said = encoded(model, *words)
        for frames in chunks:
            yield inference.decode(inference.clip(inference.encode_frames(frames), *said), show(inference, support, support_words))


ANSWERS = {"plain": answer_plainly, "ours": answer_ours, ANEW: answer_anew}


def timed(answers: Iterator, half: bool) -> Iterator[tuple[FSRVOSOutput | None, float, float]]:
    "Each of the answers, the processor's seconds and the wall's that it took; half: under bfloat16 autocast."
    end = object()
    while True:
        cpu, wall = time.process_time(), time.perf_counter()
        with torch.autocast(DEVICE, torch.bfloat16, enabled=half):
            output = next(answers, end)
        if output is end:
            return
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        yield output, time.process_time() - cpu, time.perf_counter() - wall


def one(name: str, way: str, size: tuple[int, int], chunks: int, out: str) -> None:
    "In its own process: seconds of the support and of every chunk, and peak memory, as JSON; the first chunk's scores and mask logits in `out`."
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))
    exact_float32()
    model, inputs, half = make_model(name), noise(size, chunks + (DEVICE == "cuda")), way.endswith(", bfloat16")
    answer = ANSWERS[way.removesuffix(", bfloat16")]
    if DEVICE == "cuda":  # the first answer compiles and chooses what the others run
        for _ in timed(answer(model, **inputs | {"chunks": [inputs["chunks"].pop()]}), half):
            pass
        torch.cuda.reset_peak_memory_stats()
    taken = {"support": [(0.0, 0.0)], "chunk": []}  # where no state is kept, a chunk's time has the support's in it
    for output, *seconds in timed(answer(model, **inputs), half):
        taken["support" if output is None else "chunk"].append(seconds)
        if output is not None and not Path(out).exists():
            np.savez(out, masks=output.pred_masks.float().cpu().numpy(), scores=output.pred_logits.float().cpu().numpy())
    peak = torch.cuda.max_memory_allocated() if DEVICE == "cuda" else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    support, (cpu, wall) = taken["support"][-1], zip(*taken["chunk"])
    print(json.dumps({"support": {"cpu": support[0], "wall": support[1]}, "cpu": cpu, "wall": wall, "peak_mb": round(peak / 2 ** 20)}))


def compare(name: str, size: tuple[int, int], chunks: dict[str, int], turns: int, environment: dict[str, str]) -> dict:
    "What the ways, each in processes of its own, said of themselves, compared."
    seen = {way: [] for way in chunks}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(turns):
            for way, count in chunks.items():
                done = subprocess.run([sys.executable, __file__, name, way, *map(str, size), str(count), f"{folder}/{way}.npz"], env=os.environ | environment, capture_output=True, text=True)
                if done.returncode:
                    raise SystemExit(f"{name}, {way}: {done.stderr}")
                seen[way].append(json.loads(done.stdout.splitlines()[-1]))
        return compared(seen, {way: dict(np.load(f"{folder}/{way}.npz")) for way in chunks}, DEVICE)


def compared(seen: dict[str, list[dict]], results: dict[str, dict], device: str) -> dict:
    "Each way's figures, and the first way against the others: seconds of the processor (on a GPU: frames a second alone), memory, largest differences of the first chunk's results."
    row, (reference, *others) = {way: figures(runs, device) for way, runs in seen.items()}, seen
    kinds = ({"cpu": "cpu_seconds_a_frame"} if device == "cpu" else {}) | ({"memory": "peak_mb"} if reference == "plain" else {})  # a support kept or not is no memory saved
    for way in others:
        what = way if reference == "plain" else f"{way} against {reference}"
        row |= {f"ratio {kind}, {what}": ratio(row, reference, way, key) for kind, key in kinds.items()}
        row |= {f"ratio frames a second, {what}": round(row[way]["frames_a_second"] / row[reference]["frames_a_second"], 2)} | differences(results[reference], results[way], way)
    return row


def figures(runs: list[dict], device: str) -> dict:
    """Of a clip of `CLIP` frames (reckoned where fewer were run), the support included: medians of the runs, [least, most] of them, and a chunk's time. Memory is the process's; on a
    GPU what PyTorch has there, the clip's own frames included, and no processor seconds: it waits."""
    whole = lambda run, clock: run["support"][clock] + statistics.median(run[clock]) * CLIP / CHUNK
    kinds = {"frames_a_second": [CLIP / whole(run, "wall") for run in runs], "peak_mb": [run["peak_mb"] for run in runs]}
    if device == "cpu":
        kinds["cpu_seconds_a_frame"] = [whole(run, "cpu") / CLIP for run in runs]
    row = {kind: round(statistics.median(values), 4) for kind, values in kinds.items()}
    row |= {f"{kind} of the runs": [round(min(values), 4), round(max(values), 4)] for kind, values in kinds.items() if len(values) > 1}
    clock, chunks = "cpu" if device == "cpu" else "wall", [seconds for run in runs for seconds in run["wall"]]
    return row | {"support_seconds": round(statistics.median(run["support"][clock] for run in runs), 4), "a chunk": spread(chunks), "chunks run": len(chunks)}


def differences(reference: dict, other: dict, way: str) -> dict:
    "Of mask logits and scores, and of the masks themselves."
    return {f"{what}, largest difference, {way}": float(abs(reference[what] - other[what]).max()) for what in ("masks", "scores")} | {
        f"largest mask logit, {way}": float(abs(other["masks"]).max()), f"share of mask pixels that differ, {way}": float(((reference["masks"] > 0) != (other["masks"] > 0)).mean())}


def end_to_end(size: tuple[int, int] = DEMO[1], length: int = CLIP, turns: int = 3) -> dict:
    """A video file through `Segmenter`, support cached: decoding and encoding included; with frames in memory; and what the decoding of frozen features alone takes. The drawn clip's
    frames are resized to `size`."""
    from fsrvos.apps.demo import draw_clip
    from fsrvos.apps.segment import Segmenter
    from fsrvos.data.episodes import resize_frames, resize_masks
    from fsrvos.data.video import Video, write_video
    support, query = draw_clip("hedgehog", 0, "support"), draw_clip("hedgehog", 0, "query", objects=2)
    sentence, example = (next(text for text, ids in clip.sentences if ids == (1,)) for clip in (query, support))
    there_and_back = resize_frames(np.stack([*query.frames, *query.frames[-2:0:-1]]), size)
    frames = there_and_back[np.arange(length) % len(there_and_back)]
    segmenter = Segmenter.from_pretrained("fsrvos-demo", short=min(size), longest=max(size), device=DEVICE)
    segmenter.support(resize_frames(support.frames[:SHOTS], size), resize_masks(support.ids[None, :SHOTS] == 1, size)[0], example)
    words, state = segmenter._words(sentence, "sentence"), segmenter.inference.support(*segmenter._support.values())
    levels = segmenter._encode(frames[:CHUNK])
    with tempfile.TemporaryDirectory() as folder:
        video = write_video(Path(folder) / "clip.mp4", frames, 25)
        ways = {"video file": lambda: segmenter.segment(video, sentence, progress=False), "frames in memory": lambda: segmenter.segment(frames, sentence, progress=False),
                "reading the file": lambda: sum(1 for _ in Video(video)),
                "features in memory": lambda: [segmenter._answer(levels, *words, state) for _ in range(length // CHUNK)]}
        times = in_turns(ways, turns, device=DEVICE)
    return {way: time | {"frames_a_second": round(1e3 * length / time["median_ms"], 1)} for way, time in times.items()} | {
        "ratio, a file's frames are read in part of the time": ratio(times, "video file", "reading the file"), "frames": length, "size": list(frames.shape[1:3]),
        "chunks": f"{segmenter.chunk} frames that share {segmenter.overlap}"}


def of_model(name: str, *case) -> dict:
    "A case of `CASES`; raises here, not in a process of its own, where the model's weights are not installed."
    if name == DEMO[0]:
        make_model(name)
    return compare(name, *case)


def measured(cases: dict) -> dict[str, dict]:
    "{case: what measures it} -> {case: figures}, without those that need weights or drawings that are not installed: a line tells."
    rows = {}
    for name, measure in cases.items():
        try:
            rows[name] = measure()
        except (ImportError, EncoderError) as error:
            print(f"left out: {name}: {str(error).splitlines()[0]}", flush=True)
        else:
            print(name, json.dumps(rows[name]), flush=True)
    return rows


def main() -> None:
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))
    exact_float32()
    cases = {name: lambda case=case: of_model(*case) for name, case in (CASES if DEVICE == "cpu" else GPU_CASES).items()}
    cases |= {"fsrvos-demo, end to end": end_to_end,
              "fsrvos-demo at 360x640, from the file to the masks": lambda: end_to_end(PAPER[1], CLIP if DEVICE == "cuda" else 3 * CHUNK)}
    rows = measured(cases)
    write(__file__, {"machine": machine("transformers", device=DEVICE), "clip": {"frames": CLIP, "chunk": CHUNK, "support": SHOTS,
                     "note": "figures a frame are those of a clip of so many frames and its support, reckoned from the chunks that were run"}, "cases": rows})


if __name__ == "__main__":
    if len(sys.argv) > 1:
        model_name, chosen, height, width, number, target = sys.argv[1:]
        one(model_name, chosen, (int(height), int(width)), int(number), target)
    else:
        main()
