"""Files that are not its own: to read the host's, to write the system's, to fool the host that collects."""

from agentflow.sandbox.attacks import judges
from agentflow.sandbox.attacks.base import Attack
from agentflow.sandbox.attacks.decisive import OPEN
from tests.attacks import looks

_ALL_PROCESSES = "[name for name in os.listdir('/proc') if name.isdigit()]"

ATTACKS = (
    Attack(name="files/shared memory of the host", code="leak(BAIT['shared'])", judge=judges.leaks),
    Attack(
        name="files/the host's root through other processes",
        code=f"for pid in {_ALL_PROCESSES}: leak(f\"/proc/{{pid}}/root{{BAIT['folder']}}/secret\")",
        judge=judges.leaks,
    ),
    Attack(
        name="files/dots above the root",
        code="leak('../' * 40 + BAIT['folder'] + '/secret')\nos.chdir('/')\nos.chdir('../' * 20)\n"
        "leak(BAIT['folder'][1:] + '/secret')",
        judge=judges.leaks,
    ),
    Attack(
        name="files/a symbolic link of its own",
        code="os.symlink(BAIT['folder'] + '/secret', MARK)\nleak(MARK)\nos.unlink(MARK)",
        judge=judges.leaks,
    ),
    Attack(
        name="files/a hard link of its own",
        code="with trying():\n  os.link(BAIT['shared'], f\"/dev/shm/{MARK}\")\n  leak(f'/dev/shm/{MARK}')\n"
        "  os.unlink(f'/dev/shm/{MARK}')",
        judge=judges.leaks,
    ),
    Attack(
        name="files/a shell that globs",
        code="cat /tmp/agentflow-bait-*/secret /dev/shm/agentflow-bait-* /proc/[0-9]*/environ 2>/dev/null; true",
        language="shell",
        judge=judges.leaks,
    ),
    Attack(
        name="files/inherited descriptors of others",
        code=f"for pid in {_ALL_PROCESSES}:\n  for number in range(256): leak(f'/proc/{{pid}}/fd/{{number}}')",
        judge=judges.leaks,
        limits={"output_kb": 512},
    ),
    Attack(
        name="files/a handle instead of a path",
        code="with trying():\n  handle = ctypes.create_string_buffer(b'\\x80' + bytes(135))\n"
        "  mount = ctypes.c_int()\n  path = (BAIT['folder'] + '/secret').encode()\n"
        "  call('name_to_handle_at', -100, path, handle, ctypes.byref(mount), 0)\n"
        "  at = os.open(BAIT['folder'], os.O_RDONLY)\n"
        "  say(os.read(call('open_by_handle_at', at, handle, 0), 4096))",
        judge=judges.leaks,
    ),
    Attack(
        name="files/block devices",
        code="import stat\nwith trying(): os.mknod(MARK, 0o600 | stat.S_IFBLK, os.makedev(1, 0))\n"
        "for name in (MARK, *sorted(os.listdir('/dev'))):\n"
        "  path = name if name == MARK else f'/dev/{name}'\n"
        "  with trying():\n    if stat.S_ISBLK(os.stat(path).st_mode): os.open(path, os.O_RDONLY | os.O_NONBLOCK)\n"
        "with trying(): os.unlink(MARK)\nshow()",
        judge=looks.opens_device,
    ),
    Attack(
        name="files/memory and log of the kernel",
        code="for path in ('/dev/mem', '/dev/kmsg', '/dev/port', '/proc/kcore', '/proc/kmsg'):\n"
        "  with trying(): os.open(path, os.O_RDONLY | os.O_NONBLOCK)\nshow()",
        judge=judges.opens(r"^/dev/(mem|kmsg|port)|^/proc/k(core|msg)"),
    ),
    Attack(
        name="files/the running interpreter, for writing",
        # What runs cannot be opened for writing, whatever else permits it; the libraries that it has loaded can.
        code=f"{OPEN}hold('/proc/self/exe', '/proc/1/exe', f'/proc/{{os.getppid()}}/exe')\n"
        "hold(*{line.split()[-1] for line in read('/proc/self/maps').decode().splitlines() if '.so' in line})\nshow()",
        judge=judges.opens(r"python|/exe$|docker|pytest|agentflow|\.so", writable=True),
    ),
    Attack(
        name="files/switches of the kernel, for writing",
        code=f"{OPEN}hold('/proc/sysrq-trigger', '/proc/irq/default_smp_affinity', '/proc/mtrr', '/sys/power/state',\n"
        "     '/sys/kernel/uevent_helper', '/proc/timer_list')\nshow()",
        judge=judges.opens(r"^/(proc|sys)/(sysrq|irq|mtrr|power|kernel)", writable=True),
    ),
    Attack(
        name="files/control groups, for writing",
        code=f"{OPEN}for folder, _, names in os.walk('/sys/fs/cgroup'):\n"
        "  if folder.count('/') < 6:\n"
        "    hold(*(f'{folder}/{n}' for n in names if n.endswith(('.procs', 'limit_in_bytes'))))\n"
        "show()",
        judge=judges.opens(r"^/sys/fs/cgroup", writable=True),
        limits={"cpu_s": 3.0},
    ),
    Attack(
        name="files/the root folder, for writing",
        code="with trying():\n  os.open(f'/{MARK}', os.O_CREAT | os.O_WRONLY)\n  os.unlink(f'/{MARK}')\n"
        "with trying(): os.open('/', os.O_TMPFILE | os.O_WRONLY, 0o600)\nshow()",
        judge=judges.opens(r"^/(?!memfd:)[^/]+( \(deleted\))?$", writable=True),
    ),
    Attack(
        name="files/the folder of devices, for writing",
        code="with trying():\n  os.open(f'/dev/{MARK}', os.O_CREAT | os.O_WRONLY)\n  os.unlink(f'/dev/{MARK}')\nshow()",
        judge=judges.opens(r"^/dev/[0-9a-f]{6}", writable=True),
    ),
    Attack(
        name="files/a place beside the work space",
        code="for folder in (BAIT['folder'], '/var/tmp', '/usr'):\n"
        "  with trying(): os.close(os.open(f'{folder}/{MARK}', os.O_CREAT | os.O_WRONLY))",
        judge=looks.plants,
    ),
    Attack(
        name="files/the user's home",
        code="with trying(): os.open(BAIT['home'], os.O_RDONLY | os.O_DIRECTORY)\nshow()",
        judge=looks.opens_home,
    ),
)
