"""Real machines on one machine.

Each host is a network, mount, pid, uts and ipc namespace over a copy-on-write view of this machine's root: its own
/etc, users, /home, /tmp, /run, host name, pid 1, sshd and host key. Everything lives inside one *keeper*: a process
that is pid 1 of an outer pid namespace and holds the network of switches and the disks. When the keeper ends - told
to, or because the test run that holds its stdin is gone - the kernel ends every process of every host, and mounts
and interfaces go with their namespaces. Nothing is ever in the root namespaces, so no packet can leave the machine.

    internet (10.91.0.0/24)     laptop .1, frontend .10, gateway .20
    cluster  (10.92.0.0/24)     frontend .10, node1 .11, node2 .12       /home is shared
    site     (10.93.0.0/24)     gateway .20, inner .21

The laptop's user is alice; elsewhere she is asmith. The front end and the gateway accept only port 22 from outside.
"""
from __future__ import annotations

import concurrent.futures
import contextlib
import fcntl
import itertools
import json
import os
import pathlib
import pty
import re
import select
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import textwrap
import time

HERE = pathlib.Path(__file__).resolve().parent
ROOT = pathlib.Path(__file__).resolve().parents[2]
ADDRESSES = {
    "laptop": {"pub": "10.91.0.1"},
    "frontend": {"pub": "10.91.0.10", "priv": "10.92.0.10"},
    "node1": {"priv": "10.92.0.11"},
    "node2": {"priv": "10.92.0.12"},
    "gateway": {"pub": "10.91.0.20", "site": "10.93.0.20"},
    "inner": {"site": "10.93.0.21"},
}
NETWORKS = ("pub", "priv", "site")
HOME_OF = {"laptop": "laptop", "frontend": "cluster", "node1": "cluster", "node2": "cluster", "gateway": "gateway", "inner": "inner"}
# Not the same number on the two sides: nothing may rely on it.
USERS = {"laptop": ("alice", 2001)}
ELSEWHERE = ("asmith", 3001)
PASSWORD = "correct horse battery"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

FIREWALL = """
table inet firewall {
  chain incoming {
    type filter hook input priority 0; policy drop;
    ct state established,related accept
    iifname { "lo", "priv", "site" } accept
    iifname "pub" tcp dport 22 accept
  }
  chain forwarded { type filter hook forward priority 0; policy drop; }
}
"""

# Pid 1 of a host. $1 name, $2 its folder, $3 lower layer, $4 its home. File descriptor 9 says "up".
INIT = r"""
set -eu
name=$1 folder=$2 lower=$3 home=$4
mount --make-rprivate /
mkdir -p $folder/upper $folder/work $folder/root
mount -t overlay overlay -o lowerdir=$lower,upperdir=$folder/upper,workdir=$folder/work $folder/root
root=$folder/root
mount -t proc proc $root/proc
cat /proc/sys/kernel/random/uuid > $folder/boot_id     # each boot of each host is one of its own
mount --bind $folder/boot_id $root/proc/sys/kernel/random/boot_id
mount -t sysfs -o ro sysfs $root/sys        # its own, or /sys/class/net shows another machine's interfaces
mount -t tmpfs -o mode=755 tmpfs $root/dev
for device in null zero full random urandom tty; do : > $root/dev/$device; mount --bind /dev/$device $root/dev/$device; done
ln -s /proc/self/fd $root/dev/fd; ln -s fd/0 $root/dev/stdin; ln -s fd/1 $root/dev/stdout; ln -s fd/2 $root/dev/stderr
mkdir $root/dev/pts $root/dev/shm
mount -t devpts -o newinstance,ptmxmode=0666,mode=0620 devpts $root/dev/pts
ln -s pts/ptmx $root/dev/ptmx
mount -t tmpfs -o mode=1777 tmpfs $root/dev/shm
# What is bound into the host, collected before /tmp and /root are hidden.
mkdir -p $folder/binds
while read -r source target; do
  [ -n "$source" ] || continue
  key=$folder/binds/$(echo $target | tr / _)
  if [ -d "$source" ]; then mkdir -p $key; else : > $key; fi
  mount --bind "$source" $key
done < $folder/bind
mount -t tmpfs -o mode=1777 tmpfs $root/tmp
mount -t tmpfs -o mode=755 tmpfs $root/run
mkdir -p $root/run/sshd $root/run/lock
mount -t tmpfs -o mode=755 tmpfs $root/root # hidden, but what is bound below it can be reached
mount --bind $home $root/home
while read -r source target; do
  [ -n "$source" ] || continue
  key=$folder/binds/$(echo $target | tr / _)
  if [ -d "$source" ]; then mkdir -p $root$target; else mkdir -p $(dirname $root$target); : > $root$target; fi
  mount --bind $key $root$target
done < $folder/bind
hostname $name
echo $name > $root/etc/hostname
cd $root
mkdir -p .old
pivot_root . .old
cd /
umount -l /.old
exec 0</dev/null
[ ! -x /etc/rc.bed ] || /etc/rc.bed
echo up >&9
exec 9>&-
while :; do sleep 86400 & wait $! || true; done   # Bash reaps whoever is adopted
"""

