"""J and F on masks of 480p, one thread: ours against the DAVIS definition as everyone writes it down, and against the package vos-benchmark on the same PNG files.

python benchmarks/measures.py    writes benchmarks/measures.json beside itself.

Ratios are of processor time, so that other programs on the machine matter less: a call takes a few milliseconds.

vos-benchmark (MIT licence) is a reference only and no requirement of the project; without it those cases are left out. It names opencv-python, which must not be installed
over opencv-python-headless, so: pip install scikit-image && pip install --no-deps vos-benchmark
"""
import importlib.metadata
import importlib.util
import os
import tempfile
import unittest.mock
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image
from timing import in_turns, machine, ratio, write

from fsrvos.data.corpus import write_masks
from fsrvos.evaluation.metrics import region_and_contour

HEIGHT, WIDTH, FRAMES = 480, 854, 70  # as large and as long as the clips of DAVIS: 10459 frames in 150
FEW = 10  # frames: what a chunk has; and of a video that is read from files
CASES = {"a small object, 0.5 % of the frame": 24, "a middling object, 6 %": 85, "a large object, 30 %": 190, "an object that fills the frame, 65 %": 290}
OURS, NUMPY, DAVIS, SKIMAGE, PACKAGE = "fsrvos", "fsrvos, NumPy alone", "DAVIS toolkit's definition, cv2.dilate", "DAVIS toolkit's definition, skimage's dilation", "vos-benchmark"


def outline_of(radius, bumps, centre, size=(HEIGHT, WIDTH)):
    "A mask bool [H, W] with a bumpy outline; bumps: phases of the outline's harmonics."
    rows, columns = np.ogrid[:size[0], :size[1]]
    rows, columns = rows - centre[0], columns - centre[1]
    angle = np.arctan2(rows, columns)
    bumpy = sum(np.cos(k * angle + phase) / k for k, phase in enumerate(bumps, 2))
    return np.hypot(rows, columns) < radius * (1 + .2 * bumpy)


def moving_object(radius, frames=FRAMES, size=(HEIGHT, WIDTH), seed=0):
    "Prediction and ground truth of an object that moves, bool [T, H, W] each: the prediction's outline is off by a few pixels."
    rng, masks = np.random.default_rng(seed), ([], [])
    bumps = rng.uniform(0, 2 * np.pi, 24)
    for t in range(frames):
        centre = np.array(size) / 2 + np.sin(t / 5) * np.array([10, 25])
        masks[0].append(outline_of(radius * 1.02, bumps + .2 * rng.standard_normal(24), centre + rng.integers(-3, 4, 2), size))
        masks[1].append(outline_of(radius, bumps, centre, size))
    return np.stack(masks[0]), np.stack(masks[1])


# ---- the definition, frame by frame, on whole frames

def berkeley_outline(mask):
    "The toolkit's rule: where a pixel differs from its right, lower or lower-right neighbour."
    right, below, diagonal = (np.zeros_like(mask) for _ in range(3))
    right[:, :-1], below[:-1], diagonal[:-1, :-1] = mask[:, 1:], mask[1:], mask[1:, 1:]
    outline = mask ^ right | mask ^ below | mask ^ diagonal
    outline[-1], outline[:, -1], outline[-1, -1] = mask[-1] ^ right[-1], mask[:, -1] ^ below[:, -1], False
    return outline


def disk(radius):
    steps = np.arange(-radius, radius + 1)
    return (steps[:, None] ** 2 + steps ** 2 <= radius ** 2).astype(np.uint8)


def dilate_with_cv2(outline, footprint):
    return cv2.dilate(outline.astype(np.uint8), footprint)


def dilate_with_skimage(outline, footprint):
    from skimage.morphology import dilation
    return dilation(outline.astype(np.uint8), footprint)


def davis_j(prediction, truth):
    union = np.sum(prediction | truth)
    return np.sum(prediction & truth) / union if union else 1.0


def davis_f(prediction, truth, dilate=dilate_with_cv2, bound_th=.008):
    footprint = disk(int(np.ceil(bound_th * np.linalg.norm(prediction.shape))))
    outlines = [berkeley_outline(mask) for mask in (prediction, truth)]
    found = [np.sum(outline) for outline in outlines]
    if not all(found):
        return float(not any(found))
    precision = np.sum(outlines[0] * dilate(outlines[1], footprint)) / found[0]
    recall = np.sum(outlines[1] * dilate(outlines[0], footprint)) / found[1]
    return 0.0 if precision + recall == 0 else 2 * precision * recall / (precision + recall)


def by_definition(prediction, truth, dilate=dilate_with_cv2):
    "J and F of a clip, [T, 2]."
    return np.array([(davis_j(p, g), davis_f(p, g, dilate)) for p, g in zip(prediction, truth)])


def by_fsrvos(prediction, truth):
    return np.stack(region_and_contour(prediction, truth), 1)


def by_numpy(prediction, truth):
    "What runs where there is no compiler."
    with unittest.mock.patch.dict(os.environ, FSRVOS_KERNELS="reference"):
        return by_fsrvos(prediction, truth)


