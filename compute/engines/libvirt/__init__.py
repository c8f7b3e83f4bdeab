"""A region that is a libvirt host with QEMU."""

from compute.engines.libvirt.engine import LibvirtEngine

__all__ = ["LibvirtEngine"]
