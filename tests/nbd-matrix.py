#!/usr/bin/python3
"""What NBD servers do, asked byte by byte: dedup-nbd beside nbdkit and qemu-nbd, as a table.

    tests/nbd-matrix.py            prints the table
    tests/nbd-matrix.py --write    puts it into docs/nbd.md
    tests/nbd-matrix.py --check    fails if dedup-nbd's column is not what docs/nbd.md says

Each server serves 64 MiB of a file or volume that was just made, on a Unix socket. BIN names the directory of dedup-nbd.
A feature that takes no answer to tell, such as TLS with pre-shared keys, is not asked for.
"""
import os
import pathlib
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
DOC = ROOT / "docs" / "nbd.md"
BEGIN, END = "<!-- made by tests/nbd-matrix.py -->\n", "<!-- end -->\n"
BIN = pathlib.Path(os.environ.get("BIN", ROOT / "target" / "release")).resolve()
SIZE = 64 << 20
REPLY_MAGIC = 0x0003E889045565A9
READ, WRITE, DISC, FLUSH, TRIM, CACHE, ZEROES, STATUS = range(8)
FUA, NO_HOLE, DF, REQ_ONE, FAST_ZERO, PAYLOAD = (1 << i for i in range(6))
FLAGS = ["", "read only", "FLUSH", "FUA", "rotational", "TRIM", "WRITE_ZEROES", "DF", "multi-conn", "", "CACHE", "FAST_ZERO", "payload of BLOCK_STATUS"]


class Gone(Exception):
    """The server has hung up."""


class Client:
    def __init__(self, path, flags=3):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(20)
        self.socket.connect(path.path)
        self.magic = self.take(16)
        assert self.magic == b"NBDMAGICIHAVEOPT"
        self.server_flags = struct.unpack(">H", self.take(2))[0]
        self.send(struct.pack(">I", flags))
        self.extended = False

    def take(self, count):
        data = b""
        while len(data) < count:
            try:
                more = self.socket.recv(count - len(data))
            except ConnectionError as error:
                raise Gone from error
            if not more:
                raise Gone
            data += more
        return data

    def send(self, data):
        try:
            self.socket.sendall(data)
        except ConnectionError as error:
            raise Gone from error

    def option(self, number, data=b""):
        """Type and data of each reply, the last of which is final."""
        self.send(b"IHAVEOPT" + struct.pack(">II", number, len(data)) + data)
        replies = []
        while True:
            magic, _, kind, length = struct.unpack(">QIII", self.take(20))
            assert magic == REPLY_MAGIC
            replies.append((kind, self.take(length)))
            if kind == 1 or kind >= 1 << 31:
                return replies

    def accepts(self, number, data=b""):
        accepted = self.option(number, data)[-1][0] == 1
        self.extended |= accepted and number == 11
        return accepted

    def go(self, infos=(), option=7, name=b""):
        data = struct.pack(">I", len(name)) + name + struct.pack(f">H{len(infos)}H", len(infos), *infos)
        replies = self.option(option, data)
        if replies[-1][0] != 1:
            return None
        told = {struct.unpack(">H", data[:2])[0]: data[2:] for kind, data in replies if kind == 3}
        self.size, self.flags = struct.unpack(">QH", told[0])
        return told

    def request(self, command, offset, length, flags=0, payload=b""):
        if self.extended:
            if payload:
                flags |= PAYLOAD
            self.send(struct.pack(">IHHQQQ", 0x21E41C71, flags, command, 7, offset, length) + payload)
        else:
            self.send(struct.pack(">IHHQQI", 0x25609513, flags, command, 7, offset, length) + payload)

    def reply(self, length=0):
        """Error, kinds of chunks, payloads. `length` is what a simple reply to a read has."""
        error, kinds, payloads = 0, [], []
        while True:
            magic = struct.unpack(">I", self.take(4))[0]
            if magic == 0x67446698:
                error, _ = struct.unpack(">IQ", self.take(12))
                payloads.append(b"" if error else self.take(length))
                return error, ["simple"], payloads
            flags, kind, _ = struct.unpack(">HHQ", self.take(12))
            if magic == 0x6E8A278C:
                _, size = struct.unpack(">QQ", self.take(16))
            else:
                assert magic == 0x668E33EF
                size = struct.unpack(">I", self.take(4))[0]
            payload = self.take(size)
            kinds.append(kind)
            payloads.append(payload)
            if kind >= 1 << 15:
                error = struct.unpack(">I", payload[:4])[0]
            if flags & 1:
                return error, kinds, payloads

    def ask(self, command, offset, length, flags=0, payload=b""):
        self.request(command, offset, length, flags, payload)
        return self.reply(length if command == READ else 0)

    def is_alive(self):
        return self.ask(FLUSH, 0, 0)[0] == 0


