"""Files of evaluation prompts: lines, and the tables in which public sets come."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from entries import ENVIRONMENT, MET
from hypothesis import example, given
from hypothesis import strategies as st
from searches import SmallSearch

from pytest_diffaccel.matrix import Cell
from pytest_diffaccel.measure.prompt_files import read_prompt_file
from pytest_diffaccel.measure.prompts import digest
from pytest_diffaccel.records.golden_file import merge
from pytest_diffaccel.records.golden_key import GoldenKey

BOM = "\ufeff"


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def read(path: Path) -> tuple[str, ...]:
    return read_prompt_file(path).prompts


def test_reads_lines_and_skips_comments(tmp_path: Path) -> None:
    content = "\ufeff# mine\n\n  a cat \r\n a dog # not a comment\n#no\na cat\n"
    assert read(write(tmp_path / "p.txt", content)) == ("a cat", "a dog # not a comment")


@pytest.mark.parametrize("odd", "\u2028\u2029\x85\x0b\x0c\x1c\x1d\x1e")
def test_a_prompt_ends_at_the_end_of_its_line_alone(tmp_path: Path, odd: str) -> None:
    content = f"a cat{odd}on a mat\r\na dog\rtwo\n"
    assert read(write(tmp_path / "p.txt", content)) == (f"a cat{odd}on a mat", "a dog", "two")


@pytest.mark.parametrize("name", ["p.txt", "prompts", "p.prompt", "p.md"])
def test_any_other_file_is_read_as_ever(tmp_path: Path, name: str) -> None:
    """Stored measurements name their prompts by this digest."""
    content = '"a cat", sitting\nPrompt\tCategory\n{"prompt": "a dog"}\n'
    assert digest(read(write(tmp_path / name, content))) == "76bcf12f5a00"


@pytest.mark.parametrize("start", ["", BOM])
@pytest.mark.parametrize(
    ("name", "content", "column"),
    [
        # As PartiPrompts: no quoting, so that a quote is a quote.
        ("p.tsv", 'Prompt\tCategory\tNote\na cat\tAnimals\t\n"a" dog, two\tSigns\tnone\n', "Prompt"),
        ("p.tsv", 'Note\tPrompt\n"two\nlines"\t"a cat"\n\n\t"""a"" dog, two"\n', "Prompt"),  # as spreadsheets write it
        ("p.csv", 'Prompts,Category\r\na cat,Animals\r\n\r\n"""a"" dog,\n two",Signs\r\n', "Prompts"),  # DrawBench
        ("p.csv", '\n,TEXT \n0,a cat\n1,\n2,"""a"" dog, two"\n', "TEXT"),
        ("p.jsonl", '{"id": 1, "prompt": "a cat"}\n\n{"prompt": "\\"a\\" dog,\\n two", "id": "2"}\n', "prompt"),
        ("p.jsonl", '"a cat"\n"\\"a\\" dog, two"\n', None),
        ("p.json", '["a cat", "\\"a\\" dog, two"]', None),  # HPS
        ("p.json", '[{"caption": "a cat"}, {"caption": null}, {"caption": "\\"a\\" dog, two"}]', "caption"),
        ("p.json", '[{"captions": ["a cat", "\\"a\\" dog, two"]}, {"captions": []}]', "captions"),
        (
            "p.json",
            '{"f1": {"category": "x", "prompt": "a cat"}, "f2": {"prompt": "\\"a\\" dog, two"}}',
            "prompt",
        ),  # MJHQ
        (
            "p.json",  # COCO
            '{"info": {}, "images": [{"id": 1}], "annotations": [{"id": 2, "caption": "a cat"}, '
            '{"caption": "\\"a\\" dog, two"}]}',
            "caption",
        ),
        ("p.json", '{"prompt": "a cat"}\n{"prompt": "\\"a\\" dog, two"}\n', "prompt"),  # JSON lines by another name
    ],
)
def test_public_formats_are_read(tmp_path: Path, start: str, name: str, content: str, column: str | None) -> None:
    found = read_prompt_file(write(tmp_path / name, start + content))
    assert found.prompts == ("a cat", '"a" dog, two')
    assert found.column == column


