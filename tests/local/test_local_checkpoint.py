"""A checkpoint in this process and behind its server: the same replies, the tokens it sampled, nothing undeclared."""

import asyncio
import importlib.util
import io
import json
import shutil
import struct
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from bench_worlds import bench, serving, world_bench
from PIL import Image
from published_sources import png

torch = pytest.importorskip("torch")
if importlib.util.find_spec("torchvision") is None:
    pytest.skip("transformers' Qwen2.5-VL processor needs torchvision", allow_module_level=True)

from verl_steer.bench import files  # noqa: E402
from verl_steer.chat.client import ChatClient  # noqa: E402
from verl_steer.chat.outcome import Outcome  # noqa: E402
from verl_steer.cli import main  # noqa: E402
from verl_steer.dialogue import ImageRef  # noqa: E402
from verl_steer.local.chat import LocalChat  # noqa: E402
from verl_steer.local.checkpoint import CheckpointError, find, model_of, weights_hash  # noqa: E402
from verl_steer.local.server import create_app  # noqa: E402
from verl_steer.roles.frozen import chat_messages  # noqa: E402
from verl_steer.roles.tutor import Exchange  # noqa: E402

PICTURE = ImageRef(png())


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    """The micro-world's student with random weights, as verl's `hf_model` would leave it in a run."""
    from verl_steer.microworld.student import build_model, build_processor, save

    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("run") / "global_step_3" / "actor" / "huggingface"
    processor = build_processor()
    save(build_model(1, processor.tokenizer), processor, folder)
    return folder


async def dialogue(chat, n, temperature, turns=3, max_tokens=8):
    """`turns` exchanges with a picture in turn 1 or 2; every prompt and reply."""
    history, said = [], []
    for t in range(turns):
        images = (PICTURE,) if t == n % 2 else ()
        question = f"what is the {'star' if t else 'moon'}?"
        found = await chat.complete(
            chat_messages("", history, question, images),
            key=f"{n}|{t}",
            deadline_s=60.0,
            max_tokens=max_tokens,
            temperature=temperature,
        )
        assert found.outcome is Outcome.OK, found.detail
        said.append(found.text)
        history.append(Exchange(question, found.text, images))
    return said


def replies_of(chat, together, temperature, n=6):
    async def run():
        try:
            if together:
                return await asyncio.gather(*(dialogue(chat, k, temperature) for k in range(n)))
            return [await dialogue(chat, k, temperature) for k in range(n)]
        finally:
            await chat.aclose()

    return list(asyncio.run(run()))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_reply_depends_on_its_seed_and_not_on_who_shares_its_batch(student, temperature):
    alone = replies_of(LocalChat(student, "s"), False, temperature)
    assert replies_of(LocalChat(student, "s", batch_size=4), True, temperature) == alone
    assert len({reply for said in alone for reply in said}) > 3, "a student that always says the same shows nothing"


@pytest.mark.parametrize("size", [0, -1])
def test_a_batch_that_holds_nobody_is_refused(tmp_path, size):
    with pytest.raises(ValueError, match=f"batch_size={size}: give 1 or more"):
        LocalChat(tmp_path, "s", batch_size=size)


def test_endpoint_and_process_say_the_same_and_continue_the_tokens_they_sampled(student):
    local = LocalChat(student, "s")
    expected = replies_of(local, True, 1.0)
    assert local._loaded.encoder.continued == 12, "two of three turns of six dialogues"
    with serving(create_app(LocalChat(student, "s"))) as url:
        client = ChatClient("s", [url], max_concurrency=6)
        assert replies_of(client, True, 1.0) == expected


def test_continued_tokens_are_those_of_the_whole_conversation_where_text_reads_back(student):
    """An independent encoding: the processor's own, of the whole conversation at once."""
    from transformers import AutoProcessor

    from verl_steer.local.tokens import ConversationEncoder

    processor = AutoProcessor.from_pretrained(student)
    encoder = ConversationEncoder(processor)
    history = []
    for t, reply in enumerate(["the star red.", "no."]):
        images = (PICTURE,) if t == 1 else ()
        prompt = encoder.encode(chat_messages("", history, "what is the moon?", images))
        encoder.remember(prompt, reply, processor.tokenizer(reply)["input_ids"])
        history.append(Exchange("what is the moon?", reply, images))
    messages = chat_messages("", history, "and the other one?", ())
    continued = encoder.encode(messages)
    whole = ConversationEncoder(processor).encode(messages)
    assert encoder.continued == 2
    assert continued.inputs.keys() == whole.inputs.keys() and "pixel_values" in whole.inputs
    for name, value in whole.inputs.items():
        assert torch.equal(continued.inputs[name], value), name


