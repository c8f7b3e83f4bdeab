"""Pages of images, below ``/r/<region>/``; making one begins at its instance."""

from django.urls import path

from images import views

urlpatterns = [
    path("instances/<str:pk>/create-image/", views.create, name="image-create"),
    path("instances/<str:pk>/create-image/takes/", views.takes, name="image-create-takes"),
    path("images/", views.images, name="images"),
    path("images/poll/", views.images_poll, name="images-poll"),
    path("images/<str:pk>/", views.image, name="image"),
    path("images/<str:pk>/poll/", views.image_poll, name="image-poll"),
    path("images/<str:pk>/cancel/", views.cancel, name="image-cancel"),
    path("images/<str:pk>/delete/", views.delete, name="image-delete"),
    path("images/<str:pk>/share/", views.share, name="image-share"),
    path("images/<str:pk>/launch/", views.launch, name="image-launch"),
]