def test_a_column_is_named_behind_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a:b.csv", "Prompt,The: long one\nshort,a long one\n")
    assert read(path) == ("short",)
    assert read(Path(f"{path}:the: LONG one")) == ("a long one",)
    path = write(tmp_path / "p.json", '{"short": [{"text": "x"}], "long": [{"words": "a long one"}]}')
    assert read(path) == ("x",)
    assert read(Path(f"{path}:words")) == ("a long one",)


LETTERS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
ROWS = st.lists(st.tuples(LETTERS | st.sampled_from(["", "a\nb", 'say "hi"', "a,b\tc", " \r\n", "#x"]), LETTERS))


@given(rows=ROWS, form=st.sampled_from(["csv", "tsv", "jsonl", "json"]), start=st.sampled_from(["", BOM]))
@example(rows=[("a\r\n b", ""), ("", "x")], form="csv", start=BOM)
def test_what_is_written_is_read(rows: list[tuple[str, str]], form: str, start: str) -> None:
    entries = [{"note": note, "Prompt": prompt} for prompt, note in rows]
    written = StringIO(newline="")
    if form in ("csv", "tsv"):
        writer = csv.DictWriter(written, ["note", "Prompt"], dialect="excel" if form == "csv" else "excel-tab")
        writer.writeheader()
        writer.writerows(entries)
    elif form == "json":
        json.dump(entries, written, ensure_ascii=False)
    else:
        written.write("\n\n".join(map(json.dumps, entries)))
    lines = [[part.strip() for part in prompt.replace("\r", "\n").split("\n")] for prompt, _ in rows]
    expected = [" ".join(filter(None, parts)) for parts in lines]
    with TemporaryDirectory() as folder:
        path = write(Path(folder) / f"p.{form}", start + written.getvalue())
        if not any(expected):
            with pytest.raises(ValueError, match="holds no prompt"):
                read(path)
            return
        found = read_prompt_file(path)
    assert found.prompts == tuple(dict.fromkeys(filter(None, expected)))
    assert found.repeated == len([one for one in expected if one]) - len(found.prompts)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("p.txt", b"", "holds no prompt; give a text file with one prompt per line"),
        ("p.txt", b"# only this\n\n", "holds no prompt"),
        ("p.txt", b"a cat\ncaf\xe9\n", "line 2: not UTF-8 text; save the file as UTF-8"),
        ("p.txt", b"PK\0\0", "is a binary file; give a text file with one prompt per line"),
        ("p.csv", b"id,Prompt\n", "holds no prompt"),
        (
            "p.csv",
            b"id,Promt\n1,a\n",
            r"called .* \(did you mean 'Promt'\?\); name the one .*:COLUMN; it has 'id', ",
        ),
        ("p.csv", b"a cat\na dog\n", "it has 'a cat'. A file of one prompt per line, without columns, is a .txt"),
        (
            "p.csv",
            b"id,prompt\n1,a cat\n2,a dog, two\n",
            "line 3: 3 fields under 2 columns; .* a comma in quotes",
        ),
        ("p.csv", b'id,prompt\n1,a cat\n\n2,"a\ndog', "line 4: unexpected end of data; close each quoted field"),
        ("p.csv", b'id,prompt\n1,"a" cat\n', "line 2: .*double the quotes within it"),
        ("p.csv", b"id,prompt\n1,a cat\n2\n", "line 3: no 'prompt' there; add it"),
        ("p.tsv", b'prompt\tid\n"a" cat\t1\na\tb\tc\n', "line 3: 3 fields under 2 columns; .* holds a tab"),
        ("p.jsonl", b'{"prompt": "a"}\n\n{"prompt": "b"\n', "line 3: not JSON: .*; write one text or object per line"),
        ("p.jsonl", b'{"prompt": "a"}\n{"promt": "b"}\n', "line 2: no 'prompt' there; add it, or remove the entry"),
        ("p.jsonl", b'{"prompt": "a"}\n{"prompt": 42}\n', "line 2: 42 is no text; write a prompt in quotes"),
        ("p.jsonl", b'{"prompt": "a"}\n' + b"[" * 100_000, "line 2: not JSON"),
        ("p.json", b'[\n "a",\n "b"\n "c"\n]', "line 4: not JSON"),
        ("p.json", b'["a", {"prompt": ["b", 3]}]', "entry 2: 3 is no text"),
        ("p.json", b'["a", "\\ud83d"]', "entry 2: .* half of a character"),
        ("p.json", b"[{}]", "entry 1: no 'prompt' there"),
        ("p.json", b"42", "entry 1: 42 is no text"),
        ("p.json", b'{"images": [{"id": 1}]}', "is called .*; it has 'images'"),
        ("p.json", b"{}", "no 'prompt' there"),
        ("p.json", b"[" + b"1" * 5000 + b"]", "line 1: not JSON"),
    ],
)
def test_refuses_what_holds_no_prompts(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    path = write(tmp_path / name, content)
    with pytest.raises(ValueError, match=said) as refused:
        read(path)
    assert str(refused.value).startswith(str(path))


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ("p.csv:Promt", r"p.csv: no column 'Promt' \(did you mean 'Prompt'\?\); it has 'id', 'Prompt'"),
        ("p.csv:", "p.csv:: no column is named behind the colon"),
        ("p.txt:Prompt", "p.txt is read as one prompt per line, without columns"),
        ("p.json:Prompt", "p.json holds texts, without columns; leave :Prompt out"),
    ],
)
def test_refuses_a_column_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, content in {"p.csv": "id,Prompt\n1,a cat\n", "p.txt": "a cat\n", "p.json": '["a cat"]'}.items():
        write(tmp_path / name, content)
    with pytest.raises(ValueError, match=said):
        read(Path(named))