def context_data(queries, name=b""):
    data = struct.pack(">I", len(name)) + name + struct.pack(">I", len(queries))
    return data + b"".join(struct.pack(">I", len(query)) + query for query in queries)


def yes(value):
    return "yes" if value else "no"


def client(path, options=(), contexts=(), infos=(3,)):
    """One in transmission, or None if an option was refused."""
    one = Client(path)
    for option in options:
        if not one.accepts(option):
            return None
    if contexts:
        one.option(10, context_data(contexts))
    one.go(infos)
    return one


def error_name(number):
    names = {0: "success", 1: "EPERM", 5: "EIO", 12: "ENOMEM", 22: "EINVAL", 28: "ENOSPC", 75: "EOVERFLOW", 95: "ENOTSUP", 108: "ESHUTDOWN"}
    return names.get(number, str(number))


def handshake_rows(path):
    one = Client(path)
    replies = one.option(3)
    yield "LIST", yes(replies[-1][0] == 1 and replies[0][0] == 2)
    told = one.go((1, 2, 3), option=6)
    yield "INFO: name, description, block sizes", ", ".join(yes(kind in told) for kind in (1, 2, 3))
    sizes = struct.unpack(">III", told[3]) if 3 in told else ()
    yield "block sizes: minimum, preferred, maximum", ", ".join(map(str, sizes)) or "not told"
    for name, number in [("STRUCTURED_REPLY", 8), ("EXTENDED_HEADERS", 11)]:
        yield name, yes(Client(path).accepts(number))
    one = Client(path)
    one.option(8)
    names = [data[4:].decode() for kind, data in one.option(9, context_data([])) if kind == 4]
    yield "metadata contexts", "; ".join(f"`{name}`" for name in names) or "none"
    yield "unknown option", "refused, stays" if not one.accepts(99) and one.go() else "ends"
    one = Client(path)
    try:
        yield "option of 100 kB", "refused, stays" if not one.accepts(99, bytes(100_000)) and one.go() else "ends"
    except Gone:
        yield "option of 100 kB", "ends"
    try:
        old = Client(path, flags=1)
        old.send(b"IHAVEOPT" + struct.pack(">II", 1, 0))
        yield "EXPORT_NAME, with its zeroes", yes(len(old.take(10 + 124)) == 134 and old.is_alive())
    except Gone:
        yield "EXPORT_NAME, with its zeroes", "no"


def flag_rows(path):
    one = client(path, (8,))
    for bit in (2, 3, 5, 6, 7, 8, 10, 11):
        yield f"offers {FLAGS[bit]}", yes(one.flags >> bit & 1)


def told(path, contexts, questions):
    """What each question's function makes of a connection: its own, if the one before has ended."""
    one = client(path, (8,), contexts)
    for name, question in questions:
        try:
            yield name, question(one)
        except Gone:
            yield name, "ends the server" if path.has_died() else "ends"
        if not survives(one):
            one = client(path, (8,), contexts)


def survives(one):
    try:
        return one.is_alive()
    except Gone:
        return False


def after(command, offset, length, flags=0, payload=b""):
    """The error of a request that the connection outlives."""

    def question(one):
        error = error_name(one.ask(command, offset, length, flags, payload)[0])
        if not survives(one):
            raise Gone
        return error

    return question


def holes(one):
    one.ask(WRITE, 1 << 20, 4096, FUA, b"x" * 4096)
    return yes(2 in one.ask(READ, 0, 2 << 20)[1])


def unfragmented(one):
    return yes(len([kind for kind in one.ask(READ, 0, 2 << 20, DF)[1] if kind in (1, 2)]) == 1)


def fua_everywhere(one):
    lengths = {READ: 4096, FLUSH: 0, TRIM: 4096, CACHE: 4096, ZEROES: 4096}
    return yes(all(one.ask(command, 0, length, FUA)[0] == 0 for command, length in lengths.items()))


def fast_zeroes(one):
    """Only if they are offered: what else becomes of the flag is nobody's business."""
    return after(ZEROES, 4 << 20, 1 << 20, FAST_ZERO)(one) if one.flags >> 11 & 1 else "not offered"


