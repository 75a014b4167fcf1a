"The evaluation protocol on a tiny corpus: what is asked, what swaps do, how answers are added up, what is kept on disk."
import copy
import json

import numpy as np
import pytest
import torch

from fsrvos.evaluation import protocol
from fsrvos.evaluation.metrics import contour_accuracy, region_similarity
from fsrvos.models.fsrvos import FSRVOSOutput
from fsrvos.evaluation.protocol import (SWAPS, Evaluation, ModelPredictor, Prediction, ProtocolError, answer_cases, bootstrap,
                                        breakdown, check_manifest, decode_masks, difficulty, evaluate, make_query, manifest_path, run_means)


def make_manifest(corpus, runs=3, shots=3):
    made = []
    for run in range(runs):
        support, queries = {}, {}
        for name, videos in corpus.videos_by_class.items():
            video = corpus.videos[videos[run % len(videos)]]
            support[name] = {"video": video.id, "frames": list(video.frames[:shots]), "object_id": 1, "expression_id": "0",
                             "expression": video.expressions[0].text}
            queries[name] = [[v, e.id] for v in videos if v != video.id for e in corpus.videos[v].expressions if len(e.object_ids) == 1]
        made.append({"run": run, "support": support, "queries": queries})
    return {"runs": made}


class Source:
    "Frames as one level at a quarter of the size; a sentence is one number per word."

    def __init__(self, corpus):
        self.corpus = corpus

    def frames(self, video_id, frames):
        pixels = torch.from_numpy(self.corpus.read_frames(video_id, frames)).permute(0, 3, 1, 2).float() / 255
        return [torch.nn.functional.avg_pool2d(pixels, 4)]

    def words(self, text):
        return torch.tensor([[float(len(word))] for word in text.split()])

    def masks(self, video_id, frames, object_ids):
        return torch.from_numpy(self.corpus.read_masks(video_id, frames, object_ids))


class Echo:
    "Answers object 1, and remembers all that it was shown."

    def __init__(self, corpus):
        self.corpus, self.asked, self.supports = corpus, [], []

    def encode_support(self, source, support):
        masks = source.masks(support["video"], support["frames"], [support["object_id"]])
        state = {"video": support["video"], "area": int(masks.sum()), "level": float(sum(x.abs().sum() for x in source.frames(support["video"], support["frames"])))}
        self.supports.append(state)
        return state

    def predict(self, state, source, video_id, frames, text):
        self.asked.append((state, video_id, frames, text))
        return Prediction(self.corpus.read_masks(video_id, frames, [1])[0], 0.25)


@pytest.fixture
def corpus(tiny_corpus):
    return tiny_corpus(videos_per_class=3)


@pytest.fixture
def manifest(corpus):
    return make_manifest(corpus)


def test_every_question_is_asked_once_on_all_frames(corpus, manifest):
    echo = Echo(corpus)
    result = evaluate(echo, corpus, Source(corpus), manifest, progress=False)
    wanted = sorted((run["run"], v, e) for run in manifest["runs"] for queries in run["queries"].values() for v, e in queries)
    assert sorted((r["run"], r["video"], r["expression_id"]) for r in result.records) == wanted
    assert all(frames == corpus.videos[video].frames and state["video"] != video for state, video, frames, _ in echo.asked)
    assert len(echo.supports) == 3 * len(corpus.videos_by_class)         # each support set is read once


def test_records_measure_what_was_predicted(corpus, manifest):
    result = evaluate(Echo(corpus), corpus, Source(corpus), manifest, bound_th=0.02, progress=False)
    for record in result.records[::7]:
        query = make_query(corpus, record["video"], record["expression_id"])
        truth, masks = (corpus.read_masks(query.video, query.frames, ids).any(0) for ids in (query.object_ids, (1,)))
        assert record["J"] == pytest.approx(region_similarity(masks, truth).mean())
        assert record["F"] == pytest.approx(contour_accuracy(masks, truth, 0.02).mean())
        assert record["area_pred"] == pytest.approx(masks.mean()) and record["area_true"] == pytest.approx(truth.mean())
        assert (record["frames"], record["kind"], record["distractors"], record["score"]) == (len(query.frames), query.kind, 1, 0.25)


