#!/usr/bin/python3
"""What a request over NBD costs the server's CPU, beside a server that does nothing (nbdkit null).

    tests/nbd-cost.py [--seconds N] [--rounds N] [--only NAME]

fio's nbd engine over a Unix socket, one connection, requests of 4 KiB at random places of 256 MiB, with 32 in flight and with one.
Only the server's CPU time (user and system, of all its threads, from /proc) is counted, and divided by the requests that fio counts:
still, a busy machine makes that noisier and dearer. All servers take turns, round by round; the table has medians. What is stored is
stored in files in /dev/shm, so the kernel's copy of each block is in it and no disk is. Reads are of blocks that hold data.

BIN names the directory of dedup-nbd; null_server is in its examples/. Needs fio and nbdkit. Run time: half a minute a round.
"""
import argparse
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
BIN = pathlib.Path(os.environ.get("BIN", ROOT / "target" / "release")).resolve()
SPAN = 256 << 20
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
LOADS = [("randwrite", 32), ("randread", 32), ("randwrite", 1), ("randread", 1)]


def servers(directory):
    """Name, command line (of which the socket is SOCKET), whether it stores anything."""
    null = str(BIN / "examples" / "null_server")
    dedup = [str(BIN / "dedup-nbd"), "--create", "--logical-size", "1G", "--socket", "SOCKET"]
    return [
        ("nbdkit null", ["nbdkit", "--foreground", "--unix", "SOCKET", "null", "8G"], False),
        ("nbdkit file", ["nbdkit", "--foreground", "--unix", "SOCKET", "file", f"{directory}/file"], True),
        ("null_server", [null, "SOCKET", "filled"], False),
        ("null_server, SHA-256", [null, "SOCKET", "filled", "digest=sha256"], False),
        ("dedup-nbd, metadata in memory", [*dedup, "--mdbackend", "inram", f"{directory}/inram"], True),
        ("dedup-nbd", [*dedup, f"{directory}/volume"], True),
    ]


class Server:
    def __init__(self, directory, index, command, stores):
        self.socket = f"{directory}/{index}.sock"
        self.stores = stores
        command = [self.socket if word == "SOCKET" else word for word in command]
        if command[-1].endswith("/file"):
            pathlib.Path(command[-1]).touch()
            os.truncate(command[-1], 1 << 30)
        elif stores:
            pathlib.Path(command[-1]).mkdir()
        # null_server ends when its standard input does.
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 20
        while not os.path.exists(self.socket):
            if self.process.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"does not serve: {' '.join(command)}")
            time.sleep(0.02)

    def cpu_seconds(self):
        fields = pathlib.Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / TICKS_PER_SECOND

    def load(self, kind, depth, *how_long):
        """Microseconds of CPU for a request."""
        before = self.cpu_seconds()
        fio = subprocess.run(
            ["fio", "--name=cost", "--ioengine=nbd", f"--uri=nbd+unix:///?socket={self.socket}", f"--rw={kind}", f"--iodepth={depth}",
             f"--size={SPAN}", "--refill_buffers", "--randrepeat=0", "--norandommap", "--output-format=json", *how_long],
            stdout=subprocess.PIPE, text=True)
        if fio.returncode:
            sys.exit(f"fio failed: {fio.stdout}")
        # The engine says that it is connected before.
        job = json.loads(fio.stdout[fio.stdout.index("{"):])["jobs"][0]
        requests = job["read"]["total_ios"] + job["write"]["total_ios"]
        return 1e6 * (self.cpu_seconds() - before) / requests

    def stop(self):
        self.process.stdin.close()
        self.process.terminate()
        self.process.wait()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1, help="of each load on each server in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", help="servers whose name begins so")
    args = parser.parse_args()
    for program in ("fio", "nbdkit"):
        if not shutil.which(program):
            sys.exit(f"needs {program}")
    base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="nbd-cost.", dir=base) as directory:
        os.environ.update(DEDUP_RUNTIME_DIR=directory, RUST_LOG="error")
        wanted = [entry for entry in servers(directory) if entry[0].startswith(args.only)]
        running = []
        try:
            for index, (_, command, stores) in enumerate(wanted):
                running.append(Server(directory, index, command, stores))
                if stores:
                    running[-1].load("write", 16, "--bs=1M")
            measured = [[[] for _ in LOADS] for _ in running]
            for _ in range(args.rounds):
                for column, (kind, depth) in enumerate(LOADS):
                    for row, server in enumerate(running):
                        how_long = ["--bs=4k", "--time_based", f"--runtime={round(args.seconds * 1000)}ms"]
                        measured[row][column].append(server.load(kind, depth, *how_long))
        finally:
            for server in running:
                server.stop()
    show([name for name, *_ in wanted], measured)


def show(names, measured):
    costs = {name: [statistics.median(cell) for cell in row] for name, row in zip(names, measured)}
    base = costs[names[0]]
    if {"nbdkit null", "null_server", "null_server, SHA-256"} <= costs.keys():
        # A server that does nothing and the digest of what is written: the yardstick.
        digest = [hashing - idle if kind == "randwrite" else 0.0
                  for (kind, _), hashing, idle in zip(LOADS, costs["null_server, SHA-256"], costs["null_server"])]
        base = [null + extra for null, extra in zip(costs["nbdkit null"], digest)]
        costs = {"nbdkit null + SHA-256": base, **costs}
    print("| CPU of the server, us a request | " + " | ".join(f"{kind}, {depth} in flight" for kind, depth in LOADS) + " |")
    print("|---|" + "---|" * len(LOADS))
    for name, row in costs.items():
        print(f"| {name} | " + " | ".join(f"{cost:.1f} ({cost / yard:.2f}x)" for cost, yard in zip(row, base)) + " |")


if __name__ == "__main__":
    main()