def transmission_rows(path):
    commands = {"READ": READ, "WRITE": WRITE, "TRIM": TRIM, "WRITE_ZEROES": ZEROES, "CACHE": CACHE}
    questions = [
        ("holes in a READ are told as holes", holes),
        ("READ that must not be fragmented", unfragmented),
        ("errors of a READ have a text", lambda one: yes(len(one.ask(READ, SIZE, 512)[2][0]) > 6)),
        ("READ at any byte", lambda one: yes(one.ask(READ, (1 << 20) - 1, 3)[0] == 0)),
        ("WRITE at any byte", lambda one: yes(one.ask(WRITE, 1001, 3, 0, b"abc")[0] == 0)),
    ]
    questions += [(f"{name} of no bytes", after(command, 0, 0)) for name, command in commands.items()]
    questions += [
        (f"{name} beyond the end", after(command, SIZE - 512, 1024, 0, bytes(1024) if command == WRITE else b""))
        for name, command in commands.items()
    ]
    questions += [
        ("FUA on every command", fua_everywhere),
        ("fast zeroes of 1 MiB", fast_zeroes),
        ("unknown command", after(99, 0, 0)),
        ("unknown flag", after(FLUSH, 0, 0, 1 << 14)),
        ("WRITE of 32 MiB", after(WRITE, 0, 32 << 20, 0, bytes(32 << 20))),
        ("WRITE of 32 MiB + 1", after(WRITE, 0, (32 << 20) + 1, 0, bytes((32 << 20) + 1))),
        ("READ of 32 MiB", after(READ, 0, 32 << 20)),
        ("READ of 32 MiB + 1", after(READ, 0, (32 << 20) + 1)),
    ]
    yield from told(path, (), questions)