def test_swaps_spoil_one_input_of_run_0(corpus, manifest):
    echo = Echo(corpus)
    result = evaluate(echo, corpus, Source(corpus), manifest, swaps=SWAPS, progress=False)
    spoiled = [r for r in result.records if r["swap"]]
    assert {r["run"] for r in spoiled} == {0} and {r["swap"] for r in spoiled} == set(SWAPS)
    assert len(spoiled) == 3 * len([r for r in result.main if r["run"] == 0])
    blank = [state for state in echo.supports if state["area"] == 0]
    assert len(blank) == len(corpus.videos_by_class) and all(state["level"] == 0 for state in blank)
    other_support = [video for state, video, *_ in echo.asked if corpus.videos[state["video"]].category != corpus.videos[video].category]
    assert len(other_support) == len(spoiled) / 3
    own = {video: {e.text for e in corpus.videos[video].expressions} for video in corpus.videos}
    other_text = [(video, text) for _, video, _, text in echo.asked if text not in own[video]]
    assert other_text and len(other_text) <= len(spoiled) / 3
    summary = result.summary()["per_swap"]
    assert set(summary) == {"right", *SWAPS} and summary["right"]["queries"] == summary["wrong_words"]["queries"]


def test_swaps_leave_the_main_numbers_alone(corpus, manifest):
    plain, swapped = (evaluate(Echo(corpus), corpus, Source(corpus), manifest, swaps=swaps, progress=False).summary() for swaps in ((), SWAPS))
    assert plain["per_swap"] == {} and {**swapped, "per_swap": {}} == plain


def break_manifest(manifest, case):
    run = manifest["runs"][0]
    if case == "unknown video":
        run["queries"]["cat"][0] = ["cat_77", "0"]
    elif case == "unknown expression":
        run["queries"]["cat"][0][1] = "77"
    elif case == "support in queries":
        run["queries"]["cat"][0] = [run["support"]["cat"]["video"], "0"]
    elif case == "wrong class":
        run["queries"]["cat"][0] = ["dog_1", "0"]
    elif case == "no support":
        del run["support"]["cat"]
    elif case == "support frame":
        run["support"]["cat"]["frames"][0] = "99999"
    elif case == "support object":
        run["support"]["cat"]["object_id"] = 9
    elif case == "no queries":
        manifest["runs"] = []
    elif case == "no manifest":
        del run["queries"]


@pytest.mark.parametrize("case, message", [
    ("unknown video", "unknown expression cat_77/0"), ("unknown expression", "unknown expression cat_1/77"),
    ("support in queries", "is about the support video"), ("wrong class", "query video dog_1 is of class dog"),
    ("no support", "class cat: no support"), ("support frame", "has no frame 99999"), ("support object", "no cat with object id 9"),
    ("no queries", "it has no queries"), ("no manifest", "not a support manifest")])
def test_bad_manifests_are_refused_before_work(corpus, manifest, case, message):
    break_manifest(manifest, case)
    echo = Echo(corpus)
    with pytest.raises(ProtocolError, match=message):
        evaluate(echo, corpus, Source(corpus), manifest, progress=False)
    assert not echo.asked and not echo.supports


def test_several_problems_come_in_one_message(corpus, manifest):
    for case in ("unknown video", "support frame"):
        break_manifest(manifest, case)
    with pytest.raises(ProtocolError, match="99999.*cat_77"):
        check_manifest(manifest, corpus)


def test_unknown_swap_and_lonely_class(corpus, manifest):
    with pytest.raises(ProtocolError, match="unknown swap upside_down"):
        evaluate(Echo(corpus), corpus, Source(corpus), manifest, swaps=("upside_down",))
    for run in manifest["runs"]:
        run["queries"] = {"cat": run["queries"]["cat"]}
    with pytest.raises(ProtocolError, match="only one"):
        evaluate(Echo(corpus), corpus, Source(corpus), manifest, swaps=("wrong_words",))


