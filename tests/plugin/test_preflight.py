"""Bad input is named before Ray starts: key or row, and the nearest right choice; nothing is overwritten."""

import dataclasses
import io
import json
import socket
from pathlib import Path

import pytest

pytest.importorskip("verl")
from hydra import compose, initialize_config_module
from PIL import Image
from tiny_model import build_tiny_vlm

from verl_steer.data.rows import script_to_row, write_rows
from verl_steer.dialogue import ImageRef, Kind, Script, UserTurn
from verl_steer.plugin import algorithm, checks, fingerprint, paths, requirements
from verl_steer.plugin.preflight import Preflight, run_preflight
from verl_steer.records import RecordWriter


def picture(size: int = 56, form: str = "PNG") -> ImageRef:
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), "white").save(buffer, format=form)
    return ImageRef(buffer.getvalue())


SCRIPT = Script("seed-1", Kind.RED_TEAM, (UserTurn("what is this?", (picture(),)), UserTurn("and now?")))


@pytest.fixture(scope="module")
def student(tmp_path_factory) -> Path:
    return build_tiny_vlm(tmp_path_factory.mktemp("student") / "tiny")


@pytest.fixture
def run(tmp_path, student):
    """Composes a run on one good row; keyword arguments change the row, arguments are overrides."""

    def make(*overrides: str, rows: list[dict] | None = None):
        data = tmp_path / "rl.parquet"
        write_rows(rows if rows is not None else [script_to_row(SCRIPT, 0, "rl")], data)
        with initialize_config_module("verl.trainer.config", version_base=None):
            return compose(
                "ppo_trainer",
                overrides=[
                    "+recipe=steer_grpo",
                    f"actor_rollout_ref.model.path={student}",
                    f"data.train_files={data}",
                    f"data.val_files={data}",
                    f"trainer.default_local_dir={tmp_path / 'out'}",
                    "steer.tutor.kind=microworld",
                    "data.train_batch_size=1",
                    "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=1",
                    "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=1",
                    "data.max_prompt_length=128",
                    "data.max_response_length=128",
                    *overrides,
                ],
            )

    return make


def problem(config) -> str:
    with pytest.raises((checks.Problem, fingerprint.ForeignCheckpointError)) as caught:
        run_preflight(config)
    return str(caught.value)


def test_a_good_run_passes_and_leaves_its_fingerprint(run, tmp_path, capsys):
    run_preflight(run())
    assert "preflight passed; 2 rows, 4 turns, 0 rejected; a new run" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / fingerprint.FILE).read_text())["data.seed"] == 1


def test_the_callback_stops_with_the_message_and_without_a_traceback(run):
    with pytest.raises(SystemExit, match=r"steer\.reward\.alpha=2"):
        Preflight().on_job_start(run("steer.reward.alpha=2"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("+steer.reward.aplha=0.3", r"steer.reward.aplha.*did you mean alpha"),
        ("+steer.dialoge.max_turns=3", r"steer.dialoge.*did you mean dialogue"),
        ("steer.reward.preset=papr", r"papr.*paper"),
        ("steer.reward.alpha=1.5", r"steer.reward.alpha=1.5.*\[0, 1\]"),
        ("+steer.reward.weights={safety: 0, usefulness: 0, faithfulness: 0}", "not all zero"),
        ("algorithm.adv_estimator=steer_grop", r"steer_grop is not registered; did you mean steer_grpo"),
        ("algorithm.adv_estimator=rloo", "masked_rloo"),
        ("algorithm.adv_estimator=remax", "trainer_base.py:1745.*use steer_remax"),
        ("algorithm.adv_estimator=optimal_token_baseline", "sum_pi_squared"),
        ("algorithm.adv_estimator=gdpo", "steer.reward.weights"),
        ("algorithm.filter_groups={enable: true, metric: null}", "filter_groups.metric filters nothing"),
        ("actor_rollout_ref.rollout.max_model_len=100", "max_model_len=100 is less than"),
        ("trainer.use_v1=false", "V0 trainer ignores turn rewards"),
        ("steer.tutor.kind=endpoint", "steer.tutor.base_urls is empty"),
        (
            "steer.fence_key_env=STEER_NOT_SET",
            "steer.fence_key_env=STEER_NOT_SET: that environment variable is not set",
        ),
    ],
)
def test_a_wrong_key_or_value_is_named_with_the_nearest_right_one(run, override, message):
    override = override.removeprefix("+") if "weights" in override else override
    with pytest.raises(checks.Problem, match=message):
        run_preflight(run(override))


