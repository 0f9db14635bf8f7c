"""The share p of running servers."""

import socket
from typing import Any

import pytest

from app.cli.split import addresses
from tests.app.cli.conftest import Dynpose, Live


def test_the_split_is_shown_and_changed(dynpose: Dynpose, live: Live) -> None:
    server = live()
    shown = dynpose("split", "--server", server.url)
    assert shown.exit_code == 0
    assert shown.stdout == (
        f"{server.url}: p 0.5, version 1, k1 0.420000, k2 0.520000, mode fixed, policy band, "
        "large share 0.000 of 0 people\n"
    )
    changed = dynpose("split", 0.3, "--server", server.url)
    assert changed.exit_code == 0
    assert changed.stdout == (
        f"{server.url}: p 0.5 -> 0.3, version 1 -> 2, k1 0.420000, k2 0.480000, mode fixed, policy band\n"
    )
    assert server.service.config.live.p == 0.3
    assert "k1 none, k2 none" in dynpose("split", 1, "--server", server.url).stdout


def test_a_change_needs_the_token(dynpose: Dynpose, live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    server = live(admin_token="secret")
    result = dynpose("split", 0.3, "--server", server.url)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "(401)" in result.stderr
    assert dynpose("split", 0.3, "--server", server.url, "--token", "secret").exit_code == 0
    monkeypatch.setenv("ADMIN_TOKEN", "secret")
    assert dynpose("split", 0.4, "--server", server.url).exit_code == 0
    assert server.service.config.live.p == 0.4


def test_every_pod_is_asked_and_one_that_fails_is_named(
    dynpose: Dynpose, live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = live()
    real = socket.getaddrinfo

    def resolve(host: Any, port: Any, *arguments: Any, **options: Any) -> Any:
        if host != "pods.example":
            return real(host, port, *arguments, **options)
        hosts = ("127.0.0.2", "127.0.0.1", "127.0.0.1")  # nobody listens at the first
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in hosts]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")  # pods are asked directly
    result = dynpose("split", 0.3, "--all-pods", f"pods.example:{server.port}")
    assert result.exit_code == 1
    assert result.stdout.startswith(f"{server.url}: p 0.5 -> 0.3")
    assert result.stderr.startswith(f"dynpose: http://127.0.0.2:{server.port}: ")
    assert (len(result.stdout.splitlines()), len(result.stderr.splitlines())) == (1, 1)


def test_addresses_of_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [(0, 0, 0, "", ("fd00::2", 8000, 0, 0)), (0, 0, 0, "", ("10.0.0.1", 8000))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    assert addresses("pods") == ["http://10.0.0.1:8000", "http://[fd00::2]:8000"]
    assert addresses("https://pods:90") == ["https://10.0.0.1:90", "https://[fd00::2]:90"]


@pytest.mark.parametrize("name", ["", "a:b", "no host.invalid", "x" * 300])
def test_a_name_that_cannot_be_resolved_ends_it_in_one_line(dynpose: Dynpose, name: str) -> None:
    result = dynpose("split", 0.3, "--all-pods", name)
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1)


@pytest.mark.parametrize("share", ["1.5", "nan", "half", "-0.1"])
def test_a_share_that_is_none_changes_nothing(dynpose: Dynpose, live: Live, share: str) -> None:
    server = live()
    result = dynpose("split", "--server", server.url, "--", share)
    assert result.exit_code == 2
    assert "Error: Invalid value for 'P'" in result.stderr
    assert server.service.config.live.p == 0.5


def test_a_server_that_is_not_there_is_named(dynpose: Dynpose) -> None:
    result = dynpose("split", "--server", "http://127.0.0.1:9")
    assert (result.exit_code, len(result.stderr.splitlines())) == (1, 1)
    assert result.stderr.startswith("dynpose: http://127.0.0.1:9: ")
