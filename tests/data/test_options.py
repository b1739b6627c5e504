"""What a conversion cannot do is said before anything is read, with what to do instead."""

import datasets
import pytest
from published_sources import build, lines, png

from verl_steer.cli import main
from verl_steer.data import sources
from verl_steer.data.convert import convert
from verl_steer.data.options import Options
from verl_steer.data.rows import DataError
from verl_steer.data.splits import read_split


def refused(tmp_path, source, **options):
    with pytest.raises(DataError) as error:
        convert(sources.get(source), Options(**{"to": "seed", **options}), tmp_path / "o" / "o.parquet")
    assert not (tmp_path / "o").exists()
    return str(error.value)


def test_a_split_of_a_folder_is_refused_with_the_files_to_choose_from(tmp_path):
    folder = build("spa_vl", tmp_path).path
    said = refused(tmp_path, "spa_vl", paths=(folder,), split="train")
    assert "--split train chooses within a saved DatasetDict" in said and "name the files that are wanted" in said
    for file in ("data/train-00000-of-00002.parquet", "test/harm-00000-of-00001.parquet"):
        assert str(folder / file) in said


def test_a_split_of_a_saved_dataset_is_refused_and_of_a_dict_beside_a_file_too(tmp_path):
    rows = datasets.Dataset.from_list([{"messages": [{"role": "user", "content": "a"}]}])
    rows.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict(train=rows).save_to_disk(str(tmp_path / "dict"))
    file = lines(tmp_path / "x.jsonl", [[{"role": "user", "content": "b"}]])
    one, many = tmp_path / "one", tmp_path / "dict"
    assert f"{one} is none" in refused(tmp_path, "cosafe", paths=(one,), split="train")
    assert f"{file} is none" in refused(tmp_path, "cosafe", paths=(many, file), split="train")
    account = convert(
        sources.get("cosafe"), Options(to="seed", paths=(many,), split="train"), tmp_path / "seed.parquet"
    )
    assert account.written == 1


@pytest.mark.parametrize("name", ["hub", "config"])
def test_what_chooses_on_the_hub_is_refused_beside_files(tmp_path, name):
    for n in range(7):
        lines(tmp_path / "d" / f"{n}.jsonl", [[{"role": "user", "content": "a"}]])
    said = refused(tmp_path, "cosafe", paths=(tmp_path / "d",), **{name: "english"})
    assert said.startswith(f"--{name} english chooses on the hub, and files were given; leave it out")
    assert "4.jsonl and 2 more)" in said and "5.jsonl" not in said


@pytest.mark.parametrize(
    ("flag", "value", "says"),
    [
        ("--image-turn", "0", "--image-turn 0: give 1 or more"),
        ("--limit", "-1", "--limit -1: give 0 or more"),
        ("--workers", "0", "--workers 0: give 1 or more"),
    ],
)
def test_a_number_that_means_nothing_is_one_line_and_status_2(tmp_path, capsys, flag, value, says):
    path = lines(tmp_path / "x.jsonl", [[{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]])
    (tmp_path / "p.png").write_bytes(png())
    command = ["data", "convert", "cosafe", str(path), "--to", "rl", "--image", str(tmp_path / "p.png"), flag, value]
    assert main([*command, "--out", str(tmp_path / "o.parquet")]) == 2
    assert capsys.readouterr().err == f"verl-steer: {says}\n" and not (tmp_path / "o.parquet").exists()


def test_the_last_question_alone_has_nothing_to_learn_from(tmp_path):
    path = build("cosafe", tmp_path).path
    said = refused(tmp_path, "cosafe", to="sft", paths=(path,), last_question=True)
    assert said.startswith("--last-question keeps one question and none of the replies")
    convert(sources.get("cosafe"), Options(to="seed", paths=(path,), last_question=True), tmp_path / "seed.parquet")
    assert len(list(read_split(tmp_path / "seed.parquet"))) == 3
