"Any number of objects: matching and losses with M = 0, 1, 3, linking of chunks, thresholds, the benchmark, MeViS's layout."
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fsrvos.data.adapters import mevis_to_corpus
from fsrvos.data.corpus import CorpusError, Video, write_frame
from fsrvos.data.episodes import EpisodeError, collate, support_manifest
from fsrvos.data.multi_object import MultiObjectEpisodes, colours_in, hold_out, known_colours, multi_manifest
from fsrvos.evaluation.multi_object import (LOSS, SequencePredictor, Sequences, best_sequence, best_row, by_frame, by_similarity, evaluate_multi, load_records, measure,
                                              multi_examples, oracle, save_records, summary, sweep)
from fsrvos.evaluation.multi_report import load_multi, write_multi_report
from fsrvos.evaluation.protocol import ModelPredictor, encode_masks, make_query
from fsrvos.evaluation.report import ReportError
from fsrvos.models.fsrvos import FSRVOSConfig, FSRVOSModel
from fsrvos.models.linking import SequenceLinker, chunks_of, keep_sequences, sequence_iou
from fsrvos.models.sequence_matching import SequenceMatcher, SequenceMatchingConfig, SequenceMatchingModel, SequenceOutput, rule_of
from fsrvos.training.loop import forward
from fsrvos.training.sequence_losses import SequenceCriterion, gather_any
from fsrvos.training.word_lessons import lessons, object_looks

OPTIONS = dict(similarity_prior=True, support_frames="all", referring_head="look", dense_auxiliary=True, match_all_objects=True, soft_positive_iou=.6, support_metric=16)


# ---- losses

def random_output(n=6, t=2, layers=2, b=2, seed=0):
    rng = torch.Generator().manual_seed(seed)
    draw = lambda *s: torch.randn(*s, generator=rng)
    layer = lambda: dict(pred_logits=draw(b, t, n, 1), pred_boxes=draw(b, t, n, 4).sigmoid(), pred_masks=draw(b, t, n, 8, 12))
    return SequenceOutput(**layer(), aux_outputs=[layer() for _ in range(layers - 1)], similarity_logits=draw(layers, b, n), presence_logits=draw(layers, b), fit_logits=draw(layers, b, n),
                          visibility_logits=draw(layers, b, t, n))


def random_target(m, t=2, seed=0, referred=None):
    rng = torch.Generator().manual_seed(seed)
    masks = torch.zeros(m, t, 32, 48)
    for i in range(m):
        masks[i, :, 2 + 9 * i:10 + 9 * i, 4 + 12 * i:16 + 12 * i] = 1
    return dict(masks=masks, boxes=torch.rand(m, t, 4, generator=rng), valid=torch.ones(m, t, dtype=torch.bool),
                referred=torch.ones(m, dtype=torch.bool) if referred is None else torch.tensor(referred, dtype=torch.bool))


def criterion(**options):
    return SequenceCriterion(SequenceMatchingConfig(referring_head="look", **{**dict(match_all_objects=True), **options}))


@pytest.mark.parametrize("counts", [(0, 0), (0, 3), (1, 3), (3, 3)])
def test_batches_with_any_numbers_of_objects(counts):
    output = random_output()
    output.similarity_logits.requires_grad_(), output.presence_logits.requires_grad_(), output.fit_logits.requires_grad_()
    losses = criterion()(output, [random_target(m) for m in counts])
    assert {"loss_similarity", "loss_presence", "loss_fit", "loss_visibility", "loss_ce", "loss_mask_0"} <= set(losses)
    total = criterion().total(losses)
    assert torch.isfinite(total)
    total.backward()
    assert [bool(g.any()) for g in output.similarity_logits.grad.abs().sum((0, 2))] == [m > 0 for m in counts], "which is meant is asked only where something is"
    assert [bool((g > 0).all()) for g in output.presence_logits.grad.T] == [m == 0 for m in counts]
    assert [bool(g.any()) for g in output.fit_logits.grad.abs().sum((0, 2))] == [m > 0 for m in counts], "only what draws an annotated object looks like anything"


def test_what_looks_otherwise_is_taught_where_nothing_is_meant():
    "The sequences that draw the annotated objects are to fit no word of a sentence that means none of them."
    output = random_output(b=1, layers=1)
    output.fit_logits.requires_grad_()
    criterion()(output, [random_target(2, referred=[False, False])])["loss_fit"].backward()
    gradient = output.fit_logits.grad[0, 0]
    assert (gradient >= 0).all() and 2 <= (gradient > 0).sum() < len(gradient)


