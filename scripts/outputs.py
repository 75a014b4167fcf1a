"""outputs.py NOTEBOOK ...: run notebooks and keep with them what a reader is to see: what is printed and shown, no warnings, progress bars or states of widgets.

    python scripts/outputs.py nbs/tutorials/*.ipynb    # after a new study: what the tutorials show comes of its models and reports

Each is run where it lies and replaced when all of it has run; one that fails stays as it was, and is named."""
import os
import subprocess
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

WIDGET = "application/vnd.jupyter.widget-view+json"


def shown(output: dict) -> bool:
    "Is this for a reader?"
    if output.output_type == "stream":
        return output.name == "stdout"
    return WIDGET not in output.get("data", {})


def run(path: Path) -> None:
    "Execute the notebook and write it with its outputs. CellExecutionError where a cell fails."
    notebook = nbformat.read(path, 4)
    NotebookClient(notebook, timeout=None, kernel_name="python3", coalesce_streams=True, resources={"metadata": {"path": path.parent}}).execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if shown(output)]
    notebook.metadata.pop("widgets", None)
    temporary = path.with_suffix(".tmp")
    nbformat.write(notebook, temporary)
    os.replace(temporary, path)
    subprocess.run(["nbdev_clean", "--fname", str(path)], check=True)


def main(paths: list[Path]) -> None:
    if absent := [path for path in paths if not path.is_file()]:
        sys.exit(f"{absent[0]}: no such notebook; name those to be run, e.g. nbs/tutorials/*.ipynb")
    failed = []
    for path in paths:
        try:
            run(path)
            print(path, flush=True)
        except CellExecutionError as error:
            failed.append(f"{path}: {error}")
    if failed:
        sys.exit("\n".join(failed))


if __name__ == "__main__":
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    main([*map(Path, sys.argv[1:])])