def test_wrong_predictions_are_named(corpus, manifest):
    class Careless(Echo):
        def predict(self, *arguments):
            return Prediction(super().predict(*arguments).masks[:, ::2].astype(float), 1.0)
    with pytest.raises(ProtocolError, match=r"bus_0/0: the prediction is float64 \(6, 16, 48\), the truth is bool \(6, 32, 48\)"):
        evaluate(Careless(corpus), corpus, Source(corpus), manifest, progress=False)


class ToyModel(torch.nn.Module):
    "A decoder whose answer depends on everything it is given, clip by clip and frame by frame."

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.batches = []

    def decode(self, query, words, word_mask, support, support_masks, support_words, support_word_mask):
        assert word_mask.shape == words.shape[:2] and support_word_mask.shape == support_words.shape[:2]
        self.batches.append(len(words))
        said = (words[..., 0] * word_mask).sum(1) + (support_words[..., 0] * support_word_mask).sum(1)
        seen = (support[0].mean((1, 2, 3, 4)) + support_masks.mean((1, 2, 3)) + said / 50)[:, None, None, None]
        first = query[0].mean(2) - seen * self.weight                                               # [B, T, h, w]
        score = (query[0].mean((2, 3, 4)) + said[:, None])[..., None]                               # [B, T, 1]
        return FSRVOSOutput(pred_masks=torch.stack([first, -first], 2), pred_logits=torch.stack([score, score - 1], 2))


def test_model_predictor_does_not_depend_on_batching(corpus, manifest):
    results = [evaluate(ModelPredictor(ToyModel(), clips=clips), corpus, Source(corpus), manifest, swaps=SWAPS, progress=False) for clips in (1, 4, 5)]
    assert 0.01 < np.mean([r["area_pred"] for r in results[0].records]) < 0.99
    for other in results[1:]:
        for a, b in zip(results[0].records, other.records, strict=True):
            assert a == pytest.approx(b, abs=1e-5)


def test_model_predictor_chunks_and_batches(corpus, manifest):
    model = ToyModel()
    predictor = ModelPredictor(model, chunk=4, overlap=1, clips=3)
    source = Source(corpus)
    supports = manifest["runs"][0]["support"]
    states = [predictor.encode_support(source, supports[name]) for name in ("cat", "dog", "cat", "bus")]
    queries = [make_query(corpus, "cat_1", str(i)) for i in range(4)]
    answers = predictor.predict_batch(states, source, queries)
    assert model.batches == [3, 1, 3, 1]                                   # six frames: two chunks of four queries
    alone = predictor.predict_batch(states[2:3], source, queries[2:3])[0]
    assert (answers[2].masks == alone.masks).all() and answers[2].masks.shape == (6, 32, 48)
    assert answers[2].score == pytest.approx(alone.score)