def test_objects_that_are_not_meant_teach_masks_but_not_the_sentence():
    output, both = random_output(b=1), random_target(2, referred=[True, False])
    taught, alone = criterion()(output, [both]), criterion(match_all_objects=False)(output, [both])
    one = random_target(1)
    assert not torch.isclose(taught["loss_mask"], alone["loss_mask"])
    assert torch.isclose(alone["loss_mask"], criterion(match_all_objects=False)(output, [dict(one, boxes=both["boxes"][:1])])["loss_mask"], atol=1e-6)


def test_the_order_of_annotations_means_nothing():
    output, target = random_output(b=1), random_target(3, referred=[True, False, True])
    turned = {k: v[[2, 0, 1]] for k, v in target.items()}
    a, b = (criterion()(output, [t]) for t in (target, turned))
    assert all(torch.isclose(a[k], b[k], atol=1e-6) for k in a)


def test_perfect_and_wrong_similarities():
    "Three objects of which two are meant, drawn perfectly by the first three of five sequences."
    target = random_target(3, referred=[True, False, True])
    sharp = F.pad(target["masks"], (0, 0, 0, 0, 0, 0, 0, 2)).transpose(0, 1)[..., 2::4, 2::4] * 20 - 10
    boxes = F.pad(target["boxes"], (0, 0, 0, 0, 0, 2), value=.5).transpose(0, 1)

    def loss(similarity):
        output = SequenceOutput(pred_logits=torch.zeros(1, 2, 5, 1), pred_boxes=boxes[None], pred_masks=sharp[None], aux_outputs=[], similarity_logits=torch.tensor([[similarity]]), presence_logits=torch.zeros(1, 1),
                                fit_logits=torch.zeros(1, 1, 5), visibility_logits=torch.zeros(1, 1, 2, 5))
        return float(criterion()(output, [target])["loss_similarity"])
    assert loss([9., -9., 9., -9., -9.]) < .01 < 1 < loss([9., 9., 9., -9., -9.]) and loss([-9., -9., 9., -9., -9.]) > 1


def test_nothing_present_is_matched_with_nothing():
    assert not gather_any([random_target(0), random_target(2)], (8, 12)).present[0].any()


# ---- the model on the tiny corpus

@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return SequenceMatchingModel.from_single(FSRVOSModel(FSRVOSConfig.from_preset("tiny", **OPTIONS)), queries=8)


def episodes(tiny, **shares):
    corpus, source = tiny
    return MultiObjectEpisodes(corpus, ["cat", "dog", "bus"], shares=shares, source=source, frames=3, shots=2, episodes_per_class=6, other_sentences=2)


def test_a_training_step_with_several_one_and_none(tiny, model):
    several, none = episodes(tiny, several=1), episodes(tiny, none=1)
    batch = collate([several[0], none[1], episodes(tiny, one=1)[2]])
    assert [int(t["referred"].sum()) for t in batch.targets] == [2, 0, 1]
    model.train()
    output = forward(model, batch)
    assert output.fit_logits.shape == (2, 3, 8) and output.other_fit.shape == (2, 3, 2, 8)
    assert output.similarity_logits.shape == (2, 3, 8) and output.other_similarity.shape == (2, 3, 2, 8) and output.other_presence.shape == (2, 3, 2)
    assert output.scores().shape == (3, 8) and output.presence().shape == (3,)
    referring = output.pred_logits.squeeze(-1).sigmoid().mean(1)
    assert torch.allclose(output.scores().logit(), (output.similarity_logits[0] + referring.logit()) / 2, atol=1e-4), "halfway between what both heads say"
    loss = SequenceCriterion(model.config)
    losses = loss(output, batch.targets)
    loss.total(losses).backward()
    assert {"loss_similarity", "loss_presence", "loss_fit", "loss_visibility", "loss_otherseq", "loss_otherpresence", "loss_otherfit", "loss_other", "loss_metric", "loss_dense"} <= set(losses)
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.matcher.parameters())
    model.zero_grad()


