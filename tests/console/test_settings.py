"""The three ways to run: nothing to set in development, nothing left to a default in production."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from django.conf import settings

PRODUCTION = {
    "STILLFRAME_ENV": "production",
    "SECRET_KEY": "a-secret-of-more-than-fifty-characters-for-this-test-alone-0123456789",
    "ALLOWED_HOSTS": "console.example.org",
    "DATABASE_URL": "postgres://stillframe@/stillframe",
    "REDIS_URL": "redis://localhost:6379/0",
    "ENGINES_FILE": "docs/engines.example.toml",
}


def manage(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`manage.py …` in an environment of its own: what is not given is not set."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    command = [sys.executable, "manage.py", *arguments]
    env = kept | {"DJANGO_SETTINGS_MODULE": "console.settings"} | environment
    return subprocess.run(command, check=False, cwd=settings.BASE_DIR, env=env, capture_output=True, text=True)


def show(expression: str, **environment: str) -> str:
    told = manage(
        "shell", "--no-imports", "-c", f"from django.conf import settings; print({expression})", **environment
    )
    assert told.returncode == 0, told.stderr
    return told.stdout.strip()


@pytest.mark.parametrize("missing", [name for name in PRODUCTION if name != "STILLFRAME_ENV"])
def test_production_refuses_to_start_without(missing, tmp_path):
    environment = {name: value for name, value in PRODUCTION.items() if name != missing}
    refused = manage("check", STILLFRAME_DATA=str(tmp_path), **environment)
    assert refused.returncode != 0
    assert f"{missing} is not set" in refused.stderr


def test_production_passes_djangos_own_checks(tmp_path):
    checked = manage("check", "--deploy", "--fail-level", "WARNING", STILLFRAME_DATA=str(tmp_path), **PRODUCTION)
    assert checked.returncode == 0, checked.stderr


def test_the_demo_cannot_be_made_in_production(tmp_path):
    refused = manage("demo", STILLFRAME_DATA=str(tmp_path), **PRODUCTION)
    assert refused.returncode != 0
    assert "CommandError" in refused.stderr


def test_development_keeps_a_secret_only_its_owner_can_read(tmp_path):
    first = show("settings.SECRET_KEY", STILLFRAME_DATA=str(tmp_path))
    assert len(first) > 50
    assert show("settings.SECRET_KEY", STILLFRAME_DATA=str(tmp_path)) == first
    assert (tmp_path / "secret-key").stat().st_mode & 0o777 == 0o600
    assert show("settings.SECRET_KEY", STILLFRAME_DATA=str(tmp_path / "other")) != first


def test_two_consoles_on_one_host_do_not_share_cookies(tmp_path):
    names = "settings.SESSION_COOKIE_NAME, settings.CSRF_COOKIE_NAME"
    one = show(names, STILLFRAME_DATA=str(tmp_path / "one"))
    assert one != show(names, STILLFRAME_DATA=str(tmp_path / "other"))


def test_libvirt_sockets_have_room_in_the_default_directory(tmp_path):
    """PrivateLibvirtd refuses a directory that is too long for UNIX sockets."""
    uri = show(
        "settings.ENGINES['kvm-1']['OPTIONS']['URI']", ENGINE="libvirt", STILLFRAME_DATA=str(tmp_path / ("x" * 80))
    )
    assert uri.startswith("qemu+unix:///session?socket=/")


def test_every_region_has_a_queue_of_its_own():
    assert set(settings.RQ_QUEUES) == {"short", *(f"long-{region}" for region in settings.ENGINES)}


@pytest.mark.django_db
def test_pages_load_nothing_from_elsewhere_and_run_nothing_inline(client):
    policy = client.get("/sign-in/").headers["Content-Security-Policy"]
    assert "default-src 'self'" in policy
    assert "unsafe" not in policy
