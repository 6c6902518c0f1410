"""Sources of rows: formats, encodings, compression, columns, and where images may be."""

import base64
import gzip
import json
import tracemalloc

import pytest

from axpo.errors import AxpoError
from axpo.tasks.data import Source, image_source
from axpo.tasks.dataset import DatasetConfig
from axpo.tasks.row_check import check_images
from axpo.tasks.rows import Rows
from rollout_workers.trajectory import pixels
from tests.axpo.tasks.bad_rows import PHOTO, encoded, row

LINE_ENDS = ("\u2028", "\u2029", "\u0085", "\x0b", "\x0c", "\x1c", "\r")


def rows_of(file, **more):
    table = Source(path=str(file), **more).rows()
    return [table.row(number) for number in range(len(table))]


def text(*rows, end="\n") -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + end for row in rows)


@pytest.mark.parametrize("character", LINE_ENDS)
def test_only_a_line_feed_ends_a_row(tmp_path, character):
    written = [{"question": f"a{character}b"}, {"question": "c"}]
    raw = text(*written)
    # JSON escapes control characters, and most writers leave the others as they are.
    assert (character in raw) == (ord(character) > 0x1F)
    (tmp_path / "a.jsonl").write_bytes(raw.encode())
    assert rows_of(tmp_path / "a.jsonl") == written


@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n", " \n"])
def test_rows_are_counted_without_blank_lines_and_after_a_byte_order_mark(tmp_path, end):
    written = [{"question": "é"}, {"question": "数字"}]
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + text(*written, end=end).encode())
    assert rows_of(tmp_path / "a.jsonl") == written
    (tmp_path / "b.jsonl").write_text(text(*written).rstrip("\n"))
    assert rows_of(tmp_path / "b.jsonl") == written


@pytest.mark.parametrize(
    ("encoding", "said"),
    [
        ("latin-1", "not UTF-8 but another encoding, perhaps latin-1.*: byte 0xe9 at place"),
        ("cp1252", "not UTF-8 but another encoding"),
        ("utf-16", "UTF-16; expected text in UTF-8"),
        ("utf-16-be", "UTF-16 or binary; expected text in UTF-8"),
        ("utf-32", "UTF-32; expected text in UTF-8"),
    ],
)
@pytest.mark.parametrize("ending", ["jsonl", "json", "tsv"])
def test_another_encoding_is_named_in_one_line(tmp_path, encoding, said, ending):
    lines = [{"question": "café"}] * 3
    written = {"jsonl": text(*lines), "json": json.dumps(lines, ensure_ascii=False)}
    file = tmp_path / f"a.{ending}"
    file.write_bytes(written.get(ending, "question\ncafé\ncafé\n").encode(encoding))
    if ending == "json" and encoding in ("latin-1", "cp1252"):
        said = "byte 0xe9 at place"
    with pytest.raises(AxpoError, match=f"^{file}: .*{said}") as caught:
        Source(path=str(file)).rows()
    assert "\n" not in str(caught.value)


def test_one_line_of_another_encoding_is_a_bad_row_and_not_a_bad_file(tmp_path):
    lines = text(*[{"question": "é"}] * 3).encode() + b'{"question": "\xe9"}\n'
    (tmp_path / "a.jsonl").write_bytes(lines)
    table = Source(path=str(tmp_path / "a.jsonl")).rows()
    assert [table.row(number) for number in range(3)] == [{"question": "é"}] * 3
    with pytest.raises(ValueError, match="byte 0xe9 at place 15 is not UTF-8"):
        table.row(3)


