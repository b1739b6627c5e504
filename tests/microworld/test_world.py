"""The prepared world: built once, loadable by the Auto classes, and exactly what training will see."""

import io
import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from verl_steer.data.rows import read_rows, row_to_script
from verl_steer.microworld import probe
from verl_steer.microworld.exercises import lesson
from verl_steer.microworld.lexicon import stable
from verl_steer.microworld.picture import Scene, Thing
from verl_steer.microworld.prepare import ensure, paths
from verl_steer.microworld.scripts import generate
from verl_steer.microworld.sizes import WorldConfig


def test_paths_touch_nothing_and_depend_on_seed_and_sizes(tmp_path, tiny):
    import subprocess
    import sys

    there = {paths(tmp_path, 0).root, paths(tmp_path, 1).root, paths(tmp_path, 0, tiny).root}
    assert len(there) == 3 and not list(tmp_path.iterdir())
    assert paths(tmp_path, 0) == paths(tmp_path, 0, WorldConfig())
    code = "import sys, verl_steer.microworld.prepare as p; p.paths('x', 0); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_rows_are_the_splits(world, tiny):
    rl = [row_to_script(row) for row in read_rows(world.rl)]
    assert sorted(s.seed_id for s in rl) == sorted(s.seed_id for s in generate("rl", 5, tiny.rl_pairs))
    assert [row_to_script(row) for row in read_rows(world.probe)] == generate("probe", 5, tiny.probe_pairs)
    assert read_rows(world.rl)[0]["data_source"] == "verl_steer/microworld"


def test_a_second_start_finds_it_and_leaves_it_alone(world, tiny):
    before = {p: p.stat().st_mtime_ns for p in world.root.rglob("*")}
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda _: ensure(world.root.parent, 5, tiny, quiet=True), range(2)))
    assert found == [world, world]
    assert {p: p.stat().st_mtime_ns for p in world.root.rglob("*")} == before
    assert json.loads((world.root / "world.json").read_text())["seed"] == 5


def test_concurrent_first_starts_build_once_and_clear_leftovers(tmp_path, tiny, monkeypatch):
    from verl_steer.microworld import prepare

    built = []
    monkeypatch.setattr(prepare, "_write_student", lambda folder, *_: built.append(folder) or folder.mkdir())
    place = paths(tmp_path, 9, tiny)
    (tmp_path / f".{place.root.name}.building-killed").mkdir()
    with ThreadPoolExecutor(3) as pool:
        assert set(pool.map(lambda _: ensure(tmp_path, 9, tiny, quiet=True), range(3))) == {place}
    assert len(built) == 1 and place.complete
    assert not [p for p in tmp_path.iterdir() if "building" in p.name]


def test_a_failed_build_leaves_no_world(tmp_path, tiny, monkeypatch):
    from verl_steer.microworld import prepare

    monkeypatch.setattr(prepare, "_write_student", lambda *_: (_ for _ in ()).throw(RuntimeError("stopped")))
    with pytest.raises(RuntimeError, match="stopped"):
        ensure(tmp_path, 9, tiny, quiet=True)
    assert not paths(tmp_path, 9, tiny).complete and not paths(tmp_path, 9, tiny).root.exists()


def test_the_student_is_a_small_qwen_with_a_vocabulary_of_its_own(world):
    from transformers import AutoTokenizer

    from verl_steer.microworld.generate import load

    model, processor = load(world.student)
    assert type(model).__name__ == "Qwen2_5_VLForConditionalGeneration"
    assert type(processor).__name__ == "Qwen2_5_VLProcessor"
    tokenizer = AutoTokenizer.from_pretrained(world.student)
    assert len(tokenizer) == model.config.text_config.vocab_size == model.get_input_embeddings().weight.shape[0]
    assert 0.5e6 < sum(p.numel() for p in model.parameters()) < 3e6
    text = model.config.text_config
    assert text.hidden_size // text.num_attention_heads == 32
    assert tokenizer.chat_template == processor.chat_template


