"""docs.py [OUT]: the site, in _docs/ unless told otherwise. nbdev processes the notebooks; smalldocs renders them, or Quarto where it is installed, from one project file.

Nothing in it is fetched from elsewhere when it is read."""
import html
import json
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import nbformat
import yaml
from latex2mathml.converter import convert
from nbdev.config import get_config
from nbdev.serve import proc_nbs
from packaging.requirements import Requirement
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

from fsrvos.apps.still import without_kernel
from fsrvos.evaluation.speed import ceilings_table, counted_table, goals_table, growth_figure, machines_table, other_table, read_reports, roofline_table, speed_figure, speed_table

ROOT = Path(__file__).resolve().parents[1]
ORDER = ("tutorials", "data", "models", "training", "evaluation", "apps", "pipeline")
ABOUT = {"results": "Results", "speed": "Speed", "data": "Data", "cite": "How to cite", "licences": "Licences and credits"}
SOURCE = "https://source.invalid"    # stands for the source pages until they are written: smalldocs takes an address only
STYLE = """.math.display { display: block; overflow-x: auto; overflow-y: hidden; text-align: center; }
html.quarto-dark .sidebar-title a { color: inherit; }
html.quarto-dark .smalldocs-search input { background: transparent; color: inherit; }
main h1:not(.title) { font-size: 1.7rem; }
main table { display: block; overflow-x: auto; max-width: 100%; }
main img, main svg { max-width: 100%; height: auto; }
main :not(pre) > code, main a { overflow-wrap: anywhere; }
"""


def title(notebook: Path) -> str:
    "The first heading of a notebook."
    lines = (line for cell in nbformat.read(notebook, 4).cells if cell.cell_type == "markdown" for line in cell.source.splitlines())
    return next((line[2:] for line in lines if line.startswith("# ")), notebook.stem)


def entries(folder: Path, root: Path) -> list[dict]:
    return [{"text": title(p), "href": p.relative_to(root).as_posix()} for p in sorted(folder.glob("*.ipynb")) if p.stem != "index"]


def site(root: Path) -> dict:
    "The options of the site, for Quarto and for smalldocs, which reads Quarto's: pages in the order in which they are best read."
    settings = get_config()
    sections = [{"section": name, "contents": entries(root / name, root)} for name in ORDER if list((root / name).glob("*.ipynb"))]
    about = [{"text": text, "href": f"{page}.qmd"} for page, text in ABOUT.items()]
    reference = [{"text": "API reference", "href": "api/index.qmd"}]
    return {"project": {"type": "website", "output-dir": "_site", "resources": ["reports/*.png"]},
            "website": {"title": settings["title"], "description": settings["description"], "search": True,
                        "sidebar": {"style": "floating", "contents": [{"text": "fsrvos", "href": "index.ipynb"}, *about[:3], *sections, *entries(root, root), *reference, *about[3:]]}},
            "format": {"html": {"theme": {"light": "cosmo", "dark": "darkly"}, "toc": True, "css": "site.css", "html-math-method": "mathml"}},
            "smalldocs": {"api": {"packages": ["fsrvos"], "out": "api", "root": "..", "source": SOURCE}}}


# ---- pages that are made of other files

def packages_table() -> str:
    "What the package requires, with the licences that the installed packages state."
    lines = ["| package | version | licence |", "|---|---|---|"]
    for name in sorted({Requirement(r).name for r in get_config()["requirements"].split()}, key=str.lower):
        lines.append(f"| {name} | {metadata.version(name)} | {licence(metadata.metadata(name))} |")
    return "\n".join(lines) + "\n"


def licence(about) -> str:
    "The licence that a package's metadata states, in a few words."
    classified = [c.split(" :: ")[-1] for c in about.get_all("Classifier") or () if c.startswith("License :: ")]
    stated = about.get("License-Expression") or next(iter(classified), None) or (about.get("License") or "").split("\n")[0]
    return stated if stated not in ("", "UNKNOWN") else "in the package's own LICENSE file"


