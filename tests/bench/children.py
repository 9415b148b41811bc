"""A child of the lab's worker that does not answer. It imports nothing, so that it starts at once."""

import time
from pathlib import Path


def unreliable(connection, folder):
    """Hangs at its first trial; the next one ends at its own."""
    second = Path(folder, "second")
    hangs = not second.exists()
    second.touch()
    connection.send("ready")
    connection.recv()
    if hangs:
        time.sleep(600)
    raise SystemExit(3)
