"""The paper's nine benchmarks on invented rows: what is read, and what is asked."""

from __future__ import annotations

import base64
import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from axpo.errors import AxpoError
from axpo.evaluation import unpack
from axpo.evaluation.benchmark import benchmarks
from axpo.evaluation.paper import SUITE
from tests.axpo.evaluation import invented
from tests.axpo.evaluation.invented import load


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return invented.write(tmp_path_factory.mktemp("data"))


def test_every_benchmark_reads_its_files_and_tells_a_wrong_number_of_rows(data):
    expected = [304, 501, 2500, 191, 106, 200, 200, 305, 300]
    for name, rows in zip(SUITE, expected, strict=True):
        benchmark, items = load(name, data)
        found = len(items)
        assert benchmark.expected == rows
        assert benchmark.wrong_count(rows) is None
        told = f"{name}: {rows:,} questions expected, {found} found"
        assert benchmark.wrong_count(found) == told
        assert benchmark.licence
        for item in items.values():
            for image in item.images:
                assert image.read().dtype == np.uint8


def test_mathvision_shows_its_options_unless_they_are_letters_of_the_picture(data):
    _, items = load("mathvision", data)
    assert items["71"].text == "How many squares?"
    assert items["72"].text == "Which is next?"
    assert items["73"].text.startswith(
        "How long is the rope in and?\nChoices:\nA. $2+\\sqrt{3}$\nB."
    )
    assert items["73"].categories == {"subject": "counting", "level": "4"}
    assert [len(item.images) for item in items.values()] == [1, 1, 1]


def test_dynamath_asks_one_variant_or_all(data):
    _, one = load("dynamath", data)
    assert list(one) == ["1-1", "1-2", "1-3"]
    assert one["1-1"].text.endswith("Give a decimal number with three digits after the point.")
    assert one["1-3"].text.endswith("Give the letter of the right choice.")
    assert one["1-1"].categories["subject"] == "analytic geometry"
    benchmark, both = load("dynamath", data, variants="all")
    assert list(both) == ["1-1", "1-2", "1-3", "2-1", "2-2", "2-3"]
    assert benchmark.expected == 5010
    assert both["2-1"].accepted == ("3.1416",)
    assert both["1-1"].cluster == both["2-1"].cluster


def test_the_worst_case_of_dynamath_needs_every_variant_right(data):
    benchmark, _ = load("dynamath", data, variants="all")
    # Two samples each. Seed 1: right in both variants on the first sample only. Seed 2: never.
    right = {"1-1": [True, True], "2-1": [True, False], "1-2": [True, True], "2-2": [False, False]}
    assert benchmark.further(right) == {"worst_case": (1 / 2 + 0) / 2}
    assert load("dynamath", data)[0].further(right) == {}


def test_math_vr_shows_pictures_behind_the_text_in_the_order_of_their_marks(data):
    _, items = load("math-vr", data)
    assert items["0"].images == ()
    asked = items["1"]
    assert asked.text == "See and. Find the smallest $PA + PB$."
    assert [image.read().shape[1] for image in asked.images] == [80, 60]
    assert asked.image_places == (len(asked.text),) * 2


def test_vstar_drops_the_sentence_that_forbids_thinking(data):
    _, items = load("vstar", data)
    assert items["0"].text.endswith("(D) white")
    assert items["0"].options == ("red", "blue", "green", "white")
    assert items["1"].categories == {"category": "relative_position"}


def test_hr_bench_asks_one_rotation_or_four_of_one_question(data):
    _, one = load("hrbench-4k", data)
    assert list(one) == ["0", "4"]
    assert one["0"].text == "What is the number on the boat?\nA. 12\nB. 21\nC. 17\nD. 71"
    benchmark, every = load("hrbench-4k", data, rotations="all")
    assert (len(every), benchmark.expected) == (8, 800)
    assert len({item.cluster for item in every.values()}) == 2
    assert [every[str(i)].accepted[0] for i in range(4)] == ["C", "B", "A", "D"]
    # Four rows show one picture, which is kept once.
    cache = data / "HR-Bench" / ".axpo"
    assert len(list(cache.glob("hr_bench_4k-*/*.img"))) == 2


def test_hr_mmsearch_reads_the_hubs_form_and_the_authors(data):
    _, items = load("hr-mmsearch", data)
    assert items["1"].text == "Who won the race on the banner?"
    assert items["1"].accepted == ("Jane Example", "J. Example")
    assert items["2"].accepted == ("Exampletown",)


def test_mmsearch_asks_questions_without_a_picture_too(data):
    _, items = load("mmsearch", data)
    assert [len(item.images) for item in items.values()] == [1, 0]
    assert items["news_1"].accepted == ("October 4, 2024", "2024-10-04")


def test_visual_probe_has_three_difficulties(tmp_path):
    for level in ("Easy", "Medium", "Hard"):
        invented.visual_probe(tmp_path, level)
        _, items = load(f"visualprobe-{level.lower()}", tmp_path)
        assert [item.accepted for item in items.values()] == [("Exit",), ("4",)]
        assert items[f"visual_probe_{level.lower()}_1"].text == "How many chairs?"


