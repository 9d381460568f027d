"""The rules of the source tree that no compiler checks. Called by scripts/check.

check.py [--junit FILE]
"""
import os
import pathlib
import re
import shutil
import subprocess
import sys
import xml.sax.saxutils as sax

root = pathlib.Path(__file__).resolve().parent.parent

# A core decides: no gRPC, Asio, threads, clocks, file system, sockets in it. Time and data come in.
impure = re.compile(
    r'^\s*#\s*include\s*[<"]('
    r"grpc|boost/asio|boost/beast|thread>|mutex>|shared_mutex>|condition_variable>|future>|semaphore>|latch>|barrier>|stop_token>"
    r"|atomic>|filesystem>|fstream>|cstdio>|stdio\.h>|iostream>|sys/|unistd\.h>|fcntl\.h>|poll\.h>|netinet/|arpa/|signal\.h>|csignal>"
    r"|pthread\.h>|sqlite3|libssh/|openssl/|spdlog/|random>|ctime>|time\.h>|proto/link/|proto/base/log|proto/base/random|proto/base/unique_fd"
    r"|.*\.grpc\.pb\.h)")
impure_words = re.compile(
    r"\b(std::chrono::(system_clock|steady_clock|high_resolution_clock)::now|std::this_thread|std::thread|clock_gettime|gettimeofday|"
    r"getenv|std::random_device|std::filesystem|std::ofstream|std::ifstream|std::cout|std::cerr)\b")

# The four parts share proto/ only. (client/cli is the program `flotilla`, and starts the daemon's library by
# proto/base/programs.hpp alone.)
parts = ["daemon", "hub", "pilot", "client"]

sources = {".cpp", ".hpp", ".h", ".c", ".cc"}


