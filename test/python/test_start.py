"""Where the daemon is looked for: where the program has it."""

from __future__ import annotations

import json
import subprocess

import pytest
from conftest import ROOT, find_program, processes_with

from flotilla import _start

TABLE = [line.split(" = ") for line in (ROOT / "test/compat/paths.txt").read_text().splitlines() if line and line[0] != "#"]


@pytest.mark.parametrize("given, plain", TABLE)
def test_a_place_has_one_spelling(given, plain, monkeypatch):
    monkeypatch.chdir("/tmp")
    monkeypatch.setenv("FLOTILLA_STATE_DIR", given)
    monkeypatch.setenv("FLOTILLA_RUNTIME_DIR", given)
    assert str(_start.state_dir()) == plain and str(_start.runtime_dir()) == plain


def test_the_socket_is_where_the_program_has_it(tmp_path, monkeypatch):
    program = find_program("flotilla")
    monkeypatch.chdir(tmp_path)
    for name in ("FLOTILLA_STATE_DIR", "FLOTILLA_RUNTIME_DIR", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "config.toml").touch()
    monkeypatch.setenv("FLOTILLA_CONFIG", str(tmp_path / "config.toml"))
    monkeypatch.setenv("FLOTILLA_AGENT", str(find_program("flotilla-agent")))
    state = f".local/state/flotilla/{_start.host_name()}"

    def status():
        return json.loads(subprocess.run([program, "daemon", "status", "--json"], capture_output=True, text=True, timeout=60).stdout)

    try:
        monkeypatch.setenv("HOME", f"/{tmp_path}//x/../")
        subprocess.run([program, "daemon", "start"], check=True, capture_output=True, timeout=60)
        assert status()["socket"] == str(_start.daemon_socket())
        for home in (f"{tmp_path}", f"{tmp_path}/."):
            monkeypatch.setenv("HOME", home)
            assert status()["socket"] == str(_start.daemon_socket())
        for spelled in (f"{tmp_path}/{state}", f"{tmp_path}/{state}/", f"./{state}//", f"x/../{state}/."):
            monkeypatch.setenv("FLOTILLA_STATE_DIR", spelled)
            assert status()["socket"] == str(_start.daemon_socket()), spelled
    finally:
        subprocess.run([program, "daemon", "stop", "--all"], capture_output=True, timeout=60)
    assert not processes_with(f"FLOTILLA_CONFIG={tmp_path}/config.toml")
