"""Options that several commands share are declared once, as the fields of a dataclass."""

import copy
import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Annotated, Any, cast, get_args, get_type_hints


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command one option for each field of the dataclasses that its signature names.

    `def pull(*, bundle: BundleArgument, checks: BundleChecks)` has the options of `BundleChecks`, and is called with
    one `BundleChecks` object. In the help the options come where the parameter comes in the signature, in the order
    of the dataclass's fields, and in the panel that the dataclass names as `panel: ClassVar[str]`.
    """
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {name: hint for name, hint in hints.items() if dataclasses.is_dataclass(hint)}

    @functools.wraps(command)
    def flat(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = group(**{field.name: values.pop(field.name) for field in dataclasses.fields(group)})
        command(**values)

    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(command).parameters.values():
        if parameter.name in groups:
            parameters += _options(groups[parameter.name])
        else:
            parameters.append(parameter.replace(annotation=hints[parameter.name]))
    read_by_typer = cast(Any, flat)
    read_by_typer.__signature__ = inspect.Signature(parameters)
    read_by_typer.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return flat


def _options(group: Any) -> Iterator[inspect.Parameter]:
    hints, panel = get_type_hints(group, include_extras=True), getattr(group, "panel", None)
    for field in dataclasses.fields(group):
        default = inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default
        kind, option = get_args(hints[field.name])
        shown = copy.copy(option)  # the same option may be in another command's panel
        shown.rich_help_panel = option.rich_help_panel or panel
        annotation = cast(Any, Annotated)[kind, shown]
        yield inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
