"""The SFT recipes compose, carry the paper's values, and what is wrong with a run is said before it starts."""

import pyarrow.parquet as pq
import pytest

pytest.importorskip("verl")
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from tiny_model import build_tiny_vlm

from verl_steer.data.schemas import SftRow
from verl_steer.data.splits import LAYOUTS, table
from verl_steer.plugin import fingerprint
from verl_steer.plugin.checks import Problem
from verl_steer.plugin.freeze import KEY, freeze_vision, vision_parameters
from verl_steer.plugin.sft_preflight import SftPreflight, run_preflight

RECIPES = ("steer_sft", "steer_sft_7b", "steer_sft_3b")


def composed(recipe: str, *overrides: str):
    with initialize_config_module("verl.trainer.config", version_base=None):
        return compose("sft_trainer_engine", overrides=[f"+recipe={recipe}", *overrides])


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_recipe_resolves_whole_with_the_papers_values(recipe, device, monkeypatch):
    monkeypatch.setenv("VERL_STEER_DEVICE", device)
    plain = OmegaConf.to_container(composed(recipe), resolve=True)
    assert (plain["optim"]["lr"], plain["data"]["train_batch_size"], plain["trainer"]["total_epochs"]) == (1e-5, 16, 2)
    assert plain["data"]["max_length"] == 32_768 == plain["data"]["max_token_len_per_gpu"]
    assert "hf_model" in plain["checkpoint"]["save_contents"]
    assert plain["model"]["override_config"][KEY] is True and plain["engine"]["strategy"] == "fsdp2"


def test_a_gpu_run_keeps_no_setting_of_a_machine_without_one(monkeypatch):
    monkeypatch.setenv("VERL_STEER_DEVICE", "cuda")
    config = composed("steer_sft", "model.path=/models/real")
    assert config.trainer.device == "cuda" and config.engine.mixed_precision.param_dtype == "bf16"
    assert config.model.use_remove_padding and config.model.override_config.attn_implementation == "flash_attention_2"
    assert config.engine.dtype == "bfloat16" and config.data.num_workers == 8
    monkeypatch.setenv("VERL_STEER_DEVICE", "cpu")
    config = composed("steer_sft", "model.path=/models/real")
    assert config.trainer.device == "cpu" and config.engine.mixed_precision.param_dtype == "fp32"


def test_the_paper_s_students_have_eight_gpus():
    for recipe, student in (("steer_sft_7b", "7B"), ("steer_sft_3b", "3B")):
        config = composed(recipe)
        assert student in config.model.path and config.trainer.n_gpus_per_node == 8


def test_without_validation_rows_nothing_is_validated():
    assert composed("steer_sft").trainer.test_freq == -1
    assert composed("steer_sft", "data.val_files=/a.parquet").trainer.test_freq == "after_each_epoch"


# -- preflight ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    return build_tiny_vlm(tmp_path_factory.mktemp("student") / "tiny")


@pytest.fixture
def run(tmp_path, student):
    """Composes a run on three rows."""

    def make(*overrides: str, reply: str = "yes"):
        rows = [
            SftRow(id=f"r{n}", source="s", kind="benign", turns=[{"text": "q", "reply": reply}] * 2) for n in range(3)
        ]
        path = tmp_path / "sft.parquet"
        pq.write_table(table(LAYOUTS["sft"], rows), path)
        return composed(
            "steer_sft",
            f"model.path={student}",
            f"data.train_files={path}",
            f"trainer.default_local_dir={tmp_path / 'out'}",
            "data.train_batch_size=2",
            "data.max_length=128",
            *overrides,
        )

    return make


def problem(config) -> str:
    with pytest.raises((Problem, fingerprint.ForeignCheckpointError)) as caught:
        run_preflight(config)
    return str(caught.value)


def test_a_good_run_passes_and_leaves_its_fingerprint(run, tmp_path, capsys):
    run_preflight(run())
    assert "preflight passed; 3 rows, 0 rejected; a new run" in capsys.readouterr().out
    assert (tmp_path / "out" / fingerprint.FILE).is_file()


