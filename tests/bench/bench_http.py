"""Builds and runs http/*.c in turn against the same 256 readers; each prints its CPU time per event.

Usage: python tests/bench/bench_http.py [BUILD_FOLDER] [TIMES]   (needs libmicrohttpd-dev and libevent-dev)
"""

import pathlib
import selectors
import socket
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
LIBS = {"uv": ["{build}/lib/libds_daemon.a", "{build}/lib/libds_base.a", "-luv", "-lhttp_parser", "-lm"],
        "mhd": ["-lmicrohttpd"], "evhttp": ["-levent"]}


def read_streams(port, n=256):
    sel = selectors.DefaultSelector()
    for _ in range(n):
        s = socket.create_connection(("127.0.0.1", port))
        s.sendall(b"GET /stream HTTP/1.1\r\nHost: a\r\n\r\n")
        sel.register(s, selectors.EVENT_READ)
    events, left = 0, n
    while left:
        for key, _ in sel.select():
            data = key.fileobj.recv(1 << 18)
            events += data.count(b"data: ")
            if not data or data.endswith(b"0\r\n\r\n"):
                sel.unregister(key.fileobj)
                key.fileobj.close()
                left -= 1
    return events


def main(build, times):
    with tempfile.TemporaryDirectory() as folder:
        for name, libs in LIBS.items():
            subprocess.run(["cc", "-O2", "-D_GNU_SOURCE", f"-I{ROOT}", ROOT / f"tests/bench/http/{name}.c", "-o",
                            f"{folder}/{name}", *[x.format(build=build) for x in libs], "-lpthread"], check=True)
        for turn in range(times):
            for i, name in enumerate(LIBS):
                port = 18100 + turn * 10 + i
                p = subprocess.Popen([f"{folder}/{name}", str(port)])
                time.sleep(0.3)
                print(f"  {read_streams(port)} events read", end="  ", flush=True)
                p.wait(30)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "build/release", int(sys.argv[2]) if len(sys.argv) > 2 else 3)