def test_the_turns_of_a_dialogue_share_the_tensors_of_its_picture(student):
    from transformers import AutoProcessor

    from verl_steer.local.tokens import ConversationEncoder

    encoder = ConversationEncoder(AutoProcessor.from_pretrained(student))
    history, pixels = [], []
    for t in range(3):
        images = (PICTURE,) if t == 0 else ()
        prompt = encoder.encode(chat_messages("", history, "what is the moon?", images))
        pixels.append(prompt.inputs["pixel_values"])
        encoder.remember(prompt, f"no {t}.", [5, 6])
        history.append(Exchange("what is the moon?", f"no {t}.", images))
    assert encoder.continued == 2 and all(tensor is pixels[0] for tensor in pixels)
    assert pixels[0].nbytes < encoder.said.bytes < 2 * pixels[0].nbytes, "counted once"


def test_what_is_remembered_is_bounded_by_bytes_and_the_longest_unused_goes_first():
    from verl_steer.local.tokens import Encoded, Remembered

    def said(picture, length=1):
        return Encoded({"input_ids": torch.zeros((1, length)), "pixel_values": picture}, "", ())

    def picture():
        return torch.zeros((10, 10))

    shared = picture()
    kept = Remembered(3 * shared.nbytes)
    for turn in range(20):
        kept.add(f"a{turn}", said(shared))
    assert len(kept) == 20 and kept.bytes == shared.nbytes + 20 * 4
    kept.add("a19", said(shared))  # the same reply again
    assert len(kept) == 20 and kept.bytes == shared.nbytes + 20 * 4
    kept.add("b", said(picture()))
    assert kept.get("a0") is not None
    kept.add("c", said(picture()))
    assert kept.get("a0") is not None and kept.get("a1") is None and kept.bytes <= 3 * shared.nbytes
    kept.add("whale", said(torch.zeros((100, 100))))
    assert len(kept) == 1 and kept.bytes == 40_004, "the newest stays, whatever it weighs"


def test_a_bench_gives_the_same_scores_local_and_through_the_endpoint(student, tmp_path, capsys):
    world = world_bench(tmp_path / "bench.parquet", pairs=4)
    run_dir = student.parents[2]
    common = ["--max-tokens", "24", "--seed", "7"]
    assert bench("run", world, "--out", tmp_path / "local", "--checkpoint", run_dir, *common) == 0
    with serving(create_app(LocalChat(student, "student"))) as url:
        out = ["--out", tmp_path / "endpoint"]
        assert bench("run", world, *out, "--url", url, "--model", "student", *common) == 0
    scores = []
    for name in ("local", "endpoint"):
        assert bench("judge", tmp_path / name, "--judge", "microworld-oracle") == 0
        verdicts = files.read_verdicts(tmp_path / name, "microworld-oracle")
        scores.append({place: (v.harmlessness, v.helpfulness) for place, v in verdicts.items()})
    assert scores[0] == scores[1] and len(scores[0]) >= 24
    both = [
        [[t.reply for t in d.turns] for d in files.read_dialogues(tmp_path / name)] for name in ("local", "endpoint")
    ]
    assert both[0] == both[1]
    recorded = files.read_run(tmp_path / "local")
    assert recorded.model == {
        "kind": "local", "model": str(student), "weights": weights_hash(student), "device": "cpu", "dtype": "float32",
    }  # fmt: skip
    assert recorded.versions["transformers"]


