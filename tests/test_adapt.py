"Adapting to a support: what is kept, what is refused, and that the held-out frame is never trained on."
import numpy as np
import pytest
import torch

from fsrvos.apps import adapt as app
from fsrvos.apps.adapt import adapt
from fsrvos.apps.segment import SegmentError
from fsrvos.models.fsrvos import FSRVOSConfig, FSRVOSModel
from fsrvos.models.sequence_matching import SequenceMatchingModel
from tests.test_segment import moving, write_support


def tiny(kind="single"):
    torch.manual_seed(0)
    model = FSRVOSModel(FSRVOSConfig.from_preset("tiny", referring_head="look", match_all_objects=True))
    return (model if kind == "single" else SequenceMatchingModel.from_single(model, queries=6, threshold=0.0)).eval()


def run(model, **options):
    clip, masks = moving(4)
    return adapt(model, clip, masks, "the square", **{**dict(steps=4, every=2, short=48, longest=72, progress=False), **options})


def scripted(monkeypatch, *values):
    "The held-out frame's J, one value after another."
    left = list(values)
    monkeypatch.setattr(app, "held_out_j", lambda segmenter, *_: segmenter.support(*[x[:2] for x in moving(4)], "the square") and left.pop(0))


@pytest.mark.parametrize("kind", ["single", "multi"])
def test_the_best_step_is_kept(monkeypatch, kind):
    model, other = tiny(kind), tiny(kind)
    scripted(monkeypatch, .2, .6, .4)
    result = run(model)
    scripted(monkeypatch, .2, .6)
    assert run(other, steps=2).step == result.step == 2 and (result.before, result.after) == (.2, .6) and result.helped
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values())), "what came after the best step is undone"
    assert not all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), tiny(kind).state_dict().values()))


def test_what_does_not_help_is_undone(monkeypatch):
    model = tiny()
    scripted(monkeypatch, .5, .4, .5)
    result = run(model)
    assert not result.helped and result.after == result.before
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), tiny().state_dict().values()))


def test_the_held_out_frame_is_not_trained_on(monkeypatch):
    seen = []
    monkeypatch.setattr(app, "distort_colours", lambda clip, rng: seen.append(clip.masks.shape[1]) or clip)
    scripted(monkeypatch, .5, .4, .4)
    run(tiny())
    assert seen == [3] * 4


def test_it_is_the_same_every_time():
    results = [(run(model), model.state_dict()) for model in (tiny(), tiny())]
    assert results[0][0] == results[1][0] and all(torch.equal(a, b) for a, b in zip(results[0][1].values(), results[1][1].values()))


def test_supports_that_cannot_judge():
    clip, masks = moving(4)
    with pytest.raises(SegmentError, match="it takes three"):
        adapt(tiny(), clip[:2], masks[:2], "the square")
    with pytest.raises(SegmentError, match="last frame does not show"):
        adapt(tiny(), clip, np.concatenate([masks[:3], masks[3:] & False]), "the square")


@pytest.mark.parametrize("values, status", [((.2, .6), 0), ((.6, .2), 2)])
def test_the_command(tmp_path, monkeypatch, capsys, values, status):
    from fsrvos.apps.cli import main
    tiny().save_pretrained(tmp_path / "model")
    scripted(monkeypatch, *values)
    with pytest.raises(SystemExit) as end:
        main(["adapt", "--support", str(write_support(tmp_path / "s", 4)), "--model", str(tmp_path / "model"), "--out", str(tmp_path / "out"), "--steps", "1", "--short", "48", "--longest", "72"])
    said = capsys.readouterr()
    assert end.value.code == status and (tmp_path / "out/model.safetensors").exists() == (status == 0)
    assert "20 before, 60 after 1 steps" in said.out if status == 0 else "nothing was written" in said.err