def compare(prediction, truth, dilate, reference, turns):
    ways = {reference: lambda: by_definition(prediction, truth, dilate), NUMPY: lambda: by_numpy(prediction, truth), OURS: lambda: by_fsrvos(prediction, truth)}
    row, found = in_turns(ways, turns), [count() for count in ways.values()]
    return {**row, "ratio J and F": ratio(row, reference, OURS, "cpu_median_ms"), "ratio J and F, NumPy alone": ratio(row, reference, NUMPY, "cpu_median_ms"), "frames": len(truth),
            "largest difference": float(max(np.abs(found[0] - other).max() for other in found[1:]))}


# ---- files

def write_clip(folder, video, masks):
    "Masks of several objects bool [M, T, H, W] as PNGs of object ids; where they overlap, the last object is seen."
    ids = np.zeros(masks.shape[1:], np.uint8)
    for number, mask in enumerate(masks, 1):
        ids[mask] = number
    for t, frame in enumerate(ids):
        write_masks(Path(folder) / video / f"{t:05d}.png", frame)


def files_by_package(truths, predictions):
    "{(video, object): (J, F)} in percent, as vos-benchmark's own worker computes them for each video, without its pool of processes."
    from vos_benchmark.benchmark import VideoEvaluator
    measure, scores = VideoEvaluator(str(truths), str(predictions), skip_first_and_last=False), {}
    for video in sorted(os.listdir(truths)):
        _, j, f = measure(video)
        scores |= {(video, number): (j[number], f[number]) for number in j}
    return scores


def files_by_fsrvos(truths, predictions):
    "The same, with ours: the objects of each frame are those of its ground truth."
    scores = {}
    for video in sorted(os.listdir(truths)):
        for frame in sorted(os.listdir(Path(truths) / video)):
            truth, prediction = (np.asarray(Image.open(Path(folder) / video / frame)) for folder in (truths, predictions))
            for number in range(1, int(truth.max()) + 1):
                pair = prediction == number, truth == number
                if pair[1].any():
                    scores.setdefault((video, number), []).append(region_and_contour(*pair))
    return {key: 100 * np.mean(values, 0) for key, values in scores.items()}


def compare_files(folder, turns, clips):
    "clips: {video: [prediction and ground truth of each object]}."
    truths, predictions = Path(folder) / "truth", Path(folder) / "prediction"
    for video, objects in clips.items():
        for target, which in ((predictions, 0), (truths, 1)):
            write_clip(target, video, np.stack([pair[which] for pair in objects]))
    row = in_turns({PACKAGE: lambda: files_by_package(truths, predictions), OURS: lambda: files_by_fsrvos(truths, predictions)}, turns)
    theirs, ours = files_by_package(truths, predictions), files_by_fsrvos(truths, predictions)
    if theirs.keys() != ours.keys():
        raise SystemExit(f"vos-benchmark found the objects {sorted(theirs)}, fsrvos {sorted(ours)}")
    difference = max(np.abs(theirs[key] - ours[key]).max() for key in ours)
    return {**row, "ratio J and F of files": ratio(row, PACKAGE, OURS, "cpu_median_ms"), "files": 2 * sum(len(pair[0][1]) for pair in clips.values()), "objects": len(ours),
            "largest difference in percent": float(difference)}


def report(turns=9, frames=FRAMES, size=(HEIGHT, WIDTH)):
    scale = size[0] / HEIGHT
    pairs = {name: moving_object(radius * scale, frames, size, seed) for seed, (name, radius) in enumerate(CASES.items())}
    few = {name: [masks[:FEW] for masks in pair] for name, pair in pairs.items()}
    cases = {f"{name}, {len(pair[0])} frames of {size[1]}x{size[0]}": compare(*pair, dilate_with_cv2, DAVIS, turns) for clips in (few, pairs) for name, pair in clips.items()}
    if importlib.util.find_spec("skimage"):
        short = [masks[:2] for masks in list(pairs.values())[2]]
        cases[f"{list(CASES)[2]}, 2 frames of {size[1]}x{size[0]}, as the toolkit of 2016 dilated"] = compare(*short, dilate_with_skimage, SKIMAGE, min(turns, 3))
    if importlib.util.find_spec("vos_benchmark") and importlib.util.find_spec("skimage"):
        few = list(few.values())
        with tempfile.TemporaryDirectory() as folder:
            cases["PNG files of 4 videos, one object each"] = compare_files(Path(folder) / "one", turns, {f"video{n}": [pair] for n, pair in enumerate(few)})
            cases["PNG files of a video, two objects"] = compare_files(Path(folder) / "two", turns, {"video": [few[2], few[1]]})
    else:
        print("left out: vos-benchmark is not installed, so nothing is compared with it: pip install scikit-image && pip install --no-deps vos-benchmark")
    return {"machine": machine("numpy", "opencv-python-headless", "pillow", *installed("scikit-image", "vos-benchmark")), "cases": cases}


def installed(*names):
    "Those of the distributions that are installed."
    return [d for d in names if any(importlib.metadata.distributions(name=d))]


if __name__ == "__main__":
    threads = int(os.environ.get("OMP_NUM_THREADS", 1))
    torch.set_num_threads(threads), cv2.setNumThreads(threads)
    made = report()
    write(__file__, made)
    for name, row in made["cases"].items():
        print(name, {k: v for k, v in row.items() if not isinstance(v, dict)})
