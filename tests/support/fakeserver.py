"""`luthier serve` over stand-ins, in a process of its own: fakeserver.py FOLDER WORD... A word takes a tenth of a
second."""

import sys
from pathlib import Path

from luthier.cli import main
from luthier.serve import server
from support.fakeserve import FakeChat, fake_services

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    server.open_services = lambda settings: fake_services(folder, settings, chat=FakeChat(delay=0.1))
    sys.exit(main(["serve", *sys.argv[2:]]))