def test_whether_anything_looks_so_is_asked_of_what_would_be_chosen():
    "The soft maximum is over the sequences that eq. 7 would choose; another one may look as it likes."
    rng, b, n = torch.Generator().manual_seed(0), 1, 4
    matcher = SequenceMatcher(16, 8, 2, (3,)).eval()
    sequences, looks, words, there = torch.randn(b, n, 16, generator=rng), torch.randn(b, n, 3, generator=rng), torch.randn(b, 5, 16, generator=rng), torch.ones(b, 5, dtype=torch.bool)
    with torch.no_grad():
        matcher.fit_in_similarity.zero_()            # or looks would say which sequences are seen, too
        second = torch.tensor([[-9., 9., -9., -9.]])
        ask = lambda looks, referring: matcher(sequences, looks, referring, words, there)[1]
        fit, plain = matcher.fit(looks, words, there), ask(looks, second)
        first, chosen = looks.clone(), looks.clone()
        first[:, 0], chosen[:, 1] = looks[:, 0].flip(-1) * 3, looks[:, 1].flip(-1) * 3
        assert torch.allclose(ask(first, second), plain, atol=1e-4)
        gain = matcher.fit_in_presence * (matcher.fit(chosen, words, there) - fit)[:, 1]
        assert gain.abs() > 1e-3 and torch.allclose(ask(chosen, second) - plain, gain, atol=1e-4)


def test_lessons_about_looks(tiny):
    "Every own sentence means what it means, every other one names a colour that the video does not show, at most so many of a video; looks are those of the objects in their order."
    corpus, source = tiny
    found = lessons(corpus, ["cat", "dog"], absent=1, seed=3)
    own = [lesson for lesson in found if any(lesson.meant)]
    videos = [corpus.videos[v] for name in ("cat", "dog") for v in corpus.videos_by_class[name]]
    assert [(lesson.video, lesson.text, lesson.meant) for lesson in own] == [(v.id, e.text, tuple(i in e.object_ids for i in sorted(v.objects))) for v in videos for e in v.expressions]
    wrong = [lesson for lesson in found if not any(lesson.meant)]
    assert wrong and len({lesson.video for lesson in wrong}) == len(wrong)
    assert all(not colours_in(lesson.text) & known_colours(corpus.videos[lesson.video]) and len(lesson.meant) == 2 for lesson in wrong)
    assert lessons(corpus, ["cat", "dog"], absent=1, seed=3) == found and not [x for x in lessons(corpus, ["cat"], absent=0) if not any(x.meant)]
    video = videos[0]
    looks, level = object_looks(source, video), source.frames(video.id, video.frames[:1])[1]
    assert looks.shape == (2, 24 + 40)
    masks = torch.as_tensor(source.masks(video.id, video.frames[:1], [2]))[0].float()
    there = F.adaptive_avg_pool2d(masks, level.shape[-2:])
    one = Video(video.id, video.frames[:1], video.objects, video.expressions, video.folder, video.suffix)
    assert torch.allclose(object_looks(source, one)[1, 24:], (level * there).sum((0, 2, 3)) / there.sum(), atol=1e-3)


def test_further_sentences_fit_and_do_not(tiny):
    "Wording alone must not say which: in turn one that fits and one that fits nothing, several objects among both."
    corpus, source = tiny
    data = MultiObjectEpisodes(corpus, ["cat", "dog", "bus"], shares=dict(one=1), source=source, frames=3, shots=2, episodes_per_class=6, other_sentences=6)
    counts = np.array([data[i].other_referred.sum(1).tolist() for i in range(len(data))])
    assert (counts[:, 0] == 1).all() and (counts[:, 1] == 0).all() and (counts[:, 5] > 0).all() and 2 in counts[:, 4]
    said = {e.text for i in range(len(data)) for e in data._other_expressions(data.episode(i).query, (1,), np.random.default_rng(i)) if not e.object_ids}
    plural = {e.text for v in corpus.videos.values() for e in v.expressions if len(e.object_ids) > 1}
    assert said & plural and said - plural


def test_a_saved_model_answers_the_same(tiny, model, tmp_path):
    model.eval().save_pretrained(tmp_path / "model")
    again = SequenceMatchingModel.from_pretrained(tmp_path / "model")
    corpus, source = tiny
    ask = lambda m: SequencePredictor(m).sequences([SequencePredictor(m).encode_support(source, support_of(corpus, "dog_0"))], source, "cat_0", corpus.videos["cat_0"].frames, ["the red one"], (32, 48))[0]
    assert again.config.queries == 8 and torch.allclose(ask(model).scores, ask(again).scores, atol=1e-6)