SSHD_CONFIG = """
Port 22
HostKey /etc/ssh/ssh_host_ed25519_key
PidFile /run/sshd.pid
UsePAM {pam}
PasswordAuthentication {password}
KbdInteractiveAuthentication {interactive}
PubkeyAuthentication {key}
AllowTcpForwarding {forwarding}
AllowStreamLocalForwarding {forwarding}
StrictModes yes
MaxSessions {sessions}
MaxStartups 100:30:200
PrintMotd no
UseDNS no
LogLevel VERBOSE
Subsystem sftp internal-sftp
"""


class BedError(RuntimeError):
    pass


class Impossible(BedError):
    """This machine cannot have a bed; the text says why."""


def _run(argv, **options):
    done = subprocess.run([str(a) for a in argv], capture_output=True, text=True, **options)
    if done.returncode != 0:
        raise BedError(f"{shlex.join(map(str, argv))}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def why_impossible() -> str:
    """Empty when a bed can be made here."""
    if os.geteuid() != 0:
        return "the test bed needs root (namespaces, overlay)"
    for program in ("unshare", "nsenter", "ip", "nft", "ss", "ssh", "ssh-keygen", "setpriv"):
        if shutil.which(program, path=PATH) is None:
            return f"the test bed needs the program {program}"
    if not pathlib.Path("/usr/sbin/sshd").exists():
        return "the test bed needs /usr/sbin/sshd"
    trial = subprocess.run(
        ["unshare", "--mount", "--net", "--pid", "--uts", "--ipc", "--fork", "--propagation", "private", "sh", "-ec",
         "mount -t tmpfs tmpfs /mnt; mkdir /mnt/u /mnt/w /mnt/m; "
         "mount -t overlay overlay -o lowerdir=/,upperdir=/mnt/u,workdir=/mnt/w /mnt/m; "
         "ip link add br-trial type bridge; ip link add veth-1 type veth peer name veth-2; nft add table inet trial"],
        capture_output=True, text=True, timeout=30)
    if trial.returncode != 0:
        return "the test bed cannot be made here: " + " ".join((trial.stderr or "unshare failed").split())
    return ""


def wait_until(predicate, timeout, what, every=0.02):
    """Waits for something that can only be looked at; returns what the predicate returned."""
    deadline = time.monotonic() + timeout
    while True:
        value = predicate()
        if value:
            return value
        if time.monotonic() > deadline:
            raise BedError(f"waited {timeout} s in vain for: {what}")
        time.sleep(every)


class Process:
    """One process of a host."""

    def __init__(self, pid, host_pid, argv, environment, name, uid, parent):
        self.pid, self.host_pid, self.argv, self.environment = pid, host_pid, argv, environment
        self.name, self.uid, self.parent = name, uid, parent

    def kill(self, number=signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def __repr__(self):
        return f"{self.host_pid} {self.name} {shlex.join(self.argv)[:160]}"


class Host:
    def __init__(self, bed, name):
        self.bed, self.name = bed, name
        self.addresses = dict(ADDRESSES[name])
        self.user, self.uid = USERS.get(name, ELSEWHERE)
        self.folder = bed.folder / name
        self.on = False
        self.pid = 0       # of its pid 1, seen from outside
        self._outer = None
        self._delays = {}  # network -> the relay process
        self._asleep = []

    # ---- running something there

    def _enter(self):
        if not self.on:
            raise BedError(f"{self.name} is powered off")
        return ["nsenter", "-t", str(self.pid), "-m", "-u", "-i", "-n", "-p", "-r", "-w", "--"]

    def argv_for(self, user, argv, env=None, cwd=None):
        user = user or self.user
        home = "/root" if user == "root" else f"/home/{user}"
        # Variables that a login would set; nothing of the test's own environment.
        environment = {"PATH": f"/opt/flotilla/bin:{PATH}" if self.name == "laptop" else PATH, "HOME": home, "USER": user,
                       "LOGNAME": user, "SHELL": "/bin/bash", "LANG": "C.UTF-8", "TERM": "dumb"} | (env or {})
        become = [] if user == "root" else [f"--reuid={user}", f"--regid={user}", "--init-groups"]
        # The signal of the parent's death: a test that gives up leaves nothing running there.
        return [*self._enter(), "env", "-i", *(f"{k}={v}" for k, v in environment.items()), "setpriv", *become, "--pdeathsig=KILL",
                "--", "sh", "-c", 'cd "$0" && exec "$@"', cwd or home, *map(str, argv)]

    def popen(self, argv, user=None, env=None, cwd=None, **options):
        return subprocess.Popen(self.argv_for(user, argv, env, cwd), **options)

    def as_user(self, argv, user=None, input=None, timeout=60, check=True, env=None, cwd=None):
        """Runs argv and waits. `check`: a code that is not 0 is an error that shows the output."""
        if isinstance(argv, str):
            argv = ["bash", "-c", argv]
        try:
            done = subprocess.run(self.argv_for(user, argv, env, cwd), input=input, timeout=timeout, text=True,
                                  stdin=subprocess.DEVNULL if input is None else None,
                                  stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        except subprocess.TimeoutExpired as over:
            raise BedError(f"{self.name}: {shlex.join(map(str, argv))} took longer than {timeout} s\n"
                           f"{(over.stdout or b'').decode(errors='replace')}{(over.stderr or b'').decode(errors='replace')}") from None
        if check and done.returncode != 0:
            raise BedError(f"{self.name}: {shlex.join(map(str, argv))}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def as_root(self, argv, **options):
        return self.as_user(argv, user="root", **options)

    def output(self, argv, **options):
        return self.as_user(argv, **options).stdout.strip()

    def write(self, path, text, mode=0o644, owner=None):
        self.as_root(["sh", "-c", 'mkdir -p "$(dirname "$0")" && cat > "$0" && chmod "$1" "$0"', path, f"{mode:o}"], input=text)
        if owner:
            self.as_root(["chown", f"{owner}:", path])

    def read(self, path):
        return self.as_root(["cat", path]).stdout

    # ---- its life

    def power_on(self):
        if self.on:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        up_read, up_write = os.pipe()
        log = open(self.folder.parent / f"{self.name}.log", "ab")
        # nsenter must be told to stay in the namespaces' own pid view: -p is the keeper's, the host's own is made inside.
        argv = ["nsenter", "-t", str(self.bed.keeper.pid_inside), "-m", "-n", "-p", "--", "bash", "-c",
                'exec 9>&"$0" && exec unshare --mount --uts --ipc --net --pid --fork --kill-child --propagation private bash -c "$@"',
                str(up_write), INIT, "init", self.name, self.bed.inside(self.name), self.bed.lower.get(self.name, "/"),
                self.bed.inside("home-" + HOME_OF[self.name])]
        self._outer = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=[up_write], start_new_session=True)
        log.close()
        os.close(up_write)
        with os.fdopen(up_read) as up:
            if up.readline() != "up\n":
                raise BedError(f"host {self.name} did not come up:\n{(self.folder.parent / f'{self.name}.log').read_text()[-2000:]}")
        # nsenter -> unshare -> pid 1
        unshare = _children(self._outer.pid)[0]
        self.pid = _children(unshare)[0]
        self.on = True
        self._in_net(["ip", "link", "set", "lo", "up"])
        for network, address in self.addresses.items():
            self._plug(network, address)
        if self.name in ("frontend", "gateway"):
            self._raise_firewall()
        if self.bed.ready:
            self._start_sshd()

    def _raise_firewall(self):
        subprocess.run(["nsenter", "-t", str(self.pid), "-n", "nft", "-f", "-"], input=FIREWALL, text=True, check=True)

    @contextlib.contextmanager
    def without_firewall(self):
        self._in_net(["nft", "delete", "table", "inet", "firewall"])
        try:
            yield
        finally:
            self._raise_firewall()

    @contextlib.contextmanager
    def closed_to(self, network):
        """Nobody there gets a new connection to this host, nor an answer; connections that are there go on."""
        rules = f'table inet closed {{ chain incoming {{ type filter hook input priority -10; iifname "{network}" ct state new drop; }}; }}'
        subprocess.run(["nsenter", "-t", str(self.pid), "-n", "nft", "-f", "-"], input=rules, text=True, check=True)
        try:
            yield
        finally:
            self._in_net(["nft", "delete", "table", "inet", "closed"])

    def power_off(self):
        """Pulls the plug: no process gets a word out, no packet is sent any more."""
        for network in self.addresses:
            self.bed.in_switch(["ip", "link", "set", self._port(network), "down"])
        self.on = False
        os.kill(self.pid, signal.SIGKILL)
        self._outer.wait(10)
        # Sockets with unsent data keep a network namespace for minutes; without its port it is nobody's neighbour.
        for network in self.addresses:
            try:
                self.bed.in_switch(["ip", "link", "del", self._port(network)])
            except BedError:
                if self.bed.has_port(self._port(network)):
                    raise
                # else the namespace was gone sooner, and the port with it

    def _port(self, network):
        return f"{self.name}-{network}"[:15]

    def _in_net(self, argv):
        return _run(["nsenter", "-t", str(self.pid), "-n", *argv])

    def _plug(self, network, address):
        self.bed.in_switch(["ip", "link", "add", self._port(network), "type", "veth", "peer", "name", network, "netns", str(self.pid)])
        self.bed.in_switch(["ip", "link", "set", self._port(network), "master", f"br-{network}", "up"])
        # A machine keeps its MAC when it is powered off and on: the neighbours remember it.
        mac = "02:00:" + ":".join(f"{int(part):02x}" for part in ADDRESSES[self.name][network].split("."))
        self._in_net(["ip", "link", "set", network, "address", mac])
        self._in_net(["ip", "address", "add", f"{address}/24", "dev", network])
        self._in_net(["ip", "link", "set", network, "up"])
        # Who just asked in vain for this address goes on believing for 3 s that nobody is there.
        for peer in self.bed.hosts.values():
            if self.bed.ready and peer.on and peer is not self and network in peer.addresses:
                peer._in_net(["ip", "neighbour", "flush", "dev", network])

    def fall_asleep(self):
        """Its processes stand still, and nothing comes or goes."""
        self.cut()
        self._asleep = self.processes()
        for process in self._asleep:
            process.kill(signal.SIGSTOP)

    def wake_up(self):
        if not self._asleep:
            return
        self.heal()
        for process in self._asleep:
            process.kill(signal.SIGCONT)
        self._asleep = []
        # Each nsenter has stopped itself with the program that it waits for.
        for waiting in _children(os.getpid()):
            os.kill(waiting, signal.SIGCONT)

    # ---- its network

    def cut(self, *networks):
        """The switch is off at its side: packets are lost and no connection is told, but this host sees that its cable is dead.
        Cut the other end's port for silence that nothing tells of."""
        for network in networks or self.addresses:
            self.bed.in_switch(["ip", "link", "set", self._port(network), "down"])

    def heal(self, *networks):
        for network in networks or self.addresses:
            self.bed.in_switch(["ip", "link", "set", self._port(network), "up"])

    def change_address(self, network, address):
        """Another place on the same network: what came from the old address is never answered again."""
        old = self.addresses[network]
        self._in_net(["ip", "address", "del", f"{old}/24", "dev", network])
        self._in_net(["ip", "address", "add", f"{address}/24", "dev", network])
        self.addresses[network] = address

    def reset_connections(self, port=22):
        """Ends the established connections to this port as a broken middle box does: the peer gets a reset."""
        before = self.established(port)
        subprocess.run(["nsenter", "-t", str(self.pid), "-n", "ss", "-K", "state", "established", "sport", "=", f":{port}"],
                       capture_output=True, check=False)
        wait_until(lambda: not set(before) & set(self.established(port)), 5, "the connections are gone")
        return len(before)

    def established(self, port=22):
        lines = self._in_net(["ss", "-Htn", "state", "established", "sport", "=", f":{port}"]).splitlines()
        return [line.split()[3] for line in lines if len(line.split()) >= 4]

    def heal_all(self):
        """Awake, cables in, no delay; addresses and power as they are."""
        if self.on:
            self.wake_up()
            self.heal()
            for network in tuple(self._delays):
                self.delay(network, 0)

    def restore_addresses(self):
        for network, address in ADDRESSES[self.name].items():
            if self.on and self.addresses[network] != address:
                self.change_address(network, address)

    def delay(self, network, milliseconds):
        """Every packet from and to this host on that network waits so long; 0 = no more."""
        if network in self._delays:
            relay = self._delays.pop(network)
            relay.stdin.close()
            relay.wait(10)
            self.bed.in_switch(["ip", "link", "del", f"{self.name}-slow"])
            self.bed.in_switch(["ip", "link", "set", self._port(network), "master", f"br-{network}"])
        if milliseconds == 0:
            return
        # port <- relay -> slow end, whose other end is in the switch in the port's place
        far = f"{self.name}-far"
        self.bed.in_switch(["ip", "link", "add", f"{self.name}-slow", "type", "veth", "peer", "name", far])
        self.bed.in_switch(["ip", "link", "set", self._port(network), "nomaster"])
        self.bed.in_switch(["ip", "link", "set", far, "master", f"br-{network}", "up"])
        self.bed.in_switch(["ip", "link", "set", f"{self.name}-slow", "up"])
        relay = subprocess.Popen(["nsenter", "-t", str(self.bed.keeper.pid_inside), "-n", sys.executable, str(HERE / "delay.py"),
                                  self._port(network), f"{self.name}-slow", str(milliseconds)],
                                 stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True)
        self._delays[network] = relay
        if relay.stdout.readline() != "up\n":
            raise BedError("the delay did not start")
        relay.stdout.close()
        # Segments and checksums must be whole when they come to the relay: also at the host's and the peers' ends.
        for host in self.bed.hosts.values():
            if host.on and network in host.addresses:
                _run(["nsenter", "-t", host.pid, "-n", sys.executable, HERE / "delay.py", "--offload-off", network])

    def limit_rate(self, network, megabits):
        """Both ways' narrow place is what reaches this host."""
        self.bed.in_switch(["tc", "qdisc", "replace", "dev", self._port(network), "root", "tbf", "rate", f"{megabits}mbit",
                            "burst", "64kb", "latency", "100ms"])

    def unlimit_rate(self, network):
        self.bed.in_switch(["tc", "qdisc", "del", "dev", self._port(network), "root"])

    def listening(self):
        """[(address, port)] of what listens for TCP here."""
        lines = self._in_net(["ss", "-Hltn"]).splitlines()
        found = set()
        for line in lines:
            address, port = line.split()[3].rsplit(":", 1)
            found.add((address.removeprefix("[::ffff:").rstrip("]") if "::ffff:" in address else address, int(port)))
        return sorted(found)

    def can_reach(self, address, port, timeout=1.5):
        done = self.as_user(["timeout", str(timeout), "bash", "-c", f"exec 3<>/dev/tcp/{address}/{port}"], check=False)
        return done.returncode == 0

    # ---- sshd

    def configure_sshd(self, authentication="key", forwarding=True, sessions=10, more=""):
        """authentication: "key", "password", "interactive" (keyboard-interactive through PAM). `more`: lines for the end of its
        file. Running connections stay."""
        self.write("/etc/ssh/sshd_config", SSHD_CONFIG.format(
            pam="yes" if authentication == "interactive" else "no",
            password="yes" if authentication == "password" else "no",
            interactive="yes" if authentication == "interactive" else "no",
            key="yes" if authentication == "key" else "no",
            forwarding="yes" if forwarding else "no", sessions=sessions) + more)
        self._start_sshd()

    def _start_sshd(self):
        self.as_root("if [ -e /run/sshd.pid ]; then kill $(cat /run/sshd.pid); while kill -0 $(cat /run/sshd.pid); do sleep 0.01; done; "
                     "rm -f /run/sshd.pid; fi 2>/dev/null; /usr/sbin/sshd -E /var/log/sshd.log", timeout=10)
        wait_until(lambda: any(port == 22 for _, port in self.listening()), 10, f"sshd of {self.name} listens")

    def logins(self):
        """How often somebody authenticated."""
        return len(re.findall(r"Accepted \S+ for ", self.read("/var/log/sshd.log")))

    def kill_sshd_sessions(self):
        """Kills sshd's processes of the open connections, not the listener."""
        killed = [p for p in self.processes() if p.name == "sshd" and p.argv and p.argv[0].startswith("sshd: ") and "[listener]" not in p.argv[0]]
        for process in killed:
            process.kill()
        return len(killed)

    # ---- its processes

    def processes(self):
        """Every process of the host but its pid 1."""
        if not self.on:
            return []
        wanted = os.readlink(f"/proc/{self.pid}/ns/pid")
        found = []
        for entry in os.listdir("/proc"):
            if not entry.isdigit() or int(entry) == self.pid:
                continue
            with contextlib.suppress(OSError, IndexError, ValueError):
                if os.readlink(f"/proc/{entry}/ns/pid") != wanted:
                    continue
                status = dict(line.split(":\t", 1) for line in pathlib.Path(f"/proc/{entry}/status").read_text().splitlines() if ":\t" in line)
                if status["State"].startswith("Z"):
                    continue
                argv = pathlib.Path(f"/proc/{entry}/cmdline").read_bytes().rstrip(b"\0").decode(errors="replace").split("\0")
                environment = pathlib.Path(f"/proc/{entry}/environ").read_bytes().decode(errors="replace")
                environment = dict(part.split("=", 1) for part in environment.split("\0") if "=" in part)
                found.append(Process(int(entry), int(status["NSpid"].split()[-1]), argv, environment, status["Name"],
                                     int(status["Uid"].split()[0]), int(status["PPid"])))
        return found

    def processes_of_flotilla(self, instance=None):
        """Ours, and what a job of ours started: by their environment, by their name, and runaways by what they were told;
        and every ssh program: only ours run one while a test of ours runs."""
        return [p for p in self.processes()
                if (p.environment.get("FLOTILLA_INSTANCE") and instance in (None, p.environment["FLOTILLA_INSTANCE"]))
                or p.name.startswith("flotilla") or os.path.basename(p.argv[0] if p.argv else "").startswith("flotilla")
                or re.fullmatch(RUNAWAY, p.argv[-1]) or p.name == "ssh"]

    def runaways(self):
        return [p for p in self.processes() if re.fullmatch(RUNAWAY, p.argv[-1])]

    def tcp_bytes(self, *networks):
        """What has come from these networks, by default all."""
        text = pathlib.Path(f"/proc/{self.pid}/net/dev").read_text()
        counts = {name.strip(): int(rest.split()[0]) for name, colon, rest in (line.partition(":") for line in text.splitlines()) if colon}
        return sum(counts[network] for network in networks or self.addresses)


def _children(pid):
    found = []
    for task in os.listdir(f"/proc/{pid}/task"):
        found += [int(c) for c in pathlib.Path(f"/proc/{pid}/task/{task}/children").read_text().split()]
    return found


class _Keeper:
    """Pid 1 of the outer pid namespace; it waits for the end of its stdin."""

    def __init__(self, place):
        self.process = subprocess.Popen(
            ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--propagation", "private", "sh", "-c",
             'mount -t tmpfs -o mode=755,size=8g tmpfs "$0" && mount -t proc proc /proc && echo up && read -r end; exit 0', str(place)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True)
        if self.process.stdout.readline() != "up\n":
            raise BedError("the keeper of the bed did not come up")
        self.pid_inside = _children(self.process.pid)[0]

    def end(self):
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(10)
        self.process.stdout.close()


def programs():
    """The folder with `flotilla` and `flotilla-agent` of the build that is tested, or None."""
    wanted = os.environ.get("FLOTILLA_BUILD_DIR")
    for build in [pathlib.Path(wanted)] if wanted else [ROOT / "build" / "release"]:
        if (build / "bin" / "flotilla").exists() and (build / "bin" / "flotilla-agent").exists():
            return build / "bin"
        if (build / "client" / "cli" / "flotilla").exists() and (build / "proto" / "flotilla-agent").exists():
            return build
    return None


def program(name):
    built = programs()
    return next(p for p in (built / name, built / "client" / "cli" / name, built / "proto" / name) if p.exists())


class Bed:
    """`with Bed() as bed:` makes the hosts; the end takes everything away, also when the body failed."""

    def __init__(self, hosts=("laptop", "frontend", "node1", "node2"), lower=None, binds=None, python=True):
        self.names = tuple(hosts)
        self.lower = lower or {}      # host -> another root directory
        self.binds = binds or {}      # host -> [(directory of this machine, where it is there)]
        self.python = python
        self.ready = False
        self.hosts: dict[str, Host] = {}

    def __enter__(self):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="flotilla-bed-"))
        try:
            self._make()
        except BaseException:
            self.end()
            raise
        return self

    def __exit__(self, *_):
        self.end()

    def __getattr__(self, name):
        try:
            return self.__dict__["hosts"][name]
        except KeyError:
            raise AttributeError(name) from None

    # Disks are on the keeper's own tmpfs, laid over this folder's `disks`, which outside is empty.
    def inside(self, name):
        return str(self.folder / "disks" / name)

    def in_switch(self, argv):
        return _run(["nsenter", "-t", str(self.keeper.pid_inside), "-n", *argv])

    def has_port(self, port):
        return subprocess.run(["nsenter", "-t", str(self.keeper.pid_inside), "-n", "ip", "link", "show", port],
                              capture_output=True).returncode == 0

    def _make(self):
        (self.folder / "disks").mkdir()
        os.chmod(self.folder, 0o755)
        self.keeper = _Keeper(self.folder / "disks")
        for network in NETWORKS:
            if any(network in ADDRESSES[name] for name in self.names):
                self.in_switch(["ip", "link", "add", f"br-{network}", "type", "bridge"])
                self.in_switch(["ip", "link", "set", f"br-{network}", "up"])
        self.in_switch(["ip", "link", "set", "lo", "up"])
        outside = f"/proc/{self.keeper.pid_inside}/root"
        for home in {HOME_OF[name] for name in self.names}:
            os.makedirs(outside + self.inside("home-" + home))
        for name in self.names:
            os.makedirs(outside + self.inside(name))
            binds = self._binds(name)
            pathlib.Path(outside + self.inside(name) + "/bind").write_text("".join(f"{s} {t}\n" for s, t in binds))
            self.hosts[name] = Host(self, name)
        self._for_each(lambda host: (host.power_on(), self._furnish(host)))
        self._keys()
        self.ready = True

    def _for_each(self, action):
        with concurrent.futures.ThreadPoolExecutor(len(self.hosts)) as pool:
            for done in [pool.submit(action, host) for host in self.hosts.values()]:
                done.result()

    def _binds(self, name):
        if name != "laptop":
            return self.binds.get(name, [])  # nothing of ours is there: what is needed must be brought
        binds = []
        built = programs()
        if built:
            copy = self.folder / "programs"
            copy.mkdir()
            for name in ("flotilla", "flotilla-agent"):
                shutil.copy2(program(name), copy / name)
            binds.append((copy, "/opt/flotilla/bin"))
        if self.python:
            binds.append((ROOT, ROOT))
            base = pathlib.Path(sys.base_prefix).resolve()
            if str(base).startswith(("/root/", "/home/", "/tmp/")):
                binds.append((base, base))
        return binds

    def _furnish(self, host):
        names = [n for n in self.names if set(self.hosts[n].addresses) & set(host.addresses)]
        hosts_file = "127.0.0.1 localhost\n"
        for name in names:
            shared = [n for n in NETWORKS if n in host.addresses and n in self.hosts[name].addresses]
            # On the cluster's side hosts know each other by their inner addresses.
            hosts_file += f"{self.hosts[name].addresses[shared[-1]]} {name}\n"
        user, uid = host.user, host.uid
        home = f"/home/{user}"
        host.as_root(["bash", "-c", f"""
set -eu
cat > /etc/hosts
: > /etc/resolv.conf
groupadd -g {uid} {user}
useradd -u {uid} -g {uid} -s /bin/bash -M -d {home} {user}
echo '{user}:{PASSWORD}' | chpasswd -c SHA256 -s 1000
mkdir -p {home}/.ssh
chmod 700 {home} {home}/.ssh
chown -R {user}: {home}
rm -f /etc/ssh/ssh_host_*
ssh-keygen -q -t ed25519 -N '' -f /etc/ssh/ssh_host_ed25519_key
printf 'auth required pam_unix.so\\naccount required pam_permit.so\\nsession required pam_permit.so\\n' > /etc/pam.d/sshd
: > /var/log/sshd.log
"""], input=hosts_file)
        host.configure_sshd()

    def _keys(self):
        public = {}
        for home in {HOME_OF[name] for name in self.names}:
            host = next(self.hosts[n] for n in self.names if HOME_OF[n] == home)
            host.as_user("ssh-keygen -q -t ed25519 -N '' -f ~/.ssh/id_ed25519")
            public[home] = host.as_user("cat ~/.ssh/id_ed25519.pub").stdout
        for home in public:
            if home == "laptop":
                continue
            host = next(self.hosts[n] for n in self.names if HOME_OF[n] == home)
            # The cluster's own key opens its nodes; the gateway's key opens nothing: no key lies there.
            allowed = public.get("laptop", "") + (public[home] if home == "cluster" else "")
            host.write(f"/home/{host.user}/.ssh/authorized_keys", allowed, 0o600, host.user)
        known = {n: " ".join(self.hosts[n].read("/etc/ssh/ssh_host_ed25519_key.pub").split()[:2]) for n in self.names}
        for name in self.names:
            host = self.hosts[name]
            if name in ("node1", "node2"):
                continue              # they share the front end's home
            lines = "".join(f"{n},{','.join(self.hosts[n].addresses.values())} {known[n]}\n" for n in self.names if n != name or name != "laptop")
            host.write(f"/home/{host.user}/.ssh/known_hosts", lines, 0o600, host.user)
        if "laptop" in self.names:
            self.hosts["laptop"].write("/home/alice/.ssh/config", "Host frontend gateway inner node1 node2\n  User asmith\n", 0o600, "alice")

    def processes_of_flotilla(self, instance=None):
        return [f"{h.name}: {p}" for h in self.hosts.values() for p in h.processes_of_flotilla(instance)]

    def end(self):
        if getattr(self, "keeper", None):
            for host in self.hosts.values():
                for relay in host._delays.values():
                    relay.stdin.close()
                    relay.wait(10)
            self.keeper.end()
            for host in self.hosts.values():
                if host._outer:
                    host._outer.wait(10)
        shutil.rmtree(self.folder, ignore_errors=True)


class Flotilla:
    """The command line on the laptop, as its user types it."""

    def __init__(self, host, env=None):
        self.host = host
        self.env = env or {}
        self.runaways = {}        # pilot -> the number of each node's

    def run(self, *argv, timeout=60, check=True, input=None):
        return self.host.as_user(["flotilla", *argv], timeout=timeout, check=check, input=input, env=self.env)

    def popen(self, *argv, **options):
        return self.host.popen(["flotilla", *argv], env=self.env, **options)

    def terminal(self, *argv, **options):
        return Terminal(self.host, ["flotilla", *argv], env=self.env, **options)

    def output(self, *argv, **options):
        return self.run(*argv, **options).stdout.strip()

    def json(self, *argv, **options):
        return json.loads(self.run(*argv, "--json", **options).stdout)

    def test_resource(self, name, *options, timeout=90):
        """Its steps by their names, and the exit code."""
        done = self.run("resource", "test", name, "--json", *options, check=False, timeout=timeout)
        return {step["name"]: step for step in json.loads(done.stdout)}, done.returncode

    def python(self, code, check=True, timeout=120):
        """Runs a script with the Python client on the laptop, to its end."""
        return self.host.as_user(self._python(code), env=self._python_env(), timeout=timeout, check=check)

    def python_live(self, code):
        """The same while it runs: `tell` and `line` speak with it over its stdin and stdout."""
        return Script(self.host.popen(self._python(code), env=self._python_env(), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                      stderr=subprocess.PIPE, text=True))

    def _python(self, code):
        return [sys.executable, "-u", "-c", PRELUDE.format(here=str(HERE)) + textwrap.dedent(code)]

    def _python_env(self):
        return self.env | {"FLOTILLA_PROGRAM": "/opt/flotilla/bin/flotilla"}

    def instance(self):
        return self.json("daemon", "status")["instance"]

    def add_cluster(self, name="hpc1", *options):
        return self.run("resource", "add", name, "--location", "asmith@frontend", *options)

    def start_pilot(self, resource, *options, timeout=60, runaways=True):
        """Its id, when it runs. `runaways`: each of its nodes, and this machine's pilot, get a job that tries to get away."""
        text = self.run("pilot", "start", resource, "--json", *options, timeout=timeout).stdout
        found = json.loads(text)
        id = (found[0] if isinstance(found, list) else found)["id"]
        if runaways:
            self.start_runaways(id)
        return id

    def start_runaways(self, pilot):
        pilots = {pilot}
        if not self.runaways:
            pilots |= {p["id"] for p in self.json("pilot", "list") if p["spec"]["resource"] == "local"}
        new = {p: [next(NUMBERS) for _ in self.pilot(p)["nodes"]] for p in sorted(pilots)}
        self.runaways |= new
        self.python(f"JOBS, SHELL = {new!r}, {RUNAWAY_JOB!r}\n" + START_RUNAWAYS)
        self.wait_runaways(*new)

    def wait_runaways(self, *pilots):
        """Those of these pilots run; without an argument, all."""
        wanted = {f"{number}.47110{kind}" for p in pilots or self.runaways for number in self.runaways[p] for kind in range(5)}
        wait_until(lambda: wanted <= {p.argv[-1] for h in self.host.bed.hosts.values() for p in h.runaways()}, 10, "the runaways run")

    def pilot(self, id):
        found = self.json("pilot", "show", str(id))
        return found[0] if isinstance(found, list) else found

    def job(self, id):
        found = self.json("job", "show", str(id))
        return found[0] if isinstance(found, list) else found

    def wait_hub(self, name, state, timeout=60):
        return wait_until(lambda: any(r["hub_state"] == state for r in self.json("resource", "list") if r["spec"]["name"] == name), timeout,
                          f"the hub of {name} is {state}", every=0.1)

    def submit(self, *argv):
        return int(self.output("submit", *argv).split()[-1].rstrip("."))

    def wait_pilot(self, id, states, timeout=15):
        states = (states,) if isinstance(states, str) else states
        return wait_until(lambda: (p := self.pilot(id))["state"] in states and p, timeout, f"pilot {id} is {' or '.join(states)}", every=0.1)

    def wait_job(self, id, states, timeout=15):
        states = (states,) if isinstance(states, str) else states
        return wait_until(lambda: (j := self.job(id))["state"] in states and j, timeout, f"job {id} is {' or '.join(states)}", every=0.1)


# What a runaway's `sleep` is told: a number of its own, and which kind it is.
RUNAWAY = r"\d+\.47110\d"
NUMBERS = itertools.count(1_000_000)
RUNAWAY_JOB = """
setsid sleep $0.471101 &
(sleep $0.471102 &)
(setsid sh -c 'setsid sleep $0.471103 &' $0 &)
setsid env -i /usr/bin/sleep $0.471104 < /dev/null > /dev/null 2>&1 &
exec sleep $0.471100
"""
# Jobs without slots come to a pilot's first node; to the others, beside a job that fills its node.
START_RUNAWAYS = """
from flotilla.v1 import client_pb2, types_pb2
with flotilla.Daemon() as daemon:
    def submit(number, **where):
        spec = types_pb2.JobSpec(name="runaways", command=types_pb2.CommandSpec(argv=["sh", "-c", SHELL, str(number)]), **where)
        return daemon.job(daemon._session.call("Submit", client_pb2.SubmitRequest(specs=[spec])).ids[0])
    for pilot, numbers in JOBS.items():
        if len(numbers) == 1:
            submit(numbers[0], pilot=pilot, no_slots=True).wait_running(20)
            continue
        slots = daemon.pilot(pilot).info().nodes[0].slots
        fillers = [daemon.submit(["sleep", "600"], pilot=pilot, processes=slots) for _ in numbers]
        for number, filler in zip(numbers, fillers):
            filler.wait_running(20)
            submit(number, beside_job=filler.id).wait_running(20)
        for filler in fillers:
            filler.cancel()
            filler.wait(20)
"""

PRELUDE = """
import os, sys, time, hashlib
import flotilla
from flotilla import worker as worker_sdk
WORKER_FILES = [{here!r} + "/bed_worker.py", worker_sdk.source_file()]
def start_code(daemon, **more):
    worker = daemon.start_worker("./bed_worker.py", files=WORKER_FILES, **more)
    return worker, flotilla.RemoteCode(worker)
"""


class Script:
    def __init__(self, process):
        self.process = process
        self._said = b""    # beyond the last line that was asked for: nothing waits in a stream of Python's, where select does not see it

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            with contextlib.suppress(OSError):
                stream.close()

    def line(self, timeout=30):
        """The next line that it prints."""
        while b"\n" not in self._said:
            ready, _, _ = select.select([self.process.stdout], [], [], timeout)
            if not ready:
                raise BedError(f"the script printed nothing for {timeout} s")
            more = os.read(self.process.stdout.fileno(), 65536)
            if not more:
                raise BedError(f"the script ended with {self.process.wait()}:\n{self.process.stderr.read()}")
            self._said += more
        text, _, self._said = self._said.partition(b"\n")
        return text.decode()

    def tell(self, text):
        self.process.stdin.write(text + "\n")
        self.process.stdin.flush()

    def end(self, timeout=30):
        code = self.process.wait(timeout)
        if code:
            raise BedError(f"the script ended with {code}:\n{self.process.stderr.read()}")


class Terminal:
    """A program on a terminal of its own: what it shows, and what somebody types there."""

    def __init__(self, host, argv, env=None, rows=30, columns=100):
        self._end, child = pty.openpty()
        self.shown, self._seen = "", 0
        self.size(rows, columns)
        self.process = host.popen(["setsid", "--ctty", "--wait", *argv], env={"TERM": "xterm"} | (env or {}), stdin=child, stdout=child,
                                  stderr=child)
        os.close(child)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        os.close(self._end)

    def size(self, rows, columns):
        fcntl.ioctl(self._end, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, text):
        os.write(self._end, text.encode())

    def until(self, pattern, timeout=30):
        """Waits until it has shown this since the last time, and returns what it showed up to there."""
        begin = self._seen
        found = self._wait(lambda: re.compile(pattern).search(self.shown, begin), timeout, f"{pattern!r} is shown")
        self._seen = found.end()
        return self.shown[begin:self._seen]

    def wait(self, timeout=30):
        """Its exit code."""
        self._wait(lambda: self.process.poll() is not None, timeout, "it ends")
        return self.process.returncode

    def _wait(self, predicate, timeout, what):
        def look():
            value = predicate()
            with contextlib.suppress(OSError):  # nobody has the other end any more
                while select.select([self._end], [], [], 0)[0]:
                    self.shown += os.read(self._end, 65536).decode(errors="replace")
            return value

        try:
            return wait_until(look, timeout, what)
        except BedError as error:
            raise BedError(f"{error}; the terminal shows {self.shown!r}") from None
