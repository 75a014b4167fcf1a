"""Reading a corpus: what is kept (`FeatureStore`: features on disk, masks packed in memory) against decoding and encoding anew; items a second.

python benchmarks/corpus_reading.py    writes benchmarks/corpus_reading.json beside itself.

Eight clips of the embedded corpora are rendered into a temporary folder, and their features made there once. "First time" is a store that was just opened: nothing is kept in the process
yet; the files themselves are in the system's cache for every way, so that all is computing: ratios and items a second are of processor time. Features are kept in float16, hence the differences.
"""
import os
import tempfile
from pathlib import Path

import numpy as np
import torch
from timing import in_turns, machine, ratio, write

from fsrvos.data.corpus import Corpus, write_json_atomic
from fsrvos.data.synthesis import Job, SynthesisSettings, render_job
from fsrvos.models.encoders import FeatureStore, TextEncoder, load_vision_encoder

CLASSES = ("dog", "cat", "bus", "fish", "horse", "duck", "train", "lion")
ANEW, COLD, WARM, KEPT = "decoded anew", "FeatureStore, first time", "FeatureStore, again", "FeatureStore"


def small_corpus(root, classes=CLASSES):
    "A clip of each class, as `fsrvos synthesize` renders it."
    settings, metas, sentences = SynthesisSettings(), {}, {}
    for job in (Job("raw", name, 0) for name in classes):
        _, metas[job.video(settings.seed)], sentences[job.video(settings.seed)] = render_job(job, settings, root)
    write_json_atomic(root / "raw/train/meta.json", {"videos": metas})
    write_json_atomic(root / "raw/meta_expressions/train/meta_expressions.json", {"videos": sentences})
    return Corpus.load(root / "raw")


def everything(read, corpus):
    "Call `read(video, frames, object ids)` for every video."
    return [read(v.id, v.frames, sorted(v.objects)) for v in corpus.videos.values()]


def largest_difference(found, wanted):
    "Of two lists of arrays, or of lists of arrays."
    pairs = zip(found, wanted, strict=True)
    return max(largest_difference(a, b) if isinstance(a, list) else float(np.abs(np.asarray(a, np.float32) - np.asarray(b, np.float32)).max()) for a, b in pairs)


def per_second(row, ways, count, what):
    return {f"{what} a second, {way}": round(1e3 * count / row[way]["cpu_median_ms"], 1) for way in ways}


def masks(corpus, folder, turns):
    "A store that was just opened has no masks yet; one that was asked before has them, one bit a pixel."
    kept = FeatureStore(folder, corpus)
    anew = lambda: everything(corpus.read_masks, corpus)
    row = in_turns({ANEW: anew, COLD: lambda: everything(FeatureStore(folder, corpus).masks, corpus), WARM: lambda: everything(kept.masks, corpus)}, turns)
    count = sum(len(v.frames) for v in corpus.videos.values())
    return {**row, "ratio cold": ratio(row, ANEW, COLD, "cpu_median_ms"), "ratio warm": ratio(row, ANEW, WARM, "cpu_median_ms"), **per_second(row, (ANEW, COLD, WARM), count, "frames' masks"),
            "largest difference": largest_difference(everything(kept.masks, corpus), anew())}


def features(corpus, folder, turns):
    encoder, kept = load_vision_encoder("efficientnet-lite0"), FeatureStore(folder, corpus)
    mean, std = (torch.tensor(values)[:, None, None] for values in (encoder.mean, encoder.std))

    def encode(video, frames, object_ids):
        pixels = torch.from_numpy(corpus.read_frames(video, frames)).permute(0, 3, 1, 2).float() / 255
        with torch.inference_mode():
            return list(encoder((pixels - mean) / std))

    read = lambda video, frames, object_ids: kept.frames(video, frames)
    anew = "decoded and encoded anew"
    row = in_turns({"frames decoded, not encoded": lambda: everything(lambda v, f, o: corpus.read_frames(v, f), corpus), anew: lambda: everything(encode, corpus),
                    COLD: lambda: [FeatureStore(folder, corpus).frames(v.id, v.frames) for v in corpus.videos.values()], KEPT: lambda: everything(read, corpus)}, turns)
    count = sum(len(v.frames) for v in corpus.videos.values())
    wanted = everything(encode, corpus)
    return {**row, "ratio frames": ratio(row, anew, KEPT, "cpu_median_ms"), "ratio frames, store opened each time": ratio(row, anew, COLD, "cpu_median_ms"), **per_second(row, row, count, "frames"),
            "largest difference": largest_difference(everything(read, corpus), wanted), "largest feature": max(float(level.abs().max()) for levels in wanted for level in levels)}


def words(corpus, folder, turns):
    encoder, kept = TextEncoder("minilm-l6"), FeatureStore(folder, corpus)
    sentences = sorted({e.text for v in corpus.videos.values() for e in v.expressions})[:40]

    def encode():
        with torch.inference_mode():
            return [encoder(*encoder.tokenize([sentence]))[0] for sentence in sentences]

    read = lambda: [kept.words(sentence) for sentence in sentences]
    row = in_turns({"encoded anew": encode, KEPT: read}, turns)
    return {**row, "ratio sentences": ratio(row, "encoded anew", KEPT, "cpu_median_ms"), **per_second(row, row, len(sentences), "sentences"), "largest difference": largest_difference(read(), encode())}


def report(turns=5, classes=CLASSES):
    with tempfile.TemporaryDirectory() as folder:
        corpus = small_corpus(Path(folder), classes)
        store = FeatureStore.build(Path(folder) / "features", corpus, progress=False).folder
        about = f"{len(corpus.videos)} clips of 128x192"
        cases = {f"masks of all objects, {about}": masks(corpus, store, turns), f"features of all frames, {about}": features(corpus, store, turns),
                 "features of 40 sentences": words(corpus, store, turns)}
    return {"machine": machine("numpy", "pillow", "transformers"), "cases": cases}


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))
    made = report()
    write(__file__, made)
    for name, row in made["cases"].items():
        print(name, {k: v for k, v in row.items() if not isinstance(v, dict)})
