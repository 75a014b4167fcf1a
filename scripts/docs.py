"""The site in _docs/: nbdev processes the notebooks; smalldocs renders them, or Quarto where it is installed."""
import shutil
import subprocess
from pathlib import Path

import nbformat
import yaml
from nbdev.config import get_config
from nbdev.serve import proc_nbs

ROOT = Path(__file__).resolve().parents[1]
ORDER = ("tutorials", "data", "models", "training", "evaluation", "apps", "pipeline")


def title(notebook: Path) -> str:
    "The first heading of a notebook."
    lines = (line for cell in nbformat.read(notebook, 4).cells if cell.cell_type == "markdown" for line in cell.source.splitlines())
    return next((line[2:] for line in lines if line.startswith("# ")), notebook.stem)


def entries(folder: Path, root: Path) -> list[dict]:
    return [{"text": title(p), "href": p.relative_to(root).as_posix()} for p in sorted(folder.glob("*.ipynb")) if p.stem != "index"]


def site(root: Path) -> dict:
    "The options of the site: pages in the order in which they are best read."
    settings = get_config()
    sections = [{"section": name, "contents": entries(root / name, root)} for name in ORDER if list((root / name).glob("*.ipynb"))]
    return {"project": {"type": "website", "output-dir": str(ROOT / "_docs")},
            "website": {"title": settings["title"], "description": settings["description"], "search": True,
                        "sidebar": {"style": "floating", "contents": [{"text": "fsrvos", "href": "index.ipynb"}, *sections, *entries(root, root)]}},
            "format": {"html": {"theme": "cosmo", "toc": True}}}


def render() -> None:
    "Build the site with smalldocs; its warnings are shown but for the one about a key that is Quarto's."
    proc_nbs(force=True)
    processed = ROOT / "_proc"
    (processed / "_smalldocs.yml").write_text(yaml.safe_dump(site(ROOT / "nbs"), sort_keys=False))
    shutil.rmtree(ROOT / "_docs", ignore_errors=True)
    done = subprocess.run(["smalldocs", "render", "--quiet", str(processed)], stderr=subprocess.STDOUT, stdout=subprocess.PIPE, text=True)
    print(*(line for line in done.stdout.splitlines() if "output-file is not read" not in line), sep="\n")
    done.check_returncode()


if __name__ == "__main__":
    if shutil.which("quarto"): subprocess.run(["nbdev_docs"], check=True)
    else: render()
    shutil.copytree(ROOT / "reports", ROOT / "_docs/reports", dirs_exist_ok=True)  # the first page shows a picture of it
    print("open _docs/index.html")
