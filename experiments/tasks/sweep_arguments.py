"""Changes of the arguments of ``python run.py`` before Hydra reads them."""

from collections.abc import Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException


def sweepable(arguments: Sequence[str]) -> list[str]:
    """If a group is swept, rewrite plain settings as one-value sweeps.

    Before it starts the jobs of ``-m estimator=tracin,retrac estimator.checkpoints=3``, Hydra composes a config without the swept
    arguments. The default estimator, which has no checkpoints, refuses the setting. As ``estimator.checkpoints=choice(3)`` it is
    swept too, so that only the jobs receive it.
    """
    parsed = [_parsed(argument) for argument in arguments]
    multirun = any(argument in ("-m", "--multirun") or argument.endswith("hydra.mode=MULTIRUN") for argument in arguments)
    if not multirun or not any(
        override and override.is_sweep_override() and "." not in override.key_or_group for override in parsed
    ):
        return list(arguments)
    return [
        _choice(argument) if override and _is_plain_setting(override) else argument
        for argument, override in zip(arguments, parsed, strict=True)
    ]


def _parsed(argument: str) -> Override | None:
    if argument.startswith("-") or "=" not in argument:
        return None
    try:
        return OverridesParser.create().parse_override(argument)
    except HydraException:  # Hydra reports it
        return None


def _is_plain_setting(override: Override) -> bool:
    swept_or_deleted = override.is_sweep_override() or override.is_delete()
    return "." in override.key_or_group and not (swept_or_deleted or override.is_hydra_override())


def _choice(argument: str) -> str:
    key, _, value = argument.partition("=")
    return f"{key}=choice({value})" if value else argument
