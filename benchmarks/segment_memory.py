"""Peak memory of `fsrvos segment` against the length of the video, each length in a process of its own; loading the model and saving the result included.

python benchmarks/segment_memory.py    writes benchmarks/segment_memory.json beside itself.
"""
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from timing import machine, spread, write

LENGTHS, MODELS = (50, 500, 2000), ("fsrvos-demo", "fsrvos-demo-multi")


def moving(clip, count):
    "`count` frames: a drawn clip to and fro, each time a little further to the side."
    import numpy as np
    there_and_back = [*clip.frames, *clip.frames[-2:0:-1]]
    for t in range(count):
        yield np.roll(there_and_back[t % len(there_and_back)], t // 40, axis=1)


def one(model: str, video: str, out: str) -> None:
    "In its own process: segment, save, print the peak and the time."
    from fsrvos.apps.demo import draw_clip
    from fsrvos.apps.segment import Segmenter
    support, query = draw_clip("hedgehog", 0, "support"), draw_clip("hedgehog", 0, "query", objects=2)
    segmenter = Segmenter.from_pretrained(model).support(support.frames[:5], support.ids[:5] == 1, next(t for t, i in support.sentences if i == (1,)))
    begun = time.perf_counter()
    found = segmenter.segment(video, next(t for t, i in query.sentences if i == (1,)), progress=False)
    seconds = time.perf_counter() - begun
    found.save(out)
    print(json.dumps({"frames": found.frames, "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024), "seconds": round(seconds, 1), "found": len(found)}))


def report(about: dict, rows: list[dict]) -> dict:
    "The machine, and a case for each model from what the processes printed: by the frames of the video; `above_mb`: more than for the shortest video."
    cases = {}
    for row in rows:
        case = cases.setdefault(f"{row['model']}, by frames of 128x192", {})
        least = next(iter(case.values()))["fsrvos"]["peak_mb"] if case else row["peak_mb"]
        case[str(row["frames"])] = {"fsrvos": {**spread([row["seconds"]]), "peak_mb": row["peak_mb"], "above_mb": row["peak_mb"] - least, "frames_a_second": round(row["frames"] / row["seconds"], 1),
                                               "found": row["found"]}}
    return {"machine": about, "cases": cases}


def main() -> None:
    from fsrvos.apps.demo import draw_clip
    from fsrvos.data.video import write_video
    clip, rows = draw_clip("hedgehog", 0, "query", objects=2), []
    with tempfile.TemporaryDirectory() as folder:
        for length in LENGTHS:
            video = write_video(Path(folder) / f"{length}.mp4", moving(clip, length), 25)
            for model in MODELS:
                done = subprocess.run([sys.executable, __file__, model, str(video), f"{folder}/out"], capture_output=True, text=True, check=True)
                rows.append({"model": model, **json.loads(done.stdout.splitlines()[-1])})
                print(rows[-1])
    write(__file__, report(machine(), rows))


if __name__ == "__main__":
    one(*sys.argv[1:]) if len(sys.argv) > 1 else main()
