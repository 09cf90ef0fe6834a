"""A cut of the power at any moment of a whole run, as the disk might be found afterwards."""

from __future__ import annotations

import threading
from pathlib import Path


class PowerCut:
    """Watches every durable write, and notes each moment at which a name would lead to a file whose bytes may be lost.

    Bytes that were not synced may be lost; of names in a folder that was not synced, those from before may be back. Names
    of temporary files do not count: nobody reads them.
    """

    def __init__(self) -> None:
        self._unsynced: set[int] = set()
        self._names: dict[Path, dict[str, int]] = {}
        self._renamed: set[Path] = set()
        self._last = threading.local()
        self._guard = threading.Lock()
        self.writes, self.torn = 0, list[str]()

    def __call__(self, step: str, path: Path) -> None:
        with self._guard:
            # It is called before each step: what this thread did before is done.
            done, self._last.step = getattr(self._last, "step", None), (step, path)
            if done is not None and done[0] == "sync" and done[1].exists():
                self._unsynced.discard(done[1].stat().st_ino)
            if step == "write":
                self.writes += 1
                self._unsynced.add(path.stat().st_ino)
            if step == "rename":
                self._renamed.add(path)
            folder = path if step == "sync folder" else path.parent
            for names in (_listing(folder), self._names.get(folder, {})):
                self.torn += [
                    str(folder / name)
                    for name, inode in names.items()
                    if inode in self._unsynced and not name.endswith(".partial")
                ]
            if step == "sync folder":
                self._names[folder] = _listing(folder)

    def lost(self) -> list[str]:
        """What a cut now would take back although it was written: files whose folder was not synced since."""
        return [
            str(path)
            for path in self._renamed
            if path.is_file() and self._names.get(path.parent, {}).get(path.name) != path.stat().st_ino
        ]


def _listing(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_ino for path in folder.iterdir() if path.is_file()} if folder.is_dir() else {}
