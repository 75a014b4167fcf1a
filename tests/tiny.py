"A tiny corpus for tests: coloured squares that move over a grey ground, in the Ref-YouTube-VOS layout."
from pathlib import Path

import numpy as np

from fsrvos.data.corpus import Corpus, Expression, ObjectTrack, Video, write_frame, write_masks, write_metas

COLOURS = {"red": (210, 40, 40), "blue": (40, 70, 210), "green": (40, 170, 60), "yellow": (220, 200, 40)}
TINY_CLASSES = ("cat", "dog", "bus", "fish", "hat")


def make_tiny_corpus(root, classes=TINY_CLASSES, videos_per_class=4, frames=6, size=(32, 48), seed=0) -> Corpus:
    """Write a tiny corpus under `root` and load it: every video shows two squares of one class, object 1 moving right above,
    object 2 moving left below; object 2 is not there in the last frame. Per object one expression with the class name and two
    without it; one expression names both objects."""
    rng = np.random.default_rng(seed)
    videos = [_write_video(Path(root), f"{name}_{number}", name, frames, size, rng)
              for name in classes for number in range(videos_per_class)]
    write_metas(root, videos)
    return Corpus.load(root)


def _write_video(root, video_id, name, frames, size, rng) -> Video:
    frame_names = tuple(f"{5 * t:05d}" for t in range(frames))
    colours = list(rng.permutation(list(COLOURS))[:2])
    starts = rng.integers(0, 6, 2)
    for t, frame in enumerate(frame_names):
        ids = np.zeros(size, np.uint8)
        ids[3:13, 2 + starts[0] + 3 * t:12 + starts[0] + 3 * t] = 1
        if t < frames - 1:
            ids[18:28, size[1] - 12 - starts[1] - 3 * t:size[1] - 2 - starts[1] - 3 * t] = 2
        palette = np.array([(120, 120, 120), COLOURS[colours[0]], COLOURS[colours[1]]], np.uint8)
        write_masks(root / "train/Annotations" / video_id / f"{frame}.png", ids)
        write_frame(root / "train/JPEGImages" / video_id / f"{frame}.jpg", palette[ids])
    tracks = {1: ObjectTrack(1, name, frame_names), 2: ObjectTrack(2, name, frame_names[:-1])}
    return Video(video_id, frame_names, tracks, tuple(_expressions(name, colours)), root / "train/JPEGImages" / video_id, ".jpg")


def _expressions(name, colours):
    sentences = []
    for object_id, (colour, direction) in enumerate(zip(colours, ("right", "left")), start=1):
        sentences += [(f"the {colour} {name}", (object_id,), "attribute", True),
                      (f"the {colour} one", (object_id,), "attribute", False),
                      (f"the one moving to the {direction}", (object_id,), "motion", False)]
    sentences.append((f"both {name} squares", (1, 2), "several", True))
    return [Expression(str(number), *sentence) for number, sentence in enumerate(sentences)]


def tiny_evaluation(cell, values, swap=None):
    """The evaluation of a cell such as "cma-1" on expression 0 of some cats; values: {video: J and F in runs 0, 1, …}."""
    from fsrvos.evaluation.protocol import Evaluation    # here, so that tests without models do not wait for torch
    records = [{"video": video, "expression_id": "0", "kind": "class", "class": "cat", "class_named": True, "distractors": 0, "run": run, "swap": swap, "J": v, "F": v, "frames": 6,
                "area_pred": .1, "area_true": .1, "score": .5} for video, runs in values.items() for run, v in enumerate(runs)]
    support = lambda run: {"cat": {"video": "cat_3", "frames": ["00000"], "object_id": 1, "expression_id": "0", "expression": f"support <{run}>"}}
    manifest = {"runs": [{"run": run, "support": support(run), "queries": {"cat": [[video, "0"] for video in values]}} for run in (0, 1)]}
    return Evaluation(records, manifest, .008, {"cell": cell, "method": cell[:-2], "fold": int(cell[-1]), "seed": 0})
