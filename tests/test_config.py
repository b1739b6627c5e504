"""The `steer:` node: presets, zeros that stay zeros, and errors that name the key and the nearest right one."""

import dataclasses
import math
from pathlib import Path

import pytest
import yaml

import verl_steer
from verl_steer.config import PRESETS, ConfigError, SteerConfig, TutorConfig, world_root
from verl_steer.scores import Weights

MANAGED = {"kind": "managed", "model": "Qwen/Qwen3-VL-32B-Instruct"}
ENDPOINT = {"kind": "endpoint", "model": "m", "base_urls": ["http://t:8000/v1"]}


def reward(**keys):
    return SteerConfig.from_mapping({"reward": keys}).reward.resolve()


def tutor(**keys):
    return SteerConfig.from_mapping({"tutor": {**ENDPOINT, **keys}}).tutor


def test_an_empty_node_is_the_embedded_default():
    for nothing in (None, {}):
        config = SteerConfig.from_mapping(nothing)
        assert config.tutor.kind == "microworld"
        assert (config.dialogue.max_turns, config.dialogue.min_scored, config.validation.feedback) == (
            10,
            1.0,
            "script",
        )


def test_the_recipe_lists_exactly_the_keys_that_exist():
    """steer_base.yaml is what a user reads to learn the keys; it may neither lack one nor invent one."""
    path = Path(verl_steer.__file__).parent.parent / "recipes" / "recipe" / "steer_base.yaml"
    if not path.is_file():
        pytest.skip("the recipes are not beside the package in this installation")
    node = yaml.safe_load(path.read_text())["steer"]
    node["seed"], node["tutor"] = 1, {**node["tutor"], **ENDPOINT}  # interpolated, or left to the user
    SteerConfig.from_mapping(node)
    for field in dataclasses.fields(SteerConfig):
        part = getattr(SteerConfig(), field.name)
        assert field.name in node
        if dataclasses.is_dataclass(part):
            assert set(node[field.name]) == {f.name.rstrip("_") for f in dataclasses.fields(part)}, field.name


# -- presets -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        ("paper", ("safety", 0.3, "affine", "sum", 0.0, 0.0)),
        ("paper_v2", ("turn", 0.3, "affine", "sum", 0.0, 0.0)),
        ("reference", ("turn", 0.3, "tenth", "terminal", 1.0, 0.2)),
    ],
)
def test_presets_hold_what_their_source_says(preset, expected):
    got = reward(preset=preset)
    assert (got.signal, got.alpha, got.norm, got.return_form, got.format_bonus, got.repetition_penalty) == expected
    assert got.weights == Weights(0.4, 0.4, 0.2)


@pytest.mark.parametrize("preset", PRESETS)
def test_explicit_keys_beat_the_preset_and_null_leaves_it(preset):
    keys = {
        "signal": "safety" if PRESETS[preset].signal == "turn" else "turn",
        "alpha": 0.5,
        "weights": {"safety": 1, "usefulness": 0, "faithfulness": 0},
        "norm": "affine" if PRESETS[preset].norm == "tenth" else "tenth",
        "return": "mean",
        "credit": "final",
        "format_bonus": 0.25,
        "repetition_penalty": 0.125,
    }
    got = reward(preset=preset, **keys)
    assert got.weights == Weights(1, 0, 0) and got.return_form == "mean"
    for name in set(keys) - {"weights", "return"}:
        assert getattr(got, name) == keys[name]
    assert reward(preset=preset, **dict.fromkeys(keys)) == PRESETS[preset]


@pytest.mark.parametrize("name", ["alpha", "format_bonus", "repetition_penalty"])
def test_a_zero_is_a_value_not_a_missing_one(name):
    assert getattr(reward(preset="reference", **{name: 0}), name) == 0.0
    assert getattr(reward(preset="reference", **{name: 0.0}), name) == 0.0


def test_zeros_elsewhere_are_kept_too():
    config = SteerConfig.from_mapping(
        {"seed": 0, "dialogue": {"min_scored": 0}, "advantage": {"prior_strength": 0, "std": False}}
    )
    assert (config.dialogue.min_scored, config.advantage.prior_strength, config.advantage.std) == (0.0, 0.0, False)
    assert reward(weights={"usefulness": 0}).weights == Weights(0.4, 0.0, 0.2)


