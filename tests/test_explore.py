"Explorer widgets without a browser: what a user would click is set or clicked here; and the logic beneath them."
import re
import threading

import numpy as np
import pytest
import torch

from fsrvos.apps import explore
from fsrvos.apps.explore import (CorpusBrowser, EncodedSource, EpisodeExplorer, Question, RunComparer, Session, Support, affinity_row, answer_question, chosen_sequences,
                                 compare_evaluations, frame_quality, look_from, look_names, matching_videos, classes_by_fold, start_threshold)
from fsrvos.apps.player import ClipPlayer, ClipView
from fsrvos.evaluation.multi_object import SequencePredictor
from fsrvos.models.fsrvos import FSRVOSConfig, FSRVOSModel
from fsrvos.models.linking import SequenceSet
from fsrvos.models.sequence_matching import SequenceMatchingModel
from tests.tiny import make_tiny_corpus
from tests.tiny import tiny_evaluation as evaluation

OPTIONS = dict(similarity_prior=True, support_frames="all", referring_head="look")
FOLDS = {"1": {"train": ["cat", "dog", "bus"], "test": ["fish", "hat"]}}


@pytest.fixture(scope="module")
def single():
    torch.manual_seed(0)
    model = FSRVOSModel(FSRVOSConfig.from_preset("tiny", **OPTIONS)).eval()
    torch.nn.init.normal_(model.controller.layers[-1].weight, std=.5)      # so that an untrained model draws something
    return model


@pytest.fixture(scope="module")
def several(single):
    model = SequenceMatchingModel.from_single(single, queries=8, presence_threshold=0.0, duplicate_iou=1.0).eval()
    torch.nn.init.constant_(model.matcher.visible.bias, 5.0)
    return model


@pytest.fixture
def decodes(monkeypatch):
    "The number of forward passes so far, as a list that grows."
    calls = []
    for kind in (FSRVOSModel, SequenceMatchingModel):
        original = kind.decode

        def counted(self, *args, _original=original, _kind=kind, **kwargs):
            if type(self) is _kind:
                calls.append(_kind)
            return _original(self, *args, **kwargs)
        monkeypatch.setattr(kind, "decode", counted)
    return calls


def question(corpus, text="the one moving to the right", model="model"):
    support = corpus.videos["cat_0"]
    return Question(model, Support("cat_0", support.frames[:2], 1, support.expressions[0].text), "cat_1", text)


def explorer_of(tiny, models, **options):
    corpus, source = tiny
    explorer = EpisodeExplorer(corpus, models, source=source, folds=FOLDS, **options)
    explorer.category.value = "cat"
    return explorer


def ask(explorer):
    explorer.run.click()
    assert explorer.wait()


# ---- player

def test_frames_play_within_the_clip_and_objects_keep_their_colours():
    frames, masks = np.zeros((4, 20, 30, 3), np.uint8), np.zeros((2, 4, 20, 30), bool)
    masks[0, :, 2:10, 2:10] = masks[1, :, 8:18, 15:25] = True
    player = ClipPlayer(frames, masks, ["cat", "dog"])
    assert player.play.max == player.frame.max == 3 and [t.description for t in player.toggles] == ["cat", "dog"]
    assert "application/vnd.jupyter.widget-view+json" in player._repr_mimebundle_()
    both = player.image.value
    player.toggles[0].value = False
    assert player.image.value != both
    alone = ClipView(frames, masks[1:])
    assert not np.array_equal(player.view.picture(0), alone.picture(0)), "the second object has the second colour, also when it is alone"
    player.opacity.value = 0.0
    player.frame.value = 3
    assert player.view.opacity == 0 and player.image.value != both
    player.show(frames[:2], None)
    assert player.frame.value == 1 and player.toggles == []


def test_large_frames_are_shrunk_with_their_masks():
    masks = np.zeros((1, 1, 720, 1280), bool)
    masks[..., :360, :] = True
    view = ClipView(np.zeros((1, 720, 1280, 3), np.uint8), masks)
    assert view.picture(0).shape == (360, 640, 3) and view.masks[0, 0].mean() == .5


@pytest.mark.parametrize("frames, masks, words", [((0, 4, 4, 3), None, "at least one frame"), ((2, 4, 4, 3), (1, 3, 4, 4), "do not fit"), ((2, 4, 4), None, "a clip is")])
def test_what_is_no_clip(frames, masks, words):
    with pytest.raises(ValueError, match=words):
        ClipView(np.zeros(frames, np.uint8), None if masks is None else np.zeros(masks, bool))


