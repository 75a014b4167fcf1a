"Notebooks run for their readers."
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))
import outputs  # noqa: E402


def notebook(path, *cells):
    nbformat.write(new_notebook(cells=[new_code_cell(c) for c in cells], metadata={"kernelspec": {"name": "python3", "display_name": "python3"}}), path)
    return path


def test_what_is_printed_and_shown_stays(tmp_path):
    path = notebook(tmp_path / "a.ipynb", "import sys\nprint('seen')\nprint('a warning', file=sys.stderr)", "import ipywidgets\ndisplay(ipywidgets.FloatProgress())\n1 + 1")
    outputs.main([path])
    made = nbformat.read(path, 4)
    assert [[o.get("text") or o.data["text/plain"] for o in cell.outputs] for cell in made.cells] == [["seen\n"], ["2"]]
    assert "widgets" not in made.metadata and [p.name for p in tmp_path.iterdir()] == ["a.ipynb"]


def test_one_that_fails_stays_as_it_was_and_is_named(tmp_path):
    bad, good = notebook(tmp_path / "bad.ipynb", "1 / 0"), notebook(tmp_path / "good.ipynb", "print('yes')")
    before = bad.read_text()
    with pytest.raises(SystemExit, match=r"(?s)bad.ipynb: .*ZeroDivisionError"):
        outputs.main([bad, good])
    assert bad.read_text() == before and "yes" in good.read_text()
    with pytest.raises(SystemExit, match="none.ipynb: no such notebook"):
        outputs.main([good, tmp_path / "none.ipynb"])
