"""Every benchmark, one after another, each in a process of its own: what they write lies beside them. One that fails does not stop the others; the exit status tells."""
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LAST = ("curation_scale", "segment_memory")  # minutes each, and rarely of interest


def scripts(folder: Path) -> list[Path]:
    "The benchmarks of a folder: what can be run, by name, the longest last."
    found = [path for path in folder.glob("*.py") if 'if __name__ == "__main__":' in path.read_text(encoding="utf-8")]
    return sorted(found, key=lambda path: (path.stem in LAST, path.stem))


def run_all(paths: list[Path]) -> list[str]:
    "Run them; names of those that failed."
    failed = []
    for path in paths:
        begun = time.perf_counter()
        done = subprocess.run([sys.executable, path], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        print(f"{path.stem}: {'done' if done.returncode == 0 else 'FAILED'} after {time.perf_counter() - begun:.0f} s", flush=True)
        if done.returncode:
            failed.append(path.stem)
            print(done.stdout + done.stderr, file=sys.stderr)
    return failed


if __name__ == "__main__":
    if failed := run_all(scripts(ROOT / "benchmarks")):
        raise SystemExit(f"failed: {', '.join(failed)} (what they said is above)")
    print("tables and plot: make docs, then _docs/speed.html")