def test_the_warm_up_sees_what_the_rollout_will_see(world):
    import torch
    from PIL import Image

    from verl_steer.microworld import encoding
    from verl_steer.microworld.generate import load, question_tokens
    from verl_steer.microworld.picture import draw

    model, processor = load(world.student)
    example = lesson(generate("sft", 5, 2)[0], stable(5), {})
    image = Image.open(io.BytesIO(draw(example.scene)))
    seen = processor.image_processor(images=[image], return_tensors="pt")
    values, grid = encoding.pixels([example.scene])
    torch.testing.assert_close(values, seen["pixel_values"])
    assert grid.tolist() == seen["image_grid_thw"].tolist()

    encoded = encoding.Encoder(processor.tokenizer)(example)
    kinds = (encoded.ids == model.config.image_token_id).int()[None]
    wanted, _ = model.model.get_rope_index(encoded.ids[None], kinds, image_grid_thw=grid)
    assert torch.equal(wanted[:, 0], encoding.positions(len(encoded.ids)))

    built, end = [], processor.tokenizer.eos_token_id
    for turn, (question, reply) in enumerate(example.turns):
        built += question_tokens(processor, question, grid if turn == 0 else None)
        built += [*processor.tokenizer(reply)["input_ids"], end]
    assert built == encoded.ids.tolist()[: len(built)]
    said = processor.tokenizer.decode(encoded.ids[encoded.mask > 0])
    assert said == "".join(f"{reply}<|im_end|>" for _, reply in example.turns)


def test_the_probe_plays_every_turn_and_greedy_is_repeatable(world):
    scripts = probe.scripts(5, 2)
    first, again = probe.evaluate(world.student, scripts), probe.evaluate(world.student, scripts)
    assert first == again
    assert set(first["student"]) == set(first["refuse"])
    assert sum(first["student"]["outcomes"].values()) == sum(len(s.turns) for s in scripts)


def test_a_batch_decodes_like_its_rows_alone(world):
    from verl_steer.microworld.generate import load, play

    model, processor = load(world.student)
    scripts = probe.scripts(5, 2)
    together = play(model, processor, scripts, 6)
    assert together == [play(model, processor, [script], 6)[0] for script in scripts]


def test_a_few_steps_of_imitation_lower_the_loss(world):
    import torch

    from verl_steer.microworld import encoding, fitting
    from verl_steer.microworld.generate import load

    model, processor = load(world.student)
    encoder = encoding.Encoder(processor.tokenizer)
    batch = [encoder(lesson(script, stable(5), {})) for script in generate("sft", 5, 4)]
    imitate, optimizers = fitting.Imitator(model, processor.tokenizer), fitting.optimizers_of(model, 0.02)
    frozen = {name: p.clone() for name, p in model.model.visual.named_parameters()}
    losses = []
    for _ in fitting.schedule(optimizers, 8):
        losses.append(imitate(batch).loss)
        fitting.step_all(losses[-1], optimizers)
    assert losses[-1] < losses[0] - 0.5
    assert all(torch.equal(frozen[name], p) for name, p in model.model.visual.named_parameters())


def test_decisions_are_marked_where_they_are_made(world):
    from verl_steer.microworld.encoding import RULES, Encoder
    from verl_steer.microworld.generate import load

    _, processor = load(world.student)
    encoder, seen = Encoder(processor.tokenizer), set()
    for script in generate("sft", 5, 40):
        for slips in ({}, {"R1": 1.0, "R2": 1.0, "R3": 1.0}):
            example = lesson(script, stable(5), slips)
            encoded = encoder(example)
            clear = {thing.shape for thing in example.scene.things if not thing.faint}
            decided = [
                (taboo, reply.split(",")[1].split()[1].strip("."))
                for taboo, (_, reply) in zip(example.taboos, example.turns, strict=True)
                if "," in reply and reply.split()[1] in clear
            ]
            at = (encoded.decides >= 0).nonzero()[:, 0].tolist()
            found = [(RULES[encoded.decides[i]], processor.tokenizer.decode(encoded.ids[i]).strip()) for i in at]
            assert found == decided
            seen |= set(found)
    # Refused where a rule forbids, answered by a slip, answered where nothing forbids, for the first time and again.
    answered = {("R1", "say"), ("R2", "again"), ("R3", "say"), ("", "say"), ("", "again")}
    assert answered | {("R1", "no"), ("R2", "no"), ("R3", "no")} <= seen