# -- what is wrong, and where ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"tuter": {}}, "steer.tuter is not a known key; did you mean tutor?"),
        ({"reward": {"alhpa": 0.3}}, "steer.reward.alhpa is not a known key; did you mean alpha?"),
        ({"reward": {"return_": "sum"}}, "steer.reward.return_ is not a known key; did you mean return?"),
        (
            {"reward": {"weights": {"savety": 1}}},
            "steer.reward.weights.savety is not a known key; did you mean safety?",
        ),
        ({"records": {"zzz": 1}}, "steer.records.zzz is not a known key; known: dir"),
        ({3: 1}, "steer.3 is not a known key"),
        (
            {"reward": {"preset": "papr"}},
            "steer.reward.preset='papr' is not one of paper, paper_v2, reference; did you mean paper?",
        ),
        ({"reward": {"return": "total"}}, "steer.reward.return='total' is not one of sum, mean, plain_mean, terminal"),
        ({"reward": {"signal": "turns"}}, "did you mean turn?"),
        ({"reward": {"credit": "dialog"}}, "did you mean dialogue?"),
        ({"reward": {"norm": "afine"}}, "did you mean affine?"),
        (
            {"tutor": {"kind": "manged"}},
            "steer.tutor.kind='manged' is not one of endpoint, managed, custom, microworld",
        ),
        ({"tutor": {"kind": "manged"}}, "did you mean managed?"),
        ({"tutor": {"kind": "managed"}}, "steer.tutor.managed.path is empty"),
        ({"tutor": {**ENDPOINT, "kind": "managed"}}, "empty it, or set kind=endpoint"),
        ({"tutor": {**MANAGED, "managed": {"engine": "vlm"}}}, "is not one of vllm, sglang, hf; did you mean vllm?"),
        ({"tutor": {**MANAGED, "managed": {"tensor_paralel": 2}}}, "did you mean tensor_parallel?"),
        (
            {"tutor": {**MANAGED, "managed": {"tensor_parallel": 4, "n_gpus_per_node": 6}}},
            "tensor_parallel=4 does not divide nnodes x n_gpus_per_node = 1 x 6",
        ),
        (
            {"tutor": {**MANAGED, "managed": {"tensor_parallel": 16, "n_gpus_per_node": 8, "nnodes": 3}}},
            "tensor_parallel=16 does not divide nnodes x n_gpus_per_node = 3 x 8",
        ),
        (
            {"tutor": {**MANAGED, "managed": {"engine": "hf", "max_model_len": 9}}},
            "engine hf has neither tensor_parallel nor max_model_len",
        ),
        ({"tutor": {**MANAGED, "managed": {"rollout": [1]}}}, "steer.tutor.managed.rollout=[1]: must be a mapping"),
        ({"tutor": {**MANAGED, "managed": {"rollout": {1: 2}}}}, "must be a mapping with names as keys"),
        ({"tutor": {"kind": "custom"}}, "steer.tutor.kind=custom needs steer.tutor.custom.path"),
        ({"tutor": {**ENDPOINT, "structured_output": "json"}}, "steer.tutor.structured_output='json'"),
        (
            {"dialogue": {"feedback": "tutr"}},
            "steer.dialogue.feedback='tutr' is not one of tutor, script, yoked; did you mean tutor?",
        ),
        ({"dialogue": {"stop": "always"}}, "steer.dialogue.stop='always' is not one of never, on_breach"),
        ({"validation": {"feedback": "x"}}, "steer.validation.feedback='x'"),
        ({"tutor": {"kind": "endpoint", "model": "m"}}, "steer.tutor.base_urls is empty"),
        ({"tutor": {"base_urls": "http://t/v1"}}, "steer.tutor.model is empty"),
        (
            {"tutor": {**ENDPOINT, "base_urls": "tutor-0:8000"}},
            "steer.tutor.base_urls: 'tutor-0:8000' is no http(s) URL",
        ),
        (
            {"tutor": {**ENDPOINT, "base_urls": 8000}},
            "steer.tutor.base_urls=8000: must be a string or a list of strings",
        ),
        ({"tutor": {**ENDPOINT, "base_urls": [None]}}, "must be a string or a list of strings"),
        (
            {"reward": {"weights": {"safety": 0, "usefulness": 0, "faithfulness": 0}}},
            "steer.reward.weights: weights must be",
        ),
        ({"reward": []}, "steer.reward must be a mapping, got []"),
        ({"dialogue": {"think_open": ""}}, "must be two different, non-empty tags"),
        ({"dialogue": {"think_close": "<think>"}}, "must be two different, non-empty tags"),
    ],
)
def test_an_error_names_the_key_and_the_nearest_right_one(node, message):
    with pytest.raises(ConfigError) as caught:
        SteerConfig.from_mapping(node)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("pool", "servers"),
    [
        ({"n_gpus_per_node": 8}, 8),
        ({"n_gpus_per_node": 8, "tensor_parallel": 4}, 2),
        ({"n_gpus_per_node": 8, "nnodes": 2, "tensor_parallel": 8}, 2),
        ({"n_gpus_per_node": 8, "nnodes": 4, "tensor_parallel": 16}, 2),
    ],
)
def test_a_managed_tutors_pool_is_cut_into_whole_servers(pool, servers):
    managed = SteerConfig.from_mapping({"tutor": {**MANAGED, "managed": pool}}).tutor.managed
    assert managed.servers == servers and managed.gpus == managed.nnodes * managed.n_gpus_per_node


