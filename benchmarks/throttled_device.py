"""A block device that behaves like a network volume: latency per request, bandwidth per stream and in all.

A file system in user space (the kernel's FUSE protocol, by the standard library) serves one image from memory
and answers each read when a volume of that kind would; a loop device with direct I/O on it is the block
device, an ext4 on that holds the model. It needs root. The kernel splits and queues requests as it does for
any disk; a *stream* here is a request: it arrives ``latency`` after it was asked for, at ``stream`` bytes per
second, and all together at most ``total`` bytes per second.
"""

import argparse
import ctypes
import heapq
import mmap
import os
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

_IN, _OUT = struct.Struct("<IIQQIIIHH"), struct.Struct("<IiQ")
_ATTRIBUTES = struct.Struct("<6Q10I")
_LOOKUP, _FORGET, _GETATTR, _OPEN, _READ, _STATFS = 1, 2, 3, 14, 15, 17
_RELEASE, _FLUSH, _INIT, _INTERRUPT, _DESTROY, _BATCH_FORGET = 18, 25, 26, 36, 38, 42
_ASYNC_READ, _ASYNC_DIO, _MAX_PAGES = 1 << 0, 1 << 15, 1 << 22
_ENOENT, _ENOSYS = 2, 38
_REQUEST_BYTES = 1 << 20
_QUEUE = 256
_NAME = b"image"


