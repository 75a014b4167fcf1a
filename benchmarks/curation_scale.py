"""Time and peak memory of curating a corpus of Ref-YouTube-VOS's size, JSON and mask files only, each step in a process of its own.

python benchmarks/curation_scale.py [--videos N] [--out FILE]    writes benchmarks/curation_scale.json beside itself (or FILE, as .json).

Frames are as many as the real ones but tiny, and every frame is its mask (`JPEGImages` is a link to `Annotations`). As many videos show a second category as
in the real corpus; people are far too many, the rarest classes too few.
"""
import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from timing import machine, spread, write

VIDEOS, FRAMES, EXPRESSIONS = 3471, 27, 12913  # of Ref-YouTube-VOS: videos and expressions of the training split; frames of a video, every fifth annotated
SIZE = (36, 64)  # pixels; the real ones are 720 x 1280


def classes_of(count: int) -> list[str]:
    "The class of every video: the 48 of the paper and 17 rare ones, people eight times as often as others."
    from fsrvos.data.curation import MINI_REF_YTVOS_CLASSES
    weights = {**{name: 8 if name == "person" else 1 for name in MINI_REF_YTVOS_CLASSES}, **{f"rare_{i}": 0.1 for i in range(17)}}
    shares = [weights[name] * count / sum(weights.values()) for name in weights]
    names = [name for name, share in zip(weights, shares) for _ in range(max(1, round(share)))]
    return (names + ["person"] * count)[:count]


def make_corpus(root: Path, count: int) -> dict:
    "Write the corpus; the masks of a frame are one of eight images, linked."
    import numpy as np

    from fsrvos.data.corpus import Expression, ObjectTrack, Video, write_masks, write_metas
    drawn = []
    for step in range(8):
        ids = np.zeros(SIZE, np.uint8)
        for number in (1, 2, 3):
            ids[2 + 10 * number:10 + 10 * number - number, 3 + 4 * step:20 + 4 * step] = number
        drawn.append(root / f"drawn/{step}.png")
        write_masks(drawn[-1], ids)
    videos, names, total = [], classes_of(count), round(EXPRESSIONS * count / VIDEOS)
    frames = tuple(f"{5 * t:05d}" for t in range(FRAMES))
    for number, name in enumerate(names):
        folder = root / f"train/Annotations/{number:010x}"
        folder.mkdir(parents=True)
        for t, frame in enumerate(frames):
            os.link(drawn[(number + t) % 8], folder / f"{frame}.png")
        mixed = number % 16 < 5  # 31 %: 3,471 videos, of which 2,387 show one category
        objects = 2 if mixed else (1, 1, 2, 2, 3)[number % 5]  # 1.86 a video
        other = "skateboard" if mixed else name
        tracks = {i: ObjectTrack(i, other if i == objects else name, frames) for i in range(1, objects + 1)}
        share = total * (number + 1) // count - total * number // count
        sentences = tuple(Expression(str(k), f"sentence {k} about number {k % objects + 1} of {number}", (k % objects + 1,)) for k in range(share))
        videos.append(Video(folder.name, frames, tracks, sentences, folder, ".png"))
    (root / "train/JPEGImages").symlink_to(root / "train/Annotations")
    write_metas(root, videos)
    return {"videos": count, "frames": count * FRAMES, "objects": sum(len(v.objects) for v in videos), "expressions": sum(len(v.expressions) for v in videos), "size": list(SIZE)}


def curation(root: Path, out: Path) -> dict:
    "Load, curate as published, checksums included."
    from fsrvos.data.corpus import Corpus
    from fsrvos.data.curation import CurationRules
    from fsrvos.data.paper_curation import MINI_REF_YTVOS, curate_as_published
    result = curate_as_published(Corpus.load(root), CurationRules(min_track_frames=5), out, MINI_REF_YTVOS, progress=False)
    return {"steps": {step.rule: step.videos for step in result.report.steps}}


def check(root: Path, out: Path) -> dict:
    "`fsrvos curate --check`: every frame and mask decoded."
    from fsrvos.data.corpus import check_corpus
    return {"problems": len(check_corpus(root, images=True))}


STEPS = {"curation": curation, "check": check}


def one(step: str, root: str, out: str) -> None:
    "In its own process: run a step, print what it took; `cpu_seconds` leave out waiting for the disk and for other programs."
    begun = time.perf_counter()
    found = STEPS[step](Path(root), Path(out))
    print(json.dumps({"seconds": round(time.perf_counter() - begun, 1), "cpu_seconds": round(time.process_time(), 1), "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024), **found}))


def report(about: dict, corpus: dict, steps: dict[str, dict]) -> dict:
    "The machine, the corpus, and what each step printed, as every benchmark's report is laid out."
    cases = {}
    for step, taken in steps.items():
        found = {key: value for key, value in taken.items() if key not in ("seconds", "cpu_seconds", "peak_mb")}
        cases[f"{step} of {corpus['videos']:,} videos"] = {"fsrvos": {**spread([taken["seconds"]]), "cpu_median_ms": 1e3 * taken["cpu_seconds"], "peak_mb": taken["peak_mb"]}, **found}
    return {"machine": about, "corpus": corpus, "cases": cases}


def main(videos: int, out: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "raw"
        corpus, steps = make_corpus(root, videos), {}
        for step in STEPS:
            done = subprocess.run([sys.executable, __file__, step, str(root), f"{folder}/out"], stdout=subprocess.PIPE, text=True, check=True, env={**os.environ, "TQDM_DISABLE": "1"})
            steps[step] = json.loads(done.stdout.splitlines()[-1])
            print(step, steps[step])
    write(out, report(machine("numpy", "pillow"), corpus, steps))


if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in STEPS:
        one(*sys.argv[1:])
    else:
        parser = argparse.ArgumentParser(description=__doc__)
        parser.add_argument("--videos", type=int, default=VIDEOS)
        parser.add_argument("--out", type=Path, default=Path(__file__))
        main(**vars(parser.parse_args()))
