"""Reading a job's configuration: YAML files plus dotted overrides, with one-line errors."""

import argparse
import dataclasses
import difflib
import itertools
import re
from typing import Any, get_args, get_type_hints

from jsonargparse import ArgumentParser, Namespace

from voxfleet.errors import UserError


def parse_config(cls: type, job: str, arguments: list[str]) -> Any:
    """An instance of the configuration dataclass ``cls`` from ``--config FILE`` and ``--key.sub value``.

    Raises:
        UserError: names the key, its value and what is allowed.
        SystemExit: after --help or --print_config.
    """
    parser, arguments = parser_of(cls, job), _with_flags(cls, arguments)
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
    """Refuse what jsonargparse lets pass: tuples and groups that are null, and groups that are empty lists."""
    for name, kind in get_type_hints(cls).items():
        value = namespace.get(name, ...)
        if value is None and type(None) not in get_args(kind):
            raise UserError(f"config key {prefix}{name} has no value, which it needs; give one, or remove the line")
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
        return f"config key {wrong['key']}: {_plain(wrong['why'])}; {help_hint}"
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
