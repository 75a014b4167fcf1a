"""Time and peak memory of curating a corpus of Ref-YouTube-VOS's size, JSON and mask files only, and of checking it: this project against both as one would write them down, in turns, each in a process of its own.

python benchmarks/curation_scale.py [--videos N] [--turns N] [--out FILE]    writes benchmarks/curation_scale.json beside itself (or FILE, as .json). Three minutes.

*By hand* curation decodes every mask to see which objects are in which frames, where `fsrvos` believes the lists (the check is what compares them with the masks); both must keep the same videos. By hand a check
opens each frame and mask, one after another; so does `fsrvos`, on one thread, too. Times begin when libraries are loaded; peak memory is the whole process's, with them.

Frames are as many as the real ones but tiny, and every frame is its mask (`JPEGImages` is a link to `Annotations`). As many videos show a second category as
in the real corpus; people are far too many, the rarest classes too few; every fortieth video shows its objects too briefly.
"""
import argparse
import hashlib
import importlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from timing import machine, ratio, spread, write

VIDEOS, FRAMES, EXPRESSIONS = 3471, 27, 12913  # of Ref-YouTube-VOS: videos and expressions of the training split; frames of a video, every fifth annotated
SIZE = (36, 64)  # pixels; the real ones are 720 x 1280
SEEN, LEAST, MOST = 5, 10, 40  # frames of a target; videos of a class
BRIEF = 3  # frames in which a video shows its objects that shows them too briefly
BY_HAND, OURS = "by hand, with Pillow and NumPy", "fsrvos"


def classes_of(count: int) -> list[str]:
    "The class of every video: the 48 of the paper and 17 rare ones, people eight times as often as others."
    from fsrvos.data.curation import MINI_REF_YTVOS_CLASSES
    weights = {**{name: 8 if name == "person" else 1 for name in MINI_REF_YTVOS_CLASSES}, **{f"rare_{i}": 0.1 for i in range(17)}}
    shares = [weights[name] * count / sum(weights.values()) for name in weights]
    names = [name for name, share in zip(weights, shares) for _ in range(max(1, round(share)))]
    return (names + ["person"] * count)[:count]


def make_corpus(root: Path, count: int) -> dict:
    "Write the corpus; the masks of a frame are one of eight images, linked, or an empty one."
    import numpy as np

    from fsrvos.data.corpus import Expression, ObjectTrack, Video, write_masks, write_metas
    drawn = []
    for step in range(8):
        ids = np.zeros(SIZE, np.uint8)
        for number in (1, 2, 3):
            ids[2 + 10 * number:10 + 10 * number - number, 3 + 4 * step:20 + 4 * step] = number
        drawn.append(root / f"drawn/{step}.png")
        write_masks(drawn[-1], ids)
    empty = root / "drawn/empty.png"
    write_masks(empty, np.zeros(SIZE, np.uint8))
    videos, names, total = [], classes_of(count), round(EXPRESSIONS * count / VIDEOS)
    frames = tuple(f"{5 * t:05d}" for t in range(FRAMES))
    for number, name in enumerate(names):
        folder = root / f"train/Annotations/{number:010x}"
        folder.mkdir(parents=True)
        seen = frames[:BRIEF] if number % 40 == 39 else frames
        for t, frame in enumerate(frames):
            os.link(drawn[(number + t) % 8] if frame in seen else empty, folder / f"{frame}.png")
        mixed = number % 16 < 5  # 31 %: 3,471 videos, of which 2,387 show one category
        objects = 2 if mixed else (1, 1, 2, 2, 3)[number % 5]  # 1.86 a video
        other = "skateboard" if mixed else name
        tracks = {i: ObjectTrack(i, other if i == objects else name, seen) for i in range(1, objects + 1)}
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
    result = curate_as_published(Corpus.load(root), CurationRules(min_track_frames=SEEN, min_videos=LEAST, max_videos=MOST), out, MINI_REF_YTVOS, progress=False)
    return {"steps": {step.rule: step.videos for step in result.report.steps}}


