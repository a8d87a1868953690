"""Where a study file comes from, what changes its values from outside, and the template of one."""

from __future__ import annotations

import re
import tomllib

import pytest
from example_study import example_record

from autocompress.config import StudyConfig, load_config
from autocompress.errors import NotFoundError, UsageError
from autocompress.study.store import StudyStore
from autocompress.study_file import environment_overrides, find_study, study_template, toml_value


def test_a_built_in_has_no_folder_of_its_own_and_a_file_has(tmp_path):
    config, base = find_study("digits", overrides=(), workspace=tmp_path)
    assert (config.name, config.data.factory, base) == ("digits", "placed_digits", None)
    path = tmp_path / "mine.toml"
    path.write_text("[search]\nbudget = '1m'\n")
    config, base = find_study(str(path), overrides=("search.seed=1", "search.seed=2"), workspace=tmp_path)
    assert (config.name, config.search.budget, config.search.seed, base) == ("mine", 60.0, 2, tmp_path)


def test_an_unknown_name_is_told_the_nearest_and_a_study_of_the_workspace_how_to_go_on(tmp_path):
    with pytest.raises(NotFoundError, match=r"no built-in study 'digitz'; did you mean 'digits'; .*autocompress init"):
        find_study("digitz", overrides=(), workspace=tmp_path)
    with pytest.raises(NotFoundError, match=r"built-in are .*digits"):
        find_study("zzz", overrides=(), workspace=tmp_path)
    with StudyStore(tmp_path) as store:
        store.create(example_record("mine"))
    with pytest.raises(UsageError, match="autocompress resume mine"):
        find_study("mine", overrides=(), workspace=tmp_path)


def test_variables_with_two_underscores_are_keys_and_others_are_left_alone():
    environment = {
        "AUTOCOMPRESS_SEARCH__BUDGET": "5m",
        "AUTOCOMPRESS_DATA__MAX_VAL": "10",
        "AUTOCOMPRESS_WORKSPACE": "/elsewhere",
        "PATH": "/bin",
    }
    assert environment_overrides(environment) == ["data.max_val=10", "search.budget=5m"]


@pytest.mark.parametrize(
    ("variable", "known"),
    [
        ("AUTOCOMPRESS_SEARCH__BUGDET", "AUTOCOMPRESS_SEARCH__BUDGET"),
        ("AUTOCOMPRESS_SERCH__BUDGET", "AUTOCOMPRESS_SEARCH__..."),
    ],
)
def test_a_variable_that_names_no_key_is_an_error_with_the_known_ones(variable, known):
    with pytest.raises(UsageError, match=f"the environment variable {variable} names no key") as caught:
        environment_overrides({variable: "1m"})
    assert known in str(caught.value)


@pytest.mark.parametrize("value", [True, 3, 0.5, 'a "quoted" text', (1, 2), [], {"a": 1, "b": [True, "x"]}])
def test_a_value_written_as_toml_is_read_back_equal(value):
    read = tomllib.loads(f"value = {toml_value(value)}")["value"]
    assert read == (list(value) if isinstance(value, tuple) else value)


def test_every_line_of_the_template_is_valid_when_its_mark_is_removed():
    lines = study_template().splitlines()
    text = "\n".join(re.sub(r"^# (?=\w+ = )", "", line) for line in lines)
    config = load_config(tomllib.loads(text), name="x")
    tables = {name for name in StudyConfig.model_fields if name != "name"}
    for table in tables:
        assert set(tomllib.loads(text)[table]) == set(type(getattr(config, table)).model_fields)
    assert config.search.max_size == 500_000
