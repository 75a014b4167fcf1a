"The command line: what a person types, and what they get for a mistake."
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fsrvos.apps.cli import examine, main

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = ("synthesize", "curate", "overlap", "train", "evaluate", "report", "segment", "adapt", "demo", "import-corpus", "stills", "benchmark", "convert-weights", "dry-run", "doctor")


@pytest.fixture
def fsrvos(run_cli):
    return run_cli


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    "A folder with the study's parameters, and nothing else, to run in."
    for name in ("params.yaml", "dvc.yaml", "constraints.txt"): shutil.copy(ROOT / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("command", COMMANDS)
def test_help(fsrvos, command):
    status, out, _ = fsrvos(command, "--help")
    assert status == 0 and f"fsrvos {command}" in out


def test_help_of_all_names_the_commands(fsrvos):
    status, out, _ = fsrvos("--help")
    assert status == 0 and all(command in out for command in COMMANDS)


def test_it_runs_as_a_program():
    done = subprocess.run([sys.executable, "-c", "from fsrvos.apps.cli import main; main()", "train", "cma-77"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("fsrvos: ") and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("argv, complaint", [
    (["train", "prototype-1"], "no trained cell 'prototype-1'"),
    (["evaluate", "cma"], "no cell 'cma'"),
    (["evaluate", "--task", "multi", "cma-1"], "no cell 'cma-1' of task multi; known: ism-1"),
    (["evaluate", "--task", "transfer", "cma_plus-1-s1"], "no cell 'cma_plus-1-s1' of task transfer; known: cma-1"),
    (["train", "--task", "transfer"], "no cells of task transfer to train"),
    (["evaluate", "--task", "any"], "any"),
    (["report"], "no results yet"),
    (["curate"], "data/embedded/raw"),
    (["curate", "--check", "--raw", "nowhere"], "nowhere"),
])
def test_a_mistake_is_told_and_nothing_is_written(fsrvos, checkout, argv, complaint):
    before = sorted(checkout.rglob("*"))
    status, _, err = fsrvos(*argv)
    assert status == 2 and complaint in err and "Traceback" not in err
    assert sorted(checkout.rglob("*")) == before


def test_without_parameters(fsrvos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, _, err = fsrvos("train", "cma-1")
    assert status == 2 and err == "fsrvos: params.yaml: no such file; run from the root of the repository\n"


def test_unknown_parameters(fsrvos, checkout):
    text = (checkout / "params.yaml").read_text()
    (checkout / "params.yaml").write_text(text.replace("  clips_per_class:", "  clip_per_class:", 1))
    status, _, err = fsrvos("synthesize")
    assert status == 2 and "clip" in err and not (checkout / "data").exists()


def test_synthesize_does_not_overwrite(fsrvos, checkout):
    (checkout / "data/embedded").mkdir(parents=True)
    status, _, err = fsrvos("synthesize")
    assert status == 2 and "data/embedded exists" in err


def test_curate_by_hand(fsrvos, checkout, tiny_corpus):
    corpus = tiny_corpus("raw")
    text = (checkout / "params.yaml").read_text().replace("  min_videos: 10", "  min_videos: 2", 1)
    (checkout / "params.yaml").write_text(text)
    assert fsrvos("curate", "--check", "--raw", corpus.root) == (0, f"{corpus.root}: nothing wrong\n", "")
    status, out, _ = fsrvos("curate", "--raw", corpus.root, "--out", "mini")
    assert status == 0 and "after the rule" in out and (checkout / "mini/folds.json").exists()


def test_check_lists_every_problem(fsrvos, checkout, tiny_corpus):
    corpus = tiny_corpus("raw")
    masks = sorted((corpus.root / "train/Annotations").rglob("*.png"))
    masks[0].unlink()
    masks[20].write_bytes(b"no picture")
    status, _, err = fsrvos("curate", "--check", "--raw", corpus.root)
    assert status == 2 and masks[20].name in err and masks[0].parent.name in err and "problem(s)" in err


def test_doctor_finds_this_installation(fsrvos, monkeypatch):
    monkeypatch.chdir(ROOT)
    status, out, _ = fsrvos("doctor")
    assert status == 0 and "MISSING" not in out and all(word in out for word in ("python", "torch", "encoder", "dvc", "compiler", "data"))


def test_doctor_says_what_is_missing(fsrvos, checkout, monkeypatch):
    monkeypatch.setattr("fsrvos.apps.cli.required_packages", lambda: ["torch", "no-such-package"])
    assert [f.what for f in examine() if f.needed and not f.ok] == ["no-such-package"]
    status, out, _ = fsrvos("doctor")
    assert status == 2 and "no-such-package not installed" in " ".join(out.split()) and "make setup" in out


# ---- published weights

@pytest.fixture
def published_file(tmp_path, monkeypatch):
    "A checkpoint of the published layout at a small size, the preset that it is of, and a folder with a tokenizer."
    import torch
    from transformers import BertTokenizer

    from fsrvos.models import fsrvos as models, published
    monkeypatch.setitem(models.PRESETS, "small", dict(models.PRESETS["paper-resnet50"], size=32, ffn=32, heads=4, encoder_layers=1, decoder_layers=1, mask_size=32, text_size=16))
    monkeypatch.setitem(published.RESNETS, "microsoft/resnet-50", (1, 1, 1, 1))
    monkeypatch.setattr(published, "ROBERTA", dict(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, max_position_embeddings=20))
    model = models.FSRVOSModel(models.FSRVOSConfig.from_preset("small", published=True))
    published.attach_empty_encoders(model)
    torch.save({"model": published.export_published_weights(model), "epoch": 1}, tmp_path / "in.pth")
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "dog"]))
    BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path / "words")
    return tmp_path


