"""Configuration: frozen pydantic models, filled from defaults, YAML files and dotted overrides, in this order.

The YAML dialect is the JSON-like core of YAML 1.2: `1e-6` is a number, `off`, `no`, `007` and `12:30` are text, and a
key that is written twice is an error. Nothing is interpolated, so a prompt may say `${anything}`.
"""

import inspect
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator
from pydantic_core import ErrorDetails, PydanticCustomError, PydanticUndefined, to_jsonable_python

from agentflow.errors import ConfigError

_MAX_SHOWN_CHARACTERS = 80
_PASSWORD = re.compile(r"//[^/@\s]*@")  # in an address
_MAX_SHOWN_ERRORS = 3


class Config(BaseModel):
    """Base of every component's options: frozen, and an option nobody knows is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_truth_for_number(cls, value: Any, info: ValidationInfo) -> Any:
        # Pydantic would read `lr: true` as a learning rate of 1.
        annotation = cls.model_fields[str(info.field_name)].annotation
        accepted = {annotation, *get_args(annotation)}
        if isinstance(value, bool) and accepted & {int, float} and bool not in accepted:
            raise PydanticCustomError("number_type", "Input should be a number, not true or false")
        return value


ModelT = TypeVar("ModelT", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Option:
    """One option of a configuration, for `agentflow config show`.

    Attributes:
        name: Its full dotted name.
        type: Its type as a reader would write it.
        default: Its default as YAML, or `required`.
        description: The sentence that says what it means, with its unit.
    """

    name: str
    type: str
    default: str
    description: str


def load_config(
    model: type[ModelT],
    files: Sequence[Path] = (),
    *,
    overrides: Sequence[str] = (),
    defaults: Mapping[str, Any] | None = None,
) -> ModelT:
    """Build a configuration: the model's own defaults < `defaults` < files in order < overrides in order.

    Args:
        model: What the result must be.
        files: YAML files, each a mapping with the shape of the model.
        overrides: Words `section.key=value`; the value is read as YAML.
        defaults: Nested values that a recipe or the caller presets.

    Raises:
        ConfigError: A file is missing or no YAML, a name is unknown, a value has the wrong type.
    """
    return validate_options(model, gather(files, overrides=overrides, defaults=defaults), owner="The configuration")


def gather(
    files: Sequence[Path] = (), *, overrides: Sequence[str] = (), defaults: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Merge the sources of a configuration as `load_config` does, without validating the result.

    Raises:
        ConfigError: A file is missing or no YAML, or a word is not `section.key=value`.
    """
    values: dict[str, Any] = dict(defaults or {})
    for file in files:
        values = merge(values, read_yaml(file))
    for override in overrides:
        values = merge(values, _parse_override(override))
    return values