class Restless(torch.nn.Module):
    "Two objects, left and right; which of two queries shows which, and which is surer, changes from call to call."

    def __init__(self, surer):
        super().__init__()
        self.surer, self.calls = surer, 0

    def decode(self, query, words, *others):
        b, t, _, h, w = query[0].shape
        side = torch.where(torch.arange(w) < w // 2, 1.0, -1.0).expand(b, t, h, w)
        right_first, surer = self.calls % 2, self.surer[self.calls]
        self.calls += 1
        masks = torch.stack([-side, side] if right_first else [side, -side], 2)
        scores = [2.0 if ("right" if (right_first == (q == 0)) else "left") == surer else 0.0 for q in (0, 1)]
        return FSRVOSOutput(pred_masks=masks, pred_logits=torch.tensor(scores).view(1, 1, 2, 1).expand(b, t, 2, 1))


def test_one_object_answers_for_the_whole_video(corpus, manifest):
    "Neither the query nor the chunk decides: the left object is surer in two of three chunks, and its query changes."
    source, support = Source(corpus), manifest["runs"][0]["support"]["cat"]
    predictor = ModelPredictor(Restless(["left", "right", "left"]), chunk=3, overlap=1)
    query = make_query(corpus, "cat_1", "0")
    assert len(query.frames) == 6                                          # chunks 0-2, 2-4, 4-5
    answer = predictor.predict_batch([predictor.encode_support(source, support)], source, [query])[0]
    assert answer.masks[:, :, :20].all() and not answer.masks[:, :, 28:].any() and .5 < answer.score < .88


def test_supports_of_different_length_do_not_share_a_batch(corpus, manifest):
    predictor, source = ModelPredictor(ToyModel()), Source(corpus)
    support = manifest["runs"][0]["support"]["cat"]
    states = [predictor.encode_support(source, {**support, "frames": support["frames"][:k]}) for k in (3, 1, 3)]
    queries = [make_query(corpus, "cat_1", "0")] * 3
    together = predictor.predict_batch(states, source, queries)
    for state, answer in zip(states, together):
        assert (predictor.predict_batch([state], source, queries[:1])[0].masks == answer.masks).all()


def test_cases_for_a_figure(corpus, manifest):
    result = evaluate(Echo(corpus), corpus, Source(corpus), manifest, progress=False)
    cases = answer_cases(Echo(corpus), corpus, Source(corpus), result)
    assert [case["name"] for case in cases] == ["best", "median", "worst"] and len({case["video"] for case in cases}) == 3
    by_score = [(case["J"] + case["F"]) / 2 for case in cases]
    run = [(r["J"] + r["F"]) / 2 for r in result.main if r["run"] == 0]
    assert by_score[0] == max(run) and by_score[2] == min(run) and by_score == sorted(by_score, reverse=True)
    for case in cases:
        masks = decode_masks(json.loads(json.dumps(case["masks"])))
        assert (masks == corpus.read_masks(case["video"], corpus.videos[case["video"]].frames, [1])[0]).all()


def fake_records(seed=0, runs=3):
    rng = np.random.default_rng(seed)
    videos = [(f"{c}{i}", c, int(rng.integers(4, 11))) for c in "abc" for i in range(4)]
    return [{"run": run, "swap": None, "class": c, "video": v, "expression_id": e, "kind": "colour", "class_named": e == "0", "distractors": 1,
             "frames": n, "J": rng.random(), "F": rng.random(), "area_pred": .1, "area_true": .2, "score": .5}
            for run in range(runs) for v, c, n in videos for e in "01"]


def test_means_are_those_of_single_frames():
    records = fake_records()
    for run in range(3):
        frames = [r["J"] for r in records if r["run"] == run for _ in range(r["frames"])]
        assert run_means(records)[run, 0] == pytest.approx(np.mean(frames))
        per_class = [np.mean([r["J"] for r in records if r["run"] == run and r["class"] == c for _ in range(r["frames"])]) for c in "abc"]
        assert run_means(records, by_class=True)[run, 0] == pytest.approx(np.mean(per_class))


def test_summary_numbers():
    summary = Evaluation(fake_records(), {"runs": []}, 0.008).summary()
    means = run_means(fake_records())
    main = summary["frame_weighted"]
    assert main["JF"] == pytest.approx((main["J"] + main["F"]) / 2) == pytest.approx(means[:, 2].mean())
    assert main["J_sd"] == pytest.approx(means[:, 0].std(ddof=1))
    assert main["J_low"] < main["J"] < main["J_high"]
    assert (summary["runs"], summary["videos"]) == (3, 12)
    assert summary["area_ratio"] == pytest.approx(0.5)
    assert summary["per_class_named"]["True"]["queries"] == 12


def test_one_run_has_no_deviation():
    assert Evaluation(fake_records(runs=1), {"runs": []}, 0.008).summary()["frame_weighted"]["J_sd"] is None


def test_bootstrap_is_seeded_and_draws_videos():
    records = fake_records()
    assert (bootstrap(records) == bootstrap(records)).all() and (bootstrap(records, seed=1) != bootstrap(records)).any()
    assert bootstrap(records).mean(0) == pytest.approx(run_means(records).mean(0), abs=0.01)
    same = [r | {"J": .4, "F": .6} for r in records]
    assert bootstrap(same) == pytest.approx(np.tile([.4, .6, .5], (2000, 1)))
    # twice as many queries about the same videos are no more evidence
    doubled = records + [r | {"expression_id": r["expression_id"] + "x"} for r in records]
    assert bootstrap(doubled).std(0) == pytest.approx(bootstrap(records).std(0), rel=1e-6)


def test_breakdown_by_kind():
    records = [r | {"kind": "motion" if r["expression_id"] == "1" else "colour"} for r in fake_records()]
    rows = breakdown(records, "kind")
    assert list(rows) == ["colour", "motion"]
    assert rows["motion"]["J"] == pytest.approx(run_means([r for r in records if r["kind"] == "motion"])[:, 0].mean())


def test_round_trip_and_manifest_given_back(corpus, manifest, tmp_path):
    result = evaluate(Echo(corpus), corpus, Source(corpus), manifest, swaps=SWAPS, progress=False)
    result.info = {"cell": "echo-1", "method": "echo", "fold": 1, "seed": 0}
    path = result.to_json(tmp_path / "results" / "echo-1.json")
    assert sorted(p.name for p in path.parent.iterdir()) == ["echo-1.json", "echo-1.manifest.json"]
    again = Evaluation.from_json(path)
    assert again.info == result.info and again.bound_th == result.bound_th and again.manifest == manifest
    for a, b in zip(result.records, again.records, strict=True):
        assert a == pytest.approx(b, abs=1e-4)
    given_back = json.loads(manifest_path(path).read_text())
    assert evaluate(Echo(corpus), corpus, Source(corpus), given_back, swaps=SWAPS, progress=False).records == result.records
    first = path.read_bytes()
    result.to_json(path)
    assert path.read_bytes() == first


def test_broken_files_are_named(corpus, manifest, tmp_path):
    path = evaluate(Echo(corpus), corpus, Source(corpus), manifest, progress=False).to_json(tmp_path / "echo-1.json")
    whole = path.read_text()
    for broken in (whole[:100], "{}", "[1]"):
        path.write_text(broken)
        with pytest.raises(ProtocolError, match="echo-1.json: not an evaluation"):
            Evaluation.from_json(path)
    path.write_text(whole)
    changed = copy.deepcopy(manifest)
    changed["runs"].pop()
    manifest_path(path).write_text(json.dumps(changed))
    with pytest.raises(ProtocolError, match="is not the manifest it was made with"):
        Evaluation.from_json(path)


def test_oracles(corpus, manifest):
    rows = difficulty(corpus, manifest, progress=False)
    # two squares of one class and one size: finding both is half right in the five frames that show both; in the last, only object 1 is there
    assert rows["every annotated object"]["J"] == rows["every object of the class"]["J"] == pytest.approx((5 * .5 + 0.5) / 6)
    assert rows["mask resolution, stride 4"]["J"] > rows["mask resolution, stride 8"]["J"]
    everything = difficulty(corpus, manifest, unannotated=lambda video, frames: np.ones((len(frames), 32, 48), bool), progress=False)
    assert everything["every object"]["J"] < rows["every annotated object"]["J"] and "every annotated object" not in everything


def test_mask_ceiling_is_whole_where_the_mask_is_on_the_grid():
    mask = np.zeros((1, 32, 48), bool)
    mask[0, 8:24, 8:32] = True
    kept = protocol.at_stride(mask, 4)
    assert kept.shape == mask.shape and region_similarity(kept, mask)[0] > 0.95
    assert protocol.at_stride(mask[:, :31, :45], 8).shape == (1, 31, 45)
