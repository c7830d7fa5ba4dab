"""Reading a job's configuration: YAML files plus dotted overrides, with one-line errors."""

import argparse
import contextlib
import dataclasses
import difflib
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

import yaml
from jsonargparse import ArgumentParser, Namespace, get_loader

from voxfleet.errors import UserError

# how jsonargparse refuses numbers, true, false and null where a text is expected
_NOT_TEXT = r"Expected a str\. Got value: [^\[{]|Expected a str\b.* Given value type: (int|float|bool) "


def parse_config(cls: type, job: str, arguments: list[str]) -> Any:
    """An instance of the configuration dataclass ``cls`` from ``--config FILE`` and ``--key.sub value``.

    Raises:
        UserError: names the key, its value and what is allowed.
        SystemExit: after --help or --print_config.
    """
    parser, arguments = parser_of(cls, job), _with_flags(cls, arguments)
    for _, source, node in _yaml_arguments(arguments):
        _check_keys(node, source)
    try:
        namespace = parser.parse_args(arguments)
    except (argparse.ArgumentError, UnicodeDecodeError) as error:
        raise UserError(explain(parser, job, arguments, getattr(error, "message", str(error)))) from error
    except ValueError as error:  # where a group is expected, a text is tried as the name of a file
        raise UserError(f"the configuration of {job} cannot be read: {error}; {job} --help lists the keys") from error
    _check_values(cls, namespace)
    try:
        values = parser.instantiate(namespace)
        return cls(**{field.name: values[field.name] for field in dataclasses.fields(cls)})
    except ValueError as error:
        raise UserError(_with_group(cls, namespace, error)) from error


def read_config(cls: type, job: str, document: dict[str, Any]) -> Any:
    """An instance of ``cls`` from a document that an earlier run of ``job`` left.

    Raises:
        UserError: if the document is of another version of the software.
    """
    parser = parser_of(cls, job)
    try:
        values = parser.instantiate(parser.parse_object(document))
        return cls(**{field.name: values[field.name] for field in dataclasses.fields(cls)})
    except (argparse.ArgumentError, ValueError, TypeError, KeyError) as error:
        message = " ".join(str(getattr(error, "message", error)).split())
        raise UserError(f"the configuration of {job} is not one of this version ({message}); use its own") from error


def _check_values(cls: type, namespace: Namespace, prefix: str = "") -> None:
    """Refuse what jsonargparse lets pass: tuples and groups that are null, groups that are empty lists, empty text."""
    for name, kind in get_type_hints(cls).items():
        value = namespace.get(name, ...)
        if value is None and type(None) not in get_args(kind):
            raise UserError(f"config key {prefix}{name} has no value, which it needs; give one, or remove the line")
        if value == "":
            raise UserError(f"config key {prefix}{name} is empty (from a variable that is not set?); give a value")
        if dataclasses.is_dataclass(kind) and isinstance(kind, type) and value is not ...:
            if not isinstance(value, Namespace):
                raise UserError(f"config key {prefix}{name} is {value!r}; it is a group: give its keys")
            _check_values(kind, value, f"{prefix}{name}.")


def _with_flags(cls: type, arguments: list[str]) -> list[str]:
    """``arguments`` with ``--dry-run``, where ``dry_run`` is yes or no, made ``--dry_run true``."""
    flags = {f"--{field.name.replace('_', '-')}": field.name for field in dataclasses.fields(cls) if field.type is bool}
    found: list[str] = []
    for argument, after in itertools.zip_longest(arguments, arguments[1:], fillvalue="--"):
        if argument in flags and after.startswith("--"):
            found += [f"--{flags[argument]}", "true"]
        else:
            found.append(f"--{flags[argument]}" if argument in flags else argument)
    return found


def _yaml_arguments(arguments: list[str]) -> Iterator[tuple[str, str, yaml.Node]]:
    """The key ("" of --config), the file or option, and the YAML of each argument that is YAML."""
    for argument, after in itertools.zip_longest(arguments, arguments[1:], fillvalue=""):
        option, equals, value = argument.partition("=")
        if not option.startswith("--"):
            continue
        text = source = value if equals else after
        with contextlib.suppress(OSError, ValueError, yaml.YAMLError):  # jsonargparse says what is no YAML
            if not source.startswith("{") and (option == "--config" or source.endswith((".yaml", ".yml", ".json"))):
                # a pipe can be read only once
                text = Path(source).read_text(encoding="utf-8") if Path(source).is_file() else ""
            else:
                source = option
            if node := yaml.compose(text, Loader=yaml.SafeLoader):
                yield option[2:] if option != "--config" else "", source, node


def _check_keys(node: yaml.Node, source: str, prefix: str = "", above: tuple[yaml.Node, ...] = ()) -> None:
    """Refuse keys that stand twice in a mapping, keys that are not read as text, and an alias inside its own anchor."""
    if node in above:
        raise UserError(
            f"line {node.start_mark.line + 1} of {source}: the anchor of {prefix[:-1]} contains itself; write it out"
        )
    lines: dict[str, int] = {}
    for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
        name, line = str(key.value), key.start_mark.line + 1
        if isinstance(key, yaml.ScalarNode) and name in lines:
            raise UserError(
                f"config key {prefix}{name} stands twice in {source}, in lines {lines[name]} and {line}; remove one"
            )
        if isinstance(key, yaml.ScalarNode) and name != "<<" and not _is_text(key):
            raise UserError(
                f"line {line} of {source}: the key {prefix}{name} is not read as text; quote it: {_quoted(key)}"
            )
        lines[name] = line
        _check_keys(value, source, f"{prefix}{name}.", (*above, node))
    for value in node.value if isinstance(node, yaml.SequenceNode) else ():
        _check_keys(value, source, prefix, (*above, node))


