#!/usr/bin/env python3
"""Writes docs/cli.md from the pages that the program itself shows.

make_docs.py PROGRAM          writes docs/cli.md
make_docs.py --check PROGRAM  compares it, and returns 1 with the difference when it is not what the program says
"""

import difflib
import subprocess
import sys
from pathlib import Path

TARGET = Path(__file__).resolve().parents[2] / "docs" / "cli.md"


def said(program: str, *words: str) -> str:
    return subprocess.run([program, *words], check=True, stdin=subprocess.DEVNULL, capture_output=True, text=True).stdout


def page(program: str) -> str:
    paths = said(program, "__commands").splitlines()
    commands = [path for path in paths if not path.startswith("topic ")]
    topics = [path.split()[1] for path in paths if path.startswith("topic ")]

    def anchor(title: str) -> str:
        return title.replace(" ", "-")

    lines = ["# The command line", "", "Written by `client/cli/make_docs.py` from what `flotilla --help` says; a test compares it.", ""]
    lines += [f"- [flotilla {path}](#flotilla-{anchor(path)})" for path in commands if " " not in path]
    lines += [f"- [topic: {topic}](#topic-{topic})" for topic in topics] + [""]
    lines += ["## flotilla", "", "```text", said(program, "--help").rstrip("\n"), "```", ""]
    for path in commands:
        lines += [f"{'###' if ' ' in path else '##'} flotilla {path}", "", "```text", said(program, *path.split(), "--help").rstrip("\n"), "```", ""]
    for topic in topics:
        lines += [f"## topic {topic}", "", "```text", said(program, "help", topic).rstrip("\n"), "```", ""]
    return "\n".join(lines)


def main() -> int:
    words = sys.argv[1:]
    check = words[:1] == ["--check"]
    if check:
        words = words[1:]
    if len(words) != 1:
        print(__doc__, file=sys.stderr)
        return 2
    text = page(words[0])
    if not check:
        TARGET.write_text(text)
        return 0
    there = TARGET.read_text() if TARGET.exists() else ""
    if there == text:
        return 0
    sys.stdout.writelines(difflib.unified_diff(there.splitlines(True), text.splitlines(True), str(TARGET), "what the program says"))
    print(f"\ndocs/cli.md is not what the program says; write it anew: client/cli/make_docs.py {words[0]}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
