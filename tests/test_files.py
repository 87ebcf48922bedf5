"""Files are complete or absent."""

from pathlib import Path

import pytest

from dinoquant.files import atomic, read_json, read_rows, write_json, write_rows


def test_success_puts_the_file_in_place(tmp_path: Path) -> None:
    target = tmp_path / "new" / "table.csv"
    with atomic(target) as partial:
        assert partial.suffix == ".csv"
        partial.write_text("done")
        assert not target.exists()
    assert [path.name for path in target.parent.iterdir()] == ["table.csv"]
    assert target.read_text() == "done"


def test_failure_leaves_what_was_there(tmp_path: Path) -> None:
    target = tmp_path / "table.csv"
    target.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic(target) as partial:
        _write_half(partial)
    assert [path.name for path in tmp_path.iterdir()] == ["table.csv"]
    assert target.read_text() == "old"


def _write_half(path: Path) -> None:
    path.write_text("half")
    raise ZeroDivisionError


def test_json_has_no_word_for_nan(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"missing": None})
    assert read_json(tmp_path / "a.json") == {"missing": None}
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "b.json", {"value": float("nan")})
    assert not (tmp_path / "b.json").exists()


def test_rows_are_read_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "new" / "table.csv"
    write_rows(path, ["name", "number", "share"], [{"name": 'a "b", c', "number": 1, "share": 0.1}, {"number": None}])
    assert path.read_bytes() == b'name,number,share\n"a ""b"", c",1,0.1\n,,\n'
    assert read_rows(path) == [
        {"name": 'a "b", c', "number": "1", "share": "0.1"},
        {"name": "", "number": "", "share": ""},
    ]


def test_a_row_with_an_unknown_column_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("old")
    with pytest.raises(ValueError, match="other"):
        write_rows(path, ["name"], [{"name": "a"}, {"other": 1}])
    assert path.read_text() == "old"
