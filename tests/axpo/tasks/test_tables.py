"""Tables with bad rows, files that were put together, and numbers that a column made short."""

import gzip

import pytest

from axpo.errors import AxpoError
from axpo.tasks.data import Source
from axpo.tasks.selection import Selection
from tests.axpo.tasks.test_data import rows_of, text


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (b"a\rb\t2", "a carriage return outside of quotes that ends no line"),
        (b'"Yes" he said\t2', "text behind a closing quote"),
        (b"1\t2\t3", "3 fields, but the first line names 2 columns"),
        (b'"1\n1\t2\n1"\t2\t3', "3 fields on 3 lines (is a quote not closed?), but the first line"),
    ],
)
def test_a_bad_row_of_a_table_is_that_rows_fault(tmp_path, bad, said):
    file = tmp_path / "a.tsv"
    file.write_bytes(b"question\tanswer\n1\t2\n" + bad + b'\n\n5" wide\t4\n')
    table = Source(path=str(file)).rows()
    good = [{"question": "1", "answer": "2"}, {"question": '5" wide', "answer": "4"}]
    assert [table.row(0), table.row(2)] == good
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        table.row(1)
    assert said in str(caught.value)


def test_files_put_one_after_another_keep_their_byte_order_marks(tmp_path):
    part = b"\xef\xbb\xbf" + text({"question": "\ufeff?"}).encode()
    (tmp_path / "a.jsonl").write_bytes(part * 2)
    assert rows_of(tmp_path / "a.jsonl") == [{"question": "\ufeff?"}] * 2


def test_short_floats_are_read_as_they_were_written(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    numbers = {"a": pa.array([0.1, None], pa.float32()), "b": pa.array([0.1, 2.0], pa.float64())}
    pq.write_table(pa.table(numbers), tmp_path / "a.parquet")
    # As a number of Python, 0.1 of 32 bits is 0.10000000149011612: no answer would match.
    assert rows_of(tmp_path / "a.parquet") == [{"a": 0.1, "b": 0.1}, {"a": None, "b": 2.0}]
    pq.write_table(pa.table(numbers).slice(0, 0), tmp_path / "b.parquet")
    with pytest.raises(AxpoError, match=r"b\.parquet: no rows$"):
        rows_of(tmp_path / "b.parquet")


def test_a_file_that_unpacks_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("axpo.tasks.lines.UNPACKED", 1 << 20)
    row = text({"question": "x" * 1000}).encode()
    file = tmp_path / "a.jsonl.gz"
    file.write_bytes(gzip.compress(row * 1000))
    assert len(rows_of(file)) == 1000
    # 1,000 times its size
    file.write_bytes(gzip.compress(b" " * (4 << 20) + row))
    with pytest.raises(AxpoError, match=r"a\.jsonl\.gz: unpacks to more than 1,048,576 bytes"):
        rows_of(file)


def test_a_parquet_file_that_unpacks_without_end_is_refused(tmp_path, monkeypatch):
    import pyarrow as pa
    import pyarrow.parquet as pq

    monkeypatch.setattr("axpo.tasks.lines.UNPACKED", 1 << 20)
    table = pa.table({"question": ["x" * (4 << 20), "y"]})
    file = tmp_path / "a.parquet"
    pq.write_table(table, file, compression="zstd", use_dictionary=False)
    for path in (file, tmp_path / "*.parquet"):
        with pytest.raises(AxpoError, match=r"a\.parquet: unpacks to 4,19.* more than 1,048,576"):
            rows_of(path)


@pytest.mark.parametrize(
    ("condition", "kept"),
    [
        ([1], [1, 1.0]),
        ([True], [True]),
        (["1", None], ["1", None]),
        ({"not_among": [1, None]}, ["1", True, [1]]),
        ({"at_least": 1, "not_among": [True]}, [1, 1.0]),
        ({"at_most": 0.5}, []),
    ],
)
def test_a_condition_tells_numbers_texts_and_truth_values_apart(condition, kept):
    parsed = Selection(path="a.jsonl", keep={"column": condition}).keep["column"]
    values = [1, 1.0, "1", True, None, [1]]
    found = [value for value in values if parsed.holds(value)]
    assert list(map(repr, found)) == list(map(repr, kept))