def test_files_that_are_not_there_are_named_with_how_to_get_them(tmp_path):
    benchmark = benchmarks.parse("mathvision")
    how = f"hf download MathLLMs/MathVision --repo-type dataset --local-dir {tmp_path}/MathVision"
    with pytest.raises(AxpoError, match="MathVision is not there; get it with: ") as missing:
        benchmark.load(tmp_path)
    assert str(missing.value).endswith(how)
    (tmp_path / "MathVision").mkdir()
    with pytest.raises(AxpoError, match=r"no testmini\*.parquet in it; get it with"):
        benchmark.load(tmp_path)


def test_the_folders_of_the_hubs_cache_are_found(tmp_path):
    invented.mathvision(tmp_path)
    cached = tmp_path / "datasets--MathLLMs--MathVision" / "snapshots" / "abc"
    cached.parent.mkdir(parents=True)
    (tmp_path / "MathVision").rename(cached)
    assert len(benchmarks.parse("mathvision").load(tmp_path)) == 3


def test_rows_of_another_schema_are_refused_by_file_row_and_column(tmp_path):
    invented.vstar(tmp_path)
    file = tmp_path / "vstar_bench" / "test_questions.jsonl"
    good = [json.loads(line) for line in file.read_text().splitlines()]
    bad = [
        ({"label": "E"}, "row 2: label: expected the letter of one of 2 choices, found 'E'"),
        ({"label": None}, "row 2: label: expected a text, found 'None'"),
        ({"text": "No options?"}, "row 2: text: expected options"),
        ({"image": "/etc/passwd"}, "row 2: image: expected a path below the folder"),
        ({"image": "../x.jpg"}, "row 2: image: expected a path below the folder"),
        ({"image": "direct_attributes/9.jpg"}, "direct_attributes/9.jpg is not there"),
        ({"question_id": 0}, "vstar: two rows have the id '0'"),
    ]
    for change, message in bad:
        file.write_text("".join(json.dumps(row) + "\n" for row in [good[0], good[1] | change]))
        with pytest.raises(AxpoError) as refused:
            benchmarks.parse("vstar").load(tmp_path)
        assert message in str(refused.value)
    file.write_text(json.dumps({"question": "?"}) + "\n")
    with pytest.raises(AxpoError, match="row 1: no column text; the row has question"):
        benchmarks.parse("vstar").load(tmp_path)
    for text in ("no JSON\n", "[" * 100_000):
        file.write_text(text)
        with pytest.raises(AxpoError, match="not JSON"):
            benchmarks.parse("vstar").load(tmp_path)
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(AxpoError, match="is no regular file"):
        benchmarks.parse("vstar").load(tmp_path)
    file.unlink()
    file.write_text("no JSON\n")
    with pytest.raises(AxpoError, match="line 1: not JSON"):
        benchmarks.parse("vstar").load(tmp_path)


def test_pictures_in_parquet_are_bytes_base64_lists_of_them_or_paths(tmp_path):
    encoded = invented.jpeg(invented.picture("x", (30, 20)))
    text = base64.b64encode(encoded).decode()
    forms = [encoded, text, f"data:image/jpeg;base64,{text}", [encoded], "images/1.jpg"]
    for number, form in enumerate(forms):
        folder = tmp_path / str(number) / "HR-MMSearch"
        (folder / "images").mkdir(parents=True)
        (folder / "images" / "1.jpg").write_bytes(encoded)
        row = {"query": ["Who?"], "query_image": [form], "ground_truth": [["x", "y"]]}
        pq.write_table(pa.table(row), folder / "test.parquet")
        (item,) = benchmarks.parse("hr-mmsearch").load(folder.parent)
        assert item.accepted == ("x", "y")
        assert [image.read().shape for image in item.images] == [(20, 30, 3)]


def test_a_file_is_unpacked_once_and_all_or_nothing(tmp_path, monkeypatch):
    invented.mathvision(tmp_path)
    saved = []

    def full(picture, folder):
        saved.append(picture)
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(unpack, "save_picture", full)
        with pytest.raises(AxpoError, match=r"cannot be unpacked into .*: No space left on device"):
            benchmarks.parse("mathvision").load(tmp_path)
    (cache,) = tmp_path.rglob(".axpo")
    assert list(cache.iterdir()) == []
    assert len(benchmarks.parse("mathvision").load(tmp_path)) == 3
    monkeypatch.setattr(unpack, "save_picture", full)
    assert len(benchmarks.parse("mathvision").load(tmp_path)) == 3


def test_a_large_file_is_unpacked_in_a_process_of_its_own(tmp_path, monkeypatch):
    invented.mathvision(tmp_path)
    monkeypatch.setattr(unpack, "SMALL", 0)
    items = benchmarks.parse("mathvision").load(tmp_path)
    assert [item.images[0].read().shape for item in items] == [(48, 64, 3)] * 3


def test_a_damaged_parquet_file_is_one_line(tmp_path):
    file = tmp_path / "MathVision" / "testmini.parquet"
    file.parent.mkdir()
    file.write_bytes(b"PAR1 and nothing else")
    with pytest.raises(AxpoError, match=r"testmini.parquet: cannot be read") as refused:
        benchmarks.parse("mathvision").load(tmp_path)
    assert "\n" not in str(refused.value)