# ---- corpus

def test_filters(tiny):
    corpus, _ = tiny
    assert len(matching_videos(corpus)) == 20 and matching_videos(corpus, ["cat"]) == ["cat_0", "cat_1", "cat_2", "cat_3"]
    assert matching_videos(corpus, objects=3) == [] and len(matching_videos(corpus, FOLDS["1"]["test"], 2, "MOV ri")) == 8
    assert matching_videos(corpus, words="both right") == [], "all words in one sentence"


def test_folds_are_found_in_the_corpus_or_a_mend_is_named(tmp_path):
    corpus = make_tiny_corpus(tmp_path, classes=("cat",), videos_per_class=2)
    assert classes_by_fold(corpus) == {}
    (tmp_path / "folds.json").write_text('{"1": {"train": ["cat"]}}')
    with pytest.raises(ValueError, match=r"folds\.json: not folds .*curate"):
        classes_by_fold(corpus)
    (tmp_path / "folds.json").write_text('{"1": {"train": ["cat"], "test": []}}')
    assert classes_by_fold(corpus) == {"fold 1, test": (), "fold 1, train": ("cat",)}


def test_browse(tiny):
    corpus, _ = tiny
    browser = CorpusBrowser(corpus, FOLDS)
    assert browser.count.value == "1–12 of 20 videos" and browser.previous.disabled
    browser.next.click()
    assert browser.count.value == "13–20 of 20 videos" and browser.next.disabled and [picture.layout.display for picture in browser.thumbnails].count("none") == 4
    browser.fold.value = "fold 1, test"
    assert browser.page == 0 and [name for name, _ in browser.category.options] == ["any", "fish", "hat"] and len(browser.found) == 8
    browser.category.value = "fish"
    browser.words.value = "moving"
    assert browser.found == ["fish_0", "fish_1", "fish_2", "fish_3"]
    browser.thumbnails[2].click()
    assert browser.video.id == "fish_2" and browser.player.view.visible.tolist() == [True, True] and len(browser.sentences.options) == 8
    shown = browser.player.image.value
    browser.sentences.index = 1
    assert browser.player.view.visible.tolist() == [True, False] and browser.player.image.value != shown
    browser.sentences.index = 7
    assert browser.player.view.visible.tolist() == [True, True] and browser.player.image.value == shown
    browser.thumbnails[0].click()
    assert browser.video.id == "fish_0" and len(browser.player.toggles) == 2
    for menu in (browser.fold, browser.category, browser.objects):
        menu.index = 0
        assert menu.index == 0, "the choice of everything is a choice"
    browser.words.value = ""
    assert browser.found == list(corpus.videos)


# ---- asking

def test_the_answer_is_that_of_the_predictor(tiny, single, several):
    corpus, source = tiny
    for model in (single, several):
        answer = Session(corpus, model, source).ask(question(corpus))
        predictor = SequencePredictor(model)
        state = predictor.encode_support(source, answer.question.support._asdict())
        expected, = predictor.sequences([state], source, "cat_1", corpus.videos["cat_1"].frames, [answer.question.text], (32, 48))
        torch.testing.assert_close(answer.sequences.scores, expected.scores, atol=1e-5, rtol=1e-4)  # module by module, and by `Inference`
        assert (answer.sequences.masks == expected.masks).float().mean() > .999
        assert len(answer.affinity) == len(answer.chunks) == 1 and len(answer.affinity[0]) == 3


def test_frames_encoded_here_are_those_of_the_store(tiny, single):
    corpus, store = tiny
    live = EncodedSource(corpus, single)
    frames = corpus.videos["cat_0"].frames[:2]
    for a, b in zip(live.frames("cat_0", frames), store.frames("cat_0", frames)):
        assert a.shape == b.shape and (a - b).abs().max() < .02, "the store keeps half precision"
    assert torch.allclose(live.words("the red one"), store.words("the red one"), atol=.01) and torch.equal(live.masks("cat_0", frames, [2]), store.masks("cat_0", frames, [2]))


def test_answers_are_kept_by_question(tiny, single, decodes):
    corpus, source = tiny
    session = Session(corpus, {"a": single, "b": single}, source)
    first = session.ask(question(corpus, model="a"))
    assert session.ask(question(corpus, model="a")) is first and len(decodes) == 1
    session.ask(question(corpus, "the red one", model="a")), session.ask(question(corpus, model="b"))
    assert len(decodes) == 3