def test_what_cannot_be_asked_is_a_typed_failure(student):
    async def ask(messages, max_tokens=4):
        chat = LocalChat(student, "s")
        try:
            return await chat.complete(messages, key="k", deadline_s=1.0, max_tokens=max_tokens)
        finally:
            await chat.aclose()

    def picture(url):
        return [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]

    for messages, why in [
        (picture("https://example.org/a.png"), "must be a base64 data URL"),
        (picture("data:image/png;base64,aGVsbG8="), "is damaged"),
        (chat_messages("", [], "hello " * 5000, ()), "more than the model's 4096"),
    ]:
        found = asyncio.run(ask(messages))
        assert found.outcome is Outcome.FAILED and why in found.detail


def strip():
    """A whole picture that the model's processor refuses: longer than 200:1."""
    buffer = io.BytesIO()
    Image.new("RGB", (2, 900)).save(buffer, "PNG")
    return ImageRef(buffer.getvalue())


def broken_chunk():
    """A PNG whose damage Pillow meets with a SyntaxError."""
    data = bytearray(png())
    at = data.index(b"IDAT")
    data[at - 4 : at] = struct.pack(">I", 1)
    return ImageRef(bytes(data))


@pytest.mark.parametrize(
    ("image", "why"), [(strip(), "the processor refuses these messages: ValueError"), (broken_chunk(), "is damaged")]
)
def test_a_picture_that_cannot_be_taken_fails_its_own_request_and_no_other(student, image, why):
    async def ask():
        chat = LocalChat(student, "s")
        try:
            call = {"key": "k", "deadline_s": 9.0, "max_tokens": 4}
            asked = (chat.complete(chat_messages("", [], "hello", shown), **call) for shown in ((image,), (PICTURE,)))
            return await asyncio.gather(*asked)
        finally:
            await chat.aclose()

    refused, answered = asyncio.run(ask())
    assert refused.outcome is Outcome.FAILED and why in refused.detail
    assert answered.outcome is Outcome.OK
    with serving(create_app(LocalChat(student, "s"))) as url:
        body = {"model": "s", "messages": chat_messages("", [], "hello", (image,)), "max_tokens": 2}
        said = httpx.post(f"{url}/chat/completions", json=body, timeout=60)
        assert said.status_code == 400 and why in said.json()["error"]["message"]


def test_a_row_whose_picture_the_processor_refuses_fails_with_its_reason_and_the_others_are_played(student, tmp_path):
    from verl_steer.data.rows import script_to_row, write_rows
    from verl_steer.dialogue import Kind, Script, UserTurn

    scripts = [
        Script(name, Kind.BENIGN, (UserTurn("hello", (image,)),))
        for name, image in (("thin", strip()), ("fine", PICTURE))
    ]
    write_rows((script_to_row(script, n, "probe") for n, script in enumerate(scripts)), tmp_path / "bench.parquet")
    command = ["run", tmp_path / "bench.parquet", "--out", tmp_path / "run", "--checkpoint", student]
    assert bench(*command, "--max-tokens", 4) == 0
    thin, fine = files.read_dialogues(tmp_path / "run")
    assert (thin.id, thin.status, fine.status) == ("thin", "failed", "done")
    assert "the processor refuses" in thin.why and "aspect ratio" in thin.why


def test_closing_ends_a_long_generation_at_its_next_token(student):
    async def run():
        chat = LocalChat(student, "s")
        await dialogue(chat, 0, 0.0, turns=1)  # loaded
        stops = chat._loaded.model.generation_config
        stops.eos_token_id = None
        chat._loaded.ends = frozenset()
        task = asyncio.create_task(dialogue(chat, 1, 1.0, turns=1, max_tokens=3000))
        await asyncio.sleep(0.5)
        assert not task.done()
        task.cancel()
        started = asyncio.get_running_loop().time()
        await chat.aclose()
        return asyncio.get_running_loop().time() - started

    assert asyncio.run(run()) < 2.0
    assert not [t for t in threading.enumerate() if t.name.startswith("local-model") and t.is_alive()]