def test_rows_stay_on_disk(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text(text(*({"question": "x" * 10_000} for _ in range(2000))))  # 20 MB
    tracemalloc.start()
    table = Source(path=str(file)).rows()
    assert table.row(1999) == {"question": "x" * 10_000}
    assert tracemalloc.get_traced_memory()[1] < 2e6
    tracemalloc.stop()


def as_tsv(rows, separator="\t") -> str:
    def field(value):
        return '"' + str(value).replace('"', '""') + '"' if value is not None else ""

    lines = [separator.join(rows[0]), *(separator.join(map(field, r.values())) for r in rows)]
    return "\n".join(lines) + "\n"


ROWS = [
    {"question": 'Line one\nand "two"\t,?', "images": base64.b64encode(encoded()).decode()},
    {"question": "Which?", "images": "good.png"},
]
for number, asked in enumerate(ROWS):
    asked["answer"] = str(number)


@pytest.mark.parametrize(
    "ending", ["jsonl", "jsonl.gz", "ndjson", "json", "json.gz", "tsv", "tsv.gz", "csv", "parquet"]
)
def test_every_format_gives_the_same_questions(tmp_path, ending):
    (tmp_path / "good.png").write_bytes(encoded())
    file, kind = tmp_path / f"rows.{ending}", ending.removesuffix(".gz")
    if kind == "parquet":
        import datasets

        datasets.Dataset.from_list(ROWS).to_parquet(str(file))
    else:
        lines = text(*ROWS)
        forms = {
            "json": json.dumps(ROWS, indent=1),
            "tsv": as_tsv(ROWS),
            "csv": as_tsv(ROWS, ","),
        }
        raw = forms.get(kind, lines).encode()
        file.write_bytes(gzip.compress(raw) if ending.endswith(".gz") else raw)
    made = DatasetConfig(train=str(file), held_out=str(file))
    assert made.check_inputs() == []
    found = made.load().held_out()
    assert [(q.text, q.answer) for q in found] == [(r["question"], r["answer"]) for r in ROWS]
    assert [pixels(q.images[0]).tolist() for q in found] == [PHOTO.tolist()] * 2


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl.gz", b"no gzip", "Not a gzipped file"),
        ("a.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 99)[:-9], "ended before the end-of-stream"),
        ("a.jsonl", gzip.compress(b"{}"), "compressed with gzip; expected text in UTF-8"),
        ("a.jsonl", b"PK\x03\x04..", "a zip archive; expected text"),
        (
            "a.json",
            b'{"data": [\n]}',
            "expected a list of objects, or an object a line; found dict",
        ),
        ("a.json", b"[1, ", "row 2: not JSON: "),
        ("a.json", b'[{"a": 1},\n {"a": 1, "a": 2}]', "row 2: the key 'a' is there twice"),
        ("a.json", b'[{}, {}, {"b": ' + b"9" * 5000 + b"}]", "row 3: a whole number of more than"),
        ("a.json", b" ", "not JSON: "),
        ("a.tsv", b'a\tb\n1\t2\n"no end\t2\n3\t4\n', "row 2: begins a quote that nothing closes"),
        ("a.tsv", b'a\tb\n1\t"no end', "row 1: begins a quote that nothing closes"),
        ("a.tsv", b"a\tb\r1\t2\r", "line 1: a carriage return outside of quotes"),
        ("a.tsv", b"a\ta\n1\t2\n", "expected names of columns in its first line, each once"),
        ("a.tsv", b"a\tb\n", "no rows"),
        ("a.txt", b"a", "expected a file whose name ends with .jsonl"),
        ("a.parquet", b"PAR1", "a.parquet, split train: "),
    ],
)
def test_a_file_that_is_something_else_is_named_in_one_short_line(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises((AxpoError, ValueError)) as caught:
        rows_of(tmp_path / name)
    message = str(caught.value)
    assert said in message
    assert "\n" not in message
    assert len(message) < 600


def test_missing_files_are_named(tmp_path):
    for name in ("a.jsonl", "a.jsonl.gz", "a.tsv", "a.parquet"):
        with pytest.raises(AxpoError, match=f"{name}: no such file$"):
            Source(path=str(tmp_path / name)).rows()
    with pytest.raises(AxpoError, match=r"^xxx.*: File name too long$"):
        Source(path="x" * 300 + ".jsonl").rows()
    (tmp_path / "b.jsonl").mkdir()
    with pytest.raises(AxpoError, match=r"b\.jsonl: not a file$"):
        Source(path=str(tmp_path / "b.jsonl")).rows()


def test_a_configuration_is_read_by_its_name(tmp_path):
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n- config_name: easy\n  data_files: easy.jsonl\n"
        "- config_name: hard\n  data_files: hard.jsonl\n---\n"
    )
    for name in ("easy", "hard"):
        (tmp_path / f"{name}.jsonl").write_text(text(row(question=name, images="a.png")))
    assert rows_of(tmp_path, name="hard")[0]["question"] == "hard"
    with pytest.raises(AxpoError, match=r"Config name is missing.*'easy', 'hard'"):
        rows_of(tmp_path)
    with pytest.raises(AxpoError, match=r"configuration none, split train: .*none"):
        rows_of(tmp_path, name="none")