def tracked():
    listed = subprocess.run(["git", "-C", root, "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
                            capture_output=True, check=True).stdout
    return [pathlib.Path(name) for name in listed.decode().split("\0") if name and (root / name).is_file()]


def cores_of(files):
    """Every folder `core` of the parts."""
    return sorted({"/".join(file.parts[:at + 1]) for file in files if file.parts[0] in parts
                   for at, name in enumerate(file.parts[:-1]) if name == "core"})


def without_comments(text):
    text = re.sub(r"/\*.*?\*/", lambda m: "\n" * m[0].count("\n"), text, flags=re.S)
    return re.sub(r"//[^\n]*", "", text)


def lines_of(files, folder):
    for file in files:
        if file.suffix in sources and str(file).startswith(folder + "/"):
            for number, line in enumerate(without_comments((root / file).read_text(errors="replace")).split("\n"), 1):
                yield file, number, line


def core_is_pure(files, core):
    faults = []
    for file, number, line in lines_of(files, core):
        if impure.search(line):
            faults.append(f"{file}:{number}: a core must not include this: {line.strip()}")
        elif impure_words.search(line):
            faults.append(f"{file}:{number}: a core must not use this: {line.strip()}")
    return faults


def keeps_to_itself(files, part):
    others = "|".join(p for p in parts if p != part)
    pattern = re.compile(rf'^\s*#\s*include\s*[<"](?:\.\./)*(?:{others})/')
    return [f"{file}:{number}: {part} must not include another part: {line.strip()}"
            for file, number, line in lines_of(files, part) if pattern.search(line)]


def proto_uses_nobody(files):
    pattern = re.compile(rf'^\s*#\s*include\s*[<"](?:{"|".join(parts)})/')
    return [f"{file}:{number}: proto must not include a part: {line.strip()}"
            for file, number, line in lines_of(files, "proto") if pattern.search(line)]


def folders_have_a_readme(files):
    top = {"proto", "daemon", "hub", "pilot", "client", "web", "scripts", "test", "docs", "examples"}
    present = {f.parts[0] for f in files if len(f.parts) > 1} & top
    return [f"{folder}/README.md is missing: what belongs there, what does not, where to start reading"
            for folder in sorted(present) if not (root / folder / "README.md").is_file()]


def top_level_is_tidy(files):
    known = {"proto", "daemon", "hub", "pilot", "client", "web", "scripts", "test", "docs", "examples", "cmake",
             ".ci", ".github"}
    return [f"{folder}/: no place for this at the top level" for folder in sorted({f.parts[0] for f in files if len(f.parts) > 1} - known)]


def licence_and_size(files):
    too_big = 2_000_000  # bytes; a larger file does not belong into the history
    return [f"{file}: {(root / file).stat().st_size} bytes are too many for the history"
            for file in files if (root / file).stat().st_size > too_big]


def anchors(text):
    """What a link into a page may name: its headings, as GitHub makes words of them."""
    seen = set()
    for heading in re.findall(r"^#+ +(.*)$", re.sub(r"^```.*?^```", "", text, flags=re.S | re.M), flags=re.M):
        word = re.sub(r"[^\w\- ]", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()).replace(" ", "-")
        number = 0
        while (name := f"{word}-{number}" if number else word) in seen:
            number += 1
        seen.add(name)
    return seen


def links_resolve(files):
    """Links of the pages to files and headings; addresses in the net are not asked."""
    faults = []
    for file in files:
        if file.suffix != ".md":
            continue
        prose = re.sub(r"^```.*?^```", lambda m: "\n" * m[0].count("\n"), (root / file).read_text(), flags=re.S | re.M)
        prose = re.sub(r"`[^`\n]*`", "", prose)
        for number, line in enumerate(prose.split("\n"), 1):
            for target in re.findall(r"\]\(([^)\s]+)\)", line):
                if re.match(r"[a-z]+:", target):
                    continue
                name, _, heading = target.partition("#")
                there = (root / file.parent / name) if name else root / file
                if not there.exists():
                    faults.append(f"{file}:{number}: {target} leads nowhere")
                elif heading and there.suffix == ".md" and heading not in anchors(there.read_text()):
                    faults.append(f"{file}:{number}: {target}: that page has no such heading")
    return faults


def docs_are_listed(files):
    listed = set(re.findall(r"\]\(([^)#\s]+)\)", (root / "docs/README.md").read_text()))
    return [f"docs/README.md does not list {file.name}" for file in files
            if file.parts[0] == "docs" and len(file.parts) == 2 and file.suffix == ".md" and file.name not in listed | {"README.md"}]


def shell_is_sound(files):
    faults = []
    for file in files:
        if file.parts[0] not in ("scripts", ".ci") or file.suffix not in ("", ".sh") or not (root / file).is_file():
            continue
        first = (root / file).read_text(errors="replace").split("\n", 1)[0]
        if "bash" not in first and file.suffix != ".sh":
            continue
        done = subprocess.run(["bash", "-n", root / file], capture_output=True, text=True)
        if done.returncode:
            faults.append(f"{file}: {done.stderr.strip()}")
    return faults


def python_is_old_enough(files):
    """What users get goes with the oldest Python that the package promises: its syntax and its library."""
    program = next((place for place in (root / ".venv/bin/vermin", shutil.which("vermin")) if place and os.access(place, os.X_OK)), None)
    if not program:
        missing = "vermin is not installed; scripts/setup brings it"
        return ([missing], None) if os.environ.get("CI") else (None, missing)
    oldest = re.search(r'^requires-python = ">=([\d.]+)"', (root / "client/python/pyproject.toml").read_text(), flags=re.M)[1]
    chosen = [str(f) for f in files if f.suffix == ".py" and f.parts[0] in ("client", "examples")]
    done = subprocess.run([program, "--no-config-file", f"--target={oldest}-", "--violations", "--eval-annotations", "--no-tips", *chosen], cwd=root,
                          capture_output=True, text=True)
    said = [line for line in (done.stdout + done.stderr).split("\n") if line.strip()]
    return (said or [f"vermin ended with {done.returncode}"] if done.returncode else []), None


def layout(files):
    """clang-format of all C++ sources."""
    if subprocess.run(["sh", "-c", "command -v clang-format"], capture_output=True).returncode:
        return None, "clang-format is not installed"
    chosen = [str(f) for f in files if f.suffix in sources]
    done = subprocess.run(["clang-format", "--dry-run", "--Werror", *chosen], cwd=root, capture_output=True, text=True)
    return sorted({line.split(": error")[0] + " is not laid out as .clang-format says; run clang-format -i"
                   for line in done.stderr.split("\n") if ": error" in line}), None


def main():
    arguments = sys.argv[1:]
    report = arguments[arguments.index("--junit") + 1] if "--junit" in arguments else None
    files = tracked()
    results = {f"{core} is pure": (core_is_pure(files, core), None) for core in cores_of(files)}
    for part in parts:
        results[f"{part} keeps to itself"] = (keeps_to_itself(files, part), None)
    results["proto uses nobody"] = (proto_uses_nobody(files), None)
    results["folders have a README"] = (folders_have_a_readme(files), None)
    results["top level is tidy"] = (top_level_is_tidy(files), None)
    results["no huge files"] = (licence_and_size(files), None)
    results["links resolve"] = (links_resolve(files), None)
    results["docs are listed"] = (docs_are_listed(files), None)
    results["shell scripts parse"] = (shell_is_sound(files), None)
    results["Python is old enough"] = python_is_old_enough(files)
    results["sources are laid out"] = layout(files)
    failed = 0
    cases = []
    for name, (faults, skipped) in results.items():
        if skipped:
            print(f"skip {name}: {skipped}")
            cases.append(f'<testcase classname="check" name="{name}"><skipped message={sax.quoteattr(skipped)}/></testcase>')
        elif faults:
            failed += 1
            print(f"FAIL {name}")
            for fault in faults[:50]:
                print(f"     {fault}")
            cases.append(f'<testcase classname="check" name="{name}"><failure>{sax.escape(chr(10).join(faults))}</failure></testcase>')
        else:
            print(f"ok   {name}")
            cases.append(f'<testcase classname="check" name="{name}"/>')
    if report:
        pathlib.Path(report).write_text(f'<testsuite name="check">{"".join(cases)}</testsuite>\n')
    return 1 if failed else 0


sys.exit(main())
