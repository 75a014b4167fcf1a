"""Peak memory of `fsrvos segment` against the length of the video, each length in a process of its own.

python benchmarks/segment_memory.py    writes benchmarks/segment_memory.json beside itself.
"""
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

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


def main() -> None:
    import torch

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
    least = {m: next(r["peak_mb"] for r in rows if r["model"] == m) for m in MODELS}
    out = Path(__file__).with_suffix(".json")
    out.write_text(json.dumps({"machine": {"processor": platform.machine(), "cpus": os.cpu_count(), "threads": torch.get_num_threads(), "torch": torch.__version__}, "size": [128, 192],
                               "peak of the process, loading and saving included": [{**r, "above_50_frames_mb": r["peak_mb"] - least[r["model"]]} for r in rows]}, indent=1) + "\n")


if __name__ == "__main__":
    one(*sys.argv[1:]) if len(sys.argv) > 1 else main()
