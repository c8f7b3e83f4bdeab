"""A region that is a libvirt host with QEMU."""