def check(root: Path, out: Path) -> dict:
    "`fsrvos curate --check`: every frame and mask decoded."
    from fsrvos.data.corpus import check_corpus
    return {"problems": len(check_corpus(root, images=True))}


# ---- by hand

def read_lists(root: Path) -> tuple[dict, dict]:
    "What meta.json and meta_expressions.json say of the videos."
    return tuple(json.loads((root / name).read_text())["videos"] for name in ("train/meta.json", "meta_expressions/train/meta_expressions.json"))


def seen_objects(folder: Path, frames: list[str]) -> Counter:
    "In how many frames each object is, from the masks."
    import numpy as np
    from PIL import Image
    seen = Counter()
    for frame in frames:
        with Image.open(folder / f"{frame}.png") as image:
            seen.update(str(i) for i in np.unique(np.asarray(image)) if i)
    return seen


def kept_by_hand(root: Path, metas: dict, sentences: dict) -> tuple[dict[str, str], dict[str, dict]]:
    "The rules, one after another -> {video: its class}, and the expressions of each that are left."
    from fsrvos.data.curation import MINI_REF_YTVOS_CLASSES
    classes, expressions = {}, {}
    for video in sorted(metas):
        seen = seen_objects(root / "train/Annotations" / video, sentences[video]["frames"])
        categories = {metas[video]["objects"][i]["category"] for i in seen if i in metas[video]["objects"]}
        expressions[video] = {key: e for key, e in sentences[video]["expressions"].items() if seen[e["obj_id"]] >= SEEN}
        if len(categories) == 1 and categories <= set(MINI_REF_YTVOS_CLASSES) and expressions[video]:
            classes[video] = categories.pop()
    enough, taken, kept = Counter(classes.values()), Counter(), {}
    for video in sorted(classes, key=lambda video: hashlib.sha256(f"0\0{video}".encode()).hexdigest()):  # whose turn it is, as `fsrvos` draws it
        if enough[classes[video]] >= LEAST and taken[classes[video]] < MOST:
            taken[classes[video]] += 1
            kept[video] = classes[video]
    return dict(sorted(kept.items())), expressions


