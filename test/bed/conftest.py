"""Fixtures of the tests on the test bed. One bed for a test file, a fresh daemon state for each test."""
import os
import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import bed as beds  # noqa: E402

_reason = None


def reason():
    global _reason
    if _reason is None:
        _reason = beds.why_impossible()
    return _reason


def pytest_collection_modifyitems(items):
    for item in items:
        item.add_marker(pytest.mark.bed)


@pytest.fixture(scope="module")
def bed(request):
    if reason():
        pytest.skip(reason())
    hosts = getattr(request.module, "HOSTS", ("laptop", "frontend", "node1", "node2"))
    with beds.Bed(hosts=hosts, binds=getattr(request.module, "BINDS", {})) as made:
        yield made


@pytest.fixture
def flotilla(bed, request):
    """The command line on the laptop. Afterwards everything is ended, and nothing of ours may be left on any host."""
    if beds.programs() is None:
        pytest.skip("the programs are not built; run scripts/build")
    name = request.node.name.translate({ord(c): "-" for c in "[]/ "})
    state = f"/home/alice/state/{name}"
    program = beds.Flotilla(bed.laptop, env={"FLOTILLA_STATE_DIR": state, "NO_COLOR": "1"})
    yield program
    for host in bed.hosts.values():
        host.heal_all()
    ended = program.run("daemon", "stop", "--all", timeout=60, check=False)
    try:
        beds.wait_until(lambda: not bed.processes_of_flotilla(), 15, "nothing of ours is left on any host")
    except beds.BedError:
        left = bed.processes_of_flotilla()
        for host in bed.hosts.values():
            for process in host.processes_of_flotilla():
                process.kill()
        pytest.fail(f"left running after `flotilla daemon stop --all` (exit code {ended.returncode}):\n" + "\n".join(left)
                    + f"\n{ended.stdout}{ended.stderr}")
    finally:
        for host in bed.hosts.values():
            host.restore_addresses()
    # A node that lost its power may have pilots for all that a hub knows.
    assert ended.returncode == 0 or "does not reach" in ended.stderr, f"{ended.stdout}{ended.stderr}"


@pytest.hookimpl(tryfirst=True, hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """A failed test shows the logs of the daemon, hubs and pilots."""
    report = (yield).get_result()
    if report.when == "call" and report.failed and "flotilla" in item.funcargs and not os.environ.get("FLOTILLA_BED_QUIET"):
        made = item.funcargs["bed"]
        seen = set()
        for host in made.hosts.values():
            if host.on and beds.HOME_OF[host.name] not in seen:
                seen.add(beds.HOME_OF[host.name])
                # Those of this test: written since it began.
                logs = host.as_root(f"find /home /tmp /dev/shm -name '*.log' -newermt @{call.start:.0f} | sort -u | "
                                    "while read -r log; do echo \"---- $log\"; tail -n 25 \"$log\"; done", check=False)
                if logs.stdout:
                    report.sections.append((f"logs on {host.name}", logs.stdout[-6000:]))
