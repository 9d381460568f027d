"""The examples in README.md and docs/ run, and print what they say they print.

A fenced block whose info string has the word `run` is run, in the order of the page, all blocks of a page in one folder
and with one daemon; `run-bed` needs other machines and runs on the test bed's laptop, where hpc1.example.org and
desk.example.org are the front end. `# -> text` at the end of a line: a line of the block's output has that text, and the
texts come in that order. `file NAME`: the block is written to NAME for the blocks after it; C++ is compiled (`my_worker.cpp`
becomes `my_worker`).
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

BLOCK = re.compile(r"^```(bash|python|cpp) (run|run-bed|file)(?: (\S+))?\n(.*?)^```$", re.M | re.S)
MARK = "==== block"


def pages():
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        blocks = BLOCK.findall(page.read_text())
        if blocks:
            yield pytest.param(blocks, id=page.name)


def write_file(name, language, text):
    if language != "cpp":
        return f"cat > {name} <<'END_OF_BLOCK'\n{text}END_OF_BLOCK\nchmod +x {name}"
    place = beds.programs().parent / "client" / "lib"
    library = f"-L {place} -Wl,-rpath,{place} -lflotilla_client" if "flotilla/client.hpp" in text else ""
    return (f"cat > {name} <<'END_OF_BLOCK'\n{text}END_OF_BLOCK\n"
            f"g++ -std=c++20 -Wall -I {ROOT}/client/worker/include -I {ROOT}/client/include {name} -o {name.removesuffix('.cpp')} {library}")


def script_of(blocks):
    """One Bash script, and for each block the texts that it must print."""
    lines = ["set -euo pipefail"]
    wanted = []
    for number, (language, kind, name, text) in enumerate(blocks):
        lines.append(f"echo '{MARK} {number}'")
        wanted.append(re.findall(r"# -> (.+)$", text, re.M))
        if kind == "file":
            lines.append(write_file(name, language, text))
            continue
        text = re.sub(r"\s*# -> .+$", "", text, flags=re.M)
        if language == "bash":
            lines.append(text)
        else:
            lines.append(f"cat > block{number}.py <<'END_OF_BLOCK'\n{text}END_OF_BLOCK\n{sys.executable} block{number}.py")
    return "\n".join(lines) + "\n", wanted


def check(done, wanted):
    said = done.stdout + done.stderr
    assert done.returncode == 0, said[-4000:]
    printed = re.split(rf"^{MARK} \d+\n", done.stdout, flags=re.M)[1:]
    assert len(printed) == len(wanted)
    for output, texts in zip(printed, wanted):
        at = 0
        for text in texts:
            # Words of their own: "3" is not in "13".
            found = re.compile(rf"(?<!\w){re.escape(text)}(?!\w)").search(output, at)
            assert found, f"'{text}' was not printed after the first {at} characters of:\n{output}\nAll:\n{said[-4000:]}"
            at = found.end()


@pytest.mark.parametrize("blocks", list(pages()))
def test_the_examples_of_a_page(blocks, tmp_path):
    if beds.programs() is None:
        pytest.skip("the programs are not built; run scripts/build")
    script, wanted = script_of(blocks)
    if any(kind == "run-bed" for _, kind, _, _ in blocks):
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
                ended = flotilla.run("daemon", "stop", "--all", check=False)
                left = bed.processes_of_flotilla()
            assert ended.returncode == 0, ended.stderr
            assert left == []
    else:
        page = tmp_path / "page"
        page.mkdir()
        programs = tmp_path / "bin"
        programs.mkdir()
        for name in ("flotilla", "flotilla-agent"):
            shutil.copy2(beds.program(name), programs / name)    # beside each other, as they are installed
        environment = {"PATH": f"{programs}:{beds.PATH}", "HOME": str(tmp_path), "NO_COLOR": "1", "LANG": "C.UTF-8",
                       "FLOTILLA_STATE_DIR": str(tmp_path / "state"), "FLOTILLA_RUNTIME_DIR": str(tmp_path / "run"),
                       "FLOTILLA_CONFIG": str(tmp_path / "config.toml")}
        (tmp_path / "config.toml").touch()
        try:
            check(subprocess.run(["bash", "-c", script], cwd=page, env=environment, capture_output=True, text=True, timeout=240,
                                 stdin=subprocess.DEVNULL), wanted)
        finally:
            ended = subprocess.run([programs / "flotilla", "daemon", "stop", "--all"], env=environment, capture_output=True, text=True, timeout=60)
            left = subprocess.run(["pgrep", "-af", str(programs)], capture_output=True, text=True).stdout
        assert ended.returncode == 0, ended.stderr
        assert left == ""


def start_with(configuration, folder):
    """`flotilla daemon start` with that configuration file; the daemon is ended again."""
    (folder / "config.toml").write_text(configuration)
    environment = {"PATH": beds.PATH, "HOME": str(folder), "FLOTILLA_STATE_DIR": str(folder / "state"),
                   "FLOTILLA_RUNTIME_DIR": str(folder / "run"), "FLOTILLA_CONFIG": str(folder / "config.toml")}
    program = beds.program("flotilla")
    try:
        return subprocess.run([program, "daemon", "start"], env=environment, capture_output=True, text=True, timeout=60)
    finally:
        subprocess.run([program, "daemon", "stop", "--all"], env=environment, capture_output=True, timeout=60)


def test_the_configuration_page_is_whole_and_its_example_is_taken(tmp_path):
    page = (ROOT / "docs/configuration.md").read_text()
    documented = sorted(re.findall(r"^\| `\[(\w+)\]` `(\w+)`", page, re.M))
    sections = sorted({section for section, _ in documented})
    refused = start_with("".join(f"[{section}]\nnokey = 1\n" for section in sections), tmp_path)
    assert refused.returncode != 0
    known = [(section, key) for section, keys in re.findall(r"\[(\w+)\] has no key 'nokey'; it has: ([\w, ]+)", refused.stderr)
             for key in keys.split(", ")]
    assert sorted(known) == documented
    unknown = start_with("[nosection]\n", tmp_path)
    assert unknown.returncode != 0
    for section in sections:
        assert section in unknown.stderr
    taken = start_with(re.search(r"^```toml\n(.*?)^```$", page, re.M | re.S)[1], tmp_path)
    assert taken.returncode == 0, taken.stderr
