"Expressions by annotators: the log, the rules, the hints, the export, and the widget without a browser (what a user would type or click is set or clicked here)."
import asyncio
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from fsrvos.apps import annotate
from fsrvos.apps.annotate import ExpressionAnnotator, read_clip
from fsrvos.data.ambiguity import ambiguities, measure_masks, read_sentence
from fsrvos.data.corpus import Corpus, Expression, check_corpus, write_metas
from fsrvos.data.curation import CurationRules, curate
from fsrvos.data.episodes import EpisodeDataset, PixelSource
from fsrvos.data.expressions import AnnotationError, Annotations, ExpressionLog, Refused, Target
from tests.tiny import make_tiny_corpus


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    "Two videos of cats, two of dogs, each with two objects and no sentence: object 1 above, moving right; object 2 below, moving left."
    tiny = make_tiny_corpus(tmp_path_factory.mktemp("unsaid"), classes=("cat", "dog"), videos_per_class=2)
    write_metas(tiny.root, [replace(v, expressions=()) for v in tiny.videos.values()])
    return Corpus.load(tiny.root)


@pytest.fixture
def log(tmp_path):
    return tmp_path / "log.jsonl"


FIRST, SECOND, THIRD = Target("cat_0", 1), Target("cat_0", 2), Target("cat_1", 1)


def lines(log):
    return [json.loads(line) for line in log.read_bytes().split(b"\n")[:-1]]


def accepted(annotations, target, text):
    "A sentence of Ann's that Bob has accepted."
    return annotations.accept("Bob", annotations.write("Ann", target, text))


# ---- log and state

def test_a_restart_goes_on_where_it_stopped(corpus, log):
    before = Annotations(corpus, log)
    written = [before.write("Ann", target, f"sentence {i}") for i, target in enumerate(before.to_write("Ann")[:3])]
    before.accept("Bob", written[0]), before.reject("Bob", written[1])
    after = Annotations(corpus, log)
    assert after.entries == before.entries and after.progress() == before.progress()
    assert after.to_write("Ann") == [t for t in after.order("Ann") if t not in (written[0].target, written[2].target)], "what was rejected is to be written again"
    progress = after.progress()
    assert (progress.verified, progress.waiting, progress.unwritten, progress.done, progress.targets) == (1, 1, 6, 1, 8)
    assert progress.people == {"Ann": {"write": 3}, "Bob": {"accept": 1, "reject": 1}}


def test_the_log_says_who_did_what_and_when(corpus, log):
    annotations = Annotations(corpus, log)
    entry = annotations.edit("Bob", annotations.write("  Ann  Lee ", FIRST, "the  upper\tone", ("a hint",)), "the cat above")
    written, edited = lines(log)
    assert written == {"at": written["at"], "who": "Ann Lee", "action": "write", "entry": entry.id, "video": "cat_0", "object": 1, "text": "the upper one", "flags": ["a hint"]}
    assert edited == {"at": edited["at"], "who": "Bob", "action": "edit", "entry": entry.id, "text": "the cat above", "flags": []}
    assert written["at"].endswith("+00:00")


def test_nothing_is_told_to_be_saved_before_the_disk_has_it(corpus, log, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(os.fstat(file).st_size))
    Annotations(corpus, log).write("Ann", FIRST, "the upper one")
    assert log.stat().st_size in synced and len(synced) == 2, "the new file's folder, too"


def process(corpus, log, code):
    "Python that runs `code` with `a`, the annotations of the log, in a process of its own."
    start = f"import os, signal; from fsrvos.data.corpus import Corpus; from fsrvos.data.expressions import *; a = Annotations(Corpus.load({str(corpus.root)!r}), {str(log)!r})\n"
    return subprocess.Popen([sys.executable, "-c", start + code], cwd=Path(__file__).parents[1])


def test_a_killed_process_loses_nothing_that_was_saved(corpus, log):
    killed = process(corpus, log, """
a.write('Ann', Target('cat_0', 1), 'the upper one')
with a.log.locked():
    os.write(a.log._file, b'{"at": "no')
    os.kill(os.getpid(), signal.SIGKILL)""")
    assert killed.wait(120) == -signal.SIGKILL
    annotations = Annotations(corpus, log)
    assert [e.text for e in annotations.entries.values()] == ["the upper one"] and annotations.log.torn == [2]
    annotations.write("Ann", SECOND, "the lower one")    # the lock went with the process


