"""What kernels share: whether they are wanted; C++ built when first asked for, kept in PyTorch's extension cache."""
import hashlib
import os
import platform
import sys
import sysconfig
import warnings
from pathlib import Path

import torch


def _flags() -> list[str]:
    "Compiler flags: for the processor at hand, since the library is built where it runs."
    return ["-O3", "-std=c++20", "-march=native" if platform.machine() != "arm64" else "-mcpu=native", *(["-fopenmp"] if sys.platform == "linux" else [])]


def _build_name(source: Path) -> str:
    "Names the library after what it was built from, so that a home directory may serve several machines."
    try:
        cpu = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        cpu = platform.processor()
    made_of = (source.read_text(), torch.__version__, sys.version, sysconfig.get_platform(), cpu, *_flags())
    return "fsrvos_" + hashlib.md5("\n".join(made_of).encode()).hexdigest()[:12]


def load(source: Path) -> None:
    "Build the library of one C++ file, or load the one that an earlier process built (the loader itself would build again for every other checkout)."
    from torch.utils import cpp_extension
    name = _build_name(source)
    folder = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or Path.home() / ".cache/torch_extensions") / name
    complete = folder / "complete"
    if complete.exists():
        torch.ops.load_library(folder / f"{name}.so")
        return
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["PATH"] = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))  # ninja may be there alone
    cpp_extension.load(name, [str(source)], extra_cflags=_flags(), extra_ldflags=["-fopenmp"] if sys.platform == "linux" else [],
                       build_directory=str(folder), is_python_module=False)
    complete.touch()


def wanted() -> bool:
    "Whether kernels may stand for the reference: not with FSRVOS_KERNELS=reference in the environment."
    return os.environ.get("FSRVOS_KERNELS") != "reference"


def loaded(source: Path, what: str, instead: str = "PyTorch's own operations take its place") -> bool:
    """`load`, or one warning that there is no kernel for `what` and what happens `instead`, and False: where there is no compiler, no ninja, no headers, or the disk is full; whatever it
    is, the reference does."""
    try:
        load(source)
    except Exception as error:
        said = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
        warnings.warn(f"no C++ kernel for {what} ({said}); {instead}", stacklevel=3)
        return False
    return True