def is_changed(config: BaseModel, name: str) -> bool:
    """Say whether an option has another value than its default: what has none of its own cannot be inert."""
    return bool(getattr(config, name) != type(config).model_fields[name].get_default(call_default_factory=True))


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with the values of `over`: mappings merge key by key, everything else is replaced.

    A mapping that names another `kind` replaces the old one whole, so that no option of the old kind is left over. A
    mapping over a list changes its entries, named by their `kind` or their index: null takes one out, an unknown kind
    is added. `{"loss": {"kl": {"coefficient": 0.1}}}` gives a list of loss terms a stronger, or a first, KL penalty.

    Raises:
        ConfigError: An entry of a list is named by a kind that stands there twice, or by an index that is not there.
    """
    merged = dict(base)
    for key, value in over.items():
        merged[key] = _merged(merged.get(key), value, key)
    return merged


def _merged(old: Any, new: Any, name: str) -> Any:
    if not isinstance(new, Mapping):
        return new
    if isinstance(old, list | tuple):
        return [new] if "kind" in new else _merged_entries(old, new, name)
    same_kind = isinstance(old, Mapping) and ("kind" not in new or new["kind"] == old.get("kind"))
    return merge(old, new) if same_kind else new


def _merged_entries(old: Sequence[Any], new: Mapping[str, Any], name: str) -> list[Any]:
    entries = list(old)
    for key, value in new.items():
        found = [i for i, entry in enumerate(entries) if isinstance(entry, Mapping) and entry.get("kind") == key]
        found = found or [i for i in range(len(entries)) if key == str(i)]
        if len(found) > 1:
            raise ConfigError(f"{name}.{key}: {key!r} stands there {len(found)} times.", "Name the entry by its index.")
        if key.isdigit() and not found:
            raise ConfigError(f"{name}.{key}: the list has {len(entries)} entries.", "Indices start at 0.")
        if not found:
            entries += [] if value is None else [{"kind": key, **(value if isinstance(value, Mapping) else {})}]
        elif value is None:
            del entries[found[0]]
        else:
            entries[found[0]] = _merged(entries[found[0]], value, f"{name}.{key}")
    return entries


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds a mapping; an empty file is an empty mapping.

    Raises:
        ConfigError: The file is missing, is no YAML, or holds something else.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # noqa: S506  a SafeLoader
    except OSError as error:
        raise ConfigError(f"Cannot read the configuration file {path}: {error.strerror}.", "Check the path.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {_one_line(error)}.") from None
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ConfigError(f"{path} must hold `name: value` lines, not {_shown(content)}.")
    return content


def to_yaml(config: BaseModel) -> str:
    """Write a configuration as the YAML that `read_yaml` turns into an equal one."""
    return yaml.dump(config.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def validate_options(model: type[ModelT], options: Mapping[str, Any], owner: str) -> ModelT:
    """Validate options against their model.

    Raises:
        ConfigError: With the option, its value, the constraint and the nearest known name.
    """
    try:
        return model.model_validate(dict(options))
    except ValidationError as error:
        raise ConfigError(describe_validation_error(error, model, owner)) from None


def describe_validation_error(error: ValidationError, model: type[BaseModel], owner: str) -> str:
    """Say in one line what is wrong with the first few options, with a did-you-mean for unknown names."""
    return " ".join(_sentence(item, model, owner) for item in error.errors()[:_MAX_SHOWN_ERRORS])


def describe(model: type[BaseModel]) -> tuple[Option, ...]:
    """List every option of a model and of the models nested in it, in the order of definition."""
    return tuple(_describe(model, "", default=None))


def option_names(model: type[BaseModel]) -> tuple[str, ...]:
    """List the full dotted names of a model's options, so that a test can freeze them."""
    return tuple(option.name for option in describe(model))


def suggest(name: str, known: Sequence[str]) -> str:
    """Return `Did you mean ...?` for a mistyped dotted name, or the names it could be if none is near."""
    section, _, key = name.rpartition(".")
    inside = f"{section}." if section else ""
    siblings = dict.fromkeys(option[len(inside) :].split(".")[0] for option in known if option.startswith(inside))
    near = [f"{inside}{sibling}" for sibling in get_close_matches(key, siblings, n=1) or _abbreviated(key, siblings)]
    # A bare `seed` means `run.seed`; in an unknown section, the nearest full name is meant.
    near = near or [option for option in known if option.rpartition(".")[2] == key]
    near = near or ([] if siblings and section else get_close_matches(name, known, n=1))
    if near:
        return f"Did you mean {near[0]!r}?"
    choices = [f"{inside}{sibling}" for sibling in siblings] or list(known)
    return f"Known: {', '.join(choices) or 'none'}."


