"""The wire format: three .proto files, the code generated from them, and the limits every reader keeps.

`device.proto` is what a device and its leaf say, `enrol.proto` how a device joins, `sites.proto` what sites say and how
things are signed. The generated modules are checked in; `nox -s wire` makes them anew.
"""

__all__ = ["limits"]
