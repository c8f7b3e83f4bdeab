"""Middleware of our own: content security, whose request, whose zone, and refusals told as pages."""

from __future__ import annotations

import logging
import secrets
import zoneinfo
from collections.abc import Callable
from datetime import tzinfo
from typing import Any
from urllib.parse import urlsplit

from django.contrib.auth.middleware import LoginRequiredMiddleware
from django.http import HttpRequest, HttpResponse
from django.shortcuts import resolve_url
from django.utils import timezone
from django.utils.http import urlencode
from django.utils.translation import gettext as _
from django_htmx.http import HttpResponseClientRedirect

from compute.refusals import NotAllowed, Refused
from console.views import told

log = logging.getLogger(__name__)

Handler = Callable[[HttpRequest], HttpResponse]

POLICY = "; ".join(
    [
        "default-src 'self'",
        "img-src 'self' data:",
        "object-src 'none'",
        "base-uri 'none'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    ]
)


def content_security_policy(get_response: Handler) -> Handler:
    """Pages load from this host only, and never run or style themselves inline (Django has one from 6.0 on)."""

    def middleware(request: HttpRequest) -> HttpResponse:
        response = get_response(request)
        response.headers.setdefault("Content-Security-Policy", POLICY)
        return response

    return middleware


def request_id(get_response: Handler) -> Handler:
    """Every request has an id that its error page shows and the log names."""

    def middleware(request: HttpRequest) -> HttpResponse:
        request.id = secrets.token_hex(4)  # type: ignore[attr-defined]
        return get_response(request)

    return middleware


def readers_zone(get_response: Handler) -> Handler:
    """Times are shown in the zone that the reader's browser named, else in the server's."""

    def middleware(request: HttpRequest) -> HttpResponse:
        try:
            zone: tzinfo = zoneinfo.ZoneInfo(request.COOKIES["zone"])
        except (KeyError, ValueError, OSError):
            zone = timezone.get_default_timezone()
        with timezone.override(zone):
            return get_response(request)

    return middleware


class SignInRequired(LoginRequiredMiddleware):
    """Everything needs a session unless it says otherwise.

    A poll without one sends its page to sign-in and back; a dialog keeps what was typed and says where to sign in.
    """

    def handle_no_permission(self, request: Any, view_func: Any) -> Any:
        if not request.htmx:
            return super().handle_no_permission(request, view_func)
        if request.method == "POST":
            return told(request, 403, _("You are signed out."), sign_in=True)
        page = urlsplit(request.htmx.current_url or "/")
        return HttpResponseClientRedirect(
            f"{resolve_url(self.get_login_url(view_func))}?{urlencode({'next': page.path})}"
        )


class Refusals:
    """A verb that raises ``Refused`` is answered with its sentence: 422, or 403 when it is not theirs to do (R22)."""

    def __init__(self, get_response: Handler) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        return self.get_response(request)

    def process_exception(self, request: Any, exception: Exception) -> HttpResponse | None:
        if not isinstance(exception, Refused):
            return None
        status = 403 if isinstance(exception, NotAllowed) else 422
        log.info("request %s: %s %s refused: %s", request.id, request.method, request.path, exception.code)
        return told(request, status, str(exception))