def cite_page() -> str:
    "How to cite, from CITATION.cff: the software, then its references, in words and as BibTeX."
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    works = [{**cited, "year": None}, *cited["references"]]
    words = "\n".join(f"- {reference(work)}" for work in works)
    return f"---\ntitle: How to cite\n---\n\n{cited['message']}\n\n{words}\n\n```bibtex\n" + "\n\n".join(map(bibtex, works)) + "\n```\n"


def people(work: dict) -> list[str]:
    return [a["name"] if "name" in a else f"{a['family-names']}, {a['given-names']}" for a in work["authors"]]


def reference(work: dict) -> str:
    where = [work.get("collection-title") or work.get("journal"), f"version {work['version']}" if "version" in work else None, str(work["year"]) if work.get("year") else None]
    return f"{'; '.join(people(work))}: *{work['title']}*. {', '.join(filter(None, where))}." + (f" <{work['url']}>" if "url" in work else "")


def bibtex(work: dict) -> str:
    kind = {"conference-paper": "inproceedings", "article": "article", "software": "software"}[work["type"]]
    fields = {"title": f"{{{work['title']}}}", "author": " and ".join(people(work)), "booktitle": work.get("collection-title"), "journal": work.get("journal"), "year": work.get("year"),
              "version": work.get("version"), "url": work.get("url")}
    name = people(work)[0].split(",")[0].split()[0].lower() + str(work.get("year") or "")
    return f"@{kind}{{{name},\n" + "".join(f"  {key} = {{{value}}},\n" for key, value in fields.items() if value) + "}"


def speed_tables(pictures: Path) -> str:
    "Tables and pictures of the reports in benchmarks/; the pictures are written to the folder of those of the site's pages."
    reports = read_reports(ROOT / "benchmarks")
    figures = {"speed": ("Ratios", speed_figure(reports)), "growth": ("Growth with the size of the work", growth_figure(reports))}
    parts = [goals_table(reports).markdown()]
    for name, (caption, figure) in figures.items():
        if figure is not None:
            figure.savefig(pictures / f"{name}.png", dpi=100)
            parts.append(f"![{caption}](reports/{name}.png)")
    parts += [make(reports).markdown() for make in (speed_table, other_table, counted_table)]
    for path in sorted((ROOT / "benchmarks").glob("*.png")):
        shutil.copy(path, pictures)
        parts.append(f"![{path.stem.capitalize()}](reports/{path.name})")
    return "\n\n".join([*parts, *(make(reports).markdown() for make in (roofline_table, ceilings_table, machines_table))])


def api_index() -> str:
    "The reference's first page: every module by floor, with its one line. Links go to the pages that smalldocs makes."
    lines = ["---\ntitle: API reference\ndescription: Every public name, from the docstrings; the notebooks explain what is listed here\n---\n"]
    for floor in ("data", "models", "training", "evaluation", "apps"):
        lines.append(f"\n# fsrvos.{floor}\n\n| module | |\n|---|---|")
        for path in sorted((ROOT / "fsrvos" / floor).glob("[a-z]*.py")):
            docstring = path.read_text(encoding="utf-8").split('"""')[1].split("\n")[0]
            lines.append(f"| [{path.stem}]({api_page(path)}.qmd) | {docstring} |")
    return "\n".join(lines) + "\n"


def api_page(module: Path) -> str:
    "The name that smalldocs gives a module's page: short where no other module has it."
    twins = [p for p in (ROOT / "fsrvos").rglob("*.py") if p.stem == module.stem]
    return module.stem if len(twins) == 1 else ".".join(module.relative_to(ROOT).with_suffix("").parts)


# ---- the finished pages

def typeset(page: str) -> str:
    "Equations as MathML, which browsers draw themselves, in the place of TeX for a script from elsewhere. (Quarto makes MathML itself.)"
    page = re.sub(r'<(?:link|script)[^>]*/katex@[^>]*>(?:</script>)?', "", page)
    display = {"inline": "inline", "display": "block"}
    return re.sub(r'(<span class="math (inline|display)">)\\[(\[](.*?)\\[)\]](</span>)', lambda m: m[1] + convert(html.unescape(m[3]), display=display[m[2]]) + m[4], page, flags=re.S)