def support_of(corpus, video_id):
    video = corpus.videos[video_id]
    return {"video": video_id, "frames": list(video.frames[:2]), "object_id": 1, "expression": video.expressions[0].text}


def test_episodes_are_a_function_of_seed_and_index(tiny):
    a, b = (episodes(tiny, several=1, one=1, none=1) for _ in range(2))
    assert [a.episode(i) for i in range(18)] == [b.episode(i) for i in range(18)]
    assert {min(len(a.episode(i).query.object_ids), 2) for i in range(18)} == {0, 1, 2}
    assert all(a.episode(i).query.video != a.episode(i).support.video for i in range(18))


def test_sentences_that_fit_nothing_do_fit_nothing(tiny):
    corpus, _ = tiny
    dataset = episodes(tiny, none=1)
    for i in range(len(dataset)):
        query = dataset.episode(i).query
        video = corpus.videos[query.video]
        if query.kind == "absent_class":
            assert query.class_name in query.expression and video.category != query.class_name
        elif query.kind == "absent_attribute":
            assert not known_colours(video) & set(query.expression.split())
    assert {dataset.episode(i).query.kind for i in range(len(dataset))} >= {"absent_class", "absent_attribute"}


@pytest.mark.parametrize("shares", [{}, {"many": 1}, {"one": 0}, {"one": -1, "none": 2}])
def test_shares_that_are_none(tiny, shares):
    with pytest.raises(EpisodeError, match="shares must be of several, one, none"):
        episodes(tiny, **shares)


# ---- the benchmark

def test_the_manifest(tiny):
    corpus, _ = tiny
    manifest = multi_manifest(corpus, ["cat", "dog", "bus"], runs=2, shots=2, max_queries=30)
    assert manifest == json.loads(json.dumps(multi_manifest(corpus, ["cat", "dog", "bus"], runs=2, shots=2, max_queries=30)))
    single = support_manifest(corpus, ["cat", "dog", "bus"], runs=2, shots=2)
    assert [r["support"] for r in manifest["runs"]] == [r["support"] for r in single["runs"]], "the same support draws as the single-object protocol's"
    for run in manifest["runs"]:
        counts = [min(len(q["object_ids"]), 2) for q in run["queries"]]
        assert counts.count(0) == counts.count(1) == 10 and 0 < counts.count(2) <= 10      # nine videos with one such sentence each
        assert all(q["video"] != run["support"][q["class"]]["video"] for q in run["queries"])
        assert {q["class"] for q in run["queries"]} == {"cat", "dog", "bus"}
    assert manifest["runs"][0]["queries"] != manifest["runs"][1]["queries"]


def test_evaluation_and_sweep(tiny, model):
    corpus, source = tiny
    manifest = multi_manifest(corpus, ["cat", "dog"], runs=1, shots=2, max_queries=9)
    choices = dict(ism=by_similarity(.2), argmax=best_sequence, frames=by_frame(.2), oracle=oracle)
    records = evaluate_multi(SequencePredictor(model, clips=3), corpus, source, manifest, choices, progress=False)
    assert len(records) == 4 * len(manifest["runs"][0]["queries"]) and all(0 <= r["J"] <= 1 and r["frames"] == 6 for r in records)
    by_choice = {name: summary([r for r in records if r["choice"] == name]) for name in choices}
    assert by_choice["oracle"]["0"]["no_target"] == 1 and by_choice["argmax"]["0"]["no_target"] == 0
    assert by_choice["oracle"]["2+"]["count"] == 1 and by_choice["argmax"]["2+"]["count"] == 0
    swept = sweep(SequencePredictor(model), corpus, source, manifest, [0, .2, .5, 1], [-1, .5, 1], progress=False)
    assert list(swept) == ["sequence", "frame", "argmax"] and [len(rows) for rows in swept.values()] == [12, 4, 1]
    assert swept["argmax"][0]["JF_1"] == pytest.approx(by_choice["argmax"]["1"]["JF"])
    always = [row for row in swept["sequence"] if row["presence"] == -1]
    found = [row["recall"] for row in always]
    assert found == sorted(found, reverse=True) and all(row["no_target"] == 0 for row in always)
    assert all(row["no_target"] == 1 and row["recall"] == 0 for row in swept["sequence"] if row["presence"] == 1)
    same = next(row for row in swept["sequence"] if (row["threshold"], row["presence"]) == (.2, .5))
    assert same["meant"] == pytest.approx(np.mean([by_choice["ism"][g]["JF"] for g in ("1", "2+")])) and best_row(swept["sequence"])["meant"] >= max(r["meant"] for r in swept["sequence"]) - LOSS


