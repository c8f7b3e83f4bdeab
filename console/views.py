"""The door, the reader's choices, help, and what is shown when something is not there."""

from __future__ import annotations

import logging
from typing import Any

from django.conf import settings
from django.contrib.auth.decorators import login_not_required
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import redirect, render
from django.utils.http import url_has_allowed_host_and_scheme
from django.utils.translation import gettext as _
from django.views.decorators.http import require_GET, require_POST

from compute.watch import wants_dialog

log = logging.getLogger(__name__)

THEMES = ("light", "dark")
YEAR = 365 * 24 * 3600


@require_GET
def home(request: HttpRequest) -> HttpResponse:
    """The instances of the first region (R1)."""
    return redirect("instances", next(iter(settings.ENGINES)))


@login_not_required
@require_POST
def theme(request: HttpRequest) -> HttpResponse:
    """Remember light or dark, and go back to where the reader was."""
    back = request.POST.get("next", "/")
    if not url_has_allowed_host_and_scheme(back, {request.get_host()}, require_https=request.is_secure()):
        back = "/"
    response = HttpResponseRedirect(back)
    if request.POST.get("theme") in THEMES:
        response.set_cookie("theme", request.POST["theme"], max_age=YEAR, samesite="Lax")
    return response


@require_GET
def device_names(request: HttpRequest) -> HttpResponse:
    return render(request, "help/device-names.html")


# Errors: nothing here reads the database, which may be the very thing that failed ------------------------------------


def not_found(request: HttpRequest, exception: Exception | None = None) -> HttpResponse:
    if wants_dialog(request):
        return _error(request, 404, _("It is not there any more, or not yours to see. Nothing was changed."))
    return _error(request, 404, _("There is nothing here, or it is not yours to see."))


def forbidden(request: HttpRequest, exception: Exception | None = None) -> HttpResponse:
    return _error(request, 403, _("This is not yours to do."))


def forged(request: HttpRequest, reason: str = "") -> HttpResponse:
    if wants_dialog(request):
        # The notice brings a fresh token into the dialog's form.
        what = _("This was open for too long, or you have signed in anew. Nothing is lost: press the button again.")
        return _error(request, 403, what)
    return _error(request, 403, _("This page was open for too long, or cookies are off. Load it again and repeat."))


def locked_out(request: HttpRequest, response: HttpResponse | None, credentials: Any) -> HttpResponse:
    return _error(request, 429, _("Too many wrong passwords. Wait a quarter of an hour, then try again."))


def failed(request: HttpRequest) -> HttpResponse:
    what = _("Something in the console failed. Nothing is stuck: work under way goes on or is cleaned up.")
    return _error(request, 500, what)


def _error(request: HttpRequest, status: int, what: str) -> HttpResponse:
    quote = getattr(request, "id", "")
    level = logging.ERROR if status >= 500 else logging.INFO
    log.log(level, "request %s: %s %s answered %s", quote, request.method, request.path, status)
    return told(request, status, what)


def told(request: HttpRequest, status: int, what: str, **context: Any) -> HttpResponse:
    """What went wrong and what to do: a page, or for htmx a notice that its dialog shows (see console.js)."""
    context |= {"status": status, "what": what}
    if not wants_dialog(request):
        return render(request, "error.html", context, status=status)
    response = render(request, "notice.html", context, status=status)
    response["X-Notice"] = "1"
    return response