@pytest.mark.parametrize("rest", [b'{"at": "now", "who": "Ann", "action": "wri', b"\0\0\0\0", '{"text": "ü'.encode()[:-1]])
def test_a_torn_line_is_reported_and_does_not_count(corpus, log, rest):
    entry = Annotations(corpus, log).write("Ann", FIRST, "the upper one")
    with open(log, "ab") as file:
        file.write(rest)
    after = Annotations(corpus, log)
    assert after.log.torn == [2] and list(after.entries.values()) == [entry]
    other = after.write("Ann", SECOND, "the lower one")
    again = Annotations(corpus, log)
    assert list(again.entries.values()) == [entry, other] and again.log.torn == after.log.torn == [2]


def test_a_full_disk_leaves_the_log_as_it_was(corpus, log, monkeypatch):
    annotations = Annotations(corpus, log)
    annotations.write("Ann", FIRST, "the upper one")
    before, write = log.read_bytes(), os.write
    with monkeypatch.context() as full:
        full.setattr(os, "write", lambda file, data: write(file, data[:20]))
        with pytest.raises(OSError, match="full"):
            annotations.write("Ann", SECOND, "the lower one")
    assert log.read_bytes() == before
    assert annotations.write("Ann", SECOND, "the lower one") == Annotations(corpus, log).entries[lines(log)[1]["entry"]]


@pytest.mark.parametrize("change, words", [
    (dict(video="zebra_9"), "line 2: the corpus has no object 1 in a video 'zebra_9'"), (dict(object=3), "no object 3"), (dict(object="1"), "line 2: object: give a number"),
    (dict(action="accept"), "line 2: these are words of Ann"), (dict(action="accept", entry="none", who="Bob"), "line 2: entry: there is no none"), (dict(text=7), "text: give a sentence or null"),
    (dict(who=" "), "who: give a name"), (dict(action=["write"]), "action: give one of write"), ({"flags": [1]}, "flags: give a list of texts")])
def test_a_wrong_line_is_named(corpus, log, change, words):
    Annotations(corpus, log).write("Ann", FIRST, "the upper one")
    good, = lines(log)
    wrong = good | ({} if change.get("action") == "accept" else {"entry": "other"}) | change
    with open(log, "a") as file:
        file.write(json.dumps(wrong) + "\n" + json.dumps(["no record"]) + "\n")
    with pytest.raises(AnnotationError) as error:
        Annotations(corpus, log)
    assert words in str(error.value) and str(log) in str(error.value) and "line 3: action" in str(error.value) and "-> correct or delete the line" in str(error.value)


def test_a_log_that_cannot_be_used(corpus, log, tmp_path):
    with pytest.raises(AnnotationError, match="cannot be opened"):
        Annotations(corpus, tmp_path)
    annotations = Annotations(corpus, log)
    entry = annotations.write("Ann", FIRST, "the upper one")
    log.unlink()
    with pytest.raises(AnnotationError, match="shorter than it was"):
        annotations.accept("Bob", entry)


def test_two_processes_share_a_log(corpus, log):
    workers = [process(corpus, log, f"""
for n in range(40):
    try:
        a.write({who!r}, a.order({who!r})[n % 8], f'sentence number {{n}} — “ü”')
    except Refused:
        pass""") for who in ("Ann", "Bob")]
    assert [worker.wait(120) for worker in workers] == [0, 0]
    annotations = Annotations(corpus, log)
    assert annotations.log.torn == [] and len(annotations.entries) == len(lines(log)) >= 40
    said = [(e.target.video, e.text) for e in annotations.entries.values()]
    assert len(set(said)) == len(said), "no sentence twice in a clip, though both wrote at the same time"


def test_lines_are_read_once(log):
    a, b = ExpressionLog(log), ExpressionLog(log)
    for n in range(3):
        with a.locked():
            a.read()
            a.append({"n": n})
        with b.locked():
            assert b.read() == [(n + 1, {"n": n})]


# ---- rules

