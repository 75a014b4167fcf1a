"""Benchmarks, one after another, each in a process of its own: what they write lies beside them. One that fails does not stop the others; the exit status tells.

python scripts/bench.py [NAME ...]    those that are named, without names every one.
"""
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LAST = ("curation_scale", "segment_memory")  # minutes each, and rarely of interest
LEFT_OUT = "left out: "  # how a benchmark's line begins that says what cannot be measured here, and why


def scripts(folder: Path) -> list[Path]:
    "The benchmarks of a folder: what can be run, by name, the longest last."
    found = [path for path in folder.glob("*.py") if 'if __name__ == "__main__":' in path.read_text(encoding="utf-8")]
    return sorted(found, key=lambda path: (path.stem in LAST, path.stem))


def named(paths: list[Path], names: list[str]) -> list[Path]:
    "Those of the benchmarks that are named, all where none is; ends the program where a name is no benchmark's."
    known = [path.stem for path in paths]
    if unknown := [name for name in names if name not in known]:
        print(f"no benchmark is called {', '.join(unknown)}; there are {', '.join(known)}", file=sys.stderr)
        raise SystemExit(2)
    return [path for path in paths if path.stem in names or not names]


def run_all(paths: list[Path]) -> list[str]:
    "Run them, saying what became of each and what it left out; names of those that failed."
    failed = []
    for path in paths:
        begun = time.perf_counter()
        done = subprocess.run([sys.executable, path], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        print(f"{path.stem}: {outcome(done)} after {time.perf_counter() - begun:.0f} s", flush=True)
        print(*(f"  {line}\n" for line in done.stdout.splitlines() if line.startswith(LEFT_OUT)), sep="", end="", flush=True)
        if done.returncode:
            failed.append(path.stem)
            print(done.stdout + done.stderr, file=sys.stderr)
    return failed


def outcome(done: subprocess.CompletedProcess) -> str:
    "In a word: a benchmark that says nothing but what it left out measured nothing."
    left_out = [line.startswith(LEFT_OUT) for line in done.stdout.splitlines() if line]
    return "FAILED" if done.returncode else "done" if not any(left_out) else "left out" if all(left_out) else "done in part"


if __name__ == "__main__":
    if failed := run_all(named(scripts(ROOT / "benchmarks"), sys.argv[1:])):
        raise SystemExit(f"failed: {', '.join(failed)} (what they said is above)")
    print("tables and plot: make docs, then _docs/speed.html")
