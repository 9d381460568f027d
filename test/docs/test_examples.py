"""The examples in README.md and docs/ run, and print what they say they print.

A fenced block whose info string has the word `run` is run, in the order of the page, all blocks of a page in one folder
and with one daemon; `run-bed` needs other machines and runs on the test bed's laptop, where hpc1.example.org and
desk.example.org are the front end. `# -> text` at the end of a line: the page's output has that text.
"""
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "test" / "bed"))
import bed as beds  # noqa: E402

BLOCK = re.compile(r"^```(bash|python) (run|run-bed)\n(.*?)^```$", re.M | re.S)


def pages():
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        blocks = BLOCK.findall(page.read_text())
        if blocks:
            yield pytest.param(blocks, id=page.name)


def script_of(blocks):
    """One Bash script, and the texts that it must print."""
    lines = ["set -euo pipefail"]
    wanted = []
    for number, (language, _, text) in enumerate(blocks):
        wanted += re.findall(r"# -> (.+)$", text, re.M)
        text = re.sub(r"\s*# -> .+$", "", text, flags=re.M)
        if language == "bash":
            lines.append(text)
        else:
            lines.append(f"cat > block{number}.py <<'END_OF_BLOCK'\n{text}END_OF_BLOCK\n{sys.executable} block{number}.py")
    return "\n".join(lines) + "\n", wanted


def check(done, wanted):
    said = done.stdout + done.stderr
    assert done.returncode == 0, said[-4000:]
    at = 0
    for text in wanted:
        found = done.stdout.find(text, at)
        assert found >= 0, f"'{text}' was not printed after the first {at} characters of:\n{said[-4000:]}"
        at = found


@pytest.mark.parametrize("blocks", pages())
def test_the_examples_of_a_page(blocks, tmp_path):
    if beds.programs() is None:
        pytest.skip("the programs are not built; run scripts/build")
    script, wanted = script_of(blocks)
    if any(kind == "run-bed" for _, kind, _ in blocks):
        reason = beds.why_impossible()
        if reason:
            pytest.skip(reason)
        with beds.Bed() as bed:
            laptop = bed.laptop
            laptop.as_root("sed -i 's/ frontend$/ frontend hpc1.example.org desk.example.org/' /etc/hosts")
            flotilla = beds.Flotilla(laptop)
            laptop.write("/home/alice/page/script", script, owner="alice")
            laptop.as_root(["chown", "alice:", "/home/alice/page"])
            try:
                check(laptop.as_user(["bash", "script"], cwd="/home/alice/page", timeout=240, check=False,
                                     env={"FLOTILLA_PROGRAM": "/opt/flotilla/bin/flotilla", "NO_COLOR": "1"}), wanted)
            finally:
                flotilla.run("daemon", "stop", "--all", check=False)
                beds.wait_until(lambda: not bed.processes_of_flotilla(), 15, "nothing of ours is left on any host")
    else:
        page = tmp_path / "page"
        page.mkdir()
        programs = tmp_path / "bin"
        programs.mkdir()
        for name in ("flotilla", "flotilla-agent"):
            shutil.copy2(beds.program(name), programs / name)    # beside each other, as they are installed
        environment = {"PATH": f"{programs}:{beds.PATH}", "HOME": str(tmp_path), "NO_COLOR": "1", "LANG": "C.UTF-8",
                       "FLOTILLA_STATE_DIR": str(tmp_path / "state"), "FLOTILLA_CONFIG": str(tmp_path / "config.toml")}
        try:
            check(subprocess.run(["bash", "-c", script], cwd=page, env=environment, capture_output=True, text=True, timeout=240,
                                 stdin=subprocess.DEVNULL), wanted)
        finally:
            subprocess.run([programs / "flotilla", "daemon", "stop", "--all"], env=environment, capture_output=True, timeout=60)
