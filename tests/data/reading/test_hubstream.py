"""A stream gives undecoded rows at the commit that was looked up; what it needs and lacks is said."""

import builtins
import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from luthier.data.readers import Broken, open_source, peek
from luthier.data.reading import hubstream
from luthier.errors import SourceError
from luthier.recipe_data import Source

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder laid out as a hub dataset, whose schema says that a column is sound and one holds pictures."""
    datasets = pytest.importorskip("datasets")
    stream = io.BytesIO()
    soundfile.write(stream, np.zeros(800), 8000, format="WAV")
    features = datasets.Features(
        {"id": datasets.Value("string"), "audio": datasets.Audio(), "pictures": datasets.List(datasets.Image())}
    )
    cell = {"bytes": stream.getvalue(), "path": None}
    rows = [{"id": f"r{i}", "audio": cell, "pictures": [{"bytes": b"png", "path": "a.png"}]} for i in range(5)]
    (tmp_path / "data").mkdir()
    table = pa.Table.from_pylist(rows, schema=features.arrow_schema)
    pq.write_table(table, tmp_path / "data" / "train-00000-of-00001.parquet")
    monkeypatch.setattr(hubstream, "list_files", lambda source, revision: ([], COMMIT))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    return tmp_path


def test_sound_and_pictures_are_not_decoded(dataset: Path) -> None:
    reading = open_source(Source(name="s", hub=str(dataset), streaming=True, limit=3))
    assert (reading.files, reading.revision) == ((), COMMIT)
    assert reading.sniffed == f"stream of {dataset}/train"
    assert len(peek(reading, 2)) == 2
    found = list(reading)
    assert [origin for origin, _ in found] == [f"{dataset}/train#{i + 1} r{i}" for i in range(3)]
    record = found[0][1]
    assert not isinstance(record, Broken)
    assert record["audio"]["bytes"][:4] == b"RIFF"
    assert record["pictures"] == [{"bytes": b"png", "path": "a.png"}]


def test_a_split_that_is_not_there(dataset: Path) -> None:
    with pytest.raises(SourceError, match="split 'dev'"):
        list(open_source(Source(name="s", hub=str(dataset), split="dev", streaming=True)))


def test_without_the_library_the_install_line_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *rest: Any, **more: Any) -> Any:
        if name == "datasets":
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(SourceError) as caught:
        open_source(Source(name="s", hub="o/x", streaming=True))
    assert caught.value.mend == 'pip install "luthier[hub]"'