def small_holes(one):
    for at in range(0, 1 << 20, 16384):
        one.ask(WRITE, at, 8192, 0, b"d" * 8192)
        one.ask(ZEROES, at + 8192, 8192)
    return yes((len(one.ask(STATUS, 0, 1 << 20)[2][0]) - 4) // 8 > 100)


def one_extent(one):
    payload = one.ask(STATUS, 0, 1 << 20, REQ_ONE)[2][0]
    return yes(len(payload) == 12 and struct.unpack(">I", payload[4:8])[0] <= 1 << 20)


def status_rows(path):
    questions = [
        ("BLOCK_STATUS: holes of 8 KiB", small_holes),
        ("BLOCK_STATUS: one extent, no longer than asked for", one_extent),
        ("BLOCK_STATUS of no bytes", after(STATUS, 0, 0)),
        ("BLOCK_STATUS beyond the end", after(STATUS, SIZE - 512, 1024)),
    ]
    yield from told(path, (b"base:allocation",), questions)
    one = Client(path)
    one.option(8)
    one.option(10, context_data([b"base:allocation"]))
    one.option(10, context_data([b"base:allocation"], b"no such export"))
    one.go()
    yield "a failed selection of contexts forgets the one before", yes(one.ask(STATUS, 0, 512)[0] != 0)
    one = client(path, (11,), (b"base:allocation",))
    if one is None:
        yield "64-bit extents, contexts chosen in each request", "no"
        return
    kinds = one.ask(STATUS, 0, SIZE)[1]
    payload = struct.pack(">QI", SIZE, struct.unpack(">I", one.ask(STATUS, 0, SIZE)[2][0][:4])[0])
    chosen = one.ask(STATUS, 0, len(payload), 0, payload)
    yield "64-bit extents, contexts chosen in each request", f"{yes(kinds == [6])}, {yes(chosen[1] == [6])}"


def tls_rows(path):
    one = Client(path)
    yield "STARTTLS offered", yes(one.accepts(5))


def certificates(directory):
    """An authority, and a server's certificate that it has signed."""

    def openssl(*args):
        subprocess.run(["openssl", *args], check=True, cwd=directory, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    openssl("req", "-x509", *key, "-days", "2", "-subj", "/CN=authority", "-addext", "basicConstraints=critical,CA:true", "-addext",
            "keyUsage=critical,keyCertSign", "-keyout", "ca-key.pem", "-out", "ca-cert.pem")
    openssl("req", *key, "-subj", "/CN=localhost", "-keyout", "server-key.pem", "-out", "server.csr")
    extensions = "keyUsage=critical,digitalSignature,keyEncipherment\nextendedKeyUsage=serverAuth\nsubjectAltName=DNS:localhost\n"
    pathlib.Path(directory, "server.ext").write_text(extensions)
    openssl("x509", "-req", "-days", "2", "-in", "server.csr", "-CA", "ca-cert.pem", "-CAkey", "ca-key.pem", "-CAcreateserial",
            "-extfile", "server.ext", "-out", "server-cert.pem")


def servers(work):
    """Name, version, command lines without and with TLS; `SOCKET` stands for the socket."""
    pki, image = f"{work}/pki", f"{work}/image"
    nbdkit = ["nbdkit", "-f", "-U", "SOCKET", "--threads=4"]
    qemu = ["qemu-nbd", "-k", "SOCKET", "-f", "raw", "-t", "-e", "8", "--discard=unmap", "--detect-zeroes=unmap", image]
    creds = ["--object", f"tls-creds-x509,id=tls0,endpoint=server,dir={pki},verify-peer=off", "--tls-creds", "tls0"]
    dedup = [f"{BIN}/dedup-nbd", f"{work}/volume", "--create", "--logical-size", "64M", "--socket", "SOCKET"]
    return [
        ("dedup-nbd", dedup, [*dedup, "--tls-certificates", pki]),
        ("nbdkit file", [*nbdkit, "file", image], [*nbdkit, "--tls=on", f"--tls-certificates={pki}", "file", image]),
        ("qemu-nbd", qemu, [*qemu[:-1], *creds, image]),
    ]


def version(name):
    program = {"dedup-nbd": f"{BIN}/dedup-nbd", "nbdkit file": "nbdkit", "qemu-nbd": "qemu-nbd"}[name]
    return subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout.split("\n")[0].split("(")[0].split()[-1]


class Running:
    def __init__(self, command, path, work):
        self.command = [path if part == "SOCKET" else part for part in command]
        self.path, self.work = path, work

    def __enter__(self):
        pathlib.Path(self.path).unlink(missing_ok=True)
        environment = {**os.environ, "DEDUP_RUNTIME_DIR": f"{self.work}/run", "RUST_LOG": "error"}
        self.process = subprocess.Popen(self.command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment)
        for _ in range(400):
            try:
                with socket.socket(socket.AF_UNIX) as probe:
                    probe.connect(self.path)
                return self
            except OSError:
                assert self.process.poll() is None, self.process.stderr.read()
                time.sleep(0.05)
        raise AssertionError(f"{self.command} does not listen")

    def has_died(self):
        """Whether a request has ended the whole server; then it is started again."""
        time.sleep(0.1)
        died = self.process.poll() is not None
        if died:
            self.__enter__()
        return died

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(30)


def columns(only=None):
    found = {}
    with tempfile.TemporaryDirectory() as work:
        os.mkdir(f"{work}/pki")
        os.mkdir(f"{work}/run", 0o700)
        certificates(f"{work}/pki")
        for name, plain, tls in servers(work):
            if only and name != only:
                continue
            with open(f"{work}/image", "wb") as image:
                image.truncate(SIZE)
            with Running(plain, f"{work}/plain.sock", work) as path:
                rows = {}
                for part in (handshake_rows, flag_rows, transmission_rows, status_rows):
                    rows.update(part(path))
            with Running(tls, f"{work}/tls.sock", work) as path:
                rows.update(tls_rows(path))
            found[f"{name} {version(name)}"] = rows
    return found


def table(found):
    lines = ["| | " + " | ".join(found) + " |", "|---" * (len(found) + 1) + "|"]
    names = list(next(iter(found.values())))
    lines += [f"| {name} | " + " | ".join(rows.get(name, "") for rows in found.values()) + " |" for name in names]
    return "\n".join(lines) + "\n"


def main():
    mode = sys.argv[1] if len(sys.argv) > 1 else ""
    if mode == "--check":
        ours = next(iter(columns("dedup-nbd").values()))
        text = DOC.read_text().split(BEGIN)[1].split(END)[0]
        written = {cells[1].strip(): cells[2].strip() for cells in (line.split("|") for line in text.splitlines()[2:])}
        wrong = {name: (written.get(name), value) for name, value in ours.items() if written.get(name) != value}
        assert not wrong and len(written) == len(ours), f"docs/nbd.md says otherwise (written, found): {wrong}"
        print(f"docs/nbd.md says what dedup-nbd does, in {len(ours)} rows")
        return
    made = table(columns())
    if mode == "--write":
        before, rest = DOC.read_text().split(BEGIN)
        DOC.write_text(before + BEGIN + made + END + rest.split(END)[1])
    print(made, end="")


main()
