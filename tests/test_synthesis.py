"The embedded corpora: the same bytes every time and everywhere, the right layout, pools that do not meet, sentences that hold."
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fsrvos.data.scenes import generator
from fsrvos.data.sentences import expressions, measure, predicates, singles_out
from fsrvos.data.sprites import CLASS_SPRITES, CLUTTER_POOLS, COLOURS, PRETRAIN_SPRITES, RARE_SPRITES, SHIFTED_SPRITES, class_words, test_fold as fold_of
from fsrvos.data.synthesis import Job, SynthesisSettings, _cast, digest, oracles, plan, synthesize, synthesize_clip

TINY = SynthesisSettings(classes=3, clips_per_class=(2, 2), mixed_per_class=(1, 1), short_per_class=(1, 1), rare_classes=1, rare_clips=(1, 1),
                         pretrain_classes=2, pretrain_clips=1, shifted_clips=1)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    out = tmp_path_factory.mktemp("embedded") / "corpus"
    return out, synthesize(out, TINY, workers=1, progress=False)


@pytest.fixture(scope="module")
def clips():
    jobs = [job for job in plan(SynthesisSettings()) if job.corpus == "raw" and job.role == "plain"]
    return [synthesize_clip(job, 0) for job in jobs[7::80]]


def test_same_bytes_with_two_workers(corpus, tmp_path):
    synthesize(tmp_path / "again", TINY, workers=2, progress=False)
    assert digest(tmp_path / "again") == digest(corpus[0])


def test_same_bytes_without_vector_units(corpus, tmp_path):
    "NumPy's and libjpeg's vector code switched off: what another processor would compute."
    features = "AVX512F AVX512CD AVX512_SKX AVX512_CLX AVX512_CNL AVX512_ICL AVX512_SPR AVX2 FMA3 X86_V3 X86_V4".split()
    known = set(np._core._multiarray_umath.__cpu_dispatch__)
    environment = dict(os.environ, NPY_DISABLE_CPU_FEATURES=" ".join(f for f in features if f in known), JSIMD_FORCENONE="1", PYTHONWARNINGS="ignore")
    settings = repr(TINY)
    code = f"from fsrvos.data.synthesis import *; synthesize({str(tmp_path / 'plain')!r}, {settings}, workers=1, progress=False); print(digest({str(tmp_path / 'plain')!r}))"
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert run.returncode == 0, run.stderr
    assert run.stdout.split()[-1] == digest(corpus[0])


def test_small_corpus_is_part_of_the_large_one():
    whole = plan(SynthesisSettings())
    assert set(plan(TINY)) <= set(whole)
    assert len({job.video(0) for job in whole}) == len(whole)


@pytest.mark.parametrize("name", ["raw", "pretrain", "shifted"])
def test_layout(corpus, name):
    root = corpus[0] / name
    meta = json.loads((root / "train/meta.json").read_text())["videos"]
    said = json.loads((root / "meta_expressions/train/meta_expressions.json").read_text())["videos"]
    assert meta.keys() == said.keys() and len(meta) == corpus[1]["corpora"][name]["videos"]
    folder, suffix = ("Images", ".bmp") if name == "shifted" else ("JPEGImages", ".jpg")
    for video, entry in said.items():
        names = [p.stem for p in sorted((root / "train" / folder / video).iterdir())]
        assert names == entry["frames"] == [p.stem for p in sorted((root / "train/Annotations" / video).iterdir())]
        assert 8 <= len(names) <= 12 and Image.open(root / "train" / folder / video / f"{names[0]}{suffix}").size == (192, 128)
        masks = {n: np.asarray(Image.open(root / "train/Annotations" / video / f"{n}.png")) for n in names}
        for number, track in meta[video]["objects"].items():
            assert track["frames"] == [n for n in names if (masks[n] == int(number)).any()]
            if name == "shifted":
                for n in names:
                    whole = np.asarray(Image.open(root / "train/AmodalAnnotations" / video / number / f"{n}.png")) > 0
                    assert (whole | (masks[n] != int(number))).all()
        for expression in entry["expressions"].values():
            ids = [expression["obj_id"]] if isinstance(expression["obj_id"], str) else expression["obj_id"]
            assert set(ids) <= set(meta[video]["objects"]) and (len(ids) > 1) == (expression["kind"] == "several")


