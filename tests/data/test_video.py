"""Frames of videos, at the moments that were asked for; and videos that are refused, each with its reason."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.data.building.request import TableRequest
from luthier.data.mediasource import MediaSource
from luthier.data.table import build_table
from luthier.data.video import MEMORY, check_video, load_video, scene_middles, video_sound
from luthier.data.videofiles import plan_video, video_container
from luthier.errors import MediaError
from luthier.recipe_data import Frames, Limits, Source
from support.films import film, place_of

LIMITS = Limits()
KINDS = [("mp4", "libx264"), ("mp4", "mpeg4"), ("matroska", "libx264"), ("webm", "libvpx-vp9"), ("avi", "mjpeg")]


def reason(call) -> str:
    with pytest.raises(MediaError) as caught:
        call()
    return caught.value.reason


@pytest.mark.parametrize(("container", "codec"), KINDS)
def test_a_frame_a_second_is_the_frame_that_is_shown_at_that_moment(container, codec):
    data = film(frames=35, rate=10, container=container, codec=codec)
    found = load_video(data, LIMITS, Frames(rate=1.0))
    assert [place_of(frame) for frame in found.frames] == [0, 10, 20, 30]
    assert found.seconds == pytest.approx((0.0, 1.0, 2.0, 3.0), abs=0.05)
    assert found.duration == pytest.approx(3.5, abs=0.11)


def test_so_many_frames_are_spread_evenly_and_never_more_than_the_maximum():
    data = film(frames=40, rate=10)
    assert [place_of(f) for f in load_video(data, LIMITS, Frames(by="count", count=4)).frames] == [5, 15, 25, 35]
    many = load_video(data, LIMITS, Frames(rate=10.0, maximum=5))
    assert [place_of(frame) for frame in many.frames] == [0, 10, 20, 29, 39]


def test_of_a_video_of_changing_rate_the_frame_that_is_on_the_screen_is_taken():
    stamps = [0.0, 0.1, 0.2, 1.5, 1.6, 3.9]
    found = load_video(film(frames=6, stamps=stamps), LIMITS, Frames(rate=1.0))
    assert [place_of(frame) for frame in found.frames] == [0, 2, 4]  # at 3 s still the one of 1.6 s, taken once
    assert found.seconds == pytest.approx((0.0, 0.2, 1.6))


@given(st.lists(st.integers(20, 900), min_size=3, max_size=20), st.sampled_from([0.5, 1.0, 2.5, 7.0]))
def test_for_any_stamps_the_chosen_frames_are_those_of_a_plain_search(gaps, rate):
    stamps = np.cumsum([0, *gaps])[:-1] / 1000
    data = film(frames=len(gaps), stamps=stamps.tolist(), size=(32, 32), codec="mpeg4")
    plan = plan_video(data, LIMITS)
    moments = np.arange(0, plan.duration, 1 / rate)
    expected = list(dict.fromkeys(max(i for i, at in enumerate(plan.seconds) if at <= m + 1e-6) for m in moments))
    found = load_video(data, LIMITS, Frames(rate=rate, maximum=1000))
    assert found.seconds == tuple(plan.seconds[place] for place in expected)
    assert [place_of(frame) for frame in found.frames] == expected


def test_frames_far_apart_are_reached_by_jumping_and_are_the_same_as_when_all_are_read():
    data = film(frames=60, rate=10, keys=7)
    some = load_video(data, LIMITS, Frames(by="count", count=3)).frames
    everything = load_video(data, LIMITS, Frames(rate=10.0)).frames
    for frame in some:
        assert any(np.array_equal(np.asarray(frame), np.asarray(other)) for other in everything)


def test_one_frame_a_shot_where_the_scene_changes():
    pytest.importorskip("scenedetect")
    shots = [(250, 250, 250)] * 30 + [(20, 20, 20)] * 20 + [(20, 20, 250)] * 40
    data = film(frames=90, rate=30, colours=shots)
    assert scene_middles(data, plan_video(data, LIMITS), LIMITS, 27.0) == [15, 40, 70]
    found = load_video(data, LIMITS, Frames(by="scene"))
    means = [np.asarray(frame).reshape(-1, 3).mean(0) for frame in found.frames]
    assert means == pytest.approx(np.array([shots[15], shots[40], shots[70]]), abs=8)


def test_the_sound_track_is_heard_at_16_khz_and_a_video_without_one_is_watched_in_silence():
    sound = video_sound(film(frames=20, rate=10, sound=True), LIMITS)
    assert sound is not None
    assert len(sound) == pytest.approx(32000, abs=1600)
    spectrum = np.abs(np.fft.rfft(sound[4000:20000]))
    assert int(spectrum.argmax()) == pytest.approx(1000, abs=2)
    assert video_sound(film(), LIMITS) is None
    assert load_video(film(), LIMITS, Frames(sound=True)).sound is None


def test_a_video_is_turned_as_its_file_says():
    import av

    plain = film(frames=3, size=(64, 32))
    out = io.BytesIO()
    with av.open(io.BytesIO(plain)) as before, av.open(out, "w", format="mp4") as after:
        stream = after.add_stream_from_template(before.streams.video[0])
        for packet in before.demux(before.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                after.mux(packet)
    data = turned(out.getvalue())
    found = load_video(data, LIMITS, Frames(by="count", count=1)).frames[0]
    assert found.size == (32, 64)


def turned(data: bytes) -> bytes:
    """The same file with the matrix of its track header turned by a quarter (ISO 14496-12, tkhd)."""
    place = data.index(b"tkhd")
    matrix = place + 4 + 40
    one = 0x00010000
    quarter = [0, one, 0, -one & 0xFFFFFFFF, 0, 0, 0, 0, 0x40000000]
    return data[:matrix] + b"".join(value.to_bytes(4, "big") for value in quarter) + data[matrix + 36 :]


def test_large_frames_are_made_smaller_together_so_that_they_fit_into_memory():
    data = film(frames=20, rate=10, size=(1920, 1440), codec="mpeg4")
    found = load_video(data, LIMITS, Frames(rate=10.0))
    assert len(found.frames) == 20
    assert len({frame.size for frame in found.frames}) == 1
    assert sum(3 * frame.width * frame.height for frame in found.frames) <= MEMORY


def test_torn_and_foreign_files_are_refused_each_with_its_reason():
    data = film()
    assert reason(lambda: check_video(b"", LIMITS)) == "empty_video"
    assert reason(lambda: check_video(b"<html><body>not found</body></html>", LIMITS)) == "unreadable_video"
    assert reason(lambda: check_video(data[: len(data) // 2], LIMITS)) == "unreadable_video"
    assert reason(lambda: check_video(data, Limits(maximum_video_seconds=1.0))) == "too_long"
    assert reason(lambda: check_video(data, Limits(maximum_pixels=1000))) == "too_many_pixels"


def test_a_recording_without_pictures_is_no_video():
    import av

    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as file:
        voice = file.add_stream("aac", rate=16000)
        part = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        part.sample_rate = 16000
        file.mux(voice.encode(part))
        file.mux(voice.encode(None))
    assert reason(lambda: check_video(out.getvalue(), LIMITS)) == "empty_video"


@pytest.mark.parametrize(
    "words",
    [
        b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1/a.ts\n",
        b"\xef\xbb\xbf#EXTM3U\n",
        b"ffconcat version 1.0\nfile /etc/hostname\n",
        b"concat:/etc/hostname|/etc/passwd",
        b"subfile,,start,0,end,10,,:/etc/hostname",
        b"file '/etc/hostname'\n",
        b"<?xml version='1.0'?><MPD/>",
    ],
)
def test_a_list_of_other_files_is_not_followed(words):
    assert reason(lambda: video_container(words)) == "refused_playlist"


@given(st.data())
def test_a_spoilt_file_is_read_or_refused_with_a_reason_and_nothing_else(draw):
    data = bytearray(SPOILT[draw.draw(st.sampled_from(sorted(SPOILT)))])
    for _ in range(draw.draw(st.integers(1, 12))):
        data[draw.draw(st.integers(0, len(data) - 1))] = draw.draw(st.integers(0, 255))
    cut = draw.draw(st.integers(len(data) // 2, len(data)))
    try:
        found = load_video(bytes(data[:cut]), LIMITS, Frames(by="count", count=3, sound=True))
    except MediaError:
        return
    assert 1 <= len(found.frames) <= 3


SPOILT = {"mp4": film(frames=8, sound=True), "webm": film(frames=8, container="webm", codec="libvpx-vp9")}


def test_frames_and_sound_of_a_video_have_references_of_their_own():
    data = film(frames=20, rate=10, sound=True)
    source = MediaSource(lambda _: data, LIMITS, Frames(rate=1.0, sound=True))
    facts = source.facts("video", "sha256:aa")
    assert facts.seconds == pytest.approx((0.0, 1.0))
    assert facts.sound
    assert place_of(source.load("image", "sha256:aa#frame=1")) == 10
    assert source.facts("image", "sha256:aa#frame=1").width == 64
    assert source.facts("audio", "sha256:aa#sound").samples == len(source.load("audio", "sha256:aa#sound"))
    assert reason(lambda: source.load("image", "sha256:aa#frame=2")) == "unreadable_video"


def test_videos_of_a_table_and_of_a_folder_are_rows_and_addresses_are_not_followed(tmp_path):
    clips = tmp_path / "clips"
    (clips / "red").mkdir(parents=True)
    for number in range(3):
        (clips / "red" / f"{number}.mp4").write_bytes(film(frames=5 + number))
    (clips / "red" / "list.mp4").write_bytes(b"#EXTM3U\nhttp://127.0.0.1/a.ts\n")
    rows = [{"video": f"clips/red/{n}.mp4", "prompt": "What is seen?", "text": f"answer {n}"} for n in range(3)]
    rows += [{**rows[0], "video": name} for name in ("concat:/etc/hostname|clips/red/0.mp4", "http://x.y/a.m3u8")]
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    sources = {name: Source(name=name, path=str(tmp_path / path)) for name, path in PATHS.items()}
    table = build_table(
        TableRequest(((sources["table"], "train"), (sources["folder"], "train")), graded=False), tmp_path / "built"
    )
    assert {part.type for item in table.rows for message in item.row.messages for part in message.content} >= {"video"}
    assert len(table.rows) == 6
    found = [json.loads(line) for line in (tmp_path / "built" / "ledger.jsonl").read_text().splitlines()]
    reasons = {one["origin"]: one["reason"] for one in found if "reason" in one}
    assert sorted(reasons.values()) == ["missing_media", "refused_playlist", "remote_media"]


PATHS = {"table": "rows.jsonl", "folder": "clips"}
