"""Pictures and sound of a question are found however a file holds them, checked, and kept under their hash."""

import base64
import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from PIL import Image

from luthier.data.exams import read_exam
from luthier.data.leaks.examtexts import exam_items
from luthier.errors import DataError
from support import films


def picture(shade: int, size: int = 20) -> bytes:
    out = io.BytesIO()
    noise = np.random.default_rng(shade).integers(0, 255, (size, size, 3), dtype=np.uint8)
    Image.fromarray(noise).save(out, "PNG")
    return out.getvalue()


def sound() -> bytes:
    out = io.BytesIO()
    soundfile.write(out, np.sin(np.arange(8000) / 9), 16_000, format="WAV")
    return out.getvalue()


def reference(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def asked(n: int, **more: Any) -> dict[str, Any]:
    return {"question": f"What is shown, {n}?", "A": "a cat", "B": "a dog", "answer": "AB"[n % 2], **more}


def test_a_picture_may_be_a_path_base64_a_struct_or_an_address(tmp_path: Path) -> None:
    shown = picture(1)
    (tmp_path / "img").mkdir()
    (tmp_path / "img" / "cat.png").write_bytes(shown)
    coded = base64.b64encode(shown).decode()
    cells: list[Any] = ["img/cat.png", coded, {"bytes": coded}, {"bytes": None, "path": "img/cat.png"}, ["img/cat.png"]]
    cells.append(f"data:image/png;base64,{coded}")
    records = [asked(n, image=cell) for n, cell in enumerate(cells)]
    records += [asked(6, image_path="img/cat.png"), asked(7, image=None, image_1="img/cat.png", image_2=None)]
    (tmp_path / "e.jsonl").write_text("\n".join(map(json.dumps, records)))
    exam = read_exam(tmp_path / "e.jsonl", "e")
    assert [[(part.type, part.media) for part in item.media] for item in exam.items] == [
        [("image", reference(shown))]
    ] * 8
    assert exam.blobs == {reference(shown): shown}
    assert [item.id for item in exam_items(tmp_path / "e.jsonl").items] == [item.id for item in exam.items]
    assert exam_items(tmp_path / "e.jsonl").items[0].media == (reference(shown),)


def test_a_vlmevalkit_table_with_base64_is_read(tmp_path: Path) -> None:
    lines = ["index\tquestion\thint\tA\tB\tC\tD\tanswer\timage"]
    for n in range(4):
        coded = base64.b64encode(picture(n)).decode()
        lines.append(f"{n}\tWhat is it?\tLook well.\tcat\tdog\tcow\t\t{'CABB'[n]}\t{coded}")
    (tmp_path / "m.tsv").write_text("\n".join(lines) + "\n")
    exam = read_exam(tmp_path / "m.tsv", "m")
    assert (exam.shape, exam.answers) == ("letters", "letter")
    first = exam.items[0]
    assert (first.id, first.before, first.options, first.answer) == (
        "0",
        "Look well.",
        ("cat", "dog", "cow"),
        2,
    )
    assert [item.media[0].media for item in exam.items] == [reference(picture(n)) for n in range(4)]


def test_bytes_in_parquet_and_sound_are_read_and_placeholders_make_way(tmp_path: Path) -> None:
    records = [
        {
            "question": "<image>\nWhat do you see and hear?",
            "options": ["cat", "dog"],
            "answer": n,
            "images": [{"bytes": picture(n), "path": None}],
            "audio": {"bytes": sound(), "path": "a.wav"},
        }
        for n in (0, 1)
    ]
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "e.parquet")
    exam = read_exam(tmp_path / "e.parquet", "e")
    assert exam.items[0].question == "What do you see and hear?"
    assert [part.type for part in exam.items[0].media] == ["image", "audio"]
    assert set(exam.blobs) == {reference(sound()), reference(picture(0)), reference(picture(1))}
    assert exam.items[0].id != exam.items[1].id
    assert [item.id for item in exam_items(tmp_path / "e.parquet").items] == [item.id for item in exam.items]
    records[1]["images"] = records[0]["images"]
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "f.parquet")
    assert read_exam(tmp_path / "f.parquet", "f").digest != exam.digest


def test_videos_are_read_and_their_placeholders_make_way(tmp_path: Path) -> None:
    (tmp_path / "clip").write_bytes(films.film(12))
    record = asked(0, video="clip") | {"question": "<video> What happens?"}
    (tmp_path / "e.jsonl").write_text(json.dumps(record))
    [item] = read_exam(tmp_path / "e.jsonl", "e").items
    assert (item.question, [part.type for part in item.media]) == ("What happens?", ["video"])


def test_media_written_beside_items_are_found_by_their_reference(tmp_path: Path) -> None:
    shown = picture(3)
    (tmp_path / "media").mkdir()
    (tmp_path / "media" / reference(shown)[7:]).write_bytes(shown)
    record = asked(1, media=[{"type": "image", "media": reference(shown)}])
    (tmp_path / "e.jsonl").write_text(json.dumps(record))
    assert read_exam(tmp_path / "e.jsonl", "e").items[0].media[0].media == reference(shown)


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"image": base64.b64encode(b"no picture at all" * 9).decode()}, "unreadable_image"),
        ({"image": base64.b64encode(picture(1, 60)[:-3000]).decode()}, "unreadable_image"),
        ({"audio": base64.b64encode(b"no sound at all " * 9).decode()}, "unreadable_audio"),
        ({"video": "data:,abc"}, "unreadable_video"),
    ],
)
def test_media_that_cannot_be_decoded_are_counted(tmp_path: Path, more: dict[str, Any], reason: str) -> None:
    records = [*(asked(n) for n in range(19)), asked(19, **more)]
    (tmp_path / "e.jsonl").write_text("\n".join(map(json.dumps, records)))
    assert [drop.reason for drop in read_exam(tmp_path / "e.jsonl", "e").unreadable] == [reason]
    (tmp_path / "f.jsonl").write_text(json.dumps(records[-1]))
    with pytest.raises(DataError, match=f"1 {reason}"):
        read_exam(tmp_path / "f.jsonl", "f")