def link_sources(page: str, up: str) -> str:
    "Links to lines of the package's source pages; up: the way to the site's root."
    return re.sub(rf'href="{SOURCE}/([\w/]+)\.py#L(\d+)"[^>]*>', rf'href="{up}source/\1.html#L-\2">', page)


def write_sources(folder: Path) -> None:
    "The package's modules as pages, each line with an anchor."
    for path in sorted((ROOT / "fsrvos").rglob("[a-z]*.py")):
        target = (folder / path.relative_to(ROOT)).with_suffix(".html")
        target.parent.mkdir(parents=True, exist_ok=True)
        look = HtmlFormatter(full=True, linenos="inline", lineanchors="L", anchorlinenos=True, title=path.relative_to(ROOT).as_posix(),
                             cssstyles="overflow-x: auto")
        page = highlight(path.read_text(encoding="utf-8"), PythonLexer(), look)
        target.write_text(page.replace("<head>", '<head>\n  <meta name="viewport" content="width=device-width, initial-scale=1">', 1), encoding="utf-8")


def finish(folder: Path) -> None:
    "Equations and source links of every page; themes without the fonts that they would fetch: the reader's own are taken."
    for path in folder.rglob("*.css"):
        path.write_text(re.sub(r"@import url\(https?:[^)]*\);", "", path.read_text(encoding="utf-8")), encoding="utf-8")
    for path in folder.rglob("*.html"):
        up = "../" * (len(path.relative_to(folder).parts) - 1)
        path.write_text(link_sources(typeset(path.read_text(encoding="utf-8")), up), encoding="utf-8")
    write_sources(folder / "source")


def prepare(processed: Path) -> None:
    "What is rendered beside the notebooks, their saved widgets, and the options."
    for path in processed.rglob("*.ipynb"):
        path.write_text(json.dumps(without_kernel(json.loads(path.read_text(encoding="utf-8")))), encoding="utf-8")
    (processed / "api").mkdir()
    (processed / "api/index.qmd").write_text(api_index(), encoding="utf-8")
    (processed / "cite.qmd").write_text(cite_page(), encoding="utf-8")
    with open(processed / "licences.qmd", "a", encoding="utf-8") as page:
        page.write(packages_table())
    shutil.copytree(ROOT / "reports", processed / "reports", ignore=shutil.ignore_patterns("*.md"))
    with open(processed / "speed.qmd", "a", encoding="utf-8") as page:
        page.write(speed_tables(processed / "reports"))
    (processed / "site.css").write_text(STYLE)
    (processed / "_quarto.yml").write_text(yaml.safe_dump(site(ROOT / "nbs"), sort_keys=False))


def smalldocs(*arguments) -> None:
    "Run smalldocs; its warnings are shown but for those about keys that are Quarto's."
    done = subprocess.run([sys.executable, "-m", "smalldocs.cli", *map(str, arguments)], stderr=subprocess.STDOUT, stdout=subprocess.PIPE, text=True)
    print(*(line for line in done.stdout.splitlines() if not re.search("output-file is not read|html-math-method is ignored", line)), sep="\n")
    done.check_returncode()


def render(processed: Path) -> None:
    "Pages in _site/. The reference's pages are written by smalldocs either way."
    if not shutil.which("quarto"):
        return smalldocs("render", "--quiet", processed)
    smalldocs("api", "build", "--dir", processed)
    subprocess.run(["quarto", "render", str(processed), "--no-execute"], check=True)


def build(out: Path) -> None:
    "The site in the folder `out`, in the place of what was there."
    processed = Path(proc_nbs(force=True))
    prepare(processed)
    render(processed)
    shutil.rmtree(out, ignore_errors=True)
    shutil.move(processed / "_site", out)
    finish(out)
    shutil.copytree(ROOT / "reports", out / "reports", dirs_exist_ok=True)  # the first page shows a picture of it


if __name__ == "__main__":
    out = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "_docs")
    build(out)
    print(f"open {out}/index.html")