def test_a_mapping_is_kept_as_it_is_written():
    options = {"engine_kwargs": {"vllm": {"block_size": 32}}, "enforce_eager": True}
    assert (
        SteerConfig.from_mapping({"tutor": {**MANAGED, "managed": {"rollout": options}}}).tutor.managed.rollout
        == options
    )


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://user:s3cret@tutor:8000/v1", "the URL for tutor holds a user name, password, query or fragment"),
        ("http://tutor/v1?key=s3cret", "the URL for tutor holds a user name, password, query or fragment"),
        ("http://tutor/v1#s3cret", "the URL for tutor holds a user name, password, query or fragment"),
        ("http://tutor/v1?", "the URL for tutor holds a user name, password, query or fragment"),
        ("http://tutor/v1#", "the URL for tutor holds a user name, password, query or fragment"),
        *(
            (url, "something that is no address")
            for url in (
                "http://user:s3cret@tutor:port/v1",
                "http://tutor:port/v1?key=s3cret",
                "user:s3cret@tutor:8000/v1",
                "https:/user:s3cret@tutor/v1",
                "http:user:s3cret@tutor/v1",
                "http//user:s3cret@tutor/v1",
                "tutor:8000/v1?key=s3cret",
                "http://us er:s3cret@tutor/v1",
            )
        ),
        ("http://tutor:port/v1", "is no URL"),
        ("http://tu tor/v1", "is no http(s) URL"),
        ("http:///v1", "is no http(s) URL"),
    ],
)
@pytest.mark.parametrize("node", ["tutor", "difficulty"])
def test_an_address_that_cannot_be_used_is_named_without_its_secret(node, url, says):
    with pytest.raises(ConfigError) as caught:
        SteerConfig.from_mapping({node: {"kind": "endpoint", "model": "m", "base_urls": [url]}})
    assert f"steer.{node}.base_urls: " in str(caught.value) and says in str(caught.value)
    assert "s3cret" not in str(caught.value)


