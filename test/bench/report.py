"""Figures beside their floors: as text while they are made, or as JSON at the end."""
import json
import statistics
import sys


class Report:
    def __init__(self, as_json=False):
        self.as_json = as_json
        self.figures = []

    def say(self, text=""):
        print(text, file=sys.stderr if self.as_json else sys.stdout, flush=True)

    def end(self):
        if self.as_json:
            print(json.dumps(self.figures, indent=2))

    def ratio(self, name, unit, floor_name, floor, ours, target=None, at_least=False):
        """`floor`, `ours`: a value of each round; the rounds were run in turn."""
        ratios = [b / a for a, b in zip(floor, ours, strict=True)]
        ratio = statistics.median(ratios)
        met = None if target is None else ratio >= target if at_least else ratio <= target
        self.figures.append({"name": name, "unit": unit, "floor": floor_name, "floor_values": floor, "ours_values": ours, "ratios": ratios,
                             "ratio": ratio, "target": target, "at_least": at_least, "met": met})
        wanted = "" if target is None else f"target {'>=' if at_least else '<='} {target:<5}{'' if met else ' MISSED'}"
        self.say(f"  {name:44}{statistics.median(floor):>10.1f}{statistics.median(ours):>10.1f} {unit:5}{ratio:6.2f}  "
                 f"({min(ratios):.2f} .. {max(ratios):.2f})  {wanted}")

    def most(self, name, unit, values, target):
        """What has a limit of its own, and no floor."""
        value = statistics.median(values)
        self.figures.append({"name": name, "unit": unit, "ours_values": values, "value": value, "target": target, "met": value <= target})
        self.say(f"  {name:44}{'':10}{value:>10.1f} {unit:5}{'':6}  ({min(values):.1f} .. {max(values):.1f})  target <= {target} {unit}"
                 f"{'' if value <= target else ' MISSED'}")