def test_only_the_first_rank_tells_and_writes(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    run_preflight(run())
    assert not capsys.readouterr().out and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("+steer.sft.freeze_visoin=true", "did you mean freeze_vision"),
        ("steer.sft.freeze_vision=3", "must be bool"),
        ("engine.strategy=fsdp", "leave engine.strategy=fsdp2"),
        (f"model.override_config.{KEY}=false", "does not reach the engine"),
        ("model.path=null", "model.path is not set"),
        ("data.train_files=null", "data.train_files is not set"),
        ("data.train_batch_size=4", "3 usable rows do not fill data.train_batch_size=4"),
        ("data.max_length=20", "3 of 3 rows cannot be used; the first is row 0.*tokens, data.max_length=20"),
        ("trainer.test_freq=2", "without data.val_files"),
    ],
)
def test_what_is_wrong_is_said_before_a_model_is_loaded(run, override, message):
    import re

    assert re.search(message, problem(run(override)))


def test_a_ray_cluster_that_happens_to_run_here_is_no_concern_of_torchrun_s(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setattr("verl_steer.plugin.paths._running_here", lambda: "10.0.0.1:6379")
    run_preflight(run("trainer.default_local_dir=out"))
    monkeypatch.setenv("WORLD_SIZE", "16")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "16")
    run_preflight(run("trainer.default_local_dir=out"))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    said = problem(run("trainer.default_local_dir=out"))
    assert (
        said.startswith("trainer.default_local_dir=out: torchrun starts 16 ranks on several nodes")
        and str(tmp_path / "out") in said
    )
    assert "verl does not expand ~" in problem(run("trainer.default_local_dir='~/out'"))


def test_the_callback_stops_without_a_traceback(run):
    with pytest.raises(SystemExit, match="do not fill"):
        SftPreflight().on_job_start(run("data.train_batch_size=4"))


def test_another_run_s_checkpoints_are_refused(run, tmp_path):
    run_preflight(run())
    (tmp_path / "out" / "global_step_2").mkdir()
    assert "data.seed: there 1, here 2" in problem(run("data.seed=2"))
    assert "optim.lr: there 1e-05, here 0.001" in problem(run("optim.lr=1e-3"))
    assert "model.lora_rank: there 0, here 8" in problem(run("model.lora_rank=8"))


# -- data set and switch --------------------------------------------------------------------------------


def test_the_order_is_the_run_s_and_a_rejected_row_is_named(tmp_path, student, capsys):
    from transformers import AutoProcessor

    from verl_steer.plugin.sft_dataset import SteerSftDataset

    rows = [
        SftRow(id=f"r{n}", source="s", kind="benign", turns=[{"text": f"q{n}", "reply": "a" * (400 if n == 3 else 2)}])
        for n in range(12)
    ]
    path = tmp_path / "sft.parquet"
    pq.write_table(table(LAYOUTS["sft"], rows), path)
    processor = AutoProcessor.from_pretrained(student)

    def read(seed: int, max_samples: int = -1) -> list[str]:
        options = OmegaConf.create(
            {
                "max_length": 128,
                "pad_mode": "no_padding",
                "seed": seed,
                "on_bad_row": "reject",
                "rejected_dir": str(tmp_path / "r"),
            }
        )
        data = SteerSftDataset([str(path)], processor.tokenizer, options, processor, max_samples)
        assert all(data[n]["multi_modal_inputs"] == {} for n in range(len(data)))
        return [data.dataframe.iloc[n]["id"] for n in range(len(data))]

    first = read(1)
    assert sorted(first) == sorted(f"r{n}" for n in range(12) if n != 3)
    assert first == read(1) != read(2) and read(1, max_samples=4) == first[:4]
    assert "12 rows in = 11 kept + 1 rejected; 11 are used" in capsys.readouterr().out
    assert '"id": "r3"' in (tmp_path / "r" / "rejected_sft.jsonl").read_text()


def test_the_switch_freezes_tower_and_projector_and_nothing_else(student):
    import torch
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(student)
    assert freeze_vision(model) == sum(p.numel() for p in model.model.visual.parameters())
    assert any("merger" in name for name in vision_parameters(model)), "the projector of this family"
    assert all(p.requires_grad != n.startswith("model.visual.") for n, p in model.named_parameters())
    with pytest.raises(ValueError, match=r"set steer\.sft\.freeze_vision=false"):
        freeze_vision(torch.nn.Linear(2, 2))
