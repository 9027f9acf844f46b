"""`segue config`: the settings in force."""

from __future__ import annotations

import os

from rich.console import Console
from rich.table import Table


def config_command() -> None:
    """Show every setting, its value and where it comes from; wrong ones are refused, by name."""
    from segue.settings import PREFIX, load

    settings = load()
    table = Table("setting", "value", "from", box=None, pad_edge=False)
    for name, value in settings.model_dump().items():
        variable = PREFIX + name.upper()
        shown = "(set, not shown)" if name in ("kafka_options", "redis") and value else str(value)
        origin = "environment" if variable in os.environ else ".env" if name in settings.model_fields_set else "default"
        table.add_row(variable, shown, origin)
    Console().print(table)
