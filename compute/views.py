"""Pages of instances. Each query starts from the user (R22); rows are read, engines never asked (R23)."""

from __future__ import annotations

from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.views.decorators.http import require_GET, require_http_methods, require_POST
from django_htmx.http import HttpResponseClientRedirect, HttpResponseClientRefresh

from compute import actions, quotas
from compute.forms import StopForm
from compute.models import Instance, InstanceQuerySet
from compute.rules import why_not_stop, why_not_yours
from compute.watch import Changes, Watch, changes, sights, wants_dialog


def _instances(request: HttpRequest, region: str) -> InstanceQuerySet:
    return Instance.objects.visible_to(request.user).in_region(region)


def _instance(request: HttpRequest, region: str, pk: str) -> Instance:
    return get_object_or_404(_instances(request, region).listed().select_related("owner"), pk=pk)


@require_GET
def instances(request: HttpRequest, region: str) -> HttpResponse:
    rows = _instances(request, region)
    seen = sights(rows, "holding")
    watch = Watch.over(reverse("instances-poll", args=[region]), seen)
    shown = rows.listed().select_related("owner").order_by("name", "pk")
    context = {"instances": shown, "watch": watch, "count": len(seen), "uses": quotas.uses(request.user, region)}
    return render(request, "compute/instances.html", context)


@require_GET
def instances_poll(request: HttpRequest, region: str) -> HttpResponse:
    rows = _instances(request, region)
    change = changes(request, rows, "holding")
    if not isinstance(change, Changes):
        return change
    seen = sights(rows, "holding")
    if not seen:
        return HttpResponseClientRefresh()
    context = {
        "count": len(seen),
        "instances": rows.listed().select_related("owner").filter(pk__in=change.rows),
        "change": change,
        "watch": Watch.over(request.path, seen),
        "uses": quotas.uses(request.user, region),
    }
    return render(request, "compute/instances.html#changes", context)


@require_GET
def instance(request: HttpRequest, region: str, pk: str) -> HttpResponse:
    row = _instance(request, region, pk)
    seen = sights(_instances(request, region).filter(pk=pk), "holding")
    watch = Watch.over(reverse("instance-poll", args=[region, pk]), seen)
    images = row.images.order_by("-created_at")
    return render(request, "compute/instance.html", {"instance": row, "watch": watch, "images": images})


@require_GET
def instance_poll(request: HttpRequest, region: str, pk: str) -> HttpResponse:
    rows = _instances(request, region).filter(pk=pk)
    change = changes(request, rows, "holding")
    if not isinstance(change, Changes):
        if change.status_code != 204:
            get_object_or_404(rows)
        return change
    if change.gone:
        return HttpResponseClientRedirect(reverse("instances", args=[region]))
    row = _instance(request, region, pk)
    context = {
        "instance": row,
        "change": change,
        "watch": Watch.over(request.path, sights(rows, "holding")),
        "images": row.images.order_by("-created_at"),
    }
    return render(request, "compute/instance.html#changes", context)


@require_POST
def start(request: HttpRequest, region: str, pk: str) -> HttpResponse:
    row = _instance(request, region, pk)
    actions.start(by=request.user, instance=row)
    return redirect("instance", region, pk)


@require_http_methods(["GET", "POST"])
def stop(request: HttpRequest, region: str, pk: str) -> HttpResponse:
    """Ask first: a guest may take its time, and only force is sure (R29)."""
    row = _instance(request, region, pk)
    form = StopForm(request.POST if request.method == "POST" else None)
    if request.method == "POST" and form.is_valid():
        actions.stop(by=request.user, instance=row, force=form.cleaned_data["force"])
        return redirect("instance", region, pk)
    refused = why_not_yours(row, request.user) or why_not_stop(row)
    context = {"instance": row, "form": form, "refused": refused}
    return render(request, "compute/stop.html#dialog" if wants_dialog(request) else "compute/stop.html", context)