def test_a_sentence_of_another_object_is_refused(corpus, log):
    annotations = Annotations(corpus, log)
    annotations.write("Ann", FIRST, "The cat's “upper” box")
    for same in ("the cat's upper box", "CAT’S UPPER BOX!", "a cat's  upper box"):
        with pytest.raises(Refused, match="object 1 of the clip already has"):
            annotations.write("Bob", SECOND, same)
        assert "this object" in annotations.refusal(same, FIRST)
    annotations.write("Bob", THIRD, "the cat's upper box")
    assert len(lines(log)) == 2, "in another clip it is free"


def test_the_corpus_own_sentences_count(tmp_path, log):
    corpus = make_tiny_corpus(tmp_path / "said", classes=("cat",), videos_per_class=1)
    annotations = Annotations(corpus, log)
    assert annotations.to_write("Ann") == [] and annotations.progress().given == 2
    with pytest.raises(Refused, match="object 1 of"):
        annotations.write("Ann", SECOND, "the one moving to the right")
    with pytest.raises(Refused, match="objects 1 and 2 of"):
        annotations.write("Ann", FIRST, "Both cat squares")
    accepted(annotations, FIRST, "the upper one")
    video = annotations.export(tmp_path / "out").videos["cat_0"]
    assert video.expressions == (*corpus.videos["cat_0"].expressions, Expression("7", "the upper one", (1,)))


def test_a_rejected_sentence_is_free_again(corpus, log):
    annotations = Annotations(corpus, log)
    entry = annotations.reject("Bob", annotations.write("Ann", FIRST, "the lower one"))
    annotations.write("Ann", SECOND, "the lower one")
    for act in (annotations.accept, annotations.reject):
        with pytest.raises(Refused, match="rejected by Bob"):
            act("Cy", entry)


@pytest.mark.parametrize("text, words", [("", "says nothing"), ("…", "says nothing"), (" ".join(["word"] * 21), "21 words; 20"), ("a \x07 bell", r"U\+0007"), ("half \ud83d", r"U\+D83D")])
def test_what_is_no_sentence(corpus, log, text, words):
    annotations = Annotations(corpus, log)
    entry = annotations.write("Ann", FIRST, " ".join(["word"] * 20))
    before = log.read_bytes()
    with pytest.raises(Refused, match=words):
        annotations.write("Ann", SECOND, text)
    with pytest.raises(Refused, match=words):
        annotations.edit("Bob", entry, text)
    assert log.read_bytes() == before


def test_nobody_verifies_their_own_words(corpus, log):
    annotations = Annotations(corpus, log)
    entry = annotations.write("Ann", FIRST, "the upper one")
    for name in ("Ann", " ann ", "ANN"):
        assert annotations.to_verify(name) == []
        for act in (annotations.accept, annotations.reject):
            with pytest.raises(Refused, match="somebody else has to verify"):
                act(name, entry)
    edited = annotations.edit("Bob", entry, "the cat above")
    with pytest.raises(Refused, match="words of Bob"):
        annotations.accept("Bob", edited)
    assert annotations.to_verify("Ann") == [edited] and annotations.accept("Ann", edited).verifier == "Ann" and len(lines(log)) == 3


def test_an_accepted_sentence_that_is_edited_waits_again(corpus, log):
    annotations = Annotations(corpus, log)
    entry = annotations.edit("Cy", accepted(annotations, FIRST, "the upper one"), "the one above")
    assert (entry.state, entry.verifier, annotations.progress().verified) == ("waiting", None, 0)


def test_nobody_accepts_what_changed_under_their_eyes(corpus, log):
    annotations, other = Annotations(corpus, log), Annotations(corpus, log)
    entry = annotations.write("Ann", FIRST, "the upper one")
    other.edit("Ann", entry, "the lower one")
    with pytest.raises(Refused, match="changed this entry meanwhile"):
        annotations.accept("Bob", entry)
    now, = annotations.to_verify("Bob")
    assert now.text == "the lower one" and annotations.accept("Bob", now).state == "accepted"
    with pytest.raises(Refused, match="accepted by Bob already"):
        other.accept("Cy", now)


