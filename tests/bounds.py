"""How long a test waits for what must happen at last."""

from __future__ import annotations

BOUND_S = 300.0
"""Only bounds a hang: a disk or a processor that is ten times slower than a developer's passes as well."""