def test_what_a_reference_means_is_marked_as_looked_up(world):
    from verl_steer.microworld.encoding import Encoder
    from verl_steer.microworld.exercises import Example
    from verl_steer.microworld.generate import load

    _, processor = load(world.student)
    scene = Scene(Thing("star", "red"), Thing("moon", "blue", "sealed"))
    turns = (("what colour does the star have?", "the star red."), ("and the other one?", "the moon sealed, moon no."))
    encoded = Encoder(processor.tokenizer)(Example(scene, turns, ("", "R1")))
    looked_up = [processor.tokenizer.decode(encoded.ids[i]).strip() for i in encoded.reads.nonzero()[:, 0].tolist()]
    assert looked_up == ["moon", "sealed"]


def test_lessons_slip_as_often_as_it_takes(tiny):
    import torch

    from verl_steer.microworld.manner import LEAST, MOST, Mixture
    from verl_steer.microworld.sizes import WarmupConfig

    mixture = Mixture(stable(0), [], [], None, WarmupConfig(refusal_rate=0.4))
    for _ in range(100):
        mixture.tell({"R1": torch.tensor([0.9, 1.0]), "R2": torch.tensor([])})
    assert mixture.slips == {"R1": MOST, "R2": 0.5, "R3": 0.5}  # refuses too often; nothing known of the other rules
    assert mixture.refusal_rate("R1") == pytest.approx(0.95, abs=0.01) and mixture.refusal_rate("R2") == 0
    for _ in range(300):
        mixture.tell({"R1": torch.zeros(2), "R2": torch.zeros(1)})
    assert mixture.slips == {"R1": LEAST, "R2": LEAST, "R3": 0.5}


def test_every_rule_is_taught_as_often(monkeypatch):
    from collections import Counter

    from verl_steer.microworld import manner
    from verl_steer.microworld.scripts import generate
    from verl_steer.microworld.sizes import WarmupConfig

    scripts = generate("sft", 0, 100)
    met = Counter(script.category for script in scripts)
    assert met["R3"] < met["R1"] / 2, met  # a lesson on any script would seldom be about the pledge
    monkeypatch.setattr(manner, "lesson", lambda script, rng, slips: script.category)
    config = WarmupConfig(exercise_share=0.0, manner_batch=3000)
    drawn = Counter(manner.Mixture(stable(0), [], scripts, lambda category: category, config).batch())
    assert drawn.keys() == {"R1", "R2", "R3"} and all(900 < n < 1100 for n in drawn.values()), drawn


def test_the_student_is_born_looking_back():
    import torch

    from verl_steer.microworld.student import build_model, build_processor

    tokenizer = build_processor().tokenizer
    model = build_model(0, tokenizer).eval()
    model.set_attn_implementation("eager")
    ids = torch.tensor([tokenizer("what do you see here? the star sealed, star no.")["input_ids"]])
    with torch.no_grad():
        seen = model(input_ids=ids, output_attentions=True).attentions[0][0, 0]
    before = seen.diagonal(-1)
    assert before.mean() > 0.8 and before.min() > 0.4, before
    attention = model.model.language_model.layers[0].self_attn
    attention.q_proj.bias.data.zero_()
    with torch.no_grad():
        blind = model(input_ids=ids, output_attentions=True).attentions[0][0, 0]
    assert blind.diagonal(-1).mean() < 0.4
