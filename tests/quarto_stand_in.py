"quarto render FOLDER --no-execute, as far as links go: a page under _site/ for each page of the project, with the links and pictures of its Markdown and of what that includes, and a theme that fetches a font."
import html
import json
import re
import shutil
import sys
from pathlib import Path

import yaml

command, folder, option = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
if (command, option) != ("render", "--no-execute"):
    raise SystemExit(f"asked to {sys.argv[1:]}")
project = yaml.safe_load((folder / "_quarto.yml").read_text())
site = folder / project["project"]["output-dir"]
for page in [p for kind in ("*.ipynb", "*.qmd") for p in folder.rglob(kind)]:
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".ipynb":
        text = "\n".join("".join(c["source"]) for c in json.loads(text)["cells"] if c["cell_type"] == "markdown")
    text = re.sub(r"{{< include (\S+) >}}", lambda m: (page.parent / m[1]).read_text(encoding="utf-8"), text)
    text = re.sub(r"!\[([^]]*)\]\(([^)\s]+)\)", r'<img src="\2">', html.escape(text, quote=False))
    text = re.sub(r"\[([^]]+)\]\(([^)\s]+)\)(?:\{\.[\w-]+\})?", r'<a href="\2">\1</a>', text)
    text = re.sub(r'(href="(?![a-z]+:)[^"#]+)\.(?:qmd|ipynb)', r"\1.html", text)
    target = site / page.relative_to(folder).with_suffix(".html")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(f"<pre>{text}</pre>", encoding="utf-8")
for path in [p for pattern in project["project"]["resources"] for p in folder.glob(pattern)]:
    (site / path.relative_to(folder)).parent.mkdir(exist_ok=True)
    shutil.copy(path, site / path.relative_to(folder))
(site / "theme.css").write_text("@import url(https://fonts.invalid/a.css); p { color: red }")
