"The demonstration, and the model that comes with the package."
import json
from pathlib import Path

import numpy as np
import pytest

from fsrvos.apps.demo import draw_clip, run_demo
from fsrvos.apps.segment import Segmenter, load_model
from fsrvos.evaluation.metrics import region_similarity
from fsrvos.data.curation import MINI_REF_YTVOS_CLASSES, fold_classes
from fsrvos.weights import FOLDER

ROOT = Path(__file__).resolve().parents[1]


def test_the_demo(tmp_path):
    answers = run_demo(tmp_path / "demo", progress=False)
    assert len(answers) == 2 and all(len(found) == 1 for found, _ in answers)
    assert np.mean([j for _, j in answers]) > .3, "two sentences about a class that was never trained on"
    assert {p.name for p in (tmp_path / "demo").iterdir()} == {"clip.mp4", "support", "00", "01"}
    assert json.loads((tmp_path / "demo/01/result.json").read_text())["settings"]["single"]


def test_several_objects():
    support, query = draw_clip("hedgehog", 0, "support"), draw_clip("hedgehog", 0, "query", objects=2)
    segmenter = Segmenter.from_pretrained("fsrvos-demo-multi").support(support.frames[:5], support.ids[:5] == 1, next(t for t, i in support.sentences if i == (1,)))
    found = segmenter.segment(query.frames, next(t for t, i in query.sentences if len(i) == 2), progress=False)
    assert len(found) == 2 and region_similarity(found.masks.any(0), query.ids > 0).mean() > .5
    assert not segmenter.single and Segmenter.from_pretrained("fsrvos-demo-multi", single=True).single


def test_drawn_clips_are_the_same_every_time():
    a, b = (draw_clip("cat", 3, objects=2) for _ in range(2))
    assert np.array_equal(a.frames, b.frames) and a.sentences == b.sentences
    assert not np.array_equal(a.frames[0], draw_clip("cat", 4, objects=2).frames[0])


def test_a_class_that_is_not_drawn():
    with pytest.raises(ValueError, match="no class 'unicorn'; choose one of"):
        draw_clip("unicorn")


@pytest.mark.parametrize("name, cell", [("fsrvos-demo", "cma_plus-1"), ("fsrvos-demo-multi", "ism-1")])
def test_the_card_is_of_the_weights(name, cell):
    "Classes of its fold, and a size that belongs into a repository."
    card = (FOLDER / name / "README.md").read_text()
    assert card.splitlines()[2].startswith("**Rendered clips only.**") and f"`{cell}`" in card
    tested = fold_classes(MINI_REF_YTVOS_CLASSES, 1)[1]
    assert all(name.replace("_", " ") in card for name in tested) and "hedgehog" in tested
    real = [row for row in json.loads((ROOT / "reports/real_footage.json").read_text())["rows"] if row["model"] == name]
    for support in ("the other shot", "the same shot"):
        measured = " and ".join(f"{row['J']:.0f}" for row in real if row["support"] == support)
        assert f" {measured} where" in card
    assert sum(f.stat().st_size for f in (FOLDER / name).iterdir()) < 12 * 2 ** 20


def test_half_precision_is_for_the_disk_alone():
    import torch
    assert {p.dtype for p in load_model("fsrvos-demo").parameters()} == {torch.float32}