def test_a_missing_model_is_named_with_its_nearest_neighbour(run, student):
    assert f"did you mean {student}" in problem(run(f"actor_rollout_ref.model.path={student}x"))


def test_missing_data_is_named_with_its_nearest_neighbour(run, tmp_path):
    message = problem(run(f"data.train_files={tmp_path / 'lr.parquet'}"))
    assert "data.train_files" in message and "did you mean" in message and "rl.parquet" in message


def bad_rows():
    good = script_to_row(SCRIPT, 0, "rl")
    plan = json.loads(good["steer"])
    yield "images", {**good, "images": []}, "column images holds 0"
    yield (
        "placeholders",
        {**good, "prompt": [{"role": "user", "content": "<image><image>what is this?"}]},
        "holds 2 <image>",
    )
    yield "unreadable", {**good, "images": [{"bytes": b"not a picture"}]}, "cannot be read as one of PNG"
    yield "no turns", {**good, "steer": json.dumps({**plan, "turns": []})}, "1..10 user turns, found 0"
    yield (
        "too many",
        {**good, "steer": json.dumps({**plan, "turns": [{"text": "q"}] * 11})},
        "1..10 user turns, found 11",
    )
    bitmap = dataclasses.replace(SCRIPT, turns=(UserTurn("what is this?", (picture(form="BMP"),)),))
    yield (
        "a format that no tutor takes",
        script_to_row(bitmap, 0, "rl"),
        "turn 1: picture 1 cannot be sent to the tutor",
    )
    long = dataclasses.replace(SCRIPT, turns=(*SCRIPT.turns, UserTurn("word " * 200)))
    yield "too long", script_to_row(long, 0, "rl"), "data.max_response_length is 128"


@pytest.mark.parametrize(("row", "message"), [pytest.param(r, m, id=i) for i, r, m in bad_rows()])
def test_a_bad_row_is_named_with_its_number_and_fault(run, row, message, tmp_path):
    found = problem(run(rows=[script_to_row(SCRIPT, 0, "rl"), row]))
    assert "row 1" in found and message in found
    assert not (tmp_path / "out").exists(), "nothing is written before everything is right"


def test_more_pictures_than_the_rollout_may_show_are_named_with_the_key_to_raise(run, tmp_path, monkeypatch):
    """vLLM refuses such a request in mid-run; what lies behind the last turn that is played does not count."""
    monkeypatch.setattr(requirements, "find_spec", lambda name: object())  # whether vLLM is here is another question
    shown = dataclasses.replace(SCRIPT, turns=(*SCRIPT.turns, UserTurn("and that?", (picture(),))))
    rows = [script_to_row(shown, 0, "rl")]
    room = ("data.max_prompt_length=512", "data.max_response_length=512", "actor_rollout_ref.rollout.name=vllm")
    key = "actor_rollout_ref.rollout.limit_images"
    found = problem(run(*room, f"+{key}=1", rows=rows))
    assert f"{tmp_path / 'rl.parquet'}, row 0: its 3 turns show 2 pictures, {key} is 1; raise that key" in found
    elsewhere = "actor_rollout_ref.rollout.name=hf"  # only vLLM has such a limit
    for overrides in (
        [f"+{key}=2"],
        [f"+{key}=null"],
        [f"+{key}=1", "steer.dialogue.max_turns=2"],
        [f"+{key}=1", elsewhere],
    ):
        run_preflight(run(*room, *overrides, rows=rows))


def test_the_data_set_leaves_out_what_the_rollout_may_not_show(run, student, tmp_path):
    """With rows to be rejected, preflight and data set must count the same ones."""
    from verl.utils.tokenizer import hf_processor, hf_tokenizer

    from verl_steer.plugin.dataset import SteerDataset

    two = dataclasses.replace(SCRIPT, turns=(UserTurn("which?", (picture(), picture())),))
    rows = [script_to_row(SCRIPT, 0, "rl"), script_to_row(two, 1, "rl")]
    limit = ("actor_rollout_ref.rollout.name=vllm", "+actor_rollout_ref.rollout.limit_images=1")
    config = run(*limit, "data.on_bad_row=reject", rows=rows)
    data = SteerDataset(
        str(tmp_path / "rl.parquet"), hf_tokenizer(str(student)), config.data, hf_processor(str(student))
    )
    assert len(data) == 1


