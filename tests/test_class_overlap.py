"Test classes that pretraining has seen: counted on corpora, told on the command line."
from functools import partial
import pytest

from fsrvos.data.class_overlap import COCO_CLASSES, COCO_HOMONYMS, COCO_SYNONYMS, COCO_WIDER, class_overlap, overlap_report, read_folds
from fsrvos.data.corpus import write_json_atomic
from fsrvos.data.curation import MINI_REF_YTVOS_CLASSES, CurationRules, curate, fold_classes
from fsrvos.data.refcoco import refcoco_to_corpus
from tests.miniatures import refcoco

FOLDS = {str(fold): dict(zip(("train", "test"), fold_classes(MINI_REF_YTVOS_CLASSES, fold))) for fold in (1, 2, 3, 4)}


@pytest.fixture
def fsrvos(run_cli):
    return partial(run_cli, "overlap")


def test_every_class_of_the_paper_is_counted_in_its_own_fold_once():
    found = class_overlap(COCO_CLASSES, FOLDS, COCO_SYNONYMS | COCO_WIDER, COCO_HOMONYMS)
    for fold, seen in found.items():
        assert list(seen) == [name for name in FOLDS[fold]["test"] if name in seen] and not set(seen) & set(FOLDS[fold]["train"])
    named = {name: other for seen in found.values() for name, other in seen.items()}
    plain = set(MINI_REF_YTVOS_CLASSES) & set(COCO_CLASSES) - {"mouse"}
    assert named == {name: name for name in plain} | {name: others[0] for name, others in (COCO_SYNONYMS | COCO_WIDER).items()}


@pytest.mark.parametrize("listed, seen_as", [(["Giant Pandas"], "Giant Pandas"), (["giant-panda", "bear"], "giant-panda"), (["bear"], "bear"), (["panda"], None), ([], None)])
def test_a_class_is_found_by_its_own_name_before_others(listed, seen_as):
    found = class_overlap(listed, {"1": {"train": [], "test": ["giant_panda"]}}, {"giant_panda": ["bear"]})["1"]
    assert found == ({} if seen_as is None else {"giant_panda": seen_as})


def test_the_report_has_a_line_for_each_fold():
    folds = {"1": {"train": [], "test": ["cat", "hat", "sedan"]}, "2": {"train": [], "test": ["fox"]}}
    assert overlap_report(class_overlap(["cats", "car"], folds, {"sedan": ["car"]}), folds).splitlines() == [
        "- 2 of 3 test classes of fold 1 were seen in pretraining: cat, sedan (as car)", "- 0 of 1 test classes of fold 2 were seen in pretraining"]


def test_refcoco_against_a_curated_corpus(fsrvos, tiny_corpus, tmp_path):
    "Imported still images, of people and dogs, against folds as curation writes them."
    refcoco_to_corpus(refcoco(tmp_path / "raw"), tmp_path / "stills", progress=False)
    curate(tiny_corpus(classes=("cat", "dog", "bus", "hand"), videos_per_class=1), CurationRules(classes=("cat", "dog", "bus", "hand"), min_videos=1), tmp_path / "curated", n_folds=2)
    status, out, err = fsrvos(tmp_path / "stills", tmp_path / "curated")
    assert (status, err) == (0, "")
    assert out.splitlines() == ["2 classes in pretraining", "", "- 0 of 2 test classes of fold 1 were seen in pretraining", "- 1 of 2 test classes of fold 2 were seen in pretraining: dog", "",
                                "With classes that are a kind or a part of one of these:", "", "- 0 of 2 test classes of fold 1 were seen in pretraining",
                                "- 2 of 2 test classes of fold 2 were seen in pretraining: dog, hand (as person)"]


def test_a_mouse_counts_where_it_is_an_animal(fsrvos, tiny_corpus, tmp_path):
    "Among COCO's names it lies on a desk; beside a hedgehog, which COCO has not, it does not."
    write_json_atomic(tmp_path / "curated/folds.json", {"1": {"train": ["cat"], "test": ["mouse"]}})
    for other, told in (("cat", "0 of 1"), ("hedgehog", "1 of 1")):
        out = fsrvos(tiny_corpus(other, classes=("mouse", other), videos_per_class=1).root, tmp_path / "curated")[1]
        assert f"- {told} test classes of fold 1" in out and ("Not counted: mouse;" in out) == (other == "cat")


@pytest.mark.parametrize("content", [None, "[]", "{}", '{"1": {"train": ["a"]}}', '{"1": {"train": [], "test": [3]}}', "{"])
def test_folds_that_are_none_are_told(fsrvos, tiny_corpus, tmp_path, content):
    if content is not None:
        (tmp_path / "folds.json").write_text(content)
    status, out, err = fsrvos(tiny_corpus(videos_per_class=1).root, tmp_path)
    assert status == 2 and not out and str(tmp_path / "folds.json") in err and "->" in err and "Traceback" not in err


def test_what_is_no_corpus_is_told(fsrvos, tmp_path):
    write_json_atomic(tmp_path / "folds.json", {"1": {"train": [], "test": ["cat"]}})
    status, _, err = fsrvos(tmp_path / "nowhere", tmp_path)
    assert status == 2 and "nowhere: is not a folder" in err and read_folds(tmp_path)["1"]["test"] == ["cat"]