def test_published_weights_become_a_folder(fsrvos, published_file):
    from fsrvos.models.fsrvos import FSRVOSModel
    out = published_file / "out"
    status, said, err = fsrvos("convert-weights", published_file / "in.pth", out, "--preset", "small", "--tokenizer", published_file / "words")
    assert status == 0 and "tensors loaded, missing none, unexpected none" in said, err
    moved = out.rename(published_file / "elsewhere")
    model = FSRVOSModel.from_pretrained(moved)
    vision, text = model.encoders()
    ids, mask = text.tokenize(["dog"])
    assert model.config.published and model.encode_text(ids, mask).shape[-1] == 16 and len(vision.channels) == 4


@pytest.mark.parametrize("argv, told", [
    (["nothing.pth", "out", "--tokenizer", "words"], "nothing.pth: no readable checkpoint"), (["in.pth", "words", "--tokenizer", "words"], "words exists"),
    (["in.pth", "out", "--tokenizer", "no/where/at/all"], "tokenizer 'no/where/at/all': not found"), (["in.pth", "out", "--preset", "paper-resnet", "--tokenizer", "words"], "unknown preset"),
    (["in.pth", "out", "--affinity", "none", "--tokenizer", "words"], "unexpected, such as")])
def test_weights_that_do_not_fit_leave_nothing(fsrvos, published_file, monkeypatch, argv, told):
    monkeypatch.chdir(published_file)
    before = sorted(published_file.rglob("*"))
    status, _, err = fsrvos("convert-weights", *argv, *([] if "--preset" in argv else ["--preset", "small"]))
    assert status == 2 and told in err and len(err.splitlines()) == 1
    assert sorted(published_file.rglob("*")) == before


def test_referformers_weights_become_a_start_for_training(fsrvos, published_file):
    "The same file without the affinity and the anchors, as ReferFormer saves it."
    import torch
    from fsrvos.models.fsrvos import FSRVOSModel
    weights = torch.load(published_file / "in.pth")["model"]
    less = {k: v for k, v in weights.items() if not k.startswith(("support_qkv", "query_qkv", "conv_q", "layer_norm", "tgt_embed", "refpoint_embed"))}
    torch.save({"model": less}, published_file / "referformer.pth")
    out = published_file / "start"
    status, said, err = fsrvos("convert-weights", "--pretrained", published_file / "referformer.pth", out, "--preset", "small", "--tokenizer", published_file / "words")
    assert status == 0 and "affinity.conv_q.weight" in said, err
    model = FSRVOSModel.from_pretrained(out)
    assert not model.config.published and all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("argv, told", [(["--preset", "cpu"], "roberta-base; the configuration names minilm-l6"), (["--preset", "paper"], "unknown preset 'paper'"),
                                        (["--amp", "fp8"], "amp='fp8': one of none, bf16")])
def test_a_dry_run_that_cannot_be(fsrvos, argv, told):
    status, _, err = fsrvos("dry-run", *argv)
    assert status == 2 and told in err and len(err.splitlines()) == 1