def test_bad_rows_may_be_left_out_if_asked(run, capsys):
    rows = [script_to_row(SCRIPT, 0, "rl"), {**script_to_row(SCRIPT, 1, "rl"), "images": []}]
    run_preflight(run("data.on_bad_row=reject", rows=rows))
    assert "4 rows, 4 turns, 2 rejected" in capsys.readouterr().out


def test_a_folder_without_write_permission_is_named(run, tmp_path, monkeypatch):
    monkeypatch.setattr(checks.os, "access", lambda *_: False)
    assert "no permission to write" in problem(run())


@pytest.mark.parametrize("key", ["trainer.default_local_dir", "actor_rollout_ref.model.path", "data.val_files"])
def test_a_path_that_verl_would_not_expand_is_named(run, key):
    assert f"{key}=~/x: verl does not expand ~; give /" in problem(run(f"{key}='~/x'"))


@pytest.mark.parametrize(
    ("override", "address", "says"),
    [
        ("trainer.nnodes=2", "", "trainer.nnodes=2 needs a Ray cluster"),
        ("+ray_kwargs.ray_init.address=ray://head:10001", "", "the run joins the Ray cluster at ray://head:10001"),
        ("trainer.nnodes=1", "10.0.0.1:6379", "the run joins the Ray cluster at 10.0.0.1:6379"),
    ],
)
def test_a_relative_path_is_refused_where_workers_run_elsewhere(run, override, address, says, tmp_path, monkeypatch):
    """Relative or not, a name of the hub stays one."""
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.chdir(tmp_path)
    hub = (override, "actor_rollout_ref.model.path=Qwen/Qwen2.5-VL-7B-Instruct")
    assert paths.mean_the_same(run(*hub)) == says
    with pytest.raises(checks.Problem, match=rf"trainer\.default_local_dir=out: .*Give {tmp_path}/out"):
        paths.mean_the_same(run(*hub, "trainer.default_local_dir=out"))
    (tmp_path / "student").mkdir()
    with pytest.raises(checks.Problem, match=r"model\.path=student: .*a relative path would name another place"):
        paths.mean_the_same(run(override, "actor_rollout_ref.model.path=student"))