def test_overlaps_are_counted_once_for_the_clip_and_its_frames():
    masks, visible = torch.rand(5, 3, 12, 16) > torch.rand(5, 3, 1, 1), torch.rand(5, 3) > .3
    masks[4], masks[0, 1] = False, False
    gated = masks & visible[..., None, None]
    s = Sequences(torch.rand(5), torch.rand(5, 3), masks, gated, torch.tensor(.5))
    assert torch.equal(s.overlap, sequence_iou(gated, gated))
    assert all(torch.equal(frame, sequence_iou(masks[:, t:t + 1], masks[:, t:t + 1])) for t, frame in enumerate(s.frame_overlap))


def test_a_single_object_model_is_asked_in_the_same_way(tiny, model):
    corpus, source = tiny
    manifest = multi_manifest(corpus, ["cat", "dog"], runs=1, shots=2, max_queries=9)
    single = FSRVOSModel(FSRVOSConfig.from_preset("tiny", similarity_prior=True, referring_head="look")).eval()
    records = evaluate_multi(SequencePredictor(single), corpus, source, manifest, {"argmax": best_sequence}, progress=False)
    state = SequencePredictor(single).encode_support(source, manifest["runs"][0]["support"]["cat"])
    one = next(q for q in manifest["runs"][0]["queries"] if q["class"] == "cat" and len(q["object_ids"]) == 1)
    query = make_query(corpus, one["video"], one["expression_id"])
    answer = ModelPredictor(single).predict_batch([state], source, [query])[0]
    truth = corpus.read_masks(one["video"], query.frames, one["object_ids"])
    record = next(r for r in records if (r["video"], r["text"]) == (one["video"], one["text"]))
    assert record["J"] == pytest.approx(measure(answer.masks[None], truth, .008)["J"]) and {r["found"] for r in records} == {1}


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("chunk", [10, 4])
def test_one_clip_at_a_time_is_answered_by_inference_with_the_same_numbers(tiny, model, many, chunk):
    corpus, source = tiny
    one = model if many else FSRVOSModel(FSRVOSConfig.from_preset("tiny", **OPTIONS)).eval()
    manifest = support_manifest(corpus, ["cat", "dog"], runs=1, shots=2, max_queries=4)
    queries = [make_query(corpus, *q) for q in manifest["runs"][0]["queries"]["cat"]]
    sure, fast = ModelPredictor(one, clips=2, chunk=chunk), ModelPredictor(one, chunk=chunk)
    assert sure.inference is None and fast.inference.model is one
    state = fast.encode_support(source, manifest["runs"][0]["support"]["cat"])
    for query in queries:
        a, b = (predictor.predict_batch([state], source, [query])[0] for predictor in (sure, fast))
        assert a.score == pytest.approx(b.score, abs=1e-4) and (a.masks == b.masks).mean() > .999
        prepared = state.prepared if query is queries[0] else prepared
    assert state.prepared is prepared is not None, "a support is prepared once"


@pytest.mark.parametrize("chunk", [10, 4])
def test_what_is_known_of_a_clip_and_a_sentence_is_computed_once_for_all_supports(tiny, model, chunk, monkeypatch):
    corpus, source = tiny
    support = support_manifest(corpus, ["cat", "dog"], runs=1, shots=2, max_queries=2)["runs"][0]["support"]
    video = next(v for v in map(corpus.videos.get, corpus.videos_by_class["cat"]) if len({e.text for e in v.expressions}) > 1)
    frames, size, (one, other) = tuple(video.frames), (video.height, video.width), sorted({e.text for e in video.expressions})[-2:]
    predictor, asked = SequencePredictor(model, chunk=chunk), []
    cat, dog = (predictor.encode_support(source, support[name]) for name in ("cat", "dog"))
    pairs = [(cat, other), (dog, one), (dog, other), (cat, one), (cat, other)]
    alone = [predictor.sequences([state], source, video.id, frames, [text], size)[0] for state, text in pairs]
    clip = predictor.inference.clip
    monkeypatch.setattr(predictor.inference, "clip", lambda *args: asked.append(args) or clip(*args))
    together = predictor.sequences([state for state, _ in pairs], source, video.id, frames, [text for _, text in pairs], size)
    assert len(asked) == 2 * len(chunks_of(len(frames), chunk, predictor.overlap))
    assert all(torch.equal(a.referring, b.referring) and torch.equal(a.masks, b.masks) for a, b in zip(alone, together, strict=True))
    assert len({a.referring.sum().item() for a in alone}) == 4, "each pair has an answer of its own"