def test_the_oldest_answers_make_room(tiny, single, monkeypatch):
    corpus, source = tiny
    session, asked = Session(corpus, single, source), [question(corpus, text) for text in ("a", "b", "c")]
    monkeypatch.setattr(explore, "KEPT", int(2.5 * session.ask(asked[0]).nbytes))
    session.ask(asked[1]), session.kept(asked[0]), session.ask(asked[2])
    assert [session.kept(q) is not None for q in asked] == [True, False, True]


def test_a_cancelled_question_is_not_kept(tiny, single, decodes):
    corpus, source = tiny
    session = Session(corpus, single, source)

    def stop(share):
        if share > .4:
            raise explore.Cancelled
    with pytest.raises(explore.Cancelled):
        session.ask(question(corpus), stop)
    assert session.kept(question(corpus)) is None and not decodes and not single.affinity._forward_pre_hooks, "nothing is left behind"


def test_an_empty_sentence(tiny, single):
    corpus, source = tiny
    with pytest.raises(ValueError, match="say what is meant"):
        answer_question(single, corpus, source, question(corpus, " "))


def test_the_best_sequence_alone_answers_for_a_single_object_model(tiny, single):
    corpus, source = tiny
    sequences = Session(corpus, single, source).ask(question(corpus)).sequences
    found = chosen_sequences(single, sequences, start_threshold(single))
    assert found.queries.tolist() == [int(sequences.referring.mean(1).argmax())]


def test_nothing_found_is_nothing_right(tiny):
    corpus, _ = tiny
    truth = corpus.read_masks("cat_1", corpus.videos["cat_1"].frames, [1, 2])
    quality = frame_quality(SequenceSet(torch.zeros(0, 6, 32, 48, dtype=torch.bool), torch.zeros(0), torch.zeros(0, dtype=torch.int64)), truth)
    assert quality.J.max() == quality.F.max() == 0 and quality.J.shape == quality.F.shape == (6,)


# ---- looking

@pytest.mark.parametrize("kind, which", [("self", "all"), ("self+cross", "all"), ("self+cross", "middle")])
def test_a_row_is_what_the_model_computes(tiny, kind, which):
    corpus, source = tiny
    model = FSRVOSModel(FSRVOSConfig.from_preset("tiny", **{**OPTIONS, "affinity": kind, "support_frames": which})).eval()
    answer = Session(corpus, model, source).ask(question(corpus))
    for query, support, masks in answer.affinity[0]:
        row = affinity_row(model.affinity, query, support, masks, (3, 0, 1))
        with torch.no_grad():
            assert torch.allclose(row.after, model.affinity(query, support, masks)[0, 3, :16, 0, 1], atol=1e-5)
    assert ("cross-affinity, stride 8" in look_names(model)) == (kind == "self+cross")


def test_only_the_object_is_looked_at(tiny, single):
    corpus, source = tiny
    answer = Session(corpus, single, source).ask(question(corpus))
    look = look_from(single, answer, look_names(single)["cross-affinity, stride 8"], 2, 31, 47)
    assert look.heat.shape == (2, 4, 6) and look.frame is None and np.isclose(look.heat.sum(), 1, atol=1e-5)
    assert look.heat[:, 3].max() == 0 < look.heat[:, 1].max(), "object 1 is in the upper half"
    assert look_from(single, answer, look_names(single)["self-affinity, stride 16"], 2, 0, 0).frame == 3


def test_a_model_without_affinity_shows_similarity_alone(tiny):
    corpus, source = tiny
    model = FSRVOSModel(FSRVOSConfig.from_preset("tiny", affinity="none")).eval()
    answer = Session(corpus, model, source).ask(question(corpus))
    assert list(look_names(model)) == ["similarity of frozen features"]
    assert look_from(model, answer, ("similarity", 0), 5, 31, 47).heat.shape == (2, 2, 3)
    with pytest.raises(ValueError, match="no affinity"):
        affinity_row(model.affinity, *answer.affinity[0][0], (0, 0, 0))


def test_a_long_clip_is_explained_by_the_later_chunk(tmp_path, single):
    corpus = make_tiny_corpus(tmp_path, classes=("cat",), videos_per_class=2, frames=12, size=(32, 64))
    answer = Session(corpus, single).ask(question(corpus))
    assert [len(c) for c in answer.chunks] == [10, 4] and answer.sequences.masks.shape[1:] == (12, 32, 64)
    first, later = (look_from(single, answer, ("self", 0), t, 0, 0).frame for t in (7, 8))
    assert (first, later) == (5, 10)


