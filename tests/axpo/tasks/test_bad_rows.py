"""Bad rows of every kind: each is named in one short line, none ends a run."""

import pytest

from axpo.errors import AxpoError
from axpo.tasks.dataset import DatasetConfig
from axpo.tasks.row_check import check_images
from axpo.tasks.rows import Rows
from rollout_workers.trajectory import UnusableQuestion, pixels
from tests.axpo.tasks.bad_rows import FOUND_LATE, KINDS, write_files, write_rows

INFO = {"columns": {"info": ["unit"]}}


def config(file, **more) -> DatasetConfig:
    return DatasetConfig(train=str(file), held_out=str(file), **more)


@pytest.mark.parametrize("said", KINDS)
def test_a_row_that_cannot_be_asked_is_named_in_one_short_line(tmp_path, said):
    write_files(tmp_path)
    file = tmp_path / "rows.jsonl"
    file.write_bytes(KINDS[said] + b"\n")
    more = INFO if b"unit" in KINDS[said] else {}
    with pytest.raises(AxpoError) as caught:
        config(file, **more).check_inputs()
    message = str(caught.value)
    assert said in message
    assert message.startswith(f"{file}")
    assert "row 1" in message
    assert "\n" not in message
    assert len(message.encode()) < 600


def test_bad_rows_of_every_kind_are_set_aside_and_all_others_are_asked(tmp_path):
    good, kinds = 40, {said: row for said, row in KINDS.items() if b"unit" not in row}
    made = config(write_rows(tmp_path, good, kinds), max_bad_rows=0.5)
    told = made.check_inputs()
    for said in set(kinds) - {FOUND_LATE}:
        assert sum(said in line for line in told) == 2, said
    # Of 67 rows 32 are decoded, and the one that only decoding finds is not among them.
    assert len(told) == 2 * (len(kinds) - 1)
    asked, reasons = made.load().held_out(), []
    assert [question.id for question in asked] == [f"test-{i + 1}" for i in range(67)]
    for question in asked:
        try:
            assert [pixels(image).shape for image in question.images] == [(40, 40, 3)]
        except UnusableQuestion as error:
            reasons.append(str(error))
    assert len(reasons) == len(kinds)
    (late,) = set(reasons) - set(told)
    assert FOUND_LATE in late
    with pytest.raises(AxpoError, match=r"row \d+: .*; 26 of 67 rows are bad, at most 30% may be"):
        config(made.train.path).check_inputs()


def test_a_check_of_all_images_finds_what_only_decoding_finds_and_goes_on_where_it_was(tmp_path):
    data, notes = tmp_path / "data", tmp_path / "notes"
    data.mkdir()
    file = write_rows(data, 300, {FOUND_LATE: KINDS[FOUND_LATE]})
    made, told, decoded = config(file), [], []

    def check():
        rows = Rows(made.train, made.meaning)
        whole = rows.decode
        rows.decode = lambda number: (decoded.append(number), whole(number))[1]
        return check_images(rows, notes, lambda *progress: told.append(progress)).bad

    (fault,) = check()
    assert f"{file}, row 2: images: {data}/noise.png cannot be read" in fault
    assert told == [(str(file), 256, 301), (str(file), 301, 301)]
    assert sorted(decoded) == list(range(301))
    # Everything is known now, also after lines that were cut off or damaged.
    (log,) = notes.iterdir()
    lines = log.read_text().splitlines()
    damaged = [*lines[:-2], lines[-2][:9], "7", '[[], "", ""]', '["x", "", ""]']
    log.write_bytes("\n".join(damaged).encode() + b"\n\xff")
    decoded.clear()
    assert check() == [fault]
    assert sorted(decoded) == [299, 300]
    # A file that has changed is decoded again.
    (data / "noise.png").write_bytes((data / "good.png").read_bytes())
    decoded.clear()
    assert check() == []
    assert decoded == [1]
    assert made.check_images(notes, lambda *progress: None) == []