def test_videos_that_are_held_out(tiny):
    corpus, _ = tiny
    learn, apart = hold_out(corpus, ["cat", "dog"], 2)
    assert {len(v) for v in apart.videos_by_class.values()} == {2} and not set(learn.videos) & set(apart.videos)
    assert set(learn.videos_by_class) == {"cat", "dog"} and hold_out(corpus, ["cat", "dog"], 2, seed=1)[1].videos.keys() != apart.videos.keys()
    for each in (1, 99):
        with pytest.raises(EpisodeError, match=f"of which {each} are to be held out"):
            hold_out(corpus, ["cat"], each)


def test_the_report(tiny, model, tmp_path):
    corpus, source = tiny
    manifest = multi_manifest(corpus, ["cat", "dog"], runs=1, shots=2, max_queries=9)
    predictor, ways = SequencePredictor(model), {"ism": by_similarity(.2, .3), "argmax": best_sequence, "oracle": oracle}
    records = evaluate_multi(predictor, corpus, source, manifest, ways, progress=False)
    hashes = {"code": "c", "params": "p", "data": "d"}
    examples = multi_examples(predictor, corpus, source, manifest, records, ways["ism"])
    assert examples and all(len(e["masks"]) == e["found"] for e in examples)
    save_records(tmp_path / "multi/ism-1.json", manifest, records, {"cell": "ism-1", "thresholds": {"sequence": .2, "presence": .3, "frame": .5}, "examples": examples, "provenance": hashes})
    swept = sweep(predictor, corpus, source, manifest, [.1, .2], [.3, .5], progress=False)
    files = write_multi_report(load_multi(tmp_path / "multi"), tmp_path / "reports", provenance=hashes, sweeps={"ism-1": swept}, corpus=corpus)
    assert [f.name for f in files] == ["table5.md", "table5.json", "multi_sweep.png", "multi_examples.png"] and all(f.stat().st_size for f in files)
    text = (tmp_path / "reports/table5.md").read_text()
    assert text.startswith("# Table 5") and "it starts from): 0.2 / 0.3" in text and "ism-1: code c" in text
    rows = {r["choice"]: r for r in json.loads((tmp_path / "reports/table5.json").read_text())["records"] if r["targets"] == "all" and r["fold"] == "mean"}
    assert rows["oracle"]["count"] == 1 and rows["ism"]["queries"] == len(manifest["runs"][0]["queries"])
    with pytest.raises(ReportError, match="no results for any number of objects"):
        load_multi(tmp_path / "nowhere")


def test_a_broken_result_is_named(tmp_path):
    (tmp_path / "ism-1.json").write_text('{"manifest": "gone.json", "answers": {}}')
    with pytest.raises(ValueError, match=r"ism-1.json: no results .*evaluate_multi again"):
        load_records(tmp_path / "ism-1.json")


def test_chunks_give_the_whole_clip(tiny, model):
    corpus, source = tiny
    predictor = SequencePredictor(model, chunk=3, overlap=1)
    frames = corpus.videos["cat_1"].frames
    (linked,) = predictor.sequences([predictor.encode_support(source, support_of(corpus, "dog_0"))], source, "cat_1", frames, ["the cat"], (32, 48))
    assert linked.masks.shape[1:] == (6, 32, 48) and linked.masks.shape[0] >= 8 and linked.referring.shape == linked.masks.shape[:2]
    assert (linked.gated <= linked.masks).all() and 0 < linked.scores.min() and linked.scores.max() < 1


# ---- thresholds

def test_the_higher_the_threshold_the_fewer_are_kept():
    rng = torch.Generator().manual_seed(0)
    scores, masks = torch.rand(12, generator=rng), torch.rand(12, 3, 8, 8, generator=rng) > .5
    counts = [len(keep_sequences(scores, masks, s / 50)) for s in range(51)]
    assert counts == sorted(counts, reverse=True) and counts[0] == 12 and counts[-1] == 0


