"""Pages of images. Each query starts from the user (R22); rows are read, engines never asked (R23)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.utils.translation import gettext as _
from django.views.decorators.http import require_GET, require_http_methods, require_POST
from django_htmx.http import HttpResponseClientRedirect, HttpResponseClientRefresh

from compute import quotas
from compute.models import Instance, Medium, Resource, Snapshot, StoredFile
from compute.refusals import NotAllowed, Refused
from compute.rules import why_not_yours
from compute.watch import Changes, Watch, changes, sights, wants_dialog
from images import actions
from images.forms import CancelForm, CreateImageForm, DeleteForm
from images.models import DeviceMapping, Image, ImageQuerySet
from images.progress import add_up, expected, progress_of, promised, to_copy
from images.rules import (
    needed,
    why_not_cancel,
    why_not_create_image,
    why_not_create_instance,
    why_not_delete,
    why_not_fit,
    why_not_include,
    why_not_share,
)
from images.timeline import timeline


def _images(request: HttpRequest, region: str) -> ImageQuerySet:
    return Image.objects.visible_to(request.user).in_region(region)


def _image(request: HttpRequest, region: str, pk: str) -> Image:
    return get_object_or_404(_images(request, region).listed(), pk=pk)


def _gone_to(request: HttpRequest, url: str) -> HttpResponse:
    """After a change: on to ``url``, from a dialog as from a plain page."""
    return HttpResponseClientRedirect(url) if wants_dialog(request) else redirect(url)


def _dialog(request: HttpRequest, template: str, context: dict[str, Any], refused: Refused | None) -> HttpResponse:
    """A dialog for htmx, else a page of its own; 422 when what was sent was refused.

    What is not theirs to do is not asked again: 403, told in the dialog or on a page.
    """
    if request.method == "POST" and isinstance(refused, NotAllowed):
        raise refused
    name = f"{template}#dialog" if wants_dialog(request) else template
    return render(request, name, context | {"refused": refused}, status=200 if request.method == "GET" else 422)


# Making one ---------------------------------------------------------------------------------------------------------


def _instance(request: HttpRequest, region: str, pk: str) -> Instance:
    rows = Instance.objects.visible_to(request.user).in_region(region)
    return get_object_or_404(rows.listed().select_related("owner", "region"), pk=pk)


@require_http_methods(["GET", "POST"])
def create(request: HttpRequest, region: str, pk: str) -> HttpResponse:
    instance = _instance(request, region, pk)
    again = _images(request, region).filter(pk=request.GET.get("again"), instance=instance).first()
    form = CreateImageForm(instance, request.POST if request.method == "POST" else None, again=again)
    refused = why_not_yours(instance, request.user) or (None if form.is_bound else why_not_create_image(instance))
    if form.is_bound and not refused and form.is_valid():
        wanted = form.cleaned_data
        try:
            image = actions.create_image(by=request.user, instance=instance, **wanted)
            return _gone_to(request, reverse("image", args=[region, image.pk]))
        except Refused as refusal:
            refused = refusal
    context = {"instance": instance, "form": form, **_takes(request, instance, form)}
    return _dialog(request, "images/create.html", context, refused)


@require_GET
def takes(request: HttpRequest, region: str, pk: str) -> HttpResponse:
    """What the image would take with the boxes as they are ticked now."""
    instance = _instance(request, region, pk)
    form = CreateImageForm(instance, request.GET)
    return render(request, "images/create.html#retake", {"instance": instance, **_takes(request, instance, form)})


def _takes(request: HttpRequest, instance: Instance, form: CreateImageForm) -> dict[str, Any]:
    chosen = form.chosen
    included = [disk for disk in instance.disks.all() if disk == instance.system_disk or disk.pk in chosen]
    count, more = to_copy(included), needed(instance, chosen)
    uses = quotas.uses(instance.owner or request.user, instance.region_id)
    return {
        "disks": [(disk, disk in included, why_not_include(disk)) for disk in instance.disks.all()],
        "included": included,
        "capacity": sum(disk.size_bytes for disk in included),
        "to_copy": count,
        "short": why_not_fit(instance.region, included),
        "expected": expected(instance.region_id, count),
        "promise": promised(instance, len(included)),
        "taken": [(uses[resource], number) for resource, number in more.items()],
        "local": instance.system_disk is not None and instance.system_disk.medium == Medium.LOCAL,
        "windows": "windows" in instance.os.lower(),
    }


# Lists and pages ----------------------------------------------------------------------------------------------------


@require_GET
def images(request: HttpRequest, region: str) -> HttpResponse:
    rows = _images(request, region)
    seen = sights(rows, "exclusive")
    watch = Watch.over(reverse("images-poll", args=[region]), seen)
    context = {
        "images": rows.listed().order_by("-created_at"),
        "watch": watch,
        "count": len(seen),
        **_quota(request, region),
    }
    return render(request, "images/images.html", context)


@require_GET
def images_poll(request: HttpRequest, region: str) -> HttpResponse:
    rows = _images(request, region)
    change = changes(request, rows, "exclusive")
    if not isinstance(change, Changes):
        return change
    seen = sights(rows, "exclusive")
    if not seen:
        return HttpResponseClientRefresh()
    context = {
        "count": len(seen),
        "images": rows.listed().filter(pk__in=change.rows),
        "change": change,
        "watch": Watch.over(request.path, seen),
        **_quota(request, region),
    }
    return render(request, "images/images.html#changes", context)


def _quota(request: HttpRequest, region: str) -> dict[str, Any]:
    uses = quotas.uses(request.user, region)
    return {"uses": [uses[Resource.IMAGES], uses[Resource.SNAPSHOTS]]}


@require_GET
def image(request: HttpRequest, region: str, pk: str) -> HttpResponse:
    row = _image(request, region, pk)
    watch = Watch.over(
        reverse("image-poll", args=[region, pk]), sights(_images(request, region).filter(pk=pk), "exclusive")
    )
    return render(request, "images/image.html", {"watch": watch, **_whole(row)})


@require_GET
def image_poll(request: HttpRequest, region: str, pk: str) -> HttpResponse:
    rows = _images(request, region).filter(pk=pk)
    change = changes(request, rows, "exclusive")
    if not isinstance(change, Changes):
        if change.status_code != 204:
            get_object_or_404(rows)
        return change
    if change.gone:
        messages.success(request, _("The image is deleted."))
        return HttpResponseClientRedirect(reverse("images", args=[region]))
    watch = Watch.over(request.path, sights(rows, "exclusive"))
    context = {"change": change, "watch": watch, **_whole(_image(request, region, pk))}
    return render(request, "images/image.html#changes", context)


def _whole(image: Image) -> dict[str, Any]:
    """Everything the page of one image shows."""
    history = list(image.operations.select_related("asked_by", "cancelled_by").order_by("-created_at"))
    making = next((operation for operation in history if operation.kind == "create_image"), None)
    mappings = list(image.mappings.all())
    return {
        "image": image,
        "mappings": mappings,
        "history": history,
        "making": making,
        "progress": progress_of(making) if making else None,
        "timeline": timeline(image, making) if making else [],
        "stored": _stored(mapping.file for mapping in mappings),
    }


def _stored(files: Iterable[StoredFile]) -> int | None:
    """Bytes really in use by these files; None when one is not known (yet)."""
    return add_up(file.stored_bytes for file in files)


# Changing one -------------------------------------------------------------------------------------------------------


@require_http_methods(["GET", "POST"])
def cancel(request: HttpRequest, region: str, pk: str) -> HttpResponse:
    row = _image(request, region, pk)
    form = CancelForm(request.POST if request.method == "POST" else None)
    refused = why_not_cancel(row)
    if form.is_bound and form.is_valid():
        try:
            # Staff may cancel; whether the image goes as well is its owner's to say, who alone is asked.
            delete = form.cleaned_data["delete"] and row.owner_id == request.user.pk
            actions.cancel(by=request.user, image=row, delete=delete)
            return _gone_to(request, reverse("image", args=[region, pk]))
        except Refused as refusal:
            refused = refusal
    return _dialog(request, "images/cancel.html", {"image": row, "form": form}, refused)


@require_http_methods(["GET", "POST"])
def delete(request: HttpRequest, region: str, pk: str) -> HttpResponse:
    row = _image(request, region, pk)
    form = DeleteForm(request.POST if request.method == "POST" else None)
    refused = why_not_yours(row, request.user) or why_not_delete(row)
    if form.is_bound and form.is_valid():
        try:
            actions.delete_image(by=request.user, image=row, snapshots=form.cleaned_data["snapshots"])
            return _gone_to(request, reverse("images", args=[region]))
        except Refused as refusal:
            refused = refusal
    own = Snapshot.objects.filter(mappings__image=row).order_by("device")
    kept = own.filter(mappings__in=DeviceMapping.objects.exclude(image=row))
    going = own.exclude(pk__in=kept.values("pk"))
    uses = quotas.uses(row.owner, region)
    files = [mapping for mapping in row.mappings.all() if mapping.file is mapping and mapping.external_id]
    context = {"image": row, "form": form, "going": going, "kept": kept, "less": -len(going)}
    context |= {"files": files, "own_bytes": _stored(files), "going_bytes": _stored(going)}
    context |= {"images_use": uses[Resource.IMAGES], "snapshots_use": uses[Resource.SNAPSHOTS]}
    return _dialog(request, "images/delete.html", context, refused)


@require_POST
def share(request: HttpRequest, region: str, pk: str) -> HttpResponse:
    row = _image(request, region, pk)
    raise why_not_yours(row, request.user) or why_not_share(row)


@require_POST
def launch(request: HttpRequest, region: str, pk: str) -> HttpResponse:
    row = _image(request, region, pk)
    raise why_not_yours(row, request.user) or why_not_create_instance(row)
