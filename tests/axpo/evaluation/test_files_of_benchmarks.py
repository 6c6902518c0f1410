"""Other forms in which the files of benchmarks come: tables with tabs, pictures inside of JSON."""

from __future__ import annotations

import base64
import csv
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from axpo.errors import AxpoError
from axpo.evaluation import unpack
from axpo.evaluation.benchmark import benchmarks
from axpo.evaluation.paper import SUITE
from axpo.evaluation.rows import Row
from tests.axpo.evaluation import invented


def as_tsv(data):
    """Write the rows of HR-Bench's parquet file as its TSV file has them, and return the file."""
    file = data / "HR-Bench" / "hr_bench_4k.parquet"
    rows = pq.read_table(file).to_pylist()
    file.unlink()
    tsv = file.with_suffix(".tsv")
    with tsv.open("w", newline="") as lines:
        table = csv.DictWriter(lines, list(rows[0]), delimiter="\t")
        table.writeheader()
        table.writerows(rows)
    return tsv


def shown(data, **options):
    """Return what is asked of HR-Bench 4K, with the first pixels of each picture."""
    assert "hrbench-4k" in SUITE
    items = benchmarks.parse({"name": "hrbench-4k", **options}).load(data)
    return [
        (one.id, one.text, one.accepted, one.cluster, one.images[0].read()[:2, :2].tolist())
        for one in items
    ]


@pytest.mark.parametrize("rotations", ["one", "all"])
def test_hr_bench_is_the_same_from_its_tsv_file(tmp_path, rotations):
    invented.hr_bench(tmp_path)
    expected = shown(tmp_path, rotations=rotations)
    assert len(expected) == {"one": 2, "all": 8}[rotations]
    as_tsv(tmp_path)
    assert shown(tmp_path, rotations=rotations) == expected


def test_a_cell_may_have_tabs_quotes_and_lines(tmp_path):
    invented.hr_bench(tmp_path)
    tsv = as_tsv(tmp_path)
    with tsv.open(newline="") as lines:
        rows = list(csv.DictReader(lines, delimiter="\t"))
    rows[0]["question"] = 'Which "sign"\tis\nleft?'
    with tsv.open("w", newline="") as lines:
        table = csv.DictWriter(lines, list(rows[0]), delimiter="\t", quoting=csv.QUOTE_ALL)
        table.writeheader()
        table.writerows(rows)
    assert shown(tmp_path)[0][1].startswith('Which "sign"\tis\nleft?\nA. 12\n')


def test_a_tsv_file_of_another_form_is_one_line(tmp_path):
    invented.hr_bench(tmp_path)
    tsv = as_tsv(tmp_path)
    wrong = {
        "index\timage\n0\n": "line 2: expected 2 columns, found 1",
        "index\tpicture\n0\tx\n": "no column image; it has index, picture",
        "": "no rows below",
        "a,b\n1,2\n": "no column image; it has a,b",
    }
    for text, message in wrong.items():
        tsv.write_text(text)
        with pytest.raises(AxpoError) as refused:
            benchmarks.parse("hrbench-4k").load(tmp_path)
        assert message in str(refused.value)
        assert "\n" not in str(refused.value)


def test_pictures_in_json_are_base64_or_paths(tmp_path):
    encoded = invented.jpeg(invented.picture("x", (30, 20)))
    text = base64.b64encode(encoded).decode()
    folder = tmp_path / "HR-MMSearch"
    (folder / "images").mkdir(parents=True)
    (folder / "images" / "1.jpg").write_bytes(encoded)
    forms = [text, f"data:image/jpeg;base64,{text}", [text], {"bytes": text}, "images/1.jpg"]
    rows = [{"query": "Who?", "query_image": form, "ground_truth": "x"} for form in forms]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    items = benchmarks.parse("hr-mmsearch").load(tmp_path)
    assert [[image.read().shape for image in item.images] for item in items] == [[(20, 30, 3)]] * 5
    # Equal pictures have one file.
    assert len(list(folder.rglob("*.img"))) == 1
    rows[0]["query_image"] = "/etc/passwd"
    (folder / "data.jsonl").write_text(json.dumps(rows[0]))
    with pytest.raises(AxpoError, match="query_image: expected a path below the folder"):
        benchmarks.parse("hr-mmsearch").load(tmp_path)


def test_a_list_of_answers_may_be_written_as_a_text():
    row = Row({"a": '["70", " 40 "]', "b": '["70"', "c": ["x", None], "d": 7}, "row 1", [])
    assert [row.texts(name) for name in "abcd"] == [("70", "40"), ('["70"',), ("x",), ("7",)]


def test_two_evaluations_may_unpack_one_file_at_a_time(tmp_path, monkeypatch):
    invented.hr_bench(tmp_path)
    expected = shown(tmp_path)
    (cache,) = tmp_path.rglob(".axpo")
    (folder,) = cache.iterdir()
    hidden = folder.rename(tmp_path / "hidden")
    publish = unpack._publish

    def late(partial, target):
        hidden.rename(target)
        publish(partial, target)

    monkeypatch.setattr(unpack, "_publish", late)
    assert shown(tmp_path) == expected
    assert list(cache.iterdir()) == [folder]


def test_vstar_is_the_same_from_a_copy_with_its_pictures_inside(tmp_path):
    invented.vstar(tmp_path / "one")
    folder = tmp_path / "one" / "vstar_bench"
    rows = [json.loads(line) for line in (folder / "test_questions.jsonl").open()]
    pictures = [{"image": {"bytes": (folder / row["image"]).read_bytes()}} for row in rows]
    copy = tmp_path / "two" / "vstar-bench" / "data"
    copy.mkdir(parents=True)
    both = [row | picture for row, picture in zip(rows, pictures, strict=True)]
    pq.write_table(pa.Table.from_pylist(both), copy / "test-00000-of-00001.parquet")
    one, two = (benchmarks.parse("vstar").load(tmp_path / name) for name in ("one", "two"))
    for first, second in zip(one, two, strict=True):
        assert (first.id, first.text, first.accepted) == (second.id, second.text, second.accepted)
        assert (first.images[0].read() == second.images[0].read()).all()


def test_files_of_another_split_are_named_and_the_right_ones_go_beside_them(tmp_path):
    invented.mathvision(tmp_path)
    (file,) = tmp_path.rglob("testmini*.parquet")
    # The folder may be called otherwise than the data set; it is the one that is looked into.
    file.rename(file.with_name("test-00000-of-00001.parquet"))
    folder = (tmp_path / "MathVision").rename(tmp_path / "MATH-V")
    with pytest.raises(AxpoError) as refused:
        benchmarks.parse("mathvision").load(tmp_path)
    assert str(refused.value) == (
        f"{folder}: no testmini*.parquet in it (it has data/test-00000-of-00001.parquet); get it "
        f"with: hf download MathLLMs/MathVision --repo-type dataset --local-dir {folder}"
    )
    invented.dynamath(tmp_path, variants=(2, 10))
    message = r"no file of variant 1 in it \(it has those of 2, 10\); get it with: hf download Dyna"
    with pytest.raises(AxpoError, match=message):
        benchmarks.parse("dynamath").load(tmp_path)