NUMBERS = {
    "steer.reward.alpha": (0.0, 0.3, 1, "in [0, 1]", (-0.01, 1.01, math.nan, math.inf)),
    "steer.reward.format_bonus": (0, 1.5, 3, "finite and not negative", (-1, math.nan, math.inf)),
    "steer.reward.repetition_penalty": (0, 1.5, 3, "finite and not negative", (-1, math.nan, math.inf)),
    "steer.advantage.prior_strength": (0, 1.5, 3, "finite and not negative", (-1, math.nan, math.inf)),
    "steer.tutor.temperature": (0, 0.7, 2, "finite and not negative", (-0.1, math.nan, math.inf)),
    "steer.tutor.timeout_s": (0.1, 5, 240.0, "positive and finite", (0, -1, math.nan, math.inf)),
    "steer.tutor.attempts": (1, 2, 4, "positive and finite", (0, -1)),
    "steer.tutor.max_concurrency": (1, 2, 4, "positive and finite", (0, -1)),
    "steer.tutor.max_tokens": (1, 2, 4, "positive and finite", (0, -1)),
    "steer.tutor.max_question_chars": (1, 2, 4, "positive and finite", (0, -1)),
    "steer.dialogue.max_turns": (1, 5, 10, "must be 1..10", (0, 11)),
    "steer.dialogue.max_turn_tokens": (1, 5, 10, "positive and finite", (0, -3)),
    "steer.dialogue.deadline_s": (0.5, 5, 10, "positive and finite", (0, math.inf)),
    "steer.dialogue.min_scored": (0, 0.5, 1, "in [0, 1]", (-0.1, 1.1, math.nan)),
}


def _node(key, value):
    _, part, name = key.split(".")
    return {part: {**(ENDPOINT if part == "tutor" else {}), name: value}}


@pytest.mark.parametrize("key", NUMBERS)
def test_numbers_are_kept_within_their_range(key):
    *right, message, wrong = NUMBERS[key]
    for value in right:
        assert _read(key, value) == value
    for value in wrong:
        with pytest.raises(ConfigError) as caught:
            SteerConfig.from_mapping(_node(key, value))
        assert f"{key}=" in str(caught.value) and message in str(caught.value)


@pytest.mark.parametrize("key", NUMBERS)
@pytest.mark.parametrize("value", ["1", True, [1], {}])
def test_numbers_are_numbers(key, value):
    with pytest.raises(ConfigError, match=r"must be (int|float)"):
        SteerConfig.from_mapping(_node(key, value))


def _read(key, value):
    _, part, name = key.split(".")
    found = getattr(SteerConfig.from_mapping(_node(key, value)), part)
    return getattr(found.resolve() if part == "reward" else found, name)


def test_a_count_is_not_a_fraction_and_a_switch_is_not_a_number():
    for node in (
        {"dialogue": {"max_turns": 2.5}},
        {"advantage": {"std": 1}},
        {"advantage": {"std": "false"}},
        {"seed": 1.5},
    ):
        with pytest.raises(ConfigError, match=r"must be (int|bool)"):
            SteerConfig.from_mapping(node)


# -- tutor, secrets, places --------------------------------------------------------------------------


def test_one_url_may_be_a_string_and_several_a_list():
    assert tutor(base_urls="http://a/v1").base_urls == ("http://a/v1",)
    assert tutor(base_urls=["http://a/v1", "https://b/v1"]).base_urls == ("http://a/v1", "https://b/v1")


def test_a_tutor_of_its_own_must_say_where_it_is():
    with pytest.raises(ConfigError, match="base_urls is empty"):
        TutorConfig()


@pytest.mark.parametrize("key", ["api_key_env", "fence_key_env"])
def test_a_secret_pasted_in_place_of_a_name_is_refused_and_not_repeated(key):
    node = {"tutor": {**ENDPOINT, key: "sk-proj-12345"}} if key == "api_key_env" else {key: "sk-proj-12345"}
    with pytest.raises(ConfigError, match="NAME of an environment variable") as caught:
        SteerConfig.from_mapping(node)
    assert "12345" not in str(caught.value)
    assert tutor(api_key_env="TUTOR_API_KEY").api_key_env == "TUTOR_API_KEY"


def test_parsed_configuration_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        SteerConfig.from_mapping({}).reward.alpha = 0.5


def test_the_world_lies_where_it_is_put_else_in_the_home_else_in_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("VERL_STEER_HOME", raising=False)
    assert world_root(None) == tmp_path / ".cache" / "verl_steer" / "microworld"
    monkeypatch.setenv("VERL_STEER_HOME", "~/steer")
    assert world_root(None) == tmp_path / "steer" / "microworld"
    assert world_root("~/w") == tmp_path / "w"