def test_names_of_columns_move_no_cursor(tmp_path: Path) -> None:
    entry = {"\x1b[2Jpromp": "a"} | {str(number): "b" for number in range(99)}
    path = write(tmp_path / "p.json", json.dumps([entry]))
    with pytest.raises(ValueError, match=r"it has .*, '10', \.\.\.") as refused:
        read(path)
    assert "\x1b" not in str(refused.value)


@pytest.mark.parametrize("name", ["none.txt", ".", "none.csv:Prompt"])
def test_refuses_a_missing_file_and_a_directory(tmp_path: Path, name: str) -> None:
    with pytest.raises(FileNotFoundError, match="one prompt per line"):
        read(tmp_path / name)


NOTHING_RUNS = """
def pytest_runtestloop():
    return True
"""


def test_a_search_and_the_gate_say_how_many_they_use(small_search: SmallSearch) -> None:
    small_search.add_to_conftest(NOTHING_RUNS)
    rows = "".join(f"{number},a cat with {number} legs\n" for number in range(9))
    (small_search.path / "p.csv").write_text(f"id,Description\n{rows}", encoding="utf-8")
    options = ("--prompts", "p.csv:description", "--num-samples", "3")
    small_search.run(*options).stdout.fnmatch_lines(
        ["diffaccel: of 9 prompts in p.csv (column 'Description'), 3 choose winners and 3 others verify them"]
    )
    winners = {GoldenKey(Cell("SD1.5", "DDIM", 20), "DeepCache", 1.5): replace(MET, environment=ENVIRONMENT.id)}
    merge(small_search.golden, winners, update=False, environments={ENVIRONMENT.id: ENVIRONMENT})
    small_search.run(*options, "--gate", "--search-targets", "deepcache").stdout.fnmatch_lines(
        ["diffaccel gate: of 9 prompts in p.csv (column 'Description'), 4 are drawn"]
    )
