"""Settings that a bake wrote into its record, read back and checked as those of builder.yaml are."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from builder.config.spec import Bake, Hydrate, Volume
from builder.errors import ConfigError


def settings_of(raw: dict[str, Any], **changes: Any) -> Bake:
    """The settings of a record, with those of `changes` that are not None. Raises ConfigError for a value out of range.

    changes: region, os_version, type, iops, throughput, mode, mib_per_s.
    """
    merged = {name: value for name, value in changes.items() if value is not None}

    def part(at: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
        return {name: merged.get(name, at[name]) for name in names if name in merged or at.get(name) is not None}

    try:
        return Bake(
            volume=Volume(**part(raw["volume"], ("type", "iops", "throughput"))),
            hydrate=Hydrate(**part(raw["hydrate"], ("mode", "mib_per_s"))),
            **part(raw, ("region", "os_version")),
        )
    except ValidationError as exc:
        first = exc.errors()[0]
        where = ".".join(str(step) for step in first["loc"])
        raise ConfigError(f"{where}: {first['msg']}; found {first['input']!r}") from exc
    except (KeyError, TypeError, AttributeError) as exc:
        raise ConfigError(f"settings of the record: {type(exc).__name__} at {exc}") from exc
