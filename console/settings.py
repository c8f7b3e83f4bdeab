"""One settings file, three ways to run, chosen by STILLFRAME_ENV.

development (the default): `manage.py` by hand in a virtualenv; everything private to this checkout, nothing to set.
demo: what `make run` starts; as development, but without DEBUG and behind gunicorn.
production: everything comes from the environment, and what is missing is a refusal to start, never a default.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import tomllib
from pathlib import Path
from typing import Any

import environ
from django.core.exceptions import ImproperlyConfigured
from django.utils.translation import gettext_lazy as _

from console.database import database
from console.libvirtd import PrivateLibvirtd
from console.secret import kept_secret

env = environ.Env()
BASE_DIR = Path(__file__).resolve().parent.parent

MODE: str = env.str("STILLFRAME_ENV", default="development")
if MODE not in ("development", "demo", "production"):
    raise ImproperlyConfigured(f"STILLFRAME_ENV is {MODE!r}: choose development, demo or production.")
PRODUCTION = MODE == "production"
DEBUG = MODE == "development"

if PRODUCTION:
    for name in ("SECRET_KEY", "ALLOWED_HOSTS", "DATABASE_URL", "REDIS_URL", "ENGINES_FILE"):
        if not os.environ.get(name):
            raise ImproperlyConfigured(f"{name} is not set: in production it has no default (see docs/operating.md).")

# Where this installation keeps what it makes, and its sockets: apart and short, since their paths end at 108 bytes.
DATA = Path(env.str("STILLFRAME_DATA", default=str(BASE_DIR / "var" / MODE))).absolute()
_id = hashlib.sha256(str(DATA).encode()).hexdigest()[:10]
SOCKETS = Path(env.str("STILLFRAME_SOCKETS", default=f"{tempfile.gettempdir()}/sf-{_id[:8]}"))

SECRET_KEY = env.str("SECRET_KEY") if PRODUCTION else kept_secret(DATA / "secret-key")
ALLOWED_HOSTS = env.list("ALLOWED_HOSTS") if PRODUCTION else ["localhost", "127.0.0.1", "[::1]"]

LIBVIRTD = SOCKETS / "l"

# Regions -------------------------------------------------------------------------------------------------------------
# {region: {"BACKEND": class, "OPTIONS": {…}, "LONG_LIMIT": long operations that may run at once}}


def _engines() -> dict[str, dict[str, Any]]:
    if path := env.str("ENGINES_FILE", default=""):
        return tomllib.loads(Path(path).read_text())
    if env.str("ENGINE", default="folder") == "libvirt":
        options = {
            "URI": PrivateLibvirtd(LIBVIRTD).uri,
            "STORE": str(DATA / "store"),
            "DISKS": str(DATA / "disks"),
            "LOCAL_POOLS": [str(DATA / "local")],
        }
        return {"kvm-1": {"BACKEND": "compute.engines.libvirt.LibvirtEngine", "OPTIONS": options, "LONG_LIMIT": 2}}
    options = {"ROOT": str(DATA / "folder")}
    return {"folder-1": {"BACKEND": "compute.engines.folder.FolderEngine", "OPTIONS": options, "LONG_LIMIT": 2}}


ENGINES = _engines()

# Modules whose JOBS say what kinds of operation there are.
JOBS = ["compute.jobs", "images.jobs"]

# Seconds: a holder's silence, a step that stands still, a step that reports no progress.
LIMIT_SILENCE = env.float("LIMIT_SILENCE", default=120.0)
LIMIT_STALL = env.float("LIMIT_STALL", default=300.0)
LIMIT_MAXIMUM = env.float("LIMIT_MAXIMUM", default=180.0)

# Who has it may read /metrics; without one only staff may.
METRICS_TOKEN = env.str("METRICS_TOKEN", default="")

# Database ------------------------------------------------------------------------------------------------------------

DATABASES = {"default": database(env.str("DATABASE_URL", default=f"sqlite:///{DATA}/stillframe.sqlite3"))}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

# Queue ---------------------------------------------------------------------------------------------------------------
# Redis is a wake-up call only. Without REDIS_URL it is a private Valkey (see console/valkey.py).

PRIVATE_REDIS = not env.str("REDIS_URL", default="")
REDIS_URL: str = env.str("REDIS_URL", default="") or f"unix://{SOCKETS}/valkey.sock"
# Our own limits end what stands still: RQ must not (-1 = no time-out).
RQ_QUEUES = {
    name: {"URL": REDIS_URL, "DEFAULT_TIMEOUT": -1} for name in ("short", *(f"long-{region}" for region in ENGINES))
}
RQ = {"COMMIT_MODE": "auto", "DEFAULT_RESULT_TTL": 60}
# Its admin entry is every staff user's; console.urls has the same pages for superusers only.
RQ_SHOW_ADMIN_LINK = False

# Django --------------------------------------------------------------------------------------------------------------

ROOT_URLCONF = "console.urls"
CSRF_FAILURE_VIEW = "console.views.forged"
WSGI_APPLICATION = "console.wsgi.application"

INSTALLED_APPS = [
    "console",
    "compute",
    "images",
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    # Before staticfiles: runserver then serves static files the way gunicorn does.
    "whitenoise.runserver_nostatic",
    "django.contrib.staticfiles",
    "django.contrib.humanize",
    "django_htmx",
    "template_partials",
    "django_rq",
    "axes",
]

MIDDLEWARE = [
    "console.middleware.request_id",
    "django.middleware.security.SecurityMiddleware",
    "console.middleware.content_security_policy",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.locale.LocaleMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "django_htmx.middleware.HtmxMiddleware",
    "console.middleware.readers_zone",
    "console.middleware.SignInRequired",
    "console.middleware.Refusals",
    "axes.middleware.AxesMiddleware",
]

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.template.context_processors.i18n",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
                "console.context.console",
            ],
        },
    },
]

STATIC_URL = "static/"
STATICFILES_DIRS = [BASE_DIR / "static"]
STATIC_ROOT = DATA / "static"
if DEBUG:
    # Static files come from where they lie; WhiteNoise still warns of a root that is not there.
    STATIC_ROOT.mkdir(parents=True, exist_ok=True)
else:
    STORAGES = {
        "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
        "staticfiles": {"BACKEND": "whitenoise.storage.CompressedManifestStaticFilesStorage"},
    }

USE_TZ = True
TIME_ZONE = "UTC"
LANGUAGE_CODE = "en"
LANGUAGES = [("en", _("English")), ("zh-hans", _("Simplified Chinese"))]
LOCALE_PATHS = [BASE_DIR / "console" / "locale"]

# Accounts ------------------------------------------------------------------------------------------------------------

LOGIN_URL = "login"
LOGIN_REDIRECT_URL = "/"
LOGOUT_REDIRECT_URL = "login"
AUTHENTICATION_BACKENDS = ["axes.backends.AxesStandaloneBackend", "django.contrib.auth.backends.ModelBackend"]
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": f"django.contrib.auth.password_validation.{name}"}
    for name in (
        "UserAttributeSimilarityValidator",
        "MinimumLengthValidator",
        "CommonPasswordValidator",
        "NumericPasswordValidator",
    )
]
# Ten wrong passwords for one account from one address: a quarter of an hour's pause.
AXES_FAILURE_LIMIT = 10
AXES_COOLOFF_TIME = 0.25
AXES_LOCKOUT_PARAMETERS = [["username", "ip_address"]]
AXES_RESET_ON_SUCCESS = True
AXES_VERBOSE = False
AXES_ENABLE_ADMIN = False
AXES_LOCKOUT_CALLABLE = "console.views.locked_out"

# Who asks these is beside the server, not a browser behind the proxy that ends TLS.
SECURE_REDIRECT_EXEMPT = [r"^(healthz|readyz|metrics)$"]
SESSION_COOKIE_HTTPONLY = True
if PRODUCTION:
    SECURE_SSL_REDIRECT = True
    SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = True
    SECURE_HSTS_SECONDS = 365 * 24 * 3600
    # Strict transport is promised for the console's own host only: it cannot speak for the rest of its domain.
    SILENCED_SYSTEM_CHECKS = ["security.W005", "security.W021"]
else:
    # Cookies know hosts but not ports: without own names, two consoles on one machine sign each other out.
    SESSION_COOKIE_NAME = f"stillframe-session-{_id}"
    CSRF_COOKIE_NAME = f"stillframe-csrf-{_id}"

# Log: one line each, with the operation it is about (see compute/log.py) -------------------------------------------

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {
        "line": {
            "()": "logging.Formatter",
            "fmt": "{asctime} {levelname} {name} [{operation}] {message}",
            "style": "{",
        },
    },
    "filters": {"operation": {"()": "compute.log.OperationFilter"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line", "filters": ["operation"]}},
    "root": {"handlers": ["stderr"], "level": "INFO"},
    "loggers": {
        "rq": {"level": "WARNING"},
        "axes": {"level": "WARNING"},
    },
}
