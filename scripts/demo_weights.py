"""demo_weights.py CELL NAME: keep the trained part of a cell's model in weights/NAME (half precision), with a model card made of the cell's results."""
import json
import shutil
import sys
from pathlib import Path

import torch

from fsrvos.models.fsrvos import FSRVOSModel
from fsrvos.study import parse_cell

CARD = """# {name}

**Rendered clips only.** This model saw drawings (OpenMoji sprites) on rendered backgrounds, at 128x192 pixels, and nothing else. On real footage expect little of it: its masks are those of
flat, outlined shapes. It is here so that `fsrvos segment`, `fsrvos demo` and the tutorials run right after installation. To do better on your footage train on real video
(Ref-YouTube-VOS in its layout goes through the same pipeline, see `params.yaml`, size `paper`).

| | |
|---|---|
| what | `{cell}` of the study: method `{method}`, fold {fold}, size `cpu`; the trained part, {parameters:.2f} million parameters in half precision; the encoders come from their packages |
| trained on | the rendered pretraining corpus and the {train} training classes of fold {fold} |
| not trained on | {test} |
| score | J&F {JF:.1f} (95 % over videos: {low:.1f} to {high:.1f}) on those classes: {runs} support draws, {queries} queries, tolerance {bound_th} |
| needs its inputs | J&F on the first draw: {swaps} |
| code, parameters, data | {hashes} |
| for | trying the program out, teaching, tests |
| licence | Apache-2.0; the clips are drawn from OpenMoji (CC BY-SA 4.0) |
"""


def main(cell: str, name: str) -> None:
    out, scratch = Path("weights") / name, Path("weights") / f".{name}.partial"
    result, trained = (json.loads(Path(f"results/{stage}/{cell}.json").read_text()) for stage in ("evaluate", "train"))
    method, fold, _ = parse_cell(cell)
    folds = json.loads(Path("data/curated/folds.json").read_text())[str(fold)]
    model = FSRVOSModel.from_pretrained(f"data/models/{cell}", dtype=torch.float32)
    count = sum(p.numel() for p in model.parameters()) / 1e6
    shutil.rmtree(scratch, ignore_errors=True)
    model.half().save_pretrained(scratch)
    summary = result["summary"]
    score = {k: 100 * v for k, v in summary["frame_weighted"].items() if v is not None}
    swaps = ", ".join(f"{k.replace('_', ' ')} {100 * v['JF']:.0f}" for k, v in summary["per_swap"].items())
    (scratch / "README.md").write_text(CARD.format(
        name=name, cell=cell, method=method, fold=fold, parameters=count, train=len(folds["train"]), test=", ".join(c.replace("_", " ") for c in folds["test"]), JF=score["JF"], low=score["JF_low"],
        high=score["JF_high"], runs=summary["runs"], queries=summary["queries"], bound_th=summary["bound_th"], swaps=swaps,
        hashes=", ".join(f"`{trained['provenance'][k]}`" for k in ("code", "params", "data"))))
    shutil.rmtree(out, ignore_errors=True)
    scratch.rename(out)
    print(f"{out}: {sum(f.stat().st_size for f in out.iterdir()) / 2 ** 20:.1f} MB")


if __name__ == "__main__":
    main(*sys.argv[1:])