def test_roles_do_not_share_sprites():
    "No sprite is in two roles; the clutter of a clip comes from the pool of the fold that tests its class."
    groups = [[c for codes in table.values() for c in codes] for table in (CLASS_SPRITES, RARE_SPRITES, PRETRAIN_SPRITES, SHIFTED_SPRITES)] + list(map(list, CLUTTER_POOLS))
    every = [code for group in groups for code in group]
    assert len(every) == len(set(every))
    assert len(CLASS_SPRITES) == 48 and min(map(len, CLUTTER_POOLS)) >= 40 and len(PRETRAIN_SPRITES) >= 220
    for i, category in enumerate(CLASS_SPRITES):
        assert fold_of(category) == i % 4 + 1 and _cast(Job("raw", category, 0), 0)[1] == CLUTTER_POOLS[i % 4]


def test_clutter_in_clips_is_of_the_pool():
    for job in (Job("raw", "horse", 1), Job("pretrain", next(iter(PRETRAIN_SPRITES)), 0), Job("shifted", "dog", 2)):
        clip, _ = synthesize_clip(job, 0)
        cast, pool = _cast(job, 0)
        for actor in clip.scene.actors:
            assert actor.code in (pool if actor.category is None else dict(cast)[actor.category])


def test_sentences(clips):
    shortest = 0
    for clip, said in clips:
        for e in said:
            category = measure(clip)[int(e["obj_id"][0]) - 1].category
            named = any(word in e["exp"].split(" ") or f" {word}" in e["exp"] for word in class_words(category))
            assert len(e["exp"].split()) <= 20 and named == e["class_named"], e
        for i in range(len(clip.actors)):
            mine = [e for e in said if e["obj_id"] == str(i + 1)]
            assert not mine or 2 <= len({e["exp"] for e in mine}) <= 4
            shortest += not mine
    everything = [e for _, said in clips for e in said]
    assert shortest == 0
    assert .3 <= sum(not e["class_named"] for e in everything) / len(everything) <= .5
    assert {e["kind"] for e in everything} == {"class", "attribute", "size", "position", "motion", "order", "compound", "several"}


def test_colour_words_say_what_is_seen(clips):
    "Among the pixels of an object, its named colour is the nearest or second nearest of the eleven for most (outlines, patches and light take the rest)."
    names, ranks = list(COLOURS), []
    for clip, _ in clips:
        for number, actor in enumerate(clip.actors, 1):
            seen = clip.frames[clip.ids == number].astype(int)
            votes = np.bincount(np.abs(seen[:, None] - np.array(list(COLOURS.values()))).sum(-1).argmin(1), minlength=len(names))
            ranks.append(list(np.argsort(-votes)).index(names.index(actor.colour)))
    assert np.mean(np.array(ranks) <= 1) > .85


def test_single_predicate_sentences_hold(clips):
    "Redo the check of every one-predicate sentence from the clip alone: it holds for its object and fails for the others of the class."
    checked = 0
    for clip, said in clips:
        facts = measure(clip)
        for e in said:
            if e["kind"] not in ("attribute", "size", "position", "motion", "order"): continue
            index = int(e["obj_id"]) - 1
            group = [f for f in facts if f.category == facts[index].category]
            true = [w for p in predicates(clip, group) if singles_out(p.values, {group.index(facts[index])}) for w in p.wordings if w in e["exp"]]
            assert true, e
            checked += 1
    assert checked > 40


def test_expressions_are_refused_where_words_do_not_suffice():
    "Two objects that nothing tells apart: no sentence."
    clip, _ = synthesize_clip(Job("raw", "cat", 0), 0)
    clip.scene.actors = clip.actors = [clip.actors[0], clip.actors[0]]
    clip.ids[:] = 0
    clip.ids[:, 10:40, 10:40], clip.ids[:, 10:40, 12:14] = 1, 2
    clip.amodal = np.stack([clip.ids == 1, clip.ids == 2])
    assert expressions(generator("x"), clip) is None


def test_difficulty():
    "The issue's bounds on what needs neither support nor words."
    found = oracles(clips=48)
    assert found["every_object"] <= 40 and found["every_object_of_the_class"] <= 75 and found["stride_4"] >= 85


def test_bad_settings_and_folders(tmp_path):
    with pytest.raises(ValueError, match=r"synthesis.classes = 60: must be 0 to 48"):
        SynthesisSettings(classes=60)
    with pytest.raises(ValueError, match="clips_per_class"):
        SynthesisSettings(clips_per_class=(5, 2))
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="synthesis.json"):
        synthesize(tmp_path, TINY, workers=1, progress=False)
    assert (tmp_path / "thesis.txt").read_text() == "mine"
