"""The pages as gunicorn serves them from several processes, and people who click from processes of their own."""

from __future__ import annotations

import html
import os
import re
import socket
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.cookiejar import CookieJar
from pathlib import Path
from typing import NamedTuple

from django.conf import settings

from console.supervisor import Supervisor
from tests.processes import wait_until
from tests.races import click


class Answer(NamedTuple):
    status: int
    told: str  # the refusal's sentence, or ""


class Web:
    def __init__(self, port: int) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.cookies: dict[str, str] = {}

    def sign_in(self, name: str, password: str) -> None:
        """By the form, as people do; the session is the one that clicks have from then on."""
        jar = CookieJar()
        browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(jar))
        page = browser.open(f"{self.url}/sign-in/").read().decode()
        token = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', page)
        form = {"username": name, "password": password, "csrfmiddlewaretoken": token[1] if token else ""}
        answer = browser.open(f"{self.url}/sign-in/", urllib.parse.urlencode(form).encode())
        assert answer.url.endswith("/instances/"), answer.read().decode()
        self.cookies = {cookie.name: cookie.value or "" for cookie in jar}

    def click_at_once(self, clicks: Sequence[tuple[str, dict[str, str]]]) -> list[Answer]:
        """Each (path, form) is posted by its own process; all of them are let go at one moment."""
        cookies = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        token = next(value for name, value in self.cookies.items() if name.startswith("stillframe-csrf"))
        waiting, gate = os.pipe()
        people = []
        for path, form in clicks:
            words = ("127.0.0.1", str(self.port), path, cookies)
            order = urllib.parse.urlencode(form | {"csrfmiddlewaretoken": token})
            command = [sys.executable, "-I", "-S", click.__file__, *words, order]
            people.append(subprocess.Popen(command, stdin=waiting, stdout=subprocess.PIPE, stderr=subprocess.PIPE))
        os.close(waiting)
        wait_until(lambda: self._connected() >= len(people), what="everybody's connection")
        os.close(gate)
        return [_answer(person) for person in people]

    def _connected(self) -> int:
        """Established connections of clients, as the kernel lists them."""
        rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        return sum(remote == f"0100007F:{self.port:04X}" and state == "01" for _, _, remote, state, *_ in rows)


def _answer(person: subprocess.Popen[bytes]) -> Answer:
    said, complaint = person.communicate(timeout=120)
    assert not person.returncode, complaint.decode()
    status, _, page = said.decode().partition("\n")
    # In the dialog that was sent, or on a page of its own.
    refused = re.search(r'(?:<div class="alert bad".*?|<h1>Not possible now</h1>\s*)<p>(.*?)</p>', page, re.DOTALL)
    return Answer(int(status), html.unescape(refused[1]) if refused else "")


@contextmanager
def serving(env: dict[str, str]) -> Iterator[Web]:
    """As `make run` starts it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        web = Web(probe.getsockname()[1])
    server = subprocess.Popen(Supervisor(web.port).gunicorn(), env=env, cwd=settings.BASE_DIR, stdin=subprocess.DEVNULL)
    try:
        wait_until(lambda: _answers(web.port), what="the pages")
        yield web
    finally:
        server.terminate()
        server.wait()


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