class ThrottledFile:
    """Serves ``image`` as the only file of a FUSE mount, with the answers' times as described above."""

    def __init__(self, image: Path, latency_s: float, stream: float, total: float) -> None:
        with image.open("rb") as file:
            self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._latency_s, self._stream, self._total = latency_s, stream, total
        self._clock_s = 0.0
        self._due: list[tuple[float, int, int, int]] = []
        self._changed = threading.Condition()
        self._fuse = os.open("/dev/fuse", os.O_RDWR)
        self.requests = 0

    def mount(self, where: Path) -> None:
        """Mount and answer in the background, until it is unmounted."""
        options = f"fd={self._fuse},rootmode=40000,user_id=0,group_id=0,max_read={_REQUEST_BYTES}"
        libc = ctypes.CDLL(None, use_errno=True)
        read_only = 1
        failed = libc.mount(b"coldpress", bytes(where), b"fuse", read_only, options.encode())
        if failed:
            raise OSError(ctypes.get_errno(), "mount fuse")
        threading.Thread(target=self._listen, daemon=True).start()
        for _ in range(2):
            threading.Thread(target=self._answer, daemon=True).start()

    def _listen(self) -> None:
        while True:
            try:
                request = os.read(self._fuse, _REQUEST_BYTES + 4096)
            except OSError:  # unmounted
                return
            _, opcode, unique, node, *_ = _IN.unpack_from(request)
            body = request[_IN.size :]
            if opcode == _READ:
                _, offset, size = struct.unpack_from("<QQI", body)
                self._queue(unique, offset, size)
            elif opcode not in (_FORGET, _INTERRUPT, _BATCH_FORGET):
                self._reply(unique, *self._small(opcode, node, body))

    def _queue(self, unique: int, offset: int, size: int) -> None:
        now = time.monotonic()
        with self._changed:
            self.requests += 1
            # What was not used of the total is lost after 5 ms.
            self._clock_s = max(self._clock_s, now - 0.005) + size / self._total
            due = max(now + self._latency_s + size / self._stream, self._clock_s)
            heapq.heappush(self._due, (due, unique, offset, size))
            self._changed.notify()

    def _answer(self) -> None:
        while True:
            with self._changed:
                while not self._due:
                    self._changed.wait()
                due, unique, offset, size = self._due[0]
                left = due - time.monotonic()
                if left > 0:
                    self._changed.wait(left)
                    continue
                heapq.heappop(self._due)
            self._reply(unique, 0, memoryview(self._data)[offset : offset + size])

    def _small(self, opcode: int, node: int, body: bytes) -> tuple[int, bytes]:
        """Error and body of the answer to anything but a read."""
        match opcode:
            case _ if opcode == _INIT:
                major, minor, ahead, _ = struct.unpack_from("<4I", body)
                flags = _ASYNC_READ | _ASYNC_DIO | _MAX_PAGES
                head = struct.pack(
                    "<4I2H2I", major, min(minor, 38), ahead, flags, _QUEUE, _QUEUE, 4096, 1
                )
                return 0, (head + struct.pack("<H", _REQUEST_BYTES // 4096)).ljust(64, b"\0")
            case _ if opcode == _LOOKUP:
                if body.rstrip(b"\0") != _NAME:
                    return -_ENOENT, b""
                return 0, struct.pack("<4Q2I", 2, 1, 3600, 3600, 0, 0) + self._attributes(2)
            case _ if opcode == _GETATTR:
                return 0, struct.pack("<Q2I", 3600, 0, 0) + self._attributes(node)
            case _ if opcode == _OPEN:
                return 0, struct.pack("<Q2I", 0, 0, 0)
            case _ if opcode == _STATFS:
                return 0, struct.pack("<5Q4I", 1, 0, 0, 1, 0, 4096, 255, 4096, 0).ljust(80, b"\0")
            case _ if opcode in (_RELEASE, _FLUSH, _DESTROY):
                return 0, b""
            case _:
                return -_ENOSYS, b""

    def _attributes(self, node: int) -> bytes:
        size = len(self._data) if node == 2 else 0
        mode = 0o100444 if node == 2 else 0o040555
        return _ATTRIBUTES.pack(node, size, -(-size // 512), *[0] * 6, mode, 1, 0, 0, 0, 4096, 0)

    def _reply(self, unique: int, error: int, data: bytes | memoryview) -> None:
        try:
            os.writev(self._fuse, [_OUT.pack(_OUT.size + len(data), error, unique), data])
        except OSError:  # the asker gave up, or it is unmounted
            return


def make_image(folder: Path, image: Path) -> None:
    """An ext4 image with the files of a folder."""
    size = sum(path.stat().st_size for path in folder.iterdir())
    with image.open("wb") as file:
        file.truncate(int(size * 1.05) + (64 << 20))
    _run("mkfs.ext4", "-q", "-O", "^has_journal", "-m", "0", "-d", folder, image)


def _run(*argv: str | Path) -> str:
    done = subprocess.run([str(word) for word in argv], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{argv[0]}: {done.stderr}")
    return done.stdout.strip()


def main() -> None:
    """Serve an image; for each line on standard input mount it anew, cold, and say so."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("image", type=Path)
    parser.add_argument("folder", type=Path, help="where to mount; FOLDER.fuse is used too")
    parser.add_argument("--latency-ms", type=float, default=10)
    parser.add_argument("--stream-mb-s", type=float, default=70)
    parser.add_argument("--total-mb-s", type=float, default=600)
    parser.add_argument(
        "--read-ahead-kb", type=int, default=128, help="of the device; Linux's default"
    )
    asked = parser.parse_args()
    sys.setswitchinterval(1e-4)  # threads that answer must not wait for the one that listens
    below = asked.folder.with_name(f"{asked.folder.name}.fuse")
    for folder in (below, asked.folder):
        folder.mkdir(parents=True, exist_ok=True)
    rates = asked.stream_mb_s * 1e6, asked.total_mb_s * 1e6
    served = ThrottledFile(asked.image, asked.latency_ms / 1e3, *rates)
    served.mount(below)
    device = _run("losetup", "--find", "--show", "--read-only", "--direct-io=on", below / "image")
    try:
        ahead = Path(f"/sys/block/{Path(device).name}/queue/read_ahead_kb")
        ahead.write_text(str(asked.read_ahead_kb))
        for _ in sys.stdin:
            if asked.folder.is_mount():
                _run("umount", asked.folder)  # and with it what was cached of it
            _run("mount", "-o", "ro", device, asked.folder)
            print(served.requests, flush=True)
    finally:
        if asked.folder.is_mount():
            _run("umount", asked.folder)
        _run("losetup", "--detach", device)
        _run("umount", "-l", below)


if __name__ == "__main__":
    main()
