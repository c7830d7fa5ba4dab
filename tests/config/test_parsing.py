"""How YAML is read: text that looks like something else, keys that stand twice, and keys that are no text."""

import re

import pytest

from voxfleet.cli import main, parse
from voxfleet.errors import UserError

IMPORT = "output: o\nlatents: l\ntable: t\n"
TRAIN = "name: a\noutput: r\ndata: l\n"


@pytest.fixture
def refusal(tmp_path):
    """The line that refuses a file with this text, or these arguments after it."""

    def refuse(job, text, *arguments):
        (tmp_path / "c.yaml").write_text(text)
        with pytest.raises(UserError) as caught:
            parse(job, ["--config", str(tmp_path / "c.yaml"), *arguments])
        assert "\n" not in str(caught.value)
        return str(caught.value)

    return refuse


@pytest.mark.parametrize(
    ("written", "quoted"),
    [
        ("[0, 1]", "['0', '1']"),
        ("[NO, TLE]", "['NO', 'TLE']"),
        ("[yes, no]", "['yes', 'no']"),
        ("[HC, 1e3]", "['HC', '1e3']"),
        ("[010, 0x1F]", "['010', '0x1F']"),
        ("[null, ~]", "['null', '~']"),
        ("[2.50, 1:30]", "['2.50', '1:30']"),
        ('[0, "it\'s"]', "['0', 'it''s']"),
        ("no", "['no']"),
        ("0", "['0']"),
    ],
)
def test_text_that_reads_as_something_else_is_shown_in_quotes(refusal, written, quoted):
    assert f"write classes: {quoted};" in refusal("import-latents", f"{IMPORT}classes: {written}\n")
    assert f'write --classes "{quoted}";' in refusal("import-latents", IMPORT, "--classes", written)
    assert f'write --classes "{quoted}";' in refusal("import-latents", IMPORT, f"--classes={written}")


def test_what_the_refusal_shows_is_taken(tmp_path):
    (tmp_path / "c.yaml").write_text(f"{IMPORT}classes: ['0', 'it''s']\n")
    with pytest.raises(UserError, match="names of letters and digits"):  # read, and judged as a name
        parse("import-latents", ["--config", str(tmp_path / "c.yaml")])
    arguments = ["--output", "o", "--latents", "l", "--table", "t", "--classes", "['010', 'NO', '1e3', 'null']"]
    assert parse("import-latents", arguments).classes == ("010", "NO", "1e3", "null")


@pytest.mark.parametrize(
    ("job", "text", "quoted"),
    [
        ("train", "name: 1e3\noutput: r\ndata: l\n", "name: '1e3'"),
        ("train", "name: off\noutput: r\ndata: l\n", "name: 'off'"),
        ("submit", "address: http://h:1\nenv: {A: 1, B: x}\n", "env: {A: '1', B: 'x'}"),
        ("evaluate", "output: o\nvolumes: v\nautoencoder: a\nsynthetic: {a: 0}\n", "synthetic: {a: '0'}"),
        ("interpolate", "output: o\nautoencoder: a\ndata: d\nsubjects: [1, b]\n", "subjects: ['1', 'b']"),
    ],
)
def test_other_text_is_shown_in_quotes_too(refusal, job, text, quoted):
    assert f"it is text, which needs quotes here; write {quoted};" in refusal(job, text)


def test_what_quotes_do_not_mend_is_not_shown_in_quotes(refusal):
    assert "quotes" not in refusal("import-latents", f"{IMPORT}classes: [[a], b]\n")
    assert "quotes" not in refusal("train", f"{TRAIN}optim: {{lr: fast}}\n")
    assert "'=' is not accepted" in refusal("train", f"{TRAIN}=: 1\n")