# ---- the explorer

def test_choices_follow_each_other(tiny, single):
    explorer = explorer_of(tiny, single)
    explorer.fold.value = "fold 1, test"
    assert explorer.category.options == ("fish", "hat") and explorer.support_video.options == ("fish_0", "fish_1", "fish_2", "fish_3")
    explorer.support_video.value = "fish_2"
    assert explorer.query_video.options == ("fish_0", "fish_1", "fish_3") and len(explorer.support_frames.value) == 5
    explorer.support_frames.value = ("00000", "00010")
    explorer.query_video.value = "fish_3"
    asked = explorer.question()
    assert asked.support.video == "fish_2" and asked.support.frames == ("00000", "00010") and asked.video == "fish_3" and asked.text == explorer.sentence.value
    explorer.own_sentence.value = "anything"
    assert explorer.question().text == "anything"


def test_an_episode(tiny, several, decodes):
    explorer = explorer_of(tiny, several)
    ask(explorer)
    assert len(decodes) == 1 and explorer.progress.value == 1 and not explorer.run.disabled and explorer.stop.disabled and "J " in explorer.status.value
    assert explorer._results.layout.display is None and all(w.value for w in (explorer.support_picture, explorer.truth_picture, explorer.bars, explorer.plot, explorer.look_picture))

    explorer.threshold.value = 0.99
    few, picture, bars = len(explorer.found), explorer.player.image.value, explorer.bars.value
    explorer.threshold.value = 0.0
    assert len(explorer.found) > few == 1 and explorer.player.image.value != picture and explorer.bars.value != bars
    assert len(decodes) == 1, "σ chooses again without a forward pass"

    plot, truth = explorer.plot.value, explorer.truth_picture.value
    explorer.player.frame.value = 4
    assert explorer.plot.value != plot and explorer.truth_picture.value != truth


def test_looking_follows_the_pixel(tiny, several, decodes):
    explorer = explorer_of(tiny, several)
    ask(explorer)
    assert explorer.x.max == 47 and explorer.y.max == 31
    seen = explorer.look_picture.value
    explorer.x.value, explorer.y.value = 0, 0
    assert explorer.wait() and explorer.look_picture.value != seen and explorer.look.frame is None
    seen, shown = explorer.look_picture.value, explorer.query_picture.value
    explorer.query_picture.click(40, 30)
    assert explorer.wait() and (explorer.x.value, explorer.y.value) == (40, 30) and explorer.look_picture.value != seen and explorer.query_picture.value != shown
    assert (explorer.query_picture.columns, explorer.query_picture.rows) == (48, 32) and explorer.query_picture.alt == "frame 0 of the query, choose a pixel"
    explorer.what.value = look_names(several)["self-affinity, stride 8"]
    assert explorer.wait() and explorer.look.frame == 3 and len(decodes) == 1


def test_the_same_question_is_answered_at_once(tiny, single, decodes):
    explorer = explorer_of(tiny, single)
    ask(explorer)
    first = explorer.answer
    explorer.sentence.index = 2
    ask(explorer)
    assert len(decodes) == 2 and explorer.answer is not first
    explorer.sentence.index = 0
    explorer.run.click()
    assert explorer.answer is first and len(decodes) == 2 and explorer.wait()


def test_another_sentence_other_masks(tiny, several):
    explorer = explorer_of(tiny, several)
    scores = []
    for index in (0, 3):
        explorer.sentence.index = index
        ask(explorer)
        scores.append(explorer.answer.sequences.scores)
    assert not torch.equal(*scores)


def test_a_sentence_of_ones_own_has_no_truth(tiny, single):
    explorer = explorer_of(tiny, single)
    explorer.own_sentence.value = "the thing at the very top"
    ask(explorer)
    assert explorer.truth is None and explorer.quality is None and explorer.plot.layout.display == "none" and "not known" in explorer.truth_title.value
    explorer.own_sentence.value = explorer.sentence.value
    ask(explorer)
    assert explorer.truth is not None and explorer.plot.layout.display is None