def _is_text(node: yaml.ScalarNode) -> bool:
    """Whether jsonargparse reads a scalar as text, not as a number, true, false or null."""
    with contextlib.suppress(yaml.YAMLError):  # jsonargparse says it
        return bool(node.style) or isinstance(get_loader("yaml")(node.value), str)
    return True


def _quoted(node: yaml.Node) -> str:
    """YAML in one line, every value of it in quotes."""
    if isinstance(node, yaml.SequenceNode):
        return f"[{', '.join(map(_quoted, node.value))}]"
    if isinstance(node, yaml.MappingNode):
        return f"{{{', '.join(f'{key.value}: {_quoted(value)}' for key, value in node.value)}}}"
    return "'" + node.value.replace("'", "''") + "'"


def _with_quotes(key: str, arguments: list[str]) -> str:
    """The value of ``key`` as it is written as text; "quote it" where it is not found in ``arguments``."""
    form = "quote it"
    for option, _, node in _yaml_arguments(arguments):
        if option and not f"{key}.".startswith(f"{option}."):
            continue
        value: yaml.Node | None = node
        for part in filter(None, key[len(option) :].split(".")):
            pairs = value.value if isinstance(value, yaml.MappingNode) else []
            value = next((item for name, item in pairs if name.value == part), None)
        if value:
            end = key.rpartition(".")[2]
            form = f'write --{key} "{_quoted(value)}"' if option == key else f"write {end}: {_quoted(value)}"
    return form


def parser_of(cls: type, job: str) -> ArgumentParser:
    """The parser of a job's configuration dataclass."""
    parser = ArgumentParser(prog=f"voxfleet {job}", exit_on_error=False, description=(cls.__doc__ or "").split("\n")[0])
    parser.add_argument("--config", action="config", help="a YAML file of the keys below; may be given several times")
    parser.add_class_arguments(cls, None)
    return parser


def explain(parser: ArgumentParser, job: str, arguments: list[str], message: str) -> str:
    """jsonargparse's message in one line, in terms of keys, with what to do."""
    help_hint = f"`voxfleet {job} --help` lists the keys"
    # a list of groups: what is wrong is a key of one of them, which is not a key of the parser
    in_list = r"""Parser key "(?P<key>[\w.]+)":\s*Problem with given class_path '[\w.]+':\s*(?P<why>.*)"""
    if entry := re.search(in_list, message, re.DOTALL):
        return f"config key {entry['key']}: {_plain(entry['why'])}; {help_hint}"
    unknown = (
        re.search(r"Group '(?P<group>[\w.]+)' does not accept option '(?P<key>[\w.]+)'", message)
        or re.search(r"Option '(?P<key>[\w.]+)' is not accepted", message)
        or re.search(r"unrecognized arguments: --(?P<key>[\w.]+)", message)
    )
    if unknown:
        found = unknown.groupdict()
        key = ".".join(part for part in (found.get("group"), found["key"]) if part)
        known = [action.dest for action in parser._actions]
        close = difflib.get_close_matches(key, known, n=1)
        return f"config key {key} is not known{f'; did you mean {close[0]}?' if close else ''}; {help_hint}"
    wrong = re.search(r'Parser key "(?P<key>[\w.]+)":\s*(?P<why>.*)', message, re.DOTALL)
    if wrong:
        key, why = wrong["key"], re.sub(r"<class '(\w+)'>", r"\1", " ".join(wrong["why"].split()))
        kind = next((getattr(action, "_typehint", None) for action in parser._actions if action.dest == key), None)
        is_list_of_text = str in get_args(kind) and re.match(r"Expected a tuple\. Got value: [^\[{]", why)
        if is_list_of_text or re.search(_NOT_TEXT, why):
            form, kind_of_text = _with_quotes(key, arguments), "text, which needs quotes here"
            if is_list_of_text:
                form, kind_of_text = re.sub(r"'.*'", r"[\g<0>]", form), "a list of text"
            return f"config key {key}: it is {kind_of_text}; {form}; {help_hint}"
        return f"config key {key}: {_plain(why)}; {help_hint}"
    missing = re.search(r"the following arguments are required: (.*)", message)
    if missing:
        return f"config key {missing[1]} is missing; give it in the file, or as --{missing[1].split(',')[0]} VALUE"
    if re.match(r"Problems parsing config|Unexpected config|.* codec can't decode", message):
        files = [value for flag, value in itertools.pairwise(arguments) if flag == "--config"]
        message = f"{', '.join(files)} is not YAML of keys and values: {message}"
    return " ".join(message.split())


def _plain(why: str) -> str:
    """A reason in one line, without the names of Python's classes and of the parser's parts."""
    plain = re.sub(r'Parser key "(\w+)":', r"\1:", re.sub(r"<class '(\w+)'>", r"\1", " ".join(why.split())))
    plain = re.sub(r"Expected a str\. Got value: ([^\[{\s]\S*)$", r"\1 is not text; quote it", plain)
    return re.sub(r"Expected a tuple\. Got value: ([^\[{\s]\S*)$", r"it is a list; write '[\1]'", plain)


def _with_group(cls: type, namespace: Namespace, error: ValueError) -> str:
    """The message of a refused value, its key made whole: "depth is 0" as "model.depth is 0"."""
    hints = get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if not dataclasses.is_dataclass(hints[field.name]):
            continue
        try:
            hints[field.name](**vars(namespace[field.name]))
        except ValueError as refused:
            return f"{field.name}.{refused}"
    return str(error)
