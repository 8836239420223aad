"""What is said of a chat stage's rows before it trains."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from luthier.models.lessons import Lessons
from luthier.models.text_base import load_text_base
from luthier.stages import chat_prepare
from support import chats


def test_held_out_rows_that_cannot_be_encoded_are_said_with_their_reason(capsys: pytest.CaptureFixture[str]) -> None:
    encoded = chats.encode(load_text_base(chats.recipe().model), chats.chats(3))
    about = {"dropped": {"extreme_shape": 2}, "first": {"extreme_shape": "row a: 900 x 4 pixels"}}

    class Rows:
        def lessons(self, label: str, numbers: Any) -> Lessons:
            return replace(encoded, about=about)

    rows: Any = Rows()
    assert chat_prepare._lessons(rows, "held-out", np.arange(5)) is not None
    assert "2 held-out rows left out: extreme_shape (the first: row a: 900 x 4 pixels)" in capsys.readouterr().err
