"""README.md from nbs/index.ipynb: its prose as it is, its code in fences."""
import os
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[1]


def readme() -> str:
    "The text of README.md."
    parts = ["<!-- made by `make docs` from nbs/index.ipynb: edit that -->"]
    for cell in nbformat.read(ROOT / "nbs/index.ipynb", 4).cells:
        if cell.cell_type == "markdown": parts.append(cell.source)
        if cell.cell_type == "code": parts.append("```python\n" + "\n".join(l for l in cell.source.splitlines() if not l.startswith("#|")) + "\n```")
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    temporary = ROOT / "README.md.tmp"
    temporary.write_text(readme(), encoding="utf-8")
    os.replace(temporary, ROOT / "README.md")
