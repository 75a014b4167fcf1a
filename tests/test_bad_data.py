"Bad data of every kind is found up front: all of it at once, with file, field and mend."
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from fsrvos.data.corpus import Corpus, CorpusError, check_corpus, write_frame, write_masks

META, SENTENCES = "train/meta.json", "meta_expressions/train/meta_expressions.json"


@pytest.fixture
def corpus(tiny_corpus):
    return tiny_corpus(classes=["cat"], videos_per_class=2, frames=3)


def edit(root, file, *keys, value=None, drop=False):
    "Change or drop one entry of a JSON file."
    path = root / file
    content = json.loads(path.read_text())
    place = content
    for key in keys[:-1]:
        place = place[key]
    if drop:
        del place[keys[-1]]
    else:
        place[keys[-1]] = value
    path.write_text(json.dumps(content))


def image(root, folder, name):
    return root / "train" / folder / "cat_0" / name


def cut_off(path):
    path.write_bytes(path.read_bytes()[:len(path.read_bytes()) * 2 // 3])


def flip_bytes(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    data[len(data) // 2 + 1] ^= 0xFF
    path.write_bytes(bytes(data))


V = ("videos", "cat_0")
SEEN_BY_LOADING = {  # kind of bad data: (how to make it, what the message must say)
    "missing meta": (lambda r: (r / META).unlink(), [META, "is missing", "add meta.json or train.json"]),
    "missing expressions": (lambda r: (r / SENTENCES).unlink(), [SENTENCES, "is missing"]),
    "missing frames folder": (lambda r: shutil.rmtree(r / "train/JPEGImages"), ["JPEGImages", "is missing"]),
    "missing masks folder": (lambda r: shutil.rmtree(r / "train/Annotations"), ["Annotations", "is missing"]),
    "broken meta": (lambda r: (r / META).write_text('{"videos": {'), [META, "line 1 column 13", "not valid JSON"]),
    "broken expressions": (lambda r: (r / SENTENCES).write_text("\n]"), [SENTENCES, "line 2", "not valid JSON"]),
    "meta in no encoding": (lambda r: (r / META).write_bytes(b'{"videos": "\xff\xfe\xfa"}'), [META, "is not UTF-8"]),
    "no videos key": (lambda r: (r / META).write_text("{}"), [META, "videos: is missing"]),
    "a list for a mapping": (lambda r: (r / META).write_text('{"videos": []}'), [META, "videos: is []"]),
    "video without meta": (lambda r: edit(r, META, *V, drop=True), [META, "videos.cat_0: is missing"]),
    "video without expressions": (lambda r: edit(r, SENTENCES, *V, drop=True), [SENTENCES, "videos.cat_0: is missing"]),
    "no objects": (lambda r: edit(r, META, *V, "objects", value={}), [META, "videos.cat_0.objects: is {}"]),
    "wrong key for objects": (lambda r: edit(r, META, *V, value={"object": {}}), [META, "videos.cat_0.objects: is missing"]),
    "object id no number": (lambda r: edit(r, META, *V, "objects", "one", value={"category": "cat", "frames": ["00000"]}), ["objects.one", "1 to 255"]),
    "object id out of range": (lambda r: edit(r, META, *V, "objects", "256", value={"category": "cat", "frames": ["00000"]}), ["objects.256", "1 to 255"]),
    "no category": (lambda r: edit(r, META, *V, "objects", "1", "category", drop=True), ["objects.1.category: is missing"]),
    "category no name": (lambda r: edit(r, META, *V, "objects", "1", "category", value=3), ["objects.1.category: is 3"]),
    "object never visible": (lambda r: edit(r, META, *V, "objects", "1", "frames", value=[]), ["objects.1.frames: is []"]),
    "object in an unknown frame": (lambda r: edit(r, META, *V, "objects", "1", "frames", value=["00099"]), ["objects.1.frames", "00099 is not among"]),
    "no frames": (lambda r: edit(r, SENTENCES, *V, "frames", drop=True), ["videos.cat_0.frames: is missing"]),
    "a frame twice": (lambda r: edit(r, SENTENCES, *V, "frames", value=["00000", "00000"]), ["videos.cat_0.frames", "twice"]),
    "frame outside the root": (lambda r: edit(r, SENTENCES, *V, "frames", value=["../../../etc/passwd"]), ["videos.cat_0.frames", "leave the root"]),
    "video outside the root": (lambda r: edit(r, META, "videos", "../evil", value={}), ["videos.../evil", "leave the root"]),
    "expression empty": (lambda r: edit(r, SENTENCES, *V, "expressions", "0", "exp", value="  "), ["expressions.0.exp: is"]),
    "expression missing": (lambda r: edit(r, SENTENCES, *V, "expressions", "0", "exp", drop=True), ["expressions.0.exp: is missing"]),
    "expression for an unknown object": (lambda r: edit(r, SENTENCES, *V, "expressions", "0", "obj_id", value="9"), ["expressions.0.obj_id", "unknown object 9"]),
    "one of several objects unknown": (lambda r: edit(r, SENTENCES, *V, "expressions", "0", "obj_id", value=["1", "9"]), ["unknown object 9"]),
    "expression without object": (lambda r: edit(r, SENTENCES, *V, "expressions", "0", "obj_id", drop=True), ["expressions.0.obj_id: is missing"]),
    "expression about nothing": (lambda r: edit(r, SENTENCES, *V, "expressions", "0", "obj_id", value=[]), ["expressions.0.obj_id: is []"]),
    "class_named no boolean": (lambda r: edit(r, SENTENCES, *V, "expressions", "0", "class_named", value="no"), ["expressions.0.class_named"]),
    "mask without frame": (lambda r: write_masks(image(r, "Annotations", "00700.png"), np.zeros((32, 48), np.uint8)), ["00700.png", "mask without a frame"]),
    "frame without mask": (lambda r: image(r, "Annotations", "00005.png").unlink(), ["cat_0/00005.png", "frame without a mask"]),
    "listed frame missing": (lambda r: image(r, "JPEGImages", "00005.jpg").unlink(), ["cat_0/00005.jpg", "is missing"]),
    "folder of a video missing": (lambda r: shutil.rmtree(r / "train/JPEGImages/cat_0"), ["JPEGImages/cat_0", "cannot be listed"]),
    "pointer to nowhere": (lambda r: (r / "corpus.json").write_text('{"frames": "../nowhere"}'), ["corpus.json", "'../nowhere' leads to"]),
    "pointer without path": (lambda r: (r / "corpus.json").write_text('{"frame": ".."}'), ["corpus.json", "frames: is missing"]),
}
SEEN_BY_OPENING = {
    "broken PNG": (lambda r: image(r, "Annotations", "00005.png").write_bytes(b"not a png"), ["00005.png", "it is no image"]),
    "PNG cut off": (lambda r: cut_off(image(r, "Annotations", "00005.png")), ["00005.png", "cannot be decoded"]),
    "PNG damaged": (lambda r: flip_bytes(image(r, "Annotations", "00005.png")), ["00005.png", "cannot be decoded"]),
    "PNG empty": (lambda r: image(r, "Annotations", "00005.png").write_bytes(b""), ["00005.png", "it is no image"]),
    "JPEG cut off": (lambda r: cut_off(image(r, "JPEGImages", "00005.jpg")), ["00005.jpg", "cannot be decoded"]),
    "JPEG no image": (lambda r: image(r, "JPEGImages", "00005.jpg").write_text("<html>"), ["00005.jpg", "it is no image"]),
    "mask of another size": (lambda r: write_masks(image(r, "Annotations", "00005.png"), np.ones((16, 24), np.uint8)), ["00005.png: size", "24x16 px", "48x32 px"]),
    "frame of another size": (lambda r: write_frame(image(r, "JPEGImages", "00005.jpg"), np.zeros((30, 48, 3), np.uint8)), ["00005.jpg: size", "48x30 px"]),
    "mask in colours": (lambda r: Image.new("RGB", (48, 32)).save(image(r, "Annotations", "00005.png")), ["00005.png", "mode RGB"]),
    "object id that no mask has": (lambda r: edit(r, META, *V, "objects", "7", value={"category": "cat", "frames": ["00000"]}), ["object 7", "no mask has"]),
}


@pytest.mark.parametrize("kind", SEEN_BY_LOADING)
def test_loading_finds(corpus, kind):
    make, words = SEEN_BY_LOADING[kind]
    make(corpus.root)
    with pytest.raises(CorpusError) as error:
        Corpus.load(corpus.root)
    assert len(error.value.problems) == 1, str(error.value)
    assert all(word in str(error.value) for word in words), str(error.value)
    assert error.value.problems[0].mend
    assert check_corpus(corpus.root) == error.value.problems


@pytest.mark.parametrize("kind", SEEN_BY_OPENING)
def test_opening_finds(corpus, kind):
    make, words = SEEN_BY_OPENING[kind]
    make(corpus.root)
    loaded = Corpus.load(corpus.root)  # opens no image
    assert loaded.check() == []
    problems = loaded.check(images=True)
    assert len(problems) == 1, problems
    assert all(word in str(problems[0]) for word in words), str(problems[0])


def test_everything_at_once(corpus):
    "Problems that do not hide each other are all in one list."
    together = ("no category", "expression empty", "frame without mask", "mask without frame", "a frame twice")
    for kind in together[:4]:
        SEEN_BY_LOADING[kind][0](corpus.root)
    SEEN_BY_OPENING["JPEG cut off"][0](corpus.root)
    problems = check_corpus(corpus.root, images=True)
    assert len(problems) == 5, problems
    with pytest.raises(CorpusError, match="the corpus has 4 problems"):
        Corpus.load(corpus.root)


def test_reading_a_broken_image_names_it(corpus):
    cut_off(image(corpus.root, "JPEGImages", "00005.jpg"))
    image(corpus.root, "Annotations", "00010.png").unlink()
    corpus.read_frames("cat_0", ["00000"])
    with pytest.raises(CorpusError, match=r"00005\.jpg.*cannot be decoded"):
        corpus.read_frames("cat_0", ["00000", "00005"])
    with pytest.raises(CorpusError, match=r"00010\.png.*no such file"):
        corpus.read_masks("cat_0", ["00010"], [1])


def test_no_such_root(tmp_path):
    with pytest.raises(CorpusError, match="nowhere: is not a folder"):
        Corpus.load(tmp_path / "nowhere")
