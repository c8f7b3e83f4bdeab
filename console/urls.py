"""Addresses. The region is part of them; a region nobody configured is nowhere."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from django.conf import settings
from django.contrib import admin
from django.contrib.auth import views as accounts
from django.contrib.auth.decorators import login_not_required
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.urls import include, path, register_converter
from django.urls.converters import StringConverter
from django.views.i18n import set_language
from django_rq.stats_views import prometheus_metrics, stats_json
from django_rq.urls import get_admin_urlpatterns

from console import health, views
from console import metrics as figures
from console.forms import SignInForm


class RegionConverter(StringConverter):
    def to_python(self, value: str) -> str:
        if value not in settings.ENGINES:
            raise ValueError
        return value


register_converter(RegionConverter, "region")


def superusers_only(view: Callable[..., HttpResponse]) -> Callable[..., HttpResponse]:
    """The queue's pages can empty queues: other staff are refused (R20)."""

    @wraps(view)
    def guarded(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        if not request.user.is_superuser:
            raise PermissionDenied
        return view(request, *args, **kwargs)

    return guarded


queue_pages = [
    *get_admin_urlpatterns(view_wrapper=superusers_only),
    # Its front page links to its figures, which by themselves would be every staff user's.
    path("stats.json", superusers_only(stats_json), name="home_json"),
    path("metrics", superusers_only(prometheus_metrics), name="metrics"),
]
sign_in = accounts.LoginView.as_view(
    template_name="sign-in.html", authentication_form=SignInForm, redirect_authenticated_user=True
)

urlpatterns = [
    path("", views.home, name="home"),
    path("sign-in/", sign_in, name="login"),
    path("sign-out/", accounts.LogoutView.as_view(), name="logout"),
    path("language/", login_not_required(set_language), name="language"),
    path("theme/", views.theme, name="theme"),
    path("help/device-names/", views.device_names, name="help-device-names"),
    path("healthz", health.healthz, name="healthz"),
    path("readyz", health.readyz, name="readyz"),
    path("metrics", figures.metrics, name="metrics"),
    path("r/<region:region>/", include("compute.urls")),
    path("r/<region:region>/", include("images.urls")),
    path("admin/queue/", include((queue_pages, "django_rq"))),
    path("admin/", admin.site.urls),
]

handler403 = views.forbidden
handler404 = views.not_found
handler500 = views.failed
