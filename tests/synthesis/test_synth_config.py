"""The YAML file of a build: what is wrong is said by its key, before any call."""

from pathlib import Path

import pytest

from verl_steer.checked import ConfigError
from verl_steer.synthesis.config import ROLES, SynthConfig, load
from verl_steer.synthesis.review import Review, approval
from verl_steer.synthesis.selection_config import SelectionConfig

EXAMPLE = Path(__file__).parents[2] / "examples" / "conf" / "build_microworld.yaml"
ALL = {"model": "m", "base_urls": "http://a/v1"}


def config(**more):
    return SynthConfig.from_mapping({"roles": {"all": ALL}, **more})


def test_the_example_is_valid_and_names_every_role():
    found, selection = load(EXAMPLE)
    assert {found.roles.endpoint(role).model for role in ROLES} == {f"microworld-{role}" for role in ROLES}
    assert SelectionConfig.from_mapping(selection).sft.size == 1293
    assert Review(EXAMPLE.parents[2] / found.red_team.review).approves("picture")


def test_a_role_takes_from_all_what_it_does_not_set():
    roles = {"all": {**ALL, "concurrency": 7, "temperature": 0.5}, "blue": {"model": "b", "temperature": 0}}
    found = config(roles=roles).roles
    assert (found.endpoint("blue").model, found.endpoint("blue").temperature, found.endpoint("blue").concurrency) == (
        "b",
        0,
        7,
    )
    assert (found.endpoint("red").model, found.endpoint("red").temperature) == ("m", 0.5)
    assert found.endpoint("red").base_urls == ("http://a/v1",)


@pytest.mark.parametrize(
    ("mapping", "says"),
    [
        ({"rolls": {}}, r"synth\.rolls is not a known key; did you mean roles\?"),
        ({"roles": {"all": {}}}, r"roles\.probe\.base_urls is empty"),
        ({"roles": {"all": {"base_urls": "http://a/v1"}}}, r"roles\.probe\.model is empty"),
        (
            {"roles": {"all": {**ALL, "base_urls": "http://user:secret@a/v1"}}},
            r"roles\.probe\.base_urls: the URL for a holds",
        ),
        ({"roles": {"all": {**ALL, "kind": "endpiont"}}}, r"roles\.probe\.kind='endpiont'.*did you mean endpoint\?"),
        ({"roles": {"all": {**ALL, "api_key_env": "sk-123 4"}}}, r"roles\.probe\.api_key_env must be the NAME"),
        ({"roles": {"all": ALL, "blue": {"concurrency": 0}}}, r"roles\.blue\.concurrency=0: must be positive"),
        ({"roles": {"all": ALL, "jury": {}}}, r"synth\.roles\.jury is not a known key"),
        ({"roles": {"all": {**ALL, "structured_output": "json"}}}, r"roles\.probe\.structured_output='json'"),
        ({"turns": {"sft": [1, 2]}}, r"turns\.sft: give nine weights, of T = 2\.\.10"),
        ({"turns": {"held": [0] * 9}}, r"turns\.held: give nine weights.*not all zero"),
        ({"turns": {"held": [-1] + [1] * 8}}, r"turns\.held=-1\.0: must be finite and not negative"),
        ({"turns": {"sft": "many"}}, r"synth\.turns\.sft='many': must be a list of numbers"),
        ({"turns": {"sft": [True] * 9}}, r"must be a list of numbers"),
        ({"red_team": {"keep_from": 6}}, r"red_team\.keep_from=6"),
        ({"perturb": {"share": 1.5}}, r"perturb\.share=1\.5: must be in \[0, 1\]"),
        ({"perturb": {"triggers": [" "]}}, r"perturb\.triggers: give at least one"),
        ({"run": {"rows_in_flight": 0}}, r"run\.rows_in_flight=0"),
        ({"sft_share": 2}, r"sft_share=2\.0"),
    ],
)
def test_a_wrong_key_or_value_is_named(mapping, says):
    with pytest.raises(ConfigError, match=says):
        SynthConfig.from_mapping({"roles": {"all": ALL}, **mapping})


def test_what_a_message_says_of_a_secret_holds_none_of_it():
    with pytest.raises(ConfigError) as raised:
        config(roles={"all": {**ALL, "base_urls": "http://user:secret@a/v1"}})
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (":\n- x: [", "cannot be read as YAML"),
        ("- a", "must hold a mapping"),
        ("selection: 3", "selection must be a mapping"),
    ],
)
def test_a_file_that_is_no_mapping_is_named(tmp_path, text, says):
    (tmp_path / "build.yaml").write_text(text)
    with pytest.raises(ConfigError, match=says):
        load(tmp_path / "build.yaml")


def test_without_the_red_team_its_roles_need_no_server(tmp_path):
    (tmp_path / "build.yaml").write_text("roles:\n  all: {kind: microworld, base_urls: http://a/v1}\n")
    found, _ = load(tmp_path / "build.yaml", red_team=False)
    assert not found.red_team.enabled and "planner" not in found.needed_roles()


def test_attacks_need_a_review_of_their_categories(tmp_path):
    with pytest.raises(ConfigError, match=r"only for categories that a person has reviewed.*--no-red-team"):
        approval(True, None)
    review, approves = approval(False, None)
    assert review is None and not approves("privacy")
    file = tmp_path / "review.yaml"
    for text, says in [
        ("", "must name reviewer, date and categories"),
        ("reviewer: [", "cannot be read"),
        ("reviewer: me\ndate: today\ncategories: [a]", "map each category to true or false"),
        ("reviewer: me\ndate: today\ncategories: {a: maybe}", "map each category to true or false"),
    ]:
        file.write_text(text)
        with pytest.raises(ConfigError, match=says):
            approval(True, str(file))
    file.write_text("reviewer: me\ndate: 2026-01-31\ncategories: {a: true, b: false}")
    review, approves = approval(True, str(file))
    assert approves("a") and not approves("b") and not approves("c")
    review.write_warning(tmp_path)
    card = (tmp_path / "WARNING.md").read_text()
    assert "Reviewed by me on 2026-01-31" in card and "written for: a." in card
