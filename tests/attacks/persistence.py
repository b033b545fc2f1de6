"""What one execution leaves for the next: each program plants a word that its successors try to find."""

from agentflow.sandbox.attacks.base import Attack
from agentflow.sandbox.attacks.decisive import left, poison

_SEGMENT = "GET, ATTACH, CONTROL = {'x86_64': (29, 30, 31)}.get(os.uname().machine, (194, 196, 195))\n"
_KEY = "0x5afe0000 + int(BAIT['word'][:4], 16)"


ATTACKS = (
    left("work space", "'planted-' + BAIT['word']"),
    left("temporary files that stay", "'/var/tmp/planted-' + BAIT['word']"),
    left("shared memory", "'/dev/shm/planted-' + BAIT['word']"),
    left("home", "os.path.expanduser('~/.planted-') + BAIT['word']"),
    left("a module on the path", "f\"{sys.path[-1]}/planted_{BAIT['word']}.py\""),
    left("a module beside the standard library", "f\"{os.path.dirname(os.__file__)}/planted_{BAIT['word']}.py\""),
    Attack(
        name="persistence/a program for a shell",
        code='printf %s "$MARK" > "/tmp/planted-$MARK"; cp "/tmp/planted-$MARK" "$HOME/planted-$MARK"; true',
        language="shell",
        then='ls /tmp/planted-* "$HOME"/planted-* > /dev/null 2>&1 && echo found-planted; rm -f /tmp/planted-*'
        ' "$HOME"/planted-*',
        judge=lambda evidence: (
            "a later program found its files"
            if any("found-planted" in result.stdout.text for result in evidence.results[1:])
            else ""
        ),
    ),
    poison(
        "modules and environment",
        "import types\nsys.modules['planted'] = types.SimpleNamespace(word=WORD)\nos.environ['PLANTED'] = WORD\n"
        "sys.path.insert(0, WORD)",
        "say(str(sys.modules.get('planted')) + os.environ.get('PLANTED', '') + str(sys.path))",
    ),
    poison(
        "a segment of shared memory",
        f"{_SEGMENT}with trying():\n  at = call(ATTACH, call(GET, {_KEY}, 4096, 0o1666), 0, 0)\n"
        "  ctypes.memmove(at, WORD.encode() + bytes(1), len(WORD) + 1)",
        f"{_SEGMENT}with trying():\n  held = call(GET, {_KEY}, 4096, 0o666)\n"
        "  at = call(ATTACH, held, 0, 0)\n  say(ctypes.string_at(at, 24))\n  call(CONTROL, held, 0, 0)",
    ),
    poison(
        "a queue of messages",
        "NAME = ('/planted-' + BAIT['word']).encode()\nrt = ctypes.CDLL('librt.so.1')\n"
        "queue = rt.mq_open(NAME, os.O_CREAT | os.O_RDWR, 0o666, 0)\nrt.mq_send(queue, WORD.encode(), 24, 0)",
        "NAME = ('/planted-' + BAIT['word']).encode()\nrt = ctypes.CDLL('librt.so.1')\n"
        "queue = rt.mq_open(NAME, os.O_RDWR | os.O_NONBLOCK)\ntext = ctypes.create_string_buffer(1 << 14)\n"
        "if queue >= 0:\n  rt.mq_receive(queue, text, 1 << 14, 0)\n  say(text.value)\n  rt.mq_unlink(NAME)",
    ),
    poison(
        "keys",
        "with trying():\n"
        "  held = call('add_key', b'user', b'planted-' + BAIT['word'].encode(), WORD.encode(), 24, -4)\n"
        "  call('keyctl', 15, held, 10)",  # it expires
        "text = ctypes.create_string_buffer(64)\nwith trying():\n"
        "  held = call('keyctl', 10, -4, b'user', b'planted-' + BAIT['word'].encode(), 0)\n"
        "  call('keyctl', 11, held, text, 64)\n  say(text.value)",
    ),
    poison(
        "a server that stays",
        "def serve():\n  os.setsid()\n  server = socket.socket(socket.AF_UNIX)\n"
        "  server.bind(f\"\\0planted-{BAIT['word']}\")\n  server.listen()\n  server.settimeout(4)\n"
        "  libc.prctl(15, b'x', 0)\n"
        "  while True:\n    caller, _ = server.accept()\n    caller.sendall(WORD.encode())\n    caller.close()\n"
        "child(serve)\ntime.sleep(0.2)",
        "with trying():\n  stream = socket.socket(socket.AF_UNIX)\n  stream.settimeout(1)\n"
        "  stream.connect(f\"\\0planted-{BAIT['word']}\")\n  say(stream.recv(64))",
    ),
    poison(
        "the name of the machine",
        "with trying(): socket.sethostname(WORD)",
        "say(socket.gethostname())",
    ),
)
