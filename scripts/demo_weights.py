"""demo_weights.py CELL NAME: keep the trained part of a cell's model in weights/NAME (half precision), with a model card made of the cell's results."""
import json
import shutil
import sys
from pathlib import Path

from fsrvos.apps.segment import load_model
from fsrvos.evaluation.multi_object import load_records, summary
from fsrvos.study import parse_cell

CARD = """# {name}

**Rendered clips only.** This model saw drawings (OpenMoji sprites) on rendered backgrounds, at 128x192 pixels, and nothing else. On real footage expect little of it: its masks are those of
flat, outlined shapes. On two shots (a man on a bicycle, a man in a car; `scripts/real_footage.py`) it reaches a J of {elsewhere} where the support is of the other shot, and of {same} where it is of the same one{nothing}. It is here so that `fsrvos segment`, `fsrvos demo` and the tutorials run right after installation. To do better on your footage train on real video
(Ref-YouTube-VOS in its layout goes through the same pipeline, see `params.yaml`, size `paper`).

| | |
|---|---|
| what | `{cell}` of the study: method `{method}`, fold {fold}, size `cpu`; the trained part, {parameters:.2f} million parameters in half precision; the encoders come from their packages |
| trained on | the rendered pretraining corpus and the {train} training classes of fold {fold} |
| not trained on | {test} |
{scores}
| code, parameters, data | {hashes} |
| for | trying the program out, teaching, tests |
| licence | Apache-2.0; the clips are drawn from OpenMoji (CC BY-SA 4.0) |
"""


SINGLE = """| score | J&F {JF:.1f} (95 % over videos: {JF_low:.1f} to {JF_high:.1f}) on those classes: {runs} support draws, {queries} queries, tolerance {bound_th} |
| needs its inputs | J&F on the first draw: {swaps} |"""
MULTI = """| score | J&F of the union on those classes: {by_targets}; tolerance {bound_th} |
| instances | F1 at IoU 0.5 {F1:.1f}, right number of objects {count:.1f} %, "nothing" said where nothing is meant {none:.1f} % |"""


def single_scores(cell: str) -> str:
    result = json.loads(Path(f"results/evaluate/{cell}.json").read_text())
    found = result["summary"]
    swaps = ", ".join(f"{k.replace('_', ' ')} {100 * v['JF']:.0f}" for k, v in found["per_swap"].items())
    return SINGLE.format(**{k: 100 * v for k, v in found["frame_weighted"].items() if v is not None}, runs=found["runs"], queries=found["queries"], bound_th=found["bound_th"], swaps=swaps)


def multi_scores(cell: str) -> str:
    info, records = load_records(f"results/multi/{cell}.json")
    found = summary([r for r in records if r["choice"] == "ism"])
    named = {"0": "nothing meant", "1": "one", "2": "two", "3+": "three or more"}
    by_targets = ", ".join(f"{text} {100 * found[g]['JF']:.1f} ({found[g]['queries']} queries)" for g, text in named.items() if g in found)
    return MULTI.format(by_targets=by_targets, bound_th=info["bound_th"], F1=100 * found["all"]["F1"], count=100 * found["all"]["count"], none=100 * found["0"]["no_target"])


def real_footage(name: str) -> dict[str, str]:
    "Its J on each real shot, with the supports of `scripts/real_footage.py`."
    rows = [row for row in json.loads(Path("reports/real_footage.json").read_text())["rows"] if row["model"] == name]
    on = lambda support: " and ".join(f"{row['J']:.0f}" for row in rows if row["support"] == support)
    return {"elsewhere": on("the other shot"), "same": on("the same shot"), "nothing": "; at 0 it answers that nothing is meant" if any(row["J"] == 0 for row in rows) else ""}


def main(cell: str, name: str) -> None:
    out, scratch = Path("weights") / name, Path("weights") / f".{name}.partial"
    several = Path(f"results/multi/{cell}.json").exists()
    trained = json.loads(Path(f"results/{'multi_choice' if several else 'train'}/{cell}.json").read_text())
    method, fold, _ = parse_cell(cell)
    folds = json.loads(Path("data/curated/folds.json").read_text())[str(fold)]
    model = load_model(f"data/{'multi' if several else 'models'}/{cell}")
    count = sum(p.numel() for p in model.parameters()) / 1e6
    shutil.rmtree(scratch, ignore_errors=True)
    model.half().save_pretrained(scratch)
    (scratch / "README.md").write_text(CARD.format(
        name=name, cell=cell, method=method, fold=fold, parameters=count, train=len(folds["train"]), test=", ".join(c.replace("_", " ") for c in folds["test"]),
        scores=(multi_scores if several else single_scores)(cell), **real_footage(name), hashes=", ".join(f"`{trained['provenance'][k]}`" for k in ("code", "params", "data"))))
    shutil.rmtree(out, ignore_errors=True)
    scratch.rename(out)
    print(f"{out}: {sum(f.stat().st_size for f in out.iterdir()) / 2 ** 20:.1f} MB")


if __name__ == "__main__":
    main(*sys.argv[1:])
