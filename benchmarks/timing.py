"""What the benchmarks share: ways that take turns in one process, medians with their spread, the machine, and a report that is whole or not there."""
import importlib.metadata
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch


# glibc gives large tensors back to the system when they are freed, which clears them when they are asked for again: a third to half of the plain path's time at the paper's size.
FREED_MEMORY_KEPT = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "100000000000"}  # environment of a process that keeps them; as in scripts/study.sh


def in_turns(ways: dict[str, Callable[[], object]], turns: int = 9, warm_up: int = 1) -> dict[str, dict]:
    """{way: what is timed} -> {way: wall and processor milliseconds of a call: median, least, most}. The ways take turns, so that what slows the machine down slows all of
    them down; the first `warm_up` turns do not count."""
    taken = {way: ([], []) for way in ways}
    for turn in range(warm_up + turns):
        for way, call in ways.items():
            wall, cpu = time.perf_counter(), time.process_time()
            call()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn >= warm_up:
                taken[way][0].append(time.perf_counter() - wall)
                taken[way][1].append(time.process_time() - cpu)
    return {way: {**spread(wall), "cpu_median_ms": round(1e3 * statistics.median(cpu), 3)} for way, (wall, cpu) in taken.items()}


def spread(seconds: list[float]) -> dict[str, float]:
    "Seconds of several calls -> median, least and most, in milliseconds."
    return {f"{name}_ms": round(1e3 * of(seconds), 3) for name, of in (("median", statistics.median), ("least", min), ("most", max))}


def ratio(times: dict[str, dict], reference: str, way: str, key: str = "median_ms") -> float:
    "How many times longer the reference takes."
    return round(times[reference][key] / times[way][key], 2)


def machine(*packages: str) -> dict:
    "What every report says about where it was made; `packages`: further distributions whose versions matter."
    device = {"device": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    return {"processor": platform.machine(), "cpus": os.cpu_count(), "threads": torch.get_num_threads(), "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in ("torch", *packages)}, **device}


def write(script: str, report: dict) -> Path:
    "The report, beside its script under the same name; on a GPU machine `<name>.cuda.json`."
    out = Path(script).with_suffix(".cuda.json" if torch.cuda.is_available() else ".json")
    scratch = out.with_suffix(".tmp")
    scratch.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    scratch.replace(out)
    return out