def test_presence_decides_alone_whether_anything_is_kept():
    ask = lambda presence, **o: rule_of(presence, SequenceMatchingConfig(referring_head="look", threshold=.6, presence_threshold=.5, **o))
    scores, masks = torch.tensor([.2, .4]), torch.eye(2, dtype=torch.bool)[:, None, :, None].expand(2, 3, 2, 2)
    assert len(keep_sequences(scores, masks, **ask(.5))) == 0, "nothing is meant"
    assert keep_sequences(scores, masks, **ask(.51)).queries.tolist() == [1], "something is: the best, though it is below σ"
    assert keep_sequences(scores, masks, **ask(.1, allow_none=False)).queries.tolist() == [1], "the switch"


def test_nothing_kept_is_a_valid_answer():
    nothing = keep_sequences(torch.tensor([.1, .2]), torch.ones(2, 3, 8, 8, dtype=torch.bool), .5)
    assert nothing.masks.shape == (0, 3, 8, 8) and nothing.union().shape == (3, 8, 8)
    codes = encode_masks(nothing.union().numpy())
    assert json.loads(json.dumps(codes)) == codes and len(codes) == 3


@pytest.mark.parametrize("options, told", [(dict(threshold=2), "threshold is 2"), (dict(duplicate_iou=-1), "duplicate_iou is -1"), (dict(referring_head="linear"), "referring_head 'look'")])
def test_settings_that_cannot_be(options, told):
    with pytest.raises(ValueError, match=told):
        SequenceMatchingConfig(**{**dict(referring_head="look"), **options})


# ---- linking

def crossing(frames=20, looks_apart=True):
    "Two squares that pass through each other, and what their sequences look like."
    clip = torch.zeros(2, frames, 24, 96, dtype=torch.bool)
    for t in range(frames):
        clip[0, t, 8:16, 4 * t:4 * t + 10] = True
        clip[1, t, 9:17, 82 - 4 * t:92 - 4 * t] = True
    looks = F.normalize(torch.randn(2, 16, generator=torch.Generator().manual_seed(1)), dim=-1)
    return clip, looks if looks_apart else looks[:1].repeat(2, 1)


@pytest.mark.parametrize("length, overlap", [(5, 1), (7, 2), (11, 1), (4, 0)])
def test_identity_is_kept_where_objects_cross(length, overlap):
    "At a border where they lie upon each other, with the queries exchanged in every other chunk."
    clip, looks = crossing()
    linker = SequenceLinker(overlap)
    for number, chunk in enumerate(chunks_of(20, length, overlap)):
        order = [0, 1] if number % 2 == 0 else [1, 0]
        linker.add(clip[order][:, list(chunk)], torch.tensor([.9, .3])[order], looks[order])
    assert len(linker.tracks) == 2 and all(torch.equal(linker.masks(i), clip[i]) for i in range(2))
    assert linker.answer(.5).queries.tolist() == [0] and torch.equal(linker.answer(.5).masks[0], clip[0])


def test_masks_link_what_looks_alike():
    "Far from the crossing, the same looks: the seam decides."
    clip, looks = crossing(looks_apart=False)
    linker = SequenceLinker(1)
    linker.add(clip[:, :5], torch.tensor([.9, .3]), looks)
    assert linker.add(clip[[1, 0]][:, 4:9], torch.tensor([.3, .9]), looks) == [1, 0]


def test_something_new_begins_a_track_and_something_gone_keeps_its_own():
    clip, looks = crossing()
    linker, other = SequenceLinker(1), F.normalize(torch.randn(1, 16, generator=torch.Generator().manual_seed(7)), dim=-1)
    linker.add(clip[:, :5], torch.tensor([.9, .3]), looks)
    assert linker.add(torch.zeros(1, 5, 24, 96, dtype=torch.bool), torch.tensor([.5]), other) == [2]
    assert linker.add(clip[:1, 8:13], torch.tensor([.9]), looks[:1]) == [0], "back again, known by its looks"
    assert linker.masks(1)[5:].sum() == 0 and linker.masks(0).shape[0] == linker.end == 13


def test_memory_of_a_track_does_not_grow_with_its_masks():
    clip, looks = crossing()
    linker = SequenceLinker(1)
    for chunk in chunks_of(20, 5, 1):
        linker.add(clip[:, list(chunk)], torch.tensor([.9, .3]), looks)
    assert all(t.seam.shape == (1, 24, 96) and all(isinstance(m["counts"], bytes) for m in t.masks.values()) for t in linker.tracks)
    assert sum(len(m["counts"]) for t in linker.tracks for m in t.masks.values()) < clip.numel() / 50