def test_a_target_that_no_sentence_singles_out_is_dropped(corpus, log, tmp_path):
    annotations = Annotations(corpus, log)
    accepted(annotations, FIRST, "the upper one")
    note = annotations.give_up("Ann", SECOND)
    assert SECOND not in annotations.to_write("Bob") and annotations.to_verify("Bob") == [note] and annotations.progress().impossible == 0
    annotations.accept("Bob", note)
    assert annotations.progress().impossible == 1 and annotations.progress().done == 2
    assert [e.object_ids for e in annotations.export(tmp_path / "out").videos["cat_0"].expressions] == [(1,)]


def test_annotators_begin_in_different_places(corpus, log):
    annotations = Annotations(corpus, log)
    orders = {tuple(annotations.order(name)) for name in ("Ann", "Bob", "Cy", "Di", "Eve")}
    assert len(orders) > 1 and all(sorted(order) == sorted(annotations.targets) for order in orders)
    assert all([t.video for t in order[::2]] == [t.video for t in order[1::2]] for order in orders), "the objects of a clip stay together"


# ---- export

def test_export_round_trip(corpus, log, tmp_path):
    annotations = Annotations(corpus, log)
    texts = ["the “upper” cat's box", 'a "quoted" \\ box', "l'objet – très haut", "上面的猫", "🐱 кошка e\u0301 \u2028 above"]
    for target, text in zip(annotations.targets, texts):
        accepted(annotations, target, text)
    annotations.write("Ann", annotations.targets[5], "waits")
    annotations.reject("Bob", annotations.write("Ann", annotations.targets[6], "is wrong"))
    exported = annotations.export(tmp_path / "out")
    found = {Target(v.id, *e.object_ids): e.text for v in exported.videos.values() for e in v.expressions}
    assert found == {t: " ".join(text.split()) for t, text in zip(annotations.targets, texts)} and check_corpus(tmp_path / "out", images=True) == []
    assert list(exported.videos) == ["cat_0", "cat_1", "dog_0"], "a video without a sentence is left out"
    content = json.loads((tmp_path / "out/meta_expressions/train/meta_expressions.json").read_bytes())
    assert content["videos"]["cat_0"] == {"frames": list(corpus.videos["cat_0"].frames), "expressions": {"0": {"exp": texts[0], "obj_id": "1"}, "1": {"exp": texts[1], "obj_id": "2"}}}
    assert np.array_equal(exported.read_frames("dog_0", ["00000"]), corpus.read_frames("dog_0", ["00000"]))
    every = annotations.export(tmp_path / "out", verified_only=False)
    assert [e.text for e in every.videos["dog_0"].expressions] == [*(" ".join(t.split()) for t in texts[4:]), "waits"], "an earlier export is replaced"


def test_an_export_can_be_curated_and_asked(corpus, log, tmp_path):
    annotations = Annotations(corpus, log)
    for target in annotations.targets:
        accepted(annotations, target, f"the {'upper' if target.object_id == 1 else 'lower'} one")
    annotations.export(tmp_path / "out")
    curate(Corpus.load(tmp_path / "out"), CurationRules(classes=None, min_videos=2), tmp_path / "mini")
    mini = Corpus.load(tmp_path / "mini")
    source = PixelSource(mini, lambda text: {"input_ids": [101, *map(len, text.split()), 102]})
    dataset = EpisodeDataset(mini, ["cat", "dog"], source=source, frames=2, shots=1, episodes_per_class=4)
    for i in range(len(dataset)):
        sample = dataset[i]
        assert sample.episode.query.expression == {(1,): "the upper one", (2,): "the lower one"}[sample.episode.query.object_ids]