@pytest.mark.parametrize(
    ("text", "key", "lines"),
    [
        ("name: b\n", "name", (1, 4)),
        ("'name': b\n", "name", (1, 4)),
        ("optim:\n  lr: 1\n  betas: [0.9, 0.99]\n  lr: 2\n", "optim.lr", (5, 7)),
        ("optim: {lr: 1}\noptim: {clip_norm: 1}\n", "optim", (4, 5)),
        ("parts:\n- {a: 1}\n- a: 1\n  b: 2\n  a: 3\n", "parts.a", (6, 8)),
        ("optim:\n  <<: &one {lr: 1}\n  <<: *one\n", "optim.<<", (5, 6)),
        ("? name\n: b\n", "name", (1, 4)),
    ],
)
def test_a_key_that_stands_twice_is_refused_with_its_lines(refusal, tmp_path, text, key, lines):
    where = f"config key {key} stands twice in {tmp_path / 'c.yaml'}, in lines {lines[0]} and {lines[1]}; remove one"
    assert refusal("train", TRAIN + text) == where


def test_a_key_that_stands_twice_is_refused_wherever_yaml_is_read(refusal, tmp_path):
    (tmp_path / "group.yaml").write_text("lr: 1\nlr: 2\n")
    for arguments in (["--optim", "{lr: 1, lr: 2}"], ["--optim={lr: 1, lr: 2}"], ["--config", "{lr: 1, lr: 2}"]):
        option = arguments[0].partition("=")[0]
        assert f"lr stands twice in {option}, in lines 1 and 1" in refusal("train", TRAIN, *arguments)
    for option in ("--optim", "--config"):
        assert "group.yaml, in lines 1 and 2" in refusal("train", TRAIN, option, str(tmp_path / "group.yaml"))
    (tmp_path / "c.yaml").write_text(TRAIN + TRAIN)
    assert main(["train", "--config", str(tmp_path / "c.yaml")]) == 2


def test_one_key_in_two_files_or_beside_a_merge_key_stands_once(tmp_path):
    (tmp_path / "a.yaml").write_text(f"{TRAIN}model: {{depth: 2}}\n")
    (tmp_path / "b.yaml").write_text("optim: &optim {lr: 1.0, warmup_steps: 3}\nmodel: {depth: 4}\n")
    (tmp_path / "c.yaml").write_text("optim: {<<: &more {<<: {lr: 1.0, warmup_steps: 3}, lr: 2.0}, lr: 3.0}\n")
    files = [part for name in "abc" for part in ("--config", str(tmp_path / f"{name}.yaml"))]
    config = parse("train", [*files, "--model.depth", "6", "--model.depth", "8"])
    assert (config.model.depth, config.optim.lr, config.optim.warmup_steps) == (8, 3.0, 3)


@pytest.mark.parametrize("key", ["0", "NO", "1e3", "null", "0x1F"])
def test_a_key_that_reads_as_something_else_is_refused(refusal, tmp_path, key):
    text = "output: o\nmodel: m\nautoencoder: a\ncampaign:\n  samples: 4\n"
    end = f"{key} is not read as text; quote it: '{key}'"
    line = f"line 6 of {tmp_path / 'c.yaml'}: the key campaign.mixture.{end}"
    assert refusal("generate", f"{text}  mixture: {{{key}: 1.0}}\n") == line
    inline = ("--campaign.mixture", f"{{{key}: 1.0}}")
    assert refusal("generate", text, *inline) == f"line 1 of --campaign.mixture: the key {end}"
    config = parse("generate", ["--config", str(tmp_path / "c.yaml"), "--campaign.mixture", f"{{'{key}': 1.0}}"])
    assert config.campaign.mixture == {key: 1.0}


@pytest.mark.parametrize(("text", "name"), [("x: &a {b: *a}\n", "x.b"), ("x: &a [*a]\n", "x")])
def test_an_anchor_inside_itself_is_refused(refusal, text, name):
    assert re.search(rf"line 4 of .*: the anchor of {name} contains itself", refusal("train", TRAIN + text))


@pytest.mark.parametrize(
    ("job", "key"), [("prepare", "output"), ("prepare", "source.bids"), ("train", "data"), ("generate", "model")]
)
def test_an_empty_value_is_refused_by_its_key(job, key):
    with pytest.raises(UserError, match=f"^config key {key} is empty"):
        parse(job, ["--config", f"configs/{job}/demo.yaml", f"--{key}", ""])