def test_cancel(tiny, single, monkeypatch):
    explorer, begun, go_on = explorer_of(tiny, single), threading.Event(), threading.Event()
    original = explorer.session.source("model").frames

    def waiting(*args):
        begun.set()
        assert go_on.wait(10)
        return original(*args)
    monkeypatch.setattr(explorer.session.source("model"), "frames", waiting, raising=False)
    explorer.run.click()
    assert begun.wait(10) and explorer.run.disabled and not explorer.stop.disabled
    explorer.stop.click()
    assert "cancelled" in explorer.status.value and not explorer.run.disabled and explorer.stop.disabled
    go_on.set()
    assert explorer.wait() and explorer.answer is None and explorer.session.kept(explorer.question()) is None
    ask(explorer)
    assert explorer.answer is not None, "and it works again"


def test_a_mistake_is_shown_and_the_thread_lives_on(tiny, single, monkeypatch):
    explorer = explorer_of(tiny, single)
    with monkeypatch.context() as broken:
        broken.setattr(explore, "answer_question", lambda *a: 1 / 0)
        ask(explorer)
    assert "ZeroDivisionError" in explorer.status.value and not explorer.run.disabled
    explorer.support_frames.value = ()
    explorer.run.click()
    assert "choose at least one" in explorer.status.value
    explorer.support_frames.value = ("00000",)
    ask(explorer)
    assert explorer.answer is not None


def test_models_side_by_side(tiny, single, several, tmp_path):
    single.save_pretrained(tmp_path / "saved")
    explorer = explorer_of(tiny, {"single": str(tmp_path / "saved"), "several": several})
    ask(explorer)
    assert explorer.threshold.value == 1 and len(explorer.found) == 1 and len(explorer.answer.sequences.scores) == 5
    explorer.model.value = "several"
    ask(explorer)
    assert explorer.threshold.value == several.config.threshold and len(explorer.answer.sequences.scores) == 8 and "something is meant" in explorer.status.value


def test_a_corpus_without_pairs(tmp_path, single):
    corpus = make_tiny_corpus(tmp_path, classes=("cat",), videos_per_class=1)
    with pytest.raises(ValueError, match="no class has two videos"):
        EpisodeExplorer(corpus, single)


# ---- results

@pytest.fixture
def results(tmp_path):
    for cell, values in (("cma-1", {"cat_0": [.2, .4], "cat_1": [.8, .8]}), ("cma_plus-1", {"cat_0": [.4, .6], "cat_1": [.3, .3]}), ("cma-2", {"cat_2": [.5, .5]})):
        evaluation(cell, values).to_json(tmp_path / f"{cell}.json")
    return tmp_path


def test_the_largest_difference_comes_first(tiny, results):
    comparer = RunComparer(results, tiny[0])
    comparer.a.value, comparer.b.value = "cma-1", "cma_plus-1"
    assert [r["video"] for r in comparer.rows] == ["cat_1", "cat_0"] and np.allclose([r["difference"] for r in comparer.rows], [-.5, .2])
    assert comparer.choice.options[0][0].startswith(" -50.0    80.0 →  30.0") and "2 queries" in comparer.status.value and "-15.0" in comparer.status.value
    assert tiny[0].videos["cat_1"].expressions[0].text in comparer.details.value and "support &lt;1&gt;" in comparer.details.value
    comparer.choice.index = 1
    assert "cat_0" in comparer.details.value and re.findall(r">([\d.]+)<", comparer.details.value)[:2] == ["30.0", "50.0"]


def test_cells_of_two_folds_have_nothing_in_common(results):
    comparer = RunComparer(results)
    comparer.a.value, comparer.b.value = "cma-1", "cma-2"
    assert comparer.rows == [] and "one fold" in comparer.status.value and comparer.details.value == ""
    comparer.b.value = "cma_plus-1"
    assert len(comparer.rows) == 2 and comparer.details.value


def test_swapped_inputs_and_runs_of_one_side_are_left_out():
    a, b = evaluation("a-1", {"cat_0": [.2, .9]}), evaluation("b-1", {"cat_0": [.4]})
    a.records += evaluation("a-1", {"cat_0": [1., 1.]}, swap="no_support").records
    row, = compare_evaluations(a, b)
    assert row["runs"] == [0] and np.isclose(row["difference"], .2)


def test_one_evaluation_cannot_be_compared(tmp_path):
    evaluation("cma-1", {"cat_0": [.2]}).to_json(tmp_path / "cma-1.json")
    with pytest.raises(ValueError, match="1 evaluations; two are needed"):
        RunComparer(tmp_path)