def test_a_corpus_is_not_written_over(corpus, log, tmp_path):
    annotations = Annotations(corpus, log)
    with pytest.raises(AnnotationError, match="no sentence is accepted yet"):
        annotations.export(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    accepted(annotations, FIRST, "the upper one")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes.txt").touch()
    for folder in (corpus.root, tmp_path / "full", log):
        with pytest.raises(AnnotationError, match="give another"):
            annotations.export(folder)
    exported = annotations.export(tmp_path / "out")
    with pytest.raises(AnnotationError, match="being annotated"):
        Annotations(exported, tmp_path / "second.jsonl").export(tmp_path / "out")


# ---- hints

def square(number, start, end=None, size=8, category="cat", frames=8, seen=slice(None)):
    "Facts of a square on 60×80 pixels whose corner moves from `start` to `end` (row, column)."
    mask = np.zeros((1, frames, 60, 80), bool)
    for t in range(frames)[seen]:
        row, column = (round(a + (b - a) * t / (frames - 1)) for a, b in zip(start, end or start))
        mask[0, t, row:row + size, column:column + size] = True
    return measure_masks(mask, {number: category})[0]


def test_a_class_alone_is_ambiguous_where_there_are_two_of_it():
    one, two, dog = square(1, (5, 5)), square(2, (40, 60)), square(3, (5, 40), category="dog")
    for text in ("the cat", "A cat in the picture.", "cats", "the cat that can be seen"):
        assert "objects 2;" not in str(ambiguities(text, 1, [one, two, dog])) and "object 2;" in ambiguities(text, 1, [one, two, dog])[0]
        assert ambiguities(text, 1, [one, dog]) == ()
    assert "objects 2, 3;" in ambiguities("the one", 1, [one, two, dog])[0] and "object 2;" in ambiguities("the animal", 1, [one, two, dog])[0]
    assert ambiguities("the striped cat", 1, [one, two, dog]) == (), "masks know no stripes"
    assert ambiguities("the cat next to the dog", 1, [one, two, dog]) == ()
    assert "“dog”" in ambiguities("the dog by the cat", 1, [one, two, dog])[0]


@pytest.mark.parametrize("text, target", [("the cat on the left", 1), ("the right cat", 2), ("the cat at the top", 1), ("the lower one", 2), ("the leftmost cat", 1), ("the one in the bottom right corner", 2),
                                          ("the smaller cat", 1), ("the big cat", 2), ("the cat moving right", 1), ("the cat that does not move", 2), ("the one that moves", 1)])
def test_words_that_masks_answer(text, target):
    clip = [square(1, (5, 5), (5, 25)), square(2, (40, 60), size=14)]
    assert ambiguities(text, target, clip) == ()
    assert ambiguities(text, 3 - target, clip), "said of the other one"


def test_places_that_change_are_no_places():
    crossing = [square(1, (5, 5), (5, 65)), square(2, (40, 65), (40, 5))]
    assert "plainly false of object 2" in ambiguities("the cat on the left", 1, crossing)[0]
    assert ambiguities("the cat moving left", 2, crossing) == ()
    apart = [square(1, (5, 5), seen=slice(0, 4)), square(2, (5, 60), seen=slice(4, 8))]
    assert ambiguities("the cat on the left", 1, apart) == (), "also where they are never seen together"


def test_a_turning_camera_moves_all_alike():
    panned = [square(1, (5, 40), (5, 20)), square(2, (40, 40), (40, 20))]
    assert ambiguities("the cat moving left", 1, panned), "both do on the screen"
    assert "plainly not true" not in str(ambiguities("the cat moving right", 1, panned)), "and one of them may go right"


def test_one_object_alone_is_where_it_is_in_the_picture():
    alone = [square(1, (5, 60))]
    assert ambiguities("the cat on the right", 1, alone) == () and "“on left”" in ambiguities("the cat on the left", 1, alone)[0]
    assert ambiguities("the cat in the middle", 1, [square(1, (5, 5)), square(2, (5, 35)), square(3, (5, 70))]) and not ambiguities("the middle cat", 2, [square(1, (5, 5)), square(2, (5, 35)), square(3, (5, 70))])


def test_an_object_that_no_mask_shows_is_unknown():
    clip = [square(1, (5, 5)), square(2, (40, 60), seen=slice(0, 0))]
    assert "plainly false of object 2" in ambiguities("the cat on the left", 1, clip)[0] and "plainly false of object 1" in ambiguities("the cat on the left", 2, clip)[0]


def test_any_class_name_and_any_text_can_be_read():
    for text in ("", "…", "猫", "the (cat) [a-z]+ $", "y", "left right up down", "the cat of the cat of the cat"):
        read_sentence(text, ["y", "cat", "(cat)", "a-z", "猫", "Giant_Panda", "..."])
    assert read_sentence("the giant panda", ["Giant_Panda"]).noun == "<0>" and read_sentence("the bear", ["polar_bear", "brown_bear"]).noun == "<any>"


# ---- widget

def annotator(corpus, log, who="Ann", at=FIRST):
    tool = ExpressionAnnotator(corpus, log, who)
    tool._show(at)
    return tool


def send(tool, text):
    tool.sentence.value = text
    tool.save.click()


def press_enter(tool):
    tool.sentence._handle_custom_msg({"event": "submit"}, [])


def test_write_save_go_on(corpus, log):
    tool = ExpressionAnnotator(corpus, log, "Ann")
    first, second, third = tool.annotations.order("Ann")[:3]
    assert tool.target == first and tool.bar.max == 8 and "8 to write" in tool.progress.value and "application/vnd.jupyter.widget-view+json" in tool._repr_mimebundle_()
    tool.sentence.value = "the <i>shy</i> “cat”"
    assert tool.count.value == "3 of 20 words" and log.read_bytes() == b""
    press_enter(tool)
    assert [r["text"] for r in lines(log)] == ["the <i>shy</i> “cat”"] and tool.target == second and tool.sentence.value == ""
    assert "saved" in tool.status.value and "<i>" not in tool.status.value and "7 to write" in tool.progress.value
    assert second.video == first.video and tool.count.value == "0 of 20 words"
    tool.next.click()
    assert tool.target == third and tool.player.view.visible.tolist() == [third.object_id == 1, third.object_id == 2]
    tool.previous.click(), tool.previous.click()
    assert tool.target == first and tool.sentences.options[1][0].startswith("waiting · ")
    again = ExpressionAnnotator(corpus, log, "Ann")
    assert again.target == second, "a new kernel goes on"


def test_the_clip_begins_where_the_target_does(corpus, log):
    tool = annotator(corpus, log, at=SECOND)
    assert tool.player.frame.value == 0 and [t.description for t in tool.player.toggles] == ["cat 1", "cat 2 (this one)"] and "seen in 5 of 6 frames" in tool.about.value
    drawn = tool.player.image.value
    tool.player.play.value = 3
    assert tool.player.image.value != drawn


def test_live_refusals_and_hints(corpus, log):
    tool = annotator(corpus, log)
    send(tool, "the striped cat")
    tool._show(SECOND)
    for text, words in (("Striped cat.", "object 1 of the clip already has"), ("word " * 21, "21 words"), ("the", "says nothing")):
        tool.sentence.value = text
        assert "not possible" in tool.status.value and words in tool.status.value
        tool.save.click()
        assert len(lines(log)) == 1 and tool.target == SECOND and tool.sentence.value == text
    tool.sentence.value = "the cat"
    assert "is it ambiguous?" in tool.status.value
    tool.save.click()
    assert "once more" in tool.status.value and len(lines(log)) == 1
    tool.sentence.value = "the cat at the top"
    tool.save.click()
    assert "once more" in tool.status.value and len(lines(log)) == 1, "another sentence, other hints"
    tool.save.click()
    assert lines(log)[1]["text"] == "the cat at the top" and lines(log)[1]["flags"], "kept for all that, and the log knows"


def test_verify_accept_edit_reject(corpus, log):
    writer = Annotations(corpus, log)
    first, second, third = (writer.write("Ann", t, f"sentence {i}") for i, t in enumerate((FIRST, SECOND, THIRD)))
    tool = ExpressionAnnotator(corpus, log, "Bob")
    tool.mode.value = "verify"
    assert tool.entry == first and tool.sentence.value == "sentence 0" and "written by Ann" in tool.about.value and tool.reject.layout.display is None and tool.give_up.layout.display == "none"
    assert tool.save.description == "accept"
    press_enter(tool)
    assert tool.entry == second
    tool.sentence.value = "the lower cat"
    assert tool.save.description == "save the edit"
    press_enter(tool)
    assert tool.entry == third
    tool.reject.click()
    assert tool.target is None and "nobody else" in tool.status.value and tool.reject.layout.display == "none"
    assert [(r["who"], r["action"]) for r in lines(log)[3:]] == [("Bob", "accept"), ("Bob", "edit"), ("Bob", "reject")]
    writer.refresh()
    assert [writer.entries[e.id].state for e in (first, second, third)] == ["accepted", "waiting", "rejected"] and writer.to_verify("Ann")[0].text == "the lower cat"


def test_own_sentences_are_not_offered_for_verification(corpus, log):
    tool = annotator(corpus, log)
    send(tool, "the striped cat")
    tool.mode.value = "verify"
    assert tool.target is None
    tool.save.click(), press_enter(tool), tool.reject.click()
    assert len(lines(log)) == 1
    tool.mode.value = "write"
    assert tool.target is not None


def test_an_own_sentence_can_be_corrected(corpus, log):
    tool = annotator(corpus, log)
    send(tool, "the stripd cat")
    tool._show(SECOND)
    tool.sentences.index = 1
    assert tool.target == FIRST and tool.sentence.value == "the stripd cat" and tool.save.description == "save the edit"
    tool.save.click()
    assert len(lines(log)) == 1, "nothing has changed"
    send(tool, "the striped cat")
    assert [(r["action"], r["text"]) for r in lines(log)] == [("write", "the stripd cat"), ("edit", "the striped cat")]
    tool._show(SECOND)
    other = annotator(corpus, log, "Bob", SECOND)
    other.sentences.index = 1
    assert other.target == SECOND and other.player.view.visible.tolist() == [True, True], "that of another shows what it is about"


def test_no_sentence_can(corpus, log):
    tool = annotator(corpus, log)
    tool.give_up.click()
    assert lines(log)[0]["text"] is None and tool.target != FIRST
    other = ExpressionAnnotator(corpus, log, "Bob")
    other.mode.value = "verify"
    assert "no sentence singles it out" in other.about.value and other.save.description == "accept"
    send(other, "the striped cat")
    assert lines(log)[1] | {"at": 0} == {"at": 0, "who": "Bob", "action": "edit", "entry": lines(log)[0]["entry"], "text": "the striped cat", "flags": []}


def test_somebody_else_was_faster(corpus, log):
    writer = Annotations(corpus, log)
    entry, other = writer.write("Ann", FIRST, "sentence 0"), writer.write("Ann", SECOND, "sentence 1")
    tool = ExpressionAnnotator(corpus, log, "Bob")
    tool.mode.value = "verify"
    changed = writer.edit("Ann", entry, "other words")
    tool.save.click()
    assert "not saved: somebody changed" in tool.status.value and tool.entry == changed and tool.sentence.value == "other words" and tool.save.description == "accept"
    tool.sentence.value = "my own words"
    writer.accept("Cy", changed)
    tool.save.click()
    assert "not saved" in tool.status.value and tool.entry == other and len(lines(log)) == 4


def test_what_was_typed_outlives_a_full_disk_and_a_broken_log(corpus, log, monkeypatch):
    tool = annotator(corpus, log)
    tool.sentence.value = "the striped cat"
    with monkeypatch.context() as full:
        full.setattr(os, "write", lambda file, data: 0)
        tool.save.click()
    assert "not saved: the disk is full" in tool.status.value and tool.sentence.value == "the striped cat" and tool.target == FIRST
    with open(log, "a") as file:
        file.write("[]\n")
    tool.save.click()
    assert "line 1: action" in tool.status.value and tool.sentence.value == "the striped cat"


def test_a_torn_line_is_told(corpus, log):
    log.write_bytes(b'{"at": "no')
    tool = ExpressionAnnotator(corpus, log, "Ann")
    assert "line 1 was cut off" in tool.status.value and tool.target is not None


def test_a_broken_image_stops_one_clip_alone(tmp_path, log):
    corpus = make_tiny_corpus(tmp_path / "broken", classes=("cat",), videos_per_class=2)
    write_metas(corpus.root, [replace(v, expressions=()) for v in corpus.videos.values()])
    corpus = Corpus.load(corpus.root)
    corpus.videos["cat_0"].frame_path("00005").write_bytes(b"no image")
    tool = annotator(corpus, log)
    assert "00005.jpg" in tool.status.value and tool.sentence.disabled and tool.save.disabled
    press_enter(tool)
    tool._show(THIRD)
    assert not tool.sentence.disabled and "00005" not in tool.status.value
    send(tool, "the striped cat")
    assert [r["video"] for r in lines(log)] == ["cat_1"]


def test_without_a_name(corpus, log):
    with pytest.raises(ValueError, match="give the annotator's name"):
        ExpressionAnnotator(corpus, log, "  ")


def test_a_long_clip_is_shown_smaller(tmp_path):
    corpus = make_tiny_corpus(tmp_path, classes=("cat",), videos_per_class=1, size=(64, 96))
    clip = read_clip(corpus, "cat_0", limit=6 * 5 * 32 * 48)
    assert clip.frames.shape == (6, 32, 48, 3) and clip.masks.shape == (2, 6, 32, 48) and clip.masks.any((2, 3)).tolist() == [[True] * 6, [True] * 5 + [False]]


# ---- with an event loop, as in a kernel

class Loop:
    "An event loop whose time the test moves."

    def __init__(self):
        self.now, self.timers = 100., []

    def time(self):
        return self.now

    def call_later(self, delay, act):
        timer = SimpleNamespace(when=self.now + delay, act=act)
        timer.cancel = lambda: timer in self.timers and self.timers.remove(timer)
        self.timers.append(timer)
        return timer

    def wait(self, seconds):
        self.now += seconds
        for timer in [t for t in self.timers if t.when <= self.now]:
            self.timers.remove(timer)
            timer.act()


@pytest.fixture
def loop(monkeypatch):
    loop = Loop()
    monkeypatch.setattr(annotate, "_running_loop", lambda: loop)
    return loop


def test_enter_waits_for_the_last_letters(corpus, log, loop):
    tool = annotator(corpus, log)
    loop.wait(1)
    tool.sentence.value = "the striped c"
    press_enter(tool)
    loop.wait(.3)
    tool.sentence.value = "the striped cat"      # overtaken by Enter
    loop.wait(.3)
    assert log.read_bytes() == b"", "still waiting"
    loop.wait(.2)
    assert [r["text"] for r in lines(log)] == ["the striped cat"] and loop.timers == []


def test_an_impatient_second_enter_accepts_nothing_unseen(corpus, log, loop):
    writer = Annotations(corpus, log)
    for i, target in enumerate((FIRST, SECOND, THIRD)):
        writer.write("Ann", target, f"sentence {i}")
    actions = lambda: [r["action"] for r in lines(log)[3:]]
    tool = ExpressionAnnotator(corpus, log, "Bob")
    tool.mode.value = "verify"
    loop.wait(1)
    press_enter(tool), press_enter(tool)
    loop.wait(.5)
    press_enter(tool), tool.reject.click()        # what the queue held while the next was read
    loop.wait(1)
    assert actions() == ["accept"]
    press_enter(tool), tool.reject.click()        # accepts; the click was meant for the same one
    assert actions() == ["accept", "accept"]
    loop.wait(1)
    tool.reject.click()
    assert actions() == ["accept", "accept", "reject"]


def test_a_held_key_does_nothing_before_it_is_let_go(corpus, log, loop):
    tool = annotator(corpus, log)
    loop.wait(1)
    tool.sentence.value = "the striped cat"
    for _ in range(30):
        press_enter(tool)
        loop.wait(.05)
    assert log.read_bytes() == b""
    loop.wait(.5)
    assert len(lines(log)) == 1


@pytest.mark.parametrize("act", [lambda tool: setattr(tool.mode, "value", "verify"), lambda tool: tool.next.click(), lambda tool: tool.give_up.click()])
def test_what_waits_is_done_first(corpus, log, loop, act):
    tool = annotator(corpus, log)
    loop.wait(1)
    tool.sentence.value = "the striped cat"
    press_enter(tool)
    act(tool)
    assert [r["text"] for r in lines(log)] == ["the striped cat"] and tool.target != FIRST
    loop.wait(1)
    assert len(lines(log)) == 1


def test_in_a_real_loop(corpus, log):
    async def steps():
        tool = annotator(corpus, log)
        await asyncio.sleep(annotate.SETTLE)
        tool.sentence.value = "the striped cat"
        press_enter(tool)
        assert log.read_bytes() == b""
        while not log.read_bytes():
            await asyncio.sleep(.02)
        assert lines(log)[0]["text"] == "the striped cat"
    asyncio.run(asyncio.wait_for(steps(), 60))
