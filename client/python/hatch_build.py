"""Makes flotilla/v1/*_pb2.py (and .pyi) out of the project's .proto files when the package is built."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Dict

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PROTOS = ("flotilla/v1/types.proto", "flotilla/v1/client.proto")


class ProtoHook(BuildHookInterface):
    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: Dict[str, Any]) -> None:
        root = Path(self.root)
        # In a source distribution the .proto files lie beside this one, in the repository two folders up.
        source = next((at for at in (root / "proto", root.parent.parent / "proto") if (at / PROTOS[0]).is_file()), None)
        if source is None:
            raise FileNotFoundError(f"{PROTOS[0]} is neither in {root / 'proto'} nor in {root.parent.parent / 'proto'}")
        if self.target_name == "sdist":
            for proto in PROTOS:
                build_data["force_include"][str(source / proto)] = f"proto/{proto}"
            return
        if version == "editable":
            self.generate(source, root / "src")
            return
        # Not into the source tree: several builds may run at once.
        self.folder = tempfile.TemporaryDirectory()
        target = Path(self.folder.name)
        self.generate(source, target)
        for file in sorted(target.rglob("*")):
            if file.is_file():
                build_data["force_include"][str(file)] = str(file.relative_to(target))

    def generate(self, source: Path, target: Path) -> None:
        command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{source}", f"--python_out={target}", f"--pyi_out={target}", *PROTOS]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"the messages of {source} cannot be translated to Python:\n{done.stdout}")
        package = target / "flotilla" / "v1" / "__init__.py"
        package.write_text('"""Generated from proto/flotilla/v1: the messages that travel between client and daemon."""\n')