@pytest.mark.parametrize("field", ["name", "revision", "split"])
def test_what_means_nothing_for_a_file_is_refused(field):
    with pytest.raises(ValueError, match=rf"{field}='x': means nothing for a \.jsonl file"):
        Source(path="a.jsonl", **{field: "x"})
    Source(path="owner/data", **{field: "x"})


def test_a_part_of_a_parquet_file_is_a_split(tmp_path):
    import datasets

    file = str(tmp_path / "a.parquet")
    datasets.Dataset.from_list([{"question": str(i)} for i in range(5)]).to_parquet(file)
    assert rows_of(file, split="test[1:3]") == [{"question": "1"}, {"question": "2"}]


def test_a_data_set_of_the_hub_can_be_pinned(monkeypatch):
    import datasets

    asked = {}

    def load(path, **options):
        asked.update(options, path=path)
        return datasets.Dataset.from_list([{"question": "?"}])

    monkeypatch.setattr("datasets.load_dataset", load)
    rows_of("owner/data", name="hard", revision="abc123", split="test")
    assert asked == {"path": "owner/data", "name": "hard", "revision": "abc123", "split": "test"}


def test_a_split_that_is_not_there_is_named_with_those_that_are(tmp_path):
    import datasets

    data = datasets.Dataset.from_list([{"question": "?"}])
    datasets.DatasetDict({"train": data, "test": data}).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(AxpoError, match=r"split val: no such split; there are train, test$"):
        rows_of(tmp_path / "saved", split="val")


def test_columns_that_nobody_names_are_never_decoded(tmp_path, monkeypatch):
    import datasets

    decoded = []
    monkeypatch.setattr(
        datasets.Image, "decode_example", lambda self, *arguments: decoded.append(arguments)
    )
    bomb = {"bytes": b"a TIFF of 169 Mpx", "path": None}
    image = {"bytes": encoded(), "path": None}
    data = datasets.Dataset.from_list(
        [{"question": "?", "answer": "7", "images": [image], "unused": {"pages": [bomb]}}]
    )
    nested = {"pages": datasets.List(datasets.Image())}
    features = data.features | {"images": datasets.List(datasets.Image()), "unused": nested}
    data.cast(datasets.Features(features)).save_to_disk(str(tmp_path / "saved"))
    made = DatasetConfig(train=str(tmp_path / "saved"), held_out=str(tmp_path / "saved"))
    assert made.check_inputs() == []
    assert pixels(made.load().train(0).images[0]).tolist() == PHOTO.tolist()
    # Asked for, it comes as it is stored.
    named = DatasetConfig(**made.model_dump() | {"columns": {"info": ["unused"]}})
    assert named.load().train(0).info == {"unused": {"pages": [bomb]}}
    assert not decoded


@pytest.fixture
def outside(tmp_path):
    """Make a data folder, and pictures outside of it to which links, too, lead."""
    (tmp_path / "data").mkdir()
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(encoded())
    (tmp_path / "data" / "link.png").symlink_to(tmp_path / "photos" / "a.png")
    return tmp_path


@pytest.mark.parametrize("name", ["../photos/a.png", "{}/photos/a.png", "link.png", "x/../../a"])
def test_a_path_out_of_the_data_folder_is_refused_unless_the_recipe_names_the_folder(outside, name):
    name, file = name.format(outside), outside / "data" / "rows.jsonl"
    file.write_text(text(row(images=name)))
    made = DatasetConfig(train=str(file), held_out=str(file))
    with pytest.raises(AxpoError, match=r"row 1: images: .* leads out of .*`image_folders`$"):
        made.check_inputs()
    if name.startswith("x"):
        return
    source = {"path": str(file), "image_folders": [str(outside / "photos")]}
    opened = DatasetConfig(train=source, held_out=source)
    assert opened.check_inputs() == []
    assert pixels(opened.load().train(0).images[0]).tolist() == PHOTO.tolist()


