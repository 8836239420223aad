"""A folder's rows are found, and where they cannot be told apart the folder is refused with what it holds."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from luthier.data.readers import Reading, open_source
from luthier.data.reading.folders import split_files
from luthier.errors import SourceError
from luthier.recipe_data import Source


def fill(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("parquet"):
            pq.write_table(pa.Table.from_pylist([{"name": name}]), path)
        elif name.endswith("csv"):
            path.write_text(f"name\n{name}\n")
        elif name.endswith(("jsonl", "json")):
            path.write_text(f'{{"name": "{name}"}}\n{{"name": "{name}"}}\n')
        else:
            path.write_text(name)
    return folder


def reading(folder: Path, **more: Any) -> Reading:
    return open_source(Source(name="train", path=str(folder), **more))


def names(folder: Path, **more: Any) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in reading(folder, **more).files]


@pytest.mark.parametrize(
    ("table", "text"),
    [("metadata.csv", "file_name,text\na.wav,hi\n"), ("metadata.jsonl", '{"file_name": "a.wav", "text": "hi"}\n')],
)
def test_a_table_beside_its_media(tmp_path: Path, table: str, text: str) -> None:
    fill(tmp_path, "a.wav", "b.wav", "other.csv", "README.md")
    (tmp_path / table).write_text(text)
    found = reading(tmp_path)
    assert list(found) == [(f"{table}#1", {"file_name": "a.wav", "text": "hi"})]
    assert (found.folder, found.trusted, found.sniffed) == (tmp_path, False, f"folder of audio with {table}")


def test_class_folders_give_labels(tmp_path: Path) -> None:
    fill(tmp_path, "cat/1.png", "cat/2.JPG", "dog/1.png", "README.md", ".hidden/3.png", "dog/._x.png")
    found = reading(tmp_path)
    assert [record for _, record in found] == [
        {"file_name": "cat/1.png", "label": "cat"},
        {"file_name": "cat/2.JPG", "label": "cat"},
        {"file_name": "dog/1.png", "label": "dog"},
    ]
    assert found.sniffed == "folder of images in 2 class folders: 3"
    assert len({origin for origin, _ in found}) == 3


def test_class_folders_inside_splits(tmp_path: Path) -> None:
    fill(tmp_path, "train/cat/1.png", "test/cat/2.png")
    assert [record for _, record in reading(tmp_path)] == [{"file_name": "cat/1.png", "label": "cat"}]
    assert reading(tmp_path).folder == tmp_path / "train"
    assert [record for _, record in reading(tmp_path, split="test")] == [{"file_name": "cat/2.png", "label": "cat"}]


def test_a_flat_folder_of_media(tmp_path: Path) -> None:
    found = reading(fill(tmp_path, "b.flac", "a.wav"))
    assert [record for _, record in found] == [{"file_name": "a.wav"}, {"file_name": "b.flac"}]
    assert found.sniffed == "folder of audio: 2"


def test_shards_of_a_split_and_of_no_other(tmp_path: Path) -> None:
    fill(tmp_path, "data/train-00001-of-00002.parquet", "data/train-00000-of-00002.parquet", "data/test-0.parquet")
    assert names(tmp_path) == ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"]
    assert names(tmp_path, split="test") == ["data/test-0.parquet"]


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl", "json", "txt"])
def test_several_files_of_one_shape_are_read_in_order(tmp_path: Path, kind: str) -> None:
    fill(tmp_path, f"b.{kind}", f"a.{kind}", "README.md", "dataset_info.json")
    assert names(tmp_path) == [f"a.{kind}", f"b.{kind}"]
    assert reading(tmp_path).sniffed.startswith("2 files of ")


def test_a_test_file_is_never_read_as_training(tmp_path: Path) -> None:
    fill(tmp_path, "rows.jsonl", "test.jsonl", "validation_2.jsonl")
    assert names(tmp_path) == ["rows.jsonl"]
    (tmp_path / "rows.jsonl").unlink()
    with pytest.raises(SourceError, match=r"split 'train'.*test\.jsonl"):
        reading(tmp_path)


def test_two_shapes_are_refused_by_name_but_parquet_wins(tmp_path: Path) -> None:
    fill(tmp_path, "a.csv", "b.jsonl")
    with pytest.raises(SourceError, match=r"b\.jsonl, a\.csv"):
        reading(tmp_path)
    fill(tmp_path, "c.parquet")
    assert names(tmp_path) == ["c.parquet"]


def test_shards_of_one_name_have_origins_of_their_own(tmp_path: Path) -> None:
    fill(tmp_path, "metadata.csv")
    first = {origin for origin, _ in reading(tmp_path)}
    assert first == {"metadata.csv#1"}
    fill(tmp_path / "other", "train/a.jsonl", "train/b.jsonl")
    assert len({origin for origin, _ in reading(tmp_path / "other")}) == 4


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="holds nothing"):
        reading(tmp_path)


def test_media_both_beside_and_in_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="both in it and in folders"):
        reading(fill(tmp_path, "a.png", "cat/b.png"))


def test_layouts_in_their_order() -> None:
    files = [
        "README.md",
        "data/train-00001-of-00002.parquet",
        "data/train-00000-of-00002.parquet",
        "train/x.parquet",
        "data/sub/train-9.parquet",
        "test/a.parquet",
        "validation-1.parquet",
    ]
    assert split_files(files, "train") == ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"]
    assert split_files(files, "test") == ["test/a.parquet"]
    assert split_files(files, "validation") == ["validation-1.parquet"]
    assert split_files(files, "dev") == []


def test_a_corpus_is_all_texts_and_lines_of_its_folders(tmp_path: Path) -> None:
    fill(
        tmp_path, "b.jsonl", "wiki/a.txt", "wiki/README.md", "wiki/a.png", "reddit/x/a.md", "test/c.txt", "LICENSE.txt"
    )
    assert names(tmp_path, format="text") == ["b.jsonl", "reddit/x/a.md", "wiki/a.txt"]
    assert names(tmp_path, format="auto") == ["b.jsonl"]
    assert reading(tmp_path, format="text").sniffed == "1 file of jsonl; 2 files of text"
    whole = reading(tmp_path, format="text", sample_by="document")
    assert {"text": "wiki/a.txt"} in [record for _, record in whole]
    assert len({origin for origin, _ in whole}) == 4
