"""A child of luthier.serve.child that does as it is told: python -m support.badchild."""

from __future__ import annotations

import os
import socket
import sys
import time
from typing import Any

from luthier.serve.child import Answer, answer_all


def obey(head: dict[str, Any], body: bytes) -> tuple[dict[str, Any], bytes]:
    match head["do"]:
        case "echo":
            return {"said": head.get("said"), "environment": sorted(os.environ)}, body
        case "print":
            print("printed by a library", flush=True)
            os.write(2, b"and its errors")
            return {}, b""
        case "hang":
            time.sleep(60)
        case "die":
            os.abort()
        case "much":
            return {}, bytes(head["size"])
        case "last":
            return {"last": True}, b""
    return {}, b""


def raw(junk: bytes) -> Answer:
    """Answer with these bytes in place of a message."""

    def answer(head: dict[str, Any], body: bytes) -> tuple[dict[str, Any], bytes]:
        for descriptor in range(3, 20):  # the pipe to the asker is one of them
            try:
                os.write(descriptor, junk)
            except OSError:
                continue
        os._exit(0)

    return answer


def closed() -> Answer:
    """The doors of luthier.serve.decoding, tried from inside."""
    from luthier.serve import decoding

    decoding.prepare()

    def attempt(head: dict[str, Any], body: bytes) -> tuple[dict[str, Any], bytes]:
        tries = {
            "read": lambda: os.open("/etc/hostname", os.O_RDONLY),
            "write": lambda: os.open("written", os.O_WRONLY | os.O_CREAT),
            "socket": socket.socket,
            "pipe": os.pipe,
            "memory": lambda: bytes(2 * 2**30),
        }
        found = {}
        for name, action in tries.items():
            try:
                action()
                found[name] = "done"
            except (OSError, MemoryError) as error:
                found[name] = type(error).__name__
        return found, b""

    return attempt


if __name__ == "__main__":
    if "JUNK" in os.environ.get("LANG", ""):
        answer_all(lambda: raw(bytes.fromhex(os.environ["LANG"].removeprefix("JUNK"))), 100)
    elif os.environ.get("LANG") == "CLOSED":
        answer_all(closed, 100)
    elif os.environ.get("LANG") == "NEVER":
        sys.exit(3)
    else:
        answer_all(lambda: obey, 2**24)
