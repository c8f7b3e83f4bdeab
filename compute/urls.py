"""Pages of instances, below ``/r/<region>/``."""

from django.urls import path

from compute import views

urlpatterns = [
    path("instances/", views.instances, name="instances"),
    path("instances/poll/", views.instances_poll, name="instances-poll"),
    path("instances/<str:pk>/", views.instance, name="instance"),
    path("instances/<str:pk>/poll/", views.instance_poll, name="instance-poll"),
    path("instances/<str:pk>/start/", views.start, name="instance-start"),
    path("instances/<str:pk>/stop/", views.stop, name="instance-stop"),
]
