"""Settings: precedence, origins, and refusals that name what is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmserve.cli.config import load
from lmserve.errors import SettingsError
from lmserve.fields import SettingField, catalogue
from lmserve.settings import Settings


def value_of(settings: Settings, field: SettingField) -> Any:
    return getattr(getattr(settings, field.section), field.name)


def write(tmp_path: Path, text: str) -> str:
    path = tmp_path / "lmserve.toml"
    path.write_text(text)
    return str(path)


def test_without_sources_every_value_is_the_default():
    loaded = load(environ={})
    assert loaded.settings == Settings()
    assert set(loaded.origins.values()) == {"default"}


@given(sources=st.lists(st.sampled_from(["file", "environment", "flag"]), unique=True))
def test_later_sources_win(tmp_path_factory: pytest.TempPathFactory, sources: list[str]):
    ports = {"default": 23333, "file": 1001, "environment": 1002, "flag": 1003}
    path = write(tmp_path_factory.mktemp("config"), "[server]\nserver_port = 1001\n")
    loaded = load(
        {"server_port": "1003"} if "flag" in sources else {},
        config=path if "file" in sources else None,
        environ={"LMSERVE_SERVER_PORT": "1002"} if "environment" in sources else {},
    )
    winner = max(sources, key=list(ports).index, default="default")
    assert loaded.settings.server.server_port == ports[winner]
    assert loaded.origins["server_port"].split()[0] == winner


def text_for(field: SettingField) -> st.SearchStrategy[str]:
    """Texts that fit the field."""
    if field.type is bool:
        return st.sampled_from(["true", "no", "1", "Off"])
    if field.choices:
        return st.sampled_from(field.choices)
    if field.name == "device":
        return st.sampled_from(["auto", "cpu", "cuda", "cuda:3"])
    if field.name.endswith("_parser"):
        return st.sampled_from(["auto", "none", "hermes"])
    if field.name.endswith(("_url", "_endpoint")):
        return st.sampled_from(["http://localhost:8000", "https://example.org"])
    if field.name == "allow_methods":
        return st.sampled_from(["*", "GET, POST", "get"])
    if field.type in (str, tuple):
        return st.text("abc-/._" if field.type is str else "abc-_", min_size=1)
    if field.type is int:
        return st.integers(int(field.least or 0), int(field.most or 2**40)).map(str)
    return st.floats(0.001, field.most or 1e9).map(repr)


@given(data=st.data())
def test_the_environment_and_flags_agree_on_every_field(data: st.DataObject):
    field = data.draw(st.sampled_from(list(catalogue().values())))
    text = data.draw(text_for(field))
    by_env = load(environ={field.env: text}).settings
    by_flag = load({field.name: text}, environ={}).settings
    assert by_env == by_flag
    assert type(value_of(by_env, field)) is field.type


def test_the_file_may_be_named_in_the_environment(tmp_path: Path):
    path = write(tmp_path, "[engine]\nthreads = 3\nstuck_after_s = 7\n")
    loaded = load(environ={"LMSERVE_CONFIG": path})
    assert loaded.settings.engine.threads == 3
    assert loaded.settings.engine.stuck_after_s == 7.0
    assert loaded.origins["threads"] == f"file {path}"


def test_an_empty_variable_counts_as_not_set():
    assert load(environ={"LMSERVE_DTYPE": ""}).origins["dtype"] == "default"


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("server_port", "65536", "--server-port must be a whole number at least 0 and at most"),
        ("server_port", "-1", "not -1"),
        ("server_port", "80.5", "not '80.5'"),
        ("max_batch_size", "0", "--max-batch-size must be a whole number at least 1, not 0"),
        ("cache_max_entry_count", "0", "above 0 and at most 1"),
        ("cache_max_entry_count", "1.01", "above 0 and at most 1"),
        ("cache_max_entry_count", "nan", "not nan"),
        ("write_timeout_s", "inf", "not inf"),
        ("dtype", "bf16", "one of auto, float32, bfloat16, float16"),
        ("device", "gpu", "auto, cpu, cuda or cuda:N"),
        ("server_name", "", "--server-name must be a name or address"),
        ("prefix_cache", "maybe", "true or false"),
    ],
)
def test_a_wrong_flag_is_refused_with_what_fits(name: str, text: str, words: str):
    with pytest.raises(SettingsError) as refusal:
        load({name: text}, environ={})
    assert words in refusal.value.message
    assert catalogue()[name].flag in refusal.value.message


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"LMSERVE_DTYP": "auto"}, "LMSERVE_DTYP in the environment is unknown; did you mean "),
        ({"LMSERVE_THREADS": "none"}, "LMSERVE_THREADS in the environment must be a whole number"),
        ({"LMSERVE_CONFIG": "no-such.toml"}, "no-such.toml: cannot read the settings file"),
    ],
)
def test_a_wrong_environment_is_refused_by_name(environ: dict[str, str], words: str):
    with pytest.raises(SettingsError, match=words):
        load(environ=environ)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[engin]\n", "[engin] is unknown; did you mean engine?"),
        ("server = 1\n", "server must be a table"),
        ("[server]\nport = 1\n", "[server] port is unknown; did you mean server_port?"),
        ("[server]\ndtype = 'auto'\n", "dtype belongs in [engine], not in [server]"),
        ("[server]\nserver_port = '80'\n", "[server] server_port must be a whole number"),
        ("[server]\nserver_port = true\n", "[server] server_port must be a whole number"),
        ("[engine]\nrestart = 1\n", "[engine] restart must be true or false, not 1"),
        ("[engine\n", "not a TOML file"),
    ],
)
def test_a_wrong_file_is_refused_by_place(tmp_path: Path, text: str, words: str):
    path = write(tmp_path, text)
    with pytest.raises(SettingsError) as refusal:
        load(config=path, environ={})
    assert refusal.value.message.startswith(path)
    assert words in refusal.value.message
