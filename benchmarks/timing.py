"""What the benchmarks share: ways that take turns in one process, medians with their spread, peak memory, the machine, and a report that is whole or not there."""
import ctypes
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


def in_turns(ways: dict[str, Callable[[], object]], turns: int = 9, warm_up: int = 1, device: str = "cpu") -> dict[str, dict]:
    """{way: what is timed} -> {way: wall and processor milliseconds of a call: median, least, most; of the GPU's work, device "cuda", the wall's alone}. The ways take turns, so
    that what slows the machine down slows all of them down; the first `warm_up` turns do not count."""
    taken = {way: ([], []) for way in ways}
    for turn in range(warm_up + turns):
        for way, call in ways.items():
            wall, cpu = time.perf_counter(), time.process_time()
            call()
            if torch.cuda.is_initialized():
                torch.cuda.synchronize()
            if turn >= warm_up:
                taken[way][0].append(time.perf_counter() - wall)
                taken[way][1].append(time.process_time() - cpu)
    of_cpu = lambda seconds: {"cpu_median_ms": round(1e3 * statistics.median(seconds), 3)} if device == "cpu" else {}
    return {way: spread(wall) | of_cpu(cpu) for way, (wall, cpu) in taken.items()}


def spread(seconds: list[float]) -> dict[str, float]:
    "Seconds of several calls -> median, least and most, in milliseconds."
    return {f"{name}_ms": round(1e3 * of(seconds), 3) for name, of in (("median", statistics.median), ("least", min), ("most", max))}


def ratio(times: dict[str, dict], reference: str, way: str, key: str = "median_ms") -> float:
    "How many times longer the reference takes."
    return round(times[reference][key] / times[way][key], 2)


def peak(call: Callable[[], object], device: str = "cpu") -> float:
    "MiB by which the process (device \"cuda\": what PyTorch has on the GPU) holds more at most during the call than before it."
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return (torch.cuda.max_memory_allocated() - before) / 2 ** 20
    ctypes.CDLL(None).malloc_trim(0)  # what was freed before would be taken again, and not seen (glibc)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from what is held now (Linux)
    before = _held("VmRSS")
    call()
    return (_held("VmHWM") - before) / 1024


def _held(name: str) -> int:
    "A line of /proc/self/status, in KiB."
    return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))


def exact_float32() -> None:
    "What is called float32 is multiplied as float32 on a GPU, too, not as TF32, which PyTorch takes for convolutions unless it is told; `machine` says what holds."
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> dict:
    "The processor's model, and whether it has matrix tiles (Intel's AMX): two of one architecture may differ much. Without Linux's own words, what Python knows."
    try:
        lines = [line.partition(":") for line in cpuinfo.read_text().splitlines()]
    except OSError:
        lines = []
    said = {name.strip(): value.strip() for name, _, value in reversed(lines)}  # the first processor's stand
    return {"model": said.get("model name") or platform.processor() or "unknown", "matrix tiles": "amx_tile" in said.get("flags", "").split()}


def machine(*packages: str, device: str = "cpu") -> dict:
    "What every report says about where it was made; `packages`: further distributions whose versions matter; device: \"cuda\" where the GPU did the work, whose name is then told, and whether float32 may be TF32 there."
    tf32 = torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32
    gpu = {"device": torch.cuda.get_device_name(), "tf32": tf32} if device == "cuda" else {}
    return {"processor": platform.machine(), **processor(), "cpus": os.cpu_count(), "threads": torch.get_num_threads(), "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in ("torch", *packages)}, **gpu}


def write(script: str, report: dict) -> Path:
    "The report, beside its script under the same name; a GPU's, whose machine names it, as `<name>.cuda.json`."
    out = Path(script).with_suffix(".cuda.json" if "device" in report["machine"] else ".json")
    scratch = out.with_suffix(".tmp")
    scratch.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    scratch.replace(out)
    return out
