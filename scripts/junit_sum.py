"""Sums JUnit reports for scripts/test.

junit_sum.py STAGE EXIT_CODE FOLDER SECONDS   counts FOLDER/STAGE*.xml, prints one line, keeps the counts
junit_sum.py --total FOLDER                   prints the stages and, alone on the last line, their sum
"""
import pathlib
import sys
import xml.etree.ElementTree as tree


def count(file):
    passed = failed = skipped = 0
    names = []
    for case in tree.parse(file).iter("testcase"):
        # CTest writes status="run|fail|notrun|disabled", the others only child elements.
        status = case.get("status", "")
        if case.find("failure") is not None or case.find("error") is not None or status == "fail":
            failed += 1
            names.append(".".join(n for n in (case.get("classname"), case.get("name")) if n))
        elif case.find("skipped") is not None or status in ("notrun", "disabled"):
            skipped += 1
        else:
            passed += 1
    return passed, failed, skipped, names


def stage(name, code, folder, seconds):
    passed = failed = skipped = 0
    names = []
    broken = []
    # STAGE.xml and STAGE-PART.xml
    for file in sorted(set(folder.glob(f"{name}.xml")) | set(folder.glob(f"{name}-*.xml"))):
        try:
            p, f, s, n = count(file)
        except tree.ParseError as error:
            broken.append(f"{file.name}: {error}")
            continue
        passed, failed, skipped, names = passed + p, failed + f, skipped + s, names + n
    if failed == 0 and (code != 0 or broken or passed + skipped == 0):
        failed = 1
        names.append(broken[0] if broken else f"stage {name} ended with exit code {code}, see {folder}/{name}.log"
                     if code else f"stage {name} ran no test")
    for failure in names:
        print(f"   FAILED {failure}")
    print(f"   {name}: {passed} passed, {failed} failed, {skipped} skipped ({seconds} s)")
    (folder / f"{name}.count").write_text(f"{passed} {failed} {skipped}\n" + "".join(f"{n}\n" for n in names))


def total(folder):
    sums = [0, 0, 0]
    for file in sorted(folder.glob("*.count"), key=lambda f: f.stat().st_mtime):
        counts, *names = file.read_text().splitlines()
        counts = [int(n) for n in counts.split()]
        print(f"   {file.stem:8} {counts[0]:5} passed {counts[1]:4} failed {counts[2]:4} skipped")
        for name in names:
            print(f"            FAILED {name}")
        sums = [a + b for a, b in zip(sums, counts)]
    print(f"{sums[0]} passed, {sums[1]} failed, {sums[2]} skipped")
    return 1 if sums[1] or not any(sums) else 0


if sys.argv[1] == "--total":
    sys.exit(total(pathlib.Path(sys.argv[2])))
stage(sys.argv[1], int(sys.argv[2]), pathlib.Path(sys.argv[3]), int(sys.argv[4]))
