"""Import paths: what they find, where they look, and what a user is told about code that fails."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from trainables.errors import ConfigError, DataMissingError
from trainables.user_code import check_import_path, is_import_path, load_function, local_sources, user_errors


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, on no path yet; what is imported from it is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_a_name_with_a_colon_is_an_import_path() -> None:
    assert is_import_path("my_nets:small")
    assert not is_import_path("resnet18")


def test_a_function_of_the_current_folder_is_found_with_what_its_module_imports(folder: Path) -> None:
    (folder / "pieces.py").write_text("ANSWER = 42\n")
    (folder / "nets").mkdir()
    (folder / "nets" / "small.py").write_text("import pieces\ndef answer():\n    return pieces.ANSWER\n")
    assert load_function("nets.small:answer", where="network.name")() == 42


def test_a_module_that_was_written_after_the_folder_was_searched_is_found(folder: Path) -> None:
    for number in range(3):
        (folder / f"young_{number}.py").write_text(f"def f():\n    return {number}\n")
        assert load_function(f"young_{number}:f", where="network.name")() == number


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my_nets:", r"'my_nets:' is no import path; give module:function, as in my_networks:small\."),
        (":small", r"':small' is no import path"),
        ("my nets:small", r"'my nets:small' is no import path"),
        ("my_nets:a:b", r"'my_nets:a:b' is no import path"),
        ("my_nets.py:small", r"leave out '\.py', and write '\.' for '/'"),
        ("nets/my_nets:small", r"leave out '\.py', and write '\.' for '/'"),
    ],
)
def test_what_is_no_import_path_is_refused_before_anything_is_imported(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_import_path(name)
    with pytest.raises(ConfigError, match=rf"^network\.name: .*{message}"):
        load_function(name, where="network.name")


def test_a_missing_module_is_an_error_with_the_folders_that_were_searched(folder: Path) -> None:
    message = rf"^data\.name: 'absent_module:f': No module named 'absent_module'; looked in {folder}.*PYTHONPATH"
    with pytest.raises(ConfigError, match=message):
        load_function("absent_module:f", where="data.name")


def test_a_missing_function_is_an_error_with_the_nearest_one(folder: Path) -> None:
    (folder / "some_nets.py").write_text("WIDTH = 3\ndef small():\n    pass\ndef large():\n    pass\n")
    with pytest.raises(ConfigError, match=r"some_nets\.py\) has no 'smal'; did you mean 'small'\? known: large, small"):
        load_function("some_nets:smal", where="network.name")
    with pytest.raises(ConfigError, match=r"'some_nets:WIDTH' is a int; give the name of a function"):
        load_function("some_nets:WIDTH", where="network.name")


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("import json\njson.loads('{')\n", 2, "JSONDecodeError: Expecting property name"),
        ("\nimport a_module_that_nobody_has\n", 2, "ModuleNotFoundError: No module named 'a_module_that_nobody_has'"),
        ("x = 1\ny = = 2\n", 2, "SyntaxError: invalid syntax"),
        ("raise SystemExit(3)\n", 1, "SystemExit: 3"),
    ],
)
def test_a_module_that_fails_is_an_error_with_its_type_message_and_line(
    folder: Path, text: str, line: int, message: str
) -> None:
    (folder / "failing.py").write_text(text)
    place = f"{folder}/failing.py:{line}".replace(".", r"\.")
    with pytest.raises(ConfigError, match=rf"^network\.name: 'failing:f' failed at {place}: {message}") as found:
        load_function("failing:f", where="network.name")
    assert found.value.__suppress_context__


def test_a_call_that_fails_points_at_the_last_line_of_the_users_own_code(folder: Path) -> None:
    (folder / "inner.py").write_text("import json\ndef parse(text):\n    return json.loads(text)\n")
    (folder / "outer.py").write_text("from inner import parse\ndef f():\n    return parse('{')\n")
    function = load_function("outer:f", where="network.name")
    with (
        pytest.raises(ConfigError, match=r"'outer:f' failed at .*inner\.py:3: JSONDecodeError"),
        user_errors("outer:f", where="network.name"),
    ):
        function()


def test_an_error_that_is_meant_for_users_stays_what_it_is() -> None:
    with pytest.raises(DataMissingError, match=r"^not there$"), user_errors("m:f", where="data.name"):
        raise DataMissingError("not there")


def test_the_code_to_send_is_the_named_package_and_the_folders_modules(folder: Path) -> None:
    for name in ("nets", "other"):
        (folder / name).mkdir()
    for name in ("a.py", "b.py", "notes.txt"):
        (folder / name).touch()
    assert local_sources(["resnet8", "digits"]) == []
    assert local_sources(["nets.small:f", "digits"]) == [folder / "nets", folder / "a.py", folder / "b.py"]
    assert local_sources(["a:f"]) == [folder / "a.py", folder / "b.py"]
