import pytest

from tests.tiny import make_tiny_corpus


@pytest.fixture
def tiny_corpus(tmp_path):
    "A factory: `tiny_corpus(name='corpus', **options)` writes a tiny corpus under this test's own folder and loads it."
    def make(name="corpus", **options):
        return make_tiny_corpus(tmp_path / name, **options)
    return make


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    "(tiny corpus, its feature store), made once for the tests of a module, which leave both as they are."
    from fsrvos.models.encoders import FeatureStore    # here, so that tests without models do not wait for transformers
    root = tmp_path_factory.mktemp("tiny")
    corpus = make_tiny_corpus(root / "corpus")
    return corpus, FeatureStore.build(root / "features", corpus, progress=False)


@pytest.fixture
def run_cli(capsys):
    "Run `fsrvos` with these arguments in this process: (exit status, output, errors)."
    from fsrvos.apps.cli import main    # here, for the same reason
    def run(*argv):
        with pytest.raises(SystemExit) as end: main([str(part) for part in argv])
        out, err = capsys.readouterr()
        return end.value.code or 0, out, err
    return run