def test_a_path_in_a_saved_data_set_does_not_lead_out_of_it_either(outside):
    import datasets

    data = datasets.Dataset.from_list([row(images=str(outside / "photos" / "a.png"))])
    data.save_to_disk(str(outside / "data" / "saved"))
    saved = str(outside / "data" / "saved")
    with pytest.raises(AxpoError, match=r"row 1: images: .* leads out of .*`image_folders`$"):
        DatasetConfig(train=saved, held_out=saved).check_inputs()


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "WEBP"])
def test_base64_is_an_image_with_and_without_an_address(tmp_path, form):
    raw, folders = encoded(form), Source(path=str(tmp_path / "a.jsonl")).folders
    plain = base64.b64encode(raw).decode()
    wrapped = base64.encodebytes(raw).decode()
    kind = f"image/{form.lower()}"
    for written in (
        *(plain, wrapped, f"data:{kind};base64,{plain}", f"DATA:{kind};charset=x;base64,{wrapped}"),
    ):
        assert image_source(written, folders) == raw
    for bad in ("x" * 300_000, "a\0b", ""):
        with pytest.raises(ValueError, match=r"^expected a path,") as caught:
            image_source(bad, folders)
        assert len(str(caught.value)) < 400


def test_rows_without_an_image_are_asked_if_the_recipe_says_so(tmp_path):
    (tmp_path / "good.png").write_bytes(encoded())
    file = tmp_path / "rows.jsonl"
    file.write_text(text(row(), row(images=[]), row(images=None)))
    with pytest.raises(AxpoError, match=r"row 2: images: expected at least one image; .*false}`"):
        DatasetConfig(train=str(file), held_out=str(file)).check_inputs()
    columns = {"images_required": False}
    made = DatasetConfig(train=str(file), held_out=str(file), columns=columns)
    assert made.check_inputs() == []
    assert [len(question.images) for question in made.load().held_out()] == [1, 0, 0]


@pytest.mark.parametrize(
    ("answer", "read"),
    [
        (7, "7"),
        (10**400, "1" + "0" * 400),
        (7.0, "7"),
        (-2.0, "-2"),
        (0.5, "0.5"),
        (" 7 ", "7"),
        (["7", " x"], '["7", "x"]'),
    ],
)
def test_an_answer_is_read_as_its_shortest_text(tmp_path, answer, read):
    file = tmp_path / "rows.jsonl"
    file.write_text(text({"question": "?", "answer": answer}))
    made = DatasetConfig(train=str(file), held_out=str(file), columns={"images": []})
    assert made.check_inputs() == []
    assert made.load().train(0).answer == read
    assert made.load().verify(made.load().train(0), f"\\boxed{{{read.strip('[]')[:3]}}}") >= 0


@pytest.mark.parametrize("answer", [10**400, -(10**400)])
def test_a_number_may_be_larger_than_any_float(tmp_path, answer):
    file = tmp_path / "rows.jsonl"
    file.write_text(text({"question": "?", "answer": answer}))
    made = DatasetConfig(train=str(file), held_out=str(file), columns={"images": []})
    assert made.check_inputs() == []
    task = made.load()
    assert task.verify(task.train(0), f"\\boxed{{{answer}}}") == 1
    assert task.verify(task.train(0), "\\boxed{1}") == 0


def test_a_value_of_any_length_is_shown_short(tmp_path):
    (tmp_path / "good.png").write_bytes(encoded())
    long = "x" * 1_000_000
    for fields in (
        *({"answer": {long: long}}, {"answer": [1, long]}, {"question": [long]}),
        *({"images": [long]}, {"images": {"path": long}}, {"images": "data:" + long}),
        *({"images": [long[:3000]]}, {"images": ["\ud83d.png"]}),
        *({"images": ["good.png"], "question": "<image>" * 200_000}, {long: 1, "images": {}}),
        {"answer": "\\boxed{" + long + "}"},
    ):
        file = tmp_path / "rows.jsonl"
        file.write_text(json.dumps(row(**fields)))
        made = DatasetConfig(train=str(file), held_out=str(file))
        with pytest.raises(AxpoError) as caught:
            made.check_inputs()
        assert len(str(caught.value).encode()) < 700, fields.keys()
        fault = made.load().train(0).fault
        assert len(fault.encode()) < 700
        # What is wrong with an image alone is found when it is read, or by a check of all images.
        rows = Rows(made.train, made.meaning)
        faults = check_images(rows, tmp_path / "notes", lambda *progress: None).bad
        assert faults or fault
        assert all(len(found.encode()) < 700 for found in faults)