def curation_by_hand(root: Path, out: Path) -> dict:
    "Decode all masks, apply the rules, link frames and masks one by one, write lists and checksums."
    metas, sentences = read_lists(root)
    kept, expressions = kept_by_hand(root, metas, sentences)
    for video in kept:
        for kind in ("JPEGImages", "Annotations"):
            (out / "train" / kind / video).mkdir(parents=True)
            for frame in sentences[video]["frames"]:
                (out / "train" / kind / video / f"{frame}.png").symlink_to((root / "train" / kind / video / f"{frame}.png").resolve())
    (out / "meta_expressions/train").mkdir(parents=True)
    (out / "train/meta.json").write_text(json.dumps({"videos": {video: metas[video] for video in kept}}, indent=1))
    lists = {video: {"frames": sentences[video]["frames"], "expressions": expressions[video]} for video in kept}
    (out / "meta_expressions/train/meta_expressions.json").write_text(json.dumps({"videos": lists}, indent=1))
    files = sorted(path for path in out.rglob("*") if path.is_file())
    (out / "manifest.sha256").write_text("".join(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(out)}\n" for path in files))
    return {}


def check_by_hand(root: Path, out: Path) -> dict:
    "Open each frame and each mask, one after another: can it be decoded, is it as large as the first, does some mask have each object."
    import numpy as np
    from PIL import Image
    problems = 0
    for video, entry in (lists := read_lists(root))[0].items():
        size, seen = None, set()
        for frame in lists[1][video]["frames"]:
            for kind in ("JPEGImages", "Annotations"):
                try:
                    with Image.open(root / "train" / kind / video / f"{frame}.png") as image:
                        pixels = np.asarray(image if kind == "Annotations" else image.convert("RGB"))
                except (OSError, SyntaxError, ValueError):  # Pillow reports broken chunks as SyntaxError
                    problems += 1
                    continue
                size = size or pixels.shape[:2]
                problems += pixels.shape[:2] != size
                seen.update(np.unique(pixels).tolist() if kind == "Annotations" else ())
        problems += len({int(i) for i in entry["objects"]} - seen)
    return {"problems": problems}


# ---- in turns

STEPS = {"curation": {BY_HAND: curation_by_hand, OURS: curation}, "check": {BY_HAND: check_by_hand, OURS: check}}
LIBRARIES = {BY_HAND: ("numpy", "PIL.Image", "fsrvos.data.curation"), OURS: ("fsrvos.data.paper_curation",)}  # by hand takes but the list of classes from this project


def one(step: str, way: str, root: str, out: str) -> None:
    "In its own process: take a step one way, print what it took; processor time leaves out waiting for the disk and for other programs."
    for name in LIBRARIES[way]:
        importlib.import_module(name)
    begun = time.perf_counter(), time.process_time()
    found = STEPS[step][way](Path(root), Path(out))
    wall, cpu = time.perf_counter() - begun[0], time.process_time() - begun[1]
    print(json.dumps({"seconds": wall, "cpu_seconds": cpu, "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024), **found}))


def videos_of(out: Path) -> set[str]:
    "The videos of a curated corpus."
    return set(json.loads((out / "train/meta.json").read_text())["videos"])


def compare(turns: list[dict[str, dict]]) -> dict:
    "What the ways printed in each turn -> a case; peak memory is the most of all turns. What is found besides is the same in every turn."
    case = {}
    for way in (BY_HAND, OURS):
        said = [turn[way] for turn in turns]
        cpu, peak = statistics.median(row["cpu_seconds"] for row in said), max(row["peak_mb"] for row in said)
        case[way] = {**spread([row["seconds"] for row in said]), "cpu_median_ms": round(1e3 * cpu, 3), "peak_mb": peak}
        case |= {key if way == OURS else f"{key}, {way}": value for key, value in said[0].items() if key not in ("seconds", "cpu_seconds", "peak_mb")}
    return case | {"ratio time": ratio(case, BY_HAND, OURS), "ratio cpu": ratio(case, BY_HAND, OURS, "cpu_median_ms")}


def report(about: dict, corpus: dict, steps: dict[str, list[dict[str, dict]]], apart: int) -> dict:
    "The machine, the corpus, and a case for each step; `apart`: videos that only one of the two curations keeps."
    cases = {f"{step} of {corpus['videos']:,} videos": compare(turns) for step, turns in steps.items()}
    next(iter(cases.values()))["videos that only one way keeps"] = apart
    return {"machine": about, "corpus": corpus, "cases": cases}


def main(videos: int, turns: int, out: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "raw"
        corpus, steps, made = make_corpus(root, videos), {step: [] for step in STEPS}, {}
        for turn in range(turns):
            for step, ways in STEPS.items():
                steps[step].append({})
                for way in list(ways)[::1 if turn % 2 else -1]:
                    made[way] = Path(folder, f"{way} {turn}")
                    done = subprocess.run([sys.executable, __file__, step, way, str(root), str(made[way])], stdout=subprocess.PIPE, text=True, check=True, env={**os.environ, "TQDM_DISABLE": "1"})
                    steps[step][-1][way] = json.loads(done.stdout.splitlines()[-1])
                    print(step, way, steps[step][-1][way])
        apart = len(videos_of(made[BY_HAND]) ^ videos_of(made[OURS]))
    write(out, report(machine("numpy", "pillow"), corpus, steps, apart))
    if apart:
        raise SystemExit(f"{apart} videos are kept by one way only")


if __name__ == "__main__":
    if len(sys.argv) == 5 and sys.argv[1] in STEPS:
        one(*sys.argv[1:])
    else:
        parser = argparse.ArgumentParser(description=__doc__)
        parser.add_argument("--videos", type=int, default=VIDEOS)
        parser.add_argument("--turns", type=int, default=3)
        parser.add_argument("--out", type=Path, default=Path(__file__))
        main(**vars(parser.parse_args()))