def _abbreviated(key: str, names: Iterable[str]) -> list[str]:
    """Find what `lr` stands for: `learning_rate`."""
    return [name for name in names if key == "".join(word[:1] for word in name.split("_"))]


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Build a mapping, and refuse a key that is written twice."""
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = next((key for i, key in enumerate(keys) if key in keys[:i]), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(None, None, f"{twice!r} is written twice", node.start_mark)
        return super().construct_mapping(node, deep=deep)


class _Dumper(yaml.SafeDumper):
    """Quotes every text that `_Loader`, or any other YAML reader, would take for something else."""

    def ignore_aliases(self, data: Any) -> bool:
        """Write equal values twice instead of as an anchor and its alias."""
        return True


_FLOAT = (
    r"[-+]?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)
_SCALARS = (
    ("null", r"null|Null|NULL|~|", ["n", "N", "~", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(?:0|[1-9][0-9]*)", list("-+0123456789")),
    ("float", _FLOAT, list("-+.0123456789")),
)
_Loader.yaml_implicit_resolvers = {}  # forget YAML 1.1: only these scalars are read as anything but text
for _tag, _pattern, _first in _SCALARS:
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"(?:{_pattern})\\Z"), _first)
    _Dumper.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"(?:{_pattern})\\Z"), _first)


def _parse_override(text: str) -> dict[str, Any]:
    name, equals, written = text.partition("=")
    if not equals or not all(part.strip() for part in name.split(".")):
        raise ConfigError(f"{text!r} is not an override.", "Write section.key=value, for example learner.lr=1e-4.")
    value = _parse_value(text, written.strip())
    for part in reversed(name.strip().split(".")):
        value = {part: value}
    return dict(value)


def _parse_value(override: str, written: str) -> Any:
    try:
        if written.startswith(("[", "{", '"', "'")):
            return yaml.load(written, _Loader)  # noqa: S506  a SafeLoader
        # A plain word is one scalar even where YAML would see a comment, an anchor or a mapping (`Answer: #1`).
        loader: Any = _Loader("")
        tag = loader.resolve(yaml.ScalarNode, written, (True, False)) if written else "tag:yaml.org,2002:str"
        return loader.construct_object(yaml.ScalarNode(tag, written))
    except yaml.YAMLError as error:
        raise ConfigError(f"The value in {override!r} is not YAML: {_one_line(error)}.") from None


def _sentence(item: ErrorDetails, model: type[BaseModel], owner: str) -> str:
    path = ".".join(str(part) for part in item["loc"])
    message = item["msg"].removeprefix("Value error, ").rstrip(".")
    if item["type"] == "extra_forbidden":
        return f"{owner} has no option {path!r}. {suggest(path, _known_names(model, path.split('.')))}"
    if item["type"] == "missing":
        return f"{owner} needs a value for {path!r}."
    if not path:
        return f"{owner}: {message}."
    return f"{owner} option {path!r} = {_shown(item.get('input'))}: {message}."


def _known_names(model: type[BaseModel], path: Sequence[str]) -> tuple[str, ...]:
    """List the options of a model; where the path leads into a mapping of models, those of the entry it names."""
    inside: type[BaseModel] | None = model
    for depth, part in enumerate(path):
        field = inside.model_fields.get(part) if inside is not None else None
        if field is None:
            break
        entry = _nested_model(get_args(field.annotation)[-1]) if get_origin(field.annotation) is dict else None
        if entry is not None:
            return tuple(".".join([*path[: depth + 2], name]) for name in option_names(entry))
        inside = _nested_model(field.annotation)
    return option_names(model)


def _describe(model: type[BaseModel], prefix: str, *, default: BaseModel | None) -> Iterator[Option]:
    for name, field in model.model_fields.items():
        value = getattr(default, name) if default is not None else field.get_default(call_default_factory=True)
        nested = _nested_model(field.annotation)
        if nested is not None:
            yield from _describe(nested, f"{prefix}{name}.", default=value if isinstance(value, nested) else None)
        else:
            shown = "required" if value is PydanticUndefined else _as_yaml(value)
            yield Option(f"{prefix}{name}", _type_text(field.annotation), shown, field.description or "")


def _nested_model(annotation: Any) -> type[BaseModel] | None:
    models = [kind for kind in (annotation, *get_args(annotation)) if _is_model(kind)]
    others = [kind for kind in get_args(annotation) if kind is not NoneType and not _is_model(kind)]
    return models[0] if len(models) == 1 and not others else None


def _is_model(kind: Any) -> bool:
    return inspect.isclass(kind) and issubclass(kind, BaseModel)


def _type_text(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type_text(arguments[0])
    if origin is Literal:
        return " | ".join(map(str, arguments))
    if origin in (Union, UnionType):
        return " | ".join(map(_type_text, arguments))
    if arguments:
        return f"{origin.__name__}[{', '.join(map(_type_text, arguments))}]"
    if annotation in (NoneType, Ellipsis):
        return "None" if annotation is NoneType else "..."
    return str(getattr(annotation, "__name__", annotation))


def _as_yaml(value: Any) -> str:
    plain = to_jsonable_python(value, fallback=str)
    text = yaml.dump(plain, Dumper=_Dumper, default_flow_style=True, allow_unicode=True, width=10_000)
    return text.removesuffix("\n").removesuffix("\n...")


def _shown(value: Any) -> str:
    text = _PASSWORD.sub("//***@", repr(value))
    return text if len(text) <= _MAX_SHOWN_CHARACTERS else text[: _MAX_SHOWN_CHARACTERS - 3] + "..."


def _one_line(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"line {error.problem_mark.line + 1}, column {error.problem_mark.column + 1}: {error.problem}"
    return " ".join(str(error).split())
