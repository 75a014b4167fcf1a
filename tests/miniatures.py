"Published corpora in miniature, the odd cases of `test_adapters` among them, each with videos enough for episodes of two classes where the corpus has two."
import json
import pickle
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as rle

from fsrvos.data.corpus import write_frame, write_masks
from tests.test_adapters import TALL, WIDE, append, box, frame, grey16, make_a2d, make_mevis, make_refcoco, make_refdavis, make_sailvos, make_ytvos, write_h5
from tests.test_benchmarks import make_mevis_valid, make_refytvos_valid

PLACE, LATER = (2, 10, 3, 12), (11, 18, 14, 22)  # top, bottom, left, right of an object, and of a second one


def refytvos(folder: Path) -> Path:
    "The training split beside `valid` and `test`, which have frames and sentences only."
    root = make_refytvos_valid(make_ytvos(folder, shown={"0a1b": ("dog", WIDE), "ß2": ("dog", TALL), "c-3": ("earless_seal", WIDE), "d [4]": ("earless_seal", TALL)}))
    write_frame(root / "test/JPEGImages/zz/00000.jpg", np.zeros((*TALL, 3), np.uint8))
    return root


def mini(name: str, classes: tuple[str, ...], images: str, suffix: str, listed: str):
    "A writer of a mini corpus as published: the name of its root, its classes, and how it spells its folder of images, their kind, and its list."
    shown = {f"{c}-{'bß'[i]}": (c, (WIDE, TALL)[i]) for c in classes for i in range(2)}
    return lambda folder: make_ytvos(folder / name, images, suffix, listed, shown)


def mevis(folder: Path) -> Path:
    "A training split, and a split whose masks a server keeps: one object that vanishes, gaps in the frame numbers."
    make_mevis_valid(folder / "valid")
    root = make_mevis(folder / "train")
    meta, masks = (json.loads((root / name).read_text()) for name in ("meta_expressions.json", "mask_dict.json"))
    names = ["00000", "00002", "00017"]
    for name in names:
        frame(root / f"JPEGImages/vidéo/{name}.jpg", WIDE)
    meta["videos"]["vidéo"] = {"frames": names, "expressions": {"0": {"exp": 'it "jumps"', "obj_id": [0], "anno_id": [20]}}}
    code = {"size": list(WIDE), "counts": rle.encode(np.asfortranarray(box(WIDE, PLACE)))["counts"].decode()}
    masks["20"] = [code, code, None]
    for name, content in (("meta_expressions.json", meta), ("mask_dict.json", masks)):
        (root / name).write_text(json.dumps(content))
    return root


def refdavis(folder: Path) -> Path:
    "Training videos of two classes besides the odd ones; palette and 16-bit masks, a second object that comes late."
    root = make_refdavis(folder)
    davis, texts = root / "DAVIS", root / "davis_text_annotations"
    for path in texts.iterdir():
        append(path, 'classic-car 2 "the driver"\n')
    semantics = json.loads((davis / "davis_semantics.json").read_text())
    for video, (name, size) in {"man-a": ("person", WIDE), "man-b": ("person", TALL), "dog-ä": ("dog", WIDE), "dog-c": ("dog", TALL)}.items():
        for t, number in enumerate(("00000", "00002", "00009", "00010")):
            frame(davis / f"JPEGImages/480p/{video}/{number}.jpg", size)
            (grey16 if t % 2 else write_masks)(davis / f"Annotations_unsupervised/480p/{video}/{number}.png", box(size, PLACE, LATER) if t > 1 else box(size, PLACE))
        semantics[video] = {"1": name, "2": name}
        for path in texts.iterdir():
            text = f'{video} 1 "the "first" {name}"\n{video} 2 "the one that comes later"\n'
            path.write_bytes(path.read_bytes() + text.encode("latin-1" if "annot2" in path.name else "utf-8"))
        append(davis / "ImageSets/2017/train.txt", f"{video}\n")
    (davis / "davis_semantics.json").write_text(json.dumps(semantics))
    return root


def a2d(folder: Path) -> Path:
    "Training videos of adults and dogs, and a dog to be asked about, besides the odd ones; frames far apart, one in which the dog is gone."
    root = make_a2d(folder)
    texts = root / "text_annotations"
    for video, (label, size, usage) in {"adult_1": (18, WIDE, 0), "adult_2": (12, TALL, 0), "dög_1": (75, WIDE, 0), "dog_2": (73, TALL, 0), "dog_3": (75, TALL, 1)}.items():
        for name in ("00010", "00040", "00100"):
            frame(root / f"Release/pngs320H/{video}/{name}.png", size)
            gone = video == "dog_3" and name == "00040"
            write_h5(texts / f"a2d_annotation_with_instances/{video}/{name}.h5", instance=np.array([2]), reMask=np.zeros(size[::-1], np.uint8) if gone else box(size, PLACE).T, id=np.array([[label]]))
        append(root / "Release/videoset.csv", f"{video},{label},00:00,00:05,{size[0]},{size[1]},60,3,{usage}\n")
        append(texts / "a2d_annotation.txt", f'{video},2,"the ""first"", left"\n{video},2,it runs\n')
    return root


def refcoco(folder: Path) -> Path:
    "Images that show people alone or dogs alone, besides the odd ones."
    root = make_refcoco(folder)
    instances, refs = json.loads((root / "instances.json").read_text()), pickle.loads((root / "refs(unc).p").read_bytes())
    for n, (category, size) in enumerate([(1, WIDE), (18, WIDE), (18, TALL)], 100):
        name = f"COCO_train2014_{n:012d}"
        frame(folder / f"images/mscoco/images/train2014/{name}.jpg", size)
        instances["images"].append({"id": n, "file_name": f"{name}.jpg", "height": size[0], "width": size[1]})
        instances["annotations"].append({"id": n, "image_id": n, "category_id": category, "segmentation": [[3, 2, 12, 2, 12, 10, 3, 10]]})
        refs.append({"ref_id": n, "ann_id": n, "image_id": n, "split": "train", "category_id": category, "sentences": [{"sent": 'the "left" one', "sent_id": n, "raw": "", "tokens": []}]})
    (root / "instances.json").write_text(json.dumps(instances))
    (root / "refs(unc).p").write_bytes(pickle.dumps(refs, 0))
    return root


def sailvos(folder: Path) -> Path:
    "Two videos of each class of the paper; a dog that is hidden in the middle frame, ids beyond 255."
    root = make_sailvos(folder)
    for path in sorted(root.glob("*/0012_Ped_1")):
        path.rename(path.with_name("0012_person"))
    for video, (name, size, hidden) in {"car_3": ("car", WIDE, ()), "cår_4": ("car", TALL, ()), "dog_5": ("dog", WIDE, ("000004",)), "dog_6": ("dog", TALL, ())}.items():
        for number in ("000000", "000004", "000005"):
            frame(root / f"{video}/images/{number}.bmp", size)
            whole = box(size, PLACE)
            for path in (root / f"{video}/0300_{name}/{number}.png", root / f"{video}/visible/{number}.npy"):
                path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(whole * 255).save(root / f"{video}/0300_{name}/{number}.png")
            np.save(root / f"{video}/visible/{number}.npy", whole.astype(np.int64) * (0 if number in hidden else 300))
    return root