def test_a_cluster_that_runs_here_is_joined_unnamed(run, monkeypatch):
    """`ray.init()` finds it by a file that `ray start` left, which may outlive the cluster."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    relative = run("trainer.default_local_dir=out", "ray_kwargs.ray_init.num_gpus=null")
    with socket.create_server(("127.0.0.1", 0)) as head:
        address = f"127.0.0.1:{head.getsockname()[1]}"
        monkeypatch.setattr("ray._private.services.find_bootstrap_address", lambda folder: address)
        with pytest.raises(checks.Problem, match=rf"the run joins the Ray cluster that runs here \({address}\)"):
            paths.mean_the_same(relative)
        declared = run("trainer.default_local_dir=out", "ray_kwargs.ray_init.num_gpus=1")
        assert paths.mean_the_same(declared) == "all from this folder", "verl starts a cluster of its own then"
    assert paths.mean_the_same(relative) == "all from this folder"


@pytest.mark.parametrize("estimator", ["steer_grpo", "steer_final", "masked_grpo", "masked_rloo"])
def test_a_group_of_one_is_refused_where_siblings_are_compared(run, estimator):
    one = ("actor_rollout_ref.rollout.n=1", f"algorithm.adv_estimator={estimator}")
    with pytest.raises(checks.Problem, match=r"rollout\.n=1 .* teaches nothing; set actor_rollout_ref\.rollout\.n=5"):
        algorithm.usable(run(*one))
    algorithm.usable(run("actor_rollout_ref.rollout.n=2", one[1]))


@pytest.mark.parametrize("estimator", ["gae", "steer_remax", "steer_turn", "masked_reinforce_plus_plus"])
def test_a_group_of_one_is_enough_elsewhere(run, estimator):
    algorithm.usable(run("actor_rollout_ref.rollout.n=1", f"algorithm.adv_estimator={estimator}"))


@pytest.mark.parametrize("estimator", ["steer_turn", "steer_final"])
def test_estimators_of_turns_need_turns_without_holes(run, estimator):
    rejected = "algorithm.rollout_correction.rollout_rs="
    with pytest.raises(checks.Problem, match=rf"takes tokens out of turns, and {estimator} .* use a seq_\* mode"):
        algorithm.usable(run(f"algorithm.adv_estimator={estimator}", f"{rejected}'seq_mean_k1,token_k2'"))
    algorithm.usable(run(f"algorithm.adv_estimator={estimator}", f"{rejected}seq_mean_k1"))
    algorithm.usable(run("algorithm.adv_estimator=steer_grpo", f"{rejected}token_k2"))


def test_where_this_command_starts_all_processes_a_path_may_be_relative(run, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert paths.mean_the_same(run("trainer.default_local_dir=out")) == "all from this folder"


def test_a_tutor_that_is_down_is_named(run):
    message = problem(
        run(
            "steer.tutor.kind=endpoint",
            "steer.tutor.model=tutor",
            "steer.tutor.base_urls=[http://127.0.0.1:9/v1]",
            "steer.tutor.attempts=1",
        )
    )
    assert "http://127.0.0.1:9/v1" in message


def leave_checkpoint(folder: Path, step: int, tracker: str | None) -> None:
    (folder / f"global_step_{step}").mkdir(parents=True)
    if tracker is not None:
        (folder / fingerprint.TRACKER).write_text(tracker)


def test_the_same_run_resumes(run, tmp_path, capsys):
    run_preflight(run())
    leave_checkpoint(tmp_path / "out", 3, "3")
    run_preflight(run())
    assert "resumes from step 3" in capsys.readouterr().out


@pytest.mark.parametrize(
    "override",
    [
        "data.seed=2",
        "actor_rollout_ref.rollout.n=4",
        "actor_rollout_ref.actor.optim.lr=3e-5",
        "actor_rollout_ref.actor.policy_loss.loss_mode=gspo",
        "actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-sum",
        "actor_rollout_ref.actor.clip_ratio_high=0.28",
        "actor_rollout_ref.actor.kl_loss_type=mse",
        "actor_rollout_ref.model.lora_alpha=32",
        "actor_rollout_ref.rollout.temperature=0.9",
        "algorithm.norm_adv_by_std_in_grpo=false",
        "algorithm.kl_ctrl.kl_coef=0.01",
        "steer.advantage.std=true",
        "steer.dialogue.min_scored=0.8",
        "steer.dialogue.max_turn_tokens=99",
        "steer.dialogue.feedback=script",
        "steer.tutor.model=another",
    ],
)
def test_another_runs_checkpoint_is_refused(run, tmp_path, override):
    run_preflight(run())
    leave_checkpoint(tmp_path / "out", 3, "3")
    before = (tmp_path / "out" / fingerprint.FILE).read_text()
    message = problem(run(override))
    assert override.split("=")[0] in message and "Choose another trainer.default_local_dir" in message
    assert (tmp_path / "out" / fingerprint.FILE).read_text() == before


@pytest.mark.parametrize("fragment", ["with_gspo", "with_dr_grpo", "with_dapo"])
def test_an_algorithm_fragment_makes_another_run_of_it(tmp_path, fragment):
    def mine(recipe: str) -> tuple:
        with initialize_config_module("verl.trainer.config", version_base=None):
            config = compose("ppo_trainer", overrides=[f"+recipe={recipe}", "trainer.resume_mode=auto"])
        config.trainer.default_local_dir = str(tmp_path)
        return config, fingerprint.fingerprint(config, [])

    config, plain = mine("steer_grpo_7b")
    fingerprint.remember(config, plain)
    leave_checkpoint(tmp_path, 3, "3")
    assert fingerprint.check_resume(config, plain) == "resumes from step 3"
    with pytest.raises(fingerprint.ForeignCheckpointError, match=r"actor_rollout_ref\.actor\.loss_agg_mode: there"):
        fingerprint.check_resume(*mine(f"[steer_grpo_7b,{fragment}]"))


def test_another_reward_is_another_run_and_an_older_fingerprint_did_not_know_it(run, tmp_path):
    run_preflight(run())
    leave_checkpoint(tmp_path / "out", 3, "3")
    message = problem(run("steer.reward.alpha=0"))
    assert "steer.reward.alpha: there None, here 0\n" in message and "trainer.resume_mode=resume_path" in message
    path = tmp_path / "out" / fingerprint.FILE
    older = {key: value for key, value in json.loads(path.read_text()).items() if key != "steer.reward.alpha"}
    path.write_text(json.dumps(older))
    run_preflight(run("steer.reward.alpha=0"))


def test_a_run_that_began_under_a_shorter_fingerprint_goes_on(run, tmp_path, capsys):
    """What version 0.1.0 wrote before it looked at the algorithm: such a run is under way and must not be lost."""
    run_preflight(run())
    leave_checkpoint(tmp_path / "out", 3, "3")
    path = tmp_path / "out" / fingerprint.FILE
    full = json.loads(path.read_text())
    known = ("actor_rollout_ref.model.path", "data.", "actor_rollout_ref.rollout.n", "steer.seed", "steer.reward")
    path.write_text(json.dumps({k: v for k, v in full.items() if k.startswith(known) and "length" not in k}))
    run_preflight(run())
    assert "resumes from step 3" in capsys.readouterr().out
    assert json.loads(path.read_text()) == full, "from now on the rest is noticed too"
    assert "loss_mode: there 'vanilla', here 'gspo'" in problem(
        run("actor_rollout_ref.actor.policy_loss.loss_mode=gspo")
    )


def test_an_evaluation_of_a_checkpoint_leaves_the_fingerprint_of_the_run(run, tmp_path):
    run_preflight(run())
    leave_checkpoint(tmp_path / "out", 3, "3")
    before = (tmp_path / "out" / fingerprint.FILE).read_text()
    checkpoint = tmp_path / "out" / "global_step_3"
    run_preflight(
        run(
            "trainer.val_only=true",
            "trainer.resume_mode=resume_path",
            f"trainer.resume_from_path={checkpoint}",
            "actor_rollout_ref.rollout.n=4",
        )
    )
    assert (tmp_path / "out" / fingerprint.FILE).read_text() == before


def test_a_step_that_was_being_saved_when_the_run_was_killed_is_not_resumed(run, tmp_path, capsys):
    run_preflight(run())
    leave_checkpoint(tmp_path / "out", 3, None)
    run_preflight(run())
    assert capsys.readouterr().out.count("a new run") == 2
    assert not (tmp_path / "out" / fingerprint.TRACKER).exists()


def test_a_checkpoint_of_unknown_origin_is_refused(run, tmp_path):
    leave_checkpoint(tmp_path / "out", 3, "3")
    assert "holds checkpoints of another run" in problem(run())


def test_a_tracker_file_that_a_kill_left_empty_is_repaired(run, tmp_path):
    run_preflight(run())
    leave_checkpoint(tmp_path / "out", 3, "")
    leave_checkpoint(tmp_path / "out", 6, "")
    run_preflight(run())
    assert (tmp_path / "out" / fingerprint.TRACKER).read_text() == "6"


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (("steer.difficulty.api_key_env=NO_SUCH_KEY",), "steer.difficulty.api_key_env=NO_SUCH_KEY"),
        (("steer.difficulty.base_urls=['http://me:secret@sft:8000/v1']",), "steer.difficulty.base_urls"),
    ],
)
def test_a_frozen_student_that_cannot_be_reached_is_named_before_ray(run, overrides, says):
    found = problem(
        run(
            "steer.difficulty.kind=endpoint",
            "steer.difficulty.model=sft",
            "steer.difficulty.base_urls=['http://sft:8000/v1']",
            *overrides,
        )
    )
    assert says in found and "secret" not in found


def test_a_yoked_run_needs_the_records_of_a_run_on_the_same_seeds(run, tmp_path):
    folder = tmp_path / "other" / "records"
    yoked = ("steer.dialogue.feedback=yoked", f"steer.dialogue.yoked_to={folder}")
    assert "holds no records of training" in problem(run(*yoked))
    turns = [{"asked": "a"}, {"asked": "b"}]
    good = {"seed_id": "seed-1", "step": 1, "session": 0, "turns": turns, "script": [t.text for t in SCRIPT.turns]}
    writer = RecordWriter(folder)
    writer.write_step("train", 1, [{**good, "seed_id": "elsewhere"}])
    assert "is of another world: none of its seeds" in problem(run(*yoked))
    writer.write_step("train", 2, [{**good, "script": ["what is that?", "and now?"]}])
    assert "seed 'seed-1' has another script there" in problem(run(*yoked))
    writer.write_step("train", 2, [good])
    RecordWriter(folder).write_step("train", 2, [good])
    run_preflight(run(*yoked))
    assert "yoked_to" in problem(run("steer.dialogue.feedback=yoked"))