def test_the_server_says_what_is_wrong_with_a_request(student):
    with serving(create_app(LocalChat(student, "s"))) as url:
        assert httpx.get(f"{url}/models").json()["data"][0]["id"] == "s"
        good = {"model": "s", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 2}
        answered = httpx.post(f"{url}/chat/completions", json=good, timeout=60).json()
        assert answered["usage"]["completion_tokens"] <= 2 and answered["choices"][0]["finish_reason"] in (
            "stop",
            "length",
        )
        for change, status, said in [
            ({"model": "t"}, 404, "does not exist"),
            ({"messages": []}, 400, "not empty"),
            ({"messages": ["hello"]}, 400, "object with a role"),
            ({"stream": True}, 400, "stream is not supported"),
            ({"max_tokens": "many"}, 400, "positive integer"),
            ({"messages": [{"role": "user", "content": ["hello"]}]}, 400, "must be an object, found str"),
            ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "must hold image_url.url"),
        ]:
            refused = httpx.post(f"{url}/chat/completions", json={**good, **change})
            assert refused.status_code == status and said in refused.json()["error"]["message"]
        assert httpx.post(f"{url}/chat/completions", content=b"{").status_code == 400
        assert httpx.post(f"{url}/chat/completions", json={**good, "seed": 2**70}, timeout=60).status_code == 200


def test_a_checkpoint_is_found_in_what_verl_writes(student, tmp_path, capsys):
    run_dir = student.parents[2]
    assert find(run_dir) == find(student.parents[1]) == find(student) == student.resolve()
    older = tmp_path / "run" / "global_step_20" / "huggingface"
    newer = tmp_path / "run" / "global_step_100" / "huggingface"
    for folder in (older, newer):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
    (older / "model.safetensors").write_bytes(b"")
    assert find(older.parent) == older.resolve()
    with pytest.raises(CheckpointError, match=r"no weights.*hf_model.*verl\.model_merger merge"):
        find(tmp_path / "run")
    with pytest.raises(CheckpointError, match="holds no model"):
        find(tmp_path)
    assert main(["serve", "checkpoint", str(tmp_path)]) == 2
    assert "holds no model" in capsys.readouterr().err


def test_a_repetition_penalty_of_the_checkpoint_is_not_decoded_with(student, tmp_path):
    copy = tmp_path / "penalised"
    shutil.copytree(student, copy)
    path = copy / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "repetition_penalty": 5.0, "do_sample": True}))
    assert replies_of(LocalChat(copy, "s"), True, 0.0) == replies_of(LocalChat(student, "s"), True, 0.0)


def test_weights_are_told_apart_whatever_lies_beside_them(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    first = weights_hash(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert weights_hash(tmp_path) == first and len(first) == 12
    (tmp_path / "model.safetensors").write_bytes(b"others")
    whole = weights_hash(tmp_path)
    (tmp_path / "model-2.safetensors").write_bytes(b"more")
    assert len({first, whole, weights_hash(tmp_path)}) == 3


def test_two_threads_may_load_a_model_at_the_same_time(student):
    """transformers alone leaves the tied head of both random then, and of every model that the process loads later."""
    started = threading.Barrier(2)

    def loaded(_):
        started.wait()
        return model_of(student, "float32")

    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(loaded, range(2)))
    for model in (*both, model_of(student, "float32")):
        assert torch.equal(model.lm_head.weight, model.model.language_model.embed_tokens.weight)


def test_a_student_whose_weights_are_not_all_there_is_not_played(student, tmp_path):
    from safetensors.torch import load_file, save_file

    from verl_steer.microworld.generate import load

    copy = tmp_path / "in part"
    shutil.copytree(student, copy)
    weights = load_file(copy / "model.safetensors")
    del weights[max(weights)]
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match="lacks 1 weights"):
        load(copy)


def test_a_run_of_a_checkpoint_is_not_continued_with_other_weights(student, tmp_path, capsys):
    """Trained again into the same folder: its path says nothing."""
    model, out = tmp_path / "model", tmp_path / "run"
    shutil.copytree(student, model)
    rows = world_bench(tmp_path / "bench.parquet", 1)
    command = ("run", rows, "--out", out, "--checkpoint", model, "--max-tokens", 4)
    assert bench(*command) == 0 and bench(*command) == 0
    weights = model / "model.safetensors"
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    weights.write_bytes(changed)
    capsys.readouterr()
    assert bench(*command) == 2
    assert "holds another run: its model is" in (said := capsys.readouterr().err) and weights_hash(model) in said
    older = json.loads((out / files.RUN).read_text())
    del older["model"]["weights"]
    (out / files.RUN).write_text(json.dumps(older))
    assert bench(*command) == 0, "an older run did not record them"
