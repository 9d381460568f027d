"""Accounts that have another userland than this machine's: busybox and nothing else, and an older distribution."""
import os
import pathlib
import shutil

import pytest
from bed import programs, wait_until

HOSTS = ("laptop", "frontend")
DEBIAN_11 = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "flotilla" / "debian-11"
BINDS = {"frontend": [(DEBIAN_11, "/srv/debian-11")]} if (DEBIAN_11 / ".ready").exists() else {}

BUSYBOX = """
mkdir -p /srv/busybox/usr/bin /srv/busybox/usr/sbin /srv/busybox/proc /srv/busybox/dev /srv/busybox/home /srv/busybox/tmp /srv/busybox/etc
cd /srv/busybox
ln -s usr/bin bin
ln -s usr/sbin sbin
cp "$(command -v busybox)" bin/busybox
chroot . /bin/busybox --install -s
"""
OLDER = "mount -o remount,bind,ro /srv/debian-11\n"
# What every container has: processes, devices, a home and /tmp to write in, a name for the user.
FURNISH = """
user=$1
useradd -p '*' -s /bin/sh -M -d /home/$user $user
mount --rbind /proc proc
mount --rbind /dev dev
mount -t tmpfs -o mode=755 tmpfs home
mount -t tmpfs -o mode=1777 tmpfs tmp
install -d -m 700 -o $user -g $user home/$user
{ [ ! -e etc/passwd ] || cat etc/passwd; getent passwd $user; } > /srv/$user.passwd
if [ -e etc/passwd ]; then mount --bind /srv/$user.passwd etc/passwd; else cp /srv/$user.passwd etc/passwd; fi
install -D -m 644 /home/asmith/.ssh/authorized_keys /etc/ssh/keys/$user
"""
SSHD = """
Match User {user}
  ChrootDirectory {root}
  AuthorizedKeysFile /etc/ssh/keys/{user}
"""
# user -> its root, how that is made, what is asked there, and the answer that only that root gives
USERLANDS = {
    "small": ("/srv/busybox", BUSYBOX, "readlink -f /bin/sh", "/usr/bin/busybox"),
    "older": ("/srv/debian-11", OLDER, "ldd --version | head -n 1", "2.31"),
}


@pytest.fixture(scope="module")
def accounts(bed):
    if shutil.which("busybox") is None:
        pytest.fail("busybox is missing: scripts/setup test")
    made = [user for user in USERLANDS if user != "older" or BINDS]
    for user in made:
        root, make, _, _ = USERLANDS[user]
        bed.frontend.as_root(["bash", "-euc", f"{make}\ncd {root}\n{FURNISH}", "furnish", user])
    bed.frontend.configure_sshd(more="".join(SSHD.format(user=user, root=USERLANDS[user][0]) for user in made))
    return made


@pytest.fixture(scope="module")
def worker():
    """Static: these accounts have no library that it was linked with."""
    found = next(programs().parent.rglob("client_test_worker"), None)
    assert found is not None, "the worker of the client's tests is not built"
    return found


@pytest.mark.parametrize("transport", ["libssh", "openssh"])
@pytest.mark.parametrize("user", USERLANDS)
def test_all_of_it_works_there(bed, flotilla, accounts, worker, user, transport):
    if user not in accounts:
        pytest.fail(f"{DEBIAN_11} is missing: scripts/test --only bed makes it")
    root, _, question, answer = USERLANDS[user]
    flotilla.run("resource", "add", "there", "--location", f"{user}@frontend", "--transport", transport)
    ours = lambda: bed.frontend.output(f"find {root}/home {root}/tmp {root}/dev/shm -name 'flotilla*'", user="root")  # noqa: E731
    before = ours()
    steps, code = flotilla.test_resource("there")
    assert code == 0, steps
    assert ours() == before, "a test leaves nothing"
    assert {name: step["status"] for name, step in steps.items() if step["status"] != "ok"} == ({"name": "skipped"} if transport == "openssh" else {}), steps
    pilot = flotilla.start_pilot("there", "--slots", "2")
    assert flotilla.output("run", "--on", "there", "--", "/bin/sh", "-c", "echo hi") == "hi"
    assert answer in flotilla.output("run", "--on", "there", "--", "sh", "-c", question)
    assert flotilla.output("run", "--on", "there", "--", "tr", "a-z", "A-Z", input="sorted") == "SORTED"
    assert flotilla.output("run", "--on", "there", "-t", "--", "sh", "-c", "test -t 0 && echo a terminal") == "a terminal"
    assert flotilla.run("run", "--on", "there", "--", "sh", "-c", "exit 7", check=False).returncode == 7
    with flotilla.terminal("shell", str(pilot)) as terminal:
        terminal.type("echo $((40 + 2)) in $PWD; exit 3\r")
        terminal.until("42 in /")
        assert terminal.wait() == 3
    flotilla.python(f"""
        with flotilla.Daemon() as daemon:
            worker = daemon.start_worker("./worker", files=[flotilla.InputFile({str(worker)!r}, name="worker", mode=0o755)], label="there")
            with flotilla.RemoteCode(worker) as code:
                assert code.add(2, 3) == 5
        """)
    flotilla.run("daemon", "stop", "--all", timeout=60)
    wait_until(lambda: not bed.processes_of_flotilla(), 5, "nothing of ours is left")
    assert bed.frontend.output(f"find {root}/home/{user}/.cache/flotilla/pilots {root}/tmp {root}/dev/shm -mindepth 1", user="root") == ""
