"""A real Chromium on the test's own server."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.conf import settings
from django.test import Client
from playwright.sync_api import Browser, Page, sync_playwright

from tests.browser.chromium import CHROMIUM, FLAGS

Open = Callable[..., Page]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    # Playwright keeps an event loop in this thread; Django would take every query for one inside it.
    os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"] = "true"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium: Browser, live_server: Any) -> Iterator[Open]:
    """``open_page(path, user=…, language=…, theme=…, width=…, script=…)`` → a page of a browser of its own."""
    contexts = []

    def open_(
        path: str,
        *,
        user: Any = None,
        language: str = "en",
        theme: str = "light",
        width: int = 1440,
        script: bool = True,
    ) -> Page:
        context = chromium.new_context(
            base_url=live_server.url,
            color_scheme="dark" if theme == "dark" else "light",
            java_script_enabled=script,
            viewport={"width": width, "height": 900},
        )
        contexts.append(context)
        cookies = {"django_language": language}
        if user is not None:
            client = Client()
            client.force_login(user)
            cookies[settings.SESSION_COOKIE_NAME] = client.cookies[settings.SESSION_COOKIE_NAME].value
        context.add_cookies([{"name": name, "value": value, "url": live_server.url} for name, value in cookies.items()])
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.goto(path)
        return page

    yield open_
    for context in contexts:
        context.close()
