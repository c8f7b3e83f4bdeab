"""What people choose about instances. Whether it is possible now is decided in ``rules`` and ``actions``."""

from django import forms


class StopForm(forms.Form):
    force = forms.BooleanField(required=False)
