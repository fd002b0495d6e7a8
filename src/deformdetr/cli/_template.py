"""Config files with all settings and their descriptions."""

from collections.abc import Collection, Iterator

from pydantic import BaseModel

_COMMENT_COLUMN = 40


def commented_yaml(settings: BaseModel, *, leave_out: Collection[str] = ()) -> str:
    """Return settings as YAML, each with its description as a comment.

    Args:
        settings: Settings to write.
        leave_out: Dotted names of settings that are commented out.
    """
    return "\n".join(_lines(settings, "", "", leave_out)) + "\n"


def _lines(settings: BaseModel, indent: str, prefix: str, leave_out: Collection[str]) -> Iterator[str]:
    plain = settings.model_dump(mode="json")
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        if isinstance(value, BaseModel):
            yield _with_comment(f"{indent}{name}:", field.description)
            yield from _lines(value, f"{indent}  ", f"{prefix}{name}.", leave_out)
        else:
            mark = "# " if f"{prefix}{name}" in leave_out else ""
            yield _with_comment(f"{indent}{mark}{name}: {_scalar(plain[name])}", field.description)


def _scalar(value: object) -> str:
    import yaml

    text: str = yaml.safe_dump(value, default_flow_style=True, width=1000, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


def _with_comment(line: str, description: str | None) -> str:
    return f"{line:<{_COMMENT_COLUMN - 2}}  # {description}" if description else line
