import pytest

from tests.tiny import make_tiny_corpus


@pytest.fixture
def tiny_corpus(tmp_path):
    "A factory: `tiny_corpus(name='corpus', **options)` writes a tiny corpus under this test's own folder and loads it."
    def make(name="corpus", **options):
        return make_tiny_corpus(tmp_path / name, **options)
    return make
