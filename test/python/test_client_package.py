"""The package as it is installed: typed, and usable where gRPC is not."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys

from conftest import ROOT, SOURCES


def test_the_installed_package_is_typed(tmp_path):
    importlib.metadata.distribution("flotilla")  # where it fails: run scripts/setup
    config = ROOT / "client/python/pyproject.toml"
    command = [sys.executable, "-m", "mypy", "--config-file", str(config), "--cache-dir", str(tmp_path), "-p", "flotilla"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_worker_sdk_needs_nothing_of_the_client():
    script = "import sys; sys.path[:] = [p for p in sys.path if 'site-packages' not in p]; sys.path.insert(0, sys.argv[1]); import flotilla.worker; assert 'grpc' not in sys.modules"
    subprocess.run([sys.executable, "-I", "-c", script, str(SOURCES)], check=True, timeout=60)


def test_the_modules_are_attributes_of_the_package():
    script = "import sys; sys.path.insert(0, sys.argv[1]); import flotilla; assert 'worker' in dir(flotilla); print(flotilla.worker.source_file(), flotilla.code.RemoteCode)"
    done = subprocess.run([sys.executable, "-S", "-c", script, str(SOURCES)], check=True, timeout=60, capture_output=True, text=True)
    assert done.stdout.startswith(str(SOURCES / "flotilla/worker.py"))