@pytest.mark.parametrize("masks, told", [(torch.zeros(1, 1, 24, 96, dtype=torch.bool), "brings nothing new"), (torch.zeros(1, 4, 8, 8, dtype=torch.bool), "not of one clip")])
def test_chunks_that_do_not_fit(masks, told):
    clip, looks = crossing()
    linker = SequenceLinker(1)
    linker.add(clip[:, :5], torch.tensor([.9, .3]), looks)
    with pytest.raises(ValueError, match=told):
        linker.add(masks, torch.tensor([.5]), looks[:1])


def test_chunks_that_never_end():
    with pytest.raises(ValueError, match="never end"):
        chunks_of(10, 2, 2)


# ---- MeViS

@pytest.fixture
def mevis(tmp_path):
    "One video of two frames; object 9 overlaps object 7 and is smaller."
    from pycocotools import mask as rle
    root = tmp_path / "mevis/valid_u"
    large, small = np.zeros((24, 32), np.uint8), np.zeros((24, 32), np.uint8)
    large[2:20, 2:20], small[10:14, 10:14] = 1, 1
    code = lambda m: {"size": [24, 32], "counts": rle.encode(np.asfortranarray(m))["counts"].decode()}
    for frame in ("00000", "00001"):
        write_frame(root / "JPEGImages/v1" / f"{frame}.jpg", np.full((24, 32, 3), 90, np.uint8))
    expressions = {"0": {"exp": "both of them moving", "obj_id": [0, 1], "anno_id": [7, 9]}, "1": {"exp": "the one that stays", "obj_id": [0], "anno_id": [7]}}
    content = {"videos": {"v1": {"vid_id": 0, "frames": ["00000", "00001"], "expressions": expressions}}}
    masks = {"7": [code(large)] * 2, "9": [None, code(small)]}

    def write(meta=content, masks=masks):
        (root / "meta_expressions.json").write_text(json.dumps(meta))
        (root / "mask_dict.json").write_text(json.dumps(masks))
        return root
    return SimpleNamespace(write=write, content=content, masks=masks, root=root)


def test_mevis_becomes_a_corpus(mevis, tmp_path):
    corpus = mevis_to_corpus(mevis.write(), tmp_path / "out", progress=False)
    assert [(e.text, e.object_ids, e.kind) for e in corpus.videos["v1"].expressions] == [("both of them moving", (1, 2), "several"), ("the one that stays", (1,), "motion")]
    masks = corpus.read_masks("v1", ["00000", "00001"], [1, 2])
    assert masks[0].sum((1, 2)).tolist() == [18 * 18, 18 * 18 - 16] and masks[1].sum((1, 2)).tolist() == [0, 16]
    assert corpus.check(images=True) == [] and corpus.videos["v1"].category == "object"


def broken(mevis, what):
    meta, masks = json.loads(json.dumps(mevis.content)), json.loads(json.dumps(mevis.masks))
    video = meta["videos"]["v1"]
    if what == "short masks": masks["7"] = masks["7"][:1]
    if what == "no masks": del masks["9"]
    if what == "no anno_id": del video["expressions"]["1"]["anno_id"]
    if what == "no frames": video["frames"] = []
    if what == "no folder": (mevis.root / "JPEGImages/v1").rename(mevis.root / "JPEGImages/v2")
    if what == "no videos": meta["videos"] = {}
    return mevis.write(meta, masks)


@pytest.mark.parametrize("what, told", [("short masks", "has 1 masks for the 2 frames"), ("no masks", "has 0 masks for the 2 frames"), ("no anno_id", "as many 'anno_id' as 'obj_id'"),
                                        ("no frames", "lacks 'frames'"), ("no folder", "no such folder"), ("no videos", "has no videos")])
def test_bad_mevis_data_is_told_and_nothing_is_written(mevis, tmp_path, what, told):
    with pytest.raises(CorpusError, match=told):
        mevis_to_corpus(broken(mevis, what), tmp_path / "out", progress=False)
    assert not list(tmp_path.glob("*out*"))


def test_mevis_without_its_files(tmp_path):
    with pytest.raises(CorpusError, match="meta_expressions.json"):
        mevis_to_corpus(tmp_path, tmp_path / "out", progress=False)
